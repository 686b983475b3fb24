//! What can be wrong with a configuration.

use std::fmt;
use std::path::PathBuf;

use super::MethodName;

/// Where a value of the configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A configuration file, with the line (from 1) where it is known.
    File {
        /// The file.
        path: PathBuf,
        /// The line.
        line: Option<usize>,
    },
    /// A `--set KEY=VALUE` argument.
    Set {
        /// The argument.
        argument: String,
    },
    /// A [`RunConfig`](super::RunConfig) built in code.
    Code,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File {
                path,
                line: Some(line),
            } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Set { argument } => write!(f, "--set {argument}"),
            Self::Code => write!(f, "configuration"),
        }
    }
}

/// What can be wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{origin}: not valid TOML: {message}")]
    Syntax {
        /// File and line.
        origin: Origin,
        /// What the parser expected.
        message: String,
    },
    /// A value has the wrong type, or is none of the names that a key accepts.
    #[error("{origin}: `{key}`: {message}")]
    Type {
        /// Where the value stands.
        origin: Origin,
        /// The dotted key.
        key: String,
        /// Expected and found.
        message: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key `{key}`{hint}", hint = hint(suggestion.as_deref(), known))]
    UnknownKey {
        /// Where the key stands.
        origin: Origin,
        /// The dotted key.
        key: String,
        /// The nearest known key.
        suggestion: Option<String>,
        /// The keys of the section, listed when no known key is near.
        known: Vec<&'static str>,
    },
    /// A value has the right type but makes no sense, alone or beside another one.
    #[error("{origin}: `{key}`: expected {expected}, found {found}")]
    Invalid {
        /// Where the value stands.
        origin: Origin,
        /// The dotted key.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A `--set` argument is not of the form `KEY=VALUE`.
    #[error("--set {argument}: {message}")]
    Set {
        /// The argument.
        argument: String,
        /// What is wrong with it.
        message: String,
    },
    /// The resolved configuration has no TOML form.
    #[error("the configuration cannot be written as TOML: {0}")]
    Write(#[from] toml::ser::Error),
}

/// A name that no method has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("method \"{found}\": expected one of {known}", known = MethodName::ALL.map(MethodName::as_str).join(", "))]
pub struct UnknownMethod {
    /// The name.
    pub found: String,
}

fn hint(suggestion: Option<&str>, known: &[&str]) -> String {
    match suggestion {
        Some(key) => format!("; did you mean `{key}`?"),
        None if known.is_empty() => String::new(),
        None => format!("; known keys there: {}", known.join(", ")),
    }
}
