//! Reading JSON records so that every complaint names its place.

use std::cell::Cell;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserializer as _;
use serde::de::{SeqAccess, Visitor};
use serde_json::Value;

use crate::error::{DataError, Place, RecordProblem, nearest};
use crate::metric::normalize_answer;

/// Reads a file that holds one JSON list.
pub(crate) fn read_list(path: &Path) -> Result<Vec<Value>, DataError> {
    let bytes = read_data(path)?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    // Elements are counted while parsing, so that even a syntax error names its record.
    let complete = Cell::new(0);
    let mut deserializer = serde_json::Deserializer::from_slice(&bytes);
    let list = (&mut deserializer)
        .deserialize_any(ListVisitor {
            complete: &complete,
        })
        .and_then(|list| deserializer.end().map(|()| list))
        .map_err(|error| DataError::BadJson {
            place: Place::Record(path.to_owned(), complete.get()),
            line: error.line(),
            column: error.column(),
            problem: problem(&error),
        })?;
    match list {
        Json::List(list) => Ok(list),
        Json::Other(found) => Err(DataError::UnexpectedJson {
            place: Place::File(path.to_owned()),
            expected: "a list",
            found,
        }),
    }
}

/// Reads a file that holds one JSON value of any kind.
pub(crate) fn read_value(path: &Path) -> Result<Value, DataError> {
    serde_json::from_slice(&read_data(path)?).map_err(|error| DataError::BadJson {
        place: Place::File(path.to_owned()),
        line: error.line(),
        column: error.column(),
        problem: problem(&error),
    })
}

/// Parses one line of a JSONL file.
pub(crate) fn parse_line(path: &Path, line: usize, text: &[u8]) -> Result<Value, DataError> {
    serde_json::from_slice(text).map_err(|error| DataError::BadJson {
        place: Place::Line(path.to_owned(), line),
        line,
        column: error.column(),
        problem: problem(&error),
    })
}

/// Reads `labels.json`: a list of different, non-empty strings.
pub(crate) fn read_labels(path: &Path) -> Result<Vec<String>, DataError> {
    let mut labels: Vec<String> = Vec::new();
    for (index, value) in read_list(path)?.into_iter().enumerate() {
        let place = || Place::Record(path.to_owned(), index);
        let Value::String(label) = value else {
            return Err(DataError::UnexpectedJson {
                place: place(),
                expected: "a label (a string)",
                found: json_type(&value),
            });
        };
        if label.trim().is_empty() {
            let problem = RecordProblem::EmptyField { field: "label" };
            return Err(DataError::BadRecord {
                place: place(),
                problem,
            });
        }
        if labels.contains(&label) {
            return Err(DataError::DuplicateLabel {
                place: place(),
                label,
            });
        }
        if let Some(twin) = labels
            .iter()
            .find(|&l| normalize_answer(l) == normalize_answer(&label))
        {
            tracing::warn!(
                path = %path.display(),
                "labels `{twin}` and `{label}` are equal to exact match, which ignores case and punctuation"
            );
        }
        labels.push(label);
    }
    if labels.is_empty() {
        return Err(DataError::NoLabels {
            path: path.to_owned(),
        });
    }
    Ok(labels)
}

/// The fields of a record that is an object.
pub(crate) fn fields<'v>(
    record: &'v Value,
    place: &dyn Fn() -> Place,
) -> Result<&'v serde_json::Map<String, Value>, DataError> {
    record.as_object().ok_or_else(|| DataError::BadRecord {
        place: place(),
        problem: RecordProblem::NotAnObject {
            found: json_type(record),
        },
    })
}

/// A required string field.
pub(crate) fn text_field(
    record: &Value,
    field: &'static str,
    place: &dyn Fn() -> Place,
) -> Result<String, DataError> {
    let problem = match fields(record, place)?.get(field) {
        Some(Value::String(text)) => return Ok(text.clone()),
        Some(other) => RecordProblem::WrongType {
            field,
            found: json_type(other),
        },
        None => RecordProblem::MissingField { field },
    };
    Err(DataError::BadRecord {
        place: place(),
        problem,
    })
}

/// A required string field that says something and, where labels are known, is one of them.
pub(crate) fn label_field(
    record: &Value,
    field: &'static str,
    labels: Option<&[String]>,
    place: &dyn Fn() -> Place,
) -> Result<String, DataError> {
    let label = text_field(record, field, place)?;
    let problem = if label.trim().is_empty() {
        RecordProblem::EmptyField { field }
    } else {
        match labels {
            Some(labels) if !labels.contains(&label) => RecordProblem::UnknownLabel {
                nearest: nearest(&label, labels.iter().map(String::as_str)),
                label,
                labels: labels.to_vec(),
            },
            _ => return Ok(label),
        }
    };
    Err(DataError::BadRecord {
        place: place(),
        problem,
    })
}

/// The JSON type of a value, in words.
pub(crate) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Subdirectories of `dir` in name order, hidden ones left out.
pub(crate) fn subdirectories(dir: &Path) -> Result<Vec<(String, PathBuf)>, DataError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(DataError::io(dir))? {
        let path = entry.map_err(DataError::io(dir))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if !name.starts_with('.') && path.is_dir() {
            found.push((name.to_owned(), path));
        }
    }
    found.sort();
    Ok(found)
}

/// The folders of tasks in `root` by name: those that hold one of `files`.
pub(crate) fn open_folders(
    root: &Path,
    files: &[&str],
    expected: &str,
) -> Result<Vec<(String, PathBuf)>, DataError> {
    let layout = |problem: String| DataError::Layout {
        path: root.to_owned(),
        problem,
    };
    if !root.is_dir() {
        return Err(layout("no such folder".to_owned()));
    }
    let mut tasks = subdirectories(root)?;
    tasks.retain(|(_, dir)| files.iter().any(|file| dir.join(file).is_file()));
    if tasks.is_empty() {
        return Err(layout(format!("no task here, expected {expected}")));
    }
    Ok(tasks)
}

/// The JSON files of a folder, by name without `.json`.
pub(crate) fn json_files(dir: &Path) -> Result<Vec<(String, PathBuf)>, DataError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(DataError::io(dir))? {
        let path = entry.map_err(DataError::io(dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let stem = name.and_then(|name| name.strip_suffix(".json"));
        if let Some(stem) = stem.filter(|stem| !stem.starts_with('.'))
            && path.is_file()
        {
            found.push((stem.to_owned(), path));
        }
    }
    found.sort();
    Ok(found)
}

/// The task of that name, whatever its case; an exact match goes first, for a case-sensitive file system may
/// hold names that differ in case.
pub(crate) fn find_named<'t>(
    tasks: &'t [(String, PathBuf)],
    name: &str,
    root: &Path,
) -> Result<&'t (String, PathBuf), DataError> {
    let exact = tasks.iter().find(|(known, _)| known == name);
    let folded = || {
        let mut tasks = tasks.iter();
        tasks.find(|(known, _)| known.to_lowercase() == name.to_lowercase())
    };
    exact.or_else(folded).ok_or_else(|| DataError::UnknownTask {
        name: name.to_owned(),
        nearest: nearest(name, tasks.iter().map(|(known, _)| known.as_str())),
        available: tasks.iter().map(|(known, _)| known.clone()).collect(),
        root: root.display().to_string(),
    })
}

/// Reads a file, without the byte-order mark that some editors put in front of UTF-8.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let bytes = fs::read(path).map_err(DataError::io(path))?;
    Ok(bytes
        .strip_prefix(b"\xef\xbb\xbf")
        .map(<[u8]>::to_vec)
        .unwrap_or(bytes))
}

/// [`read`] for a file that a layout asks for.
fn read_data(path: &Path) -> Result<Vec<u8>, DataError> {
    read(path).map_err(|error| match error {
        DataError::Io { path, source } if source.kind() == ErrorKind::NotFound => {
            DataError::MissingFile { path }
        }
        error => error,
    })
}

/// serde_json's message without the position that we print ourselves.
fn problem(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    message
        .strip_suffix(&position)
        .map(str::to_owned)
        .unwrap_or(message)
}

enum Json {
    List(Vec<Value>),
    Other(&'static str),
}

struct ListVisitor<'a> {
    complete: &'a Cell<usize>,
}

impl<'de> Visitor<'de> for ListVisitor<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            list.push(element);
            self.complete.set(list.len());
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        while entries
            .next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?
            .is_some()
        {}
        Ok(Json::Other("an object"))
    }

    fn visit_str<E>(self, _: &str) -> Result<Json, E> {
        Ok(Json::Other("a string"))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Other("a boolean"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json::Other("a number"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Other("a number"))
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Other("null"))
    }
}
