//! What a method keeps, and how it is stored.

use std::collections::BTreeMap;

use aso_lora::floats::decode_floats;
use burn::tensor::{Tensor, TensorData};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;

/// What is wrong with a state.
pub(super) fn invalid(problem: impl std::fmt::Display) -> serde_json::Error {
    serde::de::Error::custom(problem)
}

/// State of a method: values, and matrices by name.
#[derive(Debug, Clone, Default)]
pub struct MethodState {
    /// What is kept as JSON: numbers, and the token ids of examples that are kept.
    pub values: Value,
    /// Matrices, such as importances or merged weights.
    pub tensors: BTreeMap<String, Tensor<2>>,
}

impl MethodState {
    /// A state of values alone.
    pub fn of_values(values: Value) -> Self {
        Self {
            values,
            ..Self::default()
        }
    }

    /// Whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.values.is_null() && self.tensors.is_empty()
    }

    /// Takes a matrix out.
    ///
    /// # Errors
    /// If there is none of that name.
    pub(super) fn take(&mut self, name: &str) -> Result<Tensor<2>, serde_json::Error> {
        let missing = || {
            invalid(format!(
                "the method's safetensors file has no matrix `{name}`"
            ))
        };
        self.tensors.remove(name).ok_or_else(missing)
    }

    /// That no matrix is left: going on without it would leave a task unprotected.
    ///
    /// # Errors
    /// Names one that is.
    pub(super) fn all_taken(&self) -> Result<(), serde_json::Error> {
        match self.tensors.keys().next() {
            None => Ok(()),
            Some(name) => Err(invalid(format!(
                "matrix `{name}` of the method's safetensors file has no counterpart"
            ))),
        }
    }

    /// The matrices as a safetensors file.
    pub(crate) fn tensor_bytes(&self) -> Result<Vec<u8>, SafeTensorError> {
        let stored: Vec<(&str, [usize; 2], Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, tensor)| {
                let data = tensor.clone().without_autodiff().into_data();
                let bytes = data.iter::<f32>().flat_map(f32::to_le_bytes).collect();
                (name.as_str(), tensor.dims(), bytes)
            })
            .collect();
        let views = stored.iter().map(|(name, shape, bytes)| {
            Ok((*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes)?))
        });
        let views = views.collect::<Result<Vec<_>, SafeTensorError>>()?;
        safetensors::serialize(views, None)
    }

    /// Reads what [`tensor_bytes`](Self::tensor_bytes) gave; matrices of another form are an error.
    pub(crate) fn read_tensors(
        bytes: &[u8],
        device: &burn::tensor::Device,
    ) -> Result<BTreeMap<String, Tensor<2>>, SafeTensorError> {
        let file = SafeTensors::deserialize(bytes)?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let values = decode_floats(view.dtype(), view.data());
            let (&[rows, columns], Some(values)) = (view.shape(), values) else {
                let (shape, length) = (view.shape().to_vec(), view.data().len());
                return Err(SafeTensorError::InvalidTensorView(
                    view.dtype(),
                    shape,
                    length,
                ));
            };
            let data = TensorData::new(values, [rows, columns]);
            tensors.insert(name, Tensor::from_data(data, device));
        }
        Ok(tensors)
    }
}
