//! What is measured with `--peer`. docs/performance.md describes every workload.

/// A measured pair.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) id: &'static str,
    pub(super) ours: Side,
    /// What `ours` is divided by.
    pub(super) theirs: Side,
    pub(super) measure: Measure,
    /// The ratio to reach, and the one that must hold.
    pub(super) goal: f64,
    pub(super) least: f64,
    pub(super) pairs: usize,
    /// Largest relative difference between the checks of both sides; `None` where they are different work.
    pub(super) tolerance: Option<f64>,
    /// Whether it needs data and model of `../shared`, and what our side exports of them.
    pub(super) shared: Shared,
}

/// A worker: the name of its workload, and the program that knows it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Ours(&'static str),
    Peer(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Measure {
    /// Seconds of runs in two processes that live side by side.
    Seconds,
    /// Peak memory of the first run of fresh processes.
    PeakBytes,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shared {
    No,
    Data,
    Export,
}

/// Pairs where a run takes seconds, and where it takes minutes.
const SHORT: usize = 7;
const LONG: usize = 5;

pub(super) const WORKLOADS: [Workload; 11] = [
    Workload {
        id: "train-t5",
        ours: Side::Ours("train-t5"),
        theirs: Side::Peer("train-t5"),
        measure: Measure::Seconds,
        goal: 0.95,
        least: 1.2,
        pairs: SHORT,
        tolerance: Some(1e-4),
        shared: Shared::No,
    },
    Workload {
        id: "train-llama",
        ours: Side::Ours("train-llama"),
        theirs: Side::Peer("train-llama"),
        measure: Measure::Seconds,
        goal: 0.95,
        least: 1.2,
        pairs: SHORT,
        tolerance: Some(1e-4),
        shared: Shared::No,
    },
    Workload {
        id: "attribution-reference",
        ours: Side::Ours("attribution-reference"),
        theirs: Side::Peer("attribution-reference"),
        measure: Measure::Seconds,
        goal: 0.37,
        least: 0.5,
        pairs: SHORT,
        // The left rule is ill-conditioned: one point of five decides nearly everything.
        tolerance: Some(1e-2),
        shared: Shared::No,
    },
    Workload {
        id: "attribution-aso",
        ours: Side::Ours("attribution-aso"),
        theirs: Side::Peer("attribution-reference"),
        measure: Measure::Seconds,
        goal: 0.04,
        least: 0.07,
        pairs: SHORT,
        tolerance: None,
        shared: Shared::No,
    },
    Workload {
        id: "aso-over-o-lora",
        ours: Side::Ours("run-aso-lora"),
        theirs: Side::Ours("run-o-lora"),
        measure: Measure::Seconds,
        goal: 1.03,
        least: 1.06,
        pairs: LONG,
        tolerance: Some(1e-6),
        shared: Shared::Data,
    },
    Workload {
        id: "order1-aso",
        ours: Side::Ours("order1-aso"),
        theirs: Side::Peer("order1-folded"),
        measure: Measure::Seconds,
        goal: 0.7,
        least: 0.95,
        pairs: LONG,
        // Dropout masks differ, and so do the weights that the two presets measure.
        tolerance: Some(0.15),
        shared: Shared::Export,
    },
    Workload {
        id: "order1-reference",
        ours: Side::Ours("order1-reference"),
        theirs: Side::Peer("order1-stack"),
        measure: Measure::Seconds,
        goal: 0.75,
        least: 1.0,
        pairs: LONG,
        // Dropout masks differ.
        tolerance: Some(0.1),
        shared: Shared::Export,
    },
    Workload {
        id: "eval-agnews",
        ours: Side::Ours("eval-agnews"),
        theirs: Side::Peer("eval-agnews"),
        measure: Measure::Seconds,
        goal: 0.8,
        least: 1.0,
        pairs: SHORT,
        // The sum of all generated ids; a tie may fall the other way.
        tolerance: Some(1e-2),
        shared: Shared::Export,
    },
    Workload {
        id: "growth",
        ours: Side::Ours("growth-15"),
        theirs: Side::Ours("growth-1"),
        measure: Measure::Seconds,
        goal: 1.0,
        least: 1.05,
        pairs: SHORT,
        tolerance: None,
        shared: Shared::No,
    },
    Workload {
        id: "growth-from-2",
        ours: Side::Ours("growth-15"),
        theirs: Side::Ours("growth-2"),
        measure: Measure::Seconds,
        goal: 1.0,
        least: 1.05,
        pairs: SHORT,
        tolerance: None,
        shared: Shared::No,
    },
    Workload {
        id: "memory",
        ours: Side::Ours("memory"),
        theirs: Side::Peer("memory"),
        measure: Measure::PeakBytes,
        goal: 0.7,
        least: 1.0,
        pairs: LONG,
        // The loss of a step with dropout, whose masks differ.
        tolerance: Some(0.02),
        shared: Shared::No,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_at_least_as_hard_as_limits() {
        for workload in &WORKLOADS {
            assert!(workload.goal <= workload.least, "{}", workload.id);
            assert!(workload.pairs >= 5, "{}", workload.id);
        }
    }
}
