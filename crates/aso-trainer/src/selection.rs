//! The best adapter of a task on its dev split.

use std::path::Path;

use aso_lora::{Adapter, AdapterScope};
use serde::{Deserialize, Serialize};

use crate::TrainerError;
use crate::config::{EvalSplit, RunConfig, Select};
use crate::evaluate::Evaluator;
use crate::task::Task;
use aso_backbones::Backbone;

/// Folder of the best adapter so far in a checkpoint.
const BEST: &str = "best";

/// The step whose adapter a task kept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Selected {
    /// Optimizer steps behind it.
    pub steps: usize,
    /// Its score on the dev split in percent; of several tasks, their mean.
    pub score: f64,
}

/// When dev splits are looked at, and the best that was seen.
#[derive(Debug)]
pub(crate) struct Selection {
    every: usize,
    best: Option<(Selected, Adapter)>,
}

impl Selection {
    /// `None` where the last adapter is kept.
    pub(crate) fn new(config: &RunConfig) -> Option<Self> {
        (config.train.select == Select::BestOnDev).then_some(Self {
            every: config.train.select_every,
            best: None,
        })
    }

    /// The configuration with which tasks are loaded for [`score`](Self::score).
    pub(crate) fn dev_config(config: &RunConfig) -> RunConfig {
        let mut config = config.clone();
        config.data.eval_split = EvalSplit::Dev;
        config.data.max_eval = Some(config.train.select_examples);
        config
    }

    /// Whether the adapter behind `steps` of `of` optimizer steps is a candidate.
    pub(crate) fn is_due(&self, steps: usize, of: usize) -> bool {
        steps.is_multiple_of(self.every) || steps == of
    }

    /// Mean score of the model on `tasks`, in percent.
    pub(crate) fn score<M: Backbone>(
        evaluator: &Evaluator<'_>,
        model: &M,
        tasks: &[Task],
    ) -> Result<f64, TrainerError> {
        let mut sum = 0.0;
        for task in tasks {
            sum += evaluator.score(model, task, AdapterScope::All, &mut |_| {})?;
        }
        Ok(sum / tasks.len().max(1) as f64)
    }

    /// Takes a candidate in; the first of equals stays.
    pub(crate) fn offer(&mut self, candidate: Selected, adapter: impl FnOnce() -> Adapter) {
        let best = self.best.as_ref().map(|(best, _)| best.score);
        if best.is_none_or(|best| candidate.score > best) {
            self.best = Some((candidate, adapter()));
        }
    }

    /// The best candidate.
    pub(crate) fn best(&self) -> Option<&(Selected, Adapter)> {
        self.best.as_ref()
    }

    /// Saves the best adapter in a checkpoint.
    pub(crate) fn write(&self, checkpoint: &Path) -> Result<(), TrainerError> {
        match &self.best {
            Some((_, adapter)) => Ok(adapter.save(&checkpoint.join(BEST))?),
            None => Ok(()),
        }
    }

    /// Goes on with what [`write`](Self::write) saved.
    pub(crate) fn restore(
        &mut self,
        best: Option<Selected>,
        checkpoint: &Path,
    ) -> Result<(), TrainerError> {
        self.best = match best {
            Some(best) => Some((best, Adapter::load(&checkpoint.join(BEST))?)),
            None => None,
        };
        Ok(())
    }
}
