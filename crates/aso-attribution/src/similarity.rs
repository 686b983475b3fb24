//! Correlation of score vectors.

/// Pearson correlation `Sxy / sqrt(Sxx * Syy)` in f64; `None` if either vector does not vary beyond the rounding of its mean, or
/// the lengths differ or are below 2.
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    if x.len() != y.len() || x.len() < 2 {
        return None;
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (mut sxy, mut sxx, mut syy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        let (dx, dy) = (x - mean_x, y - mean_y);
        sxy += dx * dy;
        sxx += dx * dx;
        syy += dy * dy;
    }
    // The mean of equal numbers may be off by a rounding, which is then all that seems to vary.
    let constant = |values: &[f64], sum: f64| {
        let largest = values
            .iter()
            .fold(0.0_f64, |max, value| max.max(value.abs()));
        sum.sqrt() <= largest * f64::EPSILON * values.len() as f64
    };
    if constant(x, sxx) || constant(y, syy) {
        return None;
    }
    // Two square roots: the product of two small variances may underflow.
    let scale = sxx.sqrt() * syy.sqrt();
    (scale > 0.0 && scale.is_finite()).then(|| (sxy / scale).clamp(-1.0, 1.0))
}

/// Similarity of two models, block by block.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Similarity {
    /// rho_l; `None` where a block's scores do not vary in one of the models (skipped).
    pub blocks: Vec<Option<f64>>,
}

impl Similarity {
    /// Compares scores block by block.
    ///
    /// # Panics
    /// Panics if the numbers of blocks differ.
    pub fn between(current: &[Vec<f64>], previous: &[Vec<f64>]) -> Self {
        assert_eq!(
            current.len(),
            previous.len(),
            "tapped blocks of the two models"
        );
        let blocks = current
            .iter()
            .zip(previous)
            .map(|(x, y)| pearson(x, y))
            .collect();
        Self { blocks }
    }

    /// `1 - rho_l` of every block.
    #[must_use]
    pub fn complement(&self) -> Self {
        let blocks = self.blocks.iter().map(|rho| rho.map(|rho| 1.0 - rho));
        Self {
            blocks: blocks.collect(),
        }
    }

    /// Mean over the blocks that could be compared; `None` if there is none.
    pub fn mean(&self) -> Option<f64> {
        let values: Vec<f64> = self.blocks.iter().flatten().copied().collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vector() -> impl Strategy<Value = Vec<f64>> {
        proptest::collection::vec(-10.0f64..10.0, 8)
    }

    #[test]
    fn no_variance_no_similarity() {
        assert_eq!(pearson(&[1.0, 1.0], &[1.0, 2.0]), None);
        // Their mean is not 0.1.
        assert_eq!(pearson(&[0.1; 3], &[1.0, 2.0, 3.0]), None);
        assert_eq!(pearson(&[1.0, 2.0, 3.0], &[1e-9; 3]), None);
        let near = [1.0, 1.0 + 1e-12, 1.0 + 2e-12];
        assert!(pearson(&near, &[1.0, 2.0, 3.0]).unwrap() > 0.99);
        assert_eq!(pearson(&[1.0], &[1.0]), None);
        assert_eq!(pearson(&[1.0, 2.0], &[f64::NAN, 2.0]), None);
        let similarity = Similarity::between(
            &[vec![1.0, 1.0], vec![1.0, 2.0]],
            &[vec![1.0, 2.0], vec![0.0, 5.0]],
        );
        // The second pair is perfectly correlated; the two roots round to the last place.
        let [None, Some(rho)] = similarity.blocks[..] else {
            panic!("{similarity:?}")
        };
        assert!((rho - 1.0).abs() < 1e-15);
        assert_eq!(similarity.mean(), Some(rho));
        assert_eq!(Similarity::default().mean(), None);
    }

    #[test]
    fn tiny_scores_do_not_underflow() {
        let x = [1e-160, 2e-160, 4e-160];
        assert!((pearson(&x, &x).unwrap() - 1.0).abs() < 1e-12);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn bounded_reflexive_symmetric(x in vector(), y in vector()) {
            prop_assert!((pearson(&x, &x).unwrap() - 1.0).abs() < 1e-12);
            let rho = pearson(&x, &y).unwrap();
            prop_assert!((-1.0..=1.0).contains(&rho));
            prop_assert_eq!(rho, pearson(&y, &x).unwrap());
        }

        #[test]
        fn positive_scale_and_shift_do_not_matter(
            x in vector(), y in vector(), scale in 0.01f64..100.0, shift in -50.0f64..50.0,
        ) {
            let moved: Vec<f64> = x.iter().map(|x| x * scale + shift).collect();
            let before = pearson(&x, &y).unwrap();
            prop_assert!((before - pearson(&moved, &y).unwrap()).abs() < 1e-9);
            prop_assert!((before - pearson(&y, &moved).unwrap()).abs() < 1e-9);
        }
    }
}
