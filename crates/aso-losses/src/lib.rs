//! Losses between subspaces and over sequences.
//!
//! Everything here is a function of plain Burn tensors: no model, no trainer. Penalties compare the
//! rows of the active task's `A_t: [r, d_in]` with the rows of every past task's `A_k`, stacked as
//! `[R, d_in]` ([`OrthogonalityPenalty`]), or measure the active subspace itself ([`norm_penalty`]).
//! [`SoftWeight`] turns a similarity into the weight of the penalty, and [`SequenceCrossEntropy`] is
//! the task loss.
//!
//! The total loss of one optimizer step is (docs/method.md, Loss)
//!
//! ```text
//! L = CE + lambda1 * w * O + lambda2 * N
//! ```
//!
//! Sister crates: `aso-lora` (subspaces), `aso-attribution` (where the similarity comes from),
//! `aso-trainer` (who adds the terms up).

mod cross_entropy;
mod orthogonality;
mod soft_weight;

pub use cross_entropy::{SequenceCrossEntropy, TokenLoss};
pub use orthogonality::{Orthogonality, OrthogonalityPenalty, SubspacePair, norm_penalty};
pub use soft_weight::SoftWeight;
