//! Continual merging into one adapter.

use std::collections::BTreeMap;

use aso_backbones::Backbone;
use aso_lora::LoraWeights;
use burn::tensor::{Device, Tensor, TensorData};
use nalgebra::DMatrix;

use super::state::invalid;
use super::{Method, MethodState, Structure, TaskContext};
use crate::TrainerError;
use crate::config::MethodName;

/// One adapter, merged after each task (SLAO, [Qiao & Mahdavi 2026](https://arxiv.org/abs/2512.23017)). Memory does not grow.
///
/// Task i > 1 starts from `A = Q^T` with `Q R = A_{i-1}^T` (orthonormal rows that span what the last task's A spans) and
/// `B = B_{i-1}`, both as trained on task i - 1. Afterwards
/// `A_merged = A_i`, `B_merged <- B_merged + (B_i - B_merged) / sqrt(i)`. The merged pair is what is evaluated and saved.
#[derive(Debug, Clone, Default)]
pub struct Slao {
    /// A and B as trained on the last task, by layer.
    trained: BTreeMap<String, LoraWeights>,
    /// Merged B, by layer.
    merged: BTreeMap<String, Vec<f32>>,
    /// Where the state's matrices go: the model's.
    device: Option<Device>,
}

impl<M: Backbone> Method<M> for Slao {
    fn name(&self) -> &str {
        MethodName::Slao.as_str()
    }

    fn structure(&self) -> Structure {
        MethodName::Slao.structure()
    }

    fn start_task(
        &mut self,
        model: &mut M,
        _context: &TaskContext<'_>,
    ) -> Result<(), TrainerError> {
        model.visit_linears_mut(&mut |layer| {
            let dropout = layer.active().map(|active| active.dropout);
            if let (Some(dropout), Some(trained)) = (dropout, self.trained.get(layer.name())) {
                let start = LoraWeights {
                    a: orthonormal_rows(&trained.a, trained.rank, trained.d_in),
                    ..trained.clone()
                };
                layer.set_active(&start, dropout);
            }
        });
        Ok(())
    }

    fn end_task(&mut self, model: &mut M, context: &TaskContext<'_>) -> Result<(), TrainerError> {
        let rate = 1.0 / ((context.task.index + 1) as f32).sqrt();
        self.device = Some(model.device().without_autodiff());
        self.trained = model.active_weights();
        model.visit_linears_mut(&mut |layer| {
            let dropout = layer.active().map(|active| active.dropout);
            let (Some(dropout), Some(trained)) = (dropout, self.trained.get(layer.name())) else {
                return;
            };
            let merged = match self.merged.get(layer.name()) {
                Some(merged) => merge(merged, &trained.b, rate),
                None => trained.b.clone(),
            };
            let weights = LoraWeights {
                b: merged.clone(),
                ..trained.clone()
            };
            layer.set_active(&weights, dropout);
            self.merged.insert(layer.name().to_owned(), merged);
        });
        Ok(())
    }

    fn state(&self) -> MethodState {
        let mut state = MethodState::default();
        let Some(device) = &self.device else {
            return state;
        };
        let mut scalings = serde_json::Map::new();
        for (name, weights) in &self.trained {
            let mut insert = |what: &str, values: &[f32], shape: [usize; 2]| {
                let data = TensorData::new(values.to_vec(), shape);
                let tensor = Tensor::from_data(data, device);
                state.tensors.insert(format!("{name}{what}"), tensor);
            };
            let LoraWeights {
                rank, d_in, d_out, ..
            } = *weights;
            insert(TRAINED_A, &weights.a, [rank, d_in]);
            insert(TRAINED_B, &weights.b, [d_out, rank]);
            if let Some(merged) = self.merged.get(name) {
                insert(MERGED_B, merged, [d_out, rank]);
            }
            scalings.insert(name.clone(), weights.scaling.into());
        }
        if !scalings.is_empty() {
            state.values = scalings.into();
        }
        state
    }

    fn restore(&mut self, mut state: MethodState) -> Result<(), serde_json::Error> {
        self.trained.clear();
        self.merged.clear();
        if state.is_empty() {
            return Ok(());
        }
        let scalings: BTreeMap<String, f64> = serde_json::from_value(state.values.take())?;
        for (name, scaling) in scalings {
            let mut values = |what: &str| {
                let tensor = state.take(&format!("{name}{what}"))?;
                self.device = Some(tensor.device());
                let shape = tensor.dims();
                let values = tensor.into_data().iter::<f32>().collect::<Vec<_>>();
                Ok::<_, serde_json::Error>((values, shape))
            };
            let (a, [rank, d_in]) = values(TRAINED_A)?;
            let (b, of_b @ [d_out, _]) = values(TRAINED_B)?;
            let (merged, of_merged) = values(MERGED_B)?;
            let weights = LoraWeights {
                a,
                b,
                rank,
                d_in,
                d_out,
                scaling,
            };
            weights.check().map_err(invalid)?;
            if of_merged != of_b {
                let found = format!("`{name}`: merged B {of_merged:?}, trained B {of_b:?}");
                return Err(invalid(found));
            }
            self.merged.insert(name.clone(), merged);
            self.trained.insert(name, weights);
        }
        state.all_taken()
    }
}

const TRAINED_A: &str = ".trained_A";
const TRAINED_B: &str = ".trained_B";
const MERGED_B: &str = ".merged_B";

/// `merged + rate (new - merged)`.
fn merge(merged: &[f32], new: &[f32], rate: f32) -> Vec<f32> {
    let pairs = merged.iter().zip(new);
    pairs.map(|(old, new)| old + rate * (new - old)).collect()
}

/// `Q^T` of the QR decomposition of the transpose of `a: [rank, width]`, row-major. Rows beyond the width, which nothing is left to
/// be orthogonal for, are zero.
fn orthonormal_rows(a: &[f32], rank: usize, width: usize) -> Vec<f32> {
    let transposed = DMatrix::from_fn(width, rank, |row, column| {
        f64::from(a[column * width + row])
    });
    let q = transposed.qr().q();
    (0..rank)
        .flat_map(|column| (0..width).map(move |row| (row, column)))
        .map(|at| q.get(at).map_or(0.0, |value| *value as f32))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_become_orthonormal_and_span_the_same(
            a in proptest::collection::vec(-1.0f32..1.0, 3 * 7)
        ) {
            let q = orthonormal_rows(&a, 3, 7);
            let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
            for i in 0..3 {
                for j in 0..3 {
                    let expected = if i == j { 1.0 } else { 0.0 };
                    let found = dot(&q[i * 7..][..7], &q[j * 7..][..7]);
                    prop_assert!((found - expected).abs() < 1e-5, "{found}");
                }
                // What is left of a row of A outside the span of Q.
                let row = &a[i * 7..][..7];
                let inside: f32 = (0..3).map(|j| dot(row, &q[j * 7..][..7]).powi(2)).sum();
                prop_assert!((inside - dot(row, row)).abs() < 1e-4 * dot(row, row).max(1.0));
            }
        }
    }

    #[test]
    fn rows_beyond_the_width_are_zero() {
        let q = orthonormal_rows(&[1.0, 0.0, 1.0, 1.0, 0.5, 2.0], 3, 2);
        let product = q[0] * q[2] + q[1] * q[3];
        assert!(product.abs() < 1e-6 && (q[0].hypot(q[1]) - 1.0).abs() < 1e-6);
        assert_eq!(q[4..], [0.0, 0.0]);
    }

    #[test]
    fn merging_is_a_running_mean_with_rate() {
        assert_eq!(merge(&[2.0, 0.0], &[4.0, 1.0], 0.5), [3.0, 0.5]);
    }
}
