//! Reading run directories.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::UNIX_EPOCH;

use aso_trainer::config::{MethodName, RunConfig, dotted_keys};
use aso_trainer::files::{CONFIG_FILE, FilesError, read_json};
use aso_trainer::results::{RESULTS_FILE, RunResults};
use aso_trainer::similarity::{SIMILARITY_FILE, TaskSimilarities};
use aso_trainer::state::{WEIGHTS_FILE, adapter_dir};
use aso_trainer::sweep::{SWEEP_FILE, SweepResults, SweptRun, SweptStatus};
use aso_trainer::trainer::{JOINT, METRICS_FILE};
use serde::Deserialize;

use crate::ReportError;

/// Longest header of an adapter file that is believed, in bytes.
const MOST_HEADER: u64 = 100 << 20;

/// Where runs are: an argument of `aso report`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSource {
    /// What the runs are called, instead of their method.
    pub label: Option<String>,
    /// A run directory, or a folder that holds some at any depth.
    pub path: PathBuf,
}

impl FromStr for RunSource {
    type Err = ReportError;

    /// `FOLDER` or `LABEL=FOLDER`. A folder that exists is never taken apart.
    fn from_str(argument: &str) -> Result<Self, ReportError> {
        let split = argument
            .split_once('=')
            .filter(|_| !Path::new(argument).exists());
        let (label, path) = match split {
            Some((label, path)) => (Some(label.trim()), path),
            None => (None, argument),
        };
        if path.is_empty() || label.is_some_and(str::is_empty) {
            return Err(ReportError::Argument {
                argument: argument.to_owned(),
            });
        }
        Ok(Self {
            label: label.map(str::to_owned),
            path: path.into(),
        })
    }
}

/// A finished or unfinished run: all that its directory tells.
#[derive(Debug, Clone)]
pub struct RunRecord {
    /// The run directory.
    pub dir: PathBuf,
    /// What it is called: its label in the `sweep.json` of the sweep that it belongs to, else its method.
    pub name: String,
    /// `results.json`.
    pub results: RunResults,
    /// `config.toml` as it is; empty where there is none.
    pub config_text: String,
    /// The keys of `config.toml` with their sections, and their values as in TOML; where the file leaves a key to its default,
    /// the default. Empty where there is no file.
    pub config: BTreeMap<String, String>,
    /// `metrics.jsonl`; empty where there is none.
    pub steps: Vec<StepRecord>,
    /// Elements of the adapter that the last task trained; `None` without adapters.
    pub trainable_parameters: Option<u64>,
    /// `similarity.json`, where there is one.
    pub similarity: Option<TaskSimilarities>,
    /// When the run was started, or given further tasks (`config.toml` was written), in seconds since 1970.
    pub started: f64,
}

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepRecord {
    /// The task, from 0.
    pub task: usize,
    /// The optimizer step within the task, from 0.
    pub step: usize,
    /// Total loss.
    pub loss: f64,
    /// Cross entropy.
    pub cross_entropy: f64,
    /// The soft weight, once measured.
    pub soft_weight: Option<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Wall-clock seconds.
    pub seconds: f64,
}

#[derive(Deserialize)]
struct StepLine {
    task: String,
    step: usize,
    loss: f64,
    cross_entropy: f64,
    #[serde(default)]
    soft_weight: Option<f64>,
    lr: f64,
    grad_norm: f64,
    seconds: f64,
}

impl RunRecord {
    /// Reads a run directory. Everything but `results.json` may be missing.
    ///
    /// # Errors
    /// [`ReportError`] names the file, and the line or key, of what cannot be read.
    pub fn read(dir: &Path) -> Result<Self, ReportError> {
        let results = RunResults::read(dir)?;
        check_shapes(&dir.join(RESULTS_FILE), &results)?;
        let config_file = dir.join(CONFIG_FILE);
        let config_text = optional(&config_file, fs::read_to_string(&config_file))?;
        let config_text = config_text.unwrap_or_default();
        let steps = read_steps(&dir.join(METRICS_FILE), &results.tasks)?;
        let similarity_file = dir.join(SIMILARITY_FILE);
        let similarity = match similarity_file.is_file() {
            true => Some(read_similarity(&similarity_file)?),
            false => None,
        };
        let config = read_config(&config_file, &config_text)?;
        let frozen = config
            .get("lora.freeze_a")
            .is_some_and(|value| value == "true");
        let name = sweep_label(dir)?.unwrap_or_else(|| results.method.clone());
        Ok(Self {
            dir: dir.to_owned(),
            name,
            trainable_parameters: trainable_parameters(dir, &results, frozen)?,
            config,
            config_text,
            steps,
            similarity,
            started: modified(&config_file)
                .or_else(|| modified(&dir.join(RESULTS_FILE)))
                .unwrap_or(0.0),
            results,
        })
    }

    /// Optimizer steps of each task: lines of the log, or what the measurements tell where there is none.
    pub fn steps_per_task(&self) -> Vec<usize> {
        let mut counts = vec![0; self.results.tasks.len()];
        for line in &self.steps {
            counts[line.task] = counts[line.task].max(line.step + 1);
        }
        for (task, points) in self.results.soft_weights.iter().enumerate() {
            let last = points.last().map_or(0, |point| point.step + 1);
            counts[task] = counts[task].max(last);
        }
        counts
    }
}

/// The run directories at or below `path`, sorted: folders with a `results.json`. What lies below a run is not
/// searched.
///
/// # Errors
/// [`ReportError::Io`] when a folder cannot be listed, [`ReportError::NoRuns`] when there is none.
pub fn find_runs(path: &Path) -> Result<Vec<PathBuf>, ReportError> {
    let mut found = Vec::new();
    let mut waiting = vec![path.to_owned()];
    while let Some(dir) = waiting.pop() {
        if dir.join(RESULTS_FILE).is_file() {
            found.push(dir);
            continue;
        }
        let io = |source| ReportError::Io {
            path: dir.clone(),
            source,
        };
        for entry in fs::read_dir(&dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            // Links are not followed: they may lead back up.
            if entry.file_type().map_err(io)?.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    found.sort();
    match found.is_empty() {
        true => Err(ReportError::NoRuns {
            path: path.to_owned(),
        }),
        false => Ok(found),
    }
}

/// The label that a sweep gave to a run of its, which lies in `ORDER/LABEL/seed-N` of the sweep's directory.
fn sweep_label(dir: &Path) -> Result<Option<String>, ReportError> {
    let io = |source| ReportError::Io {
        path: dir.to_owned(),
        source,
    };
    let dir = dir.canonicalize().map_err(io)?;
    let Some((sweep, results)) = sweep_of(&dir)? else {
        return Ok(None);
    };
    let known = |run: &SweptRun| sweep.join(&run.directory) == dir;
    let run = results.runs.into_iter().find(known);
    Ok(run.map(|run| run.label))
}

/// The sweep in whose `ORDER/LABEL/seed-N` a run may lie.
fn sweep_of(run: &Path) -> Result<Option<(PathBuf, SweepResults)>, ReportError> {
    let Some(sweep) = run.ancestors().nth(3) else {
        return Ok(None);
    };
    let file = sweep.join(SWEEP_FILE);
    match file.is_file() {
        true => Ok(Some((sweep.to_owned(), read_json(&file)?))),
        false => Ok(None),
    }
}

/// The runs at or below a folder that a sweep of some of these runs, too, planned and has not finished, by directory. Where they
/// failed, the means are those of the runs that did not, which says something about the method. All paths are canonical.
pub(crate) fn unfinished<'a>(
    folder: &Path,
    runs: impl IntoIterator<Item = &'a PathBuf>,
) -> Result<BTreeMap<PathBuf, SweptStatus>, ReportError> {
    let mut sweeps = BTreeSet::new();
    let mut unfinished = BTreeMap::new();
    for run in runs {
        if !sweeps.insert(run.ancestors().nth(3)) {
            continue;
        }
        let Some((sweep, results)) = sweep_of(run)? else {
            continue;
        };
        let states = results.runs.into_iter();
        let states = states.map(|run| (sweep.join(run.directory), run.status));
        unfinished.extend(
            states
                .filter(|(dir, state)| dir.starts_with(folder) && *state != SweptStatus::Finished),
        );
    }
    Ok(unfinished)
}

/// `None` for a file that is not there.
fn optional<T>(path: &Path, read: std::io::Result<T>) -> Result<Option<T>, ReportError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FilesError::Io {
            path: path.to_owned(),
            source,
        }
        .into()),
    }
}

fn modified(path: &Path) -> Option<f64> {
    let time = fs::metadata(path).ok()?.modified().ok()?;
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs_f64())
}

/// Everything here indexes lists by task, so a list of another length must be found first.
fn check_shapes(path: &Path, results: &RunResults) -> Result<(), ReportError> {
    if results.tasks.is_empty() {
        return Err(ReportError::NoTasks {
            path: path.to_owned(),
        });
    }
    let rows = results.accuracy.iter().enumerate();
    let rows = rows.map(|(row, scores)| (format!("accuracy[{row}]"), scores.len()));
    let lists = [
        ("evaluation_samples", results.evaluation_samples.len()),
        ("accuracy", results.accuracy.len()),
        ("zero_shot", results.zero_shot.len()),
        ("soft_weights", results.soft_weights.len()),
        ("similarity", results.similarity.len()),
        ("timings.train", results.timings.train.len()),
        ("timings.attribution", results.timings.attribution.len()),
        ("timings.evaluation", results.timings.evaluation.len()),
    ];
    let chosen = Some(("chosen", results.chosen.len())).filter(|(_, length)| *length > 0);
    let lists = lists.into_iter().chain(chosen);
    let lists = lists.map(|(key, length)| (key.to_owned(), length));
    check_lengths(path, results.tasks.len(), lists.chain(rows))
}

fn check_lengths(
    path: &Path,
    expected: usize,
    lists: impl IntoIterator<Item = (String, usize)>,
) -> Result<(), ReportError> {
    let wrong = lists.into_iter().find(|(_, found)| *found != expected);
    wrong.map_or(Ok(()), |(key, found)| {
        Err(ReportError::Shape {
            path: path.to_owned(),
            key,
            expected,
            found,
        })
    })
}

fn read_similarity(path: &Path) -> Result<TaskSimilarities, ReportError> {
    let similarity: TaskSimilarities = read_json(path)?;
    let matrices = [
        ("attribution", &similarity.attribution),
        ("overlap", &similarity.overlap),
        ("response", &similarity.response),
    ];
    let mut lists = Vec::new();
    for (key, matrix) in matrices {
        if key == "response" && matrix.is_empty() {
            // Written before there was this measure.
            continue;
        }
        lists.push((key.to_owned(), matrix.len()));
        let rows = matrix.iter().enumerate();
        lists.extend(rows.map(|(row, values)| (format!("{key}[{row}]"), values.len())));
    }
    check_lengths(path, similarity.tasks.len(), lists)?;
    Ok(similarity)
}

/// The keys of a configuration with their sections, and with those that it leaves to their defaults. One that this version cannot
/// read, because another one wrote it, is taken as plain TOML, so that it can still be compared.
fn read_config(path: &Path, text: &str) -> Result<BTreeMap<String, String>, ReportError> {
    let plain: toml::Table = toml::from_str(text).map_err(|source| ReportError::Config {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    let mut keys = values(&plain);
    if keys.is_empty() {
        return Ok(keys);
    }
    let of = |config: &RunConfig| values(&toml::Table::try_from(config).unwrap_or_default());
    match RunConfig::parse(text, path, &[]) {
        Ok(config) => keys = of(&config.resolved()),
        Err(_) => {
            for (key, value) in of(&RunConfig::default()) {
                keys.entry(key).or_insert(value);
            }
        }
    }
    Ok(keys)
}

/// Every dotted key with its value, strings without quotes.
fn values(table: &toml::Table) -> BTreeMap<String, String> {
    let text = |value: toml::Value| match value {
        toml::Value::String(text) => text,
        value => value.to_string(),
    };
    let values = dotted_keys(table).into_iter();
    values.map(|(key, value)| (key, text(value))).collect()
}

/// The lines of a JSONL file, each parsed; an incomplete last line, which a killed process leaves, is passed over.
/// A missing file is `None`.
pub(crate) fn read_lines<T: for<'a> Deserialize<'a>>(
    path: &Path,
    expected: &'static str,
    mut each: impl FnMut(usize, T) -> Result<(), ReportError>,
) -> Result<Option<()>, ReportError> {
    let io = |source| ReportError::Io {
        path: path.to_owned(),
        source,
    };
    let Some(file) = optional(path, File::open(path))? else {
        return Ok(None);
    };
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(io)? == 0 {
            break;
        }
        match serde_json::from_slice(&line) {
            Ok(value) => each(number, value)?,
            Err(_) if line.last() != Some(&b'\n') => {
                tracing::warn!(path = %path.display(), line = number, "the last line is incomplete");
            }
            Err(source) => {
                return Err(ReportError::Line {
                    path: path.to_owned(),
                    line: number,
                    expected,
                    source,
                });
            }
        }
    }
    Ok(Some(()))
}

fn read_steps(path: &Path, tasks: &[String]) -> Result<Vec<StepRecord>, ReportError> {
    let mut steps = Vec::new();
    read_lines(path, "an optimizer step", |number, line: StepLine| {
        // All tasks at once count as the last one, whose row of scores they lead to.
        let joint = || (line.task == JOINT).then(|| tasks.len().saturating_sub(1));
        let position = tasks.iter().position(|task| *task == line.task);
        let position = position.or_else(joint);
        let task = position.ok_or_else(|| ReportError::UnknownTask {
            path: path.to_owned(),
            line: number,
            expected: tasks.join(", "),
            found: line.task,
        })?;
        steps.push(StepRecord {
            task,
            step: line.step,
            loss: line.loss,
            cross_entropy: line.cross_entropy,
            soft_weight: line.soft_weight,
            lr: line.lr,
            grad_norm: line.grad_norm,
            seconds: line.seconds,
        });
        Ok(())
    })?;
    Ok(steps)
}

/// Elements of all trained tensors in the adapter of the last task that has one; `frozen` if A was not trained.
fn trainable_parameters(
    dir: &Path,
    results: &RunResults,
    frozen: bool,
) -> Result<Option<u64>, ReportError> {
    let method = results.method.parse::<MethodName>();
    let frozen = frozen || method.is_ok_and(|method| !method.trains_a());
    let fixed = frozen.then_some("lora_A");
    let files = results.tasks.iter().enumerate().rev();
    let mut files = files.map(|(index, task)| adapter_dir(dir, index, task).join(WEIGHTS_FILE));
    files
        .find(|file| file.is_file())
        .map(|file| tensor_elements(&file, fixed))
        .transpose()
}

/// The number of elements of all tensors in a safetensors file but those of the name `without`, from its header alone: the length of the header (8
/// bytes, little-endian), then JSON.
fn tensor_elements(path: &Path, without: Option<&str>) -> Result<u64, ReportError> {
    let wrong = |reason: String| ReportError::Adapter {
        path: path.to_owned(),
        reason,
    };
    let io = |source| ReportError::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(io)?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > MOST_HEADER {
        return Err(wrong(format!("its header would have {length} bytes")));
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(io)?;
    let header: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(|error| wrong(error.to_string()))?;
    let mut elements = 0_u64;
    let left_out = |name: &str| {
        name == "__metadata__" || without.is_some_and(|without| name.contains(without))
    };
    for (name, tensor) in header.iter().filter(|(name, _)| !left_out(name)) {
        let shape: Vec<u64> = serde_json::from_value(tensor["shape"].clone())
            .map_err(|error| wrong(format!("shape of `{name}`: {error}")))?;
        let size = shape.iter().try_fold(1_u64, |size, &n| size.checked_mul(n));
        elements = size
            .and_then(|size| elements.checked_add(size))
            .ok_or_else(|| wrong(format!("shape of `{name}`: too large")))?;
    }
    Ok(elements)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{results, write_run};

    #[test]
    fn sources() {
        let parse = |argument: &str| argument.parse::<RunSource>();
        let source = |label: Option<&str>, path: &str| RunSource {
            label: label.map(str::to_owned),
            path: path.into(),
        };
        assert_eq!(parse("runs").unwrap(), source(None, "runs"));
        assert_eq!(
            parse("new=runs/a=b").unwrap(),
            source(Some("new"), "runs/a=b")
        );
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a=b");
        fs::create_dir(&odd).unwrap();
        let odd = odd.to_str().unwrap();
        assert_eq!(parse(odd).unwrap(), source(None, odd));
        for wrong in ["", "=runs", "x="] {
            let error = parse(wrong).unwrap_err();
            assert!(matches!(error, ReportError::Argument { .. }), "{error}");
        }
    }

    #[test]
    fn runs_at_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let error = find_runs(dir.path()).unwrap_err();
        assert!(matches!(error, ReportError::NoRuns { .. }), "{error}");
        let paths = ["a/b/one", "a/two", "a/two/below", "three"].map(|path| dir.path().join(path));
        for path in &paths {
            write_run(path, &results("o-lora", 1, &[50.0, 60.0, 40.0, 70.0]));
        }
        let found = find_runs(dir.path()).unwrap();
        assert_eq!(found, [0, 1, 3].map(|at| paths[at].clone()));
        assert_eq!(find_runs(&paths[2]).unwrap(), [paths[2].as_path()]);
        assert!(find_runs(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn everything_but_the_results_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        write_run(&run, &results("o-lora", 1, &[50.0, 60.0, 40.0, 70.0]));
        let record = RunRecord::read(&run).unwrap();
        assert!(record.config.is_empty() && record.steps.is_empty());
        assert_eq!(record.trainable_parameters, None);
        assert_eq!(record.steps_per_task(), [0, 0]);
        fs::remove_file(run.join(RESULTS_FILE)).unwrap();
        assert!(RunRecord::read(&run).is_err());
    }

    #[test]
    fn the_whole_directory() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        write_run(&run, &results("o-lora", 1, &[50.0, 60.0, 40.0, 70.0]));
        let config = "seed = 1\n[method]\nname = \"o-lora\"\nlambda1 = 0.5\n[stream.overrides.a]\nlr = 1e-3\n";
        fs::write(run.join("config.toml"), config).unwrap();
        let line = |task: &str, step: usize| {
            format!(
                r#"{{"task":"{task}","step":{step},"loss":1.5,"cross_entropy":1.25,"orthogonality":2,"lr":0.001,"grad_norm":3,"examples":8,"target_tokens":9,"seconds":0.5}}"#
            )
        };
        let lines = [line("a", 0), line("a", 1), line(JOINT, 0)].join("\n");
        fs::write(run.join("metrics.jsonl"), format!("{lines}\n{{\"task\":")).unwrap();
        let adapter = run.join("adapters").join("01-b");
        fs::create_dir_all(&adapter).unwrap();
        let header = r#"{"__metadata__":{"x":"y"},"x.lora_A.weight":{"dtype":"F32","shape":[8,128],"data_offsets":[0,4096]},"x.lora_B.weight":{"dtype":"F32","shape":[64,8],"data_offsets":[4096,6144]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        fs::write(adapter.join("adapter_model.safetensors"), bytes).unwrap();
        let similarity =
            r#"{"tasks":["a","b"],"attribution":[[1,0.5],[0.5,1]],"overlap":[[1,null],[null,1]]}"#;
        fs::write(run.join(SIMILARITY_FILE), similarity).unwrap();

        let record = RunRecord::read(&run).unwrap();
        assert_eq!(record.config["method.name"], "o-lora");
        assert_eq!(record.config["stream.overrides.a.lr"], "0.001");
        // Not in the file.
        assert_eq!(record.config["attribution.compare"], "without");
        // What other keys decide is not known of a file that cannot be read: there is no task `a`.
        assert!(!record.config.contains_key("train.clip"));
        let config = "[method]\nname = \"o-lora\"";
        fs::write(run.join("config.toml"), config).unwrap();
        let read = RunRecord::read(&run).unwrap();
        assert_eq!(read.config["train.clip"], "total");
        assert_eq!(record.steps.len(), 3);
        assert_eq!(record.steps_per_task(), [2, 1]);
        assert_eq!(record.trainable_parameters, Some(8 * 128 + 64 * 8));
        assert_eq!(record.similarity.unwrap().tasks, ["a", "b"]);
        assert!(record.started > 1e9);
        write_run(&run, &results("inf-lora", 1, &[50.0, 60.0, 40.0, 70.0]));
        let record = RunRecord::read(&run).unwrap();
        assert_eq!(record.trainable_parameters, Some(64 * 8));
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let fresh = || write_run(&run, &results("o-lora", 1, &[50.0, 60.0, 40.0, 70.0]));
        let message = || RunRecord::read(&run).unwrap_err().to_string();
        fresh();
        fs::write(run.join("metrics.jsonl"), "{}\n").unwrap();
        assert!(message().contains("metrics.jsonl:1: expected an optimizer step: missing field"));
        let line =
            r#"{"task":"z","step":0,"loss":1,"cross_entropy":1,"lr":1,"grad_norm":1,"seconds":1}"#;
        fs::write(run.join("metrics.jsonl"), format!("{line}\n")).unwrap();
        assert!(message().ends_with("metrics.jsonl:1: `task`: expected one of a, b, found \"z\""));
        fs::remove_file(run.join("metrics.jsonl")).unwrap();
        fs::write(run.join("config.toml"), "seed = \n").unwrap();
        assert!(message().contains("config.toml: not valid TOML"));
        fs::remove_file(run.join("config.toml")).unwrap();
        fs::write(
            run.join(SIMILARITY_FILE),
            r#"{"tasks":["a"],"attribution":[[1]],"overlap":[[1],[1]]}"#,
        )
        .unwrap();
        assert!(message().contains("similarity.json: `overlap`: expected 1 entries"));
        fs::remove_file(run.join(SIMILARITY_FILE)).unwrap();
        let mut broken = results("o-lora", 1, &[50.0, 60.0, 40.0, 70.0]);
        broken.accuracy[1].pop();
        write_run(&run, &broken);
        assert!(
            message().contains("`accuracy[1]`: expected 2 entries, one for each task, found 1")
        );
        broken.tasks.clear();
        write_run(&run, &broken);
        assert!(message().ends_with("`tasks`: expected at least one, found none"));
        fresh();
        let adapter = run.join("adapters").join("00-a");
        fs::create_dir_all(&adapter).unwrap();
        fs::write(adapter.join("adapter_model.safetensors"), [255; 16]).unwrap();
        assert!(message().contains("expected a safetensors file"));
    }
}
