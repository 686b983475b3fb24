//! Buckets of the relative position bias (Raffel et al. 2020, section 2.1).

/// Bucket of the offset `memory - query`.
///
/// Half of the buckets (each direction its own half if `bidirectional`) are exact small distances, the
/// rest grow logarithmically up to `max_distance`. Mirrors Hugging Face's single-precision arithmetic.
pub(super) fn bucket(
    offset: i64,
    bidirectional: bool,
    buckets: usize,
    max_distance: usize,
) -> usize {
    let (mut bucket, buckets, distance) = if bidirectional {
        let half = buckets / 2;
        (
            if offset > 0 { half } else { 0 },
            half,
            offset.unsigned_abs() as usize,
        )
    } else {
        (0, buckets, (-offset).max(0) as usize)
    };
    let exact = buckets / 2;
    bucket += if distance < exact {
        distance
    } else {
        let position = (distance as f32 / exact as f32).ln();
        let range = (max_distance as f64 / exact as f64).ln() as f32;
        let large = exact + (position / range * (buckets - exact) as f32) as usize;
        large.min(buckets - 1)
    };
    bucket
}

/// Buckets of every (query, key) pair, row-major `[queries, keys]`; query i stands at `first + i`.
pub(super) fn buckets(
    first: usize,
    queries: usize,
    keys: usize,
    bidirectional: bool,
    count: usize,
    max_distance: usize,
) -> Vec<i64> {
    (first..first + queries)
        .flat_map(|query| {
            (0..keys).map(move |key| {
                bucket(
                    key as i64 - query as i64,
                    bidirectional,
                    count,
                    max_distance,
                ) as i64
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Hugging Face T5Attention._relative_position_bucket, 32 buckets, distance 128, offsets
    // -130, -128, -64, -17, -16, -15, -8, -7, -1, 0, 1, 7, 8, 9, 16, 32, 64, 128.
    #[test]
    fn known_buckets() {
        let offsets = [
            -130, -128, -64, -17, -16, -15, -8, -7, -1, 0, 1, 7, 8, 9, 16, 32, 64, 128,
        ];
        let both: Vec<_> = offsets.iter().map(|o| bucket(*o, true, 32, 128)).collect();
        assert_eq!(
            both,
            [
                15, 15, 14, 10, 10, 9, 8, 7, 1, 0, 17, 23, 24, 24, 26, 28, 30, 31
            ]
        );
        let causal: Vec<_> = offsets.iter().map(|o| bucket(*o, false, 32, 128)).collect();
        assert_eq!(
            causal,
            [31, 31, 26, 16, 16, 15, 8, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }
}
