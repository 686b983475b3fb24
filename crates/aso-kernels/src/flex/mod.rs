//! Kernels for Burn's `flex` backend: the forward pass of each operation and, on the autodiff backend, its gradient.
//!
//! Every kernel cuts its work into jobs whose bounds depend on the shapes alone and sums partial results in the
//! order of the jobs, so that results do not depend on the number of threads.

mod attention;
mod cross_entropy;
mod linear;
mod low_rank;
mod math;
mod norm;
mod penalty;
mod pointwise;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, TensorMetadata, backend_extension};
use burn::tensor::TensorData;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::{Activation, DropoutMask};
use attention::{AttentionInputs, AttentionState, Wanted};
use low_rank::LowRank;
use pointwise::ActivationState;

/// A tensor of the CPU backend.
type Cpu = FloatTensor<Flex>;

/// The operations that have kernels; [the crate](crate) documents them.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait KernelOps: Backend {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64)
    -> FloatTensor<Self>;

    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        scale: f64,
        dropout: Option<DropoutMask>,
    ) -> FloatTensor<Self>;

    fn rotate_halves(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    fn constant_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        transposed: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    fn add_low_rank(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scaling: f64,
        dropout: Option<DropoutMask>,
    ) -> FloatTensor<Self>;

    fn activate(
        x: FloatTensor<Self>,
        activation: Activation,
        dropout: Option<DropoutMask>,
    ) -> FloatTensor<Self>;

    fn activate_gated(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        activation: Activation,
        dropout: Option<DropoutMask>,
    ) -> FloatTensor<Self>;

    fn dropout(x: FloatTensor<Self>, mask: DropoutMask) -> FloatTensor<Self>;

    fn add_dropout(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        mask: DropoutMask,
    ) -> FloatTensor<Self>;

    fn cross_entropy(logits: FloatTensor<Self>, targets: Vec<i64>) -> FloatTensor<Self>;

    fn absolute_products(
        previous: FloatTensor<Self>,
        active: FloatTensor<Self>,
        weights: Vec<f32>,
    ) -> FloatTensor<Self>;

    fn frobenius_norm(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl KernelOps for Flex {
    fn rms_norm(x: Cpu, weight: Cpu, epsilon: f64) -> Cpu {
        norm::forward(&x, &weight, epsilon).0
    }

    fn attention(
        query: Cpu,
        key: Cpu,
        value: Cpu,
        bias: Cpu,
        scale: f64,
        dropout: Option<DropoutMask>,
    ) -> Cpu {
        AttentionInputs::new(query, key, value, bias, scale)
            .forward(dropout)
            .0
    }

    fn rotate_halves(x: Cpu, cos: Cpu, sin: Cpu) -> Cpu {
        pointwise::rotate(&x, &cos, &sin, 1.0)
    }

    fn constant_linear(x: Cpu, weight: Cpu, _transposed: Cpu) -> Cpu {
        linear::product(x, &weight)
    }

    fn add_low_rank(
        y: Cpu,
        x: Cpu,
        a: Cpu,
        b: Cpu,
        scaling: f64,
        dropout: Option<DropoutMask>,
    ) -> Cpu {
        LowRank::new(&x, &a, &b, scaling).forward(y, dropout).0
    }

    fn activate(x: Cpu, activation: Activation, dropout: Option<DropoutMask>) -> Cpu {
        pointwise::activate(x, None, activation, dropout).0
    }

    fn activate_gated(
        x: Cpu,
        gate: Cpu,
        activation: Activation,
        dropout: Option<DropoutMask>,
    ) -> Cpu {
        pointwise::activate(x, Some(&gate), activation, dropout).0
    }

    fn dropout(x: Cpu, mask: DropoutMask) -> Cpu {
        pointwise::dropout(x, mask).0
    }

    fn add_dropout(x: Cpu, y: Cpu, mask: DropoutMask) -> Cpu {
        pointwise::add_dropout(x, y, mask).0
    }

    fn cross_entropy(logits: Cpu, targets: Vec<i64>) -> Cpu {
        cross_entropy::forward(&logits, &targets).0
    }

    fn absolute_products(previous: Cpu, active: Cpu, weights: Vec<f32>) -> Cpu {
        penalty::absolute_products(&previous, &active, &weights).0
    }

    fn frobenius_norm(x: Cpu) -> Cpu {
        penalty::frobenius_norm(&x)
    }
}

/// Declares the backward step of an operation: its state, and the gradients of its parents from that of its output.
macro_rules! backward {
    ($name:ident<$parents:literal>($state:ty) = |$grad:ident, $kept:ident, $tracked:ident| $body:expr) => {
        #[derive(Debug)]
        struct $name;

        impl Backward<Flex, $parents> for $name {
            type State = $state;

            fn backward(
                self,
                ops: Ops<Self::State, $parents>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let $grad = contiguous(grads.consume::<Flex>(&ops.node));
                let $kept = ops.state;
                let $tracked = ops.parents.each_ref().map(Option::is_some);
                let found: [Option<Cpu>; $parents] = $body;
                for (parent, gradient) in ops.parents.into_iter().zip(found) {
                    if let (Some(parent), Some(gradient)) = (parent, gradient) {
                        grads.register::<Flex>(parent.id, gradient);
                    }
                }
            }
        }
    };
}

backward!(RmsNormBackward<2>((Cpu, Cpu, Vec<f32>)) = |grad, kept, tracked| {
    let (x, weight, inverse) = kept;
    norm::backward(&grad, &x, &weight, &inverse, tracked)
});

backward!(AttentionBackward<4>((AttentionInputs, AttentionState)) = |grad, kept, tracked| {
    let (inputs, state) = kept;
    let [query, key, value, bias] = tracked;
    inputs.backward(&grad, &state, Wanted { query, key, value, bias })
});

backward!(RotateBackward<3>((Cpu, Cpu)) = |grad, kept, _tracked| {
    let (cos, sin) = kept;
    [Some(pointwise::rotate(&grad, &cos, &sin, -1.0)), None, None]
});

backward!(ConstantLinearBackward<1>(Cpu) = |grad, transposed, _tracked| {
    [Some(linear::product(grad, &transposed))]
});

backward!(AddLowRankBackward<4>((LowRank, low_rank::LowRankState)) = |grad, kept, tracked| {
    let (inputs, state) = kept;
    let [_, x, a, b] = tracked;
    let (x, a, b) = inputs.backward(&grad, &state, x, a || b);
    [Some(grad), x, a, b]
});

backward!(ActivateBackward<1>(ActivationState) = |grad, kept, _tracked| {
    [Some(kept.backward(&grad).0)]
});

backward!(ActivateGatedBackward<2>(ActivationState) = |grad, kept, _tracked| {
    let (x, gate) = kept.backward(&grad);
    [Some(x), gate]
});

backward!(DropoutBackward<1>((Vec<u8>, f32)) = |grad, kept, _tracked| {
    [Some(pointwise::masked(grad, &kept.0, kept.1))]
});

backward!(AddDropoutBackward<2>((Vec<u8>, f32)) = |grad, kept, tracked| {
    let y = tracked[1].then(|| pointwise::masked(grad.clone(), &kept.0, kept.1));
    [Some(grad), y]
});

backward!(CrossEntropyBackward<1>((Cpu, Vec<i64>, Vec<f32>)) = |grad, kept, _tracked| {
    let (logits, targets, normalisers) = kept;
    [Some(cross_entropy::backward(&grad, logits, &targets, &normalisers))]
});

backward!(AbsoluteProductsBackward<1>((Cpu, Vec<f32>, Vec<f32>)) = |grad, kept, _tracked| {
    let (previous, products, weights) = kept;
    [Some(penalty::absolute_products_backward(&grad, &previous, &products, &weights))]
});

backward!(FrobeniusNormBackward<1>((Cpu, Cpu)) = |grad, kept, _tracked| {
    let (x, norm) = kept;
    [Some(penalty::frobenius_norm_backward(&grad, &x, &norm))]
});

impl<C: CheckpointStrategy> KernelOps for Autodiff<Flex, C> {
    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node()];
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        let (y, inverse) = norm::forward(&x, &weight, epsilon);
        record::<C, _, _>(RmsNormBackward, nodes, (x, weight, inverse), y)
    }

    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        scale: f64,
        dropout: Option<DropoutMask>,
    ) -> FloatTensor<Self> {
        let nodes = [query.node(), key.node(), value.node(), bias.node()];
        let inputs = AttentionInputs::new(
            query.into_primitive(),
            key.into_primitive(),
            value.into_primitive(),
            bias.into_primitive(),
            scale,
        );
        let (y, state) = inputs.forward(dropout);
        record::<C, _, _>(AttentionBackward, nodes, (inputs, state), y)
    }

    fn rotate_halves(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), cos.node(), sin.node()];
        let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
        let y = pointwise::rotate(&x.into_primitive(), &cos, &sin, 1.0);
        record::<C, _, _>(RotateBackward, nodes, (cos, sin), y)
    }

    fn constant_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        transposed: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node()];
        let y = linear::product(x.into_primitive(), &weight.into_primitive());
        record::<C, _, _>(
            ConstantLinearBackward,
            nodes,
            transposed.into_primitive(),
            y,
        )
    }

    fn add_low_rank(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scaling: f64,
        dropout: Option<DropoutMask>,
    ) -> FloatTensor<Self> {
        let nodes = [y.node(), x.node(), a.node(), b.node()];
        let (x, a, b) = (x.into_primitive(), a.into_primitive(), b.into_primitive());
        let inputs = LowRank::new(&x, &a, &b, scaling);
        let (y, state) = inputs.forward(y.into_primitive(), dropout);
        record::<C, _, _>(AddLowRankBackward, nodes, (inputs, state), y)
    }

    fn activate(
        x: FloatTensor<Self>,
        activation: Activation,
        dropout: Option<DropoutMask>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node()];
        let (y, state) = pointwise::activate(x.into_primitive(), None, activation, dropout);
        record::<C, _, _>(ActivateBackward, nodes, state, y)
    }

    fn activate_gated(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        activation: Activation,
        dropout: Option<DropoutMask>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gate.node()];
        let gate = gate.into_primitive();
        let (y, state) = pointwise::activate(x.into_primitive(), Some(&gate), activation, dropout);
        record::<C, _, _>(ActivateGatedBackward, nodes, state, y)
    }

    fn dropout(x: FloatTensor<Self>, mask: DropoutMask) -> FloatTensor<Self> {
        let nodes = [x.node()];
        let (y, kept) = pointwise::dropout(x.into_primitive(), mask);
        record::<C, _, _>(DropoutBackward, nodes, (kept, mask.scale()), y)
    }

    fn add_dropout(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        mask: DropoutMask,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), y.node()];
        let (sum, kept) = pointwise::add_dropout(x.into_primitive(), y.into_primitive(), mask);
        record::<C, _, _>(AddDropoutBackward, nodes, (kept, mask.scale()), sum)
    }

    fn cross_entropy(logits: FloatTensor<Self>, targets: Vec<i64>) -> FloatTensor<Self> {
        let nodes = [logits.node()];
        let logits = contiguous(logits.into_primitive());
        let (sum, normalisers) = cross_entropy::forward(&logits, &targets);
        record::<C, _, _>(
            CrossEntropyBackward,
            nodes,
            (logits, targets, normalisers),
            sum,
        )
    }

    fn absolute_products(
        previous: FloatTensor<Self>,
        active: FloatTensor<Self>,
        weights: Vec<f32>,
    ) -> FloatTensor<Self> {
        let nodes = [active.node()];
        let previous = previous.into_primitive();
        let (sum, products) = penalty::absolute_products(&previous, active.primitive(), &weights);
        record::<C, _, _>(
            AbsoluteProductsBackward,
            nodes,
            (previous, products, weights),
            sum,
        )
    }

    fn frobenius_norm(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node()];
        let x = x.into_primitive();
        let norm = penalty::frobenius_norm(&x);
        record::<C, _, _>(FrobeniusNormBackward, nodes, (x, norm.clone()), norm)
    }
}

/// Puts an operation with one result on the graph, if any of its inputs is.
fn record<C, T, const N: usize>(
    step: T,
    nodes: [NodeGuard; N],
    state: T::State,
    output: Cpu,
) -> FloatTensor<Autodiff<Flex, C>>
where
    C: CheckpointStrategy,
    T: Backward<Flex, N>,
{
    match step.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(state, output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

/// Elements below which starting other threads costs more than it saves.
const WORTH_THREADS: usize = 1 << 15;

/// Elements of one job of a pointwise kernel: small enough for the first two levels of cache.
const JOB: usize = 1 << 13;

/// Runs independent jobs that touch `elements` in all, on every thread if that is worth it.
fn run<J: Send>(jobs: impl Iterator<Item = J>, elements: usize, work: impl Fn(J) + Send + Sync) {
    if elements < WORTH_THREADS {
        jobs.for_each(work);
    } else {
        jobs.collect::<Vec<_>>().into_par_iter().for_each(work);
    }
}

/// [`run`] with a result for each job, in their order.
fn map<J: Send, R: Send>(
    jobs: impl Iterator<Item = J>,
    elements: usize,
    work: impl Fn(J) -> R + Send + Sync,
) -> Vec<R> {
    if elements < WORTH_THREADS {
        jobs.map(work).collect()
    } else {
        jobs.collect::<Vec<_>>().into_par_iter().map(work).collect()
    }
}

/// A tensor from its row-major values.
fn tensor(values: Vec<f32>, shape: impl Into<Vec<usize>>) -> Cpu {
    Cpu::from_data(TensorData::new(values, shape.into()))
}

/// Row-major and alone in its buffer, so that [`values`] and [`values_mut`] see the tensor and nothing else.
fn contiguous(x: Cpu) -> Cpu {
    let whole = x.is_contiguous()
        && x.layout().start_offset() == 0
        && x.storage::<f32>().len() == x.layout().num_elements();
    if whole { x } else { x.to_contiguous() }
}

/// A layout without steps backwards: the tensor itself, or a copy.
fn forwards(x: Cpu) -> Cpu {
    let backwards = x.layout().strides().iter().any(|stride| *stride < 0);
    if backwards { x.to_contiguous() } else { x }
}

/// Values of a [`contiguous`] tensor.
fn values(x: &Cpu) -> &[f32] {
    x.storage()
}

/// Values to write, in place where no other tensor shares them.
fn values_mut(x: &mut Cpu) -> &mut [f32] {
    x.storage_mut()
}

/// Sizes of the dimensions.
fn dims(x: &Cpu) -> Vec<usize> {
    x.shape().to_vec()
}

/// Sizes of four dimensions.
fn dims4(x: &Cpu) -> [usize; 4] {
    let sizes = dims(x);
    [sizes[0], sizes[1], sizes[2], sizes[3]]
}
