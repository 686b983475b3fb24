//! Continual-learning metrics over the accuracy matrix.
//!
//! `R[i][j]` is the score on task j after training task i, in percent; T is the number of tasks,
//! and tasks count from 1 in the formulas and from 0 in the code.
//!
//! | metric | formula |
//! |---|---|
//! | average performance AP | `mean_j R[T][j]` |
//! | AP chosen | AP of answers that are chosen among the labels, where they are (`eval.choose_last`) |
//! | backward transfer BWT | `mean_{j<T} (R[T][j] - R[j][j])` |
//! | forgetting F | `mean_{j<T} (max_{i in j..T-1} R[i][j] - R[T][j])` |
//! | forward transfer FWT | `mean_{j>1} (R[j-1][j] - R0[j])`, R0 the untouched backbone |
//! | learning accuracy LA | `mean_j R[j][j]` |
//!
//! A metric is `None` when an entry that it needs was not evaluated, and BWT, F and FWT are `None`
//! for T = 1.
//!
//! Sources: Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning" (BWT, FWT);
//! Chaudhry et al., "Riemannian Walk for Incremental Learning" (forgetting).

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};

use crate::RunResults;

/// A metric over the accuracy matrix. How a single answer is scored is an [`aso_data::Metric`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// AP, the mean over tasks after the last one.
    Ap,
    /// AP weighted by evaluation examples.
    ApBySample,
    /// AP of answers that are chosen among labels.
    ApChosen,
    /// Backward transfer.
    Bwt,
    /// Forgetting.
    Forgetting,
    /// Forward transfer.
    Fwt,
    /// Learning accuracy.
    LearningAccuracy,
}

impl Metric {
    /// All metrics in the order of tables.
    pub const ALL: [Self; 7] = [
        Self::Ap,
        Self::ApBySample,
        Self::ApChosen,
        Self::Bwt,
        Self::Forgetting,
        Self::Fwt,
        Self::LearningAccuracy,
    ];

    /// The key in `results.json`, `sweep.json` and the report's JSON and CSV.
    pub fn key(self) -> &'static str {
        match self {
            Self::Ap => "ap",
            Self::ApBySample => "ap_by_sample",
            Self::ApChosen => "ap_chosen",
            Self::Bwt => "bwt",
            Self::Forgetting => "forgetting",
            Self::Fwt => "fwt",
            Self::LearningAccuracy => "learning_accuracy",
        }
    }

    /// The heading of a column.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Ap => "AP",
            Self::ApBySample => "AP by sample",
            Self::ApChosen => "AP chosen",
            Self::Bwt => "BWT",
            Self::Forgetting => "Forgetting",
            Self::Fwt => "FWT",
            Self::LearningAccuracy => "LA",
        }
    }

    /// What it says, in a few words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Ap => "average performance: mean score over tasks after the last one",
            Self::ApBySample => "the same, weighted by evaluation examples",
            Self::ApChosen => "average performance where answers are chosen among the labels",
            Self::Bwt => "backward transfer: what later tasks changed on earlier ones",
            Self::Forgetting => "distance from the best score on a task to the last one",
            Self::Fwt => {
                "forward transfer: gain over the untouched backbone before a task is trained"
            }
            Self::LearningAccuracy => {
                "learning accuracy: mean score on a task right after training it"
            }
        }
    }

    /// Whether a higher value is better.
    pub fn higher_is_better(self) -> bool {
        self != Self::Forgetting
    }

    /// The metrics that a table shows: all but those that runs have on request alone (`eval.choose_last`) and that are not
    /// `known` of any.
    pub fn shown(known: impl Fn(Self) -> bool) -> Vec<Self> {
        let shown = |metric: &Self| *metric != Self::ApChosen || known(*metric);
        Self::ALL.into_iter().filter(shown).collect()
    }

    /// The value in `results.json`.
    pub fn of(self, results: &RunResults) -> Option<f64> {
        match self {
            Self::Ap => results.ap,
            Self::ApBySample => results.ap_by_sample,
            Self::ApChosen => results.ap_chosen,
            Self::Bwt => results.bwt,
            Self::Forgetting => results.forgetting,
            Self::Fwt => results.fwt,
            Self::LearningAccuracy => results.learning_accuracy,
        }
    }
}

/// Reads the metrics that are flattened into a struct, as its fields are read: a missing one is null, and other keys are
/// passed over.
pub(crate) fn flattened<'de, D, T>(deserializer: D) -> Result<BTreeMap<Metric, T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let mut keys = serde_json::Map::deserialize(deserializer)?;
    let value = |metric: Metric| {
        let value = keys.remove(metric.key()).unwrap_or_default();
        let value = serde_json::from_value(value).map_err(D::Error::custom);
        value.map(|value| (metric, value))
    };
    Metric::ALL.into_iter().map(value).collect()
}

/// The scores of all tasks after each task, and those of the untouched backbone.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct AccuracyMatrix {
    /// `R`: one row for each trained task, one column for each task.
    rows: Vec<Vec<Option<f64>>>,
    /// `R0`.
    zero_shot: Vec<Option<f64>>,
}

impl AccuracyMatrix {
    /// A matrix of `tasks` tasks without any score.
    pub fn new(tasks: usize) -> Self {
        Self {
            rows: vec![vec![None; tasks]; tasks],
            zero_shot: vec![None; tasks],
        }
    }

    /// The number of tasks.
    pub fn tasks(&self) -> usize {
        self.rows.len()
    }

    /// Makes room for more tasks; the scores stay.
    pub fn grow(&mut self, tasks: usize) {
        let tasks = tasks.max(self.tasks());
        self.rows.resize(tasks, Vec::new());
        self.rows.iter_mut().for_each(|row| row.resize(tasks, None));
        self.zero_shot.resize(tasks, None);
    }

    /// Records the score, in percent, on task `task` after training task `after` (both from 0).
    ///
    /// # Panics
    /// If a task is not in the matrix.
    pub fn set(&mut self, after: usize, task: usize, score: f64) {
        self.rows[after][task] = Some(score);
    }

    /// Records the score, in percent, of the untouched backbone on task `task` (from 0).
    ///
    /// # Panics
    /// If the task is not in the matrix.
    pub fn set_zero_shot(&mut self, task: usize, score: f64) {
        self.zero_shot[task] = Some(score);
    }

    /// The score on task `task` after training task `after`; `None` when it was not evaluated.
    pub fn get(&self, after: usize, task: usize) -> Option<f64> {
        *self.rows.get(after)?.get(task)?
    }

    /// The rows of `R`.
    pub fn rows(&self) -> &[Vec<Option<f64>>] {
        &self.rows
    }

    /// `R0`, the scores of the untouched backbone.
    pub fn zero_shot(&self) -> &[Option<f64>] {
        &self.zero_shot
    }

    /// AP, the mean over tasks after the last one.
    pub fn average_performance(&self) -> Option<f64> {
        let last = self.tasks().checked_sub(1)?;
        mean((0..self.tasks()).map(|task| self.get(last, task)))
    }

    /// AP weighted by the number of evaluation examples of each task, `sum_j n_j R[T][j] / sum_j
    /// n_j`.
    ///
    /// `None` also when `samples` does not hold one number for each task.
    pub fn average_performance_by_sample(&self, samples: &[usize]) -> Option<f64> {
        let last = self.tasks().checked_sub(1)?;
        let total: usize = samples.iter().sum();
        if samples.len() != self.tasks() || total == 0 {
            return None;
        }
        let weighted = samples
            .iter()
            .enumerate()
            .map(|(task, &n)| Some(self.get(last, task)? * n as f64));
        Some(weighted.sum::<Option<f64>>()? / total as f64)
    }

    /// BWT; negative when tasks are forgotten.
    pub fn backward_transfer(&self) -> Option<f64> {
        let last = self.tasks().checked_sub(1)?;
        mean((0..last).map(|task| Some(self.get(last, task)? - self.get(task, task)?)))
    }

    /// F, the mean distance from the best score so far to the last one.
    pub fn forgetting(&self) -> Option<f64> {
        let last = self.tasks().checked_sub(1)?;
        mean((0..last).map(|task| forgetting_of(&self.rows, task)))
    }

    /// FWT, what earlier tasks add to a task before it is trained.
    pub fn forward_transfer(&self) -> Option<f64> {
        mean((1..self.tasks()).map(|task| Some(self.get(task - 1, task)? - self.zero_shot[task]?)))
    }

    /// LA, the mean score on a task right after it was trained.
    pub fn learning_accuracy(&self) -> Option<f64> {
        mean((0..self.tasks()).map(|task| self.get(task, task)))
    }
}

/// What F is the mean of: `max_{i in j..T-1} R[i][j] - R[T][j]` of task j (from 0), from the rows of R.
///
/// `None` if a score is missing, or for the last task.
pub fn forgetting_of(rows: &[Vec<Option<f64>>], task: usize) -> Option<f64> {
    let (last, earlier) = rows.split_last()?;
    let scores = earlier.get(task..)?.iter().map(|row| *row.get(task)?);
    let best = scores.reduce(|best, score| Some(best?.max(score?)))??;
    Some(best - (*last.get(task)?)?)
}

/// Mean and standard deviation, over seeds for example.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation of a sample, `sqrt(sum (x - mean)^2 / (n - 1))`; `None` for a single value.
    pub sd: Option<f64>,
    /// The number of values.
    pub n: usize,
}

/// Rounds to some decimals, halves away from 0, and -0 to 0: as tables show numbers and rank them. What is a half but for its last
/// bits is one: means of the same scores in another order of adding must not look different.
pub fn rounded(number: f64, decimals: usize) -> f64 {
    let unit = 10.0_f64.powi(i32::try_from(decimals).unwrap_or(0));
    let exact = (number * unit * 1e6).round() / 1e6;
    exact.round() / unit + 0.0
}

impl Spread {
    /// `mean ± sd` with some decimals ([`rounded`]), or the mean alone.
    pub fn text(self, decimals: usize) -> String {
        let number = |number| format!("{:.decimals$}", rounded(number, decimals));
        match self.sd {
            None => number(self.mean),
            Some(sd) => format!("{} ± {}", number(self.mean), number(sd)),
        }
    }

    /// The spread of values; `None` without any.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Self {
            mean,
            sd: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()),
            n,
        })
    }
}

/// The mean; `None` when a value is missing or there are none.
pub(crate) fn mean(values: impl ExactSizeIterator<Item = Option<f64>>) -> Option<f64> {
    let count = values.len();
    let sum = values.sum::<Option<f64>>()?;
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matrix(rows: &[&[f64]], zero_shot: &[f64]) -> AccuracyMatrix {
        let mut matrix = AccuracyMatrix::new(rows.len());
        for (after, row) in rows.iter().enumerate() {
            row.iter()
                .enumerate()
                .for_each(|(task, &score)| matrix.set(after, task, score));
        }
        zero_shot
            .iter()
            .enumerate()
            .for_each(|(task, &score)| matrix.set_zero_shot(task, score));
        matrix
    }

    fn close(found: Option<f64>, expected: f64, tolerance: f64) {
        let found = found.expect("a metric");
        assert!(
            (found - expected).abs() <= tolerance,
            "{found} is not {expected}"
        );
    }

    #[test]
    fn by_hand() {
        let matrix = matrix(
            &[
                &[80.0, 30.0, 20.0],
                &[85.0, 70.0, 28.0],
                &[60.0, 75.0, 90.0],
            ],
            &[10.0, 25.0, 20.0],
        );
        close(matrix.average_performance(), 75.0, 1e-12);
        // (60 - 80 + 75 - 70) / 2
        close(matrix.backward_transfer(), -7.5, 1e-12);
        // (85 - 60 + 70 - 75) / 2: the maximum leaves out the last row.
        close(matrix.forgetting(), 10.0, 1e-12);
        // (30 - 25 + 28 - 20) / 2
        close(matrix.forward_transfer(), 6.5, 1e-12);
        close(matrix.learning_accuracy(), 80.0, 1e-12);
        // (1 * 60 + 1 * 75 + 2 * 90) / 4
        close(
            matrix.average_performance_by_sample(&[10, 10, 20]),
            78.75,
            1e-12,
        );
        assert_eq!(matrix.average_performance_by_sample(&[10, 10]), None);
        assert_eq!(matrix.average_performance_by_sample(&[0; 3]), None);
    }

    #[test]
    fn keys_are_those_of_the_file() {
        let matrix = matrix(&[&[80.0, 25.0], &[60.0, 90.0]], &[10.0, 20.0]);
        let tasks = vec!["a".to_owned(), "b".to_owned()];
        let results = RunResults::new("o-lora", 1, tasks, vec![10, 30], &matrix);
        let json = serde_json::to_value(&results).unwrap();
        for metric in Metric::ALL {
            assert_eq!(json[metric.key()].as_f64(), metric.of(&results));
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.key());
        }
    }

    #[test]
    fn published_logs_of_o_lora() {
        // Order 1, T5-large: dbpedia, amazon, yahoo, agnews after the last task; 7600 test examples
        // each.
        let mut order1 = AccuracyMatrix::new(4);
        let last = [97.74, 56.07, 71.04, 88.62];
        last.into_iter()
            .enumerate()
            .for_each(|(task, score)| order1.set(3, task, score));
        close(order1.average_performance(), 78.37, 0.005);
        close(
            order1.average_performance_by_sample(&[7600; 4]),
            78.37,
            0.005,
        );
        assert_eq!(order1.backward_transfer(), None);

        // The long order 6: last row, diagonal, test examples.
        let long = [
            (62.14, 60.6, 7600), // yelp
            (60.0, 60.8, 7600),  // amazon
            (61.24, 69.4, 7600), // MNLI
            (73.21, 87.5, 56),   // CB
            (64.0, 54.0, 100),   // COPA
            (72.79, 72.8, 7600), // QQP
            (69.68, 66.8, 277),  // RTE
            (94.93, 94.3, 7600), // IMDB
            (91.97, 91.7, 872),  // SST-2
            (98.41, 98.7, 7600), // dbpedia
            (86.42, 87.3, 7600), // agnews
            (65.20, 65.4, 7600), // yahoo
            (61.14, 62.3, 4848), // MultiRC
            (69.45, 69.2, 3270), // BoolQA
            (52.04, 52.0, 638),  // WiC
        ];
        let mut matrix = AccuracyMatrix::new(long.len());
        for (task, &(last, diagonal, _)) in long.iter().enumerate() {
            matrix.set(task, task, diagonal);
            matrix.set(long.len() - 1, task, last);
        }
        let samples: Vec<usize> = long.iter().map(|row| row.2).collect();
        close(matrix.average_performance(), 72.17, 0.005);
        close(matrix.average_performance_by_sample(&samples), 73.88, 0.005);
        close(matrix.backward_transfer(), -0.73, 0.005);
        assert_eq!(
            matrix.forgetting(),
            None,
            "only two entries of each column are known"
        );
    }

    #[test]
    fn one_task_or_none() {
        let one = matrix(&[&[50.0]], &[10.0]);
        assert_eq!(one.average_performance(), Some(50.0));
        assert_eq!(one.learning_accuracy(), Some(50.0));
        let transfer = [
            one.backward_transfer(),
            one.forgetting(),
            one.forward_transfer(),
        ];
        assert_eq!(transfer, [None; 3]);
        let none = AccuracyMatrix::new(0);
        assert_eq!(
            (none.average_performance(), none.learning_accuracy()),
            (None, None)
        );
    }

    #[test]
    fn missing_entries_are_not_zero() {
        // As `eval.tasks = "seen"` leaves it.
        let mut seen = AccuracyMatrix::new(2);
        seen.set(0, 0, 80.0);
        seen.set(1, 0, 60.0);
        assert_eq!(seen.average_performance(), None);
        seen.set(1, 1, 70.0);
        assert_eq!(seen.average_performance(), Some(65.0));
        assert_eq!(seen.backward_transfer(), Some(-20.0));
        assert_eq!(seen.forgetting(), Some(20.0));
        let of = |task| forgetting_of(seen.rows(), task);
        assert_eq!((of(0), of(1), of(9)), (Some(20.0), None, None));
        assert_eq!(seen.forward_transfer(), None);
        seen.grow(3);
        assert_eq!(
            (seen.tasks(), seen.get(1, 0), seen.get(2, 2)),
            (3, Some(60.0), None)
        );
        assert_eq!(seen.average_performance(), None);
        assert_eq!(seen.get(9, 9), None);
    }

    fn full() -> impl Strategy<Value = AccuracyMatrix> {
        (2_usize..7).prop_flat_map(|tasks| {
            prop::collection::vec(0.0..=100.0_f64, tasks * (tasks + 1)).prop_map(move |scores| {
                let rows: Vec<&[f64]> = scores.chunks(tasks).collect();
                matrix(&rows[..tasks], rows[tasks])
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn relations(matrix in full(), count in 1_usize..50) {
            let tasks = matrix.tasks() as f64;
            let (ap, la) = (matrix.average_performance().unwrap(), matrix.learning_accuracy().unwrap());
            let (bwt, forgetting) = (matrix.backward_transfer().unwrap(), matrix.forgetting().unwrap());
            // The last task is in AP and LA but not in BWT.
            prop_assert!((bwt * (tasks - 1.0) / tasks - (ap - la)).abs() < 1e-9);
            // The best score so far is at least the diagonal.
            prop_assert!(forgetting >= -bwt - 1e-9);
            let by_sample = matrix.average_performance_by_sample(&vec![count; matrix.tasks()]);
            prop_assert!((by_sample.unwrap() - ap).abs() < 1e-9);
        }

        #[test]
        fn nothing_changes_nothing_transfers(scores in prop::collection::vec(0.0..=100.0_f64, 2..7)) {
            let matrix = matrix(&vec![&scores[..]; scores.len()], &scores);
            let transfer =
                [matrix.backward_transfer(), matrix.forgetting(), matrix.forward_transfer()];
            prop_assert_eq!(transfer, [Some(0.0); 3]);
            prop_assert_eq!(matrix.average_performance(), matrix.learning_accuracy());
        }

        #[test]
        fn survives_json(matrix in full()) {
            let text = serde_json::to_string(&matrix).unwrap();
            prop_assert_eq!(serde_json::from_str::<AccuracyMatrix>(&text).unwrap(), matrix);
        }
    }
}
