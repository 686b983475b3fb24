//! Continual training of language models: methods, evaluation, metrics, checkpoints and the run
//! directory.
//!
//! One batch on its way: [`task`] reads and tokenises, [`trainer`] orders batches and asks the
//! [`method`] for measurements and penalties, [`optimizer`] clips and updates the active subspaces,
//! [`state`] and [`files`] make sure that no interruption loses anything, [`evaluate`] and [`metrics`]
//! fill the accuracy matrix, [`results`] writes it down.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | [`RunConfig`], every key of a run's TOML file |
//! | [`load`] | model, tokenizer, adapters and tasks that a configuration names |
//! | [`embedded`] | the built-in model |
//! | [`codec`] | [`TextCodec`]: between text and a model's batches |
//! | [`task`] | [`Task`]: tokenised examples |
//! | [`batches`] | [`BatchOrder`](batches::BatchOrder): which examples a step gets |
//! | [`method`] | [`Method`], and a type for each |
//! | [`trainer`] | [`Trainer`]: the loop |
//! | [`run`] | [`Run`]: starting, resuming and extending run directories |
//! | [`optimizer`], [`schedule`] | AdamW over subspaces, global-norm clip, learning rates |
//! | [`evaluate`] | answers and their scores |
//! | [`metrics`], [`results`] | accuracy matrix, AP, BWT, forgetting, FWT, `results.json` |
//! | [`predictions`] | the answers behind the scores |
//! | [`similarity`] | how alike tasks are after training |
//! | [`state`], [`files`] | what is saved, and how it is saved whole |
//! | [`sweep`] | [`Sweep`](sweep::Sweep): methods x orders x seeds, and choosing settings on dev |
//! | [`events`] | what a run reports while it runs |
//! | [`pretrain`] | full-parameter pre-training of small backbones |

pub mod batches;
pub mod codec;
pub mod config;
pub mod embedded;
pub mod error;
pub mod evaluate;
pub mod events;
pub mod files;
pub mod load;
pub mod method;
pub mod metrics;
pub mod optimizer;
pub mod predictions;
pub mod pretrain;
pub mod results;
pub mod run;
pub mod schedule;
mod selection;
pub mod similarity;
pub mod state;
pub mod sweep;
pub mod task;
pub mod token_cache;
pub mod trainer;

pub use codec::TextCodec;
pub use config::RunConfig;
pub use error::TrainerError;
pub use method::Method;
pub use results::RunResults;
pub use run::{Run, RunStatus};
pub use task::{RunTasks, Task};
pub use trainer::{Outcome, Trainer};
