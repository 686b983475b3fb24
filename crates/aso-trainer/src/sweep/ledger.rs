//! What is known of the runs of a sweep, and `sweep.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aso_backbones::checkpoint::Checkpoint;
use serde::{Deserialize, Serialize};

use super::{PlannedRun, SweepError};
use crate::config::ModelSource;
use crate::files::{read_json, write_json};
use crate::load::open_library;
use crate::metrics::{self, Metric, Spread};
use crate::results::Timings;
use crate::run::RunStatus;
use crate::task::task_digest;
use crate::{RunResults, TrainerError};

/// The results of a sweep, in its directory.
pub const SWEEP_FILE: &str = "sweep.json";

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SweptStatus {
    /// Not started.
    Missing,
    /// Started, and something is left to do.
    Incomplete,
    /// Nothing is left to do.
    Finished,
    /// The last attempt ended with an error.
    Failed,
}

impl SweptStatus {
    /// The name as in `sweep.json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Incomplete => "incomplete",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }
}

impl From<RunStatus> for SweptStatus {
    fn from(status: RunStatus) -> Self {
        match status {
            RunStatus::Missing => Self::Missing,
            RunStatus::Incomplete => Self::Incomplete,
            RunStatus::Finished => Self::Finished,
        }
    }
}

/// A run in `sweep.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweptRun {
    /// The order's name.
    pub order: String,
    /// The method's label.
    pub label: String,
    /// The candidate of the method's grid, from 1, where settings are chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<usize>,
    /// The method.
    pub method: String,
    /// The seed.
    pub seed: u64,
    /// The run directory, relative to that of the sweep.
    pub directory: String,
    /// How far it is.
    pub status: SweptStatus,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its metrics; all null until it is finished.
    #[serde(flatten, deserialize_with = "metrics::flattened")]
    pub metrics: BTreeMap<Metric, Option<f64>>,
}

impl SweptRun {
    /// A metric; `None` until the run is finished, and where it is not defined.
    pub fn metric(&self, metric: Metric) -> Option<f64> {
        self.metrics.get(&metric).copied().flatten()
    }
}

/// The runs of a method on an order, over its seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The order's name.
    pub order: String,
    /// The method's label.
    pub label: String,
    /// The candidate of the method's grid, from 1, where settings are chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<usize>,
    /// Runs planned.
    pub planned: usize,
    /// Runs finished, over which the spreads are.
    pub finished: usize,
    /// The spread of every metric; null where a run lacks it.
    #[serde(flatten, deserialize_with = "metrics::flattened")]
    pub metrics: BTreeMap<Metric, Option<Spread>>,
}

/// `sweep.json`. Everything but `timings` is the same, bit for bit, whether the sweep was interrupted or
/// not, and with any number of jobs and threads on CPUs with the same vector instructions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepResults {
    /// Version of this program.
    pub version: String,
    /// The tasks of each order.
    pub orders: BTreeMap<String, Vec<String>>,
    /// The runs.
    pub runs: Vec<SweptRun>,
    /// Means over seeds.
    pub summary: Vec<Group>,
    /// Wall-clock times of finished runs, by directory.
    pub timings: BTreeMap<String, Timings>,
}

/// What is known of the runs of a sweep.
#[derive(Debug)]
pub struct Ledger<'a> {
    runs: &'a [PlannedRun],
    out: PathBuf,
    records: Vec<SweptRun>,
    timings: BTreeMap<String, Timings>,
    orders: BTreeMap<String, Vec<String>>,
    /// Fingerprints of model folders, each read once.
    models: BTreeMap<PathBuf, String>,
    /// Digests of tasks, each read once; `None` of one that is not there any more.
    tasks: BTreeMap<String, Option<String>>,
}

impl<'a> Ledger<'a> {
    /// Looks at the directories of all runs below `out`. Nothing is written.
    ///
    /// # Errors
    /// [`SweepError::Unusable`] with the first directory that holds another configuration, a finished run on another base
    /// model or other examples than there are now, or something else than a run. Data that are gone are no error: nothing can be mixed with
    /// them.
    pub fn open(runs: &'a [PlannedRun], out: &Path) -> Result<Self, SweepError> {
        let mut orders = BTreeMap::new();
        let mut records = Vec::with_capacity(runs.len());
        for run in runs {
            if !orders.contains_key(&run.order) {
                orders.insert(run.order.clone(), run.config.tasks()?);
            }
            records.push(SweptRun {
                order: run.order.clone(),
                label: run.label.clone(),
                candidate: run.candidate.map(|candidate| candidate + 1),
                method: run.config.method.name.as_str().to_owned(),
                seed: run.seed,
                directory: run.directory.clone(),
                status: SweptStatus::Missing,
                error: None,
                metrics: Metric::ALL.map(|metric| (metric, None)).into(),
            });
        }
        let mut ledger = Self {
            runs,
            out: out.to_owned(),
            records,
            timings: BTreeMap::new(),
            orders,
            models: BTreeMap::new(),
            tasks: BTreeMap::new(),
        };
        (0..runs.len()).try_for_each(|index| ledger.refresh(index))?;
        Ok(ledger)
    }

    /// Looks at the directory of run `index` again.
    ///
    /// # Errors
    /// As [`open`](Self::open), and if its results cannot be read.
    pub fn refresh(&mut self, index: usize) -> Result<(), SweepError> {
        let run = &self.runs[index];
        let status = run.status(&self.out)?;
        let record = &mut self.records[index];
        record.status = status.into();
        record.error = None;
        if status == RunStatus::Finished {
            let dir = self.out.join(&run.directory);
            let results = RunResults::read(&dir)?;
            check_model(run, &dir, &results, &mut self.models)?;
            check_data(run, &dir, &results, &mut self.tasks)?;
            record.metrics = results.metrics();
            self.timings.insert(run.directory.clone(), results.timings);
        }
        Ok(())
    }

    /// Records that run `index` ended with an error.
    pub fn fail(&mut self, index: usize, error: String) {
        self.records[index].status = SweptStatus::Failed;
        self.records[index].error = Some(error);
    }

    /// The runs.
    pub fn runs(&self) -> &'a [PlannedRun] {
        self.runs
    }

    /// The directory of the sweep.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// What is known of each run.
    pub fn records(&self) -> &[SweptRun] {
        &self.records
    }

    /// The number of runs with nothing left to do.
    pub fn finished(&self) -> usize {
        let finished = |record: &&SweptRun| record.status == SweptStatus::Finished;
        self.records.iter().filter(finished).count()
    }

    /// The results of the runs.
    pub fn results(&self) -> SweepResults {
        SweepResults {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            orders: self.orders.clone(),
            runs: self.records.clone(),
            summary: groups(&self.records),
            timings: self.timings.clone(),
        }
    }

    /// Writes `sweep.json`, whole or not at all: the results, and what it holds of runs of other sweep files in the same
    /// directory, as far as they are still there.
    ///
    /// # Errors
    /// [`SweepError::Files`].
    pub fn write(&self) -> Result<(), SweepError> {
        let file = self.out.join(SWEEP_FILE);
        let mut results = self.results();
        match read_json(&file) {
            Ok(earlier) => results.keep_others(earlier, &self.out),
            Err(_) if !file.exists() => {}
            Err(error) => tracing::warn!(%error, "replaced, for it cannot be read"),
        }
        Ok(write_json(&file, &results)?)
    }
}

impl SweepResults {
    /// Takes over the runs of `earlier` that are not among these and whose directories below `out` are still there, but for
    /// those of an order that is called as one here and has other tasks.
    fn keep_others(&mut self, earlier: Self, out: &Path) {
        let mut timings = earlier.timings;
        for run in earlier.runs {
            let planned = self.runs.iter().any(|own| own.directory == run.directory);
            if planned || !out.join(&run.directory).is_dir() {
                continue;
            }
            let Some(tasks) = earlier.orders.get(&run.order) else {
                continue;
            };
            let order = self.orders.entry(run.order.clone());
            if order.or_insert_with(|| tasks.clone()) != tasks {
                continue;
            }
            if let Some(seconds) = timings.remove(&run.directory) {
                self.timings.insert(run.directory.clone(), seconds);
            }
            self.runs.push(run);
        }
        self.summary = groups(&self.runs);
    }
}

/// Means over seeds, in the order of the runs.
fn groups(records: &[SweptRun]) -> Vec<Group> {
    let mut groups: Vec<(&SweptRun, Vec<&SweptRun>)> = Vec::new();
    for record in records {
        let key =
            |record: &SweptRun| (record.order.clone(), record.label.clone(), record.candidate);
        match groups
            .iter_mut()
            .find(|(first, _)| key(first) == key(record))
        {
            Some((_, members)) => members.push(record),
            None => groups.push((record, vec![record])),
        }
    }
    groups
        .into_iter()
        .map(|(first, members)| {
            let finished = members
                .iter()
                .filter(|record| record.status == SweptStatus::Finished);
            let over = |metric| {
                let values = finished.clone().map(|record| record.metric(metric));
                (metric, spread(values))
            };
            Group {
                order: first.order.clone(),
                label: first.label.clone(),
                candidate: first.candidate,
                planned: members.len(),
                finished: finished.clone().count(),
                metrics: Metric::ALL.map(over).into(),
            }
        })
        .collect()
}

/// The spread of values of which none may be missing.
fn spread(values: impl Iterator<Item = Option<f64>>) -> Option<Spread> {
    Spread::of(&values.collect::<Option<Vec<f64>>>()?)
}

/// Refuses the results of a run whose model folder holds other weights now. `models` are fingerprints that are known.
fn check_model(
    run: &PlannedRun,
    dir: &Path,
    results: &RunResults,
    models: &mut BTreeMap<PathBuf, String>,
) -> Result<(), SweepError> {
    let (Some(expected), ModelSource::Folder(model)) =
        (&results.base_model, run.config.model.source())
    else {
        return Ok(());
    };
    if !models.contains_key(model) {
        let found = Checkpoint::open(model).and_then(|checkpoint| checkpoint.fingerprint());
        let found = found.map_err(|error| run.unusable(error.into()))?;
        models.insert(model.to_owned(), found);
    }
    match &models[model] {
        found if found == expected => Ok(()),
        found => Err(run.unusable(TrainerError::OtherModel {
            path: dir.to_owned(),
            expected: expected.clone(),
            found: found.clone(),
        })),
    }
}

/// Refuses the results of a run whose tasks have other examples now. `tasks` are digests that are known.
fn check_data(
    run: &PlannedRun,
    dir: &Path,
    results: &RunResults,
    tasks: &mut BTreeMap<String, Option<String>>,
) -> Result<(), SweepError> {
    let config = &run.config;
    for (task, expected) in &results.data {
        let trained = results.tasks.contains(task);
        let data = (&config.data, config.train.select, config.seed);
        let key = format!("{:?}", (task, trained, data));
        let found = tasks.entry(key).or_insert_with(|| {
            let library = open_library(&config.data);
            let digest =
                library.and_then(|library| task_digest(library.as_ref(), task, config, trained));
            digest
                .inspect_err(|error| tracing::debug!(task, %error, "not compared"))
                .ok()
        });
        if let Some(found) = found
            && found != expected
        {
            return Err(run.unusable(TrainerError::OtherData {
                path: dir.to_owned(),
                task: task.clone(),
                expected: expected.clone(),
                found: found.clone(),
            }));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads() {
        let spread = |values: &[Option<f64>]| spread(values.iter().copied());
        // Python: statistics.mean([70.0, 72.0, 77.0]), statistics.stdev([70.0, 72.0, 77.0])
        let found = spread(&[Some(70.0), Some(72.0), Some(77.0)]).unwrap();
        assert_eq!((found.mean, found.n), (73.0, 3));
        assert!((found.sd.unwrap() - 3.605_551_275_463_989_f64).abs() < 1e-12);
        let one = spread(&[Some(70.0)]).unwrap();
        assert_eq!((one.mean, one.sd, one.n), (70.0, None, 1));
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[Some(1.0), None]), None);
    }

    #[test]
    fn runs_of_other_sweep_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let run = |order: &str, label: &str, seed: u64, ap: Option<f64>| SweptRun {
            order: order.to_owned(),
            label: label.to_owned(),
            candidate: None,
            method: "o-lora".to_owned(),
            seed,
            directory: format!("{order}/{label}/seed-{seed}"),
            status: SweptStatus::Finished,
            error: None,
            metrics: Metric::ALL.map(|metric| (metric, ap)).into(),
        };
        let results = |orders: &[(&str, &str)], runs: Vec<SweptRun>| SweepResults {
            version: String::new(),
            orders: orders
                .iter()
                .map(|(name, task)| ((*name).to_owned(), vec![(*task).to_owned()]))
                .collect(),
            summary: groups(&runs),
            timings: runs
                .iter()
                .map(|run| (run.directory.clone(), Timings::default()))
                .collect(),
            runs,
        };
        let earlier = results(
            &[("a", "x"), ("b", "x"), ("c", "x")],
            vec![
                run("a", "strong", 1, Some(50.0)),
                run("a", "strong", 2, Some(60.0)),
                run("a", "deleted", 1, None),
                run("b", "strong", 1, None),
                // Its name is that of another order now.
                run("c", "strong", 1, None),
            ],
        );
        for kept in earlier.runs.iter().filter(|run| run.label != "deleted") {
            std::fs::create_dir_all(dir.path().join(&kept.directory)).unwrap();
        }
        let mut now = results(
            &[("a", "x"), ("c", "y")],
            vec![run("a", "strong", 1, Some(40.0))],
        );
        now.keep_others(earlier, dir.path());
        let expected = [
            run("a", "strong", 1, Some(40.0)),
            run("a", "strong", 2, Some(60.0)),
            run("b", "strong", 1, None),
        ];
        assert_eq!(now.runs, expected);
        assert_eq!(now.orders["b"], ["x"]);
        assert_eq!(now.timings.len(), 3);
        let ap = now.summary[0].metrics[&Metric::Ap].unwrap();
        assert_eq!((ap.mean, ap.n), (50.0, 2));
    }

    /// Every metric is a key beside the others; one that is missing is null, and keys of other versions are passed over.
    #[test]
    fn metrics_are_keys_among_the_others() {
        let whole = r#"{"order":"a","label":"x","method":"o-lora","seed":1,"directory":"a/x/seed-1","status":"finished","ap":75.5,"ap_by_sample":76.0,"ap_chosen":77.5,"bwt":-1.5,"forgetting":null,"fwt":2.0,"learning_accuracy":80.0}"#;
        let run: SweptRun = serde_json::from_str(whole).unwrap();
        assert_eq!(run.metric(Metric::Ap), Some(75.5));
        assert_eq!(run.metric(Metric::Forgetting), None);
        assert_eq!(serde_json::to_string(&run).unwrap(), whole);
        let other = whole.replace(r#""fwt":2.0"#, r#""of_another_version":[2]"#);
        let run: SweptRun = serde_json::from_str(&other).unwrap();
        assert_eq!(run.metrics.len(), Metric::ALL.len());
        assert_eq!(run.metric(Metric::Fwt), None);

        let whole = r#"{"order":"a","label":"x","planned":2,"finished":2,"ap":{"mean":75.5,"sd":0.5,"n":2},"ap_by_sample":null,"ap_chosen":null,"bwt":null,"forgetting":null,"fwt":null,"learning_accuracy":{"mean":1.0,"sd":null,"n":1}}"#;
        let group: Group = serde_json::from_str(whole).unwrap();
        assert_eq!(group.metrics[&Metric::Ap].unwrap().sd, Some(0.5));
        assert_eq!(serde_json::to_string(&group).unwrap(), whole);
    }
}
