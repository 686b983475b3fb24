//! Super-NaturalInstructions: JSON objects with a `Definition` and `Instances` of `input` and `output`.
//!
//! Two layouts, side by side if need be: a folder for each task with `{train,dev,test}.json` (SAPT's
//! `CL_Benchmark`, whose groups `SuperNI` and `Long_Sequence` may lie between), and one file for each task
//! (`task875_emotion_classification.json`), whose instances are divided here.
//!
//! Wang et al., "Super-NaturalInstructions" (EMNLP 2022); Zhao et al., "SAPT" (ACL 2024).

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{DataError, Place, RecordProblem};
use crate::example::{Example, Split};
use crate::metric::Metric;
use crate::records::{
    find_named, json_files, json_type, read, read_labels, read_value, subdirectories, text_field,
};
use crate::task::{TaskLibrary, TaskSource};

/// The group whose tasks are classifications with their instruction in the input.
const LONG_SEQUENCE: &str = "Long_Sequence";

/// At most this many instances of a single file are test, and as many dev.
const HELD_OUT: usize = 100;

/// A directory of Super-NaturalInstructions tasks.
#[derive(Debug, Clone)]
pub struct SuperNiLibrary {
    root: PathBuf,
    /// Names, with the folder or the file of the task.
    tasks: Vec<(String, PathBuf)>,
}

/// One task; its splits are read on demand.
#[derive(Debug, Clone)]
pub struct SuperNiTask {
    name: String,
    path: PathBuf,
    long: bool,
    labels: Option<Vec<String>>,
}

impl SuperNiLibrary {
    /// Lists the tasks; no examples are read.
    ///
    /// # Errors
    /// If the directory cannot be read or holds no task.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, DataError> {
        let root = root.into();
        let layout = |problem: &str| DataError::Layout {
            path: root.clone(),
            problem: problem.to_owned(),
        };
        if !root.is_dir() {
            return Err(layout("no such folder"));
        }
        let mut tasks = Vec::new();
        for (name, dir) in subdirectories(&root)? {
            if holds_splits(&dir) {
                tasks.push((name, dir));
            } else {
                let below = subdirectories(&dir)?.into_iter();
                tasks.extend(below.filter(|(_, dir)| holds_splits(dir)));
                tasks.extend(json_files(&dir)?);
            }
        }
        tasks.extend(json_files(&root)?);
        if tasks.is_empty() {
            return Err(layout(
                "no task here, expected TASK/train.json or TASK.json",
            ));
        }
        Ok(Self { root, tasks })
    }
}

impl SuperNiLibrary {
    /// What the first file begins with, which tells this layout from TRACE's.
    pub(crate) fn first_byte(&self) -> Option<u8> {
        let (_, path) = self.tasks.first()?;
        let mut files = Split::ALL
            .iter()
            .map(|split| path.join(format!("{split}.json")));
        let file = match path.is_dir() {
            true => files.find(|file| file.is_file())?,
            false => path.clone(),
        };
        let bytes = read(&file).ok()?;
        bytes.into_iter().find(|byte| !byte.is_ascii_whitespace())
    }
}

impl TaskLibrary for SuperNiLibrary {
    fn names(&self) -> Vec<String> {
        self.tasks.iter().map(|(name, _)| name.clone()).collect()
    }

    /// A task is also known by its number, `task875`.
    fn task(&self, name: &str) -> Result<Box<dyn TaskSource>, DataError> {
        let numbered: Vec<_> = self
            .tasks
            .iter()
            .filter(|(known, _)| known.split('_').next() == Some(name))
            .collect();
        let (name, path) = match numbered[..] {
            [task] => task,
            _ => find_named(&self.tasks, name, &self.root)?,
        };
        let group = path.parent().and_then(Path::file_name);
        Ok(Box::new(SuperNiTask {
            name: name.clone(),
            path: path.clone(),
            long: group.is_some_and(|group| group == LONG_SEQUENCE),
            labels: match path.join("labels.json") {
                file if file.is_file() => Some(read_labels(&file)?),
                _ => None,
            },
        }))
    }
}

impl TaskSource for SuperNiTask {
    fn name(&self) -> &str {
        &self.name
    }

    fn labels(&self) -> Option<&[String]> {
        self.labels.as_deref()
    }

    fn metric(&self) -> Metric {
        match self.long {
            true => Metric::ExactMatch,
            false => Metric::RougeL,
        }
    }

    fn load(&self, split: Split) -> Result<Vec<Example>, DataError> {
        let file = self.path.join(format!("{split}.json"));
        if !self.path.is_dir() {
            let all = self.read(&self.path)?;
            let examples = divided(all, split);
            return match examples.is_empty() && split != Split::Dev {
                true => Err(DataError::EmptyTask {
                    path: self.path.clone(),
                }),
                false => Ok(examples),
            };
        }
        if split == Split::Dev && !file.exists() {
            return Ok(Vec::new());
        }
        self.read(&file)
    }
}

impl SuperNiTask {
    fn read(&self, path: &Path) -> Result<Vec<Example>, DataError> {
        let value = read_value(path)?;
        let place = || Place::File(path.to_owned());
        let definition = match value.get("Definition") {
            // The published files wrap it in a list.
            Some(Value::Array(list)) => list.first().map_or(Some(""), Value::as_str),
            Some(Value::String(text)) => Some(text.as_str()),
            _ => None,
        };
        let Some(definition) = definition else {
            return Err(DataError::BadRecord {
                place: place(),
                problem: RecordProblem::MissingField {
                    field: "Definition",
                },
            });
        };
        let instances = match value.get("Instances") {
            Some(Value::Array(instances)) => instances,
            Some(other) => {
                return Err(DataError::UnexpectedJson {
                    place: place(),
                    expected: "a list of `Instances`",
                    found: json_type(other),
                });
            }
            None => {
                return Err(DataError::BadRecord {
                    place: place(),
                    problem: RecordProblem::MissingField { field: "Instances" },
                });
            }
        };
        if instances.is_empty() {
            return Err(DataError::EmptyTask {
                path: path.to_owned(),
            });
        }
        let prefix = self.prefix(definition.trim());
        let example = |(index, instance): (usize, &Value)| {
            let place = || Place::Record(path.to_owned(), index);
            let sentence = text_field(instance, "input", &place)?;
            let (target, alternatives) = outputs(instance, &place)?;
            Ok(Example {
                prefix: prefix.clone(),
                sentence,
                suffix: "\nOutput:".to_owned(),
                target,
                alternatives,
                ..Example::default()
            })
        };
        instances.iter().enumerate().map(example).collect()
    }

    /// What stands before the input in SAPT's zero-shot prompt.
    fn prefix(&self, definition: &str) -> String {
        match (self.long, definition) {
            (true, "") => String::new(),
            (true, definition) => format!("{definition}\n"),
            (false, definition) => {
                format!("Definition: {definition}\n\nNow complete the following example -\nInput: ")
            }
        }
    }
}

/// The right answers, a string or a list of them: the first, and the others. Some published ones are empty.
fn outputs(
    instance: &Value,
    place: &dyn Fn() -> Place,
) -> Result<(String, Vec<String>), DataError> {
    let text = |instance: &Value| text_field(instance, "output", place);
    match instance.get("output") {
        Some(Value::Array(list)) => {
            let one = |output: &Value| text(&serde_json::json!({ "output": output }));
            let (first, others) = list.split_first().unwrap_or((&Value::Null, &[]));
            let others = others.iter().map(one).collect::<Result<_, _>>()?;
            Ok((one(first)?, others))
        }
        _ => Ok((text(instance)?, Vec::new())),
    }
}

/// The part of a single file's instances that belongs to a split: the first tenth is test and the second dev, at
/// most 100 each, and the rest is to learn from.
fn divided(mut all: Vec<Example>, split: Split) -> Vec<Example> {
    let held_out = (all.len() / 10).min(HELD_OUT);
    let rest = all.split_off(2 * held_out);
    let dev = all.split_off(held_out);
    match split {
        Split::Train => rest,
        Split::Dev => dev,
        Split::Test => all,
    }
}

fn holds_splits(dir: &Path) -> bool {
    let mut splits = Split::ALL.iter();
    splits.any(|split| dir.join(format!("{split}.json")).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    const TASK: &str = r#"{"Definition": ["Name the colour. "], "Positive Examples": [],
        "Instances": [{"id": "1", "input": "grass", "output": ["green", "lime"]}, {"input": "snow", "output": "white"}]}"#;

    #[test]
    fn reads_folders_files_and_groups() {
        let instances: Vec<String> = (0..40)
            .map(|at| format!(r#"{{"input": "{at}", "output": "x"}}"#))
            .collect();
        let single = format!(
            r#"{{"Definition": "D", "Instances": [{}]}}"#,
            instances.join(",")
        );
        let dir = write(&[
            ("SuperNI/task875_colours/train.json", TASK),
            (
                "Long_Sequence/agnews/test.json",
                &TASK.replace("Name the colour. ", ""),
            ),
            ("tasks/task002_quoref.json", &single),
        ]);
        let library = SuperNiLibrary::open(dir.path()).unwrap();
        assert_eq!(
            library.names(),
            ["agnews", "task875_colours", "task002_quoref"]
        );
        let task = library.task("task875").unwrap();
        assert_eq!(
            (task.name(), task.metric()),
            ("task875_colours", Metric::RougeL)
        );
        let train = task.load(Split::Train).unwrap();
        assert_eq!(
            train[0].prompt(),
            "Definition: Name the colour.\n\nNow complete the following example -\nInput: grass\nOutput:"
        );
        let targets: Vec<&str> = train.iter().map(|example| &*example.target).collect();
        assert_eq!(targets, ["green", "white"]);
        assert_eq!(train[0].alternatives, ["lime"]);
        assert_eq!(task.load(Split::Dev).unwrap(), []);
        let missing = task.load(Split::Test).unwrap_err().to_string();
        assert!(missing.contains("docs/data-layout.md"), "{missing}");

        let long = library.task("AGNEWS").unwrap();
        assert_eq!(long.metric(), Metric::ExactMatch);
        let test = long.load(Split::Test).unwrap();
        assert_eq!(test[0].prompt(), "grass\nOutput:");

        // One file is divided: 4 of 40 are test, 4 dev.
        let single = library.task("task002_quoref").unwrap();
        let inputs = |split| -> Vec<String> {
            let examples = single.load(split).unwrap().into_iter();
            examples.map(|example| example.sentence).collect()
        };
        assert_eq!(inputs(Split::Test), ["0", "1", "2", "3"]);
        assert_eq!(inputs(Split::Dev), ["4", "5", "6", "7"]);
        assert_eq!(inputs(Split::Train).len(), 32);
    }

    #[test]
    fn empty_answers_and_definitions_are_read() {
        let task = r#"{"Definition": [], "Instances": [{"input": "x", "output": ["", "y"]}, {"input": "z", "output": ""}]}"#;
        let dir = write(&[
            ("Long_Sequence/yelp/train.json", task),
            ("Long_Sequence/yelp/labels.json", r#"["good", "bad"]"#),
        ]);
        let library = SuperNiLibrary::open(dir.path()).unwrap();
        let task = library.task("yelp").unwrap();
        assert_eq!(task.labels().unwrap(), ["good", "bad"]);
        let train = task.load(Split::Train).unwrap();
        assert_eq!(train[0].prompt(), "x\nOutput:");
        let answers: Vec<Vec<&str>> = train.iter().map(|one| one.answers().collect()).collect();
        assert_eq!(answers, [vec!["", "y"], vec![""]]);
    }

    #[rstest::rstest]
    #[case("[]", "field `Definition` is missing")]
    #[case(r#"{"Definition": "D"}"#, "field `Instances` is missing")]
    #[case(
        r#"{"Definition": "D", "Instances": 3}"#,
        "expected a list of `Instances`, found a number"
    )]
    #[case(r#"{"Definition": "D", "Instances": []}"#, "empty task")]
    #[case(
        r#"{"Definition": "D", "Instances": [{"output": "x"}]}"#,
        "record 0 (counted from 0): field `input` is missing"
    )]
    #[case(
        r#"{"Definition": "D", "Instances": [{"input": "x", "output": []}]}"#,
        "field `output` must be a string, found null"
    )]
    #[case(
        r#"{"Definition": "D", "Instances": [{"input": "x"}]}"#,
        "field `output` is missing"
    )]
    fn malformed_tasks(#[case] text: &str, #[case] complaint: &str) {
        let dir = write(&[("a/train.json", text)]);
        let task = SuperNiLibrary::open(dir.path()).unwrap().task("a").unwrap();
        let message = task.load(Split::Train).unwrap_err().to_string();
        assert!(
            message.contains("train.json") && message.contains(complaint),
            "{message}"
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = write(&[("task1_a.json", TASK)]);
        let library = SuperNiLibrary::open(dir.path()).unwrap();
        let message = library.task("task2_a").unwrap_err().to_string();
        assert!(message.contains("did you mean `task1_a`?"), "{message}");
        let message = SuperNiLibrary::open(dir.path().join("none")).unwrap_err();
        assert!(
            message.to_string().contains("docs/data-layout.md"),
            "{message}"
        );
        // Two instances cannot be divided.
        let task = library.task("task1_a").unwrap();
        assert!(matches!(
            task.load(Split::Test),
            Err(DataError::EmptyTask { .. })
        ));
    }
}
