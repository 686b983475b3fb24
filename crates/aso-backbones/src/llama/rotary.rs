//! Rotary position embedding (Su et al. 2021), Hugging Face's pairing.

use burn::tensor::{Device, Tensor, TensorData};

/// Cosines and sines of one batch's angles, each `[rows, 1, positions, d_head / 2]`.
#[derive(Debug, Clone)]
pub(super) struct Rotary {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rotary {
    /// Angles `position * frequency` for `positions: [rows, length]`, row-major.
    pub(super) fn new(
        positions: &[i64],
        rows: usize,
        frequencies: &[f32],
        device: &Device,
    ) -> Self {
        let shape = [rows, 1, positions.len() / rows, frequencies.len()];
        let table = |function: fn(f32) -> f32| {
            let values: Vec<f32> = positions
                .iter()
                .flat_map(|at| frequencies.iter().map(move |f| function(*at as f32 * f)))
                .collect();
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        Self {
            cos: table(f32::cos),
            sin: table(f32::sin),
        }
    }

    /// Rotates pairs `(x_i, x_{i + d/2})` of `x: [rows, heads, positions, d_head]`.
    pub(super) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        aso_kernels::rotate_halves(x, self.cos.clone(), self.sin.clone())
    }
}
