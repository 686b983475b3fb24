//! Sums over subspaces: small, but one for every adapted layer and step.

use gemmkit::{MatMut, MatRef, Parallelism, gemm};

use super::math::{dot, sum3};
use super::{Cpu, contiguous, dims, tensor, values};
use crate::simd;

/// `sum_ij w_i |P_ij|` with `P = previous active^T`, and P.
pub(super) fn absolute_products(previous: &Cpu, active: &Cpu, weights: &[f32]) -> (Cpu, Vec<f32>) {
    let (rows, rank, width) = (dims(previous)[0], dims(active)[0], dims(active)[1]);
    let (previous, active) = (contiguous(previous.clone()), contiguous(active.clone()));
    let mut products = vec![0.0; rows * rank];
    gemm(
        1.0,
        MatRef::from_row_major(values(&previous), rows, width),
        MatRef::from_col_major(values(&active), width, rank),
        0.0,
        MatMut::from_row_major(&mut products, rows, rank),
        Parallelism::Serial,
    );
    let sum = products
        .chunks_exact(rank)
        .enumerate()
        .map(|(row, products)| {
            let sum = simd(|| sum3(products, products, products, |p, _, _| p.abs()));
            f64::from(sum) * weights.get(row).map_or(1.0, |weight| f64::from(*weight))
        });
    (tensor(vec![sum.sum::<f64>() as f32], [1]), products)
}

/// Gradient of `active: [rank, width]`: `S^T previous` with `S_ij = g w_i sign(P_ij)`, 0 where P is 0.
pub(super) fn absolute_products_backward(
    grad: &Cpu,
    previous: &Cpu,
    products: &[f32],
    weights: &[f32],
) -> Cpu {
    let grad = values(grad)[0];
    let (rows, width) = (dims(previous)[0], dims(previous)[1]);
    let rank = products.len() / rows.max(1);
    let previous = contiguous(previous.clone());
    let sign = |p: f32| if p == 0.0 { 0.0 } else { p.signum() };
    let signs: Vec<f32> = products
        .iter()
        .enumerate()
        .map(|(at, p)| sign(*p) * grad * weights.get(at / rank).copied().unwrap_or(1.0))
        .collect();
    let mut of_active = vec![0.0; rank * width];
    gemm(
        1.0,
        MatRef::from_col_major(&signs, rank, rows),
        MatRef::from_row_major(values(&previous), rows, width),
        0.0,
        MatMut::from_row_major(&mut of_active, rank, width),
        Parallelism::Serial,
    );
    tensor(of_active, [rank, width])
}

/// `sqrt(sum x^2)`.
pub(super) fn frobenius_norm(x: &Cpu) -> Cpu {
    let x = contiguous(x.clone());
    let squares = simd(|| dot(values(&x), values(&x)));
    tensor(vec![squares.sqrt()], [1])
}

/// `g x / norm`, and 0 at 0.
pub(super) fn frobenius_norm_backward(grad: &Cpu, x: &Cpu, norm: &Cpu) -> Cpu {
    let (grad, norm) = (values(grad)[0], values(norm)[0]);
    let scale = if norm == 0.0 { 0.0 } else { grad / norm };
    let shape = dims(x);
    let x = contiguous(x.clone());
    tensor(values(&x).iter().map(|x| x * scale).collect(), shape)
}
