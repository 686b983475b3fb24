//! Examples that are kept.

use std::collections::BTreeMap;

use aso_data::EncodedExample;
use aso_data::random::{choose_sorted, keyed};
use serde::{Deserialize, Serialize};

use super::MethodState;

/// How many examples of a task are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MemorySize {
    /// So many of every distinct answer.
    PerClass(usize),
    /// This share of the task's training examples, rounded up.
    Ratio(f64),
}

/// Examples of earlier tasks. What is kept and drawn is a function of the seed, the task and the step.
#[derive(Debug, Clone)]
pub struct Memory {
    size: MemorySize,
    kept: Vec<Kept>,
}

/// A kept example.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    source: Vec<u32>,
    target: Vec<u32>,
}

impl Memory {
    /// An empty memory.
    pub fn new(size: MemorySize) -> Self {
        Self {
            size,
            kept: Vec::new(),
        }
    }

    /// Examples in it.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Keeps some of a task's examples.
    pub fn keep(&mut self, examples: &[&EncodedExample], seed: u64, task: usize) {
        let mut rng = keyed(&[seed, KEEP, task as u64]);
        let mut choose = |of: &[usize], count: usize| -> Vec<usize> {
            let chosen = choose_sorted(&mut rng, of.len(), count);
            chosen.into_iter().map(|at| of[at]).collect()
        };
        let chosen = match self.size {
            MemorySize::PerClass(count) => {
                let mut classes: BTreeMap<&[u32], Vec<usize>> = BTreeMap::new();
                for (at, example) in examples.iter().enumerate() {
                    classes.entry(&example.target).or_default().push(at);
                }
                classes.values().flat_map(|of| choose(of, count)).collect()
            }
            MemorySize::Ratio(ratio) => {
                let all: Vec<usize> = (0..examples.len()).collect();
                // 100 * 0.07 is a little more than 7.
                choose(&all, (all.len() as f64 * ratio - 1e-9).ceil() as usize)
            }
        };
        if 2 * chosen.len() > examples.len() && matches!(self.size, MemorySize::PerClass(_)) {
            tracing::warn!(
                task,
                kept = chosen.len(),
                of = examples.len(),
                "most answers differ, so `memory_per_class` keeps most examples: `memory_ratio` sets a share"
            );
        }
        self.kept.extend(chosen.into_iter().map(|at| Kept {
            source: examples[at].source.clone(),
            target: examples[at].target.clone(),
        }));
    }

    /// Up to `count` different examples for a step of a task.
    pub fn draw(&self, count: usize, seed: u64, task: usize, step: usize) -> Vec<EncodedExample> {
        if self.kept.is_empty() || count == 0 {
            return Vec::new();
        }
        let mut rng = keyed(&[seed, DRAW, task as u64, step as u64]);
        let drawn = choose_sorted(&mut rng, self.kept.len(), count);
        drawn
            .into_iter()
            .map(|at| EncodedExample {
                source: self.kept[at].source.clone(),
                target: self.kept[at].target.clone(),
                source_removed: 0,
                target_removed: 0,
            })
            .collect()
    }

    pub(super) fn state(&self) -> MethodState {
        if self.kept.is_empty() {
            return MethodState::default();
        }
        MethodState::of_values(serde_json::json!({ "memory": self.kept }))
    }

    pub(super) fn restore(&mut self, mut state: MethodState) -> Result<(), serde_json::Error> {
        self.kept = match state.values.get_mut("memory") {
            Some(kept) => serde_json::from_value(kept.take())?,
            None => Vec::new(),
        };
        Ok(())
    }
}

const KEEP: u64 = 0x6b65_6570;
const DRAW: u64 = 0x6472_6177;

#[cfg(test)]
mod tests {
    use super::*;

    fn example(n: u32) -> EncodedExample {
        EncodedExample {
            source: vec![n],
            target: vec![n % 3],
            source_removed: 0,
            target_removed: 0,
        }
    }

    #[test]
    fn every_class_is_kept() {
        let examples: Vec<_> = (0..30).map(example).collect();
        let examples: Vec<_> = examples.iter().collect();
        let mut memory = Memory::new(MemorySize::PerClass(2));
        memory.keep(&examples, 1, 0);
        let classes: Vec<u32> = memory.kept.iter().map(|kept| kept.target[0]).collect();
        assert_eq!(classes, [0, 0, 1, 1, 2, 2]);
        let mut share = Memory::new(MemorySize::Ratio(0.11));
        share.keep(&examples, 1, 0);
        assert_eq!(share.len(), 4);
        // In f64 100 * 0.07 is more than 7.
        let examples: Vec<_> = (0..100).map(example).collect();
        let mut share = Memory::new(MemorySize::Ratio(0.07));
        share.keep(&examples.iter().collect::<Vec<_>>(), 1, 0);
        assert_eq!(share.len(), 7);
    }

    #[test]
    fn draws_are_distinct_reproducible_and_survive_a_restart() {
        let examples: Vec<_> = (0..30).map(example).collect();
        let examples: Vec<_> = examples.iter().collect();
        let mut memory = Memory::new(MemorySize::PerClass(4));
        assert!(memory.draw(5, 1, 1, 0).is_empty());
        memory.keep(&examples, 1, 0);
        let drawn = memory.draw(8, 1, 1, 3);
        let mut sources: Vec<u32> = drawn.iter().map(|example| example.source[0]).collect();
        sources.sort_unstable();
        sources.dedup();
        assert_eq!(sources.len(), 8);
        assert_ne!(drawn, memory.draw(8, 1, 1, 4));
        let mut restored = Memory::new(MemorySize::PerClass(4));
        restored.restore(memory.state()).unwrap();
        assert_eq!(drawn, restored.draw(8, 1, 1, 3));
        assert_eq!(memory.draw(100, 1, 1, 0).len(), 12);
    }
}
