//! The same formulas in plain tensor operations: for devices and types without fused kernels, and the oracle of
//! their tests. Arguments, shapes and panics are those of the functions of the same name at the crate's root.

use burn::tensor::activation::{gelu_approximate, log_softmax, relu, silu, softmax};
use burn::tensor::module::linear;
use burn::tensor::{Int, Tensor, TensorData};

use crate::{Activation, DropoutMask};

/// [`rms_norm`](crate::rms_norm).
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let rms = (x.clone().square().mean_dim(D - 1) + epsilon).sqrt();
    x / rms * weight.unsqueeze()
}

/// [`attention`](crate::attention).
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    bias: Tensor<4>,
    scale: f64,
    mask: Option<DropoutMask>,
) -> Tensor<4> {
    let [rows, heads, queries, d] = query.dims();
    let [_, kv_heads, keys, _] = key.dims();
    // The queries that share keys in one matrix, so that keys and values are never repeated.
    let group = heads / kv_heads * queries;
    let query = if scale == 1.0 {
        query
    } else {
        query.mul_scalar(scale)
    };
    let scores = query
        .reshape([rows, kv_heads, group, d])
        .matmul(key.transpose())
        .reshape([rows, heads, queries, keys]);
    let weights = dropout(softmax(scores + bias, 3), mask);
    weights
        .reshape([rows, kv_heads, group, keys])
        .matmul(value)
        .reshape([rows, heads, queries, d])
}

/// [`rotate_halves`](crate::rotate_halves).
pub fn rotate_halves(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let half = x.dims()[3] / 2;
    let (first, second) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let rotated = first.clone() * cos.clone() - second.clone() * sin.clone();
    let other = second * cos + first * sin;
    Tensor::cat(vec![rotated, other], 3)
}

/// [`constant_linear`](crate::constant_linear).
pub fn constant_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    _transposed: Tensor<2>,
) -> Tensor<D> {
    linear(x, weight, None)
}

/// [`add_low_rank`](crate::add_low_rank).
pub fn add_low_rank<const D: usize>(
    y: Tensor<D>,
    x: Tensor<D>,
    a: Tensor<2>,
    b: Tensor<2>,
    scaling: f64,
    mask: Option<DropoutMask>,
) -> Tensor<D> {
    let hidden = linear(dropout(x, mask), a.transpose(), None);
    y + linear(hidden.mul_scalar(scaling), b.transpose(), None)
}

/// [`activate`](crate::activate).
pub fn activate<const D: usize>(
    x: Tensor<D>,
    activation: Activation,
    mask: Option<DropoutMask>,
) -> Tensor<D> {
    dropout(apply(x, activation), mask)
}

/// [`activate_gated`](crate::activate_gated).
pub fn activate_gated<const D: usize>(
    x: Tensor<D>,
    gate: Tensor<D>,
    activation: Activation,
    mask: Option<DropoutMask>,
) -> Tensor<D> {
    dropout(apply(x, activation) * gate, mask)
}

fn apply<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    match activation {
        Activation::Relu => relu(x),
        Activation::GeluTanh => gelu_approximate(x),
        Activation::Silu => silu(x),
    }
}

/// [`dropout`](crate::dropout).
pub fn dropout<const D: usize>(x: Tensor<D>, mask: Option<DropoutMask>) -> Tensor<D> {
    match mask {
        Some(mask) => {
            let mask = mask.tensor_for(&x);
            x * mask
        }
        None => x,
    }
}

/// [`add_dropout`](crate::add_dropout).
pub fn add_dropout<const D: usize>(
    x: Tensor<D>,
    y: Tensor<D>,
    mask: Option<DropoutMask>,
) -> Tensor<D> {
    x + dropout(y, mask)
}

/// [`cross_entropy`](crate::cross_entropy).
pub fn cross_entropy(logits: Tensor<2>, targets: &[i64]) -> Tensor<1> {
    let device = logits.device().without_autodiff();
    let index = Tensor::<1, Int>::from_ints(targets, &device).reshape([targets.len(), 1]);
    let losses = log_softmax(logits, 1).gather(1, index).neg();
    losses.reshape([targets.len()])
}

/// [`absolute_products`](crate::absolute_products).
pub fn absolute_products(
    previous: Tensor<2>,
    active: Tensor<2>,
    weights: Option<Vec<f32>>,
) -> Tensor<1> {
    let device = previous.device().without_autodiff();
    let rows = previous.dims()[0];
    let products = previous.matmul(active.transpose()).abs();
    let terms = match weights {
        Some(weights) => products * Tensor::from_data(TensorData::new(weights, [rows, 1]), &device),
        None => products,
    };
    // The last dimension first: the order of summation stays fixed however large the tensor.
    terms.sum_dim(1).sum()
}

/// [`frobenius_norm`](crate::frobenius_norm).
pub fn frobenius_norm(x: Tensor<2>) -> Tensor<1> {
    let squares = x.square().sum_dim(1).sum_dim(0).reshape([1]);
    let zero = squares.clone().equal_scalar(0.0);
    // Where the square is 0 the root is taken of the constant 1 and then replaced by 0: neither branch lets an
    // infinite derivative meet a zero.
    squares
        .mask_fill(zero.clone(), 1.0)
        .sqrt()
        .mask_fill(zero, 0.0)
}
