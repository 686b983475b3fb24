//! Tasks ready for training and evaluation.

use aso_data::{EncodedExample, ExampleCaps, Split, TaskData, TaskLibrary};

use crate::TrainerError;
use crate::codec::TextCodec;
use crate::config::{DataSettings, EvalSplit};

/// One task, tokenised.
#[derive(Debug, Clone)]
pub struct Task {
    /// Name as in the stream.
    pub name: String,
    /// Training examples.
    pub train: Vec<EncodedExample>,
    /// Examples to evaluate on.
    pub evaluation: Vec<EncodedExample>,
    /// The right answers of `evaluation`, as text.
    pub answers: Vec<String>,
}

impl Task {
    /// Reads, caps and tokenises a task.
    ///
    /// # Errors
    /// [`TrainerError::Data`] for unknown, empty or malformed tasks; [`TrainerError::Vocabulary`] if a token
    /// is beyond the model's vocabulary.
    pub fn load(
        library: &dyn TaskLibrary,
        name: &str,
        data: &DataSettings,
        seed: u64,
        codec: &TextCodec,
        vocabulary: usize,
    ) -> Result<Self, TrainerError> {
        let source = library.task(name)?;
        let caps = ExampleCaps {
            max_train: data.max_train,
            max_eval: data.max_eval,
            seed,
        };
        let loaded = TaskData::load(source.as_ref(), &caps)?;
        let split = match data.eval_split {
            EvalSplit::Test => Split::Test,
            EvalSplit::Dev => Split::Dev,
        };
        let evaluated = loaded.split(split);
        if evaluated.is_empty() {
            return Err(TrainerError::NoEvaluation {
                task: name.to_owned(),
                split: split.name(),
            });
        }
        let encoder = codec.encoder(data.max_source, data.max_target)?;
        let task = Self {
            name: name.to_owned(),
            train: encoder.encode_all(name, &loaded.train)?,
            evaluation: encoder.encode_all(name, evaluated)?,
            answers: evaluated
                .iter()
                .map(|example| example.target.clone())
                .collect(),
        };
        task.check_vocabulary(split.name(), vocabulary)?;
        let cut = task
            .train
            .iter()
            .filter(|example| example.truncated())
            .count();
        if cut > 0 {
            tracing::info!(
                task = name,
                examples = cut,
                of = task.train.len(),
                "training examples were cut to data.max_source or data.max_target"
            );
        }
        Ok(task)
    }

    fn check_vocabulary(
        &self,
        evaluated: &'static str,
        vocabulary: usize,
    ) -> Result<(), TrainerError> {
        for (split, examples) in [("train", &self.train), (evaluated, &self.evaluation)] {
            for (example, encoded) in examples.iter().enumerate() {
                let ids = encoded.source.iter().chain(&encoded.target);
                if let Some(&id) = ids.into_iter().find(|id| **id as usize >= vocabulary) {
                    let task = self.name.clone();
                    return Err(TrainerError::Vocabulary {
                        task,
                        split,
                        example,
                        id,
                        vocabulary,
                    });
                }
            }
        }
        Ok(())
    }
}
