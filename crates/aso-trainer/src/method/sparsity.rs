//! N-LoRA.

use aso_backbones::Backbone;
use burn::tensor::Tensor;

use super::{Method, Penalty, TaskInfo};
use crate::config::MethodName;

/// One subspace per task whose update is sparse, so that the updates of two tasks rarely meet in an entry (N-LoRA,
/// [Yang et al. 2025](https://arxiv.org/abs/2410.10179), COLING): `CE + lambda sum_m |B_t A_t|_1`, from the first task on.
#[derive(Debug, Clone, Copy)]
pub struct NLora {
    lambda: f64,
}

impl NLora {
    /// The weight of the sum of absolute entries of all updates `B_t A_t` (without their scale alpha / r).
    pub fn new(lambda: f64) -> Self {
        Self { lambda }
    }
}

impl<M: Backbone> Method<M> for NLora {
    fn name(&self) -> &str {
        MethodName::NLora.as_str()
    }

    fn penalties(&self, model: &M, _task: &TaskInfo) -> Vec<Penalty> {
        if self.lambda == 0.0 {
            return Vec::new();
        }
        let mut total: Option<Tensor<1>> = None;
        model.visit_linears(&mut |layer| {
            let Some(active) = layer.active() else { return };
            let update = active.b.val().matmul(active.a.val());
            let term = update.abs().sum_dim(1).sum();
            total = Some(match total.take() {
                Some(total) => total + term,
                None => term,
            });
        });
        let penalty = total.map(|value| Penalty {
            name: "sparsity",
            weight: self.lambda,
            value,
        });
        penalty.into_iter().collect()
    }
}
