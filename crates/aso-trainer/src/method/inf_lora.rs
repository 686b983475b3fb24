//! Interference-free low-rank adaptation.

use std::collections::BTreeMap;
use std::sync::Arc;

use aso_backbones::Backbone;
use aso_data::EncodedExample;
use aso_lora::{ForwardContext, InputCovariance, LoraWeights};
use burn::tensor::{Tensor, TensorData};
use nalgebra::{DMatrix, SymmetricEigen};

use super::{Method, MethodState, TaskContext};
use crate::TrainerError;
use crate::codec::TextCodec;
use crate::config::MethodName;

/// One subspace per task whose A is designed and whose B is trained (InfLoRA, Liang & Li 2024, CVPR): B A changes a layer
/// only for inputs that earlier tasks hardly have.
///
/// Rows of A_t: the leading eigenvectors of `(I - M M^T) H_t (I - M M^T)`, times 1/sqrt 3 (the mean length of a row drawn as usual),
/// where H_t is the covariance of the layer's inputs on the new task and the columns of M span the inputs of
/// earlier tasks. At the end of a task M grows by the leading eigenvectors of what is left of its inputs, until it holds the share
/// `threshold` of their energy (gradient projection memory, Saha et al. 2021).
#[derive(Debug, Clone)]
pub struct InfLora {
    threshold: f64,
    examples: usize,
    /// Orthonormal rows M^T by layer, `[k, d_in]`.
    memory: BTreeMap<String, DMatrix<f64>>,
}

/// A direction whose energy is less than this share of the largest is noise.
const NEGLIGIBLE: f64 = 1e-9;

impl InfLora {
    /// Share of the inputs' energy that the memory holds, and examples of a task that covariances are estimated from.
    pub fn new(threshold: f64, examples: usize) -> Self {
        Self {
            threshold,
            examples,
            memory: BTreeMap::new(),
        }
    }

    /// Covariances of the inputs of the adapted layers on a seeded choice of examples, one at a time so that no padding
    /// counts.
    fn covariances<M: Backbone>(
        &self,
        model: &M,
        context: &TaskContext<'_>,
    ) -> Result<BTreeMap<String, DMatrix<f64>>, TrainerError> {
        covariances(model, context.codec, &context.some(self.examples))
    }
}

fn covariances<M: Backbone>(
    model: &M,
    codec: &TextCodec,
    examples: &[&EncodedExample],
) -> Result<BTreeMap<String, DMatrix<f64>>, TrainerError> {
    let inputs = Arc::new(InputCovariance::default());
    let forward = ForwardContext {
        inputs: Some(inputs.clone()),
        ..ForwardContext::inference()
    };
    for example in examples {
        let batch = codec.batch(&[*example])?;
        let _ = model.answer_logits(&batch, &forward);
    }
    let sums = inputs.take().into_iter();
    Ok(sums.map(|(name, sum)| (name, dense(sum))).collect())
}

fn dense(tensor: Tensor<2>) -> DMatrix<f64> {
    let [rows, columns] = tensor.dims();
    let data = tensor.into_data();
    let values: Vec<f64> = data.iter::<f32>().map(f64::from).collect();
    DMatrix::from_row_slice(rows, columns, &values)
}

/// `(I - M M^T) H (I - M M^T)` for orthonormal rows `M^T`.
fn outside(covariance: &DMatrix<f64>, memory: Option<&DMatrix<f64>>) -> DMatrix<f64> {
    let Some(rows) = memory else {
        return covariance.clone();
    };
    let half = covariance - rows.transpose() * (rows * covariance);
    &half - (&half * rows.transpose()) * rows
}

/// Eigenvalues and eigenvectors (as rows), largest first; negative rounding counts as 0.
fn spectrum(matrix: DMatrix<f64>) -> Vec<(f64, Vec<f64>)> {
    let symmetric = (&matrix + matrix.transpose()) * 0.5;
    let eigen = SymmetricEigen::new(symmetric);
    let mut pairs: Vec<(f64, Vec<f64>)> = eigen
        .eigenvalues
        .iter()
        .zip(eigen.eigenvectors.column_iter())
        .map(|(value, vector)| (value.max(0.0), vector.iter().copied().collect()))
        .collect();
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    pairs
}

/// Rows of A, `[rank, d_in]`; a row for which no input is left is 0.
fn design(covariance: &DMatrix<f64>, memory: Option<&DMatrix<f64>>, rank: usize) -> Vec<f32> {
    let pairs = spectrum(outside(covariance, memory));
    let floor = NEGLIGIBLE * covariance.trace();
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

/// The memory with what is missing of a task's inputs.
fn grown(covariance: &DMatrix<f64>, memory: Option<&DMatrix<f64>>, threshold: f64) -> DMatrix<f64> {
    let left = outside(covariance, memory);
    let (energy, width) = (covariance.trace(), covariance.ncols());
    let mut held = energy - left.trace();
    let mut rows: Vec<f64> = memory.map_or(Vec::new(), |m| m.transpose().as_slice().to_vec());
    for (value, vector) in spectrum(left) {
        if held >= threshold * energy || value <= NEGLIGIBLE * energy {
            break;
        }
        held += value;
        rows.extend(vector);
    }
    DMatrix::from_row_slice(rows.len() / width, width, &rows)
}

impl<M: Backbone> Method<M> for InfLora {
    fn name(&self) -> &str {
        MethodName::InfLora.as_str()
    }

    fn trains_a(&self) -> bool {
        MethodName::InfLora.trains_a()
    }

    fn start_task(&mut self, model: &mut M, context: &TaskContext<'_>) -> Result<(), TrainerError> {
        let covariances = self.covariances(model, context)?;
        model.visit_linears_mut(&mut |layer| {
            let Some(active) = layer.active() else { return };
            let (fresh, dropout) = (active.to_weights(), active.dropout);
            let Some(covariance) = covariances.get(layer.name()) else {
                return;
            };
            let memory = self.memory.get(layer.name());
            let weights = LoraWeights {
                a: design(covariance, memory, fresh.rank),
                ..fresh
            };
            layer.set_active(&weights, dropout);
        });
        Ok(())
    }

    fn end_task(&mut self, model: &mut M, context: &TaskContext<'_>) -> Result<(), TrainerError> {
        for (name, covariance) in self.covariances(model, context)? {
            let memory = grown(&covariance, self.memory.get(&name), self.threshold);
            // As it is stored: a run that resumes must not know more digits.
            let memory = memory.map(|v| f64::from(v as f32));
            self.memory.insert(name, memory);
        }
        Ok(())
    }

    fn state(&self) -> MethodState {
        let device = burn::tensor::Device::default();
        let tensor = |(name, rows): (&String, &DMatrix<f64>)| {
            // Column-major of the transpose is row-major.
            let values = rows.transpose().iter().map(|v| *v as f32).collect();
            let data = TensorData::new::<f32, _>(values, [rows.nrows(), rows.ncols()]);
            (name.clone(), Tensor::from_data(data, &device))
        };
        let filled = self.memory.iter().filter(|(_, rows)| rows.nrows() > 0);
        MethodState {
            tensors: filled.map(tensor).collect(),
            ..MethodState::default()
        }
    }

    fn restore(&mut self, state: MethodState) -> Result<(), serde_json::Error> {
        let tensors = state.tensors.into_iter();
        self.memory = tensors.map(|(name, rows)| (name, dense(rows))).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
            let memory = grown(&covariance(&old), None, 1.0);
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

        #[test]
        fn memory_holds_the_wanted_share(
            inputs in proptest::collection::vec(-1.0f64..1.0, 12 * 6), threshold in 0.1f64..1.0,
        ) {
            let covariance = covariance(&inputs);
            let memory = grown(&covariance, None, threshold);
            let held = (&memory * &covariance * memory.transpose()).trace();
            prop_assert!(held >= threshold * covariance.trace() * (1.0 - 1e-9));
            let gram = &memory * memory.transpose();
            prop_assert!((gram - DMatrix::identity(memory.nrows(), memory.nrows())).norm() < 1e-9);
        }
    }

    #[test]
    fn nothing_is_left_when_memory_is_full() {
        let covariance = DMatrix::<f64>::identity(6, 6);
        let memory = grown(&covariance, None, 1.0);
        assert_eq!(memory.nrows(), 6);
        assert!(
            design(&covariance, Some(&memory), 2)
                .iter()
                .all(|v| *v == 0.0)
        );
    }
}
