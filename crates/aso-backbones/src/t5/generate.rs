//! Greedy decoding with kept keys and values.

use aso_lora::ForwardContext;
use burn::tensor::Tensor;

use super::attention::KeyValue;
use super::model::T5ForConditionalGeneration;
use crate::{GenerationConfig, TokenBatch};

impl T5ForConditionalGeneration {
    /// Greedy decoding: the encoder runs once, each step feeds one token per row. A row ends at the end
    /// token; the loop ends when every row has.
    pub(super) fn generate_greedy(
        &self,
        batch: &TokenBatch,
        config: &GenerationConfig,
        context: &ForwardContext,
    ) -> Vec<Vec<u32>> {
        let rows = batch.rows();
        let memory = self.encode(batch, context);
        let mut past: Option<Vec<KeyValue>> = None;
        let mut next = vec![self.config.decoder_start; rows];
        let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); rows];
        let mut done = vec![false; rows];
        for position in 0..config.max_new_tokens {
            let x = self.embed(&next, rows, context);
            let bias: Tensor<4> =
                self.decoder
                    .position_bias
                    .forward(position, 1, position + 1, context);
            let output =
                self.decoder
                    .forward(x, bias, past.as_deref(), Some(&memory), false, context);
            past = Some(output.memory);
            let logits = self.head(self.decoder.finish(output.last, context), context);
            let chosen = logits.argmax(2).reshape([rows]).into_data();
            for (row, id) in chosen.iter::<i64>().enumerate() {
                next[row] = if done[row] { self.config.pad } else { id };
                if !done[row] {
                    tokens[row].push(id as u32);
                    done[row] = id == self.config.eos;
                }
            }
            if done.iter().all(|done| *done) {
                break;
            }
        }
        tokens
    }

    /// Greedy decoding by running the whole decoder again for every token: slow, and the oracle of the
    /// cached one.
    #[doc(hidden)]
    pub fn generate_uncached(
        &self,
        batch: &TokenBatch,
        config: &GenerationConfig,
    ) -> Vec<Vec<u32>> {
        let context = ForwardContext::inference();
        let rows = batch.rows();
        let memory = self.encode(batch, &context);
        let mut inputs: Vec<Vec<i64>> = vec![vec![self.config.decoder_start]; rows];
        let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); rows];
        for position in 0..config.max_new_tokens {
            let output = self.run_decoder(&inputs.concat(), rows, &memory, false, &context);
            let last = output.last.narrow(1, position, 1);
            let logits = self.head(self.decoder.finish(last, &context), &context);
            let chosen = logits.argmax(2).reshape([rows]).into_data();
            let mut running = false;
            for (row, id) in chosen.iter::<i64>().enumerate() {
                let ended = tokens[row]
                    .last()
                    .is_some_and(|last| *last == self.config.eos as u32);
                if !ended {
                    tokens[row].push(id as u32);
                    running |= id != self.config.eos;
                }
                inputs[row].push(if ended { self.config.pad } else { id });
            }
            if !running {
                break;
            }
        }
        tokens
    }
}
