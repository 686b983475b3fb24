//! Averaged gradient episodic memory.

use aso_backbones::Backbone;

use super::{Memory, Method, MethodState, StepInfo, Structure, TaskContext, plain_gradient};
use crate::TrainerError;
use crate::config::MethodName;
use crate::optimizer::SubspaceGradients;

/// One adapter whose gradient never goes against that of kept examples (A-GEM, [Chaudhry et al. 2019](https://arxiv.org/abs/1812.00420)):
///
/// `g <- g - (g . g_ref / g_ref . g_ref) g_ref` where `g . g_ref < 0`,
///
/// g over all entries that train, g_ref that of the cross entropy of kept examples, drawn anew for every step, without dropout. The paper steps along g;
/// here AdamW does, whose moments and scaling can still turn a step against g_ref.
#[derive(Debug, Clone)]
pub struct AGem {
    memory: Memory,
    examples: usize,
}

impl AGem {
    /// Kept examples that g_ref is computed from.
    pub fn new(memory: Memory, examples: usize) -> Self {
        Self { memory, examples }
    }
}

impl<M: Backbone> Method<M> for AGem {
    fn name(&self) -> &str {
        MethodName::AGem.as_str()
    }

    fn kept_examples(&self) -> usize {
        self.memory.len()
    }

    fn structure(&self) -> Structure {
        MethodName::AGem.structure()
    }

    fn adjust(
        &mut self,
        step: &StepInfo<'_, M>,
        gradients: &mut SubspaceGradients,
    ) -> Result<(), TrainerError> {
        let (task, number) = (step.task.index, step.step);
        let drawn = self.memory.draw(self.examples, step.seed, task, number);
        if drawn.is_empty() {
            return Ok(());
        }
        let examples: Vec<_> = drawn.iter().collect();
        let (mut reference, mut tokens) = (SubspaceGradients::default(), 0);
        for rows in examples.chunks(step.micro_batch) {
            let (gradients, of_rows) = plain_gradient(step.model, step.codec, rows)?;
            reference.add(gradients);
            tokens += of_rows;
        }
        reference.scale(1.0 / tokens.max(1) as f64);
        project(gradients, reference);
        Ok(())
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

/// Takes out of `gradients` what goes against `reference`, over the matrices that have a gradient: others do not train.
fn project(gradients: &mut SubspaceGradients, mut reference: SubspaceGradients) {
    reference.retain(|name| gradients.get(name).is_some());
    let against = gradients.dot(&reference);
    let length = reference.dot(&reference);
    if against < 0.0 && length > 0.0 {
        reference.scale(-against / length);
        gradients.add(reference);
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;

    fn named(name: &str, values: [f32; 2]) -> (String, Tensor<2>) {
        let tensor = Tensor::<2>::from_floats([values], &Device::flex());
        (name.to_owned(), tensor)
    }

    fn gradients(values: [f32; 2]) -> SubspaceGradients {
        SubspaceGradients::from_iter([named("layer.lora_A", values)])
    }

    fn values(gradients: &SubspaceGradients) -> Vec<f32> {
        let tensor = gradients.get("layer.lora_A").unwrap().clone();
        tensor.into_data().iter::<f32>().collect()
    }

    #[test]
    fn a_gradient_against_the_reference_becomes_orthogonal() {
        let mut found = gradients([1.0, 3.0]);
        project(&mut found, gradients([-2.0, 0.0]));
        assert_eq!(values(&found), [0.0, 3.0]);
        assert_eq!(found.dot(&gradients([-2.0, 0.0])), 0.0);
    }

    #[test]
    fn a_gradient_along_the_reference_stays() {
        for reference in [[2.0, 1.0], [0.0, 0.0]] {
            let mut found = gradients([1.0, 3.0]);
            project(&mut found, gradients(reference));
            assert_eq!(values(&found), [1.0, 3.0]);
        }
    }

    #[test]
    fn what_does_not_train_takes_no_part() {
        let mut found = gradients([1.0, 3.0]);
        let both = [
            named("layer.lora_A", [-2.0, 0.0]),
            named("layer.lora_B", [5.0, 5.0]),
        ];
        project(&mut found, SubspaceGradients::from_iter(both));
        assert_eq!(values(&found), [0.0, 3.0]);
        assert!(found.get("layer.lora_B").is_none());
    }
}
