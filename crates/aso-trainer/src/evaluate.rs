//! Answers, generated or chosen, and their scores.

use aso_backbones::{Backbone, GenerationConfig, RowControl, StopCriterion};
use aso_data::{EncodedExample, evaluation_order};
use aso_lora::{AdapterScope, ForwardContext};

use crate::TrainerError;
use crate::codec::{StopStrings, TextCodec};
use crate::config::EvalMode;
use crate::predictions::Prediction;
use crate::task::Task;

/// How answers are generated.
#[derive(Debug, Clone)]
pub struct Evaluator<'a> {
    /// Makes batches, and text of answers.
    pub codec: &'a TextCodec,
    /// Whether the answers to a task are generated or chosen.
    pub mode: EvalMode,
    /// Examples answered together.
    pub batch_size: usize,
    /// How an answer is generated. The draws of an example are a function of the seed and its number.
    pub generation: GenerationConfig,
    /// Strings that end an answer and are not part of it.
    pub stop: &'a [String],
}

impl Evaluator<'_> {
    /// Generated answers in the order of `examples`. Batches are formed by length; `progress` gets the number
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

    /// Answers to a task's examples, in their order, found as `mode` says.
    ///
    /// # Errors
    /// Those of [`log_likelihoods`](Self::log_likelihoods); if an answer cannot be decoded.
    pub fn predictions<M: Backbone>(
        &self,
        model: &M,
        task: &Task,
        scope: AdapterScope,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<String>, TrainerError> {
        let examples: Vec<_> = task.evaluation.iter().collect();
        match self.mode {
            EvalMode::Generate => self.answers(model, &examples, scope, progress),
            EvalMode::Score => {
                let names = &task.labels()?.names;
                let likelihoods = self.log_likelihoods(model, task, scope, progress)?;
                let best = likelihoods.iter().map(|row| names[first_best(row)].clone());
                Ok(best.collect())
            }
        }
    }

    /// The log-likelihood of every label of a task as the answer to each of its examples.
    ///
    /// # Errors
    /// [`TrainerError::NoLabels`]; [`TrainerError::NoLikelihood`] where one is not a number.
    pub fn log_likelihoods<M: Backbone>(
        &self,
        model: &M,
        task: &Task,
        scope: AdapterScope,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<f64>>, TrainerError> {
        let (labels, examples) = (task.labels()?, &task.evaluation);
        let lengths: Vec<usize> = examples
            .iter()
            .map(|example| example.source.len())
            .collect();
        let context = ForwardContext::inference().with_scope(scope);
        let mut likelihoods = vec![Vec::new(); examples.len()];
        let mut done = 0;
        for indices in evaluation_order(&lengths, self.batch_size) {
            let rows: Vec<_> = indices.iter().map(|index| &examples[*index]).collect();
            let batch = self.codec.prompts(&rows)?;
            let answers: Vec<_> = indices.iter().map(|index| labels.ids.of(*index)).collect();
            let found = model.answer_log_likelihoods(&batch, &answers, &context);
            for (index, row) in indices.iter().zip(found) {
                // It would compare as neither more nor less than others.
                if row.iter().any(|likelihood| likelihood.is_nan()) {
                    let (task, example) = (task.name.clone(), *index);
                    return Err(TrainerError::NoLikelihood { task, example });
                }
                likelihoods[*index] = row;
            }
            done += indices.len();
            progress(done);
        }
        Ok(likelihoods)
    }

    /// Answers to a task's examples, each with its score by the task's metric.
    ///
    /// # Errors
    /// As [`predictions`](Self::predictions).
    pub fn scored<M: Backbone>(
        &self,
        model: &M,
        task: &Task,
        scope: AdapterScope,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Prediction>, TrainerError> {
        let answers = self.predictions(model, task, scope, progress)?;
        let scored = |(at, (answer, right)): (usize, (String, &Vec<String>))| {
            let source = task.sources.get(at).map_or("", String::as_str);
            Prediction {
                score: task.metric.best_score(&answer, right, source),
                expected: right.first().cloned().unwrap_or_default(),
                answer,
            }
        };
        let pairs = answers.into_iter().zip(&task.answers).enumerate();
        Ok(pairs.map(scored).collect())
    }

    /// The mean score on a task in percent.
    ///
    /// # Errors
    /// As [`predictions`](Self::predictions).
    pub fn score<M: Backbone>(
        &self,
        model: &M,
        task: &Task,
        scope: AdapterScope,
        progress: &mut dyn FnMut(usize),
    ) -> Result<f64, TrainerError> {
        let scored = self.scored(model, task, scope, progress)?;
        Ok(mean_percent(&scored))
    }
}

/// The mean score of answers in percent; 0 for none, which a task never has.
pub fn mean_percent(predictions: &[Prediction]) -> f64 {
    let sum: f64 = predictions.iter().map(|prediction| prediction.score).sum();
    100.0 * sum / predictions.len().max(1) as f64
}

/// The first of the largest values.
fn first_best(values: &[f64]) -> usize {
    let mut best = 0;
    for (at, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = at;
        }
    }
    best
}
