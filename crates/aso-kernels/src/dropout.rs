//! Dropout masks from a counter-based generator.
//!
//! Burn draws all its dropout from one process-wide generator whose state can be neither read nor restored, so a
//! resumed run could not repeat its masks. Here every mask is drawn from a ChaCha8 stream that is addressed by
//! (seed, task, step, shard) and the place in the network: nothing has to be saved, masks do not depend on the
//! order in which layers run, and any part of a mask can be drawn by itself, on any thread.

use burn::tensor::{Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::simd;

/// A family of dropout masks for one micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutStream {
    seed: [u8; 32],
}

/// One mask: which elements of one tensor are kept, each with probability 1 - p.
///
/// p is rounded to a multiple of 2^-16, the resolution of the draws; the scale uses the rounded value, so the
/// expectation of `x * mask` is exactly `x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutMask {
    stream: DropoutStream,
    site: u64,
    /// Draws below it are dropped.
    threshold: u16,
}

impl DropoutStream {
    /// The masks of micro-batch `shard` of optimizer step `step` of task `task` under `seed`.
    pub fn new(seed: u64, task: u64, step: u64, shard: u64) -> Self {
        let mut bytes = [0; 32];
        for (slot, value) in bytes.chunks_exact_mut(8).zip([seed, task, step, shard]) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        Self { seed: bytes }
    }

    /// The mask of one place in the network; `None` if p rounds to 0.
    pub fn mask(&self, p: f64, site: u64) -> Option<DropoutMask> {
        let dropped = (p * LEVELS).round().clamp(0.0, LEVELS - 1.0);
        (dropped > 0.0).then_some(DropoutMask {
            stream: *self,
            site,
            threshold: dropped as u16,
        })
    }
}

/// Resolution of the draws.
const LEVELS: f64 = 65536.0;

/// Elements drawn at once.
const PORTION: usize = 1024;

impl DropoutMask {
    /// `1 / (1 - p)`, what kept elements are multiplied with.
    pub fn scale(&self) -> f32 {
        (LEVELS / (LEVELS - f64::from(self.threshold))) as f32
    }

    /// Draws the elements from number `start` of the row-major tensor on: 1 for kept, 0 for dropped.
    pub fn fill(&self, start: usize, kept: &mut [u8]) {
        let mut rng = ChaCha8Rng::from_seed(self.stream.seed);
        rng.set_stream(self.site);
        // Two draws of 16 bits to a word of the generator.
        rng.set_word_pos((start / 2) as u128);
        let mut bytes = [0u8; 2 * PORTION];
        let mut rest = kept;
        let mut skip = start % 2;
        while !rest.is_empty() {
            let count = rest.len().min(PORTION - skip);
            // Whole words, so that the next portion starts at one.
            let words = (skip + count).div_ceil(2);
            rng.fill_bytes(&mut bytes[..4 * words]);
            let (portion, later) = rest.split_at_mut(count);
            threshold(
                &bytes[2 * skip..2 * (skip + count)],
                self.threshold,
                portion,
            );
            rest = later;
            skip = 0;
        }
    }

    /// The whole mask of a tensor of `count` elements, scaled: 0 or `1 / (1 - p)`.
    fn factors(&self, count: usize) -> Vec<f32> {
        let mut kept = vec![0; count];
        self.fill(0, &mut kept);
        let scale = self.scale();
        kept.iter().map(|kept| f32::from(*kept) * scale).collect()
    }

    /// The scaled mask as a tensor beside `x`.
    pub(crate) fn tensor_for<const D: usize>(&self, x: &Tensor<D>) -> Tensor<D> {
        let shape = x.shape();
        let factors = self.factors(shape.num_elements());
        let device = x.device().without_autodiff();
        Tensor::from_data(TensorData::new(factors, shape), &device)
    }
}

fn threshold(bytes: &[u8], threshold: u16, kept: &mut [u8]) {
    simd(|| {
        let (pairs, _) = bytes.as_chunks::<2>();
        for (kept, pair) in kept.iter_mut().zip(pairs) {
            *kept = u8::from(u16::from_le_bytes(*pair) >= threshold);
        }
    });
}

/// A stable 64-bit identifier of a place in the network (FNV-1a of its name).
pub fn site(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(stream: DropoutStream, name: &str) -> Vec<u8> {
        let mut kept = vec![0; 64 * 512];
        stream.mask(0.1, site(name)).unwrap().fill(0, &mut kept);
        kept
    }

    #[test]
    fn masks_depend_on_key_and_site_only() {
        let stream = DropoutStream::new(1, 2, 3, 0);
        assert_eq!(draw(stream, "a"), draw(stream, "a"));
        assert_ne!(draw(stream, "a"), draw(stream, "b"));
        for other in [(2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1)] {
            let other = DropoutStream::new(other.0, other.1, other.2, other.3);
            assert_ne!(draw(stream, "a"), draw(other, "a"));
        }
    }

    #[test]
    fn any_part_can_be_drawn_by_itself() {
        let mask = DropoutStream::new(1, 2, 3, 0).mask(0.5, site("a")).unwrap();
        let mut whole = vec![0; 5000];
        mask.fill(0, &mut whole);
        for (start, len) in [(0, 1), (1, 1), (7, 2000), (2048, 1024), (1023, 3977)] {
            let mut part = vec![0; len];
            mask.fill(start, &mut part);
            assert_eq!(part, whole[start..start + len], "{len} from {start}");
        }
    }

    #[test]
    fn keeps_the_expectation() {
        let mask = DropoutStream::new(7, 0, 0, 0).mask(0.1, site("x")).unwrap();
        let values = mask.factors(32768);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let zeros = values.iter().filter(|v| **v == 0.0).count() as f64 / values.len() as f64;
        // 32768 draws: standard deviation of the share is 0.0017, of the mean 0.0018.
        assert!((zeros - 0.1).abs() < 0.009, "share of zeros {zeros}");
        assert!((mean - 1.0).abs() < 0.01, "mean {mean}");
    }

    #[test]
    fn a_probability_of_zero_needs_no_mask() {
        assert_eq!(DropoutStream::new(7, 0, 0, 0).mask(0.0, 1), None);
    }
}
