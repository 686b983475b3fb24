//! Answers by generation, scored by exact match.

use aso_backbones::{Backbone, GenerationConfig, RowControl};
use aso_data::{EncodedExample, TextTokenizer, evaluation_order, exact_match};
use aso_lora::{AdapterScope, ForwardContext};

use crate::TrainerError;
use crate::metrics::percent;
use crate::task::{Task, token_batch};

/// How answers are generated.
#[derive(Debug, Clone)]
pub struct Evaluator<'a> {
    /// Decodes answers.
    pub tokenizer: &'a TextTokenizer,
    /// Padding id.
    pub pad: u32,
    /// Examples generated together.
    pub batch_size: usize,
    /// Longest answer in tokens.
    pub max_new_tokens: usize,
}

impl Evaluator<'_> {
    /// Greedy answers in the order of `examples`. Batches are formed by length; `progress` gets the number
    /// of examples done.
    ///
    /// # Errors
    /// If an answer cannot be decoded.
    pub fn answers<M: Backbone>(
        &self,
        model: &M,
        examples: &[&EncodedExample],
        scope: AdapterScope,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<String>, TrainerError> {
        let lengths: Vec<usize> = examples
            .iter()
            .map(|example| example.source.len())
            .collect();
        let config = GenerationConfig::greedy(self.max_new_tokens);
        let context = ForwardContext::inference().with_scope(scope);
        let mut answers = vec![String::new(); examples.len()];
        let mut done = 0;
        for indices in evaluation_order(&lengths, self.batch_size) {
            let rows: Vec<_> = indices.iter().map(|index| examples[*index]).collect();
            let batch = token_batch(&rows, self.pad)?;
            let tokens = model.generate(&batch, &config, RowControl::default(), &context);
            for (index, tokens) in indices.iter().zip(tokens) {
                answers[*index] = self.tokenizer.decode(&tokens)?;
            }
            done += indices.len();
            progress(done);
        }
        Ok(answers)
    }

    /// Exact match on a task in percent (method.md section 5).
    ///
    /// # Errors
    /// As [`answers`](Self::answers).
    pub fn score<M: Backbone>(
        &self,
        model: &M,
        task: &Task,
        scope: AdapterScope,
        progress: &mut dyn FnMut(usize),
    ) -> Result<f64, TrainerError> {
        let examples: Vec<_> = task.evaluation.iter().collect();
        let answers = self.answers(model, &examples, scope, progress)?;
        let right = answers
            .iter()
            .zip(&task.answers)
            .filter(|(answer, expected)| exact_match(answer, expected))
            .count();
        // A task without examples was refused when it was read.
        Ok(percent(right, answers.len()).unwrap_or(0.0))
    }
}
