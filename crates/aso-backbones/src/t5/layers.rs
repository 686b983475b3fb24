//! Feed-forward layer.

use aso_lora::dropout::site;
use aso_lora::{ForwardContext, LoraLinear};
use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::{gelu_approximate, relu, silu};

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
        let activated = match self.kind {
            FeedForward::Relu | FeedForward::GatedRelu => relu(first),
            FeedForward::Gelu | FeedForward::GatedGelu => gelu_approximate(first),
            FeedForward::GatedSilu => silu(first),
        };
        let hidden = match self.wi.get(1) {
            Some(gate) => activated * gate.forward(x, context),
            None => activated,
        };
        let hidden = context.dropout(hidden, self.dropout, site(self.wo.name()));
        self.wo.forward(hidden, context)
    }
}
