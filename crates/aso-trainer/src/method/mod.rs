//! Continual-learning methods.
//!
//! A [`Method`] is called by the trainer at task boundaries and steps: it may bring examples back, add terms to the loss,
//! change gradients and what a finished task leaves behind. It never touches the loop. A new method is one new type
//! here, its name in [`MethodName`] and one arm in [`from_config`]; its keys go into `config`.
//!
//! | type | name | idea |
//! |---|---|---|
//! | [`AsoLora`] | `aso-lora` | orthogonal subspaces, weighted by the dissimilarity of tasks |
//! | [`OLora`] | `o-lora` | orthogonal subspaces |
//! | [`IncLora`] | `inc-lora` | one subspace a task |
//! | [`NLora`] | `n-lora` | sparse updates that collide in few entries |
//! | [`InfLora`] | `inf-lora` | subspaces that inputs of earlier tasks do not reach |
//! | [`SeqLora`] | `seq-lora` | nothing is protected |
//! | [`SeqFt`] | `seq-ft` | nothing is protected, and all linear layers train |
//! | [`Ewc`] | `ewc` | changes of important parameters cost |
//! | [`Lwf`] | `lwf` | the previous model is imitated |
//! | [`Replay`] | `replay` | old examples come back |
//! | [`AGem`] | `a-gem` | no gradient against that of old examples |
//! | [`Slao`] | `slao` | one adapter, merged after each task |
//! | [`PerTask`] | `per-task` | bound: an adapter for each task alone |
//! | [`MultiTask`] | `multi-task` | bound: all tasks at once |

mod agem;
mod bounds;
mod ewc;
mod full;
mod inf_lora;
mod inputs;
mod lwf;
mod memory;
mod replay;
mod slao;
mod soft_orthogonality;
mod sparsity;
mod state;
mod subspaces;

use aso_backbones::{Backbone, BackboneError, TokenBatch};
use aso_data::EncodedExample;
use aso_data::random::{choose_sorted, keyed};
use aso_lora::{AdapterKind, ForwardContext, LoraConfig};
use aso_losses::SequenceCrossEntropy;
use burn::tensor::Tensor;

pub use agem::AGem;
pub use bounds::{MultiTask, PerTask};
pub use ewc::Ewc;
pub use full::SeqFt;
pub use inf_lora::InfLora;
pub(crate) use inputs::input_covariances;
pub use lwf::Lwf;
pub use memory::{Memory, MemorySize};
pub use replay::Replay;
pub use slao::Slao;
pub use soft_orthogonality::AsoLora;
pub use sparsity::NLora;
pub use state::MethodState;
pub use subspaces::{IncLora, Isolation, OLora, SeqLora};

use crate::TrainerError;
use crate::codec::TextCodec;
use crate::config::{MethodName, RunConfig, TaskSettings};
use crate::optimizer::SubspaceGradients;
use crate::results::{SimilarityPoint, WeightPoint};

/// One term of the loss besides the cross entropy; the trainer adds `weight * value`.
#[derive(Debug, Clone)]
pub struct Penalty {
    /// Name in the log.
    pub name: &'static str,
    /// Its factor, a constant in the gradient. A term of weight 0 leaves no trace in the gradients.
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

/// A task at its beginning or end.
pub struct TaskContext<'a> {
    /// The task.
    pub task: &'a TaskInfo,
    /// Its training examples.
    pub examples: &'a [&'a EncodedExample],
    /// Makes batches of examples.
    pub codec: &'a TextCodec,
    /// The run's seed.
    pub seed: u64,
}

impl<'a> TaskContext<'a> {
    /// At most `count` of the examples, in their order: a choice that is a function of the seed and the task.
    pub fn some(&self, count: usize) -> Vec<&'a EncodedExample> {
        let mut rng = keyed(&[self.seed, SOME, self.task.index as u64]);
        let chosen = choose_sorted(&mut rng, self.examples.len(), count);
        chosen.into_iter().map(|at| self.examples[at]).collect()
    }
}

/// Keeps the choices of [`TaskContext::some`] apart from others with the same seed.
const SOME: u64 = 0x736f_6d65;

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
    /// The run's seed.
    pub seed: u64,
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

/// How the adapters of a method hang together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Structure {
    /// Each task adds a subspace to those of the tasks before it.
    Stack,
    /// One adapter is trained on, task after task.
    Single,
    /// Each task has an adapter of its own and is evaluated with it.
    PerTask,
    /// One adapter is trained once, on the examples of all tasks.
    Joint,
}

impl Structure {
    /// What one saved adapter is.
    pub fn adapter_kind(self) -> AdapterKind {
        match self {
            Self::Stack => AdapterKind::Subspace,
            Self::Single | Self::PerTask | Self::Joint => AdapterKind::Snapshot,
        }
    }
}

/// A continual-learning method: what is added to the loss, and what happens at task boundaries.
///
/// Every hook has a default that does nothing. What must survive a restart goes through [`state`](Self::state) and
/// [`restore`](Self::restore); what [`start_task`](Self::start_task) can compute again need not.
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

    /// The adapters that a task starts with, for a method that needs others than `[lora]` says.
    fn lora(&self, configured: LoraConfig) -> LoraConfig {
        configured
    }

    /// Whether both halves of the adapter train; otherwise the method sets A, and B trains alone.
    fn trains_a(&self) -> bool {
        true
    }

    /// Examples of earlier tasks that it keeps.
    fn kept_examples(&self) -> usize {
        0
    }

    /// How its adapters hang together.
    fn structure(&self) -> Structure {
        Structure::Stack
    }

    /// Whether LoRA dropout also applies to the frozen subspaces' input, as released.
    fn drops_frozen_input(&self) -> bool {
        false
    }

    /// Called before a task's first step, with the adapter that training starts from on the model. Called again when a
    /// run resumes within the task, before the saved adapter and the method's state are put back.
    ///
    /// # Errors
    /// Whatever stops the run.
    fn start_task(
        &mut self,
        _model: &mut M,
        _context: &TaskContext<'_>,
    ) -> Result<(), TrainerError> {
        Ok(())
    }

    /// Called before every step's forward pass.
    ///
    /// # Errors
    /// What measuring the model may raise.
    fn start_step(&mut self, _step: &StepInfo<'_, M>) -> Result<Option<Observation>, TrainerError> {
        Ok(None)
    }

    /// Examples of earlier tasks that the step learns from besides its own.
    fn rehearsal(&self, _step: &StepInfo<'_, M>) -> Vec<&EncodedExample> {
        Vec::new()
    }

    /// A term of the loss of one forward pass, summed over its target tokens; the trainer divides it by the number of
    /// target tokens of the whole step, as the cross entropy.
    ///
    /// # Shapes
    /// - logits: `[rows, positions, vocabulary]`; labels: `[rows, positions]`, -100 where nothing is to be predicted
    fn batch_term(
        &self,
        _batch: &TokenBatch,
        _logits: &Tensor<3>,
        _labels: &[i64],
    ) -> Option<Penalty> {
        None
    }

    /// The terms of the loss for the model as it is; once per optimizer step.
    fn penalties(&self, _model: &M, _task: &TaskInfo) -> Vec<Penalty> {
        Vec::new()
    }

    /// Called with the gradient of the whole loss: before it is clipped with `train.clip = "total"`, and behind the clip of the
    /// task's part with `"task"`, if there are penalties.
    ///
    /// # Errors
    /// Whatever stops the run.
    fn adjust(
        &mut self,
        _step: &StepInfo<'_, M>,
        _gradients: &mut SubspaceGradients,
    ) -> Result<(), TrainerError> {
        Ok(())
    }

    /// Called after a task's last step, before its adapter is saved.
    ///
    /// # Errors
    /// Whatever stops the run.
    fn end_task(&mut self, _model: &mut M, _context: &TaskContext<'_>) -> Result<(), TrainerError> {
        Ok(())
    }

    /// What must survive a restart, within a task or between two.
    fn state(&self) -> MethodState {
        MethodState::default()
    }

    /// Restores what [`state`](Self::state) gave.
    ///
    /// # Errors
    /// If the state is of another form.
    fn restore(&mut self, _state: MethodState) -> Result<(), serde_json::Error> {
        Ok(())
    }
}

/// The gradient of the summed cross entropy of a batch, without dropout, and its number of target tokens: what EWC and A-GEM
/// look at.
pub(crate) fn plain_gradient<M: Backbone>(
    model: &M,
    codec: &TextCodec,
    examples: &[&EncodedExample],
) -> Result<(SubspaceGradients, usize), BackboneError> {
    let batch = codec.batch(examples)?;
    let (logits, labels) = model.answer_logits(&batch, &ForwardContext::training(None));
    let loss = SequenceCrossEntropy::default().forward(logits, &labels);
    let gradients = SubspaceGradients::collect(model, &mut loss.sum.backward());
    Ok((gradients, loss.tokens))
}

/// The method that a configuration names.
pub fn from_config<M: Backbone + 'static>(config: &RunConfig) -> Box<dyn Method<M>> {
    let settings = &config.method;
    let isolation = || Isolation::new(settings);
    let memory = || Memory::new(settings.memory_size());
    let replayed = settings
        .replay_examples
        .unwrap_or(config.train.batch_size.div_ceil(2));
    match settings.name {
        MethodName::AsoLora => Box::new(AsoLora::new(isolation(), &config.attribution)),
        MethodName::OLora => Box::new(OLora::new(isolation())),
        MethodName::IncLora => Box::new(IncLora),
        MethodName::NLora => Box::new(NLora::new(settings.sparsity)),
        MethodName::InfLora => Box::new(InfLora::new(
            settings.memory_threshold,
            settings.probe_examples,
        )),
        MethodName::SeqLora => Box::new(SeqLora),
        MethodName::SeqFt => Box::new(SeqFt),
        MethodName::Ewc => Box::new(Ewc::new(
            settings.importance,
            settings.importance_decay,
            settings.probe_examples,
        )),
        MethodName::Lwf => Box::new(Lwf::<M>::new(settings.distillation, settings.temperature)),
        MethodName::Replay => Box::new(Replay::new(memory(), replayed)),
        MethodName::AGem => Box::new(AGem::new(memory(), replayed)),
        MethodName::Slao => Box::new(Slao::default()),
        MethodName::PerTask => Box::new(PerTask),
        MethodName::MultiTask => Box::new(MultiTask),
    }
}
