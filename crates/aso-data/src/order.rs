//! Which examples form which batch, as a function of seed and epoch alone.
//!
//! A resumed run recomputes the order and skips what it has done; no generator state is stored.

use crate::random::{keyed, shuffle};

/// How far batches gather examples of similar length, which saves padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LengthGrouping {
    /// Not at all: batches are consecutive pieces of the shuffled examples.
    None,
    /// The shuffled examples are cut into windows of this many batches and sorted by length
    /// inside each window: batches are even in length, yet differ from epoch to epoch.
    Windowed {
        /// Batches per window; 0 counts as 1.
        batches: usize,
    },
}

impl Default for LengthGrouping {
    /// Windows of 50 batches.
    fn default() -> Self {
        Self::Windowed { batches: 50 }
    }
}

/// The batches of one epoch, as indices into `lengths`; every index occurs exactly once.
///
/// `lengths` are the examples' token counts. The examples are shuffled (Fisher-Yates on ChaCha8
/// keyed by `seed` and `epoch`). With [`LengthGrouping::Windowed`] each window is then sorted by
/// length, longest first and stable, cut into batches, and the batches are shuffled. The one
/// smaller batch that remains if `batch_size` does not divide the number of examples is kept; it
/// comes last without grouping and anywhere with it. A `batch_size` of 0 counts as 1.
///
/// The result is the same in every process and on every platform.
pub fn batch_order(
    lengths: &[usize],
    batch_size: usize,
    seed: u64,
    epoch: u64,
    grouping: LengthGrouping,
) -> Vec<Vec<usize>> {
    let batch_size = batch_size.max(1);
    let mut rng = keyed(&[seed, epoch]);
    let mut indices: Vec<usize> = (0..lengths.len()).collect();
    shuffle(&mut rng, &mut indices);
    let LengthGrouping::Windowed { batches } = grouping else {
        return indices.chunks(batch_size).map(<[usize]>::to_vec).collect();
    };
    let window = batch_size.saturating_mul(batches.max(1));
    for window in indices.chunks_mut(window) {
        window.sort_by_key(|&index| std::cmp::Reverse(lengths[index]));
    }
    // The window is a multiple of the batch, so no batch straddles two windows.
    let mut batches: Vec<Vec<usize>> = indices.chunks(batch_size).map(<[usize]>::to_vec).collect();
    shuffle(&mut rng, &mut batches);
    batches
}

/// Batches for evaluation: longest examples first, equal lengths in file order, the smaller batch
/// last.
///
/// The longest batch coming first, a run that does not fit in memory fails at once. Every index
/// occurs exactly once. A `batch_size` of 0 counts as 1.
pub fn evaluation_order(lengths: &[usize], batch_size: usize) -> Vec<Vec<usize>> {
    let mut indices: Vec<usize> = (0..lengths.len()).collect();
    indices.sort_by_key(|&index| std::cmp::Reverse(lengths[index]));
    indices
        .chunks(batch_size.max(1))
        .map(<[usize]>::to_vec)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn grouping() -> impl Strategy<Value = LengthGrouping> {
        prop_oneof![
            Just(LengthGrouping::None),
            (0_usize..6).prop_map(|batches| LengthGrouping::Windowed { batches }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_index_occurs_once(
            lengths in prop::collection::vec(1_usize..200, 0..300),
            batch_size in 0_usize..20,
            seed: u64,
            epoch in 0_u64..10,
            grouping in grouping(),
        ) {
            let orders = [
                batch_order(&lengths, batch_size, seed, epoch, grouping),
                evaluation_order(&lengths, batch_size),
            ];
            for order in orders {
                let size = batch_size.max(1);
                prop_assert_eq!(order.len(), lengths.len().div_ceil(size));
                prop_assert!(order.iter().filter(|batch| batch.len() != size).count() <= 1);
                let mut seen = order.concat();
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            }
        }

        #[test]
        fn seed_and_epoch_decide(
            lengths in prop::collection::vec(1_usize..200, 40..120),
            seed: u64,
            epoch in 0_u64..10,
            grouping in grouping(),
        ) {
            let order = |seed, epoch| batch_order(&lengths, 4, seed, epoch, grouping);
            prop_assert_eq!(order(seed, epoch), order(seed, epoch));
            prop_assert_ne!(order(seed, epoch), order(seed, epoch + 1));
            prop_assert_ne!(order(seed, epoch), order(seed.wrapping_add(1), epoch));
        }

        #[test]
        fn grouping_never_pads_more(
            lengths in prop::collection::vec(1_usize..500, 200..400),
            seed: u64,
        ) {
            let padded = |order: Vec<Vec<usize>>| -> usize {
                order
                    .iter()
                    .map(|batch| batch.len() * batch.iter().map(|&i| lengths[i]).max().unwrap_or(0))
                    .sum()
            };
            let plain = padded(batch_order(&lengths, 8, seed, 0, LengthGrouping::None));
            let grouped = padded(batch_order(&lengths, 8, seed, 0, LengthGrouping::default()));
            prop_assert!(grouped <= plain, "{grouped} > {plain}");
        }
    }

    #[test]
    fn evaluation_is_longest_first_and_stable() {
        assert_eq!(
            evaluation_order(&[3, 9, 3, 7, 9], 2),
            [vec![1, 4], vec![3, 0], vec![2]]
        );
    }

    #[test]
    fn the_order_is_frozen() {
        // A resumed run relies on these values: a change breaks every interrupted run.
        let lengths: Vec<usize> = (0..10).collect();
        let plain = batch_order(&lengths, 4, 42, 0, LengthGrouping::None);
        assert_eq!(plain, [vec![8, 9, 1, 3], vec![5, 0, 6, 4], vec![7, 2]]);
        let grouped = batch_order(&lengths, 4, 42, 0, LengthGrouping::default());
        assert_eq!(grouped, [vec![5, 4, 3, 2], vec![1, 0], vec![9, 8, 7, 6]]);
    }
}
