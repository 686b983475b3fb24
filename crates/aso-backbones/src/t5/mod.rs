//! T5 v1.0, v1.1 / Flan-T5 and mT5 (Raffel et al. 2020; Shazeer 2020; Xue et al. 2021), with a LoRA
//! subspace stack on every linear layer.
//!
//! Names follow Hugging Face's classes, weights its checkpoint layout. Facts that differ from a
//! textbook transformer: scores are not scaled by `1/sqrt(d_k)`; norms have no mean and no bias; a
//! bucketed relative position bias, stored in block 0 and shared by the stack; logits of v1.0 are
//! scaled by `d_model^-0.5`.

mod attention;
mod block;
mod config;
mod generate;
mod layers;
mod load;
mod model;
mod position;
mod stack;
mod tap;

pub use config::{FeedForward, HfT5Config, T5Config};
pub use load::RandomInit;
pub use model::T5ForConditionalGeneration;
pub use tap::T5Trace;
