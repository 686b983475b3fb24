//! Text generation, shared by every backbone.

use std::path::Path;

use burn::tensor::Tensor;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::BackboneError;
use crate::checkpoint::read_json;

/// How to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// Upper bound on new tokens per row. Default: 50.
    pub max_new_tokens: usize,
    /// How the next token is chosen. Default: greedy.
    pub decoding: Decoding,
    /// Divides the positive and multiplies the negative logits of tokens that occur in the row already
    /// (Keskar et al. 2019): in a causal model's prompt or the new tokens, in the new tokens of an
    /// encoder-decoder. Default: 1, off.
    pub repetition_penalty: f64,
}

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Decoding {
    /// The most likely token, the first one of several.
    #[default]
    Greedy,
    /// Drawn from the distribution that [`Sampling`] describes.
    Sample(Sampling),
}

/// A distribution over the next token: temperature, then top-k, then top-p, as in Transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; positive. Default: 1.
    pub temperature: f64,
    /// Only the k most likely tokens; 0 for all. Default: 0.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability, in (0, 1]. Default: 1.
    pub top_p: f64,
    /// Seed; the draws of a row are a function of the seed and the row's stream.
    pub seed: u64,
}

/// `eos_token_id` as Hugging Face writes it: absent, one id or a list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EndTokens {
    /// No end token.
    #[default]
    None,
    /// One.
    One(i64),
    /// Several; any of them ends a row.
    Several(Vec<i64>),
}

/// Ends rows before an end token, for example at a stop string.
pub trait StopCriterion {
    /// Whether a row with these new tokens is finished.
    fn is_finished(&self, new_tokens: &[u32]) -> bool;
}

/// What belongs to the rows of one batch rather than to the settings.
#[derive(Default, Clone, Copy)]
pub struct RowControl<'a> {
    /// Ends rows early.
    pub stop: Option<&'a dyn StopCriterion>,
    /// One random stream per row, so that a row's draws do not depend on its batch. Absent: the number of
    /// the row.
    pub streams: Option<&'a [u64]>,
}

/// One batch in generation, as the loop sees it.
pub(crate) trait Decoder {
    /// Logits of the next token after the prompt and `tokens` (the newest of every row; `None` at first),
    /// `[rows, vocabulary]`.
    fn step(&mut self, tokens: Option<&[i64]>) -> Tensor<2>;

    /// Tokens of a row's prompt that count as repeated; asked for before the first step.
    fn prompt(&self, row: usize) -> Vec<i64>;

    /// Goes on with these of the present rows, in ascending order: they become rows 0, 1, ..
    fn keep(&mut self, rows: &[usize]);
}

/// One of so many present rows must have finished for the others to go on without it. Copying what a row keeps
/// costs about as much as a step of it, so that one row in many is not worth it.
const WORTH_KEEPING: usize = 4;

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: 50,
            decoding: Decoding::Greedy,
            repetition_penalty: 1.0,
        }
    }
}

impl GenerationConfig {
    /// Greedy decoding of at most `max_new_tokens` tokens.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self {
            max_new_tokens,
            ..Self::default()
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`BackboneError::Generation`] names the key, what is expected and what was found.
    pub fn validate(&self) -> Result<(), BackboneError> {
        let check = |key, value: f64, valid: bool, expected| match valid {
            true => Ok(()),
            false => Err(BackboneError::Generation {
                key,
                expected,
                found: value.to_string(),
            }),
        };
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let penalty = self.repetition_penalty;
        let valid = positive(penalty);
        check("repetition_penalty", penalty, valid, "a positive number")?;
        if let Decoding::Sample(Sampling {
            temperature, top_p, ..
        }) = self.decoding
        {
            let valid = positive(temperature);
            check("temperature", temperature, valid, "a positive number")?;
            let valid = top_p > 0.0 && top_p <= 1.0;
            check("top_p", top_p, valid, "a number in (0, 1]")?;
        }
        Ok(())
    }
}

impl EndTokens {
    /// The ids, in the order of the file.
    pub fn ids(&self) -> &[i64] {
        match self {
            Self::None => &[],
            Self::One(id) => std::slice::from_ref(id),
            Self::Several(ids) => ids,
        }
    }

    /// Those of a folder's `generation_config.json`; none without that file.
    ///
    /// # Errors
    /// [`BackboneError::Json`]; [`BackboneError::UnsupportedConfig`] for an id outside the vocabulary.
    pub(crate) fn of_generation_config(
        dir: &Path,
        vocabulary: usize,
    ) -> Result<Self, BackboneError> {
        #[derive(Deserialize)]
        struct GenerationFile {
            #[serde(default)]
            eos_token_id: EndTokens,
        }
        let path = dir.join("generation_config.json");
        if !path.exists() {
            return Ok(Self::None);
        }
        let GenerationFile { eos_token_id } = read_json(&path)?;
        eos_token_id.check(&path, vocabulary)?;
        Ok(eos_token_id)
    }

    /// Refuses ids outside the vocabulary; `path` is for the message.
    pub(crate) fn check(&self, path: &Path, vocabulary: usize) -> Result<(), BackboneError> {
        let valid = |id: &i64| usize::try_from(*id).is_ok_and(|id| id < vocabulary);
        match self.ids().iter().find(|id| !valid(id)) {
            None => Ok(()),
            Some(id) => Err(BackboneError::UnsupportedConfig {
                path: path.to_owned(),
                key: "eos_token_id",
                expected: format!("token ids below vocab_size = {vocabulary}"),
                found: id.to_string(),
            }),
        }
    }

    /// Appends the ids that are not in `ends` yet.
    pub(crate) fn add_to(&self, ends: &mut Vec<i64>) {
        for id in self.ids() {
            if !ends.contains(id) {
                ends.push(*id);
            }
        }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
        }
    }
}

impl std::fmt::Debug for RowControl<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowControl")
            .field("stop", &self.stop.is_some())
            .field("streams", &self.streams)
            .finish()
    }
}

/// Generates until every row has met an end token, its stop criterion or the limit. A finished row is fed
/// `pad` until enough have finished to go on without them. New tokens per row, the end token included.
pub(crate) fn generate(
    decoder: &mut dyn Decoder,
    rows: usize,
    (ends, pad): (&[i64], i64),
    config: &GenerationConfig,
    control: RowControl<'_>,
) -> Vec<Vec<u32>> {
    let mut choosers: Vec<Chooser> = (0..rows)
        .map(|row| Chooser::new(config, control.stream(row), decoder.prompt(row)))
        .collect();
    let on_device = config.repetition_penalty == 1.0 && config.decoding == Decoding::Greedy;
    let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); rows];
    let mut done = vec![false; rows];
    // The rows that the decoder still holds.
    let mut present: Vec<usize> = (0..rows).collect();
    let mut newest: Option<Vec<i64>> = None;
    for _ in 0..config.max_new_tokens {
        let logits = decoder.step(newest.as_deref());
        let chosen: Vec<i64> = if on_device {
            let best = logits.argmax(1).reshape([present.len()]).into_data();
            best.iter::<i64>().collect()
        } else {
            let [_, vocabulary] = logits.dims();
            let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
            let rows = present.iter().zip(logits.chunks(vocabulary));
            rows.map(|(row, logits)| {
                if done[*row] {
                    pad
                } else {
                    choosers[*row].choose(logits)
                }
            })
            .collect()
        };
        let mut next = vec![pad; present.len()];
        for ((row, id), next) in present.iter().zip(chosen).zip(&mut next) {
            let row = *row;
            if done[row] {
                continue;
            }
            *next = id;
            tokens[row].push(id as u32);
            let stopped = || {
                control
                    .stop
                    .is_some_and(|stop| stop.is_finished(&tokens[row]))
            };
            done[row] = ends.contains(&id) || stopped();
        }
        let kept: Vec<usize> = (0..present.len())
            .filter(|at| !done[present[*at]])
            .collect();
        if kept.is_empty() {
            break;
        }
        if (present.len() - kept.len()) * WORTH_KEEPING >= present.len() {
            decoder.keep(&kept);
            next = kept.iter().map(|at| next[*at]).collect();
            present = kept.iter().map(|at| present[*at]).collect();
        }
        newest = Some(next);
    }
    tokens
}

impl RowControl<'_> {
    fn stream(&self, row: usize) -> u64 {
        let given = self.streams.and_then(|streams| streams.get(row));
        given.copied().unwrap_or(row as u64)
    }
}

/// Chooses one row's tokens on the host.
struct Chooser {
    decoding: Decoding,
    penalty: f32,
    seen: Vec<i64>,
    rng: ChaCha8Rng,
}

impl Chooser {
    fn new(config: &GenerationConfig, stream: u64, seen: Vec<i64>) -> Self {
        let seed = match config.decoding {
            Decoding::Greedy => 0,
            Decoding::Sample(sampling) => sampling.seed,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self {
            decoding: config.decoding,
            penalty: config.repetition_penalty as f32,
            seen,
            rng,
        }
    }

    fn choose(&mut self, logits: &[f32]) -> i64 {
        let mut logits = logits.to_vec();
        if self.penalty != 1.0 {
            self.seen.sort_unstable();
            self.seen.dedup();
            for &id in &self.seen {
                if let Some(logit) = usize::try_from(id).ok().and_then(|id| logits.get_mut(id)) {
                    *logit = if *logit < 0.0 {
                        *logit * self.penalty
                    } else {
                        *logit / self.penalty
                    };
                }
            }
        }
        let id = match self.decoding {
            Decoding::Greedy => first_best(&logits),
            Decoding::Sample(sampling) => {
                let kept = distribution(&logits, &sampling);
                draw(&kept, self.rng.random::<f64>())
            }
        } as i64;
        self.seen.push(id);
        id
    }
}

fn first_best(logits: &[f32]) -> usize {
    let mut best = 0;
    for (at, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = at;
        }
    }
    best
}

/// Tokens and probabilities that remain, most likely first.
fn distribution(logits: &[f32], sampling: &Sampling) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Equal logits keep the order of ids, so that the outcome is defined.
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let highest = order.first().map_or(0.0, |first| f64::from(logits[*first]));
    let mut kept: Vec<(usize, f64)> = order
        .into_iter()
        .map(|at| {
            let scaled = (f64::from(logits[at]) - highest) / sampling.temperature;
            (at, scaled.exp())
        })
        .collect();
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let mut reached = 0.0;
    let mut count = 0;
    for (_, weight) in &mut kept {
        if count > 0 && reached >= sampling.top_p {
            break;
        }
        *weight /= total;
        reached += *weight;
        count += 1;
    }
    kept.truncate(count);
    kept.iter_mut().for_each(|(_, weight)| *weight /= reached);
    kept
}

/// The token at `uniform` in [0, 1) of the cumulative distribution.
fn draw(kept: &[(usize, f64)], uniform: f64) -> usize {
    let mut cumulated = 0.0;
    for (id, probability) in kept {
        cumulated += probability;
        if uniform < cumulated {
            return *id;
        }
    }
    kept.last().map_or(0, |(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use proptest::prelude::*;

    use super::*;

    /// Logits that prefer the token after the newest one, modulo the vocabulary.
    struct Counting {
        vocabulary: usize,
        prompts: Vec<i64>,
        /// Rows at each step.
        steps: Vec<usize>,
    }

    impl Decoder for Counting {
        fn step(&mut self, tokens: Option<&[i64]>) -> Tensor<2> {
            let newest = tokens.unwrap_or(&self.prompts).to_vec();
            assert_eq!(newest.len(), self.prompts.len());
            self.steps.push(newest.len());
            let logits: Vec<f32> = newest
                .iter()
                .flat_map(|newest| {
                    let next = (*newest as usize + 1) % self.vocabulary;
                    (0..self.vocabulary).map(move |id| if id == next { 2.0 } else { 1.0 })
                })
                .collect();
            let data = TensorData::new(logits, [newest.len(), self.vocabulary]);
            Tensor::from_data(data, &Device::flex())
        }

        fn prompt(&self, row: usize) -> Vec<i64> {
            vec![self.prompts[row]]
        }

        fn keep(&mut self, rows: &[usize]) {
            self.prompts = rows.iter().map(|row| self.prompts[*row]).collect();
        }
    }

    fn count(prompts: &[i64], config: &GenerationConfig, control: RowControl<'_>) -> Vec<Vec<u32>> {
        let mut decoder = Counting {
            vocabulary: 8,
            prompts: prompts.to_vec(),
            steps: Vec::new(),
        };
        generate(&mut decoder, prompts.len(), (&[6, 7], 0), config, control)
    }

    #[test]
    fn rows_end_at_any_end_token_or_the_limit() {
        let greedy = GenerationConfig::greedy(3);
        let found = count(&[1, 4, 6], &greedy, RowControl::default());
        assert_eq!(found, [vec![2, 3, 4], vec![5, 6], vec![7]]);
    }

    #[test]
    fn finished_rows_leave_the_batch_once_they_are_a_quarter() {
        let first = [5, 1, 5, 2, 0, 1, 2, 1, 2];
        let mut decoder = Counting {
            vocabulary: 8,
            prompts: first.to_vec(),
            steps: Vec::new(),
        };
        let config = GenerationConfig::greedy(10);
        let control = RowControl::default();
        let found = generate(&mut decoder, first.len(), (&[6], 0), &config, control);
        let expected = first.map(|first| (first as u32 + 1..=6).collect::<Vec<_>>());
        assert_eq!(found, expected);
        // Two of nine are not enough; with the three that begin at 2 they are.
        assert_eq!(decoder.steps, [9, 9, 9, 9, 4, 1]);
    }

    #[test]
    fn a_stop_criterion_ends_its_row_only() {
        struct AfterFour;
        impl StopCriterion for AfterFour {
            fn is_finished(&self, new_tokens: &[u32]) -> bool {
                new_tokens.ends_with(&[4])
            }
        }
        let control = RowControl {
            stop: Some(&AfterFour),
            ..RowControl::default()
        };
        let found = count(&[1, 0], &GenerationConfig::greedy(4), control);
        assert_eq!(found, [vec![2, 3, 4], vec![1, 2, 3, 4]]);
    }

    #[test]
    fn the_repetition_penalty_counts_prompt_and_new_tokens() {
        let config = GenerationConfig {
            repetition_penalty: 2.5,
            ..GenerationConfig::default()
        };
        let mut chooser = Chooser::new(&config, 0, vec![1, 1]);
        // 2.0 becomes 0.8 from the start, 1.0 becomes 0.4 once it was chosen.
        assert_eq!(chooser.choose(&[1.0, 2.0, 0.9]), 0);
        assert_eq!(chooser.choose(&[1.0, 2.0, 0.9]), 2);
        assert_eq!(chooser.choose(&[1.0, 2.0, 0.9]), 1);
        // Negative logits are multiplied.
        assert_eq!(chooser.choose(&[-1.0, -2.0, -0.5]), 2);
    }

    #[test]
    fn draws_belong_to_seed_and_stream_not_to_the_batch() {
        let sampling = Sampling {
            temperature: 3.0,
            seed: 5,
            ..Sampling::default()
        };
        let config = GenerationConfig {
            max_new_tokens: 20,
            decoding: Decoding::Sample(sampling),
            ..GenerationConfig::default()
        };
        let streams = |streams| RowControl {
            streams: Some(streams),
            ..RowControl::default()
        };
        let both = count(&[1, 2], &config, streams(&[10, 11]));
        assert_eq!(both[1], count(&[2], &config, streams(&[11]))[0]);
        assert_eq!(both, count(&[1, 2], &config, streams(&[10, 11])));
        assert_ne!(both[0], count(&[1], &config, streams(&[12]))[0]);
    }

    // Transformers 5: TopPLogitsWarper keeps the smallest set that reaches top_p, the crossing token included.
    #[test]
    fn top_k_and_top_p_keep_the_right_tokens() {
        let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
        let ids = |sampling: Sampling| -> Vec<usize> {
            distribution(&logits, &sampling)
                .into_iter()
                .map(|(id, _)| id)
                .collect()
        };
        let all = Sampling::default();
        assert_eq!(ids(all), [0, 1, 2, 3]);
        assert_eq!(ids(Sampling { top_k: 2, ..all }), [0, 1]);
        assert_eq!(ids(Sampling { top_p: 0.6, ..all }), [0, 1]);
        assert_eq!(ids(Sampling { top_p: 0.4, ..all }), [0]);
        assert_eq!(
            ids(Sampling {
                top_k: 3,
                top_p: 0.9,
                ..all
            }),
            [0, 1, 2]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn kept_probabilities_sum_to_one(
            logits in proptest::collection::vec(-20.0f32..20.0, 1..40),
            temperature in 0.1f64..4.0,
            top_k in 0usize..10,
            top_p in 0.01f64..1.0,
            uniform in 0.0f64..1.0,
        ) {
            let sampling = Sampling { temperature, top_k, top_p, seed: 0 };
            let kept = distribution(&logits, &sampling);
            let sum: f64 = kept.iter().map(|(_, p)| p).sum();
            prop_assert!((sum - 1.0).abs() < 1e-9);
            prop_assert!(top_k == 0 || kept.len() <= top_k);
            prop_assert!(kept.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            prop_assert!(draw(&kept, uniform) < logits.len());
        }
    }
}
