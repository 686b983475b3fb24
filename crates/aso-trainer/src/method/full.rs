//! Full fine-tuning, in the form of adapters.

use aso_backbones::Backbone;
use aso_lora::{AdapterHost, LoraConfig, LoraWeights, TargetModules};

use super::{Method, Structure, TaskContext};
use crate::TrainerError;
use crate::config::MethodName;

/// All linear layers are trained on, task after task; embeddings, norms and biases stay (SeqFT,
/// [de Masson d'Autume et al. 2019](https://arxiv.org/abs/1906.01076)).
///
/// The weight is `W + B A` with `A = I`, `s = 1` and `B` trained from zero: the gradient of B is that of W, so AdamW takes
/// the same steps as on W itself (weight decay, 0 by default, would pull towards the weights that training began
/// with instead of towards zero). What is trained is thus an adapter like any other, that is saved, resumed,
/// exported and counted as one. It costs memory for `B`, its gradient and two moments, and for `A`, `d_in^2`, and
/// a product with the identity.
#[derive(Debug, Clone, Copy)]
pub struct SeqFt;

impl SeqFt {
    /// Puts an adapter of full rank, `A = I` and `B = 0`, on every linear layer.
    pub fn start<H: AdapterHost>(model: &mut H) {
        model.visit_linears_mut(&mut |layer| {
            let [d_in, d_out] = layer.dims();
            let mut a = vec![0.0; d_in * d_in];
            a.iter_mut()
                .step_by(d_in + 1)
                .for_each(|entry| *entry = 1.0);
            let weights = LoraWeights {
                a,
                b: vec![0.0; d_out * d_in],
                rank: d_in,
                d_in,
                d_out,
                scaling: 1.0,
            };
            layer.set_active(&weights, 0.0);
        });
    }
}

impl<M: Backbone> Method<M> for SeqFt {
    fn name(&self) -> &str {
        MethodName::SeqFt.as_str()
    }

    fn trains_a(&self) -> bool {
        MethodName::SeqFt.trains_a()
    }

    fn structure(&self) -> Structure {
        MethodName::SeqFt.structure()
    }

    fn lora(&self, _configured: LoraConfig) -> LoraConfig {
        LoraConfig {
            rank: 1,
            alpha: 1.0,
            dropout: 0.0,
            target_modules: TargetModules::Pattern(TargetModules::ALL_LINEAR.to_owned()),
        }
    }

    fn start_task(&mut self, model: &mut M, context: &TaskContext<'_>) -> Result<(), TrainerError> {
        if context.task.index > 0 {
            return Ok(());
        }
        Self::start(model);
        Ok(())
    }
}
