//! Feed-forward layer.

use aso_kernels::{Activation, activate, activate_gated};
use aso_lora::{ForwardContext, LoraLinear, site};
use burn::module::Module;
use burn::tensor::Tensor;

use super::FeedForward;

/// Feed-forward layer of any dialect ([`FeedForward`]).
#[derive(Module, Debug)]
pub(super) struct T5DenseReluDense {
    /// `wi`, or `wi_0` and `wi_1`.
    pub(super) wi: Vec<LoraLinear>,
    pub(super) wo: LoraLinear,
    #[module(skip)]
    pub(super) kind: FeedForward,
    #[module(skip)]
    pub(super) dropout: f64,
}

impl T5DenseReluDense {
    /// `x: [.., d_model]`, same shape out.
    pub(super) fn forward<const D: usize>(
        &self,
        x: Tensor<D>,
        context: &ForwardContext,
    ) -> Tensor<D> {
        let first = self.wi[0].forward(x.clone(), context);
        let activation = match self.kind {
            FeedForward::Relu | FeedForward::GatedRelu => Activation::Relu,
            FeedForward::Gelu | FeedForward::GatedGelu => Activation::GeluTanh,
            FeedForward::GatedSilu => Activation::Silu,
        };
        let mask = context.mask(self.dropout, site(self.wo.name()));
        let hidden = match self.wi.get(1) {
            Some(gate) => activate_gated(first, gate.forward(x, context), activation, mask),
            None => activate(first, activation, mask),
        };
        self.wo.forward(hidden, context)
    }
}
