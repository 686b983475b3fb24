//! The active subspace beside a linear layer: `y + s B A dropout(x)`.

use std::borrow::Cow;

use gemmkit::{MatMut, MatRef, Parallelism, gemm};

use super::math::scale_kept;
use super::{Cpu, contiguous, dims, map, run, tensor, values, values_mut};
use crate::{DropoutMask, simd};

/// Rows that go through the subspace at once: their inputs stay in the cache.
const BLOCK: usize = 64;

/// Parts into which the rows are cut where a gradient sums over them: a constant, so that the order of the sum does
/// not depend on the number of threads.
const PARTS: usize = 16;

/// `x: [m, d_in]`, `a: [r, d_in]`, `b: [d_out, r]`.
#[derive(Debug, Clone)]
pub(super) struct LowRank {
    x: Cpu,
    a: Cpu,
    b: Cpu,
    scaling: f32,
    rank: usize,
    d_in: usize,
    d_out: usize,
}

/// What the gradient needs besides the inputs.
#[derive(Debug, Clone)]
pub(super) struct LowRankState {
    /// `A dropout(x)`, `[m, r]`.
    hidden: Vec<f32>,
    /// Empty without dropout.
    kept: Vec<u8>,
    /// Of kept elements.
    keep_scale: f32,
}

impl LowRank {
    pub(super) fn new(x: &Cpu, a: &Cpu, b: &Cpu, scaling: f64) -> Self {
        let (a_dims, b_dims) = (dims(a), dims(b));
        Self {
            x: contiguous(x.clone()),
            a: contiguous(a.clone()),
            b: contiguous(b.clone()),
            scaling: scaling as f32,
            rank: a_dims[0],
            d_in: a_dims[1],
            d_out: b_dims[0],
        }
    }

    fn rows(&self) -> usize {
        values(&self.x).len() / self.d_in
    }

    /// The product is added to `y: [.., d_out]`, in place where nothing else holds it.
    pub(super) fn forward(&self, y: Cpu, dropout: Option<DropoutMask>) -> (Cpu, LowRankState) {
        let Self {
            rank, d_in, d_out, ..
        } = *self;
        let rows = self.rows();
        let (x, a, b) = (values(&self.x), values(&self.a), values(&self.b));
        let mut y = contiguous(y);
        let mut hidden = vec![0.0; rows * rank];
        let mut kept = vec![0; if dropout.is_some() { x.len() } else { 0 }];
        let keep_scale = dropout.map_or(1.0, |mask| mask.scale());
        let mut masks = kept.chunks_mut(BLOCK * d_in);
        let jobs = values_mut(&mut y)
            .chunks_mut(BLOCK * d_out)
            .zip(x.chunks(BLOCK * d_in))
            .zip(hidden.chunks_mut(BLOCK * rank))
            .enumerate()
            .map(|(job, ((y, x), hidden))| (job, y, x, hidden, masks.next()));
        run(jobs, x.len(), |(job, y, x, hidden, kept)| {
            let rows = x.len() / d_in;
            let x = match (dropout, kept) {
                (Some(mask), Some(kept)) => {
                    mask.fill(job * BLOCK * d_in, kept);
                    let mut dropped = x.to_vec();
                    simd(|| scale_kept(&mut dropped, kept, keep_scale));
                    Cow::Owned(dropped)
                }
                _ => Cow::Borrowed(x),
            };
            let a_transposed = MatRef::from_col_major(a, d_in, rank);
            product(
                1.0,
                row_major(&x, rows, d_in),
                a_transposed,
                0.0,
                hidden,
                rank,
            );
            let b_transposed = MatRef::from_col_major(b, rank, d_out);
            product(
                self.scaling,
                row_major(hidden, rows, rank),
                b_transposed,
                1.0,
                y,
                d_out,
            );
        });
        let state = LowRankState {
            hidden,
            kept,
            keep_scale,
        };
        (y, state)
    }

    /// Gradients of x, a and b for `grad: [.., d_out]`.
    pub(super) fn backward(
        &self,
        grad: &Cpu,
        state: &LowRankState,
        of_x: bool,
        of_weights: bool,
    ) -> (Option<Cpu>, Option<Cpu>, Option<Cpu>) {
        let Self {
            rank, d_in, d_out, ..
        } = *self;
        let rows = self.rows();
        let grad = values(grad);
        let (x, a, b) = (values(&self.x), values(&self.a), values(&self.b));
        let part = rows.div_ceil(PARTS).next_multiple_of(BLOCK);
        let mut dx = vec![0.0; if of_x { x.len() } else { 0 }];
        let mut dx_parts = dx.chunks_mut(part * d_in);
        let jobs = (0..rows)
            .step_by(part)
            .map(|start| (start, dx_parts.next()));
        let parts = map(jobs, x.len(), |(start, mut dx)| {
            let end = (start + part).min(rows);
            let weights = if of_weights { 1 } else { 0 };
            let mut da = vec![0.0; weights * rank * d_in];
            let mut db = vec![0.0; weights * d_out * rank];
            for first in (start..end).step_by(BLOCK) {
                let block = first..(first + BLOCK).min(end);
                let rows = block.len();
                let within = |width: usize| block.start * width..block.end * width;
                let grad = &grad[within(d_out)];
                let kept = state.kept.get(within(d_in));
                // s B^T g
                let mut inner = vec![0.0; rows * rank];
                let b_matrix = row_major(b, d_out, rank);
                product(
                    self.scaling,
                    row_major(grad, rows, d_out),
                    b_matrix,
                    0.0,
                    &mut inner,
                    rank,
                );
                if of_weights {
                    let hidden = row_major(&state.hidden[within(rank)], rows, rank);
                    let transposed = MatRef::from_col_major(grad, d_out, rows);
                    product(self.scaling, transposed, hidden, 1.0, &mut db, rank);
                    let mut x = x[within(d_in)].to_vec();
                    if let Some(kept) = kept {
                        simd(|| scale_kept(&mut x, kept, state.keep_scale));
                    }
                    let inner = MatRef::from_col_major(&inner, rank, rows);
                    product(1.0, inner, row_major(&x, rows, d_in), 1.0, &mut da, d_in);
                }
                if let Some(dx) = dx.as_deref_mut() {
                    let dx = &mut dx[(block.start - start) * d_in..][..rows * d_in];
                    let inner = row_major(&inner, rows, rank);
                    product(1.0, inner, row_major(a, rank, d_in), 0.0, dx, d_in);
                    if let Some(kept) = kept {
                        simd(|| scale_kept(dx, kept, state.keep_scale));
                    }
                }
            }
            (da, db)
        });
        let dx = of_x.then(|| tensor(dx, dims(&self.x)));
        if !of_weights {
            return (dx, None, None);
        }
        let (da, db): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let da = tensor(add_parts(da, rank * d_in), [rank, d_in]);
        let db = tensor(add_parts(db, d_out * rank), [d_out, rank]);
        (dx, Some(da), Some(db))
    }
}

/// The sum of equally long parts, in their order.
pub(super) fn add_parts(parts: Vec<Vec<f32>>, length: usize) -> Vec<f32> {
    let mut parts = parts.into_iter();
    let mut sum = parts.next().unwrap_or_else(|| vec![0.0; length]);
    for part in parts {
        for (sum, value) in sum.iter_mut().zip(part) {
            *sum += value;
        }
    }
    sum
}

fn row_major(values: &[f32], rows: usize, columns: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major(values, rows, columns)
}

/// `out = alpha a b + beta out` on this thread, `out` row-major with the given width.
fn product(
    alpha: f32,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    beta: f32,
    out: &mut [f32],
    width: usize,
) {
    let rows = out.len() / width;
    let out = MatMut::from_row_major(out, rows, width);
    gemm(alpha, a, b, beta, out, Parallelism::Serial);
}
