//! Statistics over few seeds and many test examples.
//!
//! | quantity | how |
//! |---|---|
//! | spread over seeds | sample standard deviation, `sqrt(sum (x - mean)^2 / (n - 1))` |
//! | interval over seeds | Student's t: `mean +- t(n - 1) * sd / sqrt(n)` |
//! | p over seeds | exact sign-flip test: the share of the `2^n` assignments of signs whose mean is at least as far from 0 |
//! | interval over examples | paired bootstrap: examples are drawn with replacement within each task, percentiles |
//!
//! Sources: Student, "The probable error of a mean" (1908); Fisher, "The Design of Experiments" (1935), sign flips;
//! Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 13 and 16.

use aso_trainer::metrics::Spread;
use std::f64::consts::{FRAC_2_PI, FRAC_PI_2};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;

/// The probability that an interval is meant to cover.
pub const CONFIDENCE: f64 = 0.95;

/// Resamples of the bootstrap.
pub const RESAMPLES: usize = 10_000;

/// Seed of the bootstrap. All comparisons draw the same examples.
const BOOTSTRAP_SEED: u64 = 0;

/// Most values for which every assignment of signs is tried.
const MOST_FLIPPED: usize = 20;

/// An interval of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// `sum x / n`; `None` for no values.
pub fn mean(values: &[f64]) -> Option<f64> {
    Spread::of(values).map(|spread| spread.mean)
}

/// `sqrt(sum (x - mean)^2 / (n - 1))`; `None` for fewer than two values.
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    Spread::of(values)?.sd
}

/// The middle value, the mean of the two middle ones for an even number; `None` for no values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

/// The two-sided interval of the mean by Student's t, at [`CONFIDENCE`]; `None` for fewer than two values. It
/// takes the values for normally distributed, which a handful of seeds cannot show.
pub fn t_interval(values: &[f64]) -> Option<Interval> {
    let (mean, sd) = (mean(values)?, standard_deviation(values)?);
    let n = values.len();
    let half = t_two_sided(n - 1, CONFIDENCE) * sd / (n as f64).sqrt();
    Some(Interval {
        low: mean - half,
        high: mean + half,
    })
}

/// The t for which `P(|T| < t) = probability`, T distributed as Student's t with `freedom >= 1` degrees of freedom.
pub fn t_two_sided(freedom: usize, probability: f64) -> f64 {
    // `P` rises with the angle atan(t / sqrt(freedom)), so bisection finds it to the last bits.
    let (mut low, mut high) = (0.0, FRAC_PI_2);
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if t_probability(freedom, middle) < probability {
            low = middle;
        } else {
            high = middle;
        }
    }
    (freedom as f64).sqrt() * low.tan()
}

/// `P(|T| < sqrt(freedom) tan(angle))`: Abramowitz and Stegun, 26.7.3 and 26.7.4, finite sums for whole degrees of
/// freedom.
fn t_probability(freedom: usize, angle: f64) -> f64 {
    let (sine, cosine) = angle.sin_cos();
    let odd = freedom % 2 == 1;
    // The first term and its power of the cosine; each further term is the last one times
    // cos^2 * (k - 1) / k, k = 2, 4, .. for even and 3, 5, .. for odd degrees of freedom.
    let mut term = if odd { cosine } else { 1.0 };
    let (mut k, mut sum) = (if odd { 3 } else { 2 }, 0.0);
    if freedom > 1 {
        sum = term;
        while k < freedom {
            term *= cosine * cosine * (k - 1) as f64 / k as f64;
            sum += term;
            k += 2;
        }
    }
    if odd {
        FRAC_2_PI * (angle + sine * sum)
    } else {
        sine * sum
    }
}

/// The exact two-sided p-value of the sign-flip test that the values are spread evenly around 0. With n values it
/// cannot be smaller than `2^(1 - n)`. `None` for fewer than two values, of which nothing can be said, and for more than 20.
pub fn sign_flip_p(values: &[f64]) -> Option<f64> {
    if !(2..=MOST_FLIPPED).contains(&values.len()) {
        return None;
    }
    let size: f64 = values.iter().map(|value| value.abs()).sum();
    // Sums of the same numbers in another order may differ in their last bits.
    let observed = values.iter().sum::<f64>().abs() - size * 1e-12;
    let count = 1_u32 << values.len();
    let extreme = (0..count).filter(|signs| {
        let flipped =
            values.iter().enumerate().map(
                |(at, value)| {
                    if signs >> at & 1 == 1 { -value } else { *value }
                },
            );
        flipped.sum::<f64>().abs() >= observed
    });
    Some(extreme.count() as f64 / f64::from(count))
}

/// Percentile intervals, at [`CONFIDENCE`], of K sums of means over strata by the stratified bootstrap.
///
/// `strata[j][e]` holds, for each of the K quantities, the value of example e of task j; a quantity is `sum_j mean_e
/// strata[j][e]`. Every resample draws as many examples of each stratum as it has, with replacement, and the same
/// ones for all quantities. Empty strata count as 0. The draws are a function of the sizes alone, so that swapping
/// the two sides of a difference mirrors its interval.
pub fn bootstrap<const K: usize>(strata: &[Vec<[f64; K]>]) -> [Interval; K] {
    let mut rng = ChaCha8Rng::seed_from_u64(BOOTSTRAP_SEED);
    let mut sums: [Vec<f64>; K] = std::array::from_fn(|_| Vec::with_capacity(RESAMPLES));
    for _ in 0..RESAMPLES {
        let mut total = [0.0; K];
        for stratum in strata.iter().filter(|stratum| !stratum.is_empty()) {
            let size = stratum.len() as u64;
            let mut drawn = [0.0; K];
            for _ in 0..size {
                // The high half of the product is uniform up to a bias of size / 2^32.
                let index = (u64::from(rng.next_u32()) * size) >> 32;
                let values = &stratum[index as usize];
                (0..K).for_each(|k| drawn[k] += values[k]);
            }
            (0..K).for_each(|k| total[k] += drawn[k] / size as f64);
        }
        (0..K).for_each(|k| sums[k].push(total[k]));
    }
    let tail = (1.0 - CONFIDENCE) / 2.0;
    sums.map(|mut sums| {
        let low = lower_quantile(&mut sums, tail);
        // Read from the other end, so that the two ends mirror each other bit for bit.
        sums.iter_mut().for_each(|sum| *sum = -*sum);
        let high = -lower_quantile(&mut sums, tail);
        Interval { low, high }
    })
}

/// The quantile with linear interpolation between order statistics (NumPy's default). Sorts the values.
fn lower_quantile(values: &mut [f64], probability: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let position = probability * (values.len() - 1) as f64;
    let (below, share) = (position.floor() as usize, position.fract());
    let above = (below + 1).min(values.len() - 1);
    values[below] + (values[above] - values[below]) * share
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!(
            (found - expected).abs() <= tolerance,
            "found {found}, expected {expected}"
        );
    }

    // import numpy as np; x = np.array([71.2, 69.8, 73.1, 70.4, 72.0])
    // x.mean(), x.std(ddof=1), np.median(x), np.median(x[:4])
    #[test]
    fn spread() {
        let values = [71.2, 69.8, 73.1, 70.4, 72.0];
        close(mean(&values).unwrap(), 71.3, 1e-12);
        close(
            standard_deviation(&values).unwrap(),
            1.303_840_481_040_527_5,
            1e-12,
        );
        close(median(&values).unwrap(), 71.2, 1e-12);
        close(median(&values[..4]).unwrap(), 70.8, 1e-12);
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[4.0]).unwrap().sd, None);
        assert_eq!(median(&[]), None);
    }

    // from scipy.stats import t; [t.ppf(.975, n) for n in (1, 2, 3, 4, 5, 9, 30)], t.ppf(.995, 7), t.ppf(.75, 6)
    #[test]
    fn t_of_scipy() {
        let expected = [
            (1, 12.706_204_736_174_694),
            (2, 4.302_652_729_749_462),
            (3, 3.182_446_305_283_708),
            (4, 2.776_445_105_197_793_4),
            (5, 2.570_581_835_636_314_7),
            (9, 2.262_157_162_798_205),
            (30, 2.042_272_456_301_237_8),
        ];
        for (freedom, t) in expected {
            close(t_two_sided(freedom, 0.95), t, 1e-9);
        }
        close(t_two_sided(7, 0.99), 3.499_483_297_350_493_5, 1e-9);
        close(t_two_sided(6, 0.5), 0.717_558_196_491_412_6, 1e-9);
    }

    // from scipy.stats import t
    // t.interval(.95, 4, loc=x.mean(), scale=x.std(ddof=1) / 5 ** .5)
    #[test]
    fn interval_of_scipy() {
        let interval = t_interval(&[71.2, 69.8, 73.1, 70.4, 72.0]).unwrap();
        close(interval.low, 69.681_068_215_291_29, 1e-9);
        close(interval.high, 72.918_931_784_708_7, 1e-9);
        assert_eq!(t_interval(&[1.0]), None);
    }

    // from scipy.stats import permutation_test
    // permutation_test((d,), np.mean, permutation_type='samples', n_resamples=np.inf).pvalue
    #[test]
    fn sign_flips_of_scipy() {
        close(
            sign_flip_p(&[1.2, 0.4, 2.0, -0.3, 0.9]).unwrap(),
            0.125,
            1e-12,
        );
        close(sign_flip_p(&[0.5, 0.7, 0.1]).unwrap(), 0.25, 1e-12);
        close(sign_flip_p(&[0.1, 0.2, -0.3]).unwrap(), 1.0, 1e-12);
        close(sign_flip_p(&[0.0, 0.0]).unwrap(), 1.0, 1e-12);
        assert_eq!(sign_flip_p(&[1.0]), None);
        assert_eq!(sign_flip_p(&[1.0; 21]), None);
    }

    // a = np.r_[np.ones(60), np.zeros(40)] - .5; b = np.r_[np.ones(30), np.zeros(20)]
    // rng = np.random.default_rng(0)
    // s = [rng.choice(a, 100).mean() + rng.choice(b, 50).mean() for _ in range(400_000)]
    // np.percentile(s, [2.5, 97.5]) -> the tolerance is the error of 10 000 resamples, about 0.003
    #[test]
    fn bootstrap_of_numpy() {
        let first: Vec<[f64; 1]> = (0..100)
            .map(|e| [if e < 60 { 0.5 } else { -0.5 }])
            .collect();
        let second: Vec<[f64; 1]> = (0..50).map(|e| [f64::from(u8::from(e < 30))]).collect();
        let [interval] = bootstrap(&[first, second]);
        close(interval.low, 0.53, 0.011);
        close(interval.high, 0.86, 0.011);
        assert!(interval.low > 0.0);
    }

    // np.percentile([3, 1, 2, 10], 30)
    #[test]
    fn quantile_of_numpy() {
        close(lower_quantile(&mut [3.0, 1.0, 2.0, 10.0], 0.3), 1.9, 1e-12);
        close(lower_quantile(&mut [5.0], 0.3), 5.0, 0.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_bootstrap_contains_the_mean_and_mirrors(
            pairs in prop::collection::vec(prop::collection::vec((0_u8..2, 0_u8..2), 8..60), 1..5),
        ) {
            let strata = |sign: f64| -> Vec<Vec<[f64; 1]>> {
                let difference = |&(a, b): &(u8, u8)| [sign * (f64::from(a) - f64::from(b))];
                pairs.iter().map(|task| task.iter().map(difference).collect()).collect()
            };
            let (there, back) = (strata(1.0), strata(-1.0));
            let mean: f64 = there
                .iter()
                .map(|task| task.iter().map(|[value]| value).sum::<f64>() / task.len() as f64)
                .sum();
            let ([there], [back]) = (bootstrap(&there), bootstrap(&back));
            prop_assert!(there.low <= mean + 1e-12 && mean <= there.high + 1e-12);
            prop_assert_eq!((there.low, there.high), (-back.high, -back.low));
        }

        #[test]
        fn p_is_a_probability_and_ignores_the_sign(
            values in prop::collection::vec(-3.0..3.0_f64, 2..9),
        ) {
            let p = sign_flip_p(&values).unwrap();
            let negated: Vec<f64> = values.iter().map(|value| -value).collect();
            let least = 2.0_f64.powi(1 - values.len() as i32);
            prop_assert!((least..=1.0).contains(&p));
            prop_assert_eq!(p, sign_flip_p(&negated).unwrap());
        }
    }
}
