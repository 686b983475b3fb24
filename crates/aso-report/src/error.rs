//! What can go wrong with a report.

use std::path::PathBuf;

use aso_trainer::files::FilesError;

/// What can go wrong with a report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A file of a run cannot be read, or a file of the report cannot be written.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A file or folder cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A line of a JSONL file is not what it should be.
    #[error("{path}:{line}: expected {expected}: {source}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What a line holds.
        expected: &'static str,
        /// The reason.
        source: serde_json::Error,
    },
    /// A step belongs to a task that the run does not have.
    #[error("{path}:{line}: `task`: expected one of {expected}, found \"{found}\"", path = path.display())]
    UnknownTask {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The tasks of the run.
        expected: String,
        /// The task of the line.
        found: String,
    },
    /// A configuration is not TOML.
    #[error("{path}: not valid TOML: {source}", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: Box<toml::de::Error>,
    },
    /// A list does not have one entry for each task.
    #[error("{path}: `{key}`: expected {expected} entries, one for each task, found {found}", path = path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The list.
        key: String,
        /// The number of tasks.
        expected: usize,
        /// Its length.
        found: usize,
    },
    /// A run without tasks.
    #[error("{path}: `tasks`: expected at least one, found none", path = path.display())]
    NoTasks {
        /// The file.
        path: PathBuf,
    },
    /// A score of a prediction is out of range.
    #[error("{path}:{line}: `score`: expected a number from 0 to 1, found {found}", path = path.display())]
    Score {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The score.
        found: f64,
    },
    /// An adapter's file has no header that tells its shapes.
    #[error("{path}: expected a safetensors file: {reason}", path = path.display())]
    Adapter {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is no run in a folder.
    #[error("{path}: no run found: expected a results.json here or in a folder below", path = path.display())]
    NoRuns {
        /// The folder.
        path: PathBuf,
    },
    /// A run argument has no folder.
    #[error("\"{argument}\": expected a folder, or LABEL=FOLDER")]
    Argument {
        /// The argument.
        argument: String,
    },
    /// Two runs of a group have the same seed, so that neither can be paired with another group's.
    #[error("{second}: \"{label}\" has seed {seed} already, in {first}; leave one out, or tell them apart with LABEL={second}",
        first = first.display(), second = second.display())]
    SameSeed {
        /// The group.
        label: String,
        /// The seed.
        seed: u64,
        /// The first run with it.
        first: PathBuf,
        /// The second run with it.
        second: PathBuf,
    },
    /// A label given by the user is that of other runs, too.
    #[error(
        "label \"{label}\": given to some runs, but others are called the same{differing}: choose another",
        differing = differing(keys)
    )]
    SameLabel {
        /// The label.
        label: String,
        /// The keys of `config.toml` in which they differ; none where only some were given the label.
        keys: Vec<String>,
    },
    /// The reference is none of the groups.
    #[error("reference \"{found}\": expected one of {expected}")]
    UnknownReference {
        /// The reference.
        found: String,
        /// The labels.
        expected: String,
    },
    /// A figure cannot be drawn.
    #[error("figure `{figure}`: {reason}")]
    Plot {
        /// The figure's name.
        figure: String,
        /// What the plotting library said.
        reason: String,
    },
    /// The page's template failed.
    #[error("page: {0}")]
    Page(#[from] minijinja::Error),
    /// A value has no JSON form.
    #[error("report: {0}")]
    Json(#[from] serde_json::Error),
}

fn differing(keys: &[String]) -> String {
    match keys {
        [] => String::new(),
        keys => format!(" and differ in `{}`", keys.join("`, `")),
    }
}
