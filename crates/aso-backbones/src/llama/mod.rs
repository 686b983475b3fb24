//! LLaMA 1, 2 and 3.x, Mistral and Qwen2 / 2.5 (Touvron et al. 2023; Jiang et al. 2023; Yang et al. 2024), with a
//! LoRA subspace stack on every linear layer.
//!
//! Names follow Hugging Face's classes, weights its checkpoint layout. What the three families share:
//! pre-norm blocks with root-mean-square norms, grouped-query attention with rotary positions that pair
//! dimension i with i + d/2 (not Burn's neighbours), a SiLU-gated feed-forward layer. What differs is
//! in [`LlamaConfig`]: biases, a sliding window, the frequencies of the rotary embedding.
//!
//! Batches are padded on the left. Positions count a row's tokens, so padding changes nothing.

mod attention;
mod block;
mod config;
mod generate;
mod likelihood;
mod load;
mod model;
mod rotary;
mod tap;

pub use config::{HfLlamaConfig, LlamaConfig, RopeScaling};
pub use load::RandomInit;
pub use model::LlamaForCausalLm;
pub use tap::LlamaTrace;
