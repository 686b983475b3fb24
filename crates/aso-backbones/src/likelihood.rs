//! Log-likelihoods of given answers, for every backbone.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};

/// Positions that go through the head at once: bounds the memory of logits.
const CHUNK: usize = 256;

/// Alternative answers of the rows of a batch, laid out as if every row had [`count`](Self::count) of them and each
/// were [`length`](Self::length) tokens long.
pub(crate) struct Answers<'a> {
    rows: &'a [&'a [Vec<u32>]],
    pub(crate) count: usize,
    pub(crate) length: usize,
}

/// A token whose probability counts.
struct Pick {
    /// The position that predicts it.
    position: usize,
    token: usize,
    row: usize,
    answer: usize,
}

impl<'a> Answers<'a> {
    pub(crate) fn new(rows: &'a [&'a [Vec<u32>]]) -> Self {
        let answers = rows.iter().flat_map(|row| row.iter());
        Self {
            count: rows.iter().map(|row| row.len()).max().unwrap_or(0),
            length: answers.map(Vec::len).max().unwrap_or(0),
            rows,
        }
    }

    /// What a decoder is fed, `[rows, count, n]`: `first`, if there is one, and all tokens but the last; `pad` behind.
    pub(crate) fn inputs(&self, first: Option<i64>, pad: i64) -> Vec<i64> {
        let width = self.length.saturating_sub(1) + usize::from(first.is_some());
        let mut inputs = Vec::with_capacity(self.rows.len() * self.count * width);
        for row in self.rows {
            for answer in 0..self.count {
                let tokens = row.get(answer).map_or(&[][..], Vec::as_slice);
                let fed = &tokens[..tokens.len().saturating_sub(1)];
                let end = inputs.len() + width;
                inputs.extend(first);
                inputs.extend(fed.iter().map(|token| i64::from(*token)));
                inputs.resize(end, pad);
            }
        }
        inputs
    }

    /// The sums where no answer has a token.
    pub(crate) fn nothing(&self) -> Vec<Vec<f64>> {
        self.rows.iter().map(|row| vec![0.0; row.len()]).collect()
    }

    /// Sums of log-probabilities, by row and answer. `position(row, answer, at)` is the row of
    /// `hidden: [positions, d_model]` that predicts token `at`, and `head` maps `[n, d_model]` to logits.
    ///
    /// # Panics
    /// Panics for a token outside the vocabulary: its place among the logits would be another token's.
    pub(crate) fn sum(
        &self,
        hidden: Tensor<2>,
        position: impl Fn(usize, usize, usize) -> usize,
        head: impl Fn(Tensor<2>) -> Tensor<2>,
    ) -> Vec<Vec<f64>> {
        let mut sums = self.nothing();
        let mut picks = Vec::new();
        for (row, answers) in self.rows.iter().enumerate() {
            for (answer, tokens) in answers.iter().enumerate() {
                picks.extend(tokens.iter().enumerate().map(|(at, token)| Pick {
                    position: position(row, answer, at),
                    token: *token as usize,
                    row,
                    answer,
                }));
            }
        }
        // Answers share positions: each goes through the head once.
        picks.sort_by_key(|pick| pick.position);
        let mut positions: Vec<usize> = picks.iter().map(|pick| pick.position).collect();
        positions.dedup();
        let device = hidden.device().without_autodiff();
        let index = |values: Vec<i64>| Tensor::<1, Int>::from_ints(values.as_slice(), &device);
        let mut rest = picks.as_slice();
        for chunk in positions.chunks(CHUNK) {
            let end = rest.partition_point(|pick| pick.position <= chunk[chunk.len() - 1]);
            let (picks, later) = rest.split_at(end);
            rest = later;
            let rows = chunk.iter().map(|position| *position as i64).collect();
            let logits = head(hidden.clone().select(0, index(rows)));
            let [rows, vocabulary] = logits.dims();
            let mut at = 0;
            let chosen = picks.iter().map(|pick| {
                while chunk[at] != pick.position {
                    at += 1;
                }
                assert!(
                    pick.token < vocabulary,
                    "token {} is outside the vocabulary",
                    pick.token
                );
                (at * vocabulary + pick.token) as i64
            });
            let chosen = index(chosen.collect());
            let found = log_softmax(logits, 1)
                .reshape([rows * vocabulary])
                .select(0, chosen)
                .into_data();
            for (pick, value) in picks.iter().zip(found.iter::<f32>()) {
                sums[pick.row][pick.answer] += f64::from(value);
            }
        }
        sums
    }
}
