//! Interference-free low-rank adaptation.

use aso_backbones::Backbone;
use aso_lora::LoraWeights;
use nalgebra::DMatrix;

use super::inputs::{InputMemory, outside, spectrum};
use super::{Method, MethodState, TaskContext};
use crate::TrainerError;
use crate::config::MethodName;

/// One subspace per task whose A is designed and whose B is trained (InfLoRA, [Liang & Li 2024](https://arxiv.org/abs/2404.00228), CVPR): B A changes a layer
/// only for inputs that earlier tasks hardly have.
///
/// Rows of A_t: the leading eigenvectors of `(I - M M^T) H_t (I - M M^T)`, times 1/sqrt 3 (the mean length of a row drawn as usual),
/// where H_t is the covariance of the layer's inputs on the new task and the columns of M span the inputs of
/// earlier tasks. At the end of a task M grows by the leading eigenvectors of what is left of its inputs, until it holds the share
/// `threshold` of their energy (gradient projection memory, [Saha et al. 2021](https://arxiv.org/abs/2103.09762)).
///
/// Simpler than the authors' program, so its thresholds do not carry over: there the share rises from task to task, is one of squared
/// eigenvalues of the covariance (here: of eigenvalues, the energy), and the memory is DualGPM, which stores the smaller of the span and its complement.
#[derive(Debug, Clone)]
pub struct InfLora {
    memory: InputMemory,
}

impl InfLora {
    /// Share of the inputs' energy that the memory holds, and examples of a task that covariances are estimated from.
    pub fn new(threshold: f64, examples: usize) -> Self {
        Self {
            memory: InputMemory::new(threshold, examples),
        }
    }
}

/// A direction with less than this share of the inputs' energy is rounding: covariances are sums in f32, which leaves every direction
/// that no input has with up to 3e-7 of the trace (200 additions of up to 512 dimensions).
const ROUNDING: f64 = 1e-6;

/// Rows of A, `[rank, d_in]`; a row for which no input is left is 0.
fn design(covariance: &DMatrix<f64>, memory: Option<&DMatrix<f64>>, rank: usize) -> Vec<f32> {
    let pairs = spectrum(outside(covariance, memory));
    let floor = ROUNDING * covariance.trace();
    let length = 1.0 / 3f64.sqrt();
    let width = covariance.ncols();
    let mut rows = Vec::with_capacity(rank * width);
    for at in 0..rank {
        match pairs.get(at) {
            Some((value, vector)) if *value > floor => {
                rows.extend(vector.iter().map(|v| (v * length) as f32));
            }
            _ => rows.extend(std::iter::repeat_n(0.0, width)),
        }
    }
    rows
}

impl<M: Backbone> Method<M> for InfLora {
    fn name(&self) -> &str {
        MethodName::InfLora.as_str()
    }

    fn trains_a(&self) -> bool {
        MethodName::InfLora.trains_a()
    }

    fn start_task(&mut self, model: &mut M, context: &TaskContext<'_>) -> Result<(), TrainerError> {
        let covariances = self.memory.covariances(model, context)?;
        model.visit_linears_mut(&mut |layer| {
            let Some(active) = layer.active() else { return };
            let (fresh, dropout) = (active.to_weights(), active.dropout);
            let Some(covariance) = covariances.get(layer.name()) else {
                return;
            };
            let memory = self.memory.matrix(layer.name());
            let weights = LoraWeights {
                a: design(covariance, memory.as_ref(), fresh.rank),
                ..fresh
            };
            layer.set_active(&weights, dropout);
        });
        Ok(())
    }

    fn end_task(&mut self, model: &mut M, context: &TaskContext<'_>) -> Result<(), TrainerError> {
        self.memory.learn(model, context)
    }

    fn state(&self) -> MethodState {
        self.memory.state()
    }

    fn restore(&mut self, state: MethodState) -> Result<(), serde_json::Error> {
        self.memory.restore(state.tensors)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::method::inputs::missing;

    /// The covariance of inputs `[n, 6]`.
    fn covariance(inputs: &[f64]) -> DMatrix<f64> {
        let x = DMatrix::from_row_slice(inputs.len() / 6, 6, inputs);
        x.transpose() * x
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_new_subspace_does_not_see_what_is_in_memory(
            old in proptest::collection::vec(-1.0f64..1.0, 3 * 6),
            new in proptest::collection::vec(-1.0f64..1.0, 9 * 6),
        ) {
            // Three inputs span three dimensions, which the memory holds all of.
            let held = missing(&covariance(&old), None, 1.0);
            let memory = DMatrix::from_row_slice(held.len() / 6, 6, &held);
            prop_assert!(memory.nrows() <= 3);
            let a = design(&covariance(&new), Some(&memory), 2);
            for row in a.chunks(6) {
                for input in old.chunks(6) {
                    let dot: f64 = row.iter().zip(input).map(|(a, x)| f64::from(*a) * x).sum();
                    prop_assert!(dot.abs() < 1e-3, "{dot}");
                }
            }
            let lengths = a.chunks(6).map(|row| row.iter().map(|v| v * v).sum::<f32>());
            for length in lengths {
                prop_assert!((length - 1.0 / 3.0).abs() < 1e-5);
            }
        }
    }

    /// Three inputs over and over, summed in f32 as layers do: rounding is no direction to learn from.
    #[test]
    fn a_has_no_more_rows_than_inputs_have_dimensions() {
        const WIDTH: usize = 64;
        let input = |n: usize| (0..WIDTH).map(move |at| ((n + 1) as f32 * at as f32 * 0.7).sin());
        let mut sum = vec![0.0f32; WIDTH * WIDTH];
        for n in 0..200 {
            let x: Vec<f32> = input(n % 3).collect();
            for (at, value) in sum.iter_mut().enumerate() {
                *value += x[at / WIDTH] * x[at % WIDTH];
            }
        }
        let sum = sum.into_iter().map(f64::from);
        let covariance = DMatrix::from_row_iterator(WIDTH, WIDTH, sum);
        let a = design(&covariance, None, 8);
        let lengths: Vec<f32> = a
            .chunks(WIDTH)
            .map(|row| row.iter().map(|v| v * v).sum())
            .collect();
        assert!(
            lengths[..3]
                .iter()
                .all(|length| (length - 1.0 / 3.0).abs() < 1e-5)
        );
        assert_eq!(lengths[3..], [0.0; 5]);
    }

    #[test]
    fn nothing_is_left_when_memory_is_full() {
        let full = DMatrix::<f64>::identity(6, 6);
        assert!(design(&full, Some(&full), 2).iter().all(|v| *v == 0.0));
    }
}
