//! Fused operations of transformer training for [Burn](https://burn.dev).
//!
//! Training a language model on a CPU with one tensor operation after another spends more time moving
//! intermediate results than multiplying matrices. Each function here does the work of several operations in one
//! pass over memory, and its gradient is written by hand: intermediate results are recomputed from what has to be
//! kept anyway.
//!
//! | function | computes |
//! |---|---|
//! | [`rms_norm`] | `weight * x / sqrt(mean(x^2) + epsilon)` |
//! | [`attention`] | `dropout(softmax(scale q k^T + bias)) v`, shared key heads included |
//! | [`rotate_halves`] | rotary embedding, Hugging Face's pairing |
//! | [`add_low_rank`] | `y + s B A dropout(x)` |
//! | [`constant_linear`] | `x W` for a constant W, whose transpose serves the gradient |
//! | [`activate`], [`activate_gated`] | `dropout(f(x))`, `dropout(f(x) * gate)` |
//! | [`dropout`], [`add_dropout`] | `dropout(x)`, `x + dropout(y)` |
//! | [`cross_entropy`] | `-log softmax(logits_i)[target_i]` |
//! | [`absolute_products`] | `sum_ij w_i abs((P A^T)_ij)` for constant rows P |
//! | [`frobenius_norm`] | `sqrt(sum x^2)` |
//!
//! With the feature `flex`, tensors of type f32 on Burn's CPU backend take the fused path. Every other device, type
//! or build runs [`plain`]: the same formula in plain tensor operations, which is also what the tests compare with.
//! Both draw the same dropout masks ([`DropoutMask`]) and are differentiable in every tensor that is not said to be a constant;
//! the gradient of a constant is not defined. Shapes that do not fit panic on either path.
//!
//! Linear layers further need [`mixed_linear`], for weights that no kernel takes, and [`row_major`].

mod dropout;
#[cfg(feature = "flex")]
mod flex;
pub mod plain;

pub use dropout::{DropoutMask, DropoutStream, site};

use burn::tensor::module::linear;
use burn::tensor::{Device, Tensor};

#[cfg(feature = "flex")]
use {crate::flex::KernelOps, burn::backend::Dispatch, burn::tensor::DType};

/// The function between the two matrices of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, Hugging Face's `gelu_new`.
    GeluTanh,
    /// `x / (1 + exp(-x))`.
    Silu,
}

/// Runs code compiled for the best instruction set of this machine. What it calls must be inlined into it.
#[inline(always)]
pub(crate) fn simd<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(feature = "flex")]
    return pulp::Arch::new().dispatch(work);
    #[cfg(not(feature = "flex"))]
    work()
}

/// Whether a tensor of shape `small` has in each dimension as many entries as one of shape `large`, or one for all.
fn spreads(small: [usize; 4], large: [usize; 4]) -> bool {
    let mut pairs = small.into_iter().zip(large);
    pairs.all(|(small, large)| small == large || small == 1)
}

/// Whether tensors like this one take the fused path: f32, on the CPU, and not empty.
pub fn is_fused<const D: usize>(x: &Tensor<D>) -> bool {
    #[cfg(feature = "flex")]
    return x.dtype() == DType::F32
        && x.device().without_autodiff() == Device::flex()
        && x.shape().num_elements() > 0;
    #[cfg(not(feature = "flex"))]
    {
        let _ = x;
        false
    }
}

/// Runs two pieces of work and returns what both gave.
///
/// On the CPU with kernels they run at the same time: threads that one leaves idle, between its parallel operations and
/// in small ones, work on the other. Elsewhere, where a device has a queue of its own, one runs after the other. The
/// results are the same.
pub fn join<A: Send, B: Send>(
    device: &Device,
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B + Send,
) -> (A, B) {
    #[cfg(feature = "flex")]
    if device.clone().without_autodiff() == Device::flex() {
        return rayon::join(first, second);
    }
    #[cfg(not(feature = "flex"))]
    let _ = device;
    (first(), second())
}

/// Root-mean-square norm (Zhang & Sennrich 2019), `weight * x / sqrt(mean(x^2) + epsilon)` over the last
/// dimension.
///
/// # Shapes
/// - x: `[.., d]`; weight: `[d]`
/// - output: as x
///
/// # Panics
/// Panics if the shapes do not fit.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    assert_eq!(weight.dims(), [x.dims()[D - 1]], "one weight a column of x");
    #[cfg(feature = "flex")]
    if is_fused(&x) && is_fused(&weight) {
        let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
        return Tensor::from_dispatch(Dispatch::rms_norm(x, weight, epsilon));
    }
    plain::rms_norm(x, weight, epsilon)
}

/// Attention, `dropout(softmax(scale q k^T + bias)) v`.
///
/// Where there are fewer key heads, `heads / kv_heads` consecutive query heads share one; they are never repeated.
/// The weights `[rows, heads, queries, keys]` are never kept: the gradient recomputes them.
///
/// # Shapes
/// - query: `[rows, heads, queries, d]`
/// - key, value: `[rows, kv_heads, keys, d]`
/// - bias: each dimension that of `[rows, heads, queries, keys]` or 1, but the last, which is `keys`
/// - output: `[rows, heads, queries, d]`, laid out as `[rows, queries, heads, d]`, so that joining the heads is
///   free; the inputs may be laid out so as well
///
/// # Panics
/// Panics if the shapes do not fit.
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    bias: Tensor<4>,
    scale: f64,
    dropout: Option<DropoutMask>,
) -> Tensor<4> {
    let [rows, heads, queries, d] = query.dims();
    let [_, kv_heads, keys, _] = key.dims();
    assert_eq!(key.dims(), [rows, kv_heads, keys, d], "shape of the keys");
    assert_eq!(value.dims(), key.dims(), "shape of the values");
    assert!(
        kv_heads > 0 && heads.is_multiple_of(kv_heads),
        "{kv_heads} key heads for {heads} query heads"
    );
    assert!(
        bias.dims()[3] == keys && spreads(bias.dims(), [rows, heads, queries, keys]),
        "a bias of shape {:?} for weights of shape {:?}",
        bias.dims(),
        [rows, heads, queries, keys]
    );
    #[cfg(feature = "flex")]
    if [&query, &key, &value, &bias].into_iter().all(is_fused) {
        return Tensor::from_dispatch(Dispatch::attention(
            query.into_dispatch(),
            key.into_dispatch(),
            value.into_dispatch(),
            bias.into_dispatch(),
            scale,
            dropout,
        ));
    }
    plain::attention(query, key, value, bias, scale, dropout)
}

/// Rotary position embedding (Su et al. 2021): rotates the pairs `(x_i, x_{i + d/2})` by the given angles.
///
/// # Shapes
/// - x: `[rows, heads, positions, d]`
/// - cos, sin: `[rows, 1, positions, d / 2]`, or one position for all; constants
/// - output: as x
///
/// # Panics
/// Panics if the shapes do not fit, or d is odd.
pub fn rotate_halves(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let [rows, _, positions, d] = x.dims();
    assert_eq!(cos.dims(), sin.dims(), "shapes of cos and sin");
    assert!(
        2 * cos.dims()[3] == d && spreads(cos.dims(), [rows, 1, positions, d / 2]),
        "angles of shape {:?} for x of shape {:?}",
        cos.dims(),
        x.dims()
    );
    #[cfg(feature = "flex")]
    if [&x, &cos, &sin].into_iter().all(is_fused) {
        return Tensor::from_dispatch(Dispatch::rotate_halves(
            x.into_dispatch(),
            cos.into_dispatch(),
            sin.into_dispatch(),
        ));
    }
    plain::rotate_halves(x, cos, sin)
}

/// A linear layer whose weight is a constant, `x W`.
///
/// The gradient multiplies with the transpose of W. A view of W itself will do, but costs up to twice as much as a
/// copy in the order that the product wants, the more the fewer rows x has.
///
/// # Shapes
/// - x: `[.., d_in]`; weight: `[d_in, d_out]`; transposed: `[d_out, d_in]`, the same numbers
/// - output: `[.., d_out]`
///
/// # Panics
/// Panics if the shapes do not fit.
pub fn constant_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    transposed: Tensor<2>,
) -> Tensor<D> {
    let [d_in, d_out] = weight.dims();
    assert_eq!(x.dims()[D - 1], d_in, "columns of x");
    assert_eq!(transposed.dims(), [d_out, d_in], "shape of the transpose");
    #[cfg(feature = "flex")]
    if is_fused(&x) && is_fused(&weight) && is_fused(&transposed) {
        return Tensor::from_dispatch(Dispatch::constant_linear(
            x.into_dispatch(),
            weight.into_dispatch(),
            transposed.into_dispatch(),
        ));
    }
    plain::constant_linear(x, weight, transposed)
}

/// The same numbers in row-major order, as [`constant_linear`] wants its transpose.
pub fn row_major(x: Tensor<2>) -> Tensor<2> {
    let device = x.device();
    Tensor::from_data(x.into_data(), &device)
}

/// `x W + bias`. Where the weight is narrower than `x` (half precision), the product runs in the weight's
/// type and everything else in that of `x`, as in PyTorch's autocast: neither the forward pass nor its
/// graph ever holds a wide copy of a frozen weight.
///
/// # Shapes
/// - x: `[.., d_in]`; weight: `[d_in, d_out]`; bias: `[d_out]`
/// - output: `[.., d_out]`, in the type of `x`
///
/// # Panics
/// Panics if the shapes do not fit.
pub fn mixed_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let (wide, narrow) = (x.dtype(), weight.dtype());
    if wide == narrow {
        return linear(x, weight, bias);
    }
    let y = linear(x.cast(narrow), weight, None).cast(wide);
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

/// Adds a low-rank product to the output of a linear layer, `y + scaling * B A dropout(x)`.
///
/// # Shapes
/// - y: `[.., d_out]`; x: `[.., d_in]`
/// - a: `[r, d_in]`; b: `[d_out, r]`
/// - output: as y
///
/// # Panics
/// Panics if the shapes do not fit.
pub fn add_low_rank<const D: usize>(
    y: Tensor<D>,
    x: Tensor<D>,
    a: Tensor<2>,
    b: Tensor<2>,
    scaling: f64,
    dropout: Option<DropoutMask>,
) -> Tensor<D> {
    let [rank, d_in] = a.dims();
    let (of_x, of_y) = (x.dims(), y.dims());
    assert_eq!(of_x[..D - 1], of_y[..D - 1], "rows of x and y");
    assert_eq!(of_x[D - 1], d_in, "columns of x");
    assert_eq!(b.dims(), [of_y[D - 1], rank], "shape of b");
    #[cfg(feature = "flex")]
    if is_fused(&y) && is_fused(&x) && is_fused(&a) && is_fused(&b) {
        return Tensor::from_dispatch(Dispatch::add_low_rank(
            y.into_dispatch(),
            x.into_dispatch(),
            a.into_dispatch(),
            b.into_dispatch(),
            scaling,
            dropout,
        ));
    }
    plain::add_low_rank(y, x, a, b, scaling, dropout)
}

/// `dropout(f(x))`, shape as x.
pub fn activate<const D: usize>(
    x: Tensor<D>,
    activation: Activation,
    dropout: Option<DropoutMask>,
) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if is_fused(&x) {
        let x = x.into_dispatch();
        return Tensor::from_dispatch(Dispatch::activate(x, activation, dropout));
    }
    plain::activate(x, activation, dropout)
}

/// `dropout(f(x) * gate)`, shapes equal.
///
/// # Panics
/// Panics if they are not.
pub fn activate_gated<const D: usize>(
    x: Tensor<D>,
    gate: Tensor<D>,
    activation: Activation,
    dropout: Option<DropoutMask>,
) -> Tensor<D> {
    assert_eq!(x.dims(), gate.dims(), "shapes of x and the gate");
    #[cfg(feature = "flex")]
    if is_fused(&x) && is_fused(&gate) {
        let (x, gate) = (x.into_dispatch(), gate.into_dispatch());
        return Tensor::from_dispatch(Dispatch::activate_gated(x, gate, activation, dropout));
    }
    plain::activate_gated(x, gate, activation, dropout)
}

/// `x * mask / (1 - p)`, or `x` without a mask.
pub fn dropout<const D: usize>(x: Tensor<D>, mask: Option<DropoutMask>) -> Tensor<D> {
    let Some(mask) = mask else { return x };
    #[cfg(feature = "flex")]
    if is_fused(&x) {
        return Tensor::from_dispatch(Dispatch::dropout(x.into_dispatch(), mask));
    }
    plain::dropout(x, Some(mask))
}

/// `x + dropout(y)`, shapes equal.
///
/// # Panics
/// Panics if they are not.
pub fn add_dropout<const D: usize>(
    x: Tensor<D>,
    y: Tensor<D>,
    mask: Option<DropoutMask>,
) -> Tensor<D> {
    assert_eq!(x.dims(), y.dims(), "shapes of x and y");
    let Some(mask) = mask else { return x + y };
    #[cfg(feature = "flex")]
    if is_fused(&x) && is_fused(&y) {
        let (x, y) = (x.into_dispatch(), y.into_dispatch());
        return Tensor::from_dispatch(Dispatch::add_dropout(x, y, mask));
    }
    plain::add_dropout(x, y, Some(mask))
}

/// Cross entropy of each row, `-log softmax(logits_i)[target_i]`.
///
/// # Shapes
/// - logits: `[n, classes]`; targets: n classes, on the host
/// - output: `[n]`
///
/// # Panics
/// Panics if there is not one target a row, or a target is not a class.
pub fn cross_entropy(logits: Tensor<2>, targets: &[i64]) -> Tensor<1> {
    let [rows, classes] = logits.dims();
    assert_eq!(targets.len(), rows, "one target for each of {rows} rows");
    assert!(
        targets
            .iter()
            .all(|target| usize::try_from(*target).is_ok_and(|target| target < classes)),
        "targets below {classes}"
    );
    #[cfg(feature = "flex")]
    if is_fused(&logits) {
        let logits = logits.into_dispatch();
        return Tensor::from_dispatch(Dispatch::cross_entropy(logits, targets.to_vec()));
    }
    plain::cross_entropy(logits, targets)
}

/// `sum_ij w_i |P_ij|` with `P = previous active^T`: how far rows are from orthogonal to constant ones.
///
/// # Shapes
/// - previous: `[R, d]`, constants; active: `[r, d]`
/// - weights: one for each row of `previous`, on the host; 1 where absent
/// - output: `[1]`
///
/// # Panics
/// Panics if there are weights, but not R of them, or if the widths differ.
pub fn absolute_products(
    previous: Tensor<2>,
    active: Tensor<2>,
    weights: Option<Vec<f32>>,
) -> Tensor<1> {
    assert_eq!(previous.dims()[1], active.dims()[1], "widths of the rows");
    if let Some(weights) = &weights {
        assert_eq!(weights.len(), previous.dims()[0], "one weight a row");
    }
    #[cfg(feature = "flex")]
    if is_fused(&previous) && is_fused(&active) {
        return Tensor::from_dispatch(Dispatch::absolute_products(
            previous.into_dispatch(),
            active.into_dispatch(),
            weights.unwrap_or_default(),
        ));
    }
    plain::absolute_products(previous, active, weights)
}

/// `sqrt(sum x^2)`, shape `[1]`; its gradient at 0 is 0.
pub fn frobenius_norm(x: Tensor<2>) -> Tensor<1> {
    #[cfg(feature = "flex")]
    if is_fused(&x) {
        return Tensor::from_dispatch(Dispatch::frobenius_norm(x.into_dispatch()));
    }
    plain::frobenius_norm(x)
}
