//! Log-likelihoods of answers behind a shared prompt.

use aso_lora::ForwardContext;
use burn::tensor::Tensor;

use super::model::{LlamaForCausalLm, Sequence, token_positions};
use super::rotary::Rotary;
use crate::TokenBatch;
use crate::layers::{KeyValueCache, additive_mask, embed};
use crate::likelihood::Answers;

impl LlamaForCausalLm {
    /// The prompts run once. All answers of a row then follow in one sequence, in which each begins at the position
    /// behind the prompt and sees the prompt and itself.
    pub(super) fn log_likelihoods(
        &self,
        batch: &TokenBatch,
        answers: &Answers<'_>,
        context: &ForwardContext,
    ) -> Vec<Vec<f64>> {
        let Answers { count, length, .. } = *answers;
        if length == 0 {
            return answers.nothing();
        }
        let (rows, prompt) = (batch.rows(), batch.source_len());
        let mask = batch.attention_mask();
        let sequence = Sequence {
            ids: batch.input_ids(),
            mask,
            rows,
        };
        let output = self.run(&sequence, None, None, context);
        let [_, _, width] = output.last.dims();
        let last = output.last.narrow(1, prompt - 1, 1).reshape([rows, width]);
        // The last token of an answer predicts nothing.
        let fed = length - 1;
        let hidden = if fed == 0 {
            last
        } else {
            let mut past: Vec<KeyValueCache> =
                output.memory.into_iter().map(KeyValueCache::new).collect();
            let ids = answers.inputs(None, self.config.pad);
            let x = embed(&self.embed_tokens, &ids, rows, context);
            let (rotary, biases) = self.answer_positions(mask, rows, count, fed);
            let output = self.run_blocks(x, &rotary, biases, Some(&mut past), None, context);
            let behind = output.last.reshape([rows * count * fed, width]);
            Tensor::cat(vec![last, behind], 0)
        };
        let position = |row, answer, at| match at {
            0 => row,
            at => rows + (row * count + answer) * fed + at - 1,
        };
        answers.sum(hidden, position, |x| self.head(x, context))
    }

    /// Angles and additive masks, `[rows, 1, count * fed, prompt + count * fed]`, of `count` answers of `fed` tokens
    /// behind prompts with this mask.
    fn answer_positions(
        &self,
        mask: &[i64],
        rows: usize,
        count: usize,
        fed: usize,
    ) -> (Rotary, Vec<Tensor<4>>) {
        let device = self.embed_tokens.val().device().without_autodiff();
        let prompt = mask.len() / rows;
        let lengths = mask
            .chunks(prompt)
            .map(|row| row.iter().filter(|kept| **kept != 0).count());
        let lengths: Vec<usize> = lengths.collect();
        let places: Vec<i64> = lengths
            .iter()
            .flat_map(|length| (0..count * fed).map(move |at| (length + at % fed) as i64))
            .collect();
        let rotary = Rotary::new(&places, rows, &self.config.frequencies, &device);
        let biases = self.per_window(|window| {
            let window = window.unwrap_or(usize::MAX);
            let visible = mask.chunks(prompt).zip(&lengths).flat_map(|(row, length)| {
                let places = token_positions(row);
                (0..count * fed).flat_map(move |query| {
                    let at = length + query % fed;
                    let of_prompt: Vec<bool> = row
                        .iter()
                        .zip(&places)
                        .map(|(kept, place)| *kept != 0 && at - (*place as usize) < window)
                        .collect();
                    let of_answers = (0..count * fed).map(move |key| {
                        let same = key / fed == query / fed;
                        same && key <= query && query - key < window
                    });
                    of_prompt.into_iter().chain(of_answers)
                })
            });
            let new = count * fed;
            additive_mask(visible, [rows, 1, new, prompt + new], &device)
        });
        (rotary, biases)
    }
}
