//! Where parameters come from, and how they become tensors.

use aso_lora::{LoraLinear, site};
use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde::{Deserialize, Serialize};

use crate::BackboneError;

/// Element type of stored weights, in a file or in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatDtype {
    /// 32-bit floats.
    #[default]
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl FloatDtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The name in configurations: `f32`, `f16` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

impl From<FloatDtype> for DType {
    fn from(dtype: FloatDtype) -> Self {
        match dtype {
            FloatDtype::F32 => Self::F32,
            FloatDtype::F16 => Self::F16,
            FloatDtype::Bf16 => Self::BF16,
        }
    }
}

/// The order in which a matrix is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As PyTorch stores it, `[d_out, d_in]` for a linear layer.
    AsStored,
    /// Transposed, `[d_in, d_out]`: Burn's linear layers.
    Transposed,
}

/// Parameter values on the host.
#[derive(Debug, Clone, PartialEq)]
pub enum FloatValues {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// IEEE half precision.
    F16(Vec<f16>),
    /// bfloat16.
    Bf16(Vec<bf16>),
}

/// An element of [`FloatValues`].
pub(crate) trait Element: burn::tensor::Element + Copy + Default {
    /// Its type in a safetensors file.
    const STORED: safetensors::Dtype;

    /// From little-endian bytes of its own type.
    fn from_le(bytes: &[u8]) -> Self;

    /// Rounded to nearest.
    fn from_f32(value: f32) -> Self;

    fn wrap(values: Vec<Self>) -> FloatValues;
}

impl Element for f32 {
    const STORED: safetensors::Dtype = safetensors::Dtype::F32;

    fn from_le(b: &[u8]) -> Self {
        Self::from_le_bytes([b[0], b[1], b[2], b[3]])
    }

    fn from_f32(value: f32) -> Self {
        value
    }

    fn wrap(values: Vec<Self>) -> FloatValues {
        FloatValues::F32(values)
    }
}

impl Element for f16 {
    const STORED: safetensors::Dtype = safetensors::Dtype::F16;

    fn from_le(b: &[u8]) -> Self {
        Self::from_le_bytes([b[0], b[1]])
    }

    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn wrap(values: Vec<Self>) -> FloatValues {
        FloatValues::F16(values)
    }
}

impl Element for bf16 {
    const STORED: safetensors::Dtype = safetensors::Dtype::BF16;

    fn from_le(b: &[u8]) -> Self {
        Self::from_le_bytes([b[0], b[1]])
    }

    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn wrap(values: Vec<Self>) -> FloatValues {
        FloatValues::Bf16(values)
    }
}

/// A matrix (or vector) that is filled with consecutive rows and kept in the wanted layout and type, so
/// that no second copy is ever made.
pub(crate) struct Filling<T> {
    values: Vec<T>,
    /// Rows and columns as stored.
    rows: usize,
    columns: usize,
    layout: Layout,
    filled: usize,
}

impl<T: Element> Filling<T> {
    pub(crate) fn new(shape: &[usize], layout: Layout) -> Self {
        let columns = shape.last().copied().unwrap_or(1).max(1);
        let count = shape.iter().product::<usize>();
        Self {
            values: vec![T::default(); count],
            rows: count / columns,
            columns,
            layout,
            filled: 0,
        }
    }

    /// The size of the whole rows that fit into `bytes` bytes of a file of type `dtype`, of one at least.
    pub(crate) fn whole_rows(&self, bytes: usize, dtype: safetensors::Dtype) -> usize {
        let row = self.columns * dtype.bitsize() / 8;
        (bytes / row).max(1) * row
    }

    /// Appends whole rows in a file's encoding; `false` if `dtype` is not floating point.
    pub(crate) fn push(&mut self, dtype: safetensors::Dtype, bytes: &[u8]) -> bool {
        use safetensors::Dtype;
        match dtype {
            dtype if dtype == T::STORED => self.scatter(bytes, dtype.bitsize() / 8, T::from_le),
            Dtype::F32 => self.scatter(bytes, 4, |b| T::from_f32(f32::from_le(b))),
            Dtype::F16 => self.scatter(bytes, 2, |b| T::from_f32(f16::from_le(b).to_f32())),
            Dtype::BF16 => self.scatter(bytes, 2, |b| T::from_f32(bf16::from_le(b).to_f32())),
            _ => return false,
        }
        true
    }

    fn scatter(&mut self, bytes: &[u8], size: usize, decode: impl Fn(&[u8]) -> T) {
        let start = self.filled * self.columns;
        let count = bytes.len() / size;
        self.filled += count / self.columns;
        if self.layout == Layout::AsStored {
            let target = self.values[start..start + count].iter_mut();
            for (value, bytes) in target.zip(bytes.chunks_exact(size)) {
                *value = decode(bytes);
            }
            return;
        }
        // In tiles: a tile's source and target lines both stay in the cache.
        const TILE: usize = 32;
        let (first, rows) = (start / self.columns, count / self.columns);
        for row_tile in (0..rows).step_by(TILE) {
            let row_end = (row_tile + TILE).min(rows);
            for column_tile in (0..self.columns).step_by(TILE) {
                let column_end = (column_tile + TILE).min(self.columns);
                for column in column_tile..column_end {
                    let target = column * self.rows + first;
                    for row in row_tile..row_end {
                        let at = (row * self.columns + column) * size;
                        self.values[target + row] = decode(&bytes[at..at + size]);
                    }
                }
            }
        }
    }

    pub(crate) fn finish(self) -> FloatValues {
        T::wrap(self.values)
    }
}

impl FloatValues {
    /// Values given as f32 in PyTorch's orientation, in the wanted type and layout.
    pub fn new(values: &[f32], shape: &[usize], dtype: FloatDtype, layout: Layout) -> Self {
        fn fill<T: Element>(values: &[f32], shape: &[usize], layout: Layout) -> FloatValues {
            let mut filling = Filling::<T>::new(shape, layout);
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            filling.push(safetensors::Dtype::F32, &bytes);
            filling.finish()
        }
        match dtype {
            FloatDtype::F32 => fill::<f32>(values, shape, layout),
            FloatDtype::F16 => fill::<f16>(values, shape, layout),
            FloatDtype::Bf16 => fill::<bf16>(values, shape, layout),
        }
    }

    fn into_data<const D: usize>(self, shape: [usize; D]) -> (TensorData, DType) {
        match self {
            Self::F32(values) => (TensorData::new(values, shape), DType::F32),
            Self::F16(values) => (TensorData::new(values, shape), DType::F16),
            Self::Bf16(values) => (TensorData::new(values, shape), DType::BF16),
        }
    }
}

/// Where a model's parameters come from: a checkpoint, or an initialisation.
pub trait WeightSource: Sync {
    /// Whether tensors are the same in whatever order they are asked for, so that several threads may ask. An
    /// initialisation that draws from one generator says no.
    fn is_unordered(&self) -> bool;

    /// Whether the source stores `name` (an initialisation stores everything).
    fn contains(&self, name: &str) -> bool;

    /// The tensor `name`, whose shape in PyTorch's orientation is `shape`, in the wanted type and layout.
    ///
    /// # Errors
    /// Names the tensor, the expected and the found shape.
    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
        dtype: FloatDtype,
        layout: Layout,
    ) -> Result<FloatValues, BackboneError>;
}

/// Builds modules from a source, one tensor in memory at a time.
pub(crate) struct Loader<'a> {
    pub(crate) source: &'a dyn WeightSource,
    /// Type of matrices; vectors are few and stay f32.
    pub(crate) dtype: FloatDtype,
    pub(crate) device: &'a Device,
}

impl Loader<'_> {
    /// Builds `count` parts of a model, in parallel where the source allows it: most of the time goes into
    /// fresh memory, which every thread maps for itself.
    pub(crate) fn parts<T: Send>(
        &self,
        count: usize,
        build: impl Fn(usize) -> Result<T, BackboneError> + Sync,
    ) -> Result<Vec<T>, BackboneError> {
        if self.source.is_unordered() {
            let parts: Vec<_> = (0..count).into_par_iter().map(&build).collect();
            // The first error in order, whichever thread was first.
            parts.into_iter().collect()
        } else {
            (0..count).map(build).collect()
        }
    }

    fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        dtype: FloatDtype,
        layout: Layout,
    ) -> Result<Tensor<D>, BackboneError> {
        let values = self.source.tensor(name, &shape, dtype, layout)?;
        let device = self.device.clone().without_autodiff();
        let mut dims = shape;
        if layout == Layout::Transposed {
            dims.reverse();
        }
        let (data, dtype) = values.into_data(dims);
        Ok(Tensor::from_data(data, (&device, dtype)))
    }

    /// A vector, in f32.
    pub(crate) fn vector(
        &self,
        name: &str,
        length: usize,
    ) -> Result<Param<Tensor<1>>, BackboneError> {
        let tensor = self.tensor(name, [length], FloatDtype::F32, Layout::AsStored)?;
        Ok(Param::initialized(ParamId::from(site(name)), tensor))
    }

    /// A matrix as stored, in f32 or the loader's type.
    pub(crate) fn matrix(
        &self,
        name: &str,
        shape: [usize; 2],
        dtype: FloatDtype,
    ) -> Result<Param<Tensor<2>>, BackboneError> {
        let tensor = self.tensor(name, shape, dtype, Layout::AsStored)?;
        Ok(Param::initialized(ParamId::from(site(name)), tensor))
    }

    /// A linear layer; PyTorch's `[d_out, d_in]` becomes a contiguous `[d_in, d_out]`.
    pub(crate) fn linear(
        &self,
        name: &str,
        [d_in, d_out]: [usize; 2],
        bias: bool,
    ) -> Result<LoraLinear, BackboneError> {
        let weight = self.tensor(
            &format!("{name}.weight"),
            [d_out, d_in],
            self.dtype,
            Layout::Transposed,
        )?;
        let bias = if bias {
            let name = format!("{name}.bias");
            Some(self.tensor(&name, [d_out], FloatDtype::F32, Layout::AsStored)?)
        } else {
            None
        };
        Ok(LoraLinear::new(name, weight, bias))
    }
}

/// Checks that values that were given for a tensor are as many as it has.
pub(crate) fn check_given(
    tensor: &str,
    shape: &[usize],
    given: &[f32],
) -> Result<(), BackboneError> {
    if given.len() == shape.iter().product::<usize>() {
        return Ok(());
    }
    Err(BackboneError::Shape {
        origin: "given values".into(),
        tensor: tensor.to_owned(),
        expected: shape.to_vec(),
        found: vec![given.len()],
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Rows pushed in any portions give the transpose, in every type.
        #[test]
        fn filling_transposes(rows in 1usize..70, columns in 1usize..70, portion in 1usize..40) {
            let values: Vec<f32> = (0..rows * columns).map(|i| i as f32 * 0.25 - 7.0).collect();
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let mut filling = Filling::<f32>::new(&[rows, columns], Layout::Transposed);
            for bytes in bytes.chunks(portion * columns * 4) {
                prop_assert!(filling.push(safetensors::Dtype::F32, bytes));
            }
            let FloatValues::F32(found) = filling.finish() else { panic!("f32 was asked for") };
            for row in 0..rows {
                for column in 0..columns {
                    prop_assert_eq!(found[column * rows + row], values[row * columns + column]);
                }
            }
        }
    }

    #[test]
    fn halves_round_and_integers_are_refused() {
        let mut filling = Filling::<bf16>::new(&[2], Layout::AsStored);
        assert!(!filling.push(safetensors::Dtype::I64, &[0; 16]));
        let bytes: Vec<u8> = [1.0f32, 1.003]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        assert!(filling.push(safetensors::Dtype::F32, &bytes));
        let expected = vec![bf16::from_f32(1.0), bf16::from_f32(1.003)];
        assert_eq!(filling.finish(), FloatValues::Bf16(expected));
    }
}
