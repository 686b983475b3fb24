//! The whole model.

use std::borrow::Cow;

use aso_lora::{AdapterHost, ForwardContext, LoraLinear, TargetModules};
use burn::module::{Module, Param, ParamId};
use burn::tensor::Tensor;

use super::T5Config;
use super::block::T5Block;
use super::stack::{EncoderMemory, StackOutput, T5Stack, causal_bias, padding_bias};
use crate::batch::IGNORED_LABEL;
use crate::generation::RowControl;
use crate::layers::{embed, linear_head, transposed_head};
use crate::likelihood::Answers;
use crate::{
    Backbone, BlockTaps, GenerationConfig, ModelKind, NamedTensor, SpecialTokens, TokenBatch,
};

/// T5 with a language-modelling head.
///
/// Load one with [`from_pretrained`](Self::from_pretrained). Weights are constants; what trains are the
/// active subspaces of its [`LoraLinear`] layers.
#[derive(Module, Debug)]
pub struct T5ForConditionalGeneration {
    /// Embedding of both stacks, `[vocabulary, d_model]`.
    pub(super) shared: Param<Tensor<2>>,
    pub(super) encoder: T5Stack,
    pub(super) decoder: T5Stack,
    /// Untied head `[vocabulary, d_model]`; the embedding serves as head without it.
    pub(super) lm_head: Option<Param<Tensor<2>>>,
    /// The head as `[d_model, vocabulary]`, if such a copy is kept.
    pub(super) transposed_head: Option<Tensor<2>>,
    #[module(skip)]
    pub(super) config: T5Config,
}

impl T5ForConditionalGeneration {
    /// The resolved configuration.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Embeds ids, `[rows * length]` row-major, as `[rows, length, d_model]`.
    pub(super) fn embed(&self, ids: &[i64], rows: usize, context: &ForwardContext) -> Tensor<3> {
        embed(&self.shared, ids, rows, context)
    }

    /// Runs the encoder on a batch's source.
    pub(super) fn run_encoder(
        &self,
        batch: &TokenBatch,
        keep_hidden: bool,
        context: &ForwardContext,
    ) -> (StackOutput, Tensor<4>) {
        let length = batch.source_len();
        let x = self.embed(batch.input_ids(), batch.rows(), context);
        let mask = padding_bias(batch.attention_mask(), batch.rows(), &self.device());
        let positions = self
            .encoder
            .position_bias
            .forward(0, length, length, context);
        let output = self.encoder.forward(
            x,
            positions + mask.clone(),
            None,
            None,
            keep_hidden,
            context,
        );
        (output, mask)
    }

    /// Encoder output after the final norm, as memory for the decoder.
    pub(super) fn encode(&self, batch: &TokenBatch, context: &ForwardContext) -> EncoderMemory {
        let (output, mask) = self.run_encoder(batch, false, context);
        let encoded = self.encoder.finish(output.last, context);
        self.decoder.encoder_memory(&encoded, mask, context)
    }

    /// Runs the decoder on `ids: [rows, length]` from position 0.
    pub(super) fn run_decoder(
        &self,
        ids: &[i64],
        rows: usize,
        memory: &EncoderMemory,
        keep_hidden: bool,
        context: &ForwardContext,
    ) -> StackOutput {
        let length = ids.len() / rows;
        let x = self.embed(ids, rows, context);
        let bias = self
            .decoder
            .position_bias
            .forward(0, length, length, context)
            + causal_bias(length, &self.device());
        self.decoder
            .forward(x, bias, None, Some(memory), keep_hidden, context)
    }

    /// Logits of decoder outputs `[.., d_model]` after the final norm.
    pub(super) fn head<const D: usize>(&self, x: Tensor<D>, context: &ForwardContext) -> Tensor<D> {
        self.unscaled_head(x.mul_scalar(self.config.head_scale), context)
    }

    /// The head without v1.0's factor `d_model^-0.5`.
    pub(super) fn unscaled_head<const D: usize>(
        &self,
        x: Tensor<D>,
        context: &ForwardContext,
    ) -> Tensor<D> {
        let head = self.lm_head.as_ref().unwrap_or(&self.shared);
        linear_head(x, context.value(head), self.transposed_head.as_ref())
    }

    /// Decoder inputs: labels shifted right behind the start token, ignored labels fed as padding.
    pub(super) fn shift_right(&self, batch: &TokenBatch) -> Vec<i64> {
        (0..batch.rows())
            .flat_map(|row| {
                let labels = batch.row_labels(row);
                let shifted = labels[..labels.len() - 1].iter().map(|label| match *label {
                    IGNORED_LABEL => self.config.pad,
                    id => id,
                });
                std::iter::once(self.config.decoder_start).chain(shifted)
            })
            .collect()
    }

    fn blocks(&self) -> impl Iterator<Item = &T5Block> {
        self.encoder.blocks.iter().chain(&self.decoder.blocks)
    }

    /// Which parameter the embedding is, for optimizers that treat it apart.
    pub fn embedding_id(&self) -> ParamId {
        self.shared.id
    }

    /// Every parameter of the backbone under its Hugging Face name, in PyTorch's orientation,
    /// without subspaces.
    pub fn named_parameters(&self) -> Vec<NamedTensor> {
        let mut parameters = vec![NamedTensor::new("shared.weight", self.shared.val())];
        for block in self.blocks() {
            block.visit_linears(&mut |layer| {
                let name = format!("{}.weight", layer.name());
                parameters.push(NamedTensor::new(name, layer.weight.val().transpose()));
            });
            for norm in block.norms() {
                parameters.push(NamedTensor::new(norm.name.clone(), norm.weight.val()));
            }
        }
        for stack in [&self.encoder, &self.decoder] {
            let (bias, norm) = (&stack.position_bias, &stack.final_norm);
            parameters.push(NamedTensor::new(bias.name.clone(), bias.weight.val()));
            parameters.push(NamedTensor::new(norm.name.clone(), norm.weight.val()));
        }
        if let Some(head) = &self.lm_head {
            parameters.push(NamedTensor::new("lm_head.weight", head.val()));
        }
        parameters
    }
}

impl AdapterHost for T5ForConditionalGeneration {
    fn visit_linears(&self, visit: &mut dyn FnMut(&LoraLinear)) {
        for block in self.blocks() {
            block.visit_linears(visit);
        }
    }

    fn visit_linears_mut(&mut self, visit: &mut dyn FnMut(&mut LoraLinear)) {
        for block in self
            .encoder
            .blocks
            .iter_mut()
            .chain(&mut self.decoder.blocks)
        {
            block.visit_linears_mut(visit);
        }
    }

    fn keep_transposed(&mut self) {
        self.visit_linears_mut(&mut LoraLinear::keep_transposed);
        self.transposed_head = transposed_head(self.lm_head.as_ref().unwrap_or(&self.shared));
    }
}

impl Backbone for T5ForConditionalGeneration {
    fn logits(&self, batch: &TokenBatch, context: &ForwardContext) -> Tensor<3> {
        let memory = self.encode(batch, context);
        let ids = self.shift_right(batch);
        let output = self.run_decoder(&ids, batch.rows(), &memory, false, context);
        self.head(self.decoder.finish(output.last, context), context)
    }

    fn aligned_labels<'a>(&self, batch: &'a TokenBatch) -> Cow<'a, [i64]> {
        Cow::Borrowed(batch.labels())
    }

    fn generate(
        &self,
        batch: &TokenBatch,
        config: &GenerationConfig,
        control: RowControl<'_>,
        context: &ForwardContext,
    ) -> Vec<Vec<u32>> {
        self.generate_cached(batch, config, control, context)
    }

    fn answer_log_likelihoods(
        &self,
        batch: &TokenBatch,
        answers: &[&[Vec<u32>]],
        context: &ForwardContext,
    ) -> Vec<Vec<f64>> {
        let answers = Answers::new(answers);
        let Answers { count, length, .. } = answers;
        if length == 0 {
            return answers.nothing();
        }
        let ids = answers.inputs(Some(self.config.decoder_start), self.config.pad);
        // All answers of a row attend to the same encoder output, which is not repeated.
        let memory = self.encode(batch, context);
        let rows = batch.rows() * count;
        let output = self.run_decoder(&ids, rows, &memory, false, context);
        let [_, _, width] = output.last.dims();
        let hidden = output.last.reshape([rows * length, width]);
        // Every answer begins behind the same start token.
        let position = |row, answer, at| match at {
            0 => row * count * length,
            at => (row * count + answer) * length + at,
        };
        answers.sum(hidden, position, |x| {
            self.head(self.decoder.finish(x, context), context)
        })
    }

    fn kind(&self) -> ModelKind {
        ModelKind::EncoderDecoder
    }

    fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    fn special_tokens(&self) -> SpecialTokens {
        SpecialTokens {
            bos: None,
            pad: self.config.pad as u32,
            ends: self.config.ends.iter().map(|id| *id as u32).collect(),
        }
    }

    fn default_targets(&self) -> TargetModules {
        TargetModules::Names(vec!["q".into(), "v".into()])
    }

    fn set_dropout(&mut self, probability: f64) {
        self.config.dropout = probability;
        for stack in [&mut self.encoder, &mut self.decoder] {
            stack.dropout = probability;
            for block in &mut stack.blocks {
                block.dropout = probability;
                block.self_attention.dropout = probability;
                block.feed_forward.dropout = probability;
                if let Some(cross) = &mut block.cross {
                    cross.attention.dropout = probability;
                }
            }
        }
    }
}
