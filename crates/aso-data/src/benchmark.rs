//! The CL benchmark of O-LoRA: `TASK/DATASET/{train,dev,test,labels}.json`.
//!
//! A split is a JSON list of `{"sentence": .., "label": ..}`, `labels.json` a list of strings.
//! `instruction_config.json` maps a task (`SC`, `TC`, ..) to its instructions. It lies at the root, or where
//! O-LoRA's repository has it: in `configs` beside the folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{DataError, Place, nearest};
use crate::example::{Example, Split};
use crate::prompt::ClPrompt;
use crate::records::{
    json_type, label_field, read_labels, read_list, read_value, subdirectories, text_field,
};
use crate::task::{TaskLibrary, TaskSource};

/// The file that holds the instructions.
pub const INSTRUCTION_FILE: &str = "instruction_config.json";

/// A directory in the layout of the CL benchmark.
#[derive(Debug, Clone)]
pub struct ClBenchmark {
    root: PathBuf,
    instructions: BTreeMap<String, String>,
    datasets: Vec<ClEntry>,
}

/// A data set that lies in the directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClEntry {
    /// The kind of task: the first level of directories, such as `TC`.
    pub task: String,
    /// The data set: the second level, such as `agnews`.
    pub dataset: String,
}

/// One data set of the benchmark; its splits are read on demand.
#[derive(Debug, Clone)]
pub struct ClDataset {
    entry: ClEntry,
    dir: PathBuf,
    labels: Vec<String>,
    prompt: ClPrompt,
}

impl ClBenchmark {
    /// Reads the instructions and lists the data sets; no examples are read.
    ///
    /// # Errors
    /// If the directory or its instructions cannot be read, or no data set lies in it.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, DataError> {
        let root = root.into();
        if !root.is_dir() {
            let problem = "no such folder".to_owned();
            return Err(DataError::Layout {
                path: root,
                problem,
            });
        }
        let mut datasets = Vec::new();
        for (task, dir) in subdirectories(&root)? {
            for (dataset, dir) in subdirectories(&dir)? {
                let holds = |file: &str| dir.join(file).is_file();
                if ["train.json", "dev.json", "test.json", "labels.json"]
                    .into_iter()
                    .any(holds)
                {
                    datasets.push(ClEntry {
                        task: task.clone(),
                        dataset,
                    });
                }
            }
        }
        if datasets.is_empty() {
            let problem = "no data set here, expected TASK/DATASET/train.json".to_owned();
            return Err(DataError::Layout {
                path: root,
                problem,
            });
        }
        let instructions = read_instructions(&instruction_file(&root))?;
        Ok(Self {
            root,
            instructions,
            datasets,
        })
    }

    /// The data sets that lie in the directory, sorted by task and name.
    pub fn datasets(&self) -> &[ClEntry] {
        &self.datasets
    }

    /// The data set of that name, whatever its case; `TASK/DATASET` is understood too.
    ///
    /// # Errors
    /// [`DataError::UnknownTask`] or [`DataError::AmbiguousTask`], or if `labels.json` is bad.
    pub fn dataset(&self, name: &str) -> Result<ClDataset, DataError> {
        let wanted = name.to_lowercase();
        let is_wanted = |entry: &&ClEntry| {
            entry.dataset.to_lowercase() == wanted || entry.full_name().to_lowercase() == wanted
        };
        // Names may differ in their case alone.
        let exact = |entry: &&ClEntry| entry.full_name() == name;
        let found: Vec<&ClEntry> = match self.datasets.iter().find(exact) {
            Some(entry) => vec![entry],
            None => self.datasets.iter().filter(is_wanted).collect(),
        };
        let entry = match found[..] {
            [entry] => entry.clone(),
            [] => {
                let names = self.names();
                return Err(DataError::UnknownTask {
                    name: name.to_owned(),
                    nearest: nearest(name, names.iter().map(String::as_str)),
                    available: names,
                    root: self.root.display().to_string(),
                });
            }
            _ => {
                return Err(DataError::AmbiguousTask {
                    name: name.to_owned(),
                    candidates: found.into_iter().map(ClEntry::full_name).collect(),
                });
            }
        };
        let dir = self.root.join(&entry.task).join(&entry.dataset);
        let labels = read_labels(&dir.join("labels.json"))?;
        // COPA's sentences hold their own question and choices; the reference adds nothing to them.
        let is_copa = entry.task == "COPA";
        let instruction = self
            .instructions
            .get(&entry.task)
            .filter(|_| !is_copa)
            .map(String::as_str);
        if instruction.is_none() && !is_copa {
            tracing::warn!(
                "{INSTRUCTION_FILE} has no entry for {}: the prompt of {} has neither instruction nor options",
                entry.task,
                entry.dataset
            );
        }
        let prompt = ClPrompt::new(&entry.task, &entry.dataset, instruction, &labels);
        Ok(ClDataset {
            entry,
            dir,
            labels,
            prompt,
        })
    }

    /// Reads one split of one data set.
    ///
    /// # Errors
    /// Those of [`ClBenchmark::dataset`] and of [`TaskSource::load`].
    pub fn load(&self, dataset: &str, split: Split) -> Result<Vec<Example>, DataError> {
        self.dataset(dataset)?.load(split)
    }
}

impl TaskLibrary for ClBenchmark {
    fn names(&self) -> Vec<String> {
        self.datasets
            .iter()
            .map(|entry| entry.dataset.clone())
            .collect()
    }

    fn task(&self, name: &str) -> Result<Box<dyn TaskSource>, DataError> {
        Ok(Box::new(self.dataset(name)?))
    }
}

impl ClEntry {
    fn full_name(&self) -> String {
        format!("{}/{}", self.task, self.dataset)
    }
}

impl ClDataset {
    /// The kind of task and the name.
    pub fn entry(&self) -> &ClEntry {
        &self.entry
    }
}

impl TaskSource for ClDataset {
    fn name(&self) -> &str {
        &self.entry.dataset
    }

    fn id(&self) -> String {
        self.entry.full_name()
    }

    fn labels(&self) -> Option<&[String]> {
        Some(&self.labels)
    }

    fn load(&self, split: Split) -> Result<Vec<Example>, DataError> {
        let path = self.dir.join(format!("{split}.json"));
        if split == Split::Dev && !path.exists() {
            return Ok(Vec::new());
        }
        let records = read_list(&path)?;
        if records.is_empty() {
            return Err(DataError::EmptyTask { path });
        }
        // 131 of the 7600 published test records of MNLI have the label `-`: its annotators did not agree.
        let known = Some(&self.labels[..]).filter(|_| split == Split::Train);
        let example = |(index, record): (usize, &Value)| {
            let place = || Place::Record(path.clone(), index);
            let sentence = text_field(record, "sentence", &place)?;
            let label = label_field(record, "label", known, &place)?;
            Ok(self.prompt.example(sentence, label))
        };
        let examples = records.iter().enumerate().map(example);
        let examples: Vec<Example> = examples.collect::<Result<_, DataError>>()?;
        let mut others = examples
            .iter()
            .enumerate()
            .filter(|(_, example)| !self.labels.contains(&example.target));
        if let Some((record, Example { target, .. })) = others.next() {
            let (records, of) = (1 + others.count(), examples.len());
            tracing::warn!(
                path = %path.display(), records, of,
                "labels that are not in labels.json, first `{target}` in record {record}: no label is a right answer to these"
            );
        }
        Ok(examples)
    }
}

/// `instruction_config.json` of a benchmark: in its folder, or in `configs` beside it.
pub(crate) fn instruction_file(root: &Path) -> PathBuf {
    let own = root.join(INSTRUCTION_FILE);
    let beside = root.join("..").join("configs").join(INSTRUCTION_FILE);
    match !own.is_file() && beside.is_file() {
        true => beside,
        false => own,
    }
}

/// Reads the instruction of every task: the first zero-shot one, or the first of any kind.
fn read_instructions(path: &Path) -> Result<BTreeMap<String, String>, DataError> {
    let unexpected = |expected, found: &Value| DataError::UnexpectedJson {
        place: Place::File(path.to_owned()),
        expected,
        found: json_type(found),
    };
    let value = read_value(path)?;
    let Value::Object(tasks) = &value else {
        return Err(unexpected(
            "an object that maps tasks to lists of instructions",
            &value,
        ));
    };
    let mut instructions = BTreeMap::new();
    for (task, list) in tasks {
        let Value::Array(list) = list else {
            return Err(unexpected("a list of instructions for each task", list));
        };
        let zero_shot = |item: &&Value| {
            item.get("instruction_type").and_then(Value::as_str) == Some("zero-shot")
        };
        let Some(first) = list.iter().find(zero_shot).or(list.first()) else {
            continue;
        };
        let place = || Place::File(path.to_owned());
        instructions.insert(task.clone(), text_field(first, "instruction", &place)?);
    }
    Ok(instructions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RecordProblem;
    use crate::library::open_library;
    use std::fs;
    use tempfile::TempDir;

    /// A benchmark with one data set `TC/news`, the given labels and train file.
    fn benchmark(labels: &str, train: &str) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let news = dir.path().join("TC/news");
        fs::create_dir_all(&news).unwrap();
        let instructions = r#"{"TC": [
            {"instruction_type": "few-shot", "instruction": "no"},
            {"instruction_type": "zero-shot", "instruction": "Which topic?\n"}]}"#;
        fs::write(dir.path().join(INSTRUCTION_FILE), instructions).unwrap();
        fs::write(news.join("labels.json"), labels).unwrap();
        fs::write(news.join("train.json"), train).unwrap();
        dir
    }

    fn load(labels: &str, train: &str) -> Result<Vec<Example>, DataError> {
        let dir = benchmark(labels, train);
        ClBenchmark::open(dir.path())?.load("NEWS", Split::Train)
    }

    const LABELS: &str = r#"["A", "B"]"#;

    #[test]
    fn reads_a_data_set() {
        let dir = benchmark(
            LABELS,
            "\u{feff}[{\"sentence\": \"s\", \"label\": \"B\", \"id\": 3}]",
        );
        let library = open_library(dir.path()).unwrap();
        assert_eq!(library.names(), ["news"]);
        let task = library.task("tc/News").unwrap();
        assert_eq!(task.name(), "news");
        assert_eq!(task.labels().unwrap(), ["A", "B"]);
        let train = task.load(Split::Train).unwrap();
        assert_eq!(
            train[0].prompt(),
            "Task:TC\nDataset:news\nWhich topic?\nOption: A, B \ns\nAnswer:"
        );
        assert_eq!(
            (train[0].sentence.as_str(), train[0].target.as_str()),
            ("s", "B")
        );
        // Dev may be absent, test may not.
        assert_eq!(task.load(Split::Dev).unwrap(), []);
        let error = task.load(Split::Test).unwrap_err();
        assert!(error.to_string().contains("test.json"), "{error}");
    }

    #[rstest::rstest]
    #[case(
        r#"[{"sentence": "a", "label": "A"}, {"sentence": "b""#,
        "record 1 (counted from 0): bad JSON at line 1, column"
    )]
    #[case(
        "[\n{\"sentence\": \"a\",\n \"label\": A}]",
        "record 0 (counted from 0): bad JSON at line 3, column"
    )]
    #[case(
        r#"[{"sentence": "a", "label": "A"}] x"#,
        "bad JSON at line 1, column 35: trailing characters"
    )]
    #[case("[{\"sentence\": \"a\u{1}\", \"label\": \"A\"}]", "control character")]
    #[case(r#"{"sentence": "a"}"#, "train.json: expected a list, found an object")]
    #[case("3", "train.json: expected a list, found a number")]
    #[case(
        r#"[{"sentence": "a", "label": "A"}, 7]"#,
        "record 1 (counted from 0): expected an object, found a number"
    )]
    #[case(
        r#"[{"label": "A"}]"#,
        "record 0 (counted from 0): field `sentence` is missing"
    )]
    #[case(r#"[{"sentence": "a"}]"#, "field `label` is missing")]
    #[case(
        r#"[{"sentence": ["a"], "label": "A"}]"#,
        "field `sentence` must be a string, found a list"
    )]
    #[case(
        r#"[{"sentence": "a", "label": 1}]"#,
        "field `label` must be a string, found a number"
    )]
    #[case(
        r#"[{"sentence": "a", "label": null}]"#,
        "field `label` must be a string, found null"
    )]
    #[case(r#"[{"sentence": "a", "label": " "}]"#, "field `label` is empty")]
    #[case(
        r#"[{"sentence": "a", "label": "a"}]"#,
        "label `a` is not in labels.json, did you mean `A`?; it lists `A`, `B`"
    )]
    #[case("[]", "train.json: empty task")]
    #[case(" \n", "train.json: empty task")]
    fn malformed_splits(#[case] train: &str, #[case] complaint: &str) {
        let message = load(LABELS, train).unwrap_err().to_string();
        assert!(
            message.contains("train.json") && message.contains(complaint),
            "{message}"
        );
    }

    #[test]
    fn labels_that_are_not_listed_are_evaluated_but_not_learned() {
        let unknown = r#"[{"sentence": "s", "label": "A"}, {"sentence": "t", "label": "-"}]"#;
        let dir = benchmark(LABELS, unknown);
        fs::write(dir.path().join("TC/news/test.json"), unknown).unwrap();
        let benchmark = ClBenchmark::open(dir.path()).unwrap();
        let test = benchmark.load("news", Split::Test).unwrap();
        assert_eq!(test[1].target, "-");
        let message = benchmark.load("news", Split::Train).unwrap_err();
        let message = message.to_string();
        assert!(
            message.contains("label `-` is not in labels.json"),
            "{message}"
        );
    }

    #[test]
    fn text_that_is_not_utf8() {
        let dir = benchmark(LABELS, "[]");
        let path = dir.path().join("TC/news/train.json");
        fs::write(&path, b"[{\"sentence\": \"\xff\", \"label\": \"A\"}]").unwrap();
        let error = ClBenchmark::open(dir.path())
            .unwrap()
            .load("news", Split::Train)
            .unwrap_err();
        assert!(matches!(error, DataError::BadJson { .. }), "{error}");
    }

    #[rstest::rstest]
    #[case("[]", "the list of labels is empty")]
    #[case(
        r#"["A", "B", "A"]"#,
        "record 2 (counted from 0): duplicated label `A`"
    )]
    #[case(r#"["A", ""]"#, "record 1 (counted from 0): field `label` is empty")]
    #[case(
        r#"["A", 1]"#,
        "record 1 (counted from 0): expected a label (a string), found a number"
    )]
    #[case(r#"{"A": 0}"#, "expected a list, found an object")]
    #[case(r#"["A""#, "bad JSON")]
    fn malformed_labels(#[case] labels: &str, #[case] complaint: &str) {
        let message = load(labels, "[]").unwrap_err().to_string();
        assert!(
            message.contains("labels.json") && message.contains(complaint),
            "{message}"
        );
    }

    #[rstest::rstest]
    #[case("[]", "expected an object that maps tasks")]
    #[case(r#"{"TC": "x"}"#, "expected a list of instructions")]
    #[case(r#"{"TC": [{}]}"#, "field `instruction` is missing")]
    #[case(r#"{"TC": ["#, "bad JSON at line 1")]
    fn malformed_instructions(#[case] instructions: &str, #[case] complaint: &str) {
        let dir = benchmark(LABELS, "[]");
        fs::write(dir.path().join(INSTRUCTION_FILE), instructions).unwrap();
        let message = ClBenchmark::open(dir.path()).unwrap_err().to_string();
        assert!(
            message.contains(INSTRUCTION_FILE) && message.contains(complaint),
            "{message}"
        );
    }

    #[test]
    fn unknown_and_ambiguous_names() {
        let dir = benchmark(LABELS, "[]");
        let open = || ClBenchmark::open(dir.path()).unwrap();
        let message = open().dataset("nwes").unwrap_err().to_string();
        assert!(
            message.contains("unknown task `nwes`, did you mean `news`?"),
            "{message}"
        );
        assert!(message.contains("docs/data-layout.md"), "{message}");

        fs::create_dir_all(dir.path().join("SC/News")).unwrap();
        fs::write(dir.path().join("SC/News/labels.json"), LABELS).unwrap();
        let message = open().dataset("news").unwrap_err().to_string();
        assert!(
            message.contains("write one of `SC/News`, `TC/news`"),
            "{message}"
        );
        assert_eq!(open().dataset("SC/News").unwrap().entry().task, "SC");
    }

    /// Needs a file system that tells cases apart.
    #[test]
    #[cfg(target_os = "linux")]
    fn names_that_differ_in_their_case_alone() {
        let dir = benchmark(LABELS, "[]");
        fs::create_dir_all(dir.path().join("TC/News")).unwrap();
        fs::write(dir.path().join("TC/News/labels.json"), LABELS).unwrap();
        let benchmark = ClBenchmark::open(dir.path()).unwrap();
        for name in ["TC/news", "TC/News"] {
            let found = benchmark.dataset(name).unwrap();
            assert_eq!(format!("TC/{}", found.entry().dataset), name);
        }
        let message = benchmark.dataset("NEWS").unwrap_err().to_string();
        assert!(
            message.contains("write one of `TC/News`, `TC/news`"),
            "{message}"
        );
    }

    #[test]
    fn the_published_repository_is_read_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("CL_Benchmark/SC/amazon");
        fs::create_dir_all(&data).unwrap();
        fs::create_dir(dir.path().join("configs")).unwrap();
        let instructions =
            r#"{"SC": [{"instruction_type": "zero-shot", "instruction": "Which?\n"}]}"#;
        fs::write(
            dir.path().join("configs").join(INSTRUCTION_FILE),
            instructions,
        )
        .unwrap();
        fs::write(data.join("labels.json"), LABELS).unwrap();
        fs::write(
            data.join("train.json"),
            r#"[{"label": "A", "sentence": "s"}]"#,
        )
        .unwrap();
        let library = open_library(dir.path().join("CL_Benchmark")).unwrap();
        let task = library.task("amazon").unwrap();
        assert_eq!(
            task.load(Split::Train).unwrap()[0].prompt(),
            "Task:SC\nDataset:amazon\nWhich?\nOption: A, B \ns\nAnswer:"
        );
        // A split that was not downloaded is named, with where the layout is described.
        let message = task.load(Split::Test).unwrap_err().to_string();
        assert!(
            message.contains("test.json: no such file") && message.contains("docs/data-layout.md"),
            "{message}"
        );
        let message = ClBenchmark::open(dir.path().join("none")).unwrap_err();
        assert!(
            message.to_string().contains("docs/data-layout.md"),
            "{message}"
        );
    }

    #[test]
    fn an_empty_directory_is_no_benchmark() {
        let dir = tempfile::tempdir().unwrap();
        let message = ClBenchmark::open(dir.path()).unwrap_err().to_string();
        assert!(
            message.contains("expected TASK/DATASET/train.json"),
            "{message}"
        );
    }

    #[test]
    fn the_problem_is_a_value_not_only_text() {
        let error = load(LABELS, r#"[{"sentence": "a", "label": "C"}]"#).unwrap_err();
        let DataError::BadRecord {
            place: Place::Record(_, 0),
            problem,
        } = error
        else {
            panic!("{error}");
        };
        assert!(matches!(problem, RecordProblem::UnknownLabel { label, .. } if label == "C"));
    }
}
