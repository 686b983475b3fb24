//! Grouped-query attention with rotary positions.

use aso_lora::{ForwardContext, LoraLinear};
use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

use super::rotary::Rotary;
use crate::layers::KeyValue;

/// Attention in which `heads / kv_heads` consecutive query heads share a key and value head.
#[derive(Module, Debug)]
pub(super) struct LlamaAttention {
    pub(super) q_proj: LoraLinear,
    pub(super) k_proj: LoraLinear,
    pub(super) v_proj: LoraLinear,
    pub(super) o_proj: LoraLinear,
    #[module(skip)]
    pub(super) heads: usize,
    #[module(skip)]
    pub(super) kv_heads: usize,
    #[module(skip)]
    pub(super) d_head: usize,
    #[module(skip)]
    pub(super) dropout: f64,
    #[module(skip)]
    pub(super) site: u64,
}

impl LlamaAttention {
    /// Rotated queries, `[rows, queries, d_model] -> [rows, heads, queries, d_head]`.
    fn query(&self, x: Tensor<3>, rotary: &Rotary, context: &ForwardContext) -> Tensor<4> {
        rotary.apply(self.split(self.q_proj.forward(x, context)))
    }

    /// Rotated keys, and values, of `x: [rows, keys, d_model]`.
    pub(super) fn key_value(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        context: &ForwardContext,
    ) -> KeyValue {
        KeyValue {
            key: rotary.apply(self.split(self.k_proj.forward(x.clone(), context))),
            value: self.split(self.v_proj.forward(x, context)),
        }
    }

    fn split(&self, x: Tensor<3>) -> Tensor<4> {
        let [rows, length, inner] = x.dims();
        x.reshape([rows, length, inner / self.d_head, self.d_head])
            .swap_dims(1, 2)
    }

    /// `[rows, heads, n, k] -> [rows, kv_heads, group * n, k]`: the queries that share keys in one matrix,
    /// so that keys and values are never repeated.
    fn group(&self, x: Tensor<4>) -> Tensor<4> {
        let [rows, heads, n, k] = x.dims();
        x.reshape([rows, self.kv_heads, heads / self.kv_heads * n, k])
    }

    /// The inverse of [`group`](Self::group).
    fn ungroup(&self, x: Tensor<4>) -> Tensor<4> {
        let [rows, _, n, k] = x.dims();
        x.reshape([rows, self.heads, n * self.kv_heads / self.heads, k])
    }

    /// `d_head^-0.5`.
    fn scale(&self) -> f64 {
        (self.d_head as f64).powf(-0.5)
    }

    /// Scaled scores, `[rows, heads, queries, keys]`.
    fn scores(&self, query: Tensor<4>, key: &Tensor<4>) -> Tensor<4> {
        let scaled = query.mul_scalar(self.scale());
        self.ungroup(self.group(scaled).matmul(key.clone().transpose()))
    }

    /// `weights: [rows, heads, queries, keys]` times values, through the output projection.
    fn output(&self, mixed: Tensor<4>, context: &ForwardContext) -> Tensor<3> {
        let [rows, heads, queries, d_head] = mixed.dims();
        let mixed = mixed
            .swap_dims(1, 2)
            .reshape([rows, queries, heads * d_head]);
        self.o_proj.forward(mixed, context)
    }

    /// Attends with the queries of `x` to the given keys and values.
    ///
    /// # Shapes
    /// - x: `[rows, queries, d_model]`, normed input of the layer
    /// - bias: broadcastable to `[rows, heads, queries, keys]`
    /// - output: `[rows, queries, d_model]`
    pub(super) fn attend(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        memory: &KeyValue,
        bias: Tensor<4>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let query = self.query(x, rotary, context);
        let mixed = aso_kernels::attention(
            query,
            memory.key.clone(),
            memory.value.clone(),
            bias,
            self.scale(),
            context.mask(self.dropout, self.site),
        );
        self.output(mixed, context)
    }

    /// Attends with every query to a shared prefix and to itself: queries are alternatives for one
    /// position, not a sequence.
    ///
    /// # Shapes
    /// - x: `[rows, alternatives, d_model]`, normed input of the layer
    /// - rotary: the angles of that position, `[rows, 1, 1, d_head / 2]`
    /// - prefix_bias: `[rows, 1, 1, keys]`
    /// - output: `[rows, alternatives, d_model]`
    pub(super) fn attend_alternatives(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        prefix: &KeyValue,
        prefix_bias: Tensor<4>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let own = self.key_value(x.clone(), rotary, context);
        let query = self.query(x, rotary, context);
        let shared = self.scores(query.clone(), &prefix.key) + prefix_bias;
        let own_score = self.per_group(query, own.key).sum_dim(3);
        let own_score = own_score.mul_scalar(self.scale());
        let keys = shared.dims()[3];
        let weights = softmax(Tensor::cat(vec![shared, own_score], 3), 3);
        let from_prefix = self
            .group(weights.clone().narrow(3, 0, keys))
            .matmul(prefix.value.clone());
        let from_own = self.per_group(weights.narrow(3, keys, 1), own.value);
        self.output(self.ungroup(from_prefix) + from_own, context)
    }

    /// `x: [rows, heads, n, 1 | d_head]` times `[rows, kv_heads, n, d_head]` of each head's group.
    fn per_group(&self, x: Tensor<4>, shared: Tensor<4>) -> Tensor<4> {
        let [rows, heads, n, width] = x.dims();
        let group = heads / self.kv_heads;
        let x = x.reshape([rows, self.kv_heads, group, n, width]);
        let shared = shared.unsqueeze_dim::<5>(2);
        (x * shared).reshape([rows, heads, n, self.d_head])
    }
}
