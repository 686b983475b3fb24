//! What earlier tasks feed adapted layers.

use std::collections::BTreeMap;
use std::sync::Arc;

use aso_backbones::Backbone;
use aso_data::EncodedExample;
use aso_lora::{ForwardContext, InputCovariance};
use burn::tensor::{Tensor, TensorData};
use nalgebra::{DMatrix, SymmetricEigen};

use super::state::invalid;
use super::{MethodState, TaskContext};
use crate::TrainerError;
use crate::codec::TextCodec;

/// A direction whose energy is less than this share of all energy is noise.
pub(super) const NEGLIGIBLE: f64 = 1e-9;

/// For every adapted layer, orthonormal directions that hold a share of the energy of what earlier tasks fed it (gradient
/// projection memory, Saha et al. 2021). At the end of a task it grows by the leading eigenvectors of what is left of the
/// task's inputs outside of it, until it holds the share `threshold` of their energy.
#[derive(Debug, Clone)]
pub(super) struct InputMemory {
    threshold: f64,
    examples: usize,
    layers: BTreeMap<String, PastInputs>,
}

/// The directions of one layer.
#[derive(Debug, Clone)]
pub(super) struct PastInputs {
    /// Orthonormal rows, `[k, d_in]`.
    pub(super) rows: Tensor<2>,
    /// How many of them each task added, in the order of the tasks: task, number.
    pub(super) parts: Vec<(usize, usize)>,
}

impl InputMemory {
    /// Share of the inputs' energy that is held, and examples of a task that covariances are estimated from.
    pub(super) fn new(threshold: f64, examples: usize) -> Self {
        Self {
            threshold,
            examples,
            layers: BTreeMap::new(),
        }
    }

    /// The directions of a layer; `None` if there are none yet.
    pub(super) fn past(&self, layer: &str) -> Option<&PastInputs> {
        self.layers.get(layer)
    }

    /// The same as a matrix.
    pub(super) fn matrix(&self, layer: &str) -> Option<DMatrix<f64>> {
        self.past(layer).map(|past| dense(past.rows.clone()))
    }

    /// [`input_covariances`] of a seeded choice of the task's examples, which must be finite: a decomposition of others would not end.
    pub(super) fn covariances<M: Backbone>(
        &self,
        model: &M,
        context: &TaskContext<'_>,
    ) -> Result<BTreeMap<String, DMatrix<f64>>, TrainerError> {
        let sums = input_covariances(model, context.codec, context.some(self.examples))?;
        let finite = |(name, sum)| {
            let sum = dense(sum);
            if sum.iter().all(|value| value.is_finite()) {
                return Ok((name, sum));
            }
            Err(TrainerError::InputsNotFinite {
                task: context.task.name.clone(),
                layer: name,
            })
        };
        sums.into_iter().map(finite).collect()
    }

    /// Adds what is missing of a finished task's inputs.
    pub(super) fn learn<M: Backbone>(
        &mut self,
        model: &M,
        context: &TaskContext<'_>,
    ) -> Result<(), TrainerError> {
        let device = model.device().without_autodiff();
        for (name, covariance) in self.covariances(model, context)? {
            let new = missing(&covariance, self.matrix(&name).as_ref(), self.threshold);
            if new.is_empty() {
                continue;
            }
            let width = covariance.ncols();
            let count = new.len() / width;
            // As it is stored: a run that resumes must not know more digits.
            let values = new.into_iter().map(|value| value as f32).collect();
            let data = TensorData::new::<f32, _>(values, [count, width]);
            self.add(name, context.task.index, Tensor::from_data(data, &device));
        }
        Ok(())
    }

    fn add(&mut self, layer: String, task: usize, rows: Tensor<2>) {
        let part = (task, rows.dims()[0]);
        match self.layers.get_mut(&layer) {
            Some(past) => {
                past.rows = Tensor::cat(vec![past.rows.clone(), rows], 0);
                past.parts.push(part);
            }
            None => {
                let parts = vec![part];
                self.layers.insert(layer, PastInputs { rows, parts });
            }
        }
    }

    /// The directions that each task added, by layer and task.
    pub(super) fn state(&self) -> MethodState {
        let mut state = MethodState::default();
        for (layer, past) in &self.layers {
            let mut start = 0;
            for &(task, count) in &past.parts {
                let rows = past.rows.clone().narrow(0, start, count);
                state
                    .tensors
                    .insert(format!("{layer}{OF_TASK}{task}"), rows);
                start += count;
            }
        }
        state
    }

    /// Takes up what [`state`](Self::state) gave.
    ///
    /// # Errors
    /// If a matrix is called by no layer and task: going on without it would leave a task unprotected.
    pub(super) fn restore(
        &mut self,
        tensors: BTreeMap<String, Tensor<2>>,
    ) -> Result<(), serde_json::Error> {
        let mut parts = Vec::new();
        for (name, rows) in tensors {
            let named = name.rsplit_once(OF_TASK);
            let named = named.and_then(|(layer, task)| Some((layer, task.parse::<usize>().ok()?)));
            let Some((layer, task)) = named else {
                let expected = format!("expected a matrix LAYER{OF_TASK}N, found `{name}`");
                return Err(invalid(expected));
            };
            parts.push((task, layer.to_owned(), rows.without_autodiff()));
        }
        parts.sort_by_key(|(task, ..)| *task);
        self.layers.clear();
        for (task, layer, rows) in parts {
            self.add(layer, task, rows);
        }
        Ok(())
    }
}

/// Covariances `sum x x^T: [d_in, d_in]` of the inputs of the adapted layers on some examples, one at a time so that no padding
/// counts.
pub(crate) fn input_covariances<'a, M: Backbone>(
    model: &M,
    codec: &TextCodec,
    examples: impl IntoIterator<Item = &'a EncodedExample>,
) -> Result<BTreeMap<String, Tensor<2>>, TrainerError> {
    let inputs = Arc::new(InputCovariance::default());
    let forward = ForwardContext {
        inputs: Some(inputs.clone()),
        ..ForwardContext::inference()
    };
    for example in examples {
        let batch = codec.batch(&[example])?;
        let _ = model.answer_logits(&batch, &forward);
    }
    Ok(inputs.take())
}

/// Between a layer's name and a task's number.
const OF_TASK: &str = ".task-";

pub(super) fn dense(tensor: Tensor<2>) -> DMatrix<f64> {
    let [rows, columns] = tensor.dims();
    let data = tensor.into_data();
    let values: Vec<f64> = data.iter::<f32>().map(f64::from).collect();
    DMatrix::from_row_slice(rows, columns, &values)
}

/// `(I - M M^T) H (I - M M^T)` for orthonormal rows `M^T`.
pub(super) fn outside(covariance: &DMatrix<f64>, memory: Option<&DMatrix<f64>>) -> DMatrix<f64> {
    let Some(rows) = memory else {
        return covariance.clone();
    };
    let half = covariance - rows.transpose() * (rows * covariance);
    &half - (&half * rows.transpose()) * rows
}

/// Eigenvalues and eigenvectors (as rows), largest first; negative rounding counts as 0.
pub(super) fn spectrum(matrix: DMatrix<f64>) -> Vec<(f64, Vec<f64>)> {
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

/// Orthonormal rows, one after another, that hold what the memory lacks of the share `threshold` of the inputs' energy.
pub(super) fn missing(
    covariance: &DMatrix<f64>,
    memory: Option<&DMatrix<f64>>,
    threshold: f64,
) -> Vec<f64> {
    let left = outside(covariance, memory);
    let energy = covariance.trace();
    let mut held = energy - left.trace();
    let mut rows = Vec::new();
    for (value, vector) in spectrum(left) {
        if held >= threshold * energy || value <= NEGLIGIBLE * energy {
            break;
        }
        held += value;
        rows.extend(vector);
    }
    rows
}

/// Takes out of each row what lies in the span of the memory's rows, and gives it back its length; a row of which nothing is left
/// becomes 0.
pub(super) fn turn_away(rows: &mut [f32], memory: &DMatrix<f64>) {
    let width = memory.ncols();
    for row in rows.chunks_exact_mut(width) {
        let before = nalgebra::DVector::from_iterator(width, row.iter().map(|v| f64::from(*v)));
        let after = &before - memory.transpose() * (memory * &before);
        let (length, left) = (before.norm(), after.norm());
        let scale = match left > NEGLIGIBLE.sqrt() * length {
            true => length / left,
            false => 0.0,
        };
        for (value, new) in row.iter_mut().zip(after.iter()) {
            *value = (new * scale) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn memory_holds_the_wanted_share(
            inputs in proptest::collection::vec(-1.0f64..1.0, 12 * 6), threshold in 0.1f64..1.0,
        ) {
            let x = DMatrix::from_row_slice(12, 6, &inputs);
            let covariance = x.transpose() * x;
            let rows = missing(&covariance, None, threshold);
            let memory = DMatrix::from_row_slice(rows.len() / 6, 6, &rows);
            let held = (&memory * &covariance * memory.transpose()).trace();
            prop_assert!(held >= threshold * covariance.trace() * (1.0 - 1e-9));
            let gram = &memory * memory.transpose();
            prop_assert!((gram - DMatrix::identity(memory.nrows(), memory.nrows())).norm() < 1e-9);
        }

        #[test]
        fn turned_rows_see_nothing_of_the_memory(
            old in proptest::collection::vec(-1.0f64..1.0, 3 * 6),
            rows in proptest::collection::vec(-1.0f32..1.0, 2 * 6),
        ) {
            let x = DMatrix::from_row_slice(3, 6, &old);
            let held = missing(&(x.transpose() * &x), None, 1.0);
            let memory = DMatrix::from_row_slice(held.len() / 6, 6, &held);
            let mut turned = rows.clone();
            turn_away(&mut turned, &memory);
            let length = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>();
            for (before, after) in rows.chunks(6).zip(turned.chunks(6)) {
                prop_assert!((length(before) - length(after)).abs() < 1e-4);
                for input in old.chunks(6) {
                    let dot: f64 = after.iter().zip(input).map(|(a, x)| f64::from(*a) * x).sum();
                    prop_assert!(dot.abs() < 1e-3, "{dot}");
                }
            }
        }
    }

    #[test]
    fn parts_come_back_in_the_order_of_their_tasks() {
        let device = burn::tensor::Device::flex();
        let mut memory = InputMemory::new(0.9, 1);
        for task in [2, 10] {
            let rows = Tensor::from_data([[task as f32, 0.0]], &device);
            memory.add("a.q".to_owned(), task, rows);
        }
        let mut read = InputMemory::new(0.9, 1);
        read.restore(memory.state().tensors).unwrap();
        let past = read.past("a.q").unwrap();
        assert_eq!(past.parts, [(2, 1), (10, 1)]);
        let rows: Vec<f32> = past.rows.clone().into_data().iter().collect();
        assert_eq!(rows, [2.0, 0.0, 10.0, 0.0]);
        let rows = Tensor::from_data([[1.0, 0.0]], &device);
        let error = read.restore(BTreeMap::from([("a.q".to_owned(), rows)]));
        assert!(error.unwrap_err().to_string().contains("found `a.q`"));
    }

    #[test]
    fn nothing_is_left_when_memory_is_full() {
        let memory = DMatrix::<f64>::identity(6, 6);
        assert!(missing(&memory, Some(&memory), 1.0).is_empty());
        let mut rows = vec![0.3; 6];
        turn_away(&mut rows, &memory);
        assert_eq!(rows, [0.0; 6]);
    }
}
