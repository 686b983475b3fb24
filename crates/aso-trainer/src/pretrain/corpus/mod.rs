//! Pre-training on the texts of a data folder, whose labels are not used.
//!
//! A small model on a few megabytes of text learns neither words nor reading by predicting text alone. What helps:
//! token vectors that start from co-occurrence statistics, and items made from the texts that
//! teach what instruction-tuned models can do with a prompt: find the option that the text mentions, choose the one
//! that belongs to it.

mod embedding;
mod items;
mod terms;
mod tokenizer;

use aso_data::{DataError, Split, TaskLibrary};

pub(super) use embedding::{token_vectors, with_identity};
pub use items::{ItemKind, ItemMaker};
pub(super) use tokenizer::tokenizer_json;

/// The texts of a collection of tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    texts: Vec<String>,
}

impl Corpus {
    /// The sentences of every task's train split, in the library's order, without prompts and labels. Dev and test
    /// splits are left alone.
    ///
    /// # Errors
    /// Those of reading a task.
    pub fn read(library: &dyn TaskLibrary) -> Result<Self, DataError> {
        let mut texts = Vec::new();
        for name in library.names() {
            let examples = library.task(&name)?.load(Split::Train)?;
            texts.extend(examples.into_iter().map(|example| example.sentence));
        }
        Ok(Self::new(texts))
    }

    /// A corpus of given texts; empty ones are left out.
    pub fn new(texts: Vec<String>) -> Self {
        let kept = texts.into_iter().filter(|text| !text.trim().is_empty());
        Self {
            texts: kept.collect(),
        }
    }

    /// The texts.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }
}
