//! What a trainer needs of a language model.

use std::borrow::Cow;

use aso_lora::{AdapterHost, ForwardContext};
use burn::tensor::{Device, Tensor};

use crate::{BlockTaps, GenerationConfig, TokenBatch};

/// A language model that carries subspaces and can be tapped.
pub trait Backbone: AdapterHost + BlockTaps {
    /// Logits of a batch, `[rows, positions, vocabulary]`.
    ///
    /// # Panics
    /// May panic for ids outside the vocabulary; see [`TokenBatch::check_vocabulary`].
    fn logits(&self, batch: &TokenBatch, context: &ForwardContext) -> Tensor<3>;

    /// The label that each position of [`logits`](Self::logits) predicts, `[rows, positions]`.
    fn aligned_labels<'a>(&self, batch: &'a TokenBatch) -> Cow<'a, [i64]>;

    /// Greedy decoding. One list of new tokens per row: no start token, no padding, the end token
    /// included where the row reached one.
    fn generate(
        &self,
        batch: &TokenBatch,
        config: &GenerationConfig,
        context: &ForwardContext,
    ) -> Vec<Vec<u32>>;

    /// Size of the vocabulary (rows of the embedding).
    fn vocabulary(&self) -> usize;

    /// Where the weights are, outside autodiff.
    fn device(&self) -> Device;

    /// PEFT's name for the kind of model, e.g. `SEQ_2_SEQ_LM`.
    fn peft_task_type(&self) -> &'static str;
}
