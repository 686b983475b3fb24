//! Language-model backbones whose linear layers carry LoRA subspaces.
//!
//! | module | what it holds |
//! |---|---|
//! | [`backbone`] | [`Backbone`]: what a trainer needs of a model |
//! | [`taps`] | [`BlockTaps`]: reading and patching block outputs, all that attribution needs |
//! | [`batch`] | [`TokenBatch`]: token ids, mask and labels on the host |
//! | [`checkpoint`] | [`Checkpoint`]: Hugging Face safetensors files, sharded or not, read tensor by tensor |
//! | [`weights`] | [`WeightSource`], [`FloatDtype`]: where parameters come from and how they are kept |
//! | [`generation`] | [`GenerationConfig`], [`RowControl`]: decoding, one loop for every model |
//! | [`t5`] | T5 v1.0, v1.1 / Flan and mT5 |
//! | [`llama`] | LLaMA 1, 2 and 3.x, Mistral, Qwen2 and 2.5 |
//! | [`auto`] | [`AutoModel`]: whichever of them `config.json` names |
//!
//! Models name no Burn backend: they are written over [`burn::tensor::Tensor`] and run on whatever
//! [`Device`](burn::tensor::Device) they are loaded to.
//!
//! Sister crates: `aso-lora` (the layers), `aso-attribution` (uses only [`taps`]), `aso-trainer`.

pub mod auto;
pub mod backbone;
pub mod batch;
pub mod checkpoint;
pub mod error;
pub mod generation;
pub mod llama;
pub mod t5;
pub mod taps;
pub mod weights;

mod layers;
mod likelihood;

pub use auto::{AutoConfig, AutoModel};
pub use backbone::{Backbone, ModelKind, SpecialTokens};
pub use batch::TokenBatch;
pub use checkpoint::{Checkpoint, NamedTensor};
pub use error::BackboneError;
pub use generation::{Decoding, GenerationConfig, RowControl, Sampling, StopCriterion};
pub use taps::{BlockTaps, TapPoint};
pub use weights::{FloatDtype, WeightSource};
