//! One example of a text-to-text task.

use std::fmt;
use std::str::FromStr;

use crate::error::DataError;

/// One example: `prefix + sentence + suffix` is the prompt, `target` the answer.
///
/// The parts are kept apart because only the sentence may be cut when the prompt is too long:
/// a prompt that has lost its options or its final `Answer:` asks another question.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Example {
    /// Text before the sentence: task name, instruction, options. Never truncated.
    pub prefix: String,
    /// The text the task is about.
    pub sentence: String,
    /// Text after the sentence. Never truncated.
    pub suffix: String,
    /// The answer to learn, for classification a label word.
    pub target: String,
    /// Further answers that are as right as `target`; nothing is learned from them.
    pub alternatives: Vec<String>,
    /// Where the sentence loses tokens when the prompt is too long.
    pub truncation_side: TruncationSide,
}

/// The end of a sentence that is cut, in the words of Hugging Face's tokenizers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum TruncationSide {
    /// The sentence loses its last tokens.
    #[default]
    Right,
    /// The sentence loses its first tokens, for prompts whose end matters most, such as code to complete.
    Left,
}

/// The part of a task's data that an example belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Split {
    /// Examples to learn from.
    Train,
    /// Examples for choices made while developing; may be absent.
    Dev,
    /// Examples that scores are reported on.
    Test,
}

impl Example {
    /// An example whose whole prompt is the truncatable sentence.
    pub fn plain(input: impl Into<String>, target: impl Into<String>) -> Self {
        Self {
            sentence: input.into(),
            target: target.into(),
            ..Self::default()
        }
    }

    /// The whole prompt: prefix, sentence and suffix.
    pub fn prompt(&self) -> String {
        [self.prefix.as_str(), &self.sentence, &self.suffix].concat()
    }

    /// Every right answer: the target, then the alternatives.
    pub fn answers(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.target)
            .chain(&self.alternatives)
            .map(String::as_str)
    }
}

impl Split {
    /// All splits, in reading order.
    pub const ALL: [Self; 3] = [Self::Train, Self::Dev, Self::Test];

    /// The file stem of the split: `train`, `dev` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Dev => "dev",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Split {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|split| split.name() == name)
            .ok_or_else(|| DataError::UnknownSplit {
                name: name.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_the_three_parts() {
        let example = Example {
            prefix: "a ".into(),
            sentence: "b".into(),
            suffix: " c".into(),
            target: "d".into(),
            ..Example::default()
        };
        assert_eq!(example.prompt(), "a b c");
        assert_eq!(Example::plain("x y", "z").prompt(), "x y");
    }

    #[test]
    fn split_names_round_trip() {
        for split in Split::ALL {
            assert_eq!(split.to_string().parse::<Split>().unwrap(), split);
        }
        assert!(matches!(
            "valid".parse::<Split>(),
            Err(DataError::UnknownSplit { .. })
        ));
    }
}
