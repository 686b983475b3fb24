//! Learning without forgetting.

use aso_backbones::{Backbone, TokenBatch};
use aso_lora::ForwardContext;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};

use super::{Method, Penalty, Structure, TaskContext};
use crate::TrainerError;
use crate::config::MethodName;

/// One adapter that imitates on the new task's examples what it was before the task: learning without forgetting ([Li &
/// Hoiem 2016](https://arxiv.org/abs/1606.09282)) with the distillation of [Hinton et al. 2015](https://arxiv.org/abs/1503.02531), at every target token:
///
/// `CE + lambda T^2 KL(softmax(z* / T) || softmax(z / T))`, averaged over target tokens, where z* are the logits of the
/// model before the task, without dropout.
#[derive(Debug, Clone)]
pub struct Lwf<M> {
    lambda: f64,
    temperature: f64,
    /// The model before the task; shares all weights but those of the adapter.
    teacher: Option<M>,
}

impl<M> Lwf<M> {
    /// Weight lambda and temperature T.
    pub fn new(lambda: f64, temperature: f64) -> Self {
        Self {
            lambda,
            temperature,
            teacher: None,
        }
    }
}

impl<M: Backbone> Method<M> for Lwf<M> {
    fn name(&self) -> &str {
        MethodName::Lwf.as_str()
    }

    fn structure(&self) -> Structure {
        MethodName::Lwf.structure()
    }

    fn start_task(&mut self, model: &mut M, context: &TaskContext<'_>) -> Result<(), TrainerError> {
        let imitates = context.task.index > 0 && self.lambda != 0.0;
        self.teacher = imitates.then(|| model.clone());
        Ok(())
    }

    fn batch_term(
        &self,
        batch: &TokenBatch,
        logits: &Tensor<3>,
        labels: &[i64],
    ) -> Option<Penalty> {
        let teacher = self.teacher.as_ref()?;
        let (expected, _) = teacher.answer_logits(batch, &ForwardContext::inference());
        let [rows, positions, vocabulary] = logits.dims();
        let labelled: Vec<i64> = (0..)
            .zip(labels)
            .filter(|(_, label)| **label >= 0)
            .map(|(at, _)| at)
            .collect();
        let device = logits.device().without_autodiff();
        let count = labelled.len();
        let index = Tensor::<1, Int>::from_data(TensorData::new(labelled, [count]), &device);
        let soft = |logits: Tensor<3>, index: Tensor<1, Int>| {
            let flat = logits.reshape([rows * positions, vocabulary]);
            log_softmax(flat.select(0, index).div_scalar(self.temperature), 1)
        };
        let expected = soft(expected.without_autodiff(), index.clone());
        let found = soft(logits.clone(), index);
        let divergence = expected.clone().exp() * (expected - found);
        Some(Penalty {
            name: "distillation",
            weight: self.lambda * self.temperature * self.temperature,
            value: divergence.sum_dim(1).sum(),
        })
    }
}
