//! The paired bootstrap over test examples: what a difference would be on other examples.

use std::collections::{BTreeMap, HashMap};

use aso_trainer::RunResults;
use aso_trainer::metrics::Metric;

use crate::ReportError;
use crate::predictions::{ExampleScores, read_scores};
use crate::record::RunRecord;
use crate::statistics::{Interval, bootstrap, mean};
use crate::summary::SeedPairs;
use crate::terms::{Row, Term, terms};

/// Metrics that are sums over scores and so have an interval over examples.
const SUMS: [Metric; 6] = [
    Metric::Ap,
    Metric::ApBySample,
    Metric::ApChosen,
    Metric::Bwt,
    Metric::Fwt,
    Metric::LearningAccuracy,
];

/// Largest distance, in percent, between a score in `results.json` and the mean of its predictions.
const SCORE_TOLERANCE: f64 = 1e-6;

/// Scores of single examples by run directory, row and task evaluated. The reference's are needed for
/// each other group.
#[derive(Default)]
pub(crate) struct ScoreCache {
    known: HashMap<(String, Row, usize), Option<ExampleScores>>,
}

impl ScoreCache {
    /// The scores behind an entry of a run's results; `None` where they were not kept, or are not what the entry was
    /// computed from.
    fn get(
        &mut self,
        run: &RunRecord,
        row: Row,
        task: usize,
    ) -> Result<Option<&ExampleScores>, ReportError> {
        let key = (run.dir.display().to_string(), row, task);
        if !self.known.contains_key(&key) {
            let scores = read_scores(&run.dir, &run.results.tasks, row, task)?;
            let scores = scores.filter(|scores| agrees(run, row, task, scores));
            self.known.insert(key.clone(), scores);
        }
        Ok(self.known.get(&key).and_then(Option::as_ref))
    }
}

/// Whether the mean of the scores is the one in the run's results.
fn agrees(run: &RunRecord, row: Row, task: usize, scores: &ExampleScores) -> bool {
    let entry = row.score(&run.results, task);
    let found = mean(&scores.scores).map(|mean| mean * 100.0);
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

/// The bootstrap intervals of all metrics that are sums over scores and whose predictions were kept by every
/// run, for the same examples. `seeds` has, for each metric, the runs that it is known of.
///
/// The value of an example is the difference between the two runs, times the share of its score in the metric,
/// averaged over orders and seeds: a metric is a sum of means over examples, so its resampled value is one, too. An example
/// that several orders evaluate is drawn for all of them at once.
pub(crate) fn examples_intervals(
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
        for Term { row, task, share } in terms {
            let Some(found) = scores.get(run, row, task)? else {
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

    use super::*;
    use crate::group::group;
    use crate::summary::ReportSummary;
    use crate::testing::{record, results};

    /// Predictions whose mean is the score in the results: the first examples are right.
    fn write_predictions(run: &RunRecord) {
        let results = &run.results;
        let names = [0, 1].map(|at| format!("{at:02}-{}", results.tasks[at]));
        let rows = [
            ("zero-shot", &results.zero_shot),
            (names[0].as_str(), &results.accuracy[0]),
            (names[1].as_str(), &results.accuracy[1]),
            ("chosen", &results.chosen),
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
