//! Opening a directory of tasks whatever its layout.

use std::path::Path;

use crate::benchmark::{ClBenchmark, INSTRUCTION_FILE, instruction_file};
use crate::error::DataError;
use crate::jsonl::JsonlLibrary;
use crate::superni::SuperNiLibrary;
use crate::task::TaskLibrary;
use crate::trace::TraceLibrary;

/// The layout of a directory of tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The CL benchmark.
    ClBenchmark,
    /// Own tasks as JSON lines.
    Jsonl,
    /// TRACE.
    Trace,
    /// Super-NaturalInstructions.
    SuperNi,
}

impl Layout {
    /// The layout of `dir`, by what lies in it: the CL benchmark if its `instruction_config.json` is there,
    /// TRACE if a task's file holds a list and Super-NaturalInstructions if it holds an object, else JSONL.
    pub fn of(dir: &Path) -> Self {
        if instruction_file(dir).is_file() {
            return Self::ClBenchmark;
        }
        if JsonlLibrary::open(dir).is_ok() {
            return Self::Jsonl;
        }
        let Ok(library) = SuperNiLibrary::open(dir) else {
            return Self::Jsonl;
        };
        match library.first_byte() {
            Some(b'[') => Self::Trace,
            _ => Self::SuperNi,
        }
    }
}

/// Opens a directory of tasks whatever its [`Layout`].
///
/// # Errors
/// If the directory is unreadable or holds none of the layouts.
pub fn open_library(dir: impl AsRef<Path>) -> Result<Box<dyn TaskLibrary>, DataError> {
    let dir = dir.as_ref();
    match Layout::of(dir) {
        Layout::ClBenchmark => return Ok(Box::new(ClBenchmark::open(dir)?)),
        Layout::SuperNi => return Ok(Box::new(SuperNiLibrary::open(dir)?)),
        // Lists two folders deep may also be a benchmark without its instructions.
        Layout::Trace => {
            if let Ok(library) = TraceLibrary::open(dir) {
                return Ok(Box::new(library));
            }
        }
        Layout::Jsonl => {}
    }
    match JsonlLibrary::open(dir) {
        Err(missing @ DataError::Layout { .. }) if !dir.is_dir() => Err(missing),
        Err(DataError::Layout { path, .. }) => Err(DataError::Layout {
            path,
            problem: format!(
                "neither the CL benchmark ({INSTRUCTION_FILE} and TASK/DATASET/train.json) nor TRACE or \
                 Super-NaturalInstructions (TASK/train.json) nor JSONL tasks (NAME/train.jsonl)"
            ),
        }),
        opened => Ok(Box::new(opened?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_told_apart() {
        let layout = |file: &str, text: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
            let names = open_library(dir.path()).map(|library| library.names());
            (Layout::of(dir.path()), names.unwrap_or_default())
        };
        let found = |layout, name: &str| (layout, vec![name.to_owned()]);
        assert_eq!(layout("a/train.jsonl", ""), found(Layout::Jsonl, "a"));
        assert_eq!(layout("a/train.json", " [{}]"), found(Layout::Trace, "a"));
        assert_eq!(layout("a/test.json", "\n{}"), found(Layout::SuperNi, "a"));
        assert_eq!(layout("task1.json", "{}"), found(Layout::SuperNi, "task1"));
        assert_eq!(layout("x.txt", "").0, Layout::Jsonl);
    }

    #[test]
    fn an_unrelated_directory_is_no_library() {
        let dir = tempfile::tempdir().unwrap();
        let message = open_library(dir.path()).unwrap_err().to_string();
        assert!(message.contains("neither the CL benchmark"), "{message}");
        assert!(message.contains("docs/data-layout.md"), "{message}");
        let missing = open_library(dir.path().join("none")).unwrap_err();
        assert!(matches!(missing, DataError::Layout { .. }), "{missing}");
        assert!(missing.to_string().contains("no such folder"), "{missing}");
    }
}
