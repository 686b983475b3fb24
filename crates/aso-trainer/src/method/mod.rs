//! Continual-learning methods.
//!
//! A [`Method`] is called by the trainer at task boundaries and steps and hands back penalties; it never
//! touches the loop. A new method is one new type here and one arm in [`from_config`].

mod soft_orthogonality;
mod subspaces;

use aso_backbones::{Backbone, BackboneError, TokenBatch};
use aso_data::EncodedExample;
use aso_lora::AdapterKind;
use burn::tensor::Tensor;

pub use soft_orthogonality::AsoLora;
pub use subspaces::{IncLora, OLora, SeqLora};

use crate::codec::TextCodec;
use crate::config::{MethodName, RunConfig, TaskSettings};
use crate::results::{SimilarityPoint, WeightPoint};

/// One term of the loss besides the cross entropy; the trainer adds `weight * value`.
#[derive(Debug, Clone)]
pub struct Penalty {
    /// Name in the log.
    pub name: &'static str,
    /// Its factor, a constant in the gradient.
    pub weight: f64,
    /// Shape `[1]`, depends on the active subspace only.
    pub value: Tensor<1>,
}

/// The task in training.
#[derive(Debug, Clone)]
pub struct TaskInfo {
    /// 0-based position in the stream.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Optimizer steps.
    pub steps: usize,
    /// Learning rate, length and loss weights.
    pub settings: TaskSettings,
}

/// One optimizer step, before its forward pass.
pub struct StepInfo<'a, M> {
    /// The model.
    pub model: &'a M,
    /// The task.
    pub task: &'a TaskInfo,
    /// 0-based optimizer step within the task.
    pub step: usize,
    /// The step's examples.
    pub examples: &'a [&'a EncodedExample],
    /// Examples in one forward pass.
    pub micro_batch: usize,
    /// Makes batches of examples.
    pub codec: &'a TextCodec,
}

impl<M> StepInfo<'_, M> {
    /// A batch of the first `rows` examples of the step.
    ///
    /// # Errors
    /// [`BackboneError::BatchShape`] if the step has no example.
    pub fn batch(&self, rows: usize) -> Result<TokenBatch, BackboneError> {
        self.codec
            .batch(&self.examples[..rows.min(self.examples.len())])
    }
}

/// What a method measured before a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// The soft weight in force from now on.
    pub weight: WeightPoint,
    /// The similarities behind it.
    pub similarity: Vec<SimilarityPoint>,
}

/// A continual-learning method: what is added to the loss, and what happens at task boundaries.
///
/// Every hook has a default that does nothing. State that must survive a restart within a task goes
/// through [`state`](Self::state) and [`restore`](Self::restore).
pub trait Method<M: Backbone> {
    /// The name in logs and results.
    fn name(&self) -> &str;

    /// Whether the method can run on this model; asked before anything else.
    ///
    /// # Errors
    /// [`BackboneError::Tap`], for example, if the model has no block of the kind that is to be tapped.
    fn check(&self, _model: &M) -> Result<(), BackboneError> {
        Ok(())
    }

    /// Whether each task adds a subspace, or one adapter is trained on.
    fn adapter_kind(&self) -> AdapterKind {
        AdapterKind::Subspace
    }

    /// Whether LoRA dropout also applies to the frozen subspaces' input, as released.
    fn drops_frozen_input(&self) -> bool {
        false
    }

    /// Called before a task's first step, and not again when the task is resumed.
    fn start_task(&mut self, _task: &TaskInfo) {}

    /// Called before every step's forward pass.
    ///
    /// # Errors
    /// What measuring the model may raise.
    fn start_step(
        &mut self,
        _step: &StepInfo<'_, M>,
    ) -> Result<Option<Observation>, BackboneError> {
        Ok(None)
    }

    /// The terms of the loss for the model as it is; once per optimizer step.
    fn penalties(&self, _model: &M, _task: &TaskInfo) -> Vec<Penalty> {
        Vec::new()
    }

    /// Called after a task's last step, before its subspace is frozen.
    fn end_task(&mut self, _model: &M, _task: &TaskInfo) {}

    /// What a checkpoint within a task must hold.
    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Restores what [`state`](Self::state) gave.
    ///
    /// # Errors
    /// If the value is of another form.
    fn restore(&mut self, _state: serde_json::Value) -> Result<(), serde_json::Error> {
        Ok(())
    }
}

/// The method that a configuration names.
pub fn from_config<M: Backbone>(config: &RunConfig) -> Box<dyn Method<M>> {
    let penalty = config.method.penalty.into();
    match config.method.name {
        MethodName::AsoLora => Box::new(AsoLora::new(penalty, &config.attribution)),
        MethodName::OLora => Box::new(OLora::new(penalty)),
        MethodName::IncLora => Box::new(IncLora),
        MethodName::SeqLora => Box::new(SeqLora),
    }
}
