//! Products with a weight, `x W`.
//!
//! Burn's own product zeroes its output and copies it once, on one thread, and multiplies at half the speed.

use gemmkit::{MatMut, MatRef, Parallelism, gemm};

use super::{Cpu, contiguous, dims, forwards, run, tensor, values};

/// Rows of one job: enough for packing the weight to cost little, few enough to share out.
const ROWS: usize = 128;

/// Columns of one job where all rows fit into one.
const COLUMNS: usize = 512;

/// Multiplications that take about as long as touching one element of another kernel.
const PER_ELEMENT: usize = 64;

/// `x: [.., k]` times `weight: [k, n]` of any layout.
pub(super) fn product(x: Cpu, weight: &Cpu) -> Cpu {
    let mut shape = dims(&x);
    let [inner, columns] = [dims(weight)[0], dims(weight)[1]];
    shape.pop();
    shape.push(columns);
    let x = contiguous(x);
    let x = values(&x);
    let rows = shape.iter().product::<usize>() / columns.max(1);
    let mut y = vec![0.0; rows * columns];
    if y.is_empty() || inner == 0 {
        return tensor(y, shape);
    }
    let weight = forwards(weight.clone());
    let weight = Weight::new(&weight);
    let elements = rows * columns * inner / PER_ELEMENT;
    if rows > ROWS || columns < 2 * COLUMNS {
        let jobs = y.chunks_mut(ROWS * columns).zip(x.chunks(ROWS * inner));
        // One job is done here: handing it to another thread would cost more.
        let elements = if rows > ROWS { elements } else { 0 };
        run(jobs, elements, |(y, x)| weight.product(x, 0, columns, y));
    } else {
        let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
        parts.resize_with(columns.div_ceil(COLUMNS), Vec::new);
        for row in y.chunks_mut(columns) {
            for (part, row) in parts.iter_mut().zip(row.chunks_mut(COLUMNS)) {
                part.push(row);
            }
        }
        run(parts.into_iter().enumerate(), elements, |(at, part)| {
            let width = part[0].len();
            let mut own = vec![0.0; rows * width];
            weight.product(x, at * COLUMNS, width, &mut own);
            for (row, own) in part.into_iter().zip(own.chunks(width)) {
                row.copy_from_slice(own);
            }
        });
    }
    tensor(y, shape)
}

/// A matrix of any layout.
struct Weight<'a> {
    data: &'a [f32],
    rows: usize,
    strides: [isize; 2],
}

impl<'a> Weight<'a> {
    fn new(weight: &'a Cpu) -> Self {
        let layout = weight.layout();
        let strides = layout.strides();
        Self {
            data: &weight.storage()[layout.start_offset()..],
            rows: dims(weight)[0],
            strides: [strides[0], strides[1]],
        }
    }

    /// `y = x W` for `columns` columns of W from `first` on, on this thread; x and y row-major.
    fn product(&self, x: &[f32], first: usize, columns: usize, y: &mut [f32]) {
        let rows = x.len() / self.rows;
        let [down, right] = self.strides;
        let part = &self.data[first * right as usize..];
        gemm(
            1.0,
            MatRef::from_row_major(x, rows, self.rows),
            MatRef::new(part, self.rows, columns, down, right),
            0.0,
            MatMut::from_row_major(y, rows, columns),
            Parallelism::Serial,
        );
    }
}
