//! What several orders of the same tasks say together.

use std::collections::BTreeMap;

use aso_trainer::metrics::{Metric, Spread};
use serde::Serialize;

use crate::ReportError;
use crate::compare::ScoreCache;
use crate::group::{Group, Stream};
use crate::record::RunRecord;
use crate::statistics::mean;
use crate::summary::{Difference, ResultLine, SeedPairs};

/// Several orders of the same tasks taken together. The value of a metric for a seed is its mean over the orders; everything else
/// is as for one order, over the seeds. So intervals are about other seeds of these orders, not about other orders.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AcrossOrders {
    /// The orders: those in which the reference has runs, or all if it has none.
    pub orders: Vec<Vec<String>>,
    /// The groups that have a seed in common in all of these orders.
    pub groups: Vec<AcrossGroup>,
    /// Each other one of these groups minus the reference, over the seeds that both have in all orders.
    pub differences: Vec<Difference>,
}

/// A group over several orders.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AcrossGroup {
    /// What the group is called.
    pub label: String,
    /// The method's name.
    pub method: String,
    /// The seeds that it has in every order.
    pub seeds: Vec<u64>,
    /// Every metric over those seeds for which every order has it.
    pub metrics: BTreeMap<Metric, Option<Spread>>,
}

/// The runs of a group: those of each order.
struct Member<'a> {
    groups: Vec<&'a Group>,
    seeds: Vec<u64>,
}

impl AcrossOrders {
    /// One for each set of tasks of which there are several orders with a group in common.
    pub(crate) fn of(
        streams: &[Stream],
        reference: &str,
        scores: &mut ScoreCache,
    ) -> Result<Vec<Self>, ReportError> {
        let mut sets: Vec<(Vec<&String>, Vec<&Stream>)> = Vec::new();
        for stream in streams {
            let mut tasks: Vec<&String> = stream.tasks.iter().collect();
            tasks.sort_unstable();
            match sets.iter_mut().find(|(known, _)| *known == tasks) {
                Some((_, orders)) => orders.push(stream),
                None => sets.push((tasks, vec![stream])),
            }
        }
        sets.into_iter()
            .filter_map(|(_, orders)| Self::together(orders, reference, scores).transpose())
            .collect()
    }

    /// `None` unless several orders have a group in common.
    fn together(
        orders: Vec<&Stream>,
        reference: &str,
        scores: &mut ScoreCache,
    ) -> Result<Option<Self>, ReportError> {
        let has_reference = |stream: &&Stream| stream.group(reference).is_some();
        // A stray run in a further order must not put all others aside.
        let orders: Vec<&Stream> = match orders.iter().any(has_reference) {
            true => orders.into_iter().filter(has_reference).collect(),
            false => orders,
        };
        let [first, _, ..] = &orders[..] else {
            return Ok(None);
        };
        let labels = first.groups.iter().map(|group| group.label.as_str());
        let members: Vec<Member<'_>> = labels
            .filter_map(|label| Member::of(&orders, label))
            .collect();
        let compared = members.iter().find(|member| member.label() == reference);
        let mut differences = Vec::new();
        for other in members.iter().filter(|other| other.label() != reference) {
            let pairs = compared.map(|reference| other.pairs(reference));
            if let Some(seeds) = pairs {
                differences.push(Difference::between(other.label(), &seeds, scores)?);
            }
        }
        Ok((!members.is_empty()).then(|| Self {
            orders: orders.iter().map(|stream| stream.tasks.clone()).collect(),
            groups: members.iter().map(Member::summary).collect(),
            differences,
        }))
    }

    /// The lines of the results table.
    pub(crate) fn lines(&self) -> Vec<ResultLine<'_>> {
        let groups = self.groups.iter();
        groups
            .map(|group| ResultLine {
                label: &group.label,
                method: &group.method,
                seeds: group.seeds.len(),
                metrics: &group.metrics,
            })
            .collect()
    }
}

impl<'a> Member<'a> {
    /// `None` if an order lacks the group, or no seed is in every order.
    fn of(orders: &[&'a Stream], label: &str) -> Option<Self> {
        let groups = orders.iter().map(|stream| stream.group(label));
        let groups: Vec<&Group> = groups.collect::<Option<_>>()?;
        let (first, others) = groups.split_first()?;
        let everywhere = |seed: &u64| others.iter().all(|group| group.with_seed(*seed).is_some());
        let seeds = first.runs.iter().map(|run| run.results.seed);
        let seeds: Vec<u64> = seeds.filter(everywhere).collect();
        (!seeds.is_empty()).then_some(Self { groups, seeds })
    }

    fn label(&self) -> &str {
        &self.groups[0].label
    }

    /// The mean over the orders; `None` if one has no value.
    fn value(&self, seed: u64, metric: Metric) -> Option<f64> {
        let of = |group: &&Group| metric.of(&group.with_seed(seed)?.results);
        let values: Vec<f64> = self.groups.iter().map(of).collect::<Option<_>>()?;
        mean(&values)
    }

    fn summary(&self) -> AcrossGroup {
        let over = |metric: Metric| {
            let values = self
                .seeds
                .iter()
                .filter_map(|seed| self.value(*seed, metric));
            (metric, Spread::of(&values.collect::<Vec<_>>()))
        };
        AcrossGroup {
            label: self.label().to_owned(),
            method: self.groups[0].method().to_owned(),
            seeds: self.seeds.clone(),
            metrics: Metric::ALL.map(over).into(),
        }
    }

    /// The runs of each seed that both have, with those of the other in the same order.
    fn pairs(&self, other: &Self) -> Vec<SeedPairs<'a>> {
        let runs = |member: &Self, seed: u64| -> Option<Vec<&'a RunRecord>> {
            let of = |group: &&'a Group| group.with_seed(seed);
            member.groups.iter().map(of).collect()
        };
        let pairs = |seed: &u64| {
            let own = runs(self, *seed)?;
            Some(own.into_iter().zip(runs(other, *seed)?).collect())
        };
        self.seeds.iter().filter_map(pairs).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::group::group;
    use crate::record::RunRecord;
    use crate::summary::ReportSummary;
    use crate::testing::{results, write_run};

    type Run = (&'static [&'static str], &'static str, u64, [f64; 4]);

    fn across(dir: &Path, runs: &[Run]) -> Vec<AcrossOrders> {
        let records = runs
            .iter()
            .enumerate()
            .map(|(at, (order, method, seed, rows))| {
                let mut results = results(method, *seed, rows);
                results.tasks = order.iter().map(|task| (*task).to_owned()).collect();
                let run = dir.join(at.to_string());
                write_run(&run, &results);
                (None, RunRecord::read(&run).unwrap())
            });
        let streams = group(records.collect()).unwrap();
        ReportSummary::new(&streams, None).unwrap().across
    }

    const AB: &[&str] = &["a", "b"];
    const BA: &[&str] = &["b", "a"];

    /// AP is the mean of the last two numbers.
    const RUNS: &[Run] = &[
        (AB, "aso-lora", 1, [80.0, 25.0, 60.0, 90.0]),
        (AB, "aso-lora", 2, [80.0, 25.0, 64.0, 90.0]),
        (AB, "aso-lora", 3, [80.0, 25.0, 0.0, 0.0]),
        (AB, "o-lora", 2, [80.0, 25.0, 50.0, 80.0]),
        (AB, "o-lora", 1, [80.0, 25.0, 61.0, 90.0]),
        (BA, "aso-lora", 1, [80.0, 25.0, 70.0, 90.0]),
        (BA, "aso-lora", 2, [80.0, 25.0, 76.0, 90.0]),
        (BA, "o-lora", 1, [80.0, 25.0, 73.0, 90.0]),
        (BA, "o-lora", 2, [80.0, 25.0, 90.0, 90.0]),
        // In one order only; an order and tasks that the reference does not have.
        (AB, "ewc", 1, [80.0, 25.0, 60.0, 90.0]),
        (&["a", "c"], "aso-lora", 1, [80.0, 25.0, 60.0, 90.0]),
    ];

    // aso-lora: seed 1 (75 + 80) / 2, seed 2 (77 + 83) / 2; o-lora: (75.5 + 81.5) / 2, (65 + 90) / 2
    // import numpy as np; d = np.array([78.5 - 77.5, 77.5 - 80]); d.mean(), d.std(ddof=1)
    #[test]
    fn a_seed_counts_once_with_its_mean_over_orders() {
        let dir = tempfile::tempdir().unwrap();
        let found = across(dir.path(), RUNS);
        let [across] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(across.orders, [AB, BA]);
        let groups = across.groups.iter();
        let groups: Vec<(&str, &[u64])> = groups
            .map(|group| (group.label.as_str(), &group.seeds[..]))
            .collect();
        assert_eq!(groups, [("aso-lora", &[1, 2][..]), ("o-lora", &[1, 2])]);
        let ap = across.groups[0].metrics[&Metric::Ap].unwrap();
        assert_eq!((ap.mean, ap.n), (78.75, 2));
        let [difference] = &across.differences[..] else {
            panic!("{:?}", across.differences)
        };
        assert_eq!(difference.seeds, [1, 2]);
        let ap = difference.metrics[&Metric::Ap].as_ref().unwrap();
        assert_eq!((ap.mean, ap.n), (-0.75, 2));
        assert!((ap.sd.unwrap() - 3.5 / f64::sqrt(2.0)).abs() < 1e-12);
    }

    #[test]
    fn a_missing_value_or_a_stray_order_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        // The second order has no run of the reference.
        let mut runs = RUNS[..5].to_vec();
        runs.push((BA, "ewc", 1, [80.0, 25.0, 60.0, 90.0]));
        assert_eq!(across(&dir.path().join("stray"), &runs), []);
        let mut runs = RUNS.to_vec();
        // One number of one order: the seed has no mean over the orders.
        let unknown = runs
            .iter_mut()
            .find(|run| (run.0, run.1, run.2) == (BA, "o-lora", 2));
        // JSON has no NaN: it is null in the file.
        unknown.unwrap().3[3] = f64::NAN;
        let found = across(&dir.path().join("unknown"), &runs);
        let ap = |group: usize| found[0].groups[group].metrics[&Metric::Ap].unwrap();
        assert_eq!((ap(0).n, ap(1).n, ap(1).mean), (2, 1, 78.5));
    }
}
