//! The prompt of the CL benchmark, as O-LoRA's data loader writes it.

use crate::example::Example;

/// What stands around the sentence in the prompt of one data set.
///
/// The prompt is
/// ```text
/// Task:{task}
/// Dataset:{dataset}
/// {instruction}Option: {label}, {label} ⎵
/// {sentence}
/// Answer:
/// ```
/// with the blank (⎵) before the line's end and no line feed after `Answer:`. The instruction
/// brings its own line feed. A task without an instruction (COPA, whose sentence holds question
/// and choices) has no options line either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClPrompt {
    prefix: String,
}

/// What follows the sentence in every prompt of the CL benchmark.
pub const SUFFIX: &str = "\nAnswer:";

impl ClPrompt {
    /// The prompt of `dataset`, which belongs to `task`.
    pub fn new(task: &str, dataset: &str, instruction: Option<&str>, labels: &[String]) -> Self {
        let mut prefix = format!("Task:{task}\nDataset:{dataset}\n");
        if let Some(instruction) = instruction {
            prefix += &format!("{instruction}Option: {} \n", labels.join(", "));
        }
        Self { prefix }
    }

    /// An example with this prompt.
    pub fn example(&self, sentence: String, target: String) -> Example {
        Example {
            prefix: self.prefix.clone(),
            sentence,
            suffix: SUFFIX.to_owned(),
            target,
            ..Example::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_with_and_without_instruction() {
        let labels = ["Good".to_owned(), "Bad".to_owned()];
        let prompt = ClPrompt::new("SC", "SST-2", Some("Which?\n"), &labels);
        assert_eq!(
            prompt
                .example("Text: fine . ".into(), "Good".into())
                .prompt(),
            "Task:SC\nDataset:SST-2\nWhich?\nOption: Good, Bad \nText: fine . \nAnswer:"
        );
        let prompt = ClPrompt::new("COPA", "COPA", None, &labels);
        assert_eq!(
            prompt.example("A or B?".into(), "A".into()).prompt(),
            "Task:COPA\nDataset:COPA\nA or B?\nAnswer:"
        );
    }
}
