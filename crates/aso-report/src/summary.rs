//! The numbers of a report: means over seeds, paired differences, costs. What `--format json` writes.

use std::collections::{BTreeMap, HashMap};

use aso_trainer::RunResults;
use aso_trainer::config::MethodName;
use aso_trainer::metrics::{Metric, Spread, forgetting_of};
use aso_trainer::results::{Footprint, GeneralScore};
use serde::Serialize;

use crate::ReportError;
use crate::across::AcrossOrders;
use crate::group::{Group, Stream};
use crate::predictions::{ExampleScores, read_scores};
use crate::record::RunRecord;
use crate::statistics::{Interval, bootstrap, median, sign_flip_p, t_interval};
use crate::terms::{Term, terms};

/// Version of the JSON form.
pub const FORMAT: u32 = 1;

/// The method that others are compared with unless another one is named.
const DEFAULT_REFERENCE: &str = "aso-lora";

/// Metrics that are sums over the accuracy matrix and so have an interval over examples.
const SUMS: [Metric; 5] = [
    Metric::Ap,
    Metric::ApBySample,
    Metric::Bwt,
    Metric::Fwt,
    Metric::LearningAccuracy,
];

/// Largest distance, in percent, between a score in `results.json` and the mean of its predictions.
const SCORE_TOLERANCE: f64 = 1e-6;

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

/// What the runs of a group cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// Elements that one task trains: the size of the last task's adapter, of `inf-lora` that of B alone.
    pub trainable_parameters: Option<u64>,
    /// What is kept after the last task; `None` in runs of earlier versions.
    pub footprint: Option<Footprint>,
    /// The most bytes that a process of a run held.
    pub peak_bytes: Option<u64>,
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

/// Rounds to some decimals, halves away from 0, and -0 to 0: as tables show numbers and rank them.
pub(crate) fn rounded(number: f64, decimals: usize) -> f64 {
    let unit = 10.0_f64.powi(i32::try_from(decimals).unwrap_or(0));
    (number * unit).round() / unit + 0.0
}

/// The place of a line among the others by a metric, from 0; lines that agree to two decimals, as tables show them, share the
/// better place. Bounds (`per-task`, `multi-task`) take no place from methods; they have one only where there is nothing else. Nor
/// does a single run where others have several. `None` where the line has no place or lacks the metric.
pub(crate) fn rank(lines: &[ResultLine<'_>], line: usize, metric: Metric) -> Option<usize> {
    let only_bounds = lines.iter().all(ResultLine::is_bound);
    let several = lines.iter().any(|line| line.seeds > 1);
    let shown = |line: &ResultLine<'_>| {
        if line.is_bound() && !only_bounds || line.seeds == 1 && several {
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
    let row =
        |after: usize| (0..tasks).map(move |task| over(&|results| results.accuracy[after][task]));
    GroupSummary {
        label: group.label.clone(),
        method: group.method().to_owned(),
        runs: group.runs.iter().map(summarise_run).collect(),
        metrics: BTreeMap::from(metrics),
        accuracy: (0..tasks).map(|after| row(after).collect()).collect(),
        zero_shot: (0..tasks)
            .map(|task| over(&|results| results.zero_shot[task]))
            .collect(),
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
    let over = |value: &dyn Fn(&RunRecord) -> Option<f64>| {
        Spread::of(&group.runs.iter().filter_map(value).collect::<Vec<_>>())
    };
    let step = |run: &RunRecord| {
        let seconds: Vec<f64> = run.steps.iter().map(|step| step.seconds).collect();
        median(&seconds)
    };
    let total = |seconds: &[f64]| Some(seconds.iter().sum::<f64>());
    Cost {
        trainable_parameters: group.runs.iter().find_map(|run| run.trainable_parameters),
        footprint: group.runs.iter().find_map(|run| run.results.footprint),
        peak_bytes: group
            .runs
            .iter()
            .filter_map(|run| run.results.timings.peak_bytes)
            .max(),
        seconds_per_step: over(&step),
        train_seconds: over(&|run| total(&run.results.timings.train)),
        attribution_seconds: over(&|run| total(&run.results.timings.attribution)),
        evaluation_seconds: over(&|run| {
            let timings = &run.results.timings;
            Some(timings.zero_shot + total(&timings.evaluation)?)
        }),
    }
}

/// Scores of single examples by run directory, task trained last and task evaluated. The reference's are needed for
/// each other group.
#[derive(Default)]
pub(crate) struct ScoreCache {
    known: HashMap<(String, Option<usize>, usize), Option<ExampleScores>>,
}

impl ScoreCache {
    /// The scores behind an entry of a run's matrix; `None` where they were not kept, or are not what the entry was
    /// computed from.
    fn get(
        &mut self,
        run: &RunRecord,
        after: Option<usize>,
        task: usize,
    ) -> Result<Option<&ExampleScores>, ReportError> {
        let key = (run.dir.display().to_string(), after, task);
        if !self.known.contains_key(&key) {
            let scores = read_scores(&run.dir, &run.results.tasks, after, task)?;
            let scores = scores.filter(|scores| agrees(run, after, task, scores));
            self.known.insert(key.clone(), scores);
        }
        Ok(self.known.get(&key).and_then(Option::as_ref))
    }
}

/// Whether the mean of the scores is the entry of the accuracy matrix.
fn agrees(run: &RunRecord, after: Option<usize>, task: usize, scores: &ExampleScores) -> bool {
    let entry = match after {
        Some(after) => run.results.accuracy[after][task],
        None => run.results.zero_shot[task],
    };
    let found = crate::statistics::mean(&scores.scores).map(|mean| mean * 100.0);
    let same = match (entry, found) {
        (Some(entry), Some(found)) => (entry - found).abs() <= SCORE_TOLERANCE,
        _ => false,
    };
    if !same {
        tracing::warn!(
            run = %run.dir.display(),
            task = run.results.tasks[task],
            expected = ?entry,
            ?found,
            "predictions are left out: their mean is not the score in results.json"
        );
    }
    same
}

/// The bootstrap intervals of all metrics that are sums over the matrix and whose predictions were kept by every
/// run, for the same examples. `seeds` has, for each metric, the runs that it is known of.
///
/// The value of an example is the difference between the two runs, times the share of its score in the metric,
/// averaged over orders and seeds: a metric is a sum of means over examples, so its resampled value is one, too. An example
/// that several orders evaluate is drawn for all of them at once.
fn examples_intervals(
    seeds: &BTreeMap<Metric, Vec<&SeedPairs<'_>>>,
    scores: &mut ScoreCache,
) -> Result<BTreeMap<Metric, Interval>, ReportError> {
    let runs = seeds.values().flatten().flat_map(|pairs| pairs.iter());
    let Some((first, _)) = runs.clone().next() else {
        return Ok(BTreeMap::new());
    };
    let mut strata = Strata::new(&first.results);
    let mut complete = [false; SUMS.len()];
    for (quantity, metric) in SUMS.into_iter().enumerate() {
        let pairs: Vec<_> = seeds[&metric].iter().copied().flatten().collect();
        complete[quantity] = !pairs.is_empty();
        for (run, other) in &pairs {
            for (run, sign) in [(run, 1.0), (other, -1.0)] {
                let weight = 100.0 * sign / pairs.len() as f64;
                complete[quantity] &= strata.add(run, metric, weight, scores, quantity)?;
            }
            if !complete[quantity] {
                break;
            }
        }
    }
    if complete == [false; SUMS.len()] {
        return Ok(BTreeMap::new());
    }
    let intervals = SUMS
        .into_iter()
        .zip(bootstrap(&strata.values))
        .zip(complete);
    let intervals = intervals.filter(|(_, complete)| *complete);
    Ok(intervals.map(|(interval, _)| interval).collect())
}

/// Values of examples, by task.
struct Strata {
    tasks: Vec<String>,
    values: Vec<Vec<[f64; SUMS.len()]>>,
    /// Which examples they are, once known.
    examples: Vec<Option<u64>>,
}

impl Strata {
    /// Zeros for the tasks of a run; other orders of them are matched by name.
    fn new(results: &RunResults) -> Self {
        let zeros = |count: &usize| vec![[0.0; SUMS.len()]; *count];
        Self {
            tasks: results.tasks.clone(),
            values: results.evaluation_samples.iter().map(zeros).collect(),
            examples: vec![None; results.tasks.len()],
        }
    }

    /// Adds the metric of a run, times the weight; `false` where the metric is not defined, or the run lacks the predictions or
    /// has them for other examples.
    fn add(
        &mut self,
        run: &RunRecord,
        metric: Metric,
        weight: f64,
        scores: &mut ScoreCache,
        quantity: usize,
    ) -> Result<bool, ReportError> {
        let Some(terms) = terms(metric, &run.results.evaluation_samples) else {
            return Ok(false);
        };
        for Term { after, task, share } in terms {
            let Some(found) = scores.get(run, after, task)? else {
                return Ok(false);
            };
            let name = &run.results.tasks[task];
            let at = self.tasks.iter().position(|task| task == name);
            let same = |at: usize| {
                self.values[at].len() == found.scores.len()
                    && self.examples[at].is_none_or(|known| known == found.examples)
            };
            let Some(at) = at.filter(|at| same(*at)) else {
                tracing::warn!(
                    run = %run.dir.display(),
                    task = name,
                    "no interval over examples: the runs were evaluated on different ones"
                );
                return Ok(false);
            };
            self.examples[at] = Some(found.examples);
            for (value, score) in self.values[at].iter_mut().zip(&found.scores) {
                value[quantity] += weight * share * score;
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::group::group;
    use crate::testing::{results, write_run};

    fn record(dir: &Path, results: &RunResults) -> (Option<String>, RunRecord) {
        let run = dir.join(format!("{}-{}", results.method, results.seed));
        write_run(&run, results);
        (None, RunRecord::read(&run).unwrap())
    }

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

    /// Predictions whose mean is the entry of the matrix: the first examples are right.
    fn write_predictions(run: &RunRecord) {
        let results = &run.results;
        let names = [0, 1].map(|at| format!("{at:02}-{}", results.tasks[at]));
        let rows = [
            ("zero-shot", &results.zero_shot),
            (names[0].as_str(), &results.accuracy[0]),
            (names[1].as_str(), &results.accuracy[1]),
        ];
        for (after, scores) in rows {
            let folder = run.dir.join("predictions").join(after);
            fs::create_dir_all(&folder).unwrap();
            for (task, score) in scores.iter().enumerate() {
                let n = results.evaluation_samples[task];
                let right = (score.unwrap() / 100.0 * n as f64).round() as usize;
                let line = |e: usize| {
                    let score = u8::from(e < right);
                    format!("{{\"answer\":\"\",\"expected\":\"{e}\",\"score\":{score}}}\n")
                };
                let text: String = (0..n).map(line).collect();
                fs::write(folder.join(format!("{}.jsonl", names[task])), text).unwrap();
            }
        }
    }

    #[test]
    fn intervals_over_examples() {
        let dir = tempfile::tempdir().unwrap();
        let runs = [
            results("o-lora", 1, &[80.0, 10.0, 60.0, 90.0]),
            results("aso-lora", 1, &[80.0, 30.0, 70.0, 90.0]),
        ];
        let runs = runs.map(|results| record(dir.path(), &results));
        runs.iter().for_each(|(_, run)| write_predictions(run));
        let streams = group(runs.to_vec()).unwrap();
        let metrics = |reference| {
            let summary = ReportSummary::new(&streams, Some(reference)).unwrap();
            summary.streams[0].differences[0].metrics.clone()
        };
        let (there, back) = (metrics("aso-lora"), metrics("o-lora"));
        for metric in SUMS {
            let (there, back) = (
                there[&metric].clone().unwrap(),
                back[&metric].clone().unwrap(),
            );
            let (interval, mirrored) = (
                there.examples_interval.unwrap(),
                back.examples_interval.unwrap(),
            );
            assert!(
                interval.low <= there.mean && there.mean <= interval.high,
                "{metric:?}"
            );
            assert_eq!(
                (interval.low, interval.high),
                (-mirrored.high, -mirrored.low)
            );
        }
        // One of ten examples of task a differs: the difference of AP is -5 times the number of times it is drawn,
        // Binomial(10, 1/10): from scipy.stats import binom; binom.ppf([.025, .975], 10, .1) -> 0, 3.
        let ap = there[&Metric::Ap]
            .as_ref()
            .unwrap()
            .examples_interval
            .unwrap();
        assert!(
            (ap.low + 15.0).abs() < 1e-9 && ap.high.abs() < 1e-9,
            "{ap:?}"
        );
        assert_eq!(
            there[&Metric::Forgetting]
                .as_ref()
                .unwrap()
                .examples_interval,
            None
        );

        // The same example in the other order: it is drawn for both orders at once, so the interval stays as wide.
        let turned = [
            ("o-lora", [80.0, 10.0, 90.0, 60.0]),
            ("aso-lora", [80.0, 10.0, 90.0, 70.0]),
        ];
        let turned = turned.map(|(method, rows)| {
            let mut results = results(method, 1, &rows);
            results.tasks.reverse();
            results.evaluation_samples.reverse();
            record(&dir.path().join("turned"), &results)
        });
        turned.iter().for_each(|(_, run)| write_predictions(run));
        let both = group(runs.iter().chain(&turned).cloned().collect()).unwrap();
        let summary = ReportSummary::new(&both, Some("aso-lora")).unwrap();
        let across = &summary.across[0].differences[0].metrics[&Metric::Ap];
        let across = across.as_ref().unwrap().examples_interval.unwrap();
        assert!(
            (across.low - ap.low).abs() < 1e-9 && across.high.abs() < 1e-9,
            "{across:?}"
        );

        // Other predictions than those that the score was computed from.
        let file = runs[0].1.dir.join("predictions/01-b/00-a.jsonl");
        let text = fs::read_to_string(&file).unwrap().replacen('1', "0", 1);
        fs::write(&file, text.replace("\"score\":1", "\"score\":0")).unwrap();
        let there = metrics("aso-lora");
        assert_eq!(there[&Metric::Ap].as_ref().unwrap().examples_interval, None);
        assert!(
            there[&Metric::Fwt]
                .as_ref()
                .unwrap()
                .examples_interval
                .is_some()
        );
    }
}
