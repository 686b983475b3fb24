//! One block: attention and gated feed-forward layer.

use aso_kernels::{Activation, activate_gated};
use aso_lora::{ForwardContext, LoraLinear};
use burn::module::Module;
use burn::tensor::Tensor;

use super::attention::LlamaAttention;
use super::rotary::Rotary;
use crate::layers::{KeyValue, KeyValueCache, RmsNorm};

/// `down_proj(silu(gate_proj(x)) * up_proj(x))`.
#[derive(Module, Debug)]
pub(super) struct LlamaMlp {
    pub(super) gate_proj: LoraLinear,
    pub(super) up_proj: LoraLinear,
    pub(super) down_proj: LoraLinear,
}

impl LlamaMlp {
    /// `x: [.., d_model]`, same shape out.
    fn forward<const D: usize>(&self, x: Tensor<D>, context: &ForwardContext) -> Tensor<D> {
        let gate = self.gate_proj.forward(x.clone(), context);
        let hidden = activate_gated(
            gate,
            self.up_proj.forward(x, context),
            Activation::Silu,
            None,
        );
        self.down_proj.forward(hidden, context)
    }
}

/// A block. Every sublayer is `x + f(norm(x))`.
#[derive(Module, Debug)]
pub(super) struct LlamaDecoderLayer {
    pub(super) input_layernorm: RmsNorm,
    pub(super) self_attn: LlamaAttention,
    pub(super) post_attention_layernorm: RmsNorm,
    pub(super) mlp: LlamaMlp,
}

impl LlamaDecoderLayer {
    /// The block on a sequence `x: [rows, length, d_model]`.
    ///
    /// `past` are keys and values of earlier positions, to which the new ones are added. Returns the output
    /// and the keys and values of past and new positions.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        bias: Tensor<4>,
        past: Option<&mut KeyValueCache>,
        context: &ForwardContext,
    ) -> (Tensor<3>, KeyValue) {
        let normed = self.input_layernorm.forward(x.clone(), context);
        let own = self.self_attn.key_value(normed.clone(), rotary, context);
        let memory = match past {
            Some(past) => past.append(own),
            None => own,
        };
        let attended = self
            .self_attn
            .attend(normed, rotary, &memory, bias, context);
        (self.feed_forward(x + attended, context), memory)
    }

    /// The block on alternatives for one position (see [`LlamaAttention::attend_alternatives`]).
    pub(super) fn forward_alternatives(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        prefix: &KeyValue,
        prefix_bias: Tensor<4>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let normed = self.input_layernorm.forward(x.clone(), context);
        let attended =
            self.self_attn
                .attend_alternatives(normed, rotary, prefix, prefix_bias, context);
        self.feed_forward(x + attended, context)
    }

    fn feed_forward(&self, x: Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        let normed = self.post_attention_layernorm.forward(x.clone(), context);
        x + self.mlp.forward(normed, context)
    }

    pub(super) fn linears(&self) -> [&LoraLinear; 7] {
        let (attention, mlp) = (&self.self_attn, &self.mlp);
        [
            &attention.q_proj,
            &attention.k_proj,
            &attention.v_proj,
            &attention.o_proj,
            &mlp.gate_proj,
            &mlp.up_proj,
            &mlp.down_proj,
        ]
    }

    pub(super) fn linears_mut(&mut self) -> [&mut LoraLinear; 7] {
        let (attention, mlp) = (&mut self.self_attn, &mut self.mlp);
        [
            &mut attention.q_proj,
            &mut attention.k_proj,
            &mut attention.v_proj,
            &mut attention.o_proj,
            &mut mlp.gate_proj,
            &mut mlp.up_proj,
            &mut mlp.down_proj,
        ]
    }

    pub(super) fn norms(&self) -> [&RmsNorm; 2] {
        [&self.input_layernorm, &self.post_attention_layernorm]
    }
}
