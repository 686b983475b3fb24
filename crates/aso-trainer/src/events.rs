//! What a run reports while it runs.

use crate::config::EvalMode;

/// What a download is doing, in [`Event::Download`].
pub use aso_hub::Progress;

/// Something that happened.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A model is downloaded.
    Download(Progress<'a>),
    /// The run starts or goes on.
    RunStarted {
        /// The method.
        method: &'a str,
        /// The stream.
        tasks: &'a [String],
        /// Tasks that are already trained.
        trained: usize,
    },
    /// Evaluation of one task starts; `after` is the last trained task, `None` for the backbone.
    EvaluationStarted {
        /// Last trained task.
        after: Option<&'a str>,
        /// The evaluated task.
        task: &'a str,
        /// Its examples.
        examples: usize,
    },
    /// Some examples were answered.
    EvaluationProgress {
        /// Examples done.
        done: usize,
    },
    /// Evaluation of one task ended.
    EvaluationFinished {
        /// Last trained task.
        after: Option<&'a str>,
        /// The evaluated task.
        task: &'a str,
        /// How its answers were found.
        mode: EvalMode,
        /// Score in percent.
        score: f64,
    },
    /// Training of a task starts or goes on.
    TaskStarted {
        /// 0-based position.
        index: usize,
        /// Name.
        name: &'a str,
        /// First step to run.
        first_step: usize,
        /// Optimizer steps in all.
        steps: usize,
    },
    /// One optimizer step was made.
    Step {
        /// Name of the task.
        task: &'a str,
        /// 0-based step.
        step: usize,
        /// Steps of the task.
        steps: usize,
        /// Examples of the step.
        examples: usize,
        /// Total loss.
        loss: f64,
        /// Learning rate.
        lr: f64,
        /// Soft weight, where the method has one.
        weight: Option<f64>,
    },
    /// A soft weight was measured.
    Measured {
        /// Name of the task.
        task: &'a str,
        /// 0-based step.
        step: usize,
        /// The weight.
        weight: f64,
    },
    /// The dev split was looked at (`train.select`).
    Looked {
        /// Name of the task.
        task: &'a str,
        /// Optimizer steps done.
        steps: usize,
        /// Score in percent.
        score: f64,
    },
    /// Training of a task ended.
    TaskFinished {
        /// Name.
        name: &'a str,
        /// Seconds of training in all.
        seconds: f64,
    },
    /// Everything is done.
    RunFinished,
}

/// Receives events, e.g. to draw progress bars.
pub trait Observer {
    /// Called in the thread that runs.
    fn event(&mut self, event: Event<'_>);
}

/// Ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _event: Event<'_>) {}
}
