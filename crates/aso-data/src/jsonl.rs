//! Own tasks: directories of JSON lines, `NAME/{train,dev,test}.jsonl`.
//!
//! Every line is `{"input": .., "target": ..}`; other fields are ignored, blank lines are
//! skipped. `dev.jsonl` may be absent. With an optional `labels.json` (a list of strings) every
//! target must be one of the labels.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::error::{DataError, Place};
use crate::example::{Example, Split};
use crate::records::{
    fields, find_named, label_field, parse_line, read, read_labels, subdirectories, text_field,
};
use crate::task::{TaskLibrary, TaskSource};

/// A directory that holds one task as JSON lines.
#[derive(Debug, Clone)]
pub struct JsonlTask {
    name: String,
    dir: PathBuf,
    labels: Option<Vec<String>>,
}

/// A directory of [`JsonlTask`]s, or one such task itself.
#[derive(Debug, Clone)]
pub struct JsonlLibrary {
    root: PathBuf,
    tasks: Vec<(String, PathBuf)>,
}

/// A line whose answer may be unknown, as prediction takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonlInput {
    /// The whole prompt.
    pub input: String,
    /// The answer, if the file gives one.
    pub target: Option<String>,
}

impl JsonlTask {
    /// Opens a task; its name is the directory's. Reads the labels, if any, and no examples.
    ///
    /// # Errors
    /// If no split lies in the directory or `labels.json` is bad.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, DataError> {
        let dir = dir.into();
        if !holds_splits(&dir) {
            fs::read_dir(&dir).map_err(DataError::io(&dir))?;
            let problem = "no task here, expected train.jsonl and test.jsonl".to_owned();
            return Err(DataError::Layout { path: dir, problem });
        }
        let path = dir.join("labels.json");
        let labels = path.exists().then(|| read_labels(&path)).transpose()?;
        Ok(Self {
            name: directory_name(&dir),
            dir,
            labels,
        })
    }
}

impl TaskSource for JsonlTask {
    fn name(&self) -> &str {
        &self.name
    }

    fn labels(&self) -> Option<&[String]> {
        self.labels.as_deref()
    }

    fn load(&self, split: Split) -> Result<Vec<Example>, DataError> {
        let path = self.dir.join(format!("{split}.jsonl"));
        if split == Split::Dev && !path.exists() {
            return Ok(Vec::new());
        }
        if !path.exists() {
            return Err(DataError::MissingFile { path });
        }
        read_jsonl(&path, self.labels())
    }
}

impl JsonlLibrary {
    /// Lists the tasks of a directory; a directory that is itself a task counts as a library of it.
    ///
    /// # Errors
    /// If the directory cannot be read or holds no task.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, DataError> {
        let root = root.into();
        if !root.is_dir() {
            let problem = "no such folder".to_owned();
            return Err(DataError::Layout {
                path: root,
                problem,
            });
        }
        let mut tasks = subdirectories(&root)?;
        tasks.retain(|(_, dir)| holds_splits(dir));
        if holds_splits(&root) {
            tasks.push((directory_name(&root), root.clone()));
        }
        if tasks.is_empty() {
            let problem = "no task here, expected NAME/train.jsonl".to_owned();
            return Err(DataError::Layout {
                path: root,
                problem,
            });
        }
        Ok(Self { root, tasks })
    }
}

impl TaskLibrary for JsonlLibrary {
    fn names(&self) -> Vec<String> {
        self.tasks.iter().map(|(name, _)| name.clone()).collect()
    }

    fn task(&self, name: &str) -> Result<Box<dyn TaskSource>, DataError> {
        let (_, dir) = find_named(&self.tasks, name, &self.root)?;
        Ok(Box::new(JsonlTask::open(dir)?))
    }
}

/// Reads a file of `{"input", "target"}` lines; with `labels` every target must be one of them.
///
/// # Errors
/// If the file cannot be read, has no examples, or a line is malformed (naming the line).
pub fn read_jsonl(path: &Path, labels: Option<&[String]>) -> Result<Vec<Example>, DataError> {
    each_line(path, |record, place| {
        let input = text_field(record, "input", place)?;
        Ok(Example::plain(
            input,
            label_field(record, "target", labels, place)?,
        ))
    })
}

/// Reads a file of lines with an `input` and, where known, a `target`.
///
/// # Errors
/// Those of [`read_jsonl`], except that `target` may be absent, null or empty.
pub fn read_inputs(path: &Path) -> Result<Vec<JsonlInput>, DataError> {
    each_line(path, |record, place| {
        let input = text_field(record, "input", place)?;
        let target = match fields(record, place)?.get("target") {
            None | Some(Value::Null) => None,
            Some(_) => Some(text_field(record, "target", place)?),
        };
        Ok(JsonlInput { input, target })
    })
}

/// Writes examples as [`read_jsonl`] reads them: `input` is the whole prompt.
///
/// # Errors
/// If the file cannot be written.
pub fn write_jsonl(path: &Path, examples: &[Example]) -> Result<(), DataError> {
    #[derive(Serialize)]
    struct Line<'a> {
        input: &'a str,
        target: &'a str,
    }
    let mut file = BufWriter::new(fs::File::create(path).map_err(DataError::io(path))?);
    for example in examples {
        let line = Line {
            input: &example.prompt(),
            target: &example.target,
        };
        serde_json::to_writer(&mut file, &line)
            .map_err(|error| DataError::io(path)(error.into()))?;
        file.write_all(b"\n").map_err(DataError::io(path))?;
    }
    file.flush().map_err(DataError::io(path))
}

fn each_line<T>(
    path: &Path,
    parse: impl Fn(&Value, &dyn Fn() -> Place) -> Result<T, DataError>,
) -> Result<Vec<T>, DataError> {
    let bytes = read(path)?;
    let mut parsed = Vec::new();
    for (line, text) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let record = parse_line(path, line, text)?;
        parsed.push(parse(&record, &|| Place::Line(path.to_owned(), line))?);
    }
    if parsed.is_empty() {
        return Err(DataError::EmptyTask {
            path: path.to_owned(),
        });
    }
    Ok(parsed)
}

fn holds_splits(dir: &Path) -> bool {
    Split::ALL
        .into_iter()
        .any(|split| dir.join(format!("{split}.jsonl")).is_file())
}

/// The last component of the path, also of `.` and `..`.
fn directory_name(dir: &Path) -> String {
    let absolute = fs::canonicalize(dir);
    let name = dir
        .file_name()
        .or_else(|| absolute.as_ref().ok().and_then(|path| path.file_name()));
    name.map_or_else(
        || "task".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::open_library;
    use crate::task::{ExampleCaps, TaskData};
    use proptest::prelude::*;
    use tempfile::TempDir;

    fn task(files: &[(&str, &str)]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mine")).unwrap();
        for (file, text) in files {
            fs::write(dir.path().join("mine").join(file), text).unwrap();
        }
        dir
    }

    const LINE: &str = "{\"input\": \"a b\", \"target\": \"yes\"}\n";

    #[test]
    fn reads_a_task() {
        let crlf = "\r\n{\"target\": \"no\", \"input\": \"c\", \"more\": 1}\r\n\r\n";
        let dir = task(&[("train.jsonl", LINE), ("test.jsonl", crlf)]);
        let library = open_library(dir.path()).unwrap();
        assert_eq!(library.names(), ["mine"]);
        let source = library.task("Mine").unwrap();
        let data = TaskData::load(source.as_ref(), &ExampleCaps::default()).unwrap();
        assert_eq!(data.name, "mine");
        assert_eq!(data.labels, None);
        assert_eq!(data.train, [Example::plain("a b", "yes")]);
        assert_eq!(data.dev, []);
        assert_eq!(data.split(Split::Test), [Example::plain("c", "no")]);
        // The task's own directory is a library of one.
        let alone = open_library(dir.path().join("mine")).unwrap();
        assert_eq!(alone.names(), ["mine"]);
        assert_eq!(
            alone.task("mine").unwrap().load(Split::Train).unwrap(),
            data.train
        );
    }

    #[rstest::rstest]
    #[case(
        "{\"input\": \"a\", \"target\": \"yes\"}\n\n{\"input\": \"a\"",
        "line 3: bad JSON at line 3, column 13"
    )]
    #[case("[1]", "line 1: expected an object, found a list")]
    #[case("{\"target\": \"yes\"}", "line 1: field `input` is missing")]
    #[case("{\"input\": \"a\"}", "line 1: field `target` is missing")]
    #[case(
        "{\"input\": 1, \"target\": \"yes\"}",
        "field `input` must be a string, found a number"
    )]
    #[case("{\"input\": \"a\", \"target\": \"\"}", "field `target` is empty")]
    #[case(
        "{\"input\": \"a\", \"target\": \"ye\"}",
        "label `ye` is not in labels.json, did you mean `yes`?"
    )]
    #[case("", "empty task")]
    #[case("\n\n", "empty task")]
    fn malformed_lines(#[case] train: &str, #[case] complaint: &str) {
        let dir = task(&[("train.jsonl", train), ("labels.json", "[\"yes\", \"no\"]")]);
        let task = JsonlTask::open(dir.path().join("mine")).unwrap();
        let message = task.load(Split::Train).unwrap_err().to_string();
        assert!(
            message.contains("train.jsonl") && message.contains(complaint),
            "{message}"
        );
    }

    #[test]
    fn missing_files_and_names() {
        let dir = task(&[("train.jsonl", LINE)]);
        let library = JsonlLibrary::open(dir.path()).unwrap();
        let error = library.task("mine").unwrap().load(Split::Test).unwrap_err();
        assert!(matches!(error, DataError::MissingFile { .. }), "{error}");
        let message = library.task("mien").unwrap_err().to_string();
        assert!(
            message.contains("unknown task `mien`, did you mean `mine`?"),
            "{message}"
        );

        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(
            JsonlTask::open(empty.path()),
            Err(DataError::Layout { .. })
        ));
        assert!(matches!(
            JsonlLibrary::open(empty.path()),
            Err(DataError::Layout { .. })
        ));
        let none = empty.path().join("none");
        assert!(matches!(JsonlTask::open(&none), Err(DataError::Io { .. })));
    }

    #[test]
    fn inputs_may_lack_a_target() {
        let dir = task(&[(
            "x.jsonl",
            "{\"input\": \"a\"}\n{\"input\": \"b\", \"target\": \"t\"}\n",
        )]);
        let read = |text: &str| {
            let path = dir.path().join("mine/x.jsonl");
            fs::write(&path, text).unwrap();
            read_inputs(&path)
        };
        let inputs =
            read("{\"input\": \"a\", \"target\": null}\n{\"input\": \"b\", \"target\": \"t\"}")
                .unwrap();
        assert_eq!(
            inputs[0],
            JsonlInput {
                input: "a".into(),
                target: None
            }
        );
        assert_eq!(
            inputs[1],
            JsonlInput {
                input: "b".into(),
                target: Some("t".into())
            }
        );
        assert!(read("{\"input\": \"a\", \"target\": 1}").is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn written_files_read_back(texts in prop::collection::vec(("\\PC{0,30}", "[a-z\n\u{2028}]{1,9}x"), 1..20)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("train.jsonl");
            let examples: Vec<_> =
                texts.into_iter().map(|(input, target)| Example::plain(input, target)).collect();
            write_jsonl(&path, &examples).unwrap();
            prop_assert_eq!(read_jsonl(&path, None).unwrap(), examples);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let dir = tempfile::tempdir().unwrap();
            for file in ["train.jsonl", "labels.json"] {
                fs::write(dir.path().join(file), &bytes).unwrap();
            }
            let _ = read_jsonl(&dir.path().join("train.jsonl"), None);
            let _ = JsonlTask::open(dir.path());
        }
    }
}
