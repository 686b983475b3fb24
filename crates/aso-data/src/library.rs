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
    /// The layout of `dir`, by what lies in it: the CL benchmark if its `instruction_config.json` is there, JSONL if there are
    /// such files, TRACE if a task's file holds a list and Super-NaturalInstructions if it holds an object.
    ///
    /// # Errors
    /// If the directory is unreadable or holds none of the layouts.
    pub fn of(dir: &Path) -> Result<Self, DataError> {
        if instruction_file(dir).is_file() {
            return Ok(Self::ClBenchmark);
        }
        let missing = match JsonlLibrary::open(dir) {
            Ok(_) => return Ok(Self::Jsonl),
            Err(error) => error,
        };
        if let Ok(library) = SuperNiLibrary::open(dir) {
            match library.first_byte() {
                // Lists two folders deep may also be a benchmark without its instructions.
                Some(b'[') if TraceLibrary::open(dir).is_ok() => return Ok(Self::Trace),
                Some(b'[') => {}
                _ => return Ok(Self::SuperNi),
            }
        }
        Err(match missing {
            DataError::Layout { path, .. } if dir.is_dir() => DataError::Layout {
                path,
                problem: format!(
                    "neither the CL benchmark ({INSTRUCTION_FILE} and TASK/DATASET/train.json) nor TRACE or \
                     Super-NaturalInstructions (TASK/train.json) nor JSONL tasks (NAME/train.jsonl)"
                ),
            },
            other => other,
        })
    }
}

/// Opens a directory of tasks whatever its [`Layout`].
///
/// # Errors
/// If the directory is unreadable or holds none of the layouts.
pub fn open_library(dir: impl AsRef<Path>) -> Result<Box<dyn TaskLibrary>, DataError> {
    let dir = dir.as_ref();
    Ok(match Layout::of(dir)? {
        Layout::ClBenchmark => Box::new(ClBenchmark::open(dir)?),
        Layout::Jsonl => Box::new(JsonlLibrary::open(dir)?),
        Layout::Trace => Box::new(TraceLibrary::open(dir)?),
        Layout::SuperNi => Box::new(SuperNiLibrary::open(dir)?),
    })
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
            let names = open_library(dir.path()).unwrap().names();
            (Layout::of(dir.path()).unwrap(), names)
        };
        let found = |layout, name: &str| (layout, vec![name.to_owned()]);
        assert_eq!(layout("a/train.jsonl", ""), found(Layout::Jsonl, "a"));
        assert_eq!(layout("a/train.json", " [{}]"), found(Layout::Trace, "a"));
        assert_eq!(layout("a/test.json", "\n{}"), found(Layout::SuperNi, "a"));
        assert_eq!(layout("task1.json", "{}"), found(Layout::SuperNi, "task1"));
    }

    #[test]
    fn an_unrelated_directory_is_no_library() {
        let dir = tempfile::tempdir().unwrap();
        let message = open_library(dir.path()).unwrap_err().to_string();
        assert!(message.contains("neither the CL benchmark"), "{message}");
        assert!(message.contains("docs/data-layout.md"), "{message}");
        // A benchmark whose instructions are missing is not TRACE.
        std::fs::create_dir_all(dir.path().join("TC/agnews")).unwrap();
        std::fs::write(dir.path().join("TC/agnews/train.json"), "[]").unwrap();
        let message = open_library(dir.path()).unwrap_err().to_string();
        assert!(message.contains("neither the CL benchmark"), "{message}");
        let missing = open_library(dir.path().join("none")).unwrap_err();
        assert!(matches!(missing, DataError::Layout { .. }), "{missing}");
        assert!(missing.to_string().contains("no such folder"), "{missing}");
    }
}
