//! Answers by generation, scored by exact match.

use aso_backbones::{Backbone, GenerationConfig, RowControl, StopCriterion};
use aso_data::{EncodedExample, evaluation_order, exact_match};
use aso_lora::{AdapterScope, ForwardContext};

use crate::TrainerError;
use crate::codec::{StopStrings, TextCodec};
use crate::metrics::percent;
use crate::task::Task;

/// How answers are generated.
#[derive(Debug, Clone)]
pub struct Evaluator<'a> {
    /// Makes batches, and text of answers.
    pub codec: &'a TextCodec,
    /// Examples generated together.
    pub batch_size: usize,
    /// How an answer is generated. The draws of an example are a function of the seed and its number.
    pub generation: GenerationConfig,
    /// Strings that end an answer and are not part of it.
    pub stop: &'a [String],
}

impl Evaluator<'_> {
    /// Answers in the order of `examples`. Batches are formed by length; `progress` gets the number
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
        let context = ForwardContext::inference().with_scope(scope);
        let stop = (!self.stop.is_empty()).then(|| StopStrings {
            tokenizer: self.codec.tokenizer(),
            strings: self.stop,
        });
        let mut answers = vec![String::new(); examples.len()];
        let mut done = 0;
        for indices in evaluation_order(&lengths, self.batch_size) {
            let rows: Vec<_> = indices.iter().map(|index| examples[*index]).collect();
            let batch = self.codec.prompts(&rows)?;
            let streams: Vec<u64> = indices.iter().map(|index| *index as u64).collect();
            let control = RowControl {
                stop: stop.as_ref().map(|stop| stop as &dyn StopCriterion),
                streams: Some(&streams),
            };
            let tokens = model.generate(&batch, &self.generation, control, &context);
            for (index, tokens) in indices.iter().zip(tokens) {
                let answer = self.codec.tokenizer().decode(&tokens)?;
                answers[*index] = match &stop {
                    Some(stop) => stop.cut(&answer).to_owned(),
                    None => answer,
                };
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
