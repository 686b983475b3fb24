//! Decoding with kept keys and values.

use aso_lora::ForwardContext;
use burn::tensor::Tensor;

use super::model::{LlamaForCausalLm, Sequence};
use crate::generation::{Decoder, RowControl, generate};
use crate::layers::KeyValueCache;
use crate::{GenerationConfig, TokenBatch};

/// Ids and mask that grow by a column a step.
struct Growing {
    rows: usize,
    ids: Vec<i64>,
    mask: Vec<i64>,
}

impl Growing {
    fn new(batch: &TokenBatch) -> Self {
        Self {
            rows: batch.rows(),
            ids: batch.input_ids().to_vec(),
            mask: batch.attention_mask().to_vec(),
        }
    }

    fn push(&mut self, tokens: &[i64]) {
        let width = self.ids.len() / self.rows;
        let append = |values: &[i64], next: &dyn Fn(usize) -> i64| {
            let rows = values.chunks(width).enumerate();
            rows.flat_map(|(row, values)| values.iter().copied().chain([next(row)]))
                .collect()
        };
        self.ids = append(&self.ids, &|row| tokens[row]);
        self.mask = append(&self.mask, &|_| 1);
    }

    fn keep(&mut self, rows: &[usize]) {
        let width = self.ids.len() / self.rows;
        let keep = |values: &[i64]| {
            let kept = rows
                .iter()
                .flat_map(|row| &values[row * width..(row + 1) * width]);
            kept.copied().collect()
        };
        self.ids = keep(&self.ids);
        self.mask = keep(&self.mask);
        self.rows = rows.len();
    }

    fn prompt(&self, row: usize) -> Vec<i64> {
        let width = self.ids.len() / self.rows;
        let columns = row * width..(row + 1) * width;
        let tokens = self.ids[columns.clone()].iter().zip(&self.mask[columns]);
        tokens
            .filter(|(_, kept)| **kept != 0)
            .map(|(id, _)| *id)
            .collect()
    }
}

/// Runs the prompts once, then one token per row a step. Without `past`, everything again each step.
struct LlamaDecoder<'a> {
    model: &'a LlamaForCausalLm,
    context: &'a ForwardContext,
    sequence: Growing,
    cached: bool,
    past: Option<Vec<KeyValueCache>>,
}

impl Decoder for LlamaDecoder<'_> {
    fn step(&mut self, tokens: Option<&[i64]>) -> Tensor<2> {
        if let Some(tokens) = tokens {
            self.sequence.push(tokens);
        }
        let Growing { rows, ids, mask } = &self.sequence;
        let new = match (&self.past, tokens) {
            (Some(_), Some(tokens)) => tokens,
            _ => ids,
        };
        let sequence = Sequence {
            ids: new,
            mask,
            rows: *rows,
        };
        let past = self.past.as_deref_mut();
        let output = self.model.run(&sequence, past, None, self.context);
        if self.cached && self.past.is_none() {
            let first = output.memory.into_iter().map(KeyValueCache::new);
            self.past = Some(first.collect());
        }
        let length = new.len() / rows;
        let last = output.last.narrow(1, length - 1, 1);
        let vocabulary = self.model.config.vocabulary;
        self.model
            .head(last, self.context)
            .reshape([*rows, vocabulary])
    }

    fn prompt(&self, row: usize) -> Vec<i64> {
        self.sequence.prompt(row)
    }

    fn keep(&mut self, rows: &[usize]) {
        self.sequence.keep(rows);
        for past in self.past.iter_mut().flatten() {
            past.keep(rows);
        }
    }
}

impl LlamaForCausalLm {
    fn decode(
        &self,
        batch: &TokenBatch,
        config: &GenerationConfig,
        control: RowControl<'_>,
        cached: bool,
        context: &ForwardContext,
    ) -> Vec<Vec<u32>> {
        let mut decoder = LlamaDecoder {
            model: self,
            context,
            sequence: Growing::new(batch),
            cached,
            past: None,
        };
        let ends = (self.config.ends.as_slice(), self.config.pad);
        generate(&mut decoder, batch.rows(), ends, config, control)
    }

    pub(super) fn generate_cached(
        &self,
        batch: &TokenBatch,
        config: &GenerationConfig,
        control: RowControl<'_>,
        context: &ForwardContext,
    ) -> Vec<Vec<u32>> {
        self.decode(batch, config, control, true, context)
    }

    /// Decoding by running everything again for every token: slow, and the oracle of
    /// [`Backbone::generate`](crate::Backbone::generate).
    #[doc(hidden)]
    pub fn generate_uncached(
        &self,
        batch: &TokenBatch,
        config: &GenerationConfig,
    ) -> Vec<Vec<u32>> {
        let context = ForwardContext::inference();
        self.decode(batch, config, RowControl::default(), false, &context)
    }
}
