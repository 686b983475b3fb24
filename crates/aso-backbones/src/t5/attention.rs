//! T5 attention: unscaled scores, additive bias, keys and values that can be kept.

use aso_lora::{ForwardContext, LoraLinear};
use burn::module::{Module, Param};
use burn::tensor::activation::softmax;
use burn::tensor::{Int, Tensor, TensorData};

use super::position;
use crate::layers::KeyValue;

/// Bucketed relative position bias: one learnt number per bucket and head.
#[derive(Module, Debug)]
pub(super) struct RelativePositionBias {
    /// `[buckets, heads]`.
    pub(super) weight: Param<Tensor<2>>,
    #[module(skip)]
    pub(super) bidirectional: bool,
    #[module(skip)]
    pub(super) max_distance: usize,
    #[module(skip)]
    pub(super) name: String,
}

impl RelativePositionBias {
    /// Bias `[1, heads, queries, keys]` for queries at positions `first..`.
    pub(super) fn forward(
        &self,
        first: usize,
        queries: usize,
        keys: usize,
        context: &ForwardContext,
    ) -> Tensor<4> {
        let weight = context.value(&self.weight);
        let [count, heads] = weight.dims();
        let buckets = position::buckets(
            first,
            queries,
            keys,
            self.bidirectional,
            count,
            self.max_distance,
        );
        let device = weight.device().without_autodiff();
        let index =
            Tensor::<1, Int>::from_data(TensorData::new(buckets, [queries * keys]), &device);
        weight
            .select(0, index)
            .reshape([queries, keys, heads])
            .permute([2, 0, 1])
            .unsqueeze::<4>()
    }
}

/// Multi-head attention of T5.
#[derive(Module, Debug)]
pub(super) struct T5Attention {
    pub(super) q: LoraLinear,
    pub(super) k: LoraLinear,
    pub(super) v: LoraLinear,
    pub(super) o: LoraLinear,
    #[module(skip)]
    pub(super) heads: usize,
    #[module(skip)]
    pub(super) dropout: f64,
    #[module(skip)]
    pub(super) site: u64,
}

impl T5Attention {
    /// `[rows, queries, d_model] -> [rows, heads, queries, d_kv]`.
    pub(super) fn query(&self, x: Tensor<3>, context: &ForwardContext) -> Tensor<4> {
        self.split(self.q.forward(x, context))
    }

    /// Keys and values of `x: [rows, keys, d_model]`.
    pub(super) fn key_value(&self, x: Tensor<3>, context: &ForwardContext) -> KeyValue {
        KeyValue {
            key: self.split(self.k.forward(x.clone(), context)),
            value: self.split(self.v.forward(x, context)),
        }
    }

    fn split(&self, x: Tensor<3>) -> Tensor<4> {
        let [rows, length, inner] = x.dims();
        x.reshape([rows, length, self.heads, inner / self.heads])
            .swap_dims(1, 2)
    }

    /// `[rows, heads, queries, d_kv] -> [rows, queries, d_model]` through the output projection.
    fn output(&self, x: Tensor<4>, context: &ForwardContext) -> Tensor<3> {
        let [rows, heads, queries, d_kv] = x.dims();
        let x = x.swap_dims(1, 2).reshape([rows, queries, heads * d_kv]);
        self.o.forward(x, context)
    }

    /// Attends with queries to the given keys and values.
    ///
    /// # Shapes
    /// - query: `[rows, heads, queries, d_kv]`
    /// - bias: broadcastable to `[rows, heads, queries, keys]`
    /// - output: `[rows, queries, d_model]`
    pub(super) fn attend(
        &self,
        query: Tensor<4>,
        memory: &KeyValue,
        bias: Tensor<4>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let mixed = aso_kernels::attention(
            query,
            memory.key.clone(),
            memory.value.clone(),
            bias,
            1.0,
            context.mask(self.dropout, self.site),
        );
        self.output(mixed, context)
    }

    /// Attends with every query to a shared prefix and to itself: queries are alternatives for one
    /// position, not a sequence.
    ///
    /// # Shapes
    /// - x: `[rows, alternatives, d_model]`, normed input of the layer
    /// - prefix_bias: `[rows, heads, 1, keys]`, `own_bias: [1, heads, 1, 1]`
    /// - output: `[rows, alternatives, d_model]`
    pub(super) fn attend_alternatives(
        &self,
        x: Tensor<3>,
        prefix: Option<(&KeyValue, Tensor<4>)>,
        own_bias: Tensor<4>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let own = self.key_value(x.clone(), context);
        let Some((prefix, prefix_bias)) = prefix else {
            // A softmax over one position is 1 whatever the score.
            return self.output(own.value, context);
        };
        let query = self.query(x, context);
        let shared = query.clone().matmul(prefix.key.clone().transpose()) + prefix_bias;
        let own_score = (query * own.key).sum_dim(3) + own_bias;
        let keys = shared.dims()[3];
        let weights = softmax(Tensor::cat(vec![shared, own_score], 3), 3);
        let mixed = weights
            .clone()
            .narrow(3, 0, keys)
            .matmul(prefix.value.clone())
            + weights.narrow(3, keys, 1) * own.value;
        self.output(mixed, context)
    }
}
