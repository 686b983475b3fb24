//! Continual-learning benchmark readers, prompts, tokenisation, collation and task streams.
//!
//! Everything between a text file and the integer tensors of a training step, and nothing about
//! models: this crate knows the tokenizer and Burn's `Int` tensors only.
//!
//! | module | holds |
//! |---|---|
//! | [`example`] | [`Example`] (prefix, sentence, suffix, target) and [`Split`] |
//! | [`task`] | [`TaskSource`] and [`TaskLibrary`] (where tasks come from), [`TaskData`] (a task in memory), [`ExampleCaps`] |
//! | [`benchmark`] | [`ClBenchmark`]: the CL benchmark's `TASK/DATASET/{train,dev,test,labels}.json` |
//! | [`jsonl`] | [`JsonlTask`], [`JsonlLibrary`]: own tasks as `{"input", "target"}` lines |
//! | [`trace`] | [`TraceLibrary`]: TRACE's `TASK/{train,eval,test}.json` |
//! | [`superni`] | [`SuperNiLibrary`]: Super-NaturalInstructions, as SAPT divides it or file by file |
//! | [`library`] | [`open_library`]: whichever [`Layout`] it is |
//! | [`dev_cut`] | [`DevFromTrain`]: a library whose dev splits are cut from its training examples |
//! | [`synthetic`] | [`SyntheticSuite`]: generated tasks of known relatedness, and text to pre-train on |
//! | [`prompt`] | the benchmark's prompt, byte for byte |
//! | [`encode`] | [`TextTokenizer`], [`Seq2SeqEncoder`]: truncation that spares the instruction |
//! | [`causal`] | [`CausalEncoder`]: the same for a causal model; [`ExampleEncoder`]: either |
//! | [`chat`] | [`ChatTemplate`] |
//! | [`collate`] | [`collate_seq2seq`], [`collate_causal`], [`collate_prompts`]: padded, row-major batches |
//! | [`order`] | [`batch_order`], [`evaluation_order`]: which examples form which batch |
//! | [`stream`] | [`OrderPreset`]: the published task orders by name |
//! | [`task_files`] | [`task_files_order`]: the order in a folder of O-LoRA's task files |
//! | [`metric`] | [`Metric`]: exact match, ROUGE-L, SARI, edit similarity |
//! | [`error`] | [`DataError`] |
//!
//! Every random choice is a function of its arguments (seeds, epoch, task name) through ChaCha8
//! and is independent of threads, platform and hash maps, so a resumed run recomputes it instead
//! of storing it.
//!
//! # From a task to a batch
//!
//! ```
//! use aso_data::{
//!     ExampleCaps, LengthGrouping, Seq2SeqEncoder, SyntheticSuite, TaskData, TaskLibrary,
//!     TextTokenizer, batch_order, collate_seq2seq,
//! };
//! # fn tokenizer() -> Result<TextTokenizer, Box<dyn std::error::Error + Send + Sync>> {
//! #     use tokenizers::{models::wordlevel::WordLevel, pre_tokenizers::whitespace::Whitespace};
//! #     use tokenizers::{AddedToken, Tokenizer};
//! #     let vocabulary = ["<pad>", "</s>", "<unk>", "was", "the", ":"];
//! #     let vocabulary = vocabulary.iter().zip(0..).map(|(word, id)| (word.to_string(), id));
//! #     let model = WordLevel::builder().vocab(vocabulary.collect()).unk_token("<unk>".into()).build()?;
//! #     let mut tokenizer = Tokenizer::new(model);
//! #     tokenizer.with_pre_tokenizer(Some(Whitespace {}));
//! #     tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"].map(|t| AddedToken::from(t, true)))?;
//! #     Ok(TextTokenizer::from_tokenizer(tokenizer)?)
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let tokenizer = tokenizer()?; // or `TextTokenizer::from_file("tokenizer.json")?`
//! let suite = SyntheticSuite::demo(1);
//! let task = TaskData::load(suite.task("topic-news")?.as_ref(), &ExampleCaps::default())?;
//!
//! let encoder = Seq2SeqEncoder::new(&tokenizer, 512, 50)?;
//! let train = encoder.encode_all(&task.name, &task.train)?;
//! let lengths: Vec<usize> = train.iter().map(|example| example.source.len()).collect();
//! for batch in batch_order(&lengths, 16, 42, 0, LengthGrouping::default()) {
//!     let rows: Vec<_> = batch.iter().map(|&index| &train[index]).collect();
//!     let batch = collate_seq2seq(&rows, tokenizer.pad_id().unwrap_or(0));
//!     assert_eq!(batch.input_ids.len(), batch.rows * batch.source_len);
//! }
//! # Ok(())
//! # }
//! ```

pub mod benchmark;
pub mod causal;
pub mod chat;
pub mod collate;
pub mod dev_cut;
pub mod encode;
pub mod error;
pub mod example;
pub mod jsonl;
pub mod library;
pub mod metric;
pub mod order;
pub mod prompt;
pub mod stream;
pub mod superni;
pub mod synthetic;
pub mod task;
pub mod task_files;
pub mod trace;

pub mod random;
mod records;

pub use benchmark::{ClBenchmark, ClDataset};
pub use causal::{CausalEncoder, ExampleEncoder};
pub use chat::ChatTemplate;
pub use collate::{IGNORED_LABEL, PaddedBatch, collate_causal, collate_prompts, collate_seq2seq};
pub use dev_cut::DevFromTrain;
pub use encode::{AnswerSet, EncodedExample, Seq2SeqEncoder, TextTokenizer};
pub use error::{DataError, Place, RecordProblem};
pub use example::{Example, Split, TruncationSide};
pub use jsonl::{JsonlLibrary, JsonlTask};
pub use library::{Layout, open_library};
pub use metric::{Metric, edit_similarity, exact_match, normalize_answer, rouge_l, sari};
pub use order::{LengthGrouping, batch_order, evaluation_order};
pub use stream::{OrderPreset, order_presets};
pub use superni::{SuperNiLibrary, SuperNiTask};
pub use synthetic::{SyntheticSuite, SyntheticTask};
pub use task::{ExampleCaps, TaskData, TaskLibrary, TaskSource};
pub use task_files::task_files_order;
pub use trace::{TraceLibrary, TraceTask, trace_metric};
