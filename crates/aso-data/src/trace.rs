//! TRACE: `TASK/{train,eval,test}.json`, lists of `{"prompt": .., "answer": ..}`.
//!
//! Wang et al., "TRACE: A Comprehensive Benchmark for Continual Learning in Large Language Models" (2023). Each
//! task has its own measure ([`trace_metric`]). The dev split is `eval.json`.

use std::path::PathBuf;

use serde_json::Value;

use crate::error::{DataError, Place};
use crate::example::{Example, Split, TruncationSide};
use crate::metric::Metric;
use crate::records::{find_named, label_field, open_folders, read_list, text_field};
use crate::task::{TaskLibrary, TaskSource};

/// The files of a split.
const FILES: [(Split, &str); 3] = [
    (Split::Train, "train.json"),
    (Split::Dev, "eval.json"),
    (Split::Test, "test.json"),
];

/// A directory in the layout of TRACE.
#[derive(Debug, Clone)]
pub struct TraceLibrary {
    root: PathBuf,
    tasks: Vec<(String, PathBuf)>,
}

/// One task of TRACE; its splits are read on demand.
#[derive(Debug, Clone)]
pub struct TraceTask {
    name: String,
    dir: PathBuf,
}

/// How TRACE scores a task: C-STANCE, FOMC and NumGLUE by equal answers, ScienceQA by the letter, MeetingBank
/// by ROUGE-L, Py150 by edit similarity, 20Minuten by SARI. Other names are scored by exact match.
pub fn trace_metric(task: &str) -> Metric {
    match task.to_lowercase().as_str() {
        "c-stance" | "fomc" | "numglue-cm" | "numglue-ds" => Metric::Verbatim,
        "scienceqa" => Metric::FirstLetter,
        "meetingbank" => Metric::RougeL,
        "py150" => Metric::EditSimilarity,
        "20minuten" => Metric::Sari,
        _ => Metric::ExactMatch,
    }
}

impl TraceLibrary {
    /// Lists the tasks; no examples are read.
    ///
    /// # Errors
    /// If the directory cannot be read or holds no task.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, DataError> {
        let root = root.into();
        let tasks = open_folders(&root, &FILES.map(|(_, file)| file), "TASK/train.json")?;
        Ok(Self { root, tasks })
    }
}

impl TaskLibrary for TraceLibrary {
    fn names(&self) -> Vec<String> {
        self.tasks.iter().map(|(name, _)| name.clone()).collect()
    }

    fn task(&self, name: &str) -> Result<Box<dyn TaskSource>, DataError> {
        let (name, dir) = find_named(&self.tasks, name, &self.root)?;
        Ok(Box::new(TraceTask {
            name: name.clone(),
            dir: dir.clone(),
        }))
    }
}

impl TaskSource for TraceTask {
    fn name(&self) -> &str {
        &self.name
    }

    fn labels(&self) -> Option<&[String]> {
        None
    }

    fn metric(&self) -> Metric {
        trace_metric(&self.name)
    }

    fn load(&self, split: Split) -> Result<Vec<Example>, DataError> {
        let file = FILES.iter().find(|(of, _)| *of == split);
        let path = self.dir.join(file.map_or("test.json", |(_, file)| file));
        if split == Split::Dev && !path.exists() {
            return Ok(Vec::new());
        }
        let records = read_list(&path)?;
        if records.is_empty() {
            return Err(DataError::EmptyTask { path });
        }
        let example = |(index, record): (usize, &Value)| {
            let place = || Place::Record(path.clone(), index);
            let prompt = text_field(record, "prompt", &place)?;
            let answer = label_field(record, "answer", None, &place)?;
            Ok(split_prompt(&prompt, answer))
        };
        records.iter().enumerate().map(example).collect()
    }
}

/// Keeps what a prompt must not lose when it is cut: the instruction in its first line, and a last line that
/// asks for the answer, such as `Stance:`. Of the rest the end stays, as in TRACE: the code that Py150 asks to go on with.
fn split_prompt(prompt: &str, target: String) -> Example {
    let body = prompt.trim_end();
    let cue = body.rfind('\n').filter(|_| body.ends_with([':', '：']));
    let (text, suffix) = prompt.split_at(cue.unwrap_or(prompt.len()));
    let (prefix, sentence) = text.split_at(text.find('\n').map_or(0, |end| end + 1));
    Example {
        prefix: prefix.to_owned(),
        sentence: sentence.to_owned(),
        suffix: suffix.to_owned(),
        target,
        truncation_side: TruncationSide::Left,
        ..Example::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A library of one task with that file.
    fn library(task: &str, file: &str, content: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(task)).unwrap();
        fs::write(dir.path().join(task).join(file), content).unwrap();
        dir
    }

    #[test]
    fn reads_a_task() {
        let dir = library(
            "FOMC",
            "train.json",
            r#"[{"prompt": "Which stance?\nText:\nRates rise.\nMore.\nStance:\n", "answer": "hawkish"}]"#,
        );
        fs::write(
            dir.path().join("FOMC/eval.json"),
            r#"[{"prompt": "One line", "answer": "x"}]"#,
        )
        .unwrap();
        let library = TraceLibrary::open(dir.path()).unwrap();
        assert_eq!(library.names(), ["FOMC"]);
        let task = library.task("fomc").unwrap();
        assert_eq!((task.name(), task.metric()), ("FOMC", Metric::Verbatim));
        let train = task.load(Split::Train).unwrap();
        assert_eq!(train[0].prefix, "Which stance?\n");
        assert_eq!(train[0].sentence, "Text:\nRates rise.\nMore.");
        assert_eq!(train[0].suffix, "\nStance:\n");
        assert_eq!(train[0].target, "hawkish");
        assert_eq!(train[0].truncation_side, TruncationSide::Left);
        let dev = task.load(Split::Dev).unwrap();
        assert_eq!(
            (dev[0].sentence.as_str(), dev[0].suffix.as_str()),
            ("One line", "")
        );
        let missing = task.load(Split::Test).unwrap_err().to_string();
        assert!(
            missing.contains("test.json") && missing.contains("docs/data-layout.md"),
            "{missing}"
        );
    }

    #[test]
    fn every_task_has_its_measure() {
        let order = crate::OrderPreset::find("trace").unwrap();
        let metrics: Vec<Metric> = order.tasks.iter().map(|task| trace_metric(task)).collect();
        assert_eq!(
            metrics,
            [
                Metric::Verbatim,
                Metric::Verbatim,
                Metric::RougeL,
                Metric::EditSimilarity,
                Metric::FirstLetter,
                Metric::Verbatim,
                Metric::Verbatim,
                Metric::Sari,
            ]
        );
    }

    #[rstest::rstest]
    #[case("{}", "train.json: expected a list, found an object")]
    #[case("[]", "train.json: empty task")]
    #[case(
        r#"[{"prompt": "a"}]"#,
        "record 0 (counted from 0): field `answer` is missing"
    )]
    #[case(r#"[{"prompt": "a", "answer": " "}]"#, "field `answer` is empty")]
    #[case(
        r#"[{"prompt": 1, "answer": "x"}]"#,
        "field `prompt` must be a string, found a number"
    )]
    fn malformed_splits(#[case] train: &str, #[case] complaint: &str) {
        let dir = library("x", "train.json", train);
        let task = TraceLibrary::open(dir.path()).unwrap().task("x").unwrap();
        let message = task.load(Split::Train).unwrap_err().to_string();
        assert!(message.contains(complaint), "{message}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = library("FOMC", "train.json", "[]");
        let library = TraceLibrary::open(dir.path()).unwrap();
        let message = library.task("FONC").unwrap_err().to_string();
        assert!(message.contains("did you mean `FOMC`?"), "{message}");
        for path in [dir.path().join("FOMC"), dir.path().join("none")] {
            let message = TraceLibrary::open(path).unwrap_err().to_string();
            assert!(message.contains("docs/data-layout.md"), "{message}");
        }
    }
}
