//! Cross entropy of rows of logits.

use super::math::{exp, exp_sum, maximum};
use super::{Cpu, contiguous, map, run, tensor, values, values_mut};
use crate::simd;

/// Loss and `log sum exp` of each row.
pub(super) fn forward(logits: &Cpu, targets: &[i64]) -> (Cpu, Vec<f32>) {
    let logits = contiguous(logits.clone());
    let logits = values(&logits);
    let classes = logits.len() / targets.len().max(1);
    let rows = logits.chunks_exact(classes.max(1)).zip(targets);
    let losses = map(rows, logits.len(), |(row, target)| {
        let normaliser = simd(|| log_sum_exp(row));
        // The public function has checked that the target is a class.
        (normaliser, normaliser - row[*target as usize])
    });
    let (normalisers, losses): (Vec<_>, Vec<_>) = losses.into_iter().unzip();
    (tensor(losses, [targets.len()]), normalisers)
}

/// `(softmax(logits) - onehot(target)) * grad` row by row, written over the logits where nothing else holds them.
pub(super) fn backward(grad: &Cpu, logits: Cpu, targets: &[i64], normalisers: &[f32]) -> Cpu {
    let grads = values(grad);
    let mut logits = contiguous(logits);
    let all = values_mut(&mut logits);
    let classes = all.len() / targets.len().max(1);
    let count = all.len();
    let rows = all
        .chunks_exact_mut(classes.max(1))
        .zip(targets.iter().zip(normalisers).zip(grads));
    run(rows, count, |(row, ((target, normaliser), grad))| {
        simd(|| {
            for logit in row.iter_mut() {
                *logit = exp(*logit - normaliser) * grad;
            }
        });
        row[*target as usize] -= grad;
    });
    logits
}

#[inline(always)]
fn log_sum_exp(row: &[f32]) -> f32 {
    let highest = maximum(row);
    let mut portion = [0.0; 1024];
    let mut sum = 0.0;
    for values in row.chunks(portion.len()) {
        let portion = &mut portion[..values.len()];
        portion.copy_from_slice(values);
        sum += exp_sum(portion, highest);
    }
    highest + sum.ln()
}
