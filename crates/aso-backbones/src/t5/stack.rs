//! Encoder or decoder: blocks, shared position bias, final norm.

use aso_lora::ForwardContext;
use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::attention::RelativePositionBias;
use super::block::{CrossMemory, T5Block};
use crate::layers::{KeyValue, KeyValueCache, RmsNorm, additive_mask, select_rows};

/// A stack of blocks.
#[derive(Module, Debug)]
pub(super) struct T5Stack {
    pub(super) blocks: Vec<T5Block>,
    pub(super) position_bias: RelativePositionBias,
    pub(super) final_norm: RmsNorm,
    #[module(skip)]
    pub(super) dropout: f64,
    #[module(skip)]
    pub(super) input_site: u64,
    #[module(skip)]
    pub(super) output_site: u64,
}

/// Encoder keys and values per decoder block, with the mask that goes with them.
#[derive(Debug, Clone)]
pub(super) struct EncoderMemory {
    pub(super) blocks: Vec<KeyValue>,
    /// `[rows, 1, 1, source]`.
    pub(super) bias: Tensor<4>,
}

impl EncoderMemory {
    pub(super) fn block(&self, block: usize) -> CrossMemory<'_> {
        CrossMemory {
            memory: &self.blocks[block],
            bias: self.bias.clone(),
        }
    }

    /// Keeps the given rows.
    pub(super) fn keep(&mut self, rows: &[usize]) {
        for block in &mut self.blocks {
            *block = block.select(rows);
        }
        self.bias = select_rows(self.bias.clone(), rows);
    }
}

/// One stack's forward pass.
pub(super) struct StackOutput {
    /// Residual stream after each block, if it was asked for.
    pub(super) hidden: Vec<Tensor<3>>,
    /// Output of the last block, before the final norm.
    pub(super) last: Tensor<3>,
    /// Self-attention keys and values of each block.
    pub(super) memory: Vec<KeyValue>,
}

impl T5Stack {
    /// Runs all blocks on embedded tokens.
    ///
    /// # Shapes
    /// - x: `[rows, length, d_model]`
    /// - bias: `[1 | rows, heads, length, past + length]`
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        bias: Tensor<4>,
        mut past: Option<&mut [KeyValueCache]>,
        cross: Option<&EncoderMemory>,
        keep_hidden: bool,
        context: &ForwardContext,
    ) -> StackOutput {
        let mut x = context.dropout(x, self.dropout, self.input_site);
        let mut hidden = Vec::new();
        let mut memory = Vec::with_capacity(self.blocks.len());
        for (at, block) in self.blocks.iter().enumerate() {
            let past = past.as_deref_mut().map(|past| &mut past[at]);
            let cross = cross.map(|cross| cross.block(at));
            let (output, kept) = block.forward(x, bias.clone(), past, cross, context);
            memory.push(kept);
            if keep_hidden {
                hidden.push(output.clone());
            }
            x = output;
        }
        StackOutput {
            hidden,
            last: x,
            memory,
        }
    }

    /// Final norm and dropout.
    pub(super) fn finish<const D: usize>(
        &self,
        x: Tensor<D>,
        context: &ForwardContext,
    ) -> Tensor<D> {
        let x = self.final_norm.forward(x, context);
        context.dropout(x, self.dropout, self.output_site)
    }

    /// Keys and values of the encoder's output for every block's cross attention.
    pub(super) fn encoder_memory(
        &self,
        encoded: &Tensor<3>,
        bias: Tensor<4>,
        context: &ForwardContext,
    ) -> EncoderMemory {
        let blocks = self
            .blocks
            .iter()
            .filter_map(|block| block.cross.as_ref())
            .map(|cross| cross.attention.key_value(encoded.clone(), context))
            .collect();
        EncoderMemory { blocks, bias }
    }
}

/// Additive mask `[rows, 1, 1, keys]` that hides padding.
pub(super) fn padding_bias(mask: &[i64], rows: usize, device: &Device) -> Tensor<4> {
    let visible = mask.iter().map(|kept| *kept != 0);
    additive_mask(visible, [rows, 1, 1, mask.len() / rows], device)
}

/// Additive mask `[1, 1, length, length]` that hides later positions.
pub(super) fn causal_bias(length: usize, device: &Device) -> Tensor<4> {
    let visible = (0..length).flat_map(|query| (0..length).map(move |key| key <= query));
    additive_mask(visible, [1, 1, length, length], device)
}
