//! The whole model.

use std::borrow::Cow;

use aso_lora::{AdapterHost, ForwardContext, LoraLinear, TargetModules};
use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor};

use super::LlamaConfig;
use super::block::LlamaDecoderLayer;
use super::rotary::Rotary;
use crate::batch::IGNORED_LABEL;
use crate::generation::RowControl;
use crate::layers::{
    KeyValue, KeyValueCache, RmsNorm, additive_mask, embed, linear_head, pick_position,
    transposed_head,
};
use crate::likelihood::Answers;
use crate::{
    Backbone, BlockTaps, GenerationConfig, ModelKind, NamedTensor, SpecialTokens, TokenBatch,
};

/// LLaMA, Mistral or Qwen2 with a language-modelling head.
///
/// Load one with [`from_pretrained`](Self::from_pretrained). Weights are constants; what trains are the
/// active subspaces of its [`LoraLinear`] layers.
#[derive(Module, Debug)]
pub struct LlamaForCausalLm {
    /// Embedding, `[vocabulary, d_model]`.
    pub(super) embed_tokens: Param<Tensor<2>>,
    pub(super) layers: Vec<LlamaDecoderLayer>,
    pub(super) norm: RmsNorm,
    /// Untied head `[vocabulary, d_model]`; the embedding serves as head without it.
    pub(super) lm_head: Option<Param<Tensor<2>>>,
    /// The head as `[d_model, vocabulary]`, if such a copy is kept.
    pub(super) transposed_head: Option<Tensor<2>>,
    #[module(skip)]
    pub(super) config: LlamaConfig,
}

/// New tokens behind a past (or none), as the blocks need them.
pub(super) struct Sequence<'a> {
    /// Ids of the new tokens, `[rows, length]`.
    pub(super) ids: &'a [i64],
    /// 1 for tokens and 0 for padding, of past and new positions: `[rows, past + length]`.
    pub(super) mask: &'a [i64],
    pub(super) rows: usize,
}

/// One forward pass through the blocks.
pub(super) struct StackOutput {
    /// Residual stream after each block at the picked positions, `[rows, 1, d_model]`, if any were.
    pub(super) picked: Vec<Tensor<3>>,
    /// Output of the last block, before the final norm.
    pub(super) last: Tensor<3>,
    /// Keys and values of each block, past and new.
    pub(super) memory: Vec<KeyValue>,
}

impl LlamaForCausalLm {
    /// The resolved configuration.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Runs the blocks. `past` are keys and values of the positions before, per block, to which those of the new
    /// ones are added; `pick` names one position a row (among the new ones) whose residual stream is kept.
    pub(super) fn run(
        &self,
        sequence: &Sequence<'_>,
        past: Option<&mut [KeyValueCache]>,
        pick: Option<&[i64]>,
        context: &ForwardContext,
    ) -> StackOutput {
        let Sequence { ids, mask, rows } = *sequence;
        let device = self.device();
        let length = ids.len() / rows;
        let keys = mask.len() / rows;
        let positions: Vec<i64> = mask
            .chunks(keys)
            .flat_map(|row| token_positions(row)[keys - length..].to_vec())
            .collect();
        let rotary = Rotary::new(&positions, rows, &self.config.frequencies, &device);
        let biases = self.biases(mask, rows, length, &device);
        let x = embed(&self.embed_tokens, ids, rows, context);
        self.run_blocks(x, &rotary, biases, past, pick, context)
    }

    /// [`run`](Self::run) from the embeddings on.
    pub(super) fn run_blocks(
        &self,
        mut x: Tensor<3>,
        rotary: &Rotary,
        biases: Vec<Tensor<4>>,
        mut past: Option<&mut [KeyValueCache]>,
        pick: Option<&[i64]>,
        context: &ForwardContext,
    ) -> StackOutput {
        let mut picked = Vec::new();
        let mut memory = Vec::with_capacity(self.layers.len());
        for (at, (layer, bias)) in self.layers.iter().zip(biases).enumerate() {
            let past = past.as_deref_mut().map(|past| &mut past[at]);
            let kept;
            (x, kept) = layer.forward(x, rotary, bias, past, context);
            memory.push(kept);
            picked.extend(pick.map(|positions| pick_position(x.clone(), positions)));
        }
        StackOutput {
            picked,
            last: x,
            memory,
        }
    }

    /// For every block the additive mask `[rows, 1, length, keys]` of the last `length` positions: tokens
    /// that are not later and, where there is a window, not too far back.
    pub(super) fn biases(
        &self,
        mask: &[i64],
        rows: usize,
        length: usize,
        device: &Device,
    ) -> Vec<Tensor<4>> {
        let keys = mask.len() / rows;
        let of_window = |window: Option<usize>| {
            let window = window.unwrap_or(usize::MAX);
            let visible = mask.chunks(keys).flat_map(|row| {
                (keys - length..keys).flat_map(move |query| {
                    (0..keys).map(move |key| row[key] != 0 && key <= query && query - key < window)
                })
            });
            additive_mask(visible, [rows, 1, length, keys], device)
        };
        self.per_window(of_window)
    }

    /// One value for every block, computed once for each distinct window.
    pub(super) fn per_window<T: Clone>(&self, compute: impl Fn(Option<usize>) -> T) -> Vec<T> {
        let mut known: Vec<(Option<usize>, T)> = Vec::new();
        let windows = self.config.windows.iter();
        windows
            .map(|window| {
                if let Some((_, value)) = known.iter().find(|(known, _)| known == window) {
                    return value.clone();
                }
                let value = compute(*window);
                known.push((*window, value.clone()));
                value
            })
            .collect()
    }

    /// Final norm and head, `[.., d_model] -> [.., vocabulary]`.
    pub(super) fn head<const D: usize>(&self, x: Tensor<D>, context: &ForwardContext) -> Tensor<D> {
        let head = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
        let x = self.norm.forward(x, context);
        linear_head(x, context.value(head), self.transposed_head.as_ref())
    }

    fn residual_stream(&self, batch: &TokenBatch, context: &ForwardContext) -> Tensor<3> {
        let sequence = Sequence {
            ids: batch.input_ids(),
            mask: batch.attention_mask(),
            rows: batch.rows(),
        };
        self.run(&sequence, None, None, context).last
    }

    /// Which parameter the embedding is, for optimizers that treat it apart.
    pub fn embedding_id(&self) -> ParamId {
        self.embed_tokens.id
    }

    /// Every parameter of the backbone under its Hugging Face name, in PyTorch's orientation,
    /// without subspaces.
    pub fn named_parameters(&self) -> Vec<NamedTensor> {
        let embedding = self.embed_tokens.val();
        let mut parameters = vec![NamedTensor::new("model.embed_tokens.weight", embedding)];
        for layer in &self.layers {
            for linear in layer.linears() {
                let name = linear.name();
                let weight = linear.weight.val().transpose();
                parameters.push(NamedTensor::new(format!("{name}.weight"), weight));
                if let Some(bias) = &linear.bias {
                    parameters.push(NamedTensor::new(format!("{name}.bias"), bias.val()));
                }
            }
            for norm in layer.norms() {
                parameters.push(NamedTensor::new(norm.name.clone(), norm.weight.val()));
            }
        }
        parameters.push(NamedTensor::new(
            self.norm.name.clone(),
            self.norm.weight.val(),
        ));
        if let Some(head) = &self.lm_head {
            parameters.push(NamedTensor::new("lm_head.weight", head.val()));
        }
        parameters
    }
}

/// Position of every token among the tokens of its row; padding counts as position 0.
pub(super) fn token_positions(mask: &[i64]) -> Vec<i64> {
    let mut seen = 0;
    mask.iter()
        .map(|kept| {
            seen += i64::from(*kept != 0);
            (seen - 1).max(0)
        })
        .collect()
}

impl AdapterHost for LlamaForCausalLm {
    fn visit_linears(&self, visit: &mut dyn FnMut(&LoraLinear)) {
        for layer in &self.layers {
            layer.linears().into_iter().for_each(&mut *visit);
        }
    }

    fn visit_linears_mut(&mut self, visit: &mut dyn FnMut(&mut LoraLinear)) {
        for layer in &mut self.layers {
            layer.linears_mut().into_iter().for_each(&mut *visit);
        }
    }

    fn keep_transposed(&mut self) {
        self.visit_linears_mut(&mut LoraLinear::keep_transposed);
        let head = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
        self.transposed_head = transposed_head(head);
    }
}

impl Backbone for LlamaForCausalLm {
    fn logits(&self, batch: &TokenBatch, context: &ForwardContext) -> Tensor<3> {
        self.head(self.residual_stream(batch, context), context)
    }

    fn aligned_labels<'a>(&self, batch: &'a TokenBatch) -> Cow<'a, [i64]> {
        let shifted = (0..batch.rows()).flat_map(|row| {
            let labels = batch.row_labels(row);
            labels[1..].iter().copied().chain([IGNORED_LABEL])
        });
        Cow::Owned(shifted.collect())
    }

    fn answer_logits<'a>(
        &self,
        batch: &'a TokenBatch,
        context: &ForwardContext,
    ) -> (Tensor<3>, Cow<'a, [i64]>) {
        let length = batch.source_len();
        let first = (0..batch.rows())
            .filter_map(|row| batch.first_label(row))
            .map(|(at, _)| at.saturating_sub(1))
            .min()
            .unwrap_or(length - 1);
        let stream = self.residual_stream(batch, context);
        let logits = self.head(stream.narrow(1, first, length - first), context);
        let labels = self.aligned_labels(batch);
        let labels = labels.chunks(length).flat_map(|row| &row[first..]).copied();
        (logits, Cow::Owned(labels.collect()))
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
        self.log_likelihoods(batch, &Answers::new(answers), context)
    }

    fn kind(&self) -> ModelKind {
        ModelKind::Causal
    }

    fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    fn special_tokens(&self) -> SpecialTokens {
        SpecialTokens {
            bos: self.config.bos.map(|id| id as u32),
            pad: self.config.pad as u32,
            ends: self.config.ends.iter().map(|id| *id as u32).collect(),
        }
    }

    fn default_targets(&self) -> TargetModules {
        TargetModules::Names(vec!["q_proj".into(), "v_proj".into()])
    }

    fn set_dropout(&mut self, probability: f64) {
        self.config.dropout = probability;
        for layer in &mut self.layers {
            layer.self_attn.dropout = probability;
        }
    }
}
