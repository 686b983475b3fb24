//! Opening a directory of tasks whatever its layout.

use std::path::Path;

use crate::benchmark::{ClBenchmark, INSTRUCTION_FILE, instruction_file};
use crate::error::DataError;
use crate::jsonl::JsonlLibrary;
use crate::task::TaskLibrary;

/// Opens a directory of tasks: the CL benchmark if `instruction_config.json` lies in it, else JSONL.
///
/// # Errors
/// If the directory is unreadable or holds neither layout.
pub fn open_library(dir: impl AsRef<Path>) -> Result<Box<dyn TaskLibrary>, DataError> {
    let dir = dir.as_ref();
    if instruction_file(dir).is_file() {
        return Ok(Box::new(ClBenchmark::open(dir)?));
    }
    match JsonlLibrary::open(dir) {
        Err(missing @ DataError::Layout { .. }) if !dir.is_dir() => Err(missing),
        Err(DataError::Layout { path, .. }) => Err(DataError::Layout {
            path,
            problem: format!(
                "neither the CL benchmark ({INSTRUCTION_FILE} and TASK/DATASET/train.json) nor \
                 JSONL tasks (NAME/train.jsonl)"
            ),
        }),
        opened => Ok(Box::new(opened?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
