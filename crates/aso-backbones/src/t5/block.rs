//! One block: self attention, cross attention in the decoder, feed-forward.

use aso_kernels::add_dropout;
use aso_lora::{ForwardContext, LoraLinear};
use burn::module::Module;
use burn::tensor::Tensor;

use super::attention::T5Attention;
use super::layers::T5DenseReluDense;
use crate::layers::{KeyValue, KeyValueCache, RmsNorm, repeat_rows};

/// Cross attention with its norm.
#[derive(Module, Debug)]
pub(super) struct T5LayerCrossAttention {
    pub(super) attention: T5Attention,
    pub(super) norm: RmsNorm,
    #[module(skip)]
    pub(super) site: u64,
}

/// A T5 block. Every sublayer is `x + dropout(f(norm(x)))`.
#[derive(Module, Debug)]
pub(super) struct T5Block {
    pub(super) self_attention: T5Attention,
    pub(super) self_norm: RmsNorm,
    #[module(skip)]
    pub(super) self_site: u64,
    pub(super) cross: Option<T5LayerCrossAttention>,
    pub(super) feed_forward: T5DenseReluDense,
    pub(super) feed_forward_norm: RmsNorm,
    #[module(skip)]
    pub(super) feed_forward_site: u64,
    #[module(skip)]
    pub(super) dropout: f64,
}

/// What a decoder block attends to in the encoder.
pub(super) struct CrossMemory<'a> {
    pub(super) memory: &'a KeyValue,
    /// `[rows, 1, 1, keys]`.
    pub(super) bias: Tensor<4>,
}

impl T5Block {
    /// The whole block on a sequence `x: [rows, length, d_model]`.
    ///
    /// `past` are keys and values of earlier positions, to which the new ones are added. Returns the output and
    /// the keys and values of past and new positions. A row of `cross` may be shared by several rows of x, which
    /// then lie next to one another.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        bias: Tensor<4>,
        past: Option<&mut KeyValueCache>,
        cross: Option<CrossMemory<'_>>,
        context: &ForwardContext,
    ) -> (Tensor<3>, KeyValue) {
        let normed = self.self_norm.forward(x.clone(), context);
        let own = self.self_attention.key_value(normed.clone(), context);
        let memory = match past {
            Some(past) => past.append(own),
            None => own,
        };
        let query = self.self_attention.query(normed, context);
        let attended = self.self_attention.attend(query, &memory, bias, context);
        let x = add_dropout(x, attended, context.mask(self.dropout, self.self_site));
        (self.after_self_attention(x, cross, context), memory)
    }

    /// The block on sequences that differ from a traced one at position `at` only: what the other positions ask
    /// and offer is computed once a traced row.
    ///
    /// - traced: the block's input `[rows, length, d_model]`, with the keys and values it had
    /// - patched: `[rows * variants, 1, d_model]`, variants of a row next to one another
    /// - bias: `[rows * variants, heads, length, length]`
    /// - output: `[rows * variants, length, d_model]`, or position `at` alone
    pub(super) fn forward_patched(
        &self,
        (traced, memory): (Tensor<3>, &KeyValue),
        patched: Tensor<3>,
        at: usize,
        bias: Tensor<4>,
        only_patched: bool,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let variants = patched.dims()[0] / traced.dims()[0];
        let normed = self.self_norm.forward(patched.clone(), context);
        let own = self.self_attention.key_value(normed.clone(), context);
        let memory = KeyValue {
            key: replace(memory.key.clone(), own.key, 2, at, variants),
            value: replace(memory.value.clone(), own.value, 2, at, variants),
        };
        let query = self.self_attention.query(normed, context);
        let (query, bias, x) = if only_patched {
            (query, bias.narrow(2, at, 1), patched)
        } else {
            let normed = self.self_norm.forward(traced.clone(), context);
            let others = self.self_attention.query(normed, context);
            let query = replace(others, query, 2, at, variants);
            (query, bias, replace(traced, patched, 1, at, variants))
        };
        let attended = self.self_attention.attend(query, &memory, bias, context);
        self.after_self_attention(x + attended, None, context)
    }

    /// The block's output at position `at` only; keys and values still come from all positions.
    ///
    /// `x: [rows, length, d_model]`, `bias: [.., length, length]` -> `[rows, 1, d_model]`.
    pub(super) fn forward_at(
        &self,
        x: Tensor<3>,
        at: usize,
        bias: Tensor<4>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let normed = self.self_norm.forward(x.clone(), context);
        let memory = self.self_attention.key_value(normed.clone(), context);
        let query = self.self_attention.query(normed.narrow(1, at, 1), context);
        let bias = bias.narrow(2, at, 1);
        let attended = self.self_attention.attend(query, &memory, bias, context);
        self.after_self_attention(x.narrow(1, at, 1) + attended, None, context)
    }

    /// The block on alternatives for one position (see [`T5Attention::attend_alternatives`]).
    pub(super) fn forward_alternatives(
        &self,
        x: Tensor<3>,
        prefix: Option<(&KeyValue, Tensor<4>)>,
        own_bias: Tensor<4>,
        cross: CrossMemory<'_>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let normed = self.self_norm.forward(x.clone(), context);
        let attended = self
            .self_attention
            .attend_alternatives(normed, prefix, own_bias, context);
        self.after_self_attention(x + attended, Some(cross), context)
    }

    /// Cross attention, if any, and feed-forward.
    fn after_self_attention(
        &self,
        mut x: Tensor<3>,
        cross: Option<CrossMemory<'_>>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        if let (Some(layer), Some(cross)) = (&self.cross, cross) {
            // Queries do not see each other here, so those that share a memory form one row.
            let [rows, length, width] = x.dims();
            let shared = cross.memory.key.dims()[0];
            let normed = layer.norm.forward(x.clone(), context);
            let normed = normed.reshape([shared, rows / shared * length, width]);
            let query = layer.attention.query(normed, context);
            let attended = layer
                .attention
                .attend(query, cross.memory, cross.bias, context)
                .reshape([rows, length, width]);
            x = add_dropout(x, attended, context.mask(self.dropout, layer.site));
        }
        let normed = self.feed_forward_norm.forward(x.clone(), context);
        let hidden = self.feed_forward.forward(normed, context);
        let mask = context.mask(self.dropout, self.feed_forward_site);
        add_dropout(x, hidden, mask)
    }

    pub(super) fn visit_linears(&self, visit: &mut dyn FnMut(&LoraLinear)) {
        let cross = self.cross.as_ref().map(|cross| &cross.attention);
        for attention in std::iter::once(&self.self_attention).chain(cross) {
            for layer in [&attention.q, &attention.k, &attention.v, &attention.o] {
                visit(layer);
            }
        }
        self.feed_forward
            .wi
            .iter()
            .chain([&self.feed_forward.wo])
            .for_each(visit);
    }

    pub(super) fn visit_linears_mut(&mut self, visit: &mut dyn FnMut(&mut LoraLinear)) {
        let cross = self.cross.as_mut().map(|cross| &mut cross.attention);
        for attention in std::iter::once(&mut self.self_attention).chain(cross) {
            for layer in [
                &mut attention.q,
                &mut attention.k,
                &mut attention.v,
                &mut attention.o,
            ] {
                visit(layer);
            }
        }
        self.feed_forward
            .wi
            .iter_mut()
            .chain([&mut self.feed_forward.wo])
            .for_each(visit);
    }

    pub(super) fn norms(&self) -> impl Iterator<Item = &RmsNorm> {
        let cross = self.cross.as_ref().map(|cross| &cross.norm);
        [&self.self_norm]
            .into_iter()
            .chain(cross)
            .chain([&self.feed_forward_norm])
    }
}

/// `variants` copies of every row of `rest`, position `at` of dimension `dim` replaced by that of `own`.
fn replace<const D: usize>(
    rest: Tensor<D>,
    own: Tensor<D>,
    dim: usize,
    at: usize,
    variants: usize,
) -> Tensor<D> {
    let length = rest.dims()[dim];
    let part = |start: usize, length: usize| {
        repeat_rows(rest.clone().narrow(dim, start, length), variants)
    };
    let mut parts = Vec::with_capacity(3);
    if at > 0 {
        parts.push(part(0, at));
    }
    parts.push(own);
    if at + 1 < length {
        parts.push(part(at + 1, length - at - 1));
    }
    Tensor::cat(parts, dim)
}
