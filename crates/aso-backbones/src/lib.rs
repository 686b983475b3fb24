//! Language-model backbones whose linear layers carry LoRA subspaces.
//!
//! | module | what it holds |
//! |---|---|
//! | [`backbone`] | [`Backbone`]: what a trainer needs of a model |
//! | [`taps`] | [`BlockTaps`]: reading and patching block outputs, all that attribution needs |
//! | [`batch`] | [`TokenBatch`]: token ids, mask and labels on the host |
//! | [`checkpoint`] | [`Checkpoint`]: Hugging Face safetensors files, sharded or not, read tensor by tensor |
//! | [`generation`] | [`GenerationConfig`] |
//! | [`t5`] | T5 v1.0, v1.1 / Flan and mT5 |
//!
//! Models name no Burn backend: they are written over [`burn::tensor::Tensor`] and run on whatever
//! [`Device`](burn::tensor::Device) they are loaded to.
//!
//! Sister crates: `aso-lora` (the layers), `aso-attribution` (uses only [`taps`]), `aso-trainer`.

pub mod backbone;
pub mod batch;
pub mod checkpoint;
pub mod error;
pub mod generation;
pub mod t5;
pub mod taps;

pub use backbone::Backbone;
pub use batch::TokenBatch;
pub use checkpoint::{Checkpoint, NamedTensor, StorageDtype, WeightSource};
pub use error::BackboneError;
pub use generation::GenerationConfig;
pub use taps::{BlockTaps, TapPoint};
