//! Dropout whose masks are a pure function of a key.
//!
//! Burn's generator is one process-global state that can be neither read nor restored, so a resumed
//! run could not repeat its masks. Here every mask is drawn from a ChaCha8 stream that is addressed by
//! (seed, task, step, shard) and the place in the network: nothing has to be saved, and masks
//! do not depend on the order in which layers run.

use burn::tensor::{Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A family of dropout masks for one micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutStream {
    seed: [u8; 32],
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

    /// `x * mask / (1 - p)` with `mask ~ Bernoulli(1 - p)` drawn for `site`.
    ///
    /// The probability is rounded to a multiple of 2^-16, the resolution of the draws; the scale uses
    /// the rounded value, so the expectation is exactly `x`.
    pub fn apply<const D: usize>(&self, x: Tensor<D>, p: f64, site: u64) -> Tensor<D> {
        const LEVELS: f64 = 65536.0;
        let dropped = (p * LEVELS).round().clamp(0.0, LEVELS - 1.0);
        let keep_scale = (LEVELS / (LEVELS - dropped)) as f32;
        let threshold = dropped as u16;

        let shape = x.shape();
        let count = shape.num_elements();
        let mut rng = ChaCha8Rng::from_seed(self.seed);
        rng.set_stream(site);
        let mut bytes = vec![0u8; 2 * count];
        rng.fill_bytes(&mut bytes);
        let mask: Vec<f32> = bytes
            .chunks_exact(2)
            .map(|pair| {
                if u16::from_le_bytes([pair[0], pair[1]]) < threshold {
                    0.0
                } else {
                    keep_scale
                }
            })
            .collect();
        let device = x.device().without_autodiff();
        x * Tensor::from_data(TensorData::new(mask, shape), &device)
    }
}

/// A stable 64-bit identifier of a place in the network (FNV-1a of its name).
pub fn site(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn draw(stream: DropoutStream, name: &str) -> Vec<f32> {
        let ones = Tensor::<2>::ones([64, 512], &Device::flex());
        stream
            .apply(ones, 0.1, site(name))
            .into_data()
            .try_to_vec()
            .unwrap()
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
    fn keeps_the_expectation() {
        let values = draw(DropoutStream::new(7, 0, 0, 0), "x");
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let zeros = values.iter().filter(|v| **v == 0.0).count() as f64 / values.len() as f64;
        // 32768 draws: standard deviation of the share is 0.0017, of the mean 0.0018.
        assert!((zeros - 0.1).abs() < 0.009, "share of zeros {zeros}");
        assert!((mean - 1.0).abs() < 0.01, "mean {mean}");
    }
}
