//! Dropout, activations and rotations.

use burn::backend::Flex;
use burn::backend::ops::FloatTensorOps;

use super::math::{scale_kept, sigmoid, tanh};
use super::{Cpu, JOB, contiguous, dims, dims4, run, tensor, values, values_mut};
use crate::{Activation, DropoutMask, simd};

/// `x * mask`, and the mask.
pub(super) fn dropout(x: Cpu, mask: DropoutMask) -> (Cpu, Vec<u8>) {
    let mut x = contiguous(x);
    let values = values_mut(&mut x);
    let mut kept = vec![0; values.len()];
    let scale = mask.scale();
    let count = values.len();
    let jobs = values.chunks_mut(JOB).zip(kept.chunks_mut(JOB)).enumerate();
    run(jobs, count, |(job, (x, kept))| {
        mask.fill(job * JOB, kept);
        simd(|| {
            scale_kept(x, kept, scale);
        });
    });
    (x, kept)
}

/// `x + y * mask`, and the mask.
pub(super) fn add_dropout(x: Cpu, y: Cpu, mask: DropoutMask) -> (Cpu, Vec<u8>) {
    let (x, mut y) = (contiguous(x), contiguous(y));
    let (terms, sum) = (values(&x), values_mut(&mut y));
    let mut kept = vec![0; sum.len()];
    let scale = mask.scale();
    let jobs = sum.chunks_mut(JOB).zip(terms.chunks(JOB));
    let jobs = jobs.zip(kept.chunks_mut(JOB)).enumerate();
    run(jobs, terms.len(), |(job, ((y, x), kept))| {
        mask.fill(job * JOB, kept);
        simd(|| {
            for ((y, x), kept) in y.iter_mut().zip(x).zip(&*kept) {
                *y = x + *y * (f32::from(*kept) * scale);
            }
        });
    });
    (y, kept)
}

/// A gradient through a mask.
pub(super) fn masked(grad: Cpu, kept: &[u8], scale: f32) -> Cpu {
    let mut grad = grad;
    let values = values_mut(&mut grad);
    let jobs = values.chunks_mut(JOB).zip(kept.chunks(JOB));
    run(jobs, kept.len(), |(grad, kept)| {
        simd(|| {
            scale_kept(grad, kept, scale);
        });
    });
    grad
}

/// What the gradient of an activation needs.
#[derive(Debug, Clone)]
pub(super) struct ActivationState {
    activation: Activation,
    /// Input and gate; neither for a plain ReLU, whose mask says enough.
    inputs: Option<(Cpu, Option<Cpu>)>,
    /// 1 for elements that pass; empty if all do.
    kept: Vec<u8>,
    scale: f32,
}

/// `f(x) * gate * mask`.
pub(super) fn activate(
    x: Cpu,
    gate: Option<&Cpu>,
    activation: Activation,
    dropout: Option<DropoutMask>,
) -> (Cpu, ActivationState) {
    let scale = dropout.map_or(1.0, |mask| mask.scale());
    let x = contiguous(x);
    let Some(gate) = gate else {
        if activation == Activation::Relu {
            return relu(x, dropout, scale);
        }
        return general(x, None, activation, dropout, scale);
    };
    general(
        x,
        Some(contiguous(gate.clone())),
        activation,
        dropout,
        scale,
    )
}

fn relu(mut x: Cpu, dropout: Option<DropoutMask>, scale: f32) -> (Cpu, ActivationState) {
    let values = values_mut(&mut x);
    let count = values.len();
    let mut kept = vec![1; count];
    let jobs = values.chunks_mut(JOB).zip(kept.chunks_mut(JOB)).enumerate();
    run(jobs, count, |(job, (x, kept))| {
        if let Some(mask) = dropout {
            mask.fill(job * JOB, kept);
        }
        simd(|| {
            for (x, kept) in x.iter_mut().zip(kept) {
                *kept &= u8::from(*x > 0.0);
                // Not a product with the mask alone: that would turn a NaN into a dropped element.
                *x = if *x <= 0.0 {
                    0.0
                } else {
                    *x * (f32::from(*kept) * scale)
                };
            }
        });
    });
    let state = ActivationState {
        activation: Activation::Relu,
        inputs: None,
        kept,
        scale,
    };
    (x, state)
}

fn general(
    x: Cpu,
    gate: Option<Cpu>,
    activation: Activation,
    dropout: Option<DropoutMask>,
    scale: f32,
) -> (Cpu, ActivationState) {
    let input = values(&x);
    let count = input.len();
    let mut y = vec![0.0; count];
    let mut kept = vec![0; if dropout.is_some() { count } else { 0 }];
    let gates = gate.as_ref().map(values);
    let mut masks = kept.chunks_mut(JOB);
    let jobs = y
        .chunks_mut(JOB)
        .zip(input.chunks(JOB))
        .enumerate()
        .map(|(job, (y, x))| (job, y, x, masks.next()));
    run(jobs, count, |(job, y, x, kept)| {
        simd(|| {
            match activation {
                Activation::Relu => each(y, x, |x| x.max(0.0)),
                Activation::GeluTanh => each(y, x, |x| gelu(x).0),
                Activation::Silu => each(y, x, |x| silu(x).0),
            }
            if let Some(gates) = gates {
                for (y, gate) in y.iter_mut().zip(&gates[job * JOB..]) {
                    *y *= gate;
                }
            }
        });
        if let (Some(kept), Some(mask)) = (kept, dropout) {
            mask.fill(job * JOB, kept);
            simd(|| {
                scale_kept(y, kept, scale);
            });
        }
    });
    let y = tensor(y, dims(&x));
    let state = ActivationState {
        activation,
        inputs: Some((x, gate)),
        kept,
        scale,
    };
    (y, state)
}

impl ActivationState {
    /// Gradients of input and gate.
    pub(super) fn backward(&self, grad: &Cpu) -> (Cpu, Option<Cpu>) {
        let shape = dims(grad);
        let Some((x, gate)) = &self.inputs else {
            return (masked(grad.clone(), &self.kept, self.scale), None);
        };
        let (grad, x, gates) = (values(grad), values(x), gate.as_ref().map(values));
        let mut of_x = vec![0.0; x.len()];
        let mut of_gate = vec![0.0; gates.map_or(0, <[f32]>::len)];
        let mut gate_jobs = of_gate.chunks_mut(JOB);
        let jobs = of_x
            .chunks_mut(JOB)
            .zip(grad.chunks(JOB).zip(x.chunks(JOB)))
            .enumerate()
            .map(|(job, (of_x, (grad, x)))| (job * JOB, of_x, grad, x, gate_jobs.next()));
        run(jobs, x.len(), |(start, of_x, grad, x, of_gate)| {
            let kept = self.kept.get(start..).unwrap_or_default();
            simd(|| {
                // Through dropout first.
                of_x.copy_from_slice(grad);
                scale_kept(of_x, kept, self.scale);
                let gate = gates.map(|gates| &gates[start..start + x.len()]);
                match self.activation {
                    Activation::Relu => chain(of_x, of_gate, x, gate, |x| {
                        if x > 0.0 { (x, 1.0) } else { (0.0, 0.0) }
                    }),
                    Activation::GeluTanh => chain(of_x, of_gate, x, gate, gelu),
                    Activation::Silu => chain(of_x, of_gate, x, gate, silu),
                }
            });
        });
        let of_gate = gates.map(|_| tensor(of_gate, shape.clone()));
        (tensor(of_x, shape), of_gate)
    }
}

#[inline(always)]
fn each(y: &mut [f32], x: &[f32], f: impl Fn(f32) -> f32) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = f(*x);
    }
}

/// The chain rule through `f(x) * gate`; `f` returns its value and its derivative, `of_x` holds the gradient of
/// the product and receives that of x.
#[inline(always)]
fn chain(
    of_x: &mut [f32],
    of_gate: Option<&mut [f32]>,
    x: &[f32],
    gate: Option<&[f32]>,
    f: impl Fn(f32) -> (f32, f32),
) {
    if let (Some(gate), Some(of_gate)) = (gate, of_gate) {
        let gates = gate.iter().zip(of_gate);
        for ((of_x, x), (gate, of_gate)) in of_x.iter_mut().zip(x).zip(gates) {
            let (value, slope) = f(*x);
            *of_gate = *of_x * value;
            *of_x *= gate * slope;
        }
    } else {
        for (of_x, x) in of_x.iter_mut().zip(x) {
            *of_x *= f(*x).1;
        }
    }
}

/// Value and derivative.
#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    const ROOT: f32 = 0.797_884_6;
    const CUBE: f32 = 0.044_715;
    let t = tanh(ROOT * (x + CUBE * x * x * x));
    let slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * ROOT * (1.0 + 3.0 * CUBE * x * x);
    (0.5 * x * (1.0 + t), slope)
}

/// Value and derivative.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let s = sigmoid(x);
    (x * s, s * (1.0 + x * (1.0 - s)))
}

/// Rotates `(x_i, x_{i + d/2})` by the angles, times `direction`. The result is laid out as `[rows, positions,
/// heads, d]`.
pub(super) fn rotate(x: &Cpu, cos: &Cpu, sin: &Cpu, direction: f32) -> Cpu {
    let [rows, heads, positions, d] = dims4(x);
    let x = contiguous(Flex::float_swap_dims(x.clone(), 1, 2));
    // Angles may be the same for all positions.
    let angles = |x: &Cpu| {
        let shape = [rows, 1, positions, d / 2];
        contiguous(Flex::float_expand(x.clone(), shape.into()))
    };
    let (cos, sin) = (angles(cos), angles(sin));
    let (x, cos, sin) = (values(&x), values(&cos), values(&sin));
    let half = d / 2;
    let mut y = vec![0.0; x.len()];
    // One job: some positions with all their heads.
    let block = (JOB / (heads * d)).max(1);
    let jobs = y
        .chunks_mut(block * heads * d)
        .zip(x.chunks(block * heads * d))
        .zip(cos.chunks(block * half).zip(sin.chunks(block * half)));
    run(jobs, x.len(), |((y, x), (cos, sin))| {
        simd(|| {
            let positions = y.chunks_exact_mut(heads * d).zip(x.chunks_exact(heads * d));
            let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
            for ((y, x), (cos, sin)) in positions.zip(angles) {
                for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                    let ((y_first, y_second), (first, second)) =
                        (y.split_at_mut(half), x.split_at(half));
                    let pairs = first.iter().zip(second).zip(cos.iter().zip(sin));
                    let out = y_first.iter_mut().zip(y_second);
                    for (((a, b), (cos, sin)), (y_a, y_b)) in pairs.zip(out) {
                        let sin = sin * direction;
                        *y_a = a * cos - b * sin;
                        *y_b = b * cos + a * sin;
                    }
                }
            }
        });
    });
    Flex::float_swap_dims(tensor(y, [rows, positions, heads, d]), 1, 2)
}
