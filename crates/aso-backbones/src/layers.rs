//! Pieces that every backbone is made of.

use aso_kernels::{constant_linear, is_fused, mixed_linear, row_major};
use aso_lora::ForwardContext;
use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

/// Root-mean-square norm (Zhang & Sennrich 2019), `y = weight * x / sqrt(mean(x^2) + epsilon)`: no mean, no
/// bias. T5's and LLaMA's.
#[derive(Module, Debug)]
pub(crate) struct RmsNorm {
    /// `[d_model]`.
    pub(crate) weight: Param<Tensor<1>>,
    #[module(skip)]
    pub(crate) epsilon: f64,
    /// Name of the weight in the checkpoint.
    #[module(skip)]
    pub(crate) name: String,
}

impl RmsNorm {
    /// `x: [.., d_model]`, same shape out.
    pub(crate) fn forward<const D: usize>(
        &self,
        x: Tensor<D>,
        context: &ForwardContext,
    ) -> Tensor<D> {
        aso_kernels::rms_norm(x, context.value(&self.weight), self.epsilon)
    }
}

/// Keys and values, each `[rows, heads, keys, d_head]`.
#[derive(Debug, Clone)]
pub(crate) struct KeyValue {
    pub(crate) key: Tensor<4>,
    pub(crate) value: Tensor<4>,
}

/// Keys and values that grow by some positions a step, with room for further ones: what is there is not copied again.
#[derive(Debug)]
pub(crate) struct KeyValueCache {
    key: Positions,
    value: Positions,
}

/// A buffer that grows.
#[derive(Debug)]
struct Positions {
    /// `[rows, capacity, heads, d_head]`, the layout in which linear layers write. `None` only while it is
    /// written: nothing else must hold it then, or it would be copied.
    buffer: Option<Tensor<4>>,
    length: usize,
}

/// Positions for which a cache that is full makes room.
const ROOM: usize = 32;

impl KeyValue {
    /// Keeps the given rows.
    pub(crate) fn select(&self, rows: &[usize]) -> Self {
        let select = |x: &Tensor<4>| {
            let by_position = x.clone().swap_dims(1, 2);
            select_rows(by_position, rows).swap_dims(1, 2)
        };
        Self {
            key: select(&self.key),
            value: select(&self.value),
        }
    }
}

impl KeyValueCache {
    pub(crate) fn new(first: KeyValue) -> Self {
        Self {
            key: Positions::new(first.key),
            value: Positions::new(first.value),
        }
    }

    /// Appends positions. Returns all of them: to be dropped before the next call.
    pub(crate) fn append(&mut self, next: KeyValue) -> KeyValue {
        KeyValue {
            key: self.key.append(next.key),
            value: self.value.append(next.value),
        }
    }

    /// Keeps the given rows.
    pub(crate) fn keep(&mut self, rows: &[usize]) {
        for positions in [&mut self.key, &mut self.value] {
            let buffer = positions.buffer.take();
            positions.buffer = buffer.map(|buffer| select_rows(buffer, rows));
        }
    }
}

impl Positions {
    fn new(x: Tensor<4>) -> Self {
        Self {
            length: x.dims()[2],
            buffer: Some(x.swap_dims(1, 2)),
        }
    }

    fn append(&mut self, next: Tensor<4>) -> Tensor<4> {
        let next = next.swap_dims(1, 2);
        let [rows, new, heads, d_head] = next.dims();
        let length = self.length + new;
        let buffer = match self.buffer.take() {
            Some(buffer) if length <= buffer.dims()[1] => {
                buffer.slice_assign([0..rows, self.length..length, 0..heads, 0..d_head], next)
            }
            full => {
                let room = Tensor::zeros([rows, ROOM, heads, d_head], &next.device());
                let full = full.map(|full| full.narrow(1, 0, self.length));
                let parts = full.into_iter().chain([next, room]);
                Tensor::cat(parts.collect(), 1)
            }
        };
        self.length = length;
        self.buffer = Some(buffer.clone());
        buffer.narrow(1, 0, length).swap_dims(1, 2)
    }
}

/// The given rows of `x`.
pub(crate) fn select_rows<const D: usize>(x: Tensor<D>, rows: &[usize]) -> Tensor<D> {
    let mut shape = x.dims();
    let index: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
    let device = x.device().without_autodiff();
    let index = Tensor::<1, Int>::from_ints(index.as_slice(), &device);
    // Two dimensions: whole rows are copied at once.
    let width = shape[1..].iter().product::<usize>();
    let kept = x.reshape([shape[0], width]).select(0, index);
    shape[0] = rows.len();
    kept.reshape(shape)
}

/// Looks up ids, `[rows * length]` row-major, in an embedding `[vocabulary, d_model]` of any type; f32
/// `[rows, length, d_model]` out.
pub(crate) fn embed(
    embedding: &Param<Tensor<2>>,
    ids: &[i64],
    rows: usize,
    context: &ForwardContext,
) -> Tensor<3> {
    let embedding = context.value(embedding);
    let device = embedding.device().without_autodiff();
    let [_, width] = embedding.dims();
    let index = Tensor::<1, Int>::from_data(TensorData::new(ids.to_vec(), [ids.len()]), &device);
    embedding
        .select(0, index)
        .cast(DType::F32)
        .reshape([rows, ids.len() / rows, width])
}

/// Logits: `x: [.., d_model]` times the transpose of `head: [vocabulary, d_model]`, of which a row-major copy may be
/// at hand.
pub(crate) fn linear_head<const D: usize>(
    x: Tensor<D>,
    head: Tensor<2>,
    transposed: Option<&Tensor<2>>,
) -> Tensor<D> {
    if head.is_require_grad() || !(is_fused(&x) && is_fused(&head)) {
        return mixed_linear(x, head.transpose(), None);
    }
    let weight = transposed.cloned();
    let weight = weight.unwrap_or_else(|| head.clone().transpose());
    constant_linear(x, weight, head)
}

/// The copy for [`linear_head`]; none where no kernel would use it.
pub(crate) fn transposed_head(head: &Param<Tensor<2>>) -> Option<Tensor<2>> {
    let head = head.val().without_autodiff();
    is_fused(&head).then(|| row_major(head.transpose()))
}

/// `[rows, ..] -> [rows * times, ..]`, copies of a row next to one another.
pub(crate) fn repeat_rows<const D: usize>(x: Tensor<D>, times: usize) -> Tensor<D> {
    if times == 1 {
        return x;
    }
    let rows = x.dims()[0] as i64;
    let index: Vec<i64> = (0..rows)
        .flat_map(|row| std::iter::repeat_n(row, times))
        .collect();
    let device = x.device().without_autodiff();
    x.select(0, Tensor::<1, Int>::from_ints(index.as_slice(), &device))
}

/// Row b's position `positions[b]` of `x: [rows, length, width]`, as `[rows, 1, width]`.
pub(crate) fn pick_position(x: Tensor<3>, positions: &[i64]) -> Tensor<3> {
    let [rows, length, width] = x.dims();
    let index: Vec<i64> = positions
        .iter()
        .enumerate()
        .map(|(row, at)| (row * length) as i64 + at)
        .collect();
    let device = x.device().without_autodiff();
    let index = Tensor::<1, Int>::from_ints(index.as_slice(), &device);
    x.reshape([rows * length, width])
        .select(0, index)
        .reshape([rows, 1, width])
}

/// The first `keep` columns of a row-major `[rows, width]` array.
pub(crate) fn leading_columns(values: &[i64], width: usize, keep: usize) -> Vec<i64> {
    values
        .chunks(width)
        .flat_map(|row| &row[..keep])
        .copied()
        .collect()
}

/// Probability of the target of each row under logits `[rows, variants, vocabulary]`: `[rows, variants]`.
pub(crate) fn target_probability(logits: Tensor<3>, targets: &[i64]) -> Tensor<2> {
    let [rows, variants, vocabulary] = logits.dims();
    let targets: Vec<i64> = targets
        .iter()
        .flat_map(|target| std::iter::repeat_n(*target, variants))
        .collect();
    let logits = logits.reshape([rows * variants, vocabulary]);
    let losses = aso_kernels::cross_entropy(logits, &targets);
    losses.neg().exp().reshape([rows, variants])
}

/// The most likely token of each row under logits `[rows, 1, vocabulary]`.
pub(crate) fn most_likely(logits: Tensor<3>) -> Vec<i64> {
    logits.argmax(2).into_data().iter::<i64>().collect()
}

/// An additive mask of the given shape, row-major: 0 where `visible` says so, else the lowest finite number.
///
/// Finite, so that a row that is masked everywhere gives a uniform distribution instead of NaN.
pub(crate) fn additive_mask(
    visible: impl Iterator<Item = bool>,
    shape: [usize; 4],
    device: &Device,
) -> Tensor<4> {
    let values: Vec<f32> = visible
        .map(|visible| if visible { 0.0 } else { f32::MIN })
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}
