//! The answers behind the scores, for comparisons example by example.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{FilesError, write_with_folder};
use crate::state::numbered;

/// Folder of the answers in a run directory.
pub const PREDICTIONS: &str = "predictions";

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// What the model said.
    pub answer: String,
    /// What it should have said; the first of several right answers, whichever of them the score is for.
    pub expected: String,
    /// 1 if it is right, 0 if it is wrong, or something in between where the task's metric knows more.
    pub score: f64,
}

/// The file with the answers to task `task` after task `after` (both as 0-based position and name), or of the untouched
/// backbone.
pub fn predictions_file(run: &Path, after: Option<(usize, &str)>, task: (usize, &str)) -> PathBuf {
    let after = after.map_or("zero-shot".to_owned(), |(index, name)| {
        numbered(index, name)
    });
    file(run, &after, task)
}

/// The file with the answers to a task that is not learned (0-based position and name), of the untouched backbone or behind
/// the last task.
pub fn general_predictions_file(run: &Path, trained: bool, task: (usize, &str)) -> PathBuf {
    let folder = if trained {
        "general-after"
    } else {
        "general-before"
    };
    file(run, folder, task)
}

/// The file with the answers to a task (0-based position and name) that were chosen among its labels after the last task.
pub fn chosen_predictions_file(run: &Path, task: (usize, &str)) -> PathBuf {
    file(run, "chosen", task)
}

fn file(run: &Path, folder: &str, (index, name): (usize, &str)) -> PathBuf {
    let name = format!("{}.jsonl", numbered(index, name));
    run.join(PREDICTIONS).join(folder).join(name)
}

/// Writes answers, one JSON object a line, whole or not at all.
///
/// # Errors
/// [`FilesError`] names the file.
pub fn write_predictions(path: &Path, predictions: &[Prediction]) -> Result<(), FilesError> {
    let mut text = Vec::new();
    for prediction in predictions {
        serde_json::to_writer(&mut text, prediction).map_err(|source| FilesError::Json {
            path: path.to_owned(),
            source,
        })?;
        text.push(b'\n');
    }
    write_with_folder(path, &text)
}

/// Lets the answers to a task after task `from` stand for those after task `to`, too (as in [`predictions_file`]).
pub(crate) fn copy_predictions(
    run: &Path,
    from: Option<(usize, &str)>,
    to: Option<(usize, &str)>,
    task: (usize, &str),
) -> Result<(), FilesError> {
    let from = predictions_file(run, from, task);
    let text = std::fs::read(&from).map_err(|source| FilesError::Io { path: from, source })?;
    write_with_folder(&predictions_file(run, to, task), &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = predictions_file(dir.path(), Some((1, "b/c")), (0, "a"));
        assert!(path.ends_with("predictions/01-b_c/00-a.jsonl"));
        let predictions = [Prediction {
            answer: "two\nlines".to_owned(),
            expected: "\"one\"".to_owned(),
            score: 0.25,
        }];
        write_predictions(&path, &predictions).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let read = text
            .lines()
            .map(|line| serde_json::from_str::<Prediction>(line).unwrap());
        assert_eq!(read.collect::<Vec<_>>(), predictions);
        let zero_shot = predictions_file(dir.path(), None, (0, "a"));
        assert!(zero_shot.ends_with("predictions/zero-shot/00-a.jsonl"));
    }
}
