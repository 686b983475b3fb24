//! A linear layer with a stack of frozen subspaces and one active subspace.

use aso_kernels::{constant_linear, is_fused, mixed_linear, row_major};
use burn::module::{Module, Param, ParamId};
use burn::nn::Linear;
use burn::tensor::module::linear;
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::peft::LoraWeights;
use crate::{AdapterScope, ForwardContext, LoraConfig, site};

/// One trainable low-rank pair, in PEFT's orientation.
///
/// `delta(x) = s * B A x`, `A: [r, d_in]`, `B: [d_out, r]`.
#[derive(Module, Debug)]
pub struct Subspace {
    /// `A`, shape `[r, d_in]`.
    pub a: Param<Tensor<2>>,
    /// `B`, shape `[d_out, r]`.
    pub b: Param<Tensor<2>>,
    /// `s = alpha / r` (or `alpha / sqrt(r)` for a rank-stabilised PEFT adapter).
    #[module(skip)]
    pub scaling: f64,
    /// Dropout probability on the input of this subspace.
    #[module(skip)]
    pub dropout: f64,
}

impl Subspace {
    /// The values of a fresh subspace: `A ~ U(-1/sqrt(d_in), 1/sqrt(d_in))` (Kaiming-uniform with a = sqrt 5,
    /// as in PEFT), `B = 0`.
    ///
    /// `A` is a function of `(seed, task, module)` alone.
    fn fresh(
        config: &LoraConfig,
        [d_in, d_out]: [usize; 2],
        (seed, task, module): (u64, u64, &str),
    ) -> LoraWeights {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(site(module) ^ task.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let bound = 1.0 / (d_in as f32).sqrt();
        let a = (0..config.rank * d_in)
            .map(|_| rng.random_range(-bound..bound))
            .collect();
        LoraWeights {
            a,
            b: vec![0.0; d_out * config.rank],
            rank: config.rank,
            d_in,
            d_out,
            scaling: config.scaling(),
        }
    }

    /// A trainable subspace with the given values.
    fn from_weights(weights: &LoraWeights, dropout: f64, module: &str, device: &Device) -> Self {
        let (a, b) = weights.tensors(device);
        // Ids are functions of the name: an optimizer state saved by one process fits the next.
        let id = |half: &str| ParamId::from(site(&format!("{module}.{half}")));
        Self {
            a: Param::initialized(id("lora_A"), a.autodiff().require_grad()),
            b: Param::initialized(id("lora_B"), b.autodiff().require_grad()),
            scaling: weights.scaling,
            dropout,
        }
    }

    /// Rank r.
    pub fn rank(&self) -> usize {
        self.a.val().dims()[0]
    }

    /// Host copy of the values.
    pub fn to_weights(&self) -> LoraWeights {
        let (a, b) = (
            self.a.val().without_autodiff(),
            self.b.val().without_autodiff(),
        );
        LoraWeights::from_tensors(a, b, self.scaling)
    }

    /// `y + s * B A dropout(x)` for `x: [.., d_in]`, `y: [.., d_out]`.
    fn add_to<const D: usize>(
        &self,
        y: Tensor<D>,
        x: Tensor<D>,
        site: u64,
        context: &ForwardContext,
    ) -> Tensor<D> {
        let (a, b) = (context.value(&self.a), context.value(&self.b));
        let mask = context.mask(self.dropout, site);
        aso_kernels::add_low_rank(y, x, a, b, self.scaling, mask)
    }
}

/// The subspaces of all past tasks of one layer, kept as one wide pair.
///
/// `past(x) = B diag(s) A x` with `A: [R, d_in]`, `B: [d_out, R]`, `R = sum of ranks`, equals
/// `sum_k s_k B_k A_k x`. The rows of `A` are also what the orthogonality penalties compare with.
#[derive(Module, Debug)]
pub struct FrozenStack {
    a: Tensor<2>,
    b: Tensor<2>,
    scale: Tensor<1>,
    #[module(skip)]
    ranks: Vec<usize>,
    #[module(skip)]
    scalings: Vec<f64>,
    #[module(skip)]
    tasks: Vec<usize>,
}

impl FrozenStack {
    fn new(weights: &LoraWeights, task: usize, device: &Device) -> Self {
        let (a, b) = weights.tensors(device);
        Self {
            scale: Tensor::full([weights.rank], weights.scaling, &a.device()),
            a,
            b,
            ranks: vec![weights.rank],
            scalings: vec![weights.scaling],
            tasks: vec![task],
        }
    }

    fn push(&mut self, weights: &LoraWeights, task: usize) {
        let next = Self::new(weights, task, &self.a.device());
        self.a = Tensor::cat(vec![self.a.clone(), next.a], 0);
        self.b = Tensor::cat(vec![self.b.clone(), next.b], 1);
        self.scale = Tensor::cat(vec![self.scale.clone(), next.scale], 0);
        self.ranks.push(weights.rank);
        self.scalings.push(weights.scaling);
        self.tasks.push(task);
    }

    /// Rows of every frozen `A`, oldest first: `[R, d_in]`.
    pub fn a(&self) -> Tensor<2> {
        self.a.clone()
    }

    /// Rank of each subspace, oldest first; their sum is R.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// Task that each subspace belongs to, oldest first, counted from 0. Where adapters reach different layers, some are missing.
    pub fn tasks(&self) -> &[usize] {
        &self.tasks
    }

    /// Host copy of the subspace of task `k`, or `None` if there is none.
    pub fn subspace(&self, k: usize) -> Option<LoraWeights> {
        let (at, start, rank) = self.rows(k)?;
        let a = self.a.clone().narrow(0, start, rank);
        let b = self.b.clone().narrow(1, start, rank);
        Some(LoraWeights::from_tensors(a, b, self.scalings[at]))
    }

    /// Place, first row and rank of the subspace of task `k`.
    fn rows(&self, k: usize) -> Option<(usize, usize, usize)> {
        let at = self.tasks.iter().position(|task| *task == k)?;
        Some((at, self.ranks[..at].iter().sum(), self.ranks[at]))
    }

    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let hidden = linear(x, self.a.clone().transpose(), None) * self.scale.clone().unsqueeze();
        linear(hidden, self.b.clone().transpose(), None)
    }

    /// The part of the subspace of task `k` alone; `None` if there is none.
    fn forward_one<const D: usize>(&self, x: Tensor<D>, k: usize) -> Option<Tensor<D>> {
        let (at, start, rank) = self.rows(k)?;
        let a = self.a.clone().narrow(0, start, rank);
        let b = self.b.clone().narrow(1, start, rank);
        let hidden = linear(x, a.transpose(), None).mul_scalar(self.scalings[at]);
        Some(linear(hidden, b.transpose(), None))
    }

    /// `(B diag(s) A)^T`, shape `[d_in, d_out]`, the layout of Burn's weights.
    fn delta(&self) -> Tensor<2> {
        let scaled = self.a.clone() * self.scale.clone().unsqueeze_dim(1);
        scaled.transpose().matmul(self.b.clone().transpose())
    }
}

/// A frozen linear layer that past and present tasks adapt.
///
/// `y = W x + bias + sum_{k<t} s_k B_k A_k x + s_t B_t A_t dropout(x)`
///
/// Without subspaces it is a plain linear layer. Which subspaces take part, and whether dropout and
/// gradient tracking are on, is decided per forward pass by a [`ForwardContext`].
///
/// # Records and optimizers
/// A record of Burn's (`Module::into_record`) holds the base weight and the active subspace, but no frozen ones: they are constants,
/// which Burn leaves out and does not miss. Keep subspaces as adapters ([`Adapter::save`](crate::Adapter::save)).
///
/// Ids of parameters are functions of the layer's name, so that the state of an optimizer fits the same model in another process. The
/// subspace of the next task has the ids of the last one, and Burn's `ModuleOptimizer` would go on with its moments: make a new
/// optimizer for each task.
#[derive(Module, Debug)]
pub struct LoraLinear {
    /// `W` in Burn's layout, `[d_in, d_out]` (the transpose of PyTorch's). Folded and transposed copies are made of it: after a
    /// change call [`fold`](Self::fold) or [`keep_transposed`](Self::keep_transposed) again, whichever was called before.
    pub weight: Param<Tensor<2>>,
    /// Bias `[d_out]`.
    pub bias: Option<Param<Tensor<1>>>,
    frozen: Option<FrozenStack>,
    folded: Option<Tensor<2>>,
    /// Transpose of the folded weight, or of the base weight where nothing is folded; if it is kept at all.
    transposed: Option<Tensor<2>>,
    active: Option<Subspace>,
    #[module(skip)]
    name: String,
    #[module(skip)]
    active_site: u64,
    #[module(skip)]
    frozen_site: u64,
}

impl LoraLinear {
    /// Wraps a base weight `[d_in, d_out]`. `name` is the layer's name in the checkpoint, such as
    /// `encoder.block.0.layer.0.SelfAttention.q`; PEFT files and dropout masks are keyed by it.
    pub fn new(name: impl Into<String>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        let name = name.into();
        Self {
            weight: Param::initialized(ParamId::from(site(&name)), weight),
            bias: bias
                .map(|bias| Param::initialized(ParamId::from(site(&format!("{name}.bias"))), bias)),
            frozen: None,
            folded: None,
            transposed: None,
            active: None,
            active_site: site(&format!("{name}.lora_dropout")),
            frozen_site: site(&format!("{name}.frozen_dropout")),
            name,
        }
    }

    /// Wraps a layer of an existing Burn model; its weight becomes a constant.
    pub fn from_linear(name: impl Into<String>, layer: Linear) -> Self {
        let bias = layer.bias.map(|bias| bias.val().without_autodiff());
        Self::new(name, layer.weight.val().without_autodiff(), bias)
    }

    /// The layer's name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `[d_in, d_out]`.
    pub fn dims(&self) -> [usize; 2] {
        self.weight.val().dims()
    }

    /// The subspaces of past tasks.
    pub fn frozen(&self) -> Option<&FrozenStack> {
        self.frozen.as_ref()
    }

    /// The subspace in training.
    pub fn active(&self) -> Option<&Subspace> {
        self.active.as_ref()
    }

    /// The subspace in training, for an optimizer to update.
    pub fn active_mut(&mut self) -> Option<&mut Subspace> {
        self.active.as_mut()
    }

    /// Applies the layer to `x`.
    ///
    /// # Shapes
    /// - x: `[.., d_in]`
    /// - output: `[.., d_out]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>, context: &ForwardContext) -> Tensor<D> {
        if let (Some(inputs), Some(_)) = (&context.inputs, &self.active) {
            inputs.add(&self.name, &x);
        }
        let y = self.forward_past(x.clone(), context);
        match (&self.active, context.scope) {
            (
                Some(active),
                AdapterScope::All | AdapterScope::WithoutFrozen(_) | AdapterScope::OnlyActive,
            ) => active.add_to(y, x, self.active_site, context),
            _ => y,
        }
    }

    /// Base and frozen subspaces.
    fn forward_past<const D: usize>(&self, x: Tensor<D>, context: &ForwardContext) -> Tensor<D> {
        let bias = self.bias.as_ref().map(|bias| context.value(bias));
        let base = |x: Tensor<D>, weight| frozen_linear(x, weight, None, bias.clone());
        let settled = |x: Tensor<D>, weight| {
            let transposed = self.transposed.clone();
            frozen_linear(x, weight, transposed, bias.clone())
        };
        let Some(frozen) = &self.frozen else {
            return settled(x, context.value(&self.weight));
        };
        // The kept transposed copy is that of the folded weight where one is folded.
        let bare = |x: Tensor<D>| match self.folded {
            Some(_) => base(x, context.value(&self.weight)),
            None => settled(x, context.value(&self.weight)),
        };
        let excluded = match context.scope {
            AdapterScope::Base | AdapterScope::OnlyActive => return bare(x),
            AdapterScope::OnlyFrozen(k) => {
                let alone = frozen.forward_one(x.clone(), k);
                let y = bare(x);
                return match alone {
                    Some(alone) => y + alone,
                    None => y,
                };
            }
            AdapterScope::WithoutFrozen(k) => frozen.forward_one(x.clone(), k),
            AdapterScope::All | AdapterScope::WithoutActive => None,
        };
        let dropped = context.drop_frozen_input && context.dropout.is_some();
        let y = match &self.folded {
            Some(folded) if !dropped => settled(x, folded.clone()),
            _ => {
                let y = bare(x.clone());
                let p = self.active.as_ref().map_or(0.0, |active| active.dropout);
                let x = if dropped {
                    context.dropout(x, p, self.frozen_site)
                } else {
                    x
                };
                y + frozen.forward(x)
            }
        };
        match excluded {
            Some(excluded) => y - excluded,
            None => y,
        }
    }

    /// Starts a fresh subspace (see [`Subspace`]); an active one is replaced.
    ///
    /// # Panics
    /// Panics if the rank is 0 or the scaling is not finite; [`AdapterHost`](crate::AdapterHost) checks the configuration first.
    pub fn start_subspace(&mut self, config: &LoraConfig, seed: u64, task: u64) {
        let key = (seed, task, self.name.as_str());
        let weights = Subspace::fresh(config, self.dims(), key);
        self.set_active(&weights, config.dropout);
    }

    /// Installs given values as the active subspace.
    ///
    /// # Panics
    /// Panics if the values fail [`LoraWeights::check`] or do not fit the layer; [`AdapterHost`](crate::AdapterHost) checks first.
    pub fn set_active(&mut self, weights: &LoraWeights, dropout: f64) {
        self.assert_fit(weights);
        let device = self.weight.val().device().without_autodiff();
        self.active = Some(Subspace::from_weights(
            weights, dropout, &self.name, &device,
        ));
    }

    /// Appends given values to the frozen stack, as those of the next task. A folded weight is dropped: call
    /// [`fold`](Self::fold) again.
    ///
    /// # Panics
    /// Panics if the values fail [`LoraWeights::check`] or do not fit the layer.
    pub fn push_frozen(&mut self, weights: &LoraWeights) {
        self.push_frozen_of(weights, self.frozen_tasks());
    }

    /// [`push_frozen`](Self::push_frozen) as the values of task `task`, counted from 0: earlier ones may have left this layer
    /// alone.
    ///
    /// # Panics
    /// As [`push_frozen`](Self::push_frozen), and if there is a subspace of that task or of a later one.
    pub fn push_frozen_of(&mut self, weights: &LoraWeights, task: usize) {
        assert!(
            task >= self.frozen_tasks(),
            "`{}`: subspaces are in the order of their tasks",
            self.name
        );
        self.assert_fit(weights);
        let device = self.weight.val().device().without_autodiff();
        match &mut self.frozen {
            Some(stack) => stack.push(weights, task),
            None => self.frozen = Some(FrozenStack::new(weights, task, &device)),
        }
        self.unfold();
    }

    fn assert_fit(&self, weights: &LoraWeights) {
        if let Err(error) = weights.check() {
            panic!("subspace of `{}`: {error}", self.name);
        }
        assert_eq!(
            [weights.d_in, weights.d_out],
            self.dims(),
            "subspace of `{}`",
            self.name
        );
    }

    /// One more than the last task with a frozen subspace here.
    pub(crate) fn frozen_tasks(&self) -> usize {
        let last = self.frozen.as_ref().and_then(|stack| stack.tasks.last());
        last.map_or(0, |task| task + 1)
    }

    /// Ends a task: the active subspace joins the frozen stack.
    pub fn freeze_active(&mut self) {
        self.freeze_active_of(self.frozen_tasks());
    }

    /// [`freeze_active`](Self::freeze_active) of task `task`, as in [`push_frozen_of`](Self::push_frozen_of).
    ///
    /// # Panics
    /// As [`push_frozen_of`](Self::push_frozen_of).
    pub fn freeze_active_of(&mut self, task: usize) {
        if let Some(active) = self.active.take() {
            self.push_frozen_of(&active.to_weights(), task);
        }
    }

    /// Removes the active subspace without keeping it.
    pub fn discard_active(&mut self) {
        self.active = None;
    }

    /// Folds the frozen stack into a copy of the base weight, `W + (sum_k s_k B_k A_k)^T`.
    ///
    /// Does nothing for weights in half precision, whose rounding would swallow most of a subspace: their
    /// stack keeps running beside them in f32.
    ///
    /// Always computed from the base weight and the whole stack, so that the result does not depend on
    /// the history of calls: a resumed run gets the same bits.
    pub fn fold(&mut self) {
        if self.weight.val().dtype() == DType::F32 {
            self.folded = self.summed();
            self.refresh_transposed();
        }
    }

    /// Base weight and frozen stack in f32; `None` without a stack.
    fn summed(&self) -> Option<Tensor<2>> {
        let weight = || self.weight.val().without_autodiff().cast(DType::F32);
        self.frozen.as_ref().map(|stack| weight() + stack.delta())
    }

    /// Drops the folded weight: the stack runs next to the base weight again.
    pub fn unfold(&mut self) {
        if self.folded.take().is_some() {
            self.refresh_transposed();
        }
    }

    /// Keeps a transposed copy of the weight from now on, for the gradient of the layer's input
    /// ([`constant_linear`]): one more copy of the weight in memory, and on a CPU a faster backward pass.
    ///
    /// Does nothing where no kernel would use it ([`is_fused`]): on other devices, for weights in half precision.
    pub fn keep_transposed(&mut self) {
        if is_fused(&self.weight.val()) {
            self.transposed = Some(row_major(self.settled().transpose()));
        }
    }

    fn refresh_transposed(&mut self) {
        if self.transposed.take().is_some() {
            self.keep_transposed();
        }
    }

    /// The folded weight, or the base weight where nothing is folded.
    fn settled(&self) -> Tensor<2> {
        let base = || self.weight.val().without_autodiff();
        self.folded.clone().unwrap_or_else(base)
    }

    /// The layer with every subspace added to its weight (in f32 if there is one).
    pub fn merge(&self) -> Linear {
        let mut merged = self.clone();
        merged.freeze_active();
        let weight = merged
            .summed()
            .unwrap_or_else(|| merged.weight.val().without_autodiff());
        Linear {
            weight: Param::from_tensor(weight),
            bias: self.bias.clone(),
        }
    }
}

/// [`mixed_linear`] for a weight that usually is a constant, of which a transposed copy may be at hand.
fn frozen_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    transposed: Option<Tensor<2>>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    if weight.is_require_grad() || !(is_fused(&x) && is_fused(&weight)) {
        return mixed_linear(x, weight, bias);
    }
    let transposed = transposed.unwrap_or_else(|| weight.clone().transpose());
    let y = constant_linear(x, weight, transposed);
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

impl LoraWeights {
    /// `(A, B)` on `device`, outside autodiff.
    fn tensors(&self, device: &Device) -> (Tensor<2>, Tensor<2>) {
        let device = device.clone().without_autodiff();
        (
            Tensor::from_data(
                TensorData::new(self.a.clone(), [self.rank, self.d_in]),
                &device,
            ),
            Tensor::from_data(
                TensorData::new(self.b.clone(), [self.d_out, self.rank]),
                &device,
            ),
        )
    }

    /// Host copy of `A: [r, d_in]`, `B: [d_out, r]`.
    fn from_tensors(a: Tensor<2>, b: Tensor<2>, scaling: f64) -> Self {
        let [rank, d_in] = a.dims();
        let [d_out, _] = b.dims();
        let host = |tensor: Tensor<2>| tensor.into_data().iter::<f32>().collect();
        Self {
            a: host(a),
            b: host(b),
            rank,
            d_in,
            d_out,
            scaling,
        }
    }
}
