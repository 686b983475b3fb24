//! Attention without the matrix of weights.
//!
//! The forward pass keeps the normalisers of each query's scores; the gradient recomputes the weights of some queries at
//! a time from them (Dao et al. 2022).

use burn::backend::Flex;
use burn::backend::ops::FloatTensorOps;
use gemmkit::{MatMut, MatRef, Parallelism, gemm};

use super::math::{dot, exp, exp_sum, maximum, scale_kept};
use super::{Cpu, dims, dims4, forwards, map, run, tensor};
use crate::{DropoutMask, simd};

/// Queries whose weights are held at once.
const TILE: usize = 64;

/// The operands, as views of any layout.
#[derive(Debug, Clone)]
pub(super) struct AttentionInputs {
    query: Cpu,
    key: Cpu,
    value: Cpu,
    bias: Cpu,
    scale: f32,
}

/// What the gradient needs besides the inputs.
#[derive(Debug, Clone)]
pub(super) struct AttentionState {
    /// Largest score of each query and `1 / sum exp(score - largest)`, `[rows, heads, queries]`: their
    /// logarithm in one number would be rounded away in a row that is masked everywhere.
    normalisers: Vec<(f32, f32)>,
    /// 1 for weights that dropout keeps, `[rows, heads, queries, keys]`; empty without dropout.
    kept: Vec<u8>,
    /// Of kept weights.
    keep_scale: f32,
}

/// The gradients that are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) query: bool,
    pub(super) key: bool,
    pub(super) value: bool,
    pub(super) bias: bool,
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    rows: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    d: usize,
}

impl Sizes {
    /// Query heads that share a key head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Multiplications of one product.
    fn work(&self) -> usize {
        self.rows * self.heads * self.queries * self.keys * self.d
    }
}

impl AttentionInputs {
    pub(super) fn new(query: Cpu, key: Cpu, value: Cpu, bias: Cpu, scale: f64) -> Self {
        // Rows of the bias are read as slices.
        let dense = bias.layout().strides().last() == Some(&1) || dims(&bias)[3] == 1;
        Self {
            query: forwards(query),
            key: forwards(key),
            value: forwards(value),
            bias: forwards(if dense { bias } else { bias.to_contiguous() }),
            scale: scale as f32,
        }
    }

    fn sizes(&self) -> Sizes {
        let ([rows, heads, queries, d], [_, kv_heads, keys, _]) =
            (dims4(&self.query), dims4(&self.key));
        Sizes {
            rows,
            heads,
            kv_heads,
            queries,
            keys,
            d,
        }
    }

    /// `dropout(softmax(scale q k^T + bias)) v`.
    pub(super) fn forward(&self, dropout: Option<DropoutMask>) -> (Cpu, AttentionState) {
        let sizes = self.sizes();
        let Sizes {
            rows,
            heads,
            queries,
            keys,
            d,
            ..
        } = sizes;
        let pairs = rows * heads;
        let mut mixed = vec![0.0; pairs * queries * d];
        let mut normalisers = vec![(0.0, 0.0); pairs * queries];
        let mut kept = vec![
            0;
            if dropout.is_some() {
                pairs * queries * keys
            } else {
                0
            }
        ];
        let keep_scale = dropout.map_or(1.0, |mask| mask.scale());
        let mut masks = kept.chunks_mut(queries * keys);
        let jobs = mixed
            .chunks_mut(queries * d)
            .zip(normalisers.chunks_mut(queries))
            .enumerate()
            .map(|(pair, (mixed, normalisers))| (pair, mixed, normalisers, masks.next()));
        run(
            jobs,
            sizes.work(),
            |(pair, mixed, normalisers, mut kept)| {
                let (row, head) = (pair / heads, pair % heads);
                let kv_head = head / sizes.group();
                if let (Some(mask), Some(kept)) = (dropout, kept.as_deref_mut()) {
                    mask.fill(pair * queries * keys, kept);
                }
                let (query, key) = (
                    matrix(&self.query, row, head),
                    matrix(&self.key, row, kv_head),
                );
                let value = matrix(&self.value, row, kv_head);
                let mut weights = vec![0.0; TILE.min(queries) * keys];
                for first in (0..queries).step_by(TILE) {
                    let count = TILE.min(queries - first);
                    let weights = &mut weights[..count * keys];
                    product(
                        self.scale,
                        query.part(first, count),
                        key.transposed(),
                        0.0,
                        weights,
                    );
                    let kept = kept
                        .as_deref()
                        .map(|kept| &kept[first * keys..][..count * keys]);
                    simd(|| {
                        for (at, weights) in weights.chunks_exact_mut(keys).enumerate() {
                            add(weights, self.bias_row(row, head, first + at));
                            let highest = maximum(weights);
                            let sum = exp_sum(weights, highest);
                            normalisers[first + at] = (highest, 1.0 / sum);
                            let scale = keep_scale / sum;
                            match kept {
                                Some(kept) => {
                                    scale_kept(weights, &kept[at * keys..][..keys], scale)
                                }
                                None => weights.iter_mut().for_each(|weight| *weight *= scale),
                            }
                        }
                    });
                    let mixed = &mut mixed[first * d..][..count * d];
                    product(1.0, dense(weights, count, keys), value, 0.0, mixed);
                }
            },
        );
        let state = AttentionState {
            normalisers,
            kept,
            keep_scale,
        };
        (by_position(mixed, [rows, heads, queries, d]), state)
    }

    /// Gradients of query, key, value and bias.
    pub(super) fn backward(
        &self,
        grad: &Cpu,
        state: &AttentionState,
        wanted: Wanted,
    ) -> [Option<Cpu>; 4] {
        let sizes = self.sizes();
        let Sizes {
            rows,
            heads,
            kv_heads,
            queries,
            keys,
            d,
        } = sizes;
        let group = sizes.group();
        // One job a key head: the query heads that share it add to its gradients in turn.
        let parts = map(0..rows * kv_heads, sizes.work(), |pair| {
            let (row, kv_head) = (pair / kv_heads, pair % kv_heads);
            let (key, value) = (
                matrix(&self.key, row, kv_head),
                matrix(&self.value, row, kv_head),
            );
            let mut of = Part {
                query: vec![0.0; if wanted.query { group * queries * d } else { 0 }],
                key: vec![0.0; if wanted.key { keys * d } else { 0 }],
                value: vec![0.0; if wanted.value { keys * d } else { 0 }],
                bias: vec![
                    0.0;
                    if wanted.bias {
                        group * queries * keys
                    } else {
                        0
                    }
                ],
            };
            let tile = TILE.min(queries) * keys;
            let (mut weights, mut slopes) = (vec![0.0; tile], vec![0.0; tile]);
            for shared in 0..group {
                let head = kv_head * group + shared;
                let (query, grad) = (matrix(&self.query, row, head), matrix(grad, row, head));
                for first in (0..queries).step_by(TILE) {
                    let count = TILE.min(queries - first);
                    let start = (row * heads + head) * queries + first;
                    let normalisers = &state.normalisers[start..start + count];
                    let kept = state.kept.get(start * keys..(start + count) * keys);
                    let (weights, slopes) =
                        (&mut weights[..count * keys], &mut slopes[..count * keys]);
                    let (query, grad) = (query.part(first, count), grad.part(first, count));
                    product(self.scale, query, key.transposed(), 0.0, weights);
                    product(1.0, grad, value.transposed(), 0.0, slopes);
                    simd(|| {
                        let tile = weights
                            .chunks_exact_mut(keys)
                            .zip(slopes.chunks_exact_mut(keys));
                        for (at, (weights, slopes)) in tile.enumerate() {
                            add(weights, self.bias_row(row, head, first + at));
                            let (highest, scale) = normalisers[at];
                            for weight in weights.iter_mut() {
                                *weight = exp(*weight - highest) * scale;
                            }
                            if let Some(kept) = kept {
                                scale_kept(slopes, &kept[at * keys..][..keys], state.keep_scale);
                            }
                            let mean = dot(weights, slopes);
                            for (slope, weight) in slopes.iter_mut().zip(&*weights) {
                                *slope = weight * (*slope - mean);
                            }
                            if let (true, Some(kept)) = (wanted.value, kept) {
                                scale_kept(weights, &kept[at * keys..][..keys], state.keep_scale);
                            }
                        }
                    });
                    let (weights, slopes) =
                        (dense(weights, count, keys), dense(slopes, count, keys));
                    if wanted.value {
                        product(1.0, weights.transposed(), grad, 1.0, &mut of.value);
                    }
                    if wanted.query {
                        let of = &mut of.query[(shared * queries + first) * d..][..count * d];
                        product(self.scale, slopes, key, 0.0, of);
                    }
                    if wanted.key {
                        product(self.scale, slopes.transposed(), query, 1.0, &mut of.key);
                    }
                    if wanted.bias {
                        let start = (shared * queries + first) * keys;
                        of.bias[start..start + count * keys].copy_from_slice(slopes.data);
                    }
                }
            }
            of
        });
        let collect = |wanted: bool, of: fn(&Part) -> &[f32], shape: [usize; 4]| {
            wanted.then(|| (parts.iter().map(of).collect::<Vec<_>>().concat(), shape))
        };
        let by_position = |(values, shape)| by_position(values, shape);
        let (of_query, of_key) = ([rows, heads, queries, d], [rows, kv_heads, keys, d]);
        let bias = collect(wanted.bias, |part| &part.bias, [rows, heads, queries, keys]);
        [
            collect(wanted.query, |part| &part.query, of_query).map(by_position),
            collect(wanted.key, |part| &part.key, of_key).map(by_position),
            collect(wanted.value, |part| &part.value, of_key).map(by_position),
            bias.map(|(values, shape)| {
                // Summed over the dimensions along which the bias was repeated.
                let sizes = dims(&self.bias);
                let repeated = (0..4).filter(|dim| sizes[*dim] == 1 && shape[*dim] != 1);
                repeated.fold(tensor(values, shape), |bias, dim| {
                    Flex::float_sum_dim(bias, dim)
                })
            }),
        ]
    }

    /// The bias of one query: one value for each key.
    fn bias_row(&self, row: usize, head: usize, query: usize) -> &[f32] {
        let layout = self.bias.layout();
        let strides = layout.strides();
        let sizes = dims4(&self.bias);
        let index = [row, head, query];
        let offset = (0..3)
            .filter(|dim| sizes[*dim] > 1)
            .map(|dim| index[dim] * strides[dim] as usize)
            .sum::<usize>();
        &self.bias.storage()[layout.start_offset() + offset..][..sizes[3]]
    }
}

/// Gradients of one key head and of the query heads that share it.
struct Part {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    bias: Vec<f32>,
}

/// A matrix inside a buffer.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    strides: [isize; 2],
}

impl<'a> Matrix<'a> {
    fn transposed(self) -> Self {
        let [row, column] = self.strides;
        Self {
            rows: self.columns,
            columns: self.rows,
            strides: [column, row],
            ..self
        }
    }

    /// `count` rows from `first` on.
    fn part(self, first: usize, count: usize) -> Self {
        Self {
            data: &self.data[first * self.strides[0] as usize..],
            rows: count,
            ..self
        }
    }

    fn view(self) -> MatRef<'a, f32> {
        let [row, column] = self.strides;
        MatRef::new(self.data, self.rows, self.columns, row, column)
    }
}

/// The matrix of one row and head of a tensor of any layout.
fn matrix(x: &Cpu, row: usize, head: usize) -> Matrix<'_> {
    let [_, _, rows, columns] = dims4(x);
    let layout = x.layout();
    let strides = layout.strides();
    let start =
        layout.start_offset() as isize + row as isize * strides[0] + head as isize * strides[1];
    Matrix {
        data: &x.storage()[start as usize..],
        rows,
        columns,
        strides: [strides[2], strides[3]],
    }
}

fn dense(data: &[f32], rows: usize, columns: usize) -> Matrix<'_> {
    Matrix {
        data,
        rows,
        columns,
        strides: [columns as isize, 1],
    }
}

/// `out = alpha a b + beta out` on this thread, `out` row-major.
fn product(alpha: f32, a: Matrix<'_>, b: Matrix<'_>, beta: f32, out: &mut [f32]) {
    let out = MatMut::from_row_major(out, a.rows, b.columns);
    gemm(alpha, a.view(), b.view(), beta, out, Parallelism::Serial);
}

#[inline(always)]
fn add(x: &mut [f32], other: &[f32]) {
    for (x, other) in x.iter_mut().zip(other) {
        *x += other;
    }
}

/// `[rows, heads, positions, d]` in the layout `[rows, positions, heads, d]`, in which linear layers read and write.
fn by_position(values: Vec<f32>, [rows, heads, positions, d]: [usize; 4]) -> Cpu {
    if heads == 1 || positions == 1 {
        return tensor(values, [rows, heads, positions, d]);
    }
    let mut moved = vec![0.0; values.len()];
    let jobs = moved
        .chunks_mut(positions * heads * d)
        .zip(values.chunks(positions * heads * d));
    run(jobs, values.len(), |(moved, values)| {
        for (head, values) in values.chunks_exact(positions * d).enumerate() {
            let places = moved
                .chunks_exact_mut(heads * d)
                .map(|place| &mut place[head * d..][..d]);
            for (place, values) in places.zip(values.chunks_exact(d)) {
                place.copy_from_slice(values);
            }
        }
    });
    let moved = tensor(moved, [rows, positions, heads, d]);
    Flex::float_swap_dims(moved, 1, 2)
}
