//! Scalar functions and sums that compile to vector instructions.

/// Values that one step of a sum adds up side by side.
const LANES: usize = 16;

/// `sum_i f(a_i, b_i, c_i)`, in an order that depends on the length alone.
#[inline(always)]
pub(super) fn sum3(a: &[f32], b: &[f32], c: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let (c_lanes, c_rest) = c.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for ((a, b), c) in a_lanes.iter().zip(b_lanes).zip(c_lanes) {
        for lane in 0..LANES {
            sums[lane] += f(a[lane], b[lane], c[lane]);
        }
    }
    let mut rest = 0.0;
    for ((a, b), c) in a_rest.iter().zip(b_rest).zip(c_rest) {
        rest += f(*a, *b, *c);
    }
    total(sums) + rest
}

/// `sum_i a_i b_i`.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum3(a, b, b, |a, b, _| a * b)
}

#[inline(always)]
fn total(mut sums: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

/// The largest value; NaN is passed over.
#[inline(always)]
pub(super) fn maximum(x: &[f32]) -> f32 {
    let (lanes, rest) = x.as_chunks::<LANES>();
    let mut best = [f32::NEG_INFINITY; LANES];
    for values in lanes {
        for lane in 0..LANES {
            best[lane] = if values[lane] > best[lane] {
                values[lane]
            } else {
                best[lane]
            };
        }
    }
    rest.iter().chain(&best).fold(
        f32::NEG_INFINITY,
        |best, x| if *x > best { *x } else { best },
    )
}

/// Multiplies with a mask and its scale.
#[inline(always)]
pub(super) fn scale_kept(x: &mut [f32], kept: &[u8], scale: f32) {
    for (x, kept) in x.iter_mut().zip(kept) {
        *x *= f32::from(*kept) * scale;
    }
}

/// Replaces every `x` by `exp(x - shift)` and returns the sum of the results.
#[inline(always)]
pub(super) fn exp_sum(x: &mut [f32], shift: f32) -> f32 {
    let (lanes, rest) = x.as_chunks_mut::<LANES>();
    let mut sums = [0.0f32; LANES];
    for values in lanes {
        for lane in 0..LANES {
            values[lane] = exp(values[lane] - shift);
            sums[lane] += values[lane];
        }
    }
    let mut last = 0.0;
    for value in rest {
        *value = exp(*value - shift);
        last += *value;
    }
    total(sums) + last
}

/// `exp(x)` by Cody-Waite reduction and Cephes' polynomial: within 2 units in the last place, 0 below -87.3,
/// NaN for NaN, and bounded by exp(88).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const SMALLEST: f32 = -87.336;
    /// Adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let bounded = x.clamp(-88.0, 88.0);
    let shifted = bounded * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first exact in products with n.
    let r = bounded - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let y = p * r * r + r + 1.0;
    let exponent = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127);
    let y = y * f32::from_bits(exponent << 23);
    if x < SMALLEST { 0.0 } else { y }
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh(x)`, within 2e-7.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for step in -87_000..=87_000 {
            let x = step as f32 / 1000.0;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            let error = (found - expected).abs() / expected;
            assert!(
                error < 2.0 * f64::from(f32::EPSILON),
                "exp({x}) = {found}, off by {error:e}"
            );
        }
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::MIN), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(1e9).is_finite());
    }

    #[test]
    fn tanh_and_sigmoid() {
        for step in -2000..=2000 {
            let x = step as f32 / 100.0;
            let exact = f64::from(x);
            assert!(
                (f64::from(tanh(x)) - exact.tanh()).abs() < 2e-7,
                "tanh({x})"
            );
            let sigma = 1.0 / (1.0 + (-exact).exp());
            assert!((f64::from(sigmoid(x)) - sigma).abs() < 2e-7, "sigmoid({x})");
        }
    }

    #[test]
    fn sums_and_maxima_of_any_length() {
        for length in [0, 1, 15, 16, 17, 100] {
            let x: Vec<f32> = (0..length).map(|i| (i * 37 % 11) as f32).collect();
            assert_eq!(dot(&x, &x), x.iter().map(|x| x * x).sum::<f32>());
            let expected = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(maximum(&x), expected);
        }
    }
}
