//! T5's denoising objective.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Span corruption (Raffel et al. 2020, section 3.1.4): spans of the text are replaced by one sentinel
/// each in the source, and spelled out behind their sentinels in the target.
///
/// ```text
/// source  the <extra_id_0> was good near <extra_id_1> </s>
/// target  <extra_id_0> old soup <extra_id_1> a garden <extra_id_2> </s>
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpanCorruption {
    /// Share of the tokens that are replaced, in (0, 1).
    pub rate: f64,
    /// Mean length of a span in tokens, at least 1.
    pub mean_span: f64,
}

impl SpanCorruption {
    /// Splits a text into source and target, without end tokens.
    ///
    /// At least one token is replaced and at least one stays; there are never more spans than
    /// `sentinels` minus the closing one. A text of fewer than two tokens comes back unchanged, with an
    /// empty target.
    pub fn corrupt(
        &self,
        ids: &[u32],
        sentinels: &[u32],
        rng: &mut ChaCha8Rng,
    ) -> (Vec<u32>, Vec<u32>) {
        if ids.len() < 2 || sentinels.len() < 2 {
            return (ids.to_vec(), Vec::new());
        }
        let noise = (ids.len() as f64 * self.rate).round() as usize;
        let noise = noise.clamp(1, ids.len() - 1);
        let kept = ids.len() - noise;
        let spans = (noise as f64 / self.mean_span).round() as usize;
        let spans = spans.clamp(1, noise.min(kept).min(sentinels.len() - 1));
        // Kept and replaced stretches alternate, beginning with a kept one.
        let kept = segments(kept, spans, rng);
        let noise = segments(noise, spans, rng);
        let (mut source, mut target) = (Vec::new(), Vec::new());
        let mut rest = ids;
        for ((kept, noise), sentinel) in kept.into_iter().zip(noise).zip(sentinels) {
            let (stays, tail) = rest.split_at(kept);
            let (goes, tail) = tail.split_at(noise);
            source.extend(stays);
            source.push(*sentinel);
            target.push(*sentinel);
            target.extend(goes);
            rest = tail;
        }
        target.push(sentinels[spans]);
        (source, target)
    }
}

/// Cuts `total` into `parts` positive summands, every composition equally likely.
fn segments(total: usize, parts: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    // `parts - 1` of the `total - 1` gaps are cut (selection sampling, Knuth 2, algorithm S).
    let mut lengths = Vec::with_capacity(parts);
    let (mut length, mut cuts) = (1, parts - 1);
    for gap in 0..total - 1 {
        if rng.random_range(0..total - 1 - gap) < cuts {
            lengths.push(length);
            length = 0;
            cuts -= 1;
        }
        length += 1;
    }
    lengths.push(length);
    lengths
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn filling_the_gaps_gives_the_text_back(
            ids in proptest::collection::vec(10_u32..500, 2..40),
            rate in 0.05f64..0.95, mean_span in 1.0f64..4.0, seed: u64,
        ) {
            let sentinels: Vec<u32> = (1000..1006).collect();
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let corruption = SpanCorruption { rate, mean_span };
            let (source, target) = corruption.corrupt(&ids, &sentinels, &mut rng);
            let mut spans: Vec<&[u32]> = target.split(|id| *id >= 1000).collect();
            // Nothing stands before the first sentinel nor behind the last one.
            prop_assert!(spans.remove(0).is_empty());
            prop_assert!(spans.pop().unwrap().is_empty());
            prop_assert!(spans.iter().all(|span| !span.is_empty()));
            let mut filled = Vec::new();
            for id in source {
                match id.checked_sub(1000) {
                    Some(at) => filled.extend(spans[at as usize]),
                    None => filled.push(id),
                }
            }
            prop_assert_eq!(filled, ids);
        }
    }

    #[test]
    fn short_texts_stay() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let corruption = SpanCorruption {
            rate: 0.5,
            mean_span: 1.0,
        };
        assert_eq!(
            corruption.corrupt(&[7], &[100, 101], &mut rng),
            (vec![7], vec![])
        );
    }
}
