//! The task files of O-LoRA: `train_tasks.json`, `dev_tasks.json` and `test_tasks.json`.
//!
//! A task file maps kinds of tasks to data sets, `{"SC": [{"sampling strategy": "full", "dataset name":
//! "amazon"}], "TC": []}`. An order is a folder with one subfolder for each step (`order1_configs/amazon`):
//! its train file holds the step's data set, its test file every data set learned so far.

use std::path::Path;

use serde_json::Value;

use crate::error::{DataError, Place};
use crate::records::{json_type, read_value, subdirectories, text_field};

/// The data sets of a task file.
///
/// How many examples are taken is not read from it: `full` means all and `random` the first ones up to a
/// limit that is no part of the file.
///
/// # Errors
/// If the file cannot be read or has another form.
fn read_task_file(path: &Path) -> Result<Vec<String>, DataError> {
    let unexpected = |expected, found: &Value| DataError::UnexpectedJson {
        place: Place::File(path.to_owned()),
        expected,
        found: json_type(found),
    };
    let value = read_value(path)?;
    let Value::Object(kinds) = &value else {
        return Err(unexpected(
            "an object that maps kinds of tasks to lists of data sets",
            &value,
        ));
    };
    let mut entries = Vec::new();
    for list in kinds.values() {
        let Value::Array(list) = list else {
            return Err(unexpected(
                "a list of data sets for each kind of task",
                list,
            ));
        };
        for entry in list {
            let place = || Place::File(path.to_owned());
            entries.push(text_field(entry, "dataset name", &place)?);
        }
    }
    Ok(entries)
}

/// The order that a folder of steps stands for, such as O-LoRA's `configs/order1_configs`: the data set of each
/// step's train file, by the number of data sets in its test file.
///
/// # Errors
/// If there is no step, a file is missing or malformed, a step trains more or less than one data set, or the
/// test files are not those of an order: each must hold what was learned so far and nothing else.
pub fn task_files_order(dir: &Path) -> Result<Vec<String>, DataError> {
    let layout = |path: &Path, problem: String| DataError::Layout {
        path: path.to_owned(),
        problem,
    };
    if !dir.is_dir() {
        return Err(layout(dir, "no such folder".to_owned()));
    }
    let mut steps = Vec::new();
    for (_, step) in subdirectories(dir)? {
        let train = read_task_file(&step.join("train_tasks.json"))?;
        let test = read_task_file(&step.join("test_tasks.json"))?;
        let [dataset] = &train[..] else {
            let problem = format!(
                "expected one data set in train_tasks.json, found {}",
                train.len()
            );
            return Err(layout(&step, problem));
        };
        steps.push((test, dataset.clone(), step));
    }
    if steps.is_empty() {
        let problem = "no step here, expected DATASET/train_tasks.json and test_tasks.json";
        return Err(layout(dir, problem.to_owned()));
    }
    steps.sort_by_key(|(test, ..)| test.len());
    let mut order: Vec<String> = Vec::new();
    for (mut tested, dataset, step) in steps {
        order.push(dataset);
        let mut learned = order.clone();
        learned.sort();
        tested.sort();
        if learned != tested {
            let problem = format!(
                "test_tasks.json must hold the data sets learned so far ({}), found {}",
                learned.join(", "),
                tested.join(", ")
            );
            return Err(layout(&step, problem));
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A folder of steps: name, training data set, tested ones (all of kind SC).
    fn steps(steps: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, train, test) in steps {
            let step = dir.path().join(name);
            fs::create_dir(&step).unwrap();
            for (file, sets) in [("train_tasks.json", train), ("test_tasks.json", test)] {
                let entries: Vec<String> = sets
                    .split_whitespace()
                    .map(|set| {
                        format!(r#"{{"sampling strategy": "full", "dataset name": "{set}"}}"#)
                    })
                    .collect();
                let text = format!(r#"{{"TC": [], "SC": [{}]}}"#, entries.join(","));
                fs::write(step.join(file), text).unwrap();
            }
        }
        dir
    }

    #[test]
    fn an_order_is_read_from_its_steps() {
        let dir = steps(&[("a", "a", "a b c"), ("b", "b", "b"), ("c", "c", "c b")]);
        assert_eq!(task_files_order(dir.path()).unwrap(), ["b", "c", "a"]);
    }

    #[test]
    fn what_is_no_order_is_refused() {
        for (folder, complaint) in [
            (
                steps(&[("a", "a b", "a")]),
                "expected one data set in train_tasks.json, found 2",
            ),
            (
                steps(&[("a", "a", "a b")]),
                "learned so far (a), found a, b",
            ),
            (
                steps(&[("a", "a", "a"), ("b", "b", "b")]),
                "learned so far (a, b), found b",
            ),
            (steps(&[]), "no step here"),
        ] {
            let message = task_files_order(folder.path()).unwrap_err().to_string();
            assert!(message.contains(complaint), "{message}");
            assert!(message.contains("docs/data-layout.md"), "{message}");
        }
        let dir = steps(&[("a", "a", "a")]);
        for (text, complaint) in [
            ("[]", "expected an object that maps kinds of tasks"),
            (r#"{"SC": 3}"#, "expected a list of data sets"),
            (r#"{"SC": [{}]}"#, "field `dataset name` is missing"),
            ("{", "bad JSON"),
        ] {
            fs::write(dir.path().join("a/train_tasks.json"), text).unwrap();
            let message = task_files_order(dir.path()).unwrap_err().to_string();
            assert!(message.contains(complaint), "{message}");
        }
    }
}
