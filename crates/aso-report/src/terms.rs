//! Metrics as sums over entries of the accuracy matrix.

use aso_trainer::metrics::Metric;

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

/// The metric as a sum over entries of the accuracy matrix, `sum share * R[after][task]`, for tasks with
/// `samples` examples; `None` for forgetting, whose maximum is no sum, and where the metric is not defined.
pub(crate) fn terms(metric: Metric, samples: &[usize]) -> Option<Vec<Term>> {
    let tasks = samples.len();
    let last = tasks.checked_sub(1)?;
    let term = |after, task, share| Term { after, task, share };
    let past = (last > 0).then_some(1.0 / last as f64);
    Some(match metric {
        Metric::Ap => {
            let share = 1.0 / tasks as f64;
            (0..tasks)
                .map(|task| term(Some(last), task, share))
                .collect()
        }
        Metric::ApBySample => {
            let total: usize = samples.iter().sum();
            let share = |task: usize| samples[task] as f64 / total as f64;
            (total > 0).then_some(())?;
            (0..tasks)
                .map(|task| term(Some(last), task, share(task)))
                .collect()
        }
        Metric::Bwt => {
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
        Metric::Fwt => {
            let share = past?;
            (1..tasks)
                .flat_map(|task| [term(Some(task - 1), task, share), term(None, task, -share)])
                .collect()
        }
        Metric::LearningAccuracy => {
            let share = 1.0 / tasks as f64;
            (0..tasks)
                .map(|task| term(Some(task), task, share))
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
        assert_eq!(terms(Metric::Bwt, &[5]), None);
        assert_eq!(terms(Metric::Ap, &[]), None);
        assert_eq!(terms(Metric::ApBySample, &[0, 0]), None);
    }
}
