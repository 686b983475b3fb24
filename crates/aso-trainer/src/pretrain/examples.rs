//! Texts and items as batches.

use std::collections::BTreeMap;

use aso_backbones::{Backbone, ModelKind, SpecialTokens, TokenBatch};
use aso_data::synthetic::{instruction_items, pretraining_text};
use aso_data::{DataError, EncodedExample, Example, TextTokenizer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::corpus::{ItemKind, ItemMaker, token_vectors, with_identity};
use super::{
    Corpus, PretrainConfig, PretrainData, PretrainError, PretrainModel, SpanCorruption, accuracy,
    tokenizer,
};
use crate::codec::TextCodec;

/// Longest answer of an item in tokens.
pub(super) const MAX_TARGET: usize = 50;
/// Items of a test.
const TESTED: u64 = 400;

/// The batches of a pre-training. The one of a step is a function of configuration, data and step.
pub(super) struct Examples {
    form: Form,
    source: Source,
}

/// How examples become token ids.
struct Form {
    seed: u64,
    rows: usize,
    max_source: usize,
    codec: TextCodec,
    /// `None` for a causal model, which predicts text as it is.
    corruption: Option<SpanCorruption>,
    sentinels: Vec<u32>,
}

enum Source {
    Generated(Generated),
    Corpus(Texts),
}

/// Generated language, drawn one example after another.
struct Generated {
    text: Box<dyn Iterator<Item = String>>,
    items: Box<dyn Iterator<Item = Example>>,
    rng: ChaCha8Rng,
    /// Steps drawn.
    done: usize,
}

/// Texts of a corpus and items made from them, drawn by number.
struct Texts {
    texts: Vec<Vec<u32>>,
    items: ItemMaker,
    vectors: Vec<f32>,
    /// Of the vectors, and of the model.
    widths: [usize; 2],
}

impl Examples {
    pub(super) fn new(
        config: &PretrainConfig,
        data: &PretrainData,
        text: &TextTokenizer,
        width: usize,
    ) -> Result<Self, PretrainError> {
        let seed = config.seed;
        let (corruption, kind, bos) = match config.model {
            PretrainModel::T5 { corruption, .. } => {
                (Some(corruption), ModelKind::EncoderDecoder, None)
            }
            PretrainModel::Llama { .. } => (None, ModelKind::Causal, text.bos_id()),
        };
        let source = match data {
            PretrainData::Generated => Source::Generated(Generated {
                text: Box::new(pretraining_text(seed)),
                items: Box::new(instruction_items(seed)),
                rng: ChaCha8Rng::seed_from_u64(seed),
                done: 0,
            }),
            PretrainData::Corpus(corpus) => {
                Source::Corpus(Texts::new(corpus, text, width, kind, seed)?)
            }
        };
        let special = SpecialTokens {
            bos,
            pad: text.pad_id().unwrap_or(0),
            ends: text.eos_id().into_iter().collect(),
        };
        let form = Form {
            seed,
            rows: config.batch_size,
            max_source: config.max_source,
            codec: TextCodec::new(kind, &special, text.clone()),
            corruption,
            sentinels: tokenizer::sentinel_ids(text),
        };
        Ok(Self { form, source })
    }

    /// Token vectors to start from, `[vocabulary, width]`.
    pub(super) fn vectors(&self) -> Option<Vec<f32>> {
        match &self.source {
            Source::Generated(_) => None,
            Source::Corpus(texts) => {
                let [meaning, width] = texts.widths;
                Some(with_identity(
                    &texts.vectors,
                    meaning,
                    width,
                    self.form.seed,
                ))
            }
        }
    }

    /// Exact match in percent by kind of item, on items that no step draws; `None` for generated language.
    pub(super) fn accuracy(
        &self,
        model: &impl Backbone,
    ) -> Result<Option<BTreeMap<ItemKind, f64>>, PretrainError> {
        let Source::Corpus(texts) = &self.source else {
            return Ok(None);
        };
        let items = (0..TESTED).filter_map(|n| texts.items.item(u64::MAX - n));
        accuracy(model, &self.form.codec, items.collect()).map(Some)
    }

    /// The batch of step `step` (from 1). `text_share` is about the share of text in a step. Steps are asked for in
    /// order, but may begin anywhere.
    pub(super) fn batch(
        &mut self,
        step: usize,
        text_share: impl Fn(usize) -> f64,
    ) -> Result<TokenBatch, PretrainError> {
        let form = &self.form;
        let share = |step| text_share(step).clamp(0.0, 1.0);
        let examples = match &mut self.source {
            Source::Generated(generated) => {
                // What a run before drew is drawn again.
                for before in generated.done + 1..step {
                    generated.draw(form, share(before))?;
                }
                generated.done = step;
                generated.draw(form, share(step))?
            }
            Source::Corpus(texts) => {
                let share = share(step);
                let row = |row| texts.draw(form, share, (step * form.rows + row) as u64);
                let rows = (0..form.rows).into_par_iter().map(row);
                rows.collect::<Result<_, _>>()?
            }
        };
        Ok(form.codec.batch(&examples.iter().collect::<Vec<_>>())?)
    }
}

impl Generated {
    /// The examples of the next step.
    fn draw(&mut self, form: &Form, share: f64) -> Result<Vec<EncodedExample>, PretrainError> {
        let encoder = form.codec.encoder(form.max_source, MAX_TARGET)?;
        let mut examples = Vec::with_capacity(form.rows);
        while examples.len() < form.rows {
            if self.rng.random_bool(share) {
                let Some(text) = self.text.next() else {
                    continue;
                };
                let ids = form.codec.tokenizer().encode(&text)?;
                examples.push(form.text(&ids, &mut self.rng));
            } else if let Some(item) = self.items.next() {
                examples.push(encoder.encode("instruction items", &item)?);
            }
        }
        Ok(examples)
    }
}

impl Texts {
    fn new(
        corpus: &Corpus,
        text: &TextTokenizer,
        width: usize,
        kind: ModelKind,
        seed: u64,
    ) -> Result<Self, PretrainError> {
        let ids = corpus.texts().iter().map(|t| text.encode(t));
        let texts: Vec<Vec<u32>> = ids.collect::<Result<_, _>>()?;
        // A quarter of the model's width is left to tell tokens apart.
        let meaning = width - width.div_ceil(4);
        let vectors = token_vectors(&texts, text.vocab_size(), meaning, seed);
        let vector_of = |word: &str| {
            let ids = text.encode(word).ok()?;
            let mut sum = vec![0.0; meaning];
            for id in ids {
                let vector = &vectors[id as usize * meaning..][..meaning];
                for (sum, value) in sum.iter_mut().zip(vector) {
                    *sum += value;
                }
            }
            Some(sum)
        };
        let gap = match kind {
            ModelKind::EncoderDecoder => "<extra_id_0>",
            ModelKind::Causal => "_",
        };
        let items = ItemMaker::new(corpus, seed, gap, vector_of);
        if items.item(0).is_none() {
            let found = texts.len();
            return Err(PretrainError::SmallCorpus { found });
        }
        Ok(Self {
            texts,
            items,
            vectors,
            widths: [meaning, width],
        })
    }

    /// Example number `number`: an item, or with probability `share` a stretch of a random text.
    fn draw(&self, form: &Form, share: f64, number: u64) -> Result<EncodedExample, PretrainError> {
        let mut rng = ChaCha8Rng::seed_from_u64(form.seed);
        rng.set_stream(number);
        if !rng.random_bool(share)
            && let Some((_, item)) = self.items.item(number)
        {
            let encoder = form.codec.encoder(form.max_source, MAX_TARGET)?;
            match encoder.encode("items", &item) {
                // Many long options: text instead.
                Err(DataError::InstructionTooLong { .. }) => {}
                encoded => return Ok(encoded?),
            }
        }
        let text = &self.texts[rng.random_range(0..self.texts.len())];
        let length = text.len().min(form.max_source / 2);
        let start = rng.random_range(0..=text.len() - length);
        Ok(form.text(&text[start..start + length], &mut rng))
    }
}

impl Form {
    /// Text as an example: spans to restore, or tokens to predict from left to right.
    fn text(&self, ids: &[u32], rng: &mut ChaCha8Rng) -> EncodedExample {
        let tokenizer = self.codec.tokenizer();
        let end = tokenizer.eos_id();
        let (source, target) = match self.corruption {
            Some(corruption) => {
                let (mut source, mut target) = corruption.corrupt(ids, &self.sentinels, rng);
                source.extend(end);
                target.extend(end);
                (source, target)
            }
            // The begin token is the prompt.
            None => {
                let target = ids.iter().copied().chain(end).collect();
                (tokenizer.bos_id().into_iter().collect(), target)
            }
        };
        EncodedExample {
            source,
            target,
            source_removed: 0,
            target_removed: 0,
        }
    }
}
