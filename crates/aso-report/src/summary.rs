//! The numbers of a report: means over seeds, paired differences, costs. What `--format json` writes.

use std::collections::{BTreeMap, BTreeSet};

use aso_trainer::RunResults;
use aso_trainer::config::MethodName;
use aso_trainer::metrics::{Metric, Spread, forgetting_of, rounded};
use aso_trainer::results::{Footprint, GeneralScore};
use serde::Serialize;

use crate::ReportError;
use crate::across::AcrossOrders;
use crate::compare::{ScoreCache, examples_intervals};
use crate::group::{Group, Stream};
use crate::record::RunRecord;
use crate::statistics::{Interval, median, sign_flip_p, t_interval};
use crate::terms::Row;

/// Version of the JSON form.
pub const FORMAT: u32 = 1;

/// The method that others are compared with unless another one is named.
const DEFAULT_REFERENCE: &str = "aso-lora";

/// All numbers of a report. Scores are in percent, times in seconds; lists over tasks have the order of `tasks`;
/// `null` where a number could not be computed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReportSummary {
    /// Version of this form, 1.
    pub format: u32,
    /// Version of the program.
    pub version: &'static str,
    /// The label of the group that the others are compared with.
    pub reference: String,
    /// One entry for each sequence of tasks.
    pub streams: Vec<StreamSummary>,
    /// One entry for each set of tasks of which there are several orders.
    pub across: Vec<AcrossOrders>,
}

/// The numbers of all runs on one sequence of tasks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StreamSummary {
    /// The tasks in the order in which they were learned.
    pub tasks: Vec<String>,
    /// The groups.
    pub groups: Vec<GroupSummary>,
    /// Each other group minus the reference, over the seeds that both have; empty without the reference.
    pub differences: Vec<Difference>,
}

/// The numbers of one group over its seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupSummary {
    /// What the group is called.
    pub label: String,
    /// The method's name.
    pub method: String,
    /// The runs, by seed.
    pub runs: Vec<RunSummary>,
    /// Every metric over the runs that have it.
    pub metrics: BTreeMap<Metric, Option<Spread>>,
    /// `R[i][j]`: the score on task j after training task i.
    pub accuracy: Vec<Vec<Option<Spread>>>,
    /// Scores of the untouched backbone.
    pub zero_shot: Vec<Option<Spread>>,
    /// Scores after the last task with answers that are chosen among labels; empty where no run has any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chosen: Vec<Option<Spread>>,
    /// Forgetting of each task but the last, `max_{i in j..T-1} R[i][j] - R[T][j]`.
    pub forgetting_by_task: Vec<Option<Spread>>,
    /// Scores on tasks that were not learned.
    pub general: Vec<GeneralSummary>,
    /// What it cost.
    pub cost: Cost,
}

/// Scores on a task that was not learned.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GeneralSummary {
    /// The task.
    pub task: String,
    /// Of the untouched backbone.
    pub before: Option<Spread>,
    /// Behind the last task.
    pub after: Option<Spread>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSummary {
    /// The run directory, as found.
    pub directory: String,
    /// The seed.
    pub seed: u64,
    /// Every metric, as `results.json` has it.
    pub metrics: BTreeMap<Metric, Option<f64>>,
}

/// What the runs of a group cost: footprint and seconds of those that have come to their end, for half a run would look cheap.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// Elements that one task trains: the size of the last task's adapter, of `inf-lora` that of B alone.
    pub trainable_parameters: Option<u64>,
    /// What is kept after the last task; `None` in runs of earlier versions.
    pub footprint: Option<Footprint>,
    /// The most bytes that a process of a run held.
    pub peak_bytes: Option<u64>,
    /// Kinds of the processors that the runs worked on; empty in runs of earlier versions. Seconds on different ones do not
    /// compare.
    pub processors: BTreeSet<String>,
    /// Seconds of a step: the median over a run's steps, attribution included where one was due.
    pub seconds_per_step: Option<Spread>,
    /// Seconds of training over all tasks, attribution included.
    pub train_seconds: Option<Spread>,
    /// Seconds of attribution over all tasks.
    pub attribution_seconds: Option<Spread>,
    /// Seconds of evaluation over all tasks, the untouched backbone included.
    pub evaluation_seconds: Option<Spread>,
}

/// A group minus the reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The group.
    pub label: String,
    /// The seeds that both have.
    pub seeds: Vec<u64>,
    /// Every metric that both have.
    pub metrics: BTreeMap<Metric, Option<PairedDifference>>,
}

/// The difference of a metric between two groups, paired by seed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairedDifference {
    /// Mean of the differences, over the seeds.
    pub mean: f64,
    /// Their sample standard deviation; `null` for one seed.
    pub sd: Option<f64>,
    /// Seeds.
    pub n: usize,
    /// 95 % interval over seeds, Student's t; `null` for one seed.
    pub seeds_interval: Option<Interval>,
    /// Exact sign-flip p-value over seeds; `null` for one seed and for more than 20.
    pub sign_flip_p: Option<f64>,
    /// 95 % percentile interval of the paired bootstrap over test examples; `null` where predictions were not kept,
    /// and for forgetting.
    pub examples_interval: Option<Interval>,
}

/// The runs of two groups with one seed: a pair for each order, in the same place for every seed.
pub(crate) type SeedPairs<'a> = Vec<(&'a RunRecord, &'a RunRecord)>;

impl Difference {
    /// The statistics of what the first of two groups has more than the second, over the seeds that both have. The difference of a
    /// seed is its mean over the orders.
    pub(crate) fn between(
        label: &str,
        seeds: &[SeedPairs<'_>],
        scores: &mut ScoreCache,
    ) -> Result<Self, ReportError> {
        let mut metrics = BTreeMap::new();
        let mut values = BTreeMap::new();
        for metric in Metric::ALL {
            let known: Vec<(f64, &SeedPairs<'_>)> = seeds
                .iter()
                .filter_map(|pairs| Some((difference(pairs, metric)?, pairs)))
                .collect();
            let differences: Vec<f64> = known.iter().map(|(value, _)| *value).collect();
            let paired = Spread::of(&differences).map(|summary| PairedDifference {
                mean: summary.mean,
                sd: summary.sd,
                n: summary.n,
                seeds_interval: t_interval(&differences),
                sign_flip_p: sign_flip_p(&differences),
                examples_interval: None,
            });
            metrics.insert(metric, paired);
            values.insert(metric, known.into_iter().map(|(_, pairs)| pairs).collect());
        }
        for (metric, interval) in examples_intervals(&values, scores)? {
            if let Some(Some(paired)) = metrics.get_mut(&metric) {
                paired.examples_interval = Some(interval);
            }
        }
        let seed = |pairs: &SeedPairs<'_>| pairs.first().map(|(run, _)| run.results.seed);
        Ok(Self {
            label: label.to_owned(),
            seeds: seeds.iter().filter_map(seed).collect(),
            metrics,
        })
    }
}

/// Mean over the orders; `None` if one lacks the metric.
fn difference(pairs: &SeedPairs<'_>, metric: Metric) -> Option<f64> {
    let of = |(run, other): &(&RunRecord, &RunRecord)| {
        Some(metric.of(&run.results)? - metric.of(&other.results)?)
    };
    let values: Vec<f64> = pairs.iter().map(of).collect::<Option<_>>()?;
    crate::statistics::mean(&values)
}

impl ReportSummary {
    /// Computes all numbers. `reference` is the label or the method's name of the group to compare with; left out,
    /// `aso-lora` or else the first group.
    ///
    /// # Errors
    /// [`ReportError::UnknownReference`], and those of reading predictions.
    pub fn new(streams: &[Stream], reference: Option<&str>) -> Result<Self, ReportError> {
        let reference = find_reference(streams, reference)?;
        let mut scores = ScoreCache::default();
        let streams_of = streams
            .iter()
            .map(|stream| summarise(stream, &reference, &mut scores));
        Ok(Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION"),
            streams: streams_of.collect::<Result<_, _>>()?,
            across: AcrossOrders::of(streams, &reference, &mut scores)?,
            reference,
        })
    }
}

/// A line of a results table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResultLine<'a> {
    pub(crate) label: &'a str,
    pub(crate) method: &'a str,
    pub(crate) seeds: usize,
    pub(crate) metrics: &'a BTreeMap<Metric, Option<Spread>>,
}

impl ResultLine<'_> {
    /// Whether the method is a bound for the others ([`MethodName::is_bound`]).
    fn is_bound(&self) -> bool {
        self.method
            .parse::<MethodName>()
            .is_ok_and(MethodName::is_bound)
    }

    /// The metric, if the runs have it.
    pub(crate) fn metric(&self, metric: Metric) -> Option<Spread> {
        self.metrics.get(&metric).copied().flatten()
    }
}

/// The place of a line among the others by a metric, from 0; lines that agree to two decimals, as tables show them, share the
/// better place. Bounds (`per-task`, `multi-task`) take no place from methods; they have one only where there is nothing else. Nor
/// does a single value where others have several. `None` where the line has no place or lacks the metric.
pub(crate) fn rank(lines: &[ResultLine<'_>], line: usize, metric: Metric) -> Option<usize> {
    let only_bounds = lines.iter().all(ResultLine::is_bound);
    let values = |line: &ResultLine<'_>| line.metric(metric).map_or(0, |spread| spread.n);
    let several = lines.iter().any(|line| values(line) > 1);
    let shown = |line: &ResultLine<'_>| {
        if line.is_bound() && !only_bounds || values(line) == 1 && several {
            return None;
        }
        let shown = rounded(line.metric(metric)?.mean, 2);
        Some(if metric.higher_is_better() {
            shown
        } else {
            -shown
        })
    };
    let own = shown(lines.get(line)?)?;
    let better = lines.iter().filter_map(shown);
    let mut better: Vec<f64> = better.filter(|value| *value > own).collect();
    better.sort_by(f64::total_cmp);
    better.dedup();
    Some(better.len())
}

impl StreamSummary {
    /// The lines of the results table.
    pub(crate) fn lines(&self) -> Vec<ResultLine<'_>> {
        let groups = self.groups.iter();
        groups
            .map(|group| ResultLine {
                label: &group.label,
                method: &group.method,
                seeds: group.runs.len(),
                metrics: &group.metrics,
            })
            .collect()
    }
}

/// The label of the reference.
fn find_reference(streams: &[Stream], wanted: Option<&str>) -> Result<String, ReportError> {
    let groups = || streams.iter().flat_map(|stream| &stream.groups);
    let called = |name: &str| {
        groups()
            .find(|group| group.label == name)
            .or_else(|| groups().find(|group| group.method() == name))
            .map(|group| group.label.clone())
    };
    let Some(wanted) = wanted else {
        let first = || groups().next().map(|group| group.label.clone());
        return Ok(called(DEFAULT_REFERENCE).or_else(first).unwrap_or_default());
    };
    called(wanted).ok_or_else(|| {
        let mut labels: Vec<&str> = groups().map(|group| group.label.as_str()).collect();
        labels.sort_unstable();
        labels.dedup();
        ReportError::UnknownReference {
            found: wanted.to_owned(),
            expected: labels.join(", "),
        }
    })
}

fn summarise(
    stream: &Stream,
    reference: &str,
    scores: &mut ScoreCache,
) -> Result<StreamSummary, ReportError> {
    let mut differences = Vec::new();
    if let Some(reference) = stream.group(reference) {
        let others = stream.groups.iter();
        for group in others.filter(|group| group.label != reference.label) {
            let seeds: Vec<SeedPairs<'_>> = group
                .pairs(reference)
                .into_iter()
                .map(|pair| vec![pair])
                .collect();
            differences.push(Difference::between(&group.label, &seeds, scores)?);
        }
    }
    Ok(StreamSummary {
        tasks: stream.tasks.clone(),
        groups: stream.groups.iter().map(summarise_group).collect(),
        differences,
    })
}

fn summarise_group(group: &Group) -> GroupSummary {
    let tasks = group.runs.first().map_or(0, |run| run.results.tasks.len());
    let over = |value: &dyn Fn(&RunResults) -> Option<f64>| {
        let values = group.runs.iter().filter_map(|run| value(&run.results));
        Spread::of(&values.collect::<Vec<_>>())
    };
    let metrics = Metric::ALL.map(|metric| (metric, over(&|results| metric.of(results))));
    let row = |row: Row| -> Vec<Option<Spread>> {
        let score = |task| over(&|results| row.score(results, task));
        (0..tasks).map(score).collect()
    };
    let chosen = row(Row::Chosen);
    GroupSummary {
        label: group.label.clone(),
        method: group.method().to_owned(),
        runs: group.runs.iter().map(summarise_run).collect(),
        metrics: BTreeMap::from(metrics),
        accuracy: (0..tasks).map(|after| row(Row::After(after))).collect(),
        zero_shot: row(Row::Backbone),
        chosen: match chosen.iter().any(Option::is_some) {
            true => chosen,
            false => Vec::new(),
        },
        forgetting_by_task: (0..tasks.saturating_sub(1))
            .map(|task| over(&|results| forgetting_of(&results.accuracy, task)))
            .collect(),
        general: general(group),
        cost: cost(group),
    }
}

fn summarise_run(run: &RunRecord) -> RunSummary {
    RunSummary {
        directory: run.dir.display().to_string(),
        seed: run.results.seed,
        metrics: run.results.metrics(),
    }
}

/// Over the runs that were evaluated on the tasks of the first one that has any.
fn general(group: &Group) -> Vec<GeneralSummary> {
    let first = group
        .runs
        .iter()
        .find(|run| !run.results.general.is_empty());
    let tasks = first.map_or(&[][..], |run| &run.results.general);
    let of = |task: &GeneralScore| {
        let over = |value: &dyn Fn(&GeneralScore) -> Option<f64>| {
            let runs = group.runs.iter().flat_map(|run| &run.results.general);
            let same = runs.filter(|score| score.task == task.task);
            Spread::of(&same.filter_map(value).collect::<Vec<_>>())
        };
        GeneralSummary {
            task: task.task.clone(),
            before: over(&|score| score.before),
            after: over(&|score| score.after),
        }
    };
    tasks.iter().map(of).collect()
}

fn cost(group: &Group) -> Cost {
    let ended = |run: &&RunRecord| Metric::Ap.of(&run.results).is_some();
    let ended = || group.runs.iter().filter(ended);
    let over = |value: &dyn Fn(&RunRecord) -> Option<f64>| {
        Spread::of(&ended().filter_map(value).collect::<Vec<_>>())
    };
    let step = |run: &RunRecord| {
        let seconds: Vec<f64> = run.steps.iter().map(|step| step.seconds).collect();
        median(&seconds)
    };
    let total = |seconds: &[f64]| Some(seconds.iter().sum::<f64>());
    Cost {
        trainable_parameters: group.runs.iter().find_map(|run| run.trainable_parameters),
        footprint: ended().find_map(|run| run.results.footprint),
        peak_bytes: group
            .runs
            .iter()
            .filter_map(|run| run.results.timings.peak_bytes)
            .max(),
        processors: group
            .runs
            .iter()
            .flat_map(|run| run.results.timings.processors.iter().cloned())
            .collect(),
        seconds_per_step: over(&step),
        train_seconds: over(&|run| total(&run.results.timings.train)),
        attribution_seconds: over(&|run| total(&run.results.timings.attribution)),
        evaluation_seconds: over(&|run| {
            let timings = &run.results.timings;
            Some(timings.zero_shot + total(&timings.evaluation)?)
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::group::group;
    use crate::testing::{record, results};

    /// Three seeds of two methods.
    fn streams(dir: &Path) -> Vec<Stream> {
        let rows = [
            ("o-lora", 1, [80.0, 25.0, 60.0, 90.0]),
            ("o-lora", 2, [70.0, 25.0, 65.0, 85.0]),
            ("o-lora", 3, [75.0, 25.0, 70.0, 80.0]),
            ("aso-lora", 1, [80.0, 30.0, 70.0, 90.0]),
            ("aso-lora", 2, [70.0, 30.0, 70.0, 90.0]),
            ("aso-lora", 4, [75.0, 30.0, 70.0, 90.0]),
        ];
        let runs = rows.map(|(method, seed, rows)| record(dir, &results(method, seed, &rows)));
        group(runs.into()).unwrap()
    }

    // import numpy as np; ap = np.array([75, 75, 75]); bwt = np.array([-20, -5, -5])
    // bwt.mean(), bwt.std(ddof=1); d = np.array([60 - 70, 65 - 70]) / 2 + np.array([0, -5]) / 2 -> -5, -5
    #[test]
    fn means_and_differences() {
        let dir = tempfile::tempdir().unwrap();
        let streams = streams(dir.path());
        let summary = ReportSummary::new(&streams, None).unwrap();
        assert_eq!(summary.reference, "aso-lora");
        let stream = &summary.streams[0];
        let o_lora = &stream.groups[0];
        let ap = o_lora.metrics[&Metric::Ap].unwrap();
        assert_eq!((ap.mean, ap.sd, ap.n), (75.0, Some(0.0), 3));
        let bwt = o_lora.metrics[&Metric::Bwt].unwrap();
        assert!((bwt.mean + 10.0).abs() < 1e-12);
        assert!((bwt.sd.unwrap() - 75_f64.sqrt()).abs() < 1e-12);
        assert_eq!(o_lora.forgetting_by_task[0].unwrap().mean, 10.0);
        assert_eq!(o_lora.accuracy[0][1].unwrap().mean, 25.0);
        assert_eq!(o_lora.zero_shot[1].unwrap().mean, 20.0);
        let difference = &stream.differences[0];
        assert_eq!(difference.label, "o-lora");
        assert_eq!(difference.seeds, [1, 2]);
        let ap = difference.metrics[&Metric::Ap].as_ref().unwrap();
        assert_eq!((ap.mean, ap.n, ap.sign_flip_p), (-5.0, 2, Some(0.5)));
        assert_eq!(ap.examples_interval, None);
    }

    #[test]
    fn half_a_run_costs_nothing_yet() {
        let dir = tempfile::tempdir().unwrap();
        let of = |seed, seconds: [f64; 2], ended: bool| {
            let mut results = results("x", seed, &[50.0, 0.0, 60.0, 50.0]);
            results.timings.train = seconds.into();
            results.ap = results.ap.filter(|_| ended);
            record(dir.path(), &results)
        };
        let cost = |runs: Vec<_>| {
            let summary = ReportSummary::new(&group(runs).unwrap(), None).unwrap();
            summary.streams[0].groups[0].cost.train_seconds
        };
        let half = of(2, [3.0, 0.0], false);
        let seconds = cost(vec![of(1, [3.0, 4.0], true), half.clone()]).unwrap();
        assert_eq!((seconds.mean, seconds.n), (7.0, 1));
        assert_eq!(cost(vec![half]), None);
    }

    #[test]
    fn a_single_run_takes_no_place_from_several() {
        let dir = tempfile::tempdir().unwrap();
        let of = |method: &str, seed, last| {
            record(dir.path(), &results(method, seed, &[50.0, 0.0, last, 50.0]))
        };
        let runs = vec![of("x", 1, 50.0), of("x", 2, 52.0), of("y", 1, 60.0)];
        let summary = ReportSummary::new(&group(runs).unwrap(), None).unwrap();
        let lines = summary.streams[0].lines();
        let places = [0, 1].map(|at| rank(&lines, at, Metric::Ap));
        assert_eq!(places, [Some(0), None]);
    }

    #[test]
    fn ranks_share_what_tables_cannot_tell_apart() {
        let dir = tempfile::tempdir().unwrap();
        let runs = [
            ("x", [50.0, 0.0, 50.0, 50.0]),
            ("y", [50.0, 0.0, 60.0, 50.0]),
            ("z", [50.0, 0.0, 50.001, 50.001]),
        ];
        let runs = runs.map(|(method, rows)| record(dir.path(), &results(method, 1, &rows)));
        let summary = ReportSummary::new(&group(runs.into()).unwrap(), None).unwrap();
        let lines = summary.streams[0].lines();
        let ranks = |metric| [0, 1, 2].map(|line| rank(&lines, line, metric));
        assert_eq!(ranks(Metric::Ap), [Some(1), Some(0), Some(1)]);
        assert_eq!(ranks(Metric::Forgetting), [Some(1), Some(0), Some(1)]);
        assert_eq!(rank(&lines, 3, Metric::Ap), None);
    }

    #[test]
    fn bounds_take_no_place() {
        let dir = tempfile::tempdir().unwrap();
        let place = |methods: &[&str]| {
            let runs = methods.iter().enumerate().map(|(at, method)| {
                let rows = [50.0, 0.0, 60.0 - at as f64, 50.0];
                record(dir.path(), &results(method, 1, &rows))
            });
            let summary = ReportSummary::new(&group(runs.collect()).unwrap(), None).unwrap();
            let lines = summary.streams[0].lines();
            let places = (0..lines.len()).map(|at| rank(&lines, at, Metric::Ap));
            places.collect::<Vec<_>>()
        };
        assert_eq!(place(&["per-task", "ewc", "lwf"]), [None, Some(0), Some(1)]);
        assert_eq!(place(&["multi-task"]), [Some(0)]);
    }

    #[test]
    fn references() {
        let dir = tempfile::tempdir().unwrap();
        let streams = streams(dir.path());
        let summary = ReportSummary::new(&streams, Some("o-lora")).unwrap();
        assert_eq!(summary.streams[0].differences[0].label, "aso-lora");
        let error = ReportSummary::new(&streams, Some("x")).unwrap_err();
        let expected = "reference \"x\": expected one of aso-lora, o-lora";
        assert_eq!(error.to_string(), expected);
    }
}
