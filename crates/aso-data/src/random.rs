//! Random choices that are a function of their keys.
//!
//! Stored or recomputed choices must not change with the version of a crate, so shuffling and
//! bounded draws are written out here; only ChaCha8's bit stream is taken from outside.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A generator keyed by all of `keys`, in order.
pub fn keyed(keys: &[u64]) -> ChaCha8Rng {
    // Absorb every key through SplitMix64's finaliser, then squeeze 256 bits of seed.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for &key in keys {
        state = split_mix(state ^ split_mix(key));
    }
    let mut seed = [0; 32];
    for chunk in seed.chunks_exact_mut(8) {
        state = split_mix(state);
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    ChaCha8Rng::from_seed(seed)
}

/// A key made of text (64-bit FNV-1a).
pub fn text_key(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A uniform draw from `0..bound`; 0 if `bound` is 0.
pub fn below(rng: &mut ChaCha8Rng, bound: usize) -> usize {
    // The high half of a 128-bit product is uniform up to a bias of bound / 2^64.
    ((u128::from(rng.next_u64()) * bound as u128) >> 64) as usize
}

/// True with probability `percent / 100`.
pub fn chance(rng: &mut ChaCha8Rng, percent: usize) -> bool {
    below(rng, 100) < percent
}

/// A uniformly drawn element.
///
/// # Panics
/// Panics if there is none.
pub fn pick<'a, T: ?Sized>(rng: &mut ChaCha8Rng, items: &[&'a T]) -> &'a T {
    items[below(rng, items.len())]
}

/// Fisher-Yates shuffle.
pub fn shuffle<T>(rng: &mut ChaCha8Rng, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last + 1));
    }
}

/// `count` different indices out of `0..total` in increasing order; all if `count >= total`.
pub fn choose_sorted(rng: &mut ChaCha8Rng, total: usize, count: usize) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..total).collect();
    if count < total {
        shuffle(rng, &mut indices);
        indices.truncate(count);
        indices.sort_unstable();
    }
    indices
}

fn split_mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_their_order_matter() {
        let draw = |keys: &[u64]| keyed(keys).next_u64();
        assert_eq!(draw(&[1, 2]), draw(&[1, 2]));
        assert_ne!(draw(&[1, 2]), draw(&[2, 1]));
        assert_ne!(draw(&[1]), draw(&[1, 0]));
        assert_ne!(draw(&[]), draw(&[0]));
    }

    #[test]
    fn known_values_stay_the_same() {
        // Reference values of SplitMix64 (seed 0) and of FNV-1a ("a").
        assert_eq!(split_mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(text_key("a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn draws_are_in_range_and_spread() {
        let mut rng = keyed(&[3]);
        let mut seen = [0_usize; 7];
        for _ in 0..7000 {
            seen[below(&mut rng, 7)] += 1;
        }
        assert!(
            seen.iter().all(|&count| (800..1200).contains(&count)),
            "{seen:?}"
        );
        assert_eq!(below(&mut rng, 0), 0);
    }

    #[test]
    fn choices_are_sorted_and_distinct() {
        let chosen = choose_sorted(&mut keyed(&[1]), 100, 10);
        assert_eq!(chosen.len(), 10);
        assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(choose_sorted(&mut keyed(&[1]), 3, 10), [0, 1, 2]);
    }
}
