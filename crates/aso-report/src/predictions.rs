//! Answers to single examples, for the bootstrap.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use aso_trainer::predictions::{Prediction, chosen_predictions_file, predictions_file};

use crate::ReportError;
use crate::record::read_lines;
use crate::terms::Row;

/// The scores of a model on the examples of a task.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ExampleScores {
    /// 0 to 1 for each example.
    pub(crate) scores: Vec<f64>,
    /// Tells sets of examples apart: a hash of all expected answers.
    pub(crate) examples: u64,
}

/// Reads the scores of a row on task `task`, from 0; `Ok(None)` where they were not kept.
pub(crate) fn read_scores(
    run: &Path,
    tasks: &[String],
    row: Row,
    task: usize,
) -> Result<Option<ExampleScores>, ReportError> {
    let named = |index: usize| (index, tasks[index].as_str());
    let path = match row {
        Row::Backbone => predictions_file(run, None, named(task)),
        Row::After(after) => predictions_file(run, Some(named(after)), named(task)),
        Row::Chosen => chosen_predictions_file(run, named(task)),
    };
    let mut scores = Vec::new();
    let mut hasher = DefaultHasher::new();
    let found = read_lines(&path, "a prediction", |number, line: Prediction| {
        if !(0.0..=1.0).contains(&line.score) {
            return Err(ReportError::Score {
                path: path.clone(),
                line: number,
                found: line.score,
            });
        }
        line.expected.hash(&mut hasher);
        scores.push(line.score);
        Ok(())
    })?;
    Ok(found.map(|()| ExampleScores {
        scores,
        examples: hasher.finish(),
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_and_lines() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = ["a/b".to_owned(), "c".to_owned()];
        let read = |row, task| read_scores(dir.path(), &tasks, row, task);
        assert_eq!(read(Row::Backbone, 1).unwrap(), None);
        let folder = dir.path().join("predictions").join("00-a_b");
        fs::create_dir_all(&folder).unwrap();
        let line = |expected: &str, score: f64| {
            format!("{{\"answer\":\"x\",\"expected\":\"{expected}\",\"score\":{score}}}\n")
        };
        let file = folder.join("01-c.jsonl");
        fs::write(&file, line("yes", 1.0) + &line("no", 0.5)).unwrap();
        let first = read(Row::After(0), 1).unwrap().unwrap();
        assert_eq!(first.scores, [1.0, 0.5]);
        fs::write(&file, line("yes", 0.0) + &line("yes", 0.5)).unwrap();
        let second = read(Row::After(0), 1).unwrap().unwrap();
        assert_ne!(first.examples, second.examples);
        fs::write(&file, line("yes", 1.0) + &line("no", 1.5)).unwrap();
        let message = read(Row::After(0), 1).unwrap_err().to_string();
        assert!(
            message.ends_with("01-c.jsonl:2: `score`: expected a number from 0 to 1, found 1.5")
        );
    }
}
