//! A model of whichever family `config.json` names.

use std::borrow::Cow;
use std::path::Path;

use aso_lora::{AdapterHost, AdapterScope, ForwardContext, LoraLinear, TargetModules};
use burn::tensor::{Device, Tensor};
use serde::Deserialize;

use crate::checkpoint::{io, parse_json};
use crate::generation::{EndTokens, RowControl};
use crate::llama::{LlamaConfig, LlamaForCausalLm, LlamaTrace};
use crate::t5::{T5Config, T5ForConditionalGeneration, T5Trace};
use crate::{
    Backbone, BackboneError, BlockTaps, Checkpoint, FloatDtype, GenerationConfig, ModelKind,
    SpecialTokens, TapPoint, TokenBatch,
};

/// The configuration of any supported model.
#[derive(Debug, Clone, PartialEq)]
pub enum AutoConfig {
    /// `model_type` `t5` or `mt5`.
    T5(T5Config),
    /// `model_type` `llama`, `mistral` or `qwen2`.
    Llama(LlamaConfig),
}

/// A model of any supported family, for programs that learn the family from a file. Programs that know it
/// use the model's own type.
#[derive(Debug, Clone)]
pub enum AutoModel {
    /// T5 and mT5.
    T5(Box<T5ForConditionalGeneration>),
    /// LLaMA, Mistral and Qwen2.
    Llama(Box<LlamaForCausalLm>),
}

/// What a traced pass of an [`AutoModel`] keeps.
///
/// # Panics
/// The methods of [`BlockTaps`] panic if an [`AutoModel`] of another family is given it.
#[derive(Debug)]
pub enum AutoTrace {
    /// Of a [`T5ForConditionalGeneration`].
    T5(Box<T5Trace>),
    /// Of a [`LlamaForCausalLm`].
    Llama(Box<LlamaTrace>),
}

impl AutoConfig {
    /// Reads `config.json` of a model folder, and the end tokens of its `generation_config.json` if there
    /// is one.
    ///
    /// # Errors
    /// Names the file and the key that is missing, of the wrong type or not supported.
    pub fn from_dir(dir: &Path) -> Result<Self, BackboneError> {
        let path = dir.join("config.json");
        let text = std::fs::read(&path).map_err(io(&path))?;
        let mut config = Self::from_json(&path, &text)?;
        let (vocabulary, ends) = match &mut config {
            Self::T5(config) => (config.vocabulary, &mut config.ends),
            Self::Llama(config) => (config.vocabulary, &mut config.ends),
        };
        EndTokens::of_generation_config(dir, vocabulary)?.add_to(ends);
        Ok(config)
    }

    /// Resolves the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir).
    pub fn from_json(path: &Path, text: &[u8]) -> Result<Self, BackboneError> {
        #[derive(Deserialize)]
        struct Family {
            model_type: String,
        }
        let Family { model_type } = parse_json(path, text)?;
        match model_type.as_str() {
            "t5" | "mt5" => T5Config::resolve(path, &parse_json(path, text)?).map(Self::T5),
            family if LlamaConfig::MODEL_TYPES.contains(&family) => {
                LlamaConfig::resolve(path, &parse_json(path, text)?).map(Self::Llama)
            }
            other => Err(BackboneError::UnsupportedConfig {
                path: path.to_owned(),
                key: "model_type",
                expected: "one of t5, mt5, llama, mistral, qwen2".into(),
                found: format!("{other:?}"),
            }),
        }
    }
}

impl AutoModel {
    /// Loads a Hugging Face model folder, its matrices kept in `dtype`.
    ///
    /// # Errors
    /// Names the file, key or tensor, what was expected and what was found.
    pub fn from_pretrained(
        dir: &Path,
        dtype: FloatDtype,
        device: &Device,
    ) -> Result<Self, BackboneError> {
        let config = AutoConfig::from_dir(dir)?;
        Self::from_checkpoint(config, &Checkpoint::open(dir)?, dtype, device)
    }

    /// Loads from an opened checkpoint.
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained).
    pub fn from_checkpoint(
        config: AutoConfig,
        checkpoint: &Checkpoint,
        dtype: FloatDtype,
        device: &Device,
    ) -> Result<Self, BackboneError> {
        if !device.supports_dtype(dtype) {
            return Err(BackboneError::Precision {
                dtype: dtype.name(),
            });
        }
        Ok(match config {
            AutoConfig::T5(config) => {
                let load = T5ForConditionalGeneration::from_checkpoint;
                Self::T5(Box::new(load(config, checkpoint, dtype, device)?))
            }
            AutoConfig::Llama(config) => {
                let load = LlamaForCausalLm::from_checkpoint;
                Self::Llama(Box::new(load(config, checkpoint, dtype, device)?))
            }
        })
    }
}

/// Runs the same expression on the model of whichever family.
macro_rules! each {
    ($self:expr, $model:ident => $body:expr) => {
        match $self {
            Self::T5($model) => $body,
            Self::Llama($model) => $body,
        }
    };
}

impl AutoModel {
    /// The oracle of [`Backbone::generate`]: everything is computed again for every token.
    #[doc(hidden)]
    pub fn generate_uncached(
        &self,
        batch: &TokenBatch,
        config: &GenerationConfig,
    ) -> Vec<Vec<u32>> {
        each!(self, model => model.generate_uncached(batch, config))
    }
}

impl AdapterHost for AutoModel {
    fn visit_linears(&self, visit: &mut dyn FnMut(&LoraLinear)) {
        each!(self, model => model.visit_linears(visit));
    }

    fn visit_linears_mut(&mut self, visit: &mut dyn FnMut(&mut LoraLinear)) {
        each!(self, model => model.visit_linears_mut(visit));
    }

    fn keep_transposed(&mut self) {
        each!(self, model => model.keep_transposed());
    }
}

/// # Panics
/// All that takes a trace panics if a model of another family made it.
impl BlockTaps for AutoModel {
    type Trace = AutoTrace;

    fn device(&self) -> Device {
        each!(self, model => model.device())
    }

    fn tapped_blocks(&self, point: TapPoint) -> usize {
        each!(self, model => model.tapped_blocks(point))
    }

    fn tapped_block_of(&self, layer: &str) -> Option<(TapPoint, usize)> {
        each!(self, model => model.tapped_block_of(layer))
    }

    fn trace(
        &self,
        batch: &TokenBatch,
        point: TapPoint,
        scope: AdapterScope,
    ) -> Result<AutoTrace, BackboneError> {
        Ok(match self {
            Self::T5(model) => AutoTrace::T5(Box::new(model.trace(batch, point, scope)?)),
            Self::Llama(model) => AutoTrace::Llama(Box::new(model.trace(batch, point, scope)?)),
        })
    }

    fn predicted(
        &self,
        batch: &TokenBatch,
        scope: AdapterScope,
    ) -> Result<Vec<i64>, BackboneError> {
        each!(self, model => model.predicted(batch, scope))
    }

    fn hidden(&self, trace: &AutoTrace, block: usize) -> Tensor<3> {
        match (self, trace) {
            (Self::T5(model), AutoTrace::T5(trace)) => model.hidden(trace, block),
            (Self::Llama(model), AutoTrace::Llama(trace)) => model.hidden(trace, block),
            _ => other_model(),
        }
    }

    fn probability(&self, trace: &AutoTrace, block: usize, patched: Tensor<4>) -> Tensor<2> {
        match (self, trace) {
            (Self::T5(model), AutoTrace::T5(trace)) => model.probability(trace, block, patched),
            (Self::Llama(model), AutoTrace::Llama(trace)) => {
                model.probability(trace, block, patched)
            }
            _ => other_model(),
        }
    }

    fn joint_probabilities(
        &self,
        trace: &AutoTrace,
        patched: &[Tensor<4>],
    ) -> Option<Vec<Tensor<2>>> {
        match (self, trace) {
            (Self::T5(model), AutoTrace::T5(trace)) => model.joint_probabilities(trace, patched),
            (Self::Llama(model), AutoTrace::Llama(trace)) => {
                model.joint_probabilities(trace, patched)
            }
            _ => other_model(),
        }
    }
}

/// A trace is used with the model that made it; anything else is a mistake in the calling code.
fn other_model() -> ! {
    panic!("the trace was made by a model of another family")
}

impl Backbone for AutoModel {
    fn logits(&self, batch: &TokenBatch, context: &ForwardContext) -> Tensor<3> {
        each!(self, model => model.logits(batch, context))
    }

    fn aligned_labels<'a>(&self, batch: &'a TokenBatch) -> Cow<'a, [i64]> {
        each!(self, model => model.aligned_labels(batch))
    }

    fn answer_logits<'a>(
        &self,
        batch: &'a TokenBatch,
        context: &ForwardContext,
    ) -> (Tensor<3>, Cow<'a, [i64]>) {
        each!(self, model => model.answer_logits(batch, context))
    }

    fn generate(
        &self,
        batch: &TokenBatch,
        config: &GenerationConfig,
        control: RowControl<'_>,
        context: &ForwardContext,
    ) -> Vec<Vec<u32>> {
        each!(self, model => model.generate(batch, config, control, context))
    }

    fn answer_log_likelihoods(
        &self,
        batch: &TokenBatch,
        answers: &[&[Vec<u32>]],
        context: &ForwardContext,
    ) -> Vec<Vec<f64>> {
        each!(self, model => model.answer_log_likelihoods(batch, answers, context))
    }

    fn kind(&self) -> ModelKind {
        each!(self, model => model.kind())
    }

    fn vocabulary(&self) -> usize {
        each!(self, model => model.vocabulary())
    }

    fn special_tokens(&self) -> SpecialTokens {
        each!(self, model => model.special_tokens())
    }

    fn default_targets(&self) -> TargetModules {
        each!(self, model => model.default_targets())
    }

    fn set_dropout(&mut self, probability: f64) {
        each!(self, model => model.set_dropout(probability));
    }
}
