//! Low-rank subspaces on linear layers: one per task, frozen when the task ends.
//!
//! A [`LoraLinear`] computes (ASO-LoRA, section 1 of the method; O-LoRA, Wang et al. 2023, eq. 2)
//!
//! ```text
//! y = W x + sum_{k<t} s_k B_k A_k x + s_t B_t A_t dropout(x)        s = alpha / r
//! ```
//!
//! with a frozen base `W`, a [stack](FrozenStack) of frozen subspaces and at most one
//! [active](Subspace) subspace that trains. No dense `B A` is ever built in a training step; the
//! frozen past can be [folded](LoraLinear::fold) into `W`, so that a step costs the same whatever the
//! number of past tasks.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | [`LoraConfig`], [`TargetModules`] |
//! | [`context`] | [`ForwardContext`]: which subspaces take part, dropout, gradient tracking |
//! | [`linear`] | [`LoraLinear`], [`FrozenStack`], [`Subspace`] |
//! | [`host`] | [`AdapterHost`]: a model made of such layers, and what can be done to all of them |
//! | [`floats`] | float tensors of safetensors files |
//! | [`peft`] | [`Adapter`]: Hugging Face PEFT adapter directories, both ways |
//!
//! Sister crates: `aso-kernels` (fused operations; its feature `flex` turns on those for the CPU), `aso-losses` (penalties between subspaces), `aso-backbones` (models built from
//! `LoraLinear`), `aso-attribution` (task similarity), `aso-data`, `aso-trainer`, `aso-cli`.

pub mod config;
pub mod context;
pub mod error;
pub mod floats;
pub mod host;
pub mod inputs;
pub mod linear;
pub mod peft;

pub use aso_kernels::{DropoutMask, DropoutStream, site};
pub use config::{LoraConfig, TargetMatcher, TargetModules};
pub use context::{AdapterScope, ForwardContext};
pub use error::LoraError;
pub use host::AdapterHost;
pub use inputs::InputCovariance;
pub use linear::{FrozenStack, LoraLinear, Subspace};
pub use peft::{Adapter, AdapterKind, LoraWeights, Patterns, PeftConfig, Sidecar};
// Their types are in `LoraError`, `PeftConfig` and `floats`.
pub use {regex, safetensors, serde_json};
