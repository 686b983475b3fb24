//! What several orders of the same tasks say together.

use std::collections::{BTreeMap, BTreeSet};

use aso_trainer::RunResults;
use aso_trainer::metrics::Spread;
use serde::Serialize;

use crate::group::{Group, Stream};
use crate::metric::Metric;
use crate::record::RunRecord;
use crate::summary::{Difference, ResultLine, difference};

/// All orders of the same tasks together. A method's numbers are over all its runs, and it is compared with the reference over all
/// pairs of an order and a seed that both have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AcrossOrders {
    /// The tasks, by name.
    pub tasks: Vec<String>,
    /// How many orders of them there are.
    pub orders: usize,
    /// The groups that have runs in every order: means over different orders would not compare.
    pub groups: Vec<AcrossGroup>,
    /// Each other one of these groups minus the reference; empty where the reference is none of them. Its seeds are those of all
    /// pairs, order by order; its intervals are over pairs, and there are none over examples.
    pub differences: Vec<Difference>,
}

/// A group over all orders.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AcrossGroup {
    /// What the group is called.
    pub label: String,
    /// The method's name.
    pub method: String,
    /// Its runs in all orders.
    pub runs: usize,
    /// Every metric over the runs that have it.
    pub metrics: BTreeMap<Metric, Option<Spread>>,
}

impl AcrossOrders {
    /// One for each set of tasks of which there are several orders with a group in common.
    pub(crate) fn of(streams: &[Stream], reference: &str) -> Vec<Self> {
        let names = |stream: &Stream| -> Vec<String> {
            let names: BTreeSet<String> = stream.tasks.iter().cloned().collect();
            names.into_iter().collect()
        };
        let mut sets: Vec<(Vec<String>, Vec<&Stream>)> = Vec::new();
        for stream in streams {
            let tasks = names(stream);
            match sets.iter_mut().find(|(known, _)| *known == tasks) {
                Some((_, orders)) => orders.push(stream),
                None => sets.push((tasks, vec![stream])),
            }
        }
        let several = sets.into_iter().filter(|(_, orders)| orders.len() > 1);
        several
            .map(|(tasks, orders)| Self::compare(tasks, &orders, reference))
            .filter(|across| !across.groups.is_empty())
            .collect()
    }

    fn compare(tasks: Vec<String>, orders: &[&Stream], reference: &str) -> Self {
        let group = |stream: &Stream, label: &str| -> Option<Group> {
            let mut groups = stream.groups.iter();
            groups.find(|group| group.label == label).cloned()
        };
        // The group of each order, where every order has one.
        let everywhere = |label: &str| -> Option<Vec<Group>> {
            orders.iter().map(|stream| group(stream, label)).collect()
        };
        let labels = orders[0].groups.iter().map(|group| group.label.as_str());
        let groups: Vec<(&str, Vec<Group>)> = labels
            .filter_map(|label| Some((label, everywhere(label)?)))
            .collect();
        let compared = groups.iter().find(|(label, _)| *label == reference);
        let differences = compared.into_iter().flat_map(|(_, reference)| {
            let others = groups
                .iter()
                .filter(|(_, other)| other[0].label != reference[0].label);
            others.map(move |(label, group)| {
                let pairs = group.iter().zip(reference);
                let pairs: Vec<(&RunRecord, &RunRecord)> = pairs
                    .flat_map(|(group, reference)| group.pairs(reference))
                    .collect();
                difference(label, &pairs, &BTreeMap::new())
            })
        });
        Self {
            tasks,
            orders: orders.len(),
            differences: differences.collect(),
            groups: groups
                .iter()
                .map(|(label, groups)| AcrossGroup::new(label, groups))
                .collect(),
        }
    }

    /// The lines of the results table.
    pub(crate) fn lines(&self) -> Vec<ResultLine<'_>> {
        let groups = self.groups.iter();
        groups
            .map(|group| ResultLine {
                label: &group.label,
                method: &group.method,
                runs: group.runs,
                metrics: &group.metrics,
            })
            .collect()
    }
}

impl AcrossGroup {
    fn new(label: &str, groups: &[Group]) -> Self {
        let runs: Vec<&RunResults> = groups
            .iter()
            .flat_map(|group| group.runs.iter().map(|run| &run.results))
            .collect();
        let over = |metric: Metric| {
            let values: Vec<f64> = runs.iter().filter_map(|run| metric.of(run)).collect();
            (metric, Spread::of(&values))
        };
        Self {
            label: label.to_owned(),
            method: groups[0].method().to_owned(),
            runs: runs.len(),
            metrics: Metric::ALL.map(over).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::group;
    use crate::summary::ReportSummary;
    use crate::testing::{results, write_run};

    /// Two orders of two tasks: seeds 1 and 2 of two methods in both, a third method in one of them, another set of tasks.
    #[test]
    fn orders_of_the_same_tasks_are_taken_together() {
        let dir = tempfile::tempdir().unwrap();
        let mut runs = Vec::new();
        let mut add = |order: &[&str], method: &str, seed, rows: [f64; 4]| {
            let mut results = results(method, seed, &rows);
            results.tasks = order.iter().map(|task| (*task).to_owned()).collect();
            let run = dir.path().join(runs.len().to_string());
            write_run(&run, &results);
            runs.push((None, RunRecord::read(&run).unwrap()));
        };
        for (order, gain) in [(["a", "b"], 0.0), (["b", "a"], 8.0)] {
            for seed in [1, 2] {
                add(&order, "aso-lora", seed, [80.0, 25.0, 60.0, 90.0 + gain]);
                add(
                    &order,
                    "o-lora",
                    seed,
                    [80.0, 25.0, 60.0, 88.0 + seed as f64],
                );
            }
        }
        add(&["a", "b"], "ewc", 1, [80.0, 25.0, 60.0, 90.0]);
        add(&["a", "c"], "aso-lora", 1, [80.0, 25.0, 60.0, 90.0]);
        let summary = ReportSummary::new(&group(runs).unwrap(), None).unwrap();
        let [across] = &summary.across[..] else {
            panic!("{:?}", summary.across)
        };
        assert_eq!(
            (&across.tasks[..], across.orders),
            (&["a".to_owned(), "b".to_owned()][..], 2)
        );
        let labels: Vec<&str> = across
            .groups
            .iter()
            .map(|group| group.label.as_str())
            .collect();
        assert_eq!(labels, ["aso-lora", "o-lora"]);
        // AP of aso-lora: 75, 75, 79, 79.
        let ap = across.groups[0].metrics[&Metric::Ap].unwrap();
        assert_eq!((ap.mean, ap.n, across.groups[0].runs), (77.0, 4, 4));
        // o-lora minus aso-lora: -0.5, 0, -4.5, -4.
        let [difference] = &across.differences[..] else {
            panic!("{:?}", across.differences)
        };
        assert_eq!(difference.seeds, [1, 2, 1, 2]);
        let ap = difference.metrics[&Metric::Ap].as_ref().unwrap();
        assert_eq!((ap.mean, ap.n, ap.examples_interval), (-2.25, 4, None));
        // Of 16 assignments of signs to 0.5, 0, 4.5 and 4, the sum is as large in 4.
        assert_eq!(ap.sign_flip_p, Some(0.25));
    }
}
