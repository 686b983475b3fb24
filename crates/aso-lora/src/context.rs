//! How a forward pass is to be run.

use std::sync::Arc;

use burn::module::Param;
use burn::tensor::Tensor;

use crate::{DropoutMask, DropoutStream, InputCovariance};

/// Which subspaces take part in a forward pass.
///
/// Tasks are counted from 0. On a layer without a subspace of task k, `WithoutFrozen(k)` is `All` and `OnlyFrozen(k)` is `Base`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AdapterScope {
    /// The current model: every frozen subspace and the active one.
    #[default]
    All,
    /// The previous model: every frozen subspace, the active one off.
    WithoutActive,
    /// Every subspace except the frozen one of task `k`.
    WithoutFrozen(usize),
    /// The active subspace and no other.
    OnlyActive,
    /// The frozen subspace of task `k` and no other.
    OnlyFrozen(usize),
    /// The untouched backbone.
    Base,
}

/// Everything a forward pass needs to know besides its input.
///
/// The same weights serve training, evaluation and the "previous model" of the attribution: no second
/// copy of a model is ever made.
#[derive(Debug, Clone, Default)]
pub struct ForwardContext {
    /// The subspaces that take part.
    pub scope: AdapterScope,
    /// Dropout masks; `None` switches every dropout off (evaluation, attribution).
    pub dropout: Option<DropoutStream>,
    /// Whether parameters that require gradients enter the autodiff graph. Off, they are constants and
    /// no graph is recorded for them.
    pub track_parameters: bool,
    /// Whether the LoRA dropout also drops the input of the frozen stack, as the released ASO-LoRA code
    /// does (docs/method.md, Subspaces, preset `reference`). Implies running the stack unfolded. Single subspaces, taken alone or away
    /// by the scope, are not dropped.
    pub drop_frozen_input: bool,
    /// Where the inputs of adapted layers are summed up, if they are wanted.
    pub inputs: Option<Arc<InputCovariance>>,
}

impl ForwardContext {
    /// No dropout, no graph, all subspaces.
    pub fn inference() -> Self {
        Self::default()
    }

    /// Dropout from `stream` and a graph for the trainable parameters.
    pub fn training(stream: Option<DropoutStream>) -> Self {
        Self {
            dropout: stream,
            track_parameters: true,
            ..Self::default()
        }
    }

    /// The same context with another set of subspaces.
    #[must_use]
    pub fn with_scope(mut self, scope: AdapterScope) -> Self {
        self.scope = scope;
        self
    }

    /// The value of a parameter, in the graph only if [`track_parameters`](Self::track_parameters).
    pub fn value<const D: usize>(&self, parameter: &Param<Tensor<D>>) -> Tensor<D> {
        if self.track_parameters {
            parameter.val()
        } else {
            parameter.val().without_autodiff()
        }
    }

    /// Applies dropout with probability `p` to `x` at the place named by `site`.
    ///
    /// Identity when dropout is off or `p` is 0.
    pub fn dropout<const D: usize>(&self, x: Tensor<D>, p: f64, site: u64) -> Tensor<D> {
        aso_kernels::dropout(x, self.mask(p, site))
    }

    /// The mask of [`dropout`](Self::dropout), for an operation that applies it by itself.
    pub fn mask(&self, p: f64, site: u64) -> Option<DropoutMask> {
        self.dropout.as_ref()?.mask(p, site)
    }
}
