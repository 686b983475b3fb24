//! Runs of the same method on the same tasks, over seeds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use aso_trainer::run::FREE_KEYS;
use aso_trainer::sweep::SweptStatus;

use crate::ReportError;
use crate::record::{RunRecord, RunSource, find_runs, unfinished};

/// Keys of a configuration that tell no two methods apart besides [`FREE_KEYS`]: the seed, and the tasks, by which runs are
/// grouped already.
const SHARED: [&str; 3] = ["seed", "stream.order", "stream.tasks"];

/// All runs on one sequence of tasks.
#[derive(Debug, Clone)]
pub struct Stream {
    /// The tasks in the order in which they were learned.
    pub tasks: Vec<String>,
    /// The groups in the order in which they were found.
    pub groups: Vec<Group>,
}

/// Runs that differ in their seeds only, or in what changes no result.
#[derive(Debug, Clone)]
pub struct Group {
    /// The label given, or the runs' name with what tells them from others of that name.
    pub label: String,
    /// The place of the label among all labels of the report, which decides its colour.
    pub number: usize,
    /// The runs, by seed.
    pub runs: Vec<RunRecord>,
}

impl Stream {
    /// The group with this label.
    pub fn group(&self, label: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.label == label)
    }
}

impl Group {
    /// The runs of this group and another one that have the same seed.
    pub fn pairs<'a>(&'a self, other: &'a Self) -> Vec<(&'a RunRecord, &'a RunRecord)> {
        let pair = |run: &'a RunRecord| Some((run, other.with_seed(run.results.seed)?));
        self.runs.iter().filter_map(pair).collect()
    }

    /// The method's name, as `results.json` says.
    pub fn method(&self) -> &str {
        self.runs.first().map_or("", |run| &run.results.method)
    }

    /// The run with this seed.
    pub fn with_seed(&self, seed: u64) -> Option<&RunRecord> {
        self.runs.iter().find(|run| run.results.seed == seed)
    }
}

/// What runs have in common that get the same label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A label on the command line, and the configuration.
    Given(String, BTreeMap<String, String>),
    /// The name and the configuration.
    Configured(String, BTreeMap<String, String>),
}

impl Kind {
    fn config(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Given(_, config) | Self::Configured(_, config) => config,
        }
    }
}

type Members = Vec<RunRecord>;

/// Reads all runs of the sources and groups them by tasks and label. A run that several sources hold is read once,
/// for the first of them.
///
/// # Errors
/// Those of [`find_runs`] and [`RunRecord::read`], [`ReportError::SameSeed`], [`ReportError::SameLabel`].
pub fn read_streams(sources: &[RunSource]) -> Result<Vec<Stream>, ReportError> {
    let mut seen = BTreeSet::new();
    let mut runs = Vec::new();
    let canonical = |dir: &Path| {
        dir.canonicalize().map_err(|source| ReportError::Io {
            path: dir.to_owned(),
            source,
        })
    };
    let mut left = BTreeMap::new();
    for source in sources {
        let mut found = Vec::new();
        for dir in find_runs(&source.path)? {
            let unique = canonical(&dir)?;
            if seen.insert(unique.clone()) {
                runs.push((source.label.clone(), RunRecord::read(&dir)?));
            }
            found.push(unique);
        }
        left.extend(unfinished(&canonical(&source.path)?, &found)?);
    }
    if !left.is_empty() {
        let failed = left
            .iter()
            .filter(|(_, state)| **state == SweptStatus::Failed);
        let failed: Vec<_> = failed.map(|(run, _)| run.display().to_string()).collect();
        tracing::warn!(
            unfinished = left.len(),
            failed = (!failed.is_empty()).then(|| failed.join(", ")),
            "a sweep has not finished all of its runs: means are over those that it has"
        );
    }
    let processors: BTreeSet<_> = runs
        .iter()
        .flat_map(|(_, run)| &run.results.timings.processors)
        .map(String::as_str)
        .collect();
    if processors.len() > 1 {
        let processors: Vec<_> = processors.into_iter().collect();
        tracing::warn!(
            processors = processors.join(", "),
            "runs were made on different kinds of processor: seconds do not compare, and equal seeds differ by rounding"
        );
    }
    group(runs)
}

/// Groups runs, each with the label given to it.
///
/// # Errors
/// [`ReportError::SameSeed`], [`ReportError::SameLabel`].
pub fn group(runs: Vec<(Option<String>, RunRecord)>) -> Result<Vec<Stream>, ReportError> {
    let mut kinds: Vec<Kind> = Vec::new();
    // The groups of each sequence of tasks, by the number of their kind.
    let mut streams: Vec<(Vec<String>, BTreeMap<usize, Members>)> = Vec::new();
    for (label, run) in runs {
        let kind = kind(label, &run);
        let number = position_or_push(&mut kinds, |other| *other == kind, || kind.clone());
        let tasks = run.results.tasks.clone();
        let stream = position_or_push(
            &mut streams,
            |(other, _)| *other == tasks,
            || (tasks.clone(), BTreeMap::new()),
        );
        streams[stream].1.entry(number).or_default().push(run);
    }
    let labels = labels(&kinds)?;
    let mut grouped = Vec::new();
    for (tasks, groups) in streams {
        let groups = groups.into_iter().map(|(number, mut runs)| {
            runs.sort_by_key(|run| run.results.seed);
            let label = labels[number].clone();
            check_seeds(&label, &runs)?;
            Ok(Group {
                label,
                number,
                runs,
            })
        });
        let groups = groups.collect::<Result<_, ReportError>>()?;
        grouped.push(Stream { tasks, groups });
    }
    Ok(grouped)
}

fn kind(label: Option<String>, run: &RunRecord) -> Kind {
    let config = run.config.iter();
    let apart = |key: &str| !SHARED.contains(&key) && !FREE_KEYS.contains(&key);
    let config = config.filter(|(key, _)| apart(key));
    let config = config.map(|(key, value)| (key.clone(), value.clone()));
    // The folder may have held another model at another time.
    let model = run.results.base_model.iter();
    let model = model.map(|base| ("model.fingerprint".to_owned(), first_digits(base)));
    let config = config.chain(model).collect();
    match label {
        Some(label) => Kind::Given(label, config),
        None => Kind::Configured(run.name.clone(), config),
    }
}

/// The first digits of a fingerprint.
fn first_digits(fingerprint: &str) -> String {
    let digits = fingerprint.rsplit(':').next().unwrap_or(fingerprint);
    digits.chars().take(8).collect()
}

fn position_or_push<T>(
    list: &mut Vec<T>,
    is_it: impl FnMut(&T) -> bool,
    new: impl FnOnce() -> T,
) -> usize {
    list.iter().position(is_it).unwrap_or_else(|| {
        list.push(new());
        list.len() - 1
    })
}

/// One label for each kind: its name and, where several kinds share it, the keys in which they differ.
fn labels(kinds: &[Kind]) -> Result<Vec<String>, ReportError> {
    let label = |kind: &Kind| match kind {
        Kind::Given(label, _) => label.clone(),
        Kind::Configured(name, config) => {
            let differing = differing_keys(name, kinds);
            if differing.is_empty() {
                return name.clone();
            }
            let value = |key: &String| config.get(key).map_or("unset", String::as_str);
            let settings = differing
                .iter()
                .map(|key| format!("{}={}", short(key, &differing), value(key)));
            format!("{name} ({})", settings.collect::<Vec<_>>().join(", "))
        }
    };
    let labels: Vec<String> = kinds.iter().map(label).collect();
    let mut seen = BTreeSet::new();
    match labels.iter().find(|label| !seen.insert(label.as_str())) {
        Some(label) => {
            let same = labels
                .iter()
                .zip(kinds)
                .filter(|(other, _)| *other == label);
            let keys = differing(same.map(|(_, kind)| kind.config()));
            Err(ReportError::SameLabel {
                label: label.clone(),
                keys: keys.into_iter().collect(),
            })
        }
        None => Ok(labels),
    }
}

/// The keys in which the kinds of a name differ.
fn differing_keys(name: &str, kinds: &[Kind]) -> BTreeSet<String> {
    differing(kinds.iter().filter_map(|kind| match kind {
        Kind::Configured(other, config) if other == name => Some(config),
        _ => None,
    }))
}

/// The keys in which configurations differ, an absent key being a value of its own.
fn differing<'a>(
    configs: impl IntoIterator<Item = &'a BTreeMap<String, String>>,
) -> BTreeSet<String> {
    let configs: Vec<_> = configs.into_iter().collect();
    let keys: BTreeSet<&String> = configs.iter().flat_map(|config| config.keys()).collect();
    let differs = |key: &&String| {
        let mut values = configs.iter().map(|config| config.get(*key));
        let first = values.next();
        values.any(|value| Some(value) != first)
    };
    keys.into_iter().filter(differs).cloned().collect()
}

/// The last part of a key, unless another key ends in it, too.
fn short<'a>(key: &'a str, keys: &BTreeSet<String>) -> &'a str {
    let last = |key: &'a str| key.rsplit('.').next().unwrap_or(key);
    let end = last(key);
    let same = keys
        .iter()
        .filter(|other| other.rsplit('.').next() == Some(end));
    if same.count() > 1 { key } else { end }
}

/// Sorted runs with the same seed are neighbours.
fn check_seeds(label: &str, runs: &[RunRecord]) -> Result<(), ReportError> {
    let pair = runs
        .windows(2)
        .find(|pair| pair[0].results.seed == pair[1].results.seed);
    let dir = |at: usize| pair.map_or_else(PathBuf::new, |pair| pair[at].dir.clone());
    match pair {
        Some(pair) => Err(ReportError::SameSeed {
            label: label.to_owned(),
            seed: pair[0].results.seed,
            first: dir(0),
            second: dir(1),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::testing::{results, write_run};

    fn write(dir: &Path, name: &str, method: &str, seed: u64, config: &str) -> PathBuf {
        let run = dir.join(name);
        write_run(&run, &results(method, seed, &[50.0, 60.0, 40.0, 70.0]));
        let config = format!("seed = {seed}\n{config}");
        fs::write(run.join("config.toml"), config).unwrap();
        run
    }

    fn source(label: Option<&str>, path: &Path) -> RunSource {
        RunSource {
            label: label.map(str::to_owned),
            path: path.to_owned(),
        }
    }

    fn shape(streams: &[Stream]) -> Vec<Vec<(String, Vec<u64>)>> {
        let seeds = |group: &Group| group.runs.iter().map(|run| run.results.seed).collect();
        let groups = |stream: &Stream| {
            let groups = stream.groups.iter();
            groups
                .map(|group| (group.label.clone(), seeds(group)))
                .collect()
        };
        streams.iter().map(groups).collect()
    }

    #[test]
    fn seeds_of_one_configuration_are_one_group() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "a2",
            "o-lora",
            2,
            "[train]\nlog_every = 3\nlr = 0.1",
        );
        // A key with its default is the same as none.
        write(
            dir.path(),
            "a1",
            "o-lora",
            1,
            "[train]\nlog_every = 4\nlr = 0.1\n[attribution]\ncompare = \"without\"\nhold = true",
        );
        write(dir.path(), "b1", "seq-lora", 1, "[train]\nlr = 0.1");
        let streams = read_streams(&[source(None, dir.path())]).unwrap();
        let expected = [vec![
            ("o-lora".to_owned(), vec![1, 2]),
            ("seq-lora".to_owned(), vec![1]),
        ]];
        assert_eq!(shape(&streams), expected);
        assert_eq!(streams[0].groups[1].number, 1);
        assert!(streams[0].groups[0].with_seed(2).is_some());
        assert!(streams[0].groups[0].with_seed(3).is_none());
        // Given twice, read once.
        let twice = [
            source(None, dir.path()),
            source(None, &dir.path().join("a1")),
        ];
        assert_eq!(shape(&read_streams(&twice).unwrap()), expected);
    }

    #[test]
    fn labels_say_what_differs() {
        let dir = tempfile::tempdir().unwrap();
        let a = "[method]\nlambda1 = 0.5\n[train]\nlr = 0.1\nmicro_batch = 8";
        let b = "[method]\nlambda1 = 1.0\n[train]\nlr = 0.1\nmicro_batch = 8";
        let c = "[method]\nlambda1 = 1.0\n[train]\nlr = 0.1";
        write(dir.path(), "a", "o-lora", 1, a);
        write(dir.path(), "b", "o-lora", 1, b);
        write(dir.path(), "c", "o-lora", 1, c);
        write(dir.path(), "d", "seq-lora", 1, c);
        let new = write(&dir.path().join("e"), "e", "seq-lora", 1, c);
        let sources = [source(Some("new"), &new), source(None, dir.path())];
        let labels: Vec<String> = read_streams(&sources).unwrap()[0]
            .groups
            .iter()
            .map(|group| group.label.clone())
            .collect();
        let expected = [
            "new",
            "o-lora (lambda1=0.5, micro_batch=8)",
            "o-lora (lambda1=1.0, micro_batch=8)",
            "o-lora (lambda1=1.0, micro_batch=unset)",
            "seq-lora",
        ];
        assert_eq!(labels, expected);
    }

    #[test]
    fn runs_of_a_sweep_are_called_by_its_labels() {
        let dir = tempfile::tempdir().unwrap();
        let write = |at: &str, seed, config| write(dir.path(), at, "o-lora", seed, config);
        let strong = "[method]\nlambda1 = 2.0";
        write("x/strong/seed-1", 1, strong);
        write("x/strong/seed-2", 2, strong);
        let plain = write("x/o-lora/seed-1", 1, "");
        // Not a run of the sweep.
        write("x/own/seed-1", 1, "[method]\nlambda1 = 3.0");
        let run = |label: &str, seed: u64, status: &str| {
            serde_json::json!({
                "order": "x", "label": label, "method": "o-lora", "seed": seed, "status": status,
                "directory": format!("x/{label}/seed-{seed}"), "ap": null, "ap_by_sample": null, "bwt": null,
                "forgetting": null, "fwt": null, "learning_accuracy": null,
            })
        };
        let sweep = serde_json::json!({
            "version": "0", "orders": {}, "summary": [], "timings": {},
            "runs": [
                run("strong", 1, "finished"), run("strong", 2, "finished"), run("strong", 3, "failed"),
                run("o-lora", 1, "finished"),
            ],
        });
        fs::write(dir.path().join("sweep.json"), sweep.to_string()).unwrap();
        let entry = |name: &str, seeds: &[u64]| (name.to_owned(), seeds.to_vec());
        let expected = [vec![
            entry("o-lora (lambda1=0.5)", &[1]),
            entry("o-lora (lambda1=3.0)", &[1]),
            entry("strong", &[1, 2]),
        ]];
        assert_eq!(
            shape(&read_streams(&[source(None, dir.path())]).unwrap()),
            expected
        );
        let all = [source(None, dir.path())];
        let unfinished = |folder: &Path| {
            let runs = find_runs(dir.path()).unwrap();
            let runs: Vec<_> = runs.iter().map(|run| run.canonicalize().unwrap()).collect();
            let found = unfinished(&folder.canonicalize().unwrap(), &runs).unwrap();
            found.into_keys().collect::<Vec<_>>()
        };
        let root = dir.path().canonicalize().unwrap();
        assert_eq!(unfinished(dir.path()), [root.join("x/strong/seed-3")]);
        assert!(unfinished(&plain).is_empty());
        assert!(read_streams(&all).is_ok());
        // One label, two configurations.
        let two = [source(Some("x"), &dir.path().join("x"))];
        let error = read_streams(&two).unwrap_err().to_string();
        assert!(error.contains("differ in `method.lambda1`"), "{error}");
        let sources = [
            source(Some("mine"), &dir.path().join("x/strong")),
            source(None, &plain),
        ];
        let expected = [vec![entry("mine", &[1, 2]), entry("o-lora", &[1])]];
        assert_eq!(shape(&read_streams(&sources).unwrap()), expected);
        fs::write(dir.path().join("sweep.json"), "{").unwrap();
        let error = read_streams(&[source(None, dir.path())])
            .unwrap_err()
            .to_string();
        assert!(error.contains("sweep.json"), "{error}");
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a", "o-lora", 1, "");
        let b = write(dir.path(), "b", "o-lora", 1, "");
        let error = read_streams(&[source(None, dir.path())]).unwrap_err();
        assert!(
            matches!(error, ReportError::SameSeed { seed: 1, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("LABEL="));
        let sources = [source(Some("other"), &b), source(None, dir.path())];
        assert!(read_streams(&sources).is_ok());
        let sources = [source(Some("o-lora"), &b), source(None, dir.path())];
        let error = read_streams(&sources).unwrap_err();
        assert!(matches!(error, ReportError::SameLabel { .. }), "{error}");
    }
}
