//! Root-mean-square norm: `y = w x u` with `u = (mean(x^2) + epsilon)^-1/2`.

use super::math::{dot, sum3};
use super::{Cpu, JOB, dims, map, run, tensor, values};
use crate::simd;

/// Output and u of each row.
pub(super) fn forward(x: &Cpu, weight: &Cpu, epsilon: f64) -> (Cpu, Vec<f32>) {
    let shape = dims(x);
    let (x, weight) = (
        super::contiguous(x.clone()),
        super::contiguous(weight.clone()),
    );
    let (x, weight) = (values(&x), values(&weight));
    let width = weight.len();
    let rows = x.len() / width;
    let mut y = vec![0.0; x.len()];
    let mut inverse = vec![0.0; rows];
    let block = rows_of_job(width);
    let jobs = x
        .chunks(block * width)
        .zip(y.chunks_mut(block * width))
        .zip(inverse.chunks_mut(block));
    run(jobs, x.len(), |((x, y), inverse)| {
        simd(|| {
            let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
            for ((x, y), inverse) in rows.zip(inverse) {
                let mean = f64::from(dot(x, x)) / width as f64;
                let u = (1.0 / (mean + epsilon).sqrt()) as f32;
                *inverse = u;
                for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                    *y = x * u * w;
                }
            }
        });
    });
    (tensor(y, shape), inverse)
}

/// `dx = u (g w) - x u^3 mean(g w x)`, and `dw = sum_rows g x u`.
pub(super) fn backward(
    grad: &Cpu,
    x: &Cpu,
    weight: &Cpu,
    inverse: &[f32],
    [of_x, of_weight]: [bool; 2],
) -> [Option<Cpu>; 2] {
    let shape = dims(x);
    let (x, weight) = (
        super::contiguous(x.clone()),
        super::contiguous(weight.clone()),
    );
    let (grad, x, weight) = (values(grad), values(&x), values(&weight));
    let width = weight.len();
    let block = rows_of_job(width);
    let jobs = || {
        let values = grad.chunks(block * width).zip(x.chunks(block * width));
        values.zip(inverse.chunks(block))
    };
    let of_x = of_x.then(|| {
        let mut dx = vec![0.0; x.len()];
        let jobs = jobs().zip(dx.chunks_mut(block * width));
        run(jobs, x.len(), |(((grad, x), inverse), dx)| {
            simd(|| {
                let rows = grad.chunks_exact(width).zip(x.chunks_exact(width));
                let rows = rows.zip(dx.chunks_exact_mut(width)).zip(inverse);
                for (((grad, x), dx), u) in rows {
                    let projection = sum3(grad, x, weight, |g, x, w| g * x * w);
                    let along = u * u * u * projection / width as f32;
                    let row = dx.iter_mut().zip(grad).zip(x).zip(weight);
                    for (((dx, g), x), w) in row {
                        *dx = u * (g * w) - x * along;
                    }
                }
            });
        });
        tensor(dx, shape)
    });
    let of_weight = of_weight.then(|| {
        let parts = map(jobs(), x.len(), |((grad, x), inverse)| {
            let mut sum = vec![0.0f32; width];
            simd(|| {
                let rows = grad.chunks_exact(width).zip(x.chunks_exact(width));
                for ((grad, x), u) in rows.zip(inverse) {
                    for ((sum, g), x) in sum.iter_mut().zip(grad).zip(x) {
                        *sum += g * x * u;
                    }
                }
            });
            sum
        });
        tensor(super::low_rank::add_parts(parts, width), [width])
    });
    [of_x, of_weight]
}

fn rows_of_job(width: usize) -> usize {
    (JOB / width).max(1)
}
