//! The batches of a task's steps.

use aso_data::{EncodedExample, LengthGrouping, batch_order};

use crate::RunConfig;

/// The batches of a task's steps, a function of the seed, the task's position and its examples: recomputed after a
/// restart, never stored.
#[derive(Debug, Clone)]
pub struct BatchOrder {
    lengths: Vec<usize>,
    batch_size: usize,
    seed: u64,
    grouping: LengthGrouping,
    epoch: Option<u64>,
    batches: Vec<Vec<usize>>,
}

impl BatchOrder {
    /// The order of `examples`, those of the task at the 0-based position `task` of the stream.
    pub fn new<'a>(
        examples: impl IntoIterator<Item = &'a EncodedExample>,
        config: &RunConfig,
        task: usize,
    ) -> Self {
        let grouping = if config.train.length_grouping {
            LengthGrouping::default()
        } else {
            LengthGrouping::None
        };
        Self {
            lengths: examples
                .into_iter()
                .map(|example| example.source.len())
                .collect(),
            batch_size: config.train.batch_size,
            // Tasks of equal size must not share their order.
            seed: config.seed ^ (task as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            grouping,
            epoch: None,
            batches: Vec::new(),
        }
    }

    /// The same without batches of similar length.
    #[must_use]
    pub fn ungrouped(self) -> Self {
        Self {
            grouping: LengthGrouping::None,
            epoch: None,
            ..self
        }
    }

    /// Numbers of the examples of the 0-based optimizer step `step`; an epoch's last batch may be smaller.
    ///
    /// # Panics
    /// Panics if there are no examples.
    pub fn batch(&mut self, step: usize) -> &[usize] {
        let per_epoch = self.lengths.len().div_ceil(self.batch_size);
        let epoch = (step / per_epoch) as u64;
        if self.epoch != Some(epoch) {
            let (size, seed) = (self.batch_size, self.seed);
            self.batches = batch_order(&self.lengths, size, seed, epoch, self.grouping);
            self.epoch = Some(epoch);
        }
        &self.batches[step % per_epoch]
    }
}
