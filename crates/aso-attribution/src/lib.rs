//! How similar two models are in how they use a representation: integrated gradients over transformer
//! blocks, and the similarity that follows.
//!
//! For a tapped block with output h at one position, replace that output by `alpha h`, run the rest of
//! the model and read the probability P of one target token (docs/method.md, Attribution and the soft weight):
//!
//! ```text
//! attr = (h / m) * sum_i dP(alpha_i h) / d(alpha_i h)
//! rho_l = Pearson(attr_l of the current model, attr_l of the previous model),   rho = mean_l rho_l
//! ```
//!
//! The soft weight, `w = 1 - rho`, is `SoftWeight` in `aso-losses`.
//!
//! This crate knows no model: it works on anything that implements [`BlockTaps`].
//!
//! | item | what it computes |
//! |---|---|
//! | [`IntegratedGradients`] | one score vector `[d_model]` per tapped block |
//! | [`pearson`], [`Similarity`] | correlation per block and its mean |
//! | [`subspace_overlap`], [`principal_cosines`] | angles between two subspaces |
//! | [`input_response`] | how strongly a subspace responds to inputs, relative to chance |
//! | [`Attributor`] | the two presets: current and previous model, and their similarity |
//! | [`TaskComparison`] | the three ways to compare the current task with each past one |
//!
//! Sister crates: `aso-backbones` (taps), `aso-losses` (the soft weight), `aso-trainer` (when to measure).

mod attributor;
mod integrated_gradients;
mod overlap;
mod similarity;

pub use attributor::{
    Attributor, MAX_JOINED_POSITIONS, MAX_PATH_ROWS, Measurement, Preset, TapChoice, TargetToken,
    TaskComparison, TaskSimilarity,
};
pub use integrated_gradients::{AttributionScores, IntegratedGradients, PathRule, RowFactor};
pub use overlap::{input_response, principal_cosines, subspace_overlap};
pub use similarity::{Similarity, pearson};

pub use aso_backbones::{BackboneError, BlockTaps, TapPoint, TokenBatch};
pub use aso_lora::AdapterScope;
