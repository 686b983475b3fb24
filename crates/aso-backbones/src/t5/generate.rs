//! Decoding with kept keys and values.

use aso_lora::ForwardContext;
use burn::tensor::Tensor;

use super::model::T5ForConditionalGeneration;
use super::stack::EncoderMemory;
use crate::generation::{Decoder, RowControl, generate};
use crate::layers::KeyValueCache;
use crate::{GenerationConfig, TokenBatch};

/// The encoder has run once; each step feeds one token per row.
struct CachedDecoder<'a> {
    model: &'a T5ForConditionalGeneration,
    context: &'a ForwardContext,
    rows: usize,
    memory: EncoderMemory,
    past: Option<Vec<KeyValueCache>>,
    position: usize,
}

impl Decoder for CachedDecoder<'_> {
    fn step(&mut self, tokens: Option<&[i64]>) -> Tensor<2> {
        let Self { model, context, .. } = *self;
        let start = vec![model.config.decoder_start; self.rows];
        let x = model.embed(tokens.unwrap_or(&start), self.rows, context);
        let decoder = &model.decoder;
        let bias = decoder
            .position_bias
            .forward(self.position, 1, self.position + 1, context);
        let past = self.past.as_deref_mut();
        let output = decoder.forward(x, bias, past, Some(&self.memory), false, context);
        if self.past.is_none() {
            let first = output.memory.into_iter().map(KeyValueCache::new);
            self.past = Some(first.collect());
        }
        self.position += 1;
        model.next_logits(output.last, context)
    }

    fn prompt(&self, _row: usize) -> Vec<i64> {
        vec![self.model.config.decoder_start]
    }

    fn keep(&mut self, rows: &[usize]) {
        self.rows = rows.len();
        self.memory.keep(rows);
        for past in self.past.iter_mut().flatten() {
            past.keep(rows);
        }
    }
}

/// Runs the whole decoder again for every token.
struct UncachedDecoder<'a> {
    model: &'a T5ForConditionalGeneration,
    context: &'a ForwardContext,
    memory: EncoderMemory,
    /// Decoder inputs so far, per row.
    inputs: Vec<Vec<i64>>,
}

impl Decoder for UncachedDecoder<'_> {
    fn step(&mut self, tokens: Option<&[i64]>) -> Tensor<2> {
        for (row, token) in self.inputs.iter_mut().zip(tokens.unwrap_or_default()) {
            row.push(*token);
        }
        let (rows, last) = (self.inputs.len(), self.inputs[0].len() - 1);
        let ids = self.inputs.concat();
        let output = self
            .model
            .run_decoder(&ids, rows, &self.memory, false, self.context);
        self.model
            .next_logits(output.last.narrow(1, last, 1), self.context)
    }

    fn prompt(&self, _row: usize) -> Vec<i64> {
        vec![self.model.config.decoder_start]
    }

    fn keep(&mut self, rows: &[usize]) {
        self.memory.keep(rows);
        let kept = rows.iter().map(|row| self.inputs[*row].clone());
        self.inputs = kept.collect();
    }
}

impl T5ForConditionalGeneration {
    /// Logits `[rows, vocabulary]` of the decoder's output at one position, `[rows, 1, d_model]`.
    fn next_logits(&self, last: Tensor<3>, context: &ForwardContext) -> Tensor<2> {
        let rows = last.dims()[0];
        self.head(self.decoder.finish(last, context), context)
            .reshape([rows, self.config.vocabulary])
    }

    pub(super) fn generate_cached(
        &self,
        batch: &TokenBatch,
        config: &GenerationConfig,
        control: RowControl<'_>,
        context: &ForwardContext,
    ) -> Vec<Vec<u32>> {
        let mut decoder = CachedDecoder {
            model: self,
            context,
            rows: batch.rows(),
            memory: self.encode(batch, context),
            past: None,
            position: 0,
        };
        let ends = (self.config.ends.as_slice(), self.config.pad);
        generate(&mut decoder, batch.rows(), ends, config, control)
    }

    /// Decoding by running the whole decoder again for every token: slow, and the oracle of
    /// [`Backbone::generate`](crate::Backbone::generate).
    #[doc(hidden)]
    pub fn generate_uncached(
        &self,
        batch: &TokenBatch,
        config: &GenerationConfig,
    ) -> Vec<Vec<u32>> {
        let context = ForwardContext::inference();
        let mut decoder = UncachedDecoder {
            model: self,
            context: &context,
            memory: self.encode(batch, &context),
            inputs: vec![vec![self.config.decoder_start]; batch.rows()],
        };
        let ends = (self.config.ends.as_slice(), self.config.pad);
        let control = RowControl::default();
        generate(&mut decoder, batch.rows(), ends, config, control)
    }
}
