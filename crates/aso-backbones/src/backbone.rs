//! What a trainer needs of a language model.

use std::borrow::Cow;

use aso_lora::{AdapterHost, ForwardContext, TargetModules};
use burn::tensor::Tensor;

use crate::generation::RowControl;
use crate::{BlockTaps, GenerationConfig, TokenBatch};

/// How a model reads prompt and answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// The prompt in the encoder, the answer in the decoder: padding on the right.
    EncoderDecoder,
    /// Prompt and answer in one sequence: padding on the left.
    Causal,
}

impl ModelKind {
    /// PEFT's name for the kind of model.
    pub fn peft_task_type(self) -> &'static str {
        match self {
            Self::EncoderDecoder => "SEQ_2_SEQ_LM",
            Self::Causal => "CAUSAL_LM",
        }
    }
}

/// The ids that a model gives a special meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialTokens {
    /// First token of every sequence, if the model has one.
    pub bos: Option<u32>,
    /// Padding; masked, so any id would do.
    pub pad: u32,
    /// The tokens that end generation; the first one ends answers in training.
    pub ends: Vec<u32>,
}

/// A language model that carries subspaces and can be tapped.
///
/// A clone shares its weights until one of the two is changed.
pub trait Backbone: AdapterHost + BlockTaps + Clone {
    /// Logits of a batch, `[rows, positions, vocabulary]`.
    ///
    /// # Panics
    /// May panic for ids outside the vocabulary; see [`TokenBatch::check_vocabulary`].
    fn logits(&self, batch: &TokenBatch, context: &ForwardContext) -> Tensor<3>;

    /// The label that each position of [`logits`](Self::logits) predicts, `[rows, positions]`.
    fn aligned_labels<'a>(&self, batch: &'a TokenBatch) -> Cow<'a, [i64]>;

    /// Logits of a run of positions that covers every label, `[rows, positions, vocabulary]`, and the labels
    /// that these positions predict: all that a loss needs, without the head of a causal model on its
    /// prompt.
    fn answer_logits<'a>(
        &self,
        batch: &'a TokenBatch,
        context: &ForwardContext,
    ) -> (Tensor<3>, Cow<'a, [i64]>) {
        (self.logits(batch, context), self.aligned_labels(batch))
    }

    /// Continues a batch of prompts (an encoder-decoder's sources; a causal model's prompts, padded on the
    /// left; labels play no part). One list of new tokens per row: no start token, no padding, the end
    /// token included where the row reached one.
    ///
    /// What a `config` that fails [`GenerationConfig::validate`] generates is unspecified.
    fn generate(
        &self,
        batch: &TokenBatch,
        config: &GenerationConfig,
        control: RowControl<'_>,
        context: &ForwardContext,
    ) -> Vec<Vec<u32>>;

    /// Log-likelihoods of given answers to a batch of prompts (as for [`generate`](Self::generate)): for every row
    /// and each of its `answers` the sum of `log p(token | prompt, tokens before)`, not divided by the length.
    ///
    /// The answers of a row share what the model makes of its prompt, which is computed once.
    ///
    /// # Panics
    /// May panic if there is not one list of answers a row, or for ids outside the vocabulary.
    fn answer_log_likelihoods(
        &self,
        batch: &TokenBatch,
        answers: &[&[Vec<u32>]],
        context: &ForwardContext,
    ) -> Vec<Vec<f64>>;

    /// How the model reads prompt and answer.
    fn kind(&self) -> ModelKind;

    /// Size of the vocabulary (rows of the embedding).
    fn vocabulary(&self) -> usize;

    /// Special tokens.
    fn special_tokens(&self) -> SpecialTokens;

    /// The layers that get a subspace if nothing else is asked for: query and value projections.
    fn default_targets(&self) -> TargetModules;

    /// Changes the dropout probability of the backbone (not of its subspaces).
    fn set_dropout(&mut self, probability: f64);
}
