//! What can go wrong with data, and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where in a data file something was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Somewhere in the file.
    File(PathBuf),
    /// An element of the file's JSON list, counted from 0.
    Record(PathBuf, usize),
    /// A line of a text file, counted from 1 as editors do.
    Line(PathBuf, usize),
}

/// Why a record that is valid JSON is not a usable example.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordProblem {
    /// The record is not a JSON object.
    #[error("expected an object, found {found}")]
    NotAnObject {
        /// The JSON type that stands there.
        found: &'static str,
    },
    /// A required field is absent.
    #[error("field `{field}` is missing")]
    MissingField {
        /// The field.
        field: &'static str,
    },
    /// A field has another JSON type than a string.
    #[error("field `{field}` must be a string, found {found}")]
    WrongType {
        /// The field.
        field: &'static str,
        /// The JSON type that stands there.
        found: &'static str,
    },
    /// A label or target with nothing but white space in it.
    #[error("field `{field}` is empty")]
    EmptyField {
        /// The field.
        field: &'static str,
    },
    /// A label that `labels.json` does not list.
    #[error("label `{label}` is not in labels.json{hint}; it lists {}", quoted(labels), hint = did_you_mean(nearest))]
    UnknownLabel {
        /// The label of the record.
        label: String,
        /// The most similar known label, if one is similar.
        nearest: Option<String>,
        /// Every known label.
        labels: Vec<String>,
    },
}

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file or directory could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A data file is not there.
    #[error("{path}: no such file (docs/data-layout.md describes the layout)", path = path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// A directory does not hold what its layout asks for.
    #[error("{path}: {problem} (docs/data-layout.md describes the layout)", path = path.display())]
    Layout {
        /// The directory.
        path: PathBuf,
        /// What is missing or in the way.
        problem: String,
    },
    /// Text that is not JSON.
    #[error("{place}: bad JSON at line {line}, column {column}: {problem}")]
    BadJson {
        /// The file and, where known, the record in which parsing stopped.
        place: Place,
        /// Line in the file, counted from 1.
        line: usize,
        /// Column in bytes, counted from 1.
        column: usize,
        /// The parser's complaint.
        problem: String,
    },
    /// A JSON document of another shape than its file should have.
    #[error("{place}: expected {expected}, found {found}")]
    UnexpectedJson {
        /// Where it stands.
        place: Place,
        /// What the file should hold.
        expected: &'static str,
        /// What stands there.
        found: &'static str,
    },
    /// A record that cannot be an example.
    #[error("{place}: {problem}")]
    BadRecord {
        /// The file and record.
        place: Place,
        /// What is wrong with it.
        problem: RecordProblem,
    },
    /// A file without a single example.
    #[error("{path}: empty task: the file holds no examples", path = path.display())]
    EmptyTask {
        /// The file.
        path: PathBuf,
    },
    /// `labels.json` lists nothing.
    #[error("{path}: the list of labels is empty", path = path.display())]
    NoLabels {
        /// The file.
        path: PathBuf,
    },
    /// `labels.json` lists a label twice.
    #[error("{place}: duplicated label `{label}`")]
    DuplicateLabel {
        /// The file and the second occurrence.
        place: Place,
        /// The label.
        label: String,
    },
    /// A task name that the library does not have.
    #[error(
        "unknown task `{name}`{hint}; {root} has {}; docs/data-layout.md describes the directory layout",
        quoted(available),
        hint = did_you_mean(nearest)
    )]
    UnknownTask {
        /// The name asked for.
        name: String,
        /// The most similar known name, if one is similar.
        nearest: Option<String>,
        /// Every task there is.
        available: Vec<String>,
        /// The library: a directory, or words for a generated suite.
        root: String,
    },
    /// A name that stands for several tasks.
    #[error("task name `{name}` is ambiguous; write one of {}", quoted(candidates))]
    AmbiguousTask {
        /// The name asked for.
        name: String,
        /// The full names it may mean.
        candidates: Vec<String>,
    },
    /// A task order that is not a preset.
    #[error("unknown task order `{name}`{hint}; known orders: {} (`aso orders` prints their sequences)", known.join(", "), hint = did_you_mean(nearest))]
    UnknownOrder {
        /// The name asked for.
        name: String,
        /// The most similar known name, if one is similar.
        nearest: Option<String>,
        /// Every preset.
        known: Vec<String>,
    },
    /// A tokenizer that cannot be loaded.
    #[error("{origin}: not a usable tokenizer: {problem}")]
    Tokenizer {
        /// The file, or words for bytes in memory.
        origin: String,
        /// The library's complaint.
        problem: String,
    },
    /// The tokenizer lacks a token that the encoding needs.
    #[error(
        "the tokenizer has no {role} token: none of {} is in its vocabulary",
        quoted(tried)
    )]
    NoSpecialToken {
        /// What the token is for, such as `end-of-sequence`.
        role: &'static str,
        /// The spellings that were looked for.
        tried: Vec<String>,
    },
    /// A text that the tokenizer rejects.
    #[error("cannot tokenize {what}: {problem}")]
    Encode {
        /// The text, or words for where it comes from.
        what: String,
        /// The library's complaint.
        problem: String,
    },
    /// Token ids that cannot be turned into text.
    #[error("cannot decode token ids: {problem}")]
    Decode {
        /// The library's complaint.
        problem: String,
    },
    /// A chat template that does not compile or does not render.
    #[error("chat template{}: {problem}", line.map(|line| format!(", line {line}")).unwrap_or_default())]
    ChatTemplate {
        /// Line of the template, counted from 1, where known.
        line: Option<usize>,
        /// What is wrong.
        problem: String,
    },
    /// Length limits that leave no room for a token and the end token.
    #[error("max_source = {max_source} and max_target = {max_target}: both must be at least 2")]
    BadLimits {
        /// Limit of the source.
        max_source: usize,
        /// Limit of the target.
        max_target: usize,
    },
    /// An instruction that does not fit, so that no sentence could either.
    #[error(
        "task `{task}`, example {example} (counted from 0): the instruction alone takes {fixed} \
         tokens (prefix, suffix and end token), which exceeds max_source = {max_source}"
    )]
    InstructionTooLong {
        /// The task.
        task: String,
        /// Index of the example in its split.
        example: usize,
        /// Tokens that may not be cut, the end token included.
        fixed: usize,
        /// The limit.
        max_source: usize,
    },
    /// A dev split that leaves no training example.
    #[error(
        "task `{task}`: {wanted} training examples are to be its dev split, but it has {found}; expected more of them"
    )]
    TooFewForDev {
        /// The task.
        task: String,
        /// Examples of the dev split.
        wanted: usize,
        /// Examples in the training split.
        found: usize,
    },
    /// A name that is no split.
    #[error("unknown split `{name}`: expected train, dev or test")]
    UnknownSplit {
        /// The name given.
        name: String,
    },
}

impl Place {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Record(path, _) | Self::Line(path, _) => path,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Record(path, index) => {
                write!(f, "{}: record {index} (counted from 0)", path.display())
            }
            Self::Line(path, line) => write!(f, "{}: line {line}", path.display()),
        }
    }
}

impl DataError {
    /// Wraps an operating-system error together with its path.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// The candidate most similar to `name`, ignoring case, if it is similar enough to be a typo of it.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let name = name.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::jaro_winkler(&name, &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|&(similarity, _)| similarity >= 0.7)
        // The first of equals wins, so that the answer does not depend on more than the order.
        .fold(None, |best: Option<(f64, &str)>, next| match best {
            Some(best) if best.0 >= next.0 => Some(best),
            _ => Some(next),
        })
        .map(|(_, candidate)| candidate.to_owned())
}

fn quoted(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map_or_else(String::new, |name| format!(", did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_typos_and_leaves_strangers_alone() {
        let names = ["agnews", "amazon", "dbpedia"];
        assert_eq!(nearest("agnwes", names).as_deref(), Some("agnews"));
        assert_eq!(nearest("DBPEDA", names).as_deref(), Some("dbpedia"));
        assert_eq!(nearest("xyz", names), None);
        assert_eq!(nearest("agnews", []), None);
    }

    #[test]
    fn messages_name_the_place_and_the_remedy() {
        let error = DataError::BadRecord {
            place: Place::Record("TC/agnews/train.json".into(), 7),
            problem: RecordProblem::UnknownLabel {
                label: "Sport".into(),
                nearest: Some("Sports".into()),
                labels: vec!["World".into(), "Sports".into()],
            },
        };
        assert_eq!(
            error.to_string(),
            "TC/agnews/train.json: record 7 (counted from 0): label `Sport` is not in \
             labels.json, did you mean `Sports`?; it lists `World`, `Sports`"
        );
        let error = DataError::UnknownTask {
            name: "agnwes".into(),
            nearest: Some("agnews".into()),
            available: vec!["agnews".into(), "amazon".into()],
            root: "data".into(),
        };
        assert_eq!(
            error.to_string(),
            "unknown task `agnwes`, did you mean `agnews`?; data has `agnews`, `amazon`; \
             docs/data-layout.md describes the directory layout"
        );
    }
}
