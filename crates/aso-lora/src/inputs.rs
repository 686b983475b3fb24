//! What comes into adapted layers.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use burn::tensor::Tensor;

/// Sums up `x x^T` over the inputs x of every layer with an active subspace, during the forward passes whose
/// [`ForwardContext`](crate::ForwardContext) holds it.
#[derive(Debug, Default)]
pub struct InputCovariance {
    sums: Mutex<BTreeMap<String, Tensor<2>>>,
}

impl InputCovariance {
    /// Adds the inputs `[.., d_in]` of a layer.
    pub(crate) fn add<const D: usize>(&self, layer: &str, x: &Tensor<D>) {
        let x = x.clone().without_autodiff();
        let dims = x.dims();
        let width = dims[D - 1];
        let rows = dims.iter().product::<usize>() / width.max(1);
        let x = x.reshape([rows, width]);
        let product = x.clone().transpose().matmul(x);
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = match sums.remove(layer) {
            Some(sum) => sum + product,
            None => product,
        };
        sums.insert(layer.to_owned(), sum);
    }

    /// The sums so far by layer, `[d_in, d_in]`; begins again from nothing.
    pub fn take(&self) -> BTreeMap<String, Tensor<2>> {
        std::mem::take(&mut self.sums.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
