//! The metrics of a run, and what each is made of.

use aso_trainer::RunResults;
use serde::Serialize;

/// A continual-learning metric over the accuracy matrix (`docs/method.md`, Metrics).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// AP, the mean over tasks after the last one.
    Ap,
    /// AP weighted by evaluation examples.
    ApBySample,
    /// Backward transfer.
    Bwt,
    /// Forgetting.
    Forgetting,
    /// Forward transfer.
    Fwt,
    /// Learning accuracy.
    LearningAccuracy,
}

/// An entry of the accuracy matrix with its share in a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Term {
    /// The task trained last, from 0; `None` for the untouched backbone.
    pub(crate) after: Option<usize>,
    /// The task evaluated, from 0.
    pub(crate) task: usize,
    /// The share.
    pub(crate) share: f64,
}

impl Metric {
    /// All metrics in the order of tables.
    pub const ALL: [Self; 6] = [
        Self::Ap,
        Self::ApBySample,
        Self::Bwt,
        Self::Forgetting,
        Self::Fwt,
        Self::LearningAccuracy,
    ];

    /// The key in `results.json` and in the report's JSON and CSV.
    pub fn key(self) -> &'static str {
        match self {
            Self::Ap => "ap",
            Self::ApBySample => "ap_by_sample",
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

    /// The value in `results.json`.
    pub fn of(self, results: &RunResults) -> Option<f64> {
        match self {
            Self::Ap => results.ap,
            Self::ApBySample => results.ap_by_sample,
            Self::Bwt => results.bwt,
            Self::Forgetting => results.forgetting,
            Self::Fwt => results.fwt,
            Self::LearningAccuracy => results.learning_accuracy,
        }
    }

    /// The metric as a sum over entries of the accuracy matrix, `sum share * R[after][task]`, for tasks with
    /// `samples` examples; `None` for forgetting, whose maximum is no sum, and where the metric is not defined.
    pub(crate) fn terms(self, samples: &[usize]) -> Option<Vec<Term>> {
        let tasks = samples.len();
        let last = tasks.checked_sub(1)?;
        let term = |after, task, share| Term { after, task, share };
        let past = (last > 0).then_some(1.0 / last as f64);
        Some(match self {
            Self::Ap => {
                let share = 1.0 / tasks as f64;
                (0..tasks)
                    .map(|task| term(Some(last), task, share))
                    .collect()
            }
            Self::ApBySample => {
                let total: usize = samples.iter().sum();
                let share = |task: usize| samples[task] as f64 / total as f64;
                (total > 0).then_some(())?;
                (0..tasks)
                    .map(|task| term(Some(last), task, share(task)))
                    .collect()
            }
            Self::Bwt => {
                let share = past?;
                (0..last)
                    .flat_map(|task| {
                        [
                            term(Some(last), task, share),
                            term(Some(task), task, -share),
                        ]
                    })
                    .collect()
            }
            Self::Fwt => {
                let share = past?;
                (1..tasks)
                    .flat_map(|task| [term(Some(task - 1), task, share), term(None, task, -share)])
                    .collect()
            }
            Self::LearningAccuracy => {
                let share = 1.0 / tasks as f64;
                (0..tasks)
                    .map(|task| term(Some(task), task, share))
                    .collect()
            }
            Self::Forgetting => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::results;

    #[test]
    fn terms_add_up_to_the_metric() {
        let results = results("o-lora", 1, &[80.0, 25.0, 60.0, 90.0]);
        for metric in Metric::ALL {
            let Some(terms) = metric.terms(&results.evaluation_samples) else {
                assert_eq!(metric, Metric::Forgetting);
                continue;
            };
            let entry = |term: &Term| match term.after {
                Some(after) => results.accuracy[after][term.task].unwrap(),
                None => results.zero_shot[term.task].unwrap(),
            };
            let sum: f64 = terms.iter().map(|term| term.share * entry(term)).sum();
            let expected = metric.of(&results).unwrap();
            assert!(
                (sum - expected).abs() < 1e-12,
                "{metric:?}: {sum} {expected}"
            );
        }
        assert_eq!(Metric::Bwt.terms(&[5]), None);
        assert_eq!(Metric::Ap.terms(&[]), None);
        assert_eq!(Metric::ApBySample.terms(&[0, 0]), None);
    }

    #[test]
    fn keys_are_those_of_the_file() {
        let results = serde_json::to_value(results("x", 1, &[1.0; 4])).unwrap();
        for metric in Metric::ALL {
            assert!(results.get(metric.key()).is_some());
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.key());
        }
    }
}
