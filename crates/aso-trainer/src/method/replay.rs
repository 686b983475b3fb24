//! Replay of old examples.

use aso_backbones::Backbone;
use aso_data::EncodedExample;

use super::{Memory, Method, MethodState, Observation, StepInfo, Structure, TaskContext};
use crate::TrainerError;
use crate::config::MethodName;

/// One adapter, trained on the new task's examples and on kept ones of all earlier tasks (experience replay, Rolnick et
/// al. 2019): every step takes `examples` of them besides its own.
#[derive(Debug, Clone)]
pub struct Replay {
    memory: Memory,
    examples: usize,
    drawn: Vec<EncodedExample>,
}

impl Replay {
    /// Old examples that a step takes besides its own.
    pub fn new(memory: Memory, examples: usize) -> Self {
        Self {
            memory,
            examples,
            drawn: Vec::new(),
        }
    }
}

impl<M: Backbone> Method<M> for Replay {
    fn name(&self) -> &str {
        MethodName::Replay.as_str()
    }

    fn structure(&self) -> Structure {
        MethodName::Replay.structure()
    }

    fn kept_examples(&self) -> usize {
        self.memory.len()
    }

    fn start_step(&mut self, step: &StepInfo<'_, M>) -> Result<Option<Observation>, TrainerError> {
        let (task, number) = (step.task.index, step.step);
        self.drawn = self.memory.draw(self.examples, step.seed, task, number);
        Ok(None)
    }

    fn rehearsal(&self, _step: &StepInfo<'_, M>) -> Vec<&EncodedExample> {
        self.drawn.iter().collect()
    }

    fn end_task(&mut self, _model: &mut M, context: &TaskContext<'_>) -> Result<(), TrainerError> {
        let task = context.task.index;
        self.memory.keep(context.examples, context.seed, task);
        Ok(())
    }

    fn state(&self) -> MethodState {
        self.memory.state()
    }

    fn restore(&mut self, state: MethodState) -> Result<(), serde_json::Error> {
        self.memory.restore(state)
    }
}
