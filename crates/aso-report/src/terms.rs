//! Metrics as sums over scores.

use aso_trainer::RunResults;
use aso_trainer::metrics::Metric;

/// A row of scores, one for each task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Row {
    /// Of the untouched backbone.
    Backbone,
    /// Of the accuracy matrix, after training this task, from 0.
    After(usize),
    /// After the last task, with answers chosen among labels.
    Chosen,
}

impl Row {
    /// The score on a task, from 0.
    pub(crate) fn score(self, results: &RunResults, task: usize) -> Option<f64> {
        match self {
            Self::Backbone => results.zero_shot[task],
            Self::After(after) => results.accuracy[after][task],
            Self::Chosen => *results.chosen.get(task)?,
        }
    }
}

/// A score with its share in a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Term {
    /// The row that it stands in.
    pub(crate) row: Row,
    /// The task evaluated, from 0.
    pub(crate) task: usize,
    /// The share.
    pub(crate) share: f64,
}

/// The metric as a sum over scores, `sum share * R[row][task]`, for tasks with `samples` examples; `None` for forgetting,
/// whose maximum is no sum, and where the metric is not defined.
pub(crate) fn terms(metric: Metric, samples: &[usize]) -> Option<Vec<Term>> {
    let tasks = samples.len();
    let last = tasks.checked_sub(1)?;
    let term = |row, task, share| Term { row, task, share };
    let past = (last > 0).then_some(1.0 / last as f64);
    Some(match metric {
        Metric::Ap | Metric::ApChosen => {
            let share = 1.0 / tasks as f64;
            let row = match metric {
                Metric::ApChosen => Row::Chosen,
                _ => Row::After(last),
            };
            (0..tasks).map(|task| term(row, task, share)).collect()
        }
        Metric::ApBySample => {
            let total: usize = samples.iter().sum();
            let share = |task: usize| samples[task] as f64 / total as f64;
            (total > 0).then_some(())?;
            (0..tasks)
                .map(|task| term(Row::After(last), task, share(task)))
                .collect()
        }
        Metric::Bwt => {
            let share = past?;
            (0..last)
                .flat_map(|task| {
                    [
                        term(Row::After(last), task, share),
                        term(Row::After(task), task, -share),
                    ]
                })
                .collect()
        }
        Metric::Fwt => {
            let share = past?;
            (1..tasks)
                .flat_map(|task| {
                    [
                        term(Row::After(task - 1), task, share),
                        term(Row::Backbone, task, -share),
                    ]
                })
                .collect()
        }
        Metric::LearningAccuracy => {
            let share = 1.0 / tasks as f64;
            (0..tasks)
                .map(|task| term(Row::After(task), task, share))
                .collect()
        }
        Metric::Forgetting => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::results;

    #[test]
    fn terms_add_up_to_the_metric() {
        let results = results("o-lora", 1, &[80.0, 25.0, 60.0, 90.0]);
        for metric in Metric::ALL {
            let Some(terms) = terms(metric, &results.evaluation_samples) else {
                assert_eq!(metric, Metric::Forgetting);
                continue;
            };
            let entry = |term: &Term| term.row.score(&results, term.task).unwrap();
            let sum: f64 = terms.iter().map(|term| term.share * entry(term)).sum();
            let expected = metric.of(&results).unwrap();
            assert!(
                (sum - expected).abs() < 1e-12,
                "{metric:?}: {sum} {expected}"
            );
        }
        assert_eq!(terms(Metric::Bwt, &[5]), None);
        assert_eq!(terms(Metric::Ap, &[]), None);
        assert_eq!(terms(Metric::ApBySample, &[0, 0]), None);
    }
}
