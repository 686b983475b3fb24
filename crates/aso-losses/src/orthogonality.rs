//! Penalties on the angle between the row spaces of subspaces, and on their size.

use aso_kernels::{absolute_products, frobenius_norm};
use burn::tensor::{Tensor, TensorData};

/// How the products `P = A_k A_t^T` of past and active rows become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Orthogonality {
    /// `sum |P_ij|`, O-LoRA's penalty as released (Wang et al. 2023, code; docs/method.md, Loss).
    #[default]
    AbsoluteSum,
    /// `sum P_ij^2`, O-LoRA's penalty as printed (Wang et al. 2023, eq. 8).
    SquaredFrobenius,
    /// Mean over all row pairs of `|cos(a_i, a_j)|`: directions only, so its scale grows neither with
    /// the number of tasks nor with rank, width or number of layers (docs/method.md, Loss).
    MeanAbsoluteCosine,
}

/// The rows of one layer that a penalty compares.
#[derive(Debug, Clone)]
pub struct SubspacePair {
    /// Rows of every past `A_k`, `[R, d_in]`, constants.
    pub previous: Tensor<2>,
    /// `A_t`, `[r, d_in]`.
    pub active: Tensor<2>,
    /// One weight per past row, R in all; `None` weighs every row with 1. This is how one soft weight per
    /// past task, or per block, enters.
    pub row_weights: Option<Vec<f32>>,
}

/// `O = sum_m sum_{k<t} f(A_k^m (A_t^m)^T)` over the adapted layers m.
#[derive(Debug, Clone, Copy, Default)]
pub struct OrthogonalityPenalty {
    /// The function f.
    pub measure: Orthogonality,
}

impl OrthogonalityPenalty {
    /// A penalty with the given measure.
    pub fn new(measure: Orthogonality) -> Self {
        Self { measure }
    }

    /// The penalty over all layers, shape `[1]`; `None` if there is no pair.
    ///
    /// For [`Orthogonality::MeanAbsoluteCosine`] the mean runs over all row pairs of all layers, and
    /// row weights weigh terms without renormalising, so that weight w gives w times the penalty.
    ///
    /// # Panics
    /// Panics if the shapes of a pair do not fit together.
    pub fn forward(&self, pairs: impl IntoIterator<Item = SubspacePair>) -> Option<Tensor<1>> {
        let mut total: Option<Tensor<1>> = None;
        let mut count = 0usize;
        for pair in pairs {
            count += pair.previous.dims()[0] * pair.active.dims()[0];
            let term = self.layer(pair);
            total = Some(match total {
                Some(total) => total + term,
                None => term,
            });
        }
        match self.measure {
            Orthogonality::MeanAbsoluteCosine => total.map(|total| total.div_scalar(count as f64)),
            Orthogonality::AbsoluteSum | Orthogonality::SquaredFrobenius => total,
        }
    }

    /// Sum of the terms of one layer, shape `[1]`.
    fn layer(&self, pair: SubspacePair) -> Tensor<1> {
        let SubspacePair {
            previous,
            active,
            row_weights,
        } = pair;
        match self.measure {
            Orthogonality::AbsoluteSum => absolute_products(previous, active, row_weights),
            Orthogonality::MeanAbsoluteCosine => {
                absolute_products(unit_rows(previous), unit_rows(active), row_weights)
            }
            Orthogonality::SquaredFrobenius => {
                let device = previous.device().without_autodiff();
                let rows = previous.dims()[0];
                let terms = previous.matmul(active.transpose()).square();
                let terms = match row_weights {
                    Some(weights) => {
                        terms * Tensor::from_data(TensorData::new(weights, [rows, 1]), &device)
                    }
                    None => terms,
                };
                // The last dimension first: the order of summation stays fixed however large the tensor.
                terms.sum_dim(1).sum()
            }
        }
    }
}

/// Rows scaled to length 1; rows that have no direction in single precision, since their squares are 0 (entries below about 1e-23),
/// become 0.
fn unit_rows(rows: Tensor<2>) -> Tensor<2> {
    let norms = safe_sqrt(rows.clone().square().sum_dim(1));
    let none = norms.clone().equal_scalar(0.0);
    rows / norms.mask_fill(none, f32::INFINITY)
}

/// `N = ||A||_F + ||B||_F` of one layer, shape `[1]` (docs/method.md, Loss).
///
/// The gradient of a norm at 0 is 0/0; here it is 0, so that a fresh subspace (B = 0) trains.
pub fn norm_penalty(a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    frobenius_norm(a) + frobenius_norm(b)
}

/// Square root of non-negative numbers whose gradient at 0 is 0 instead of infinite.
fn safe_sqrt<const D: usize>(squares: Tensor<D>) -> Tensor<D> {
    let zero = squares.clone().equal_scalar(0.0);
    // Where the square is 0 the root is taken of the constant 1 and then replaced by 0: neither
    // branch lets an infinite derivative meet a zero.
    squares
        .mask_fill(zero.clone(), 1.0)
        .sqrt()
        .mask_fill(zero, 0.0)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use proptest::prelude::*;

    use super::*;

    const MEASURES: [Orthogonality; 3] = [
        Orthogonality::AbsoluteSum,
        Orthogonality::SquaredFrobenius,
        Orthogonality::MeanAbsoluteCosine,
    ];

    fn matrix(values: &[f32], width: usize) -> Tensor<2> {
        let rows = values.len() / width;
        Tensor::from_data(
            TensorData::new(values.to_vec(), [rows, width]),
            &Device::flex(),
        )
    }

    fn penalty(measure: Orthogonality, previous: Tensor<2>, active: Tensor<2>) -> f64 {
        let pair = SubspacePair {
            previous,
            active,
            row_weights: None,
        };
        OrthogonalityPenalty::new(measure)
            .forward([pair])
            .unwrap()
            .into_scalar()
    }

    fn rows(count: usize) -> impl Strategy<Value = Vec<f32>> {
        proptest::collection::vec(-2.0f32..2.0, count * 6)
    }

    // Python:
    //   P = torch.tensor([[1., 2.], [0., -3.]]); A = torch.tensor([[1., -1.], [2., 1.]])
    //   (P @ A.T).abs().sum() -> 11.0 ; (P @ A.T).pow(2).sum() -> 35.0
    #[test]
    fn known_values() {
        let previous = matrix(&[1.0, 2.0, 0.0, -3.0], 2);
        let active = matrix(&[1.0, -1.0, 2.0, 1.0], 2);
        let value = |measure| penalty(measure, previous.clone(), active.clone());
        assert_eq!(value(Orthogonality::AbsoluteSum), 11.0);
        assert_eq!(value(Orthogonality::SquaredFrobenius), 35.0);
        let cosines =
            (1.0 / 10f64.sqrt() + 4.0 / 5.0 + 1.0 / 2f64.sqrt() + 1.0 / 5f64.sqrt()) / 4.0;
        assert!((value(Orthogonality::MeanAbsoluteCosine) - cosines).abs() < 1e-6);
    }

    #[test]
    fn orthogonal_row_spaces_cost_nothing() {
        let previous = matrix(&[1.0, 2.0, 0.0, 0.0, -1.0, 4.0, 0.0, 0.0], 4);
        let active = matrix(&[0.0, 0.0, 3.0, 1.0], 4);
        for measure in MEASURES {
            assert_eq!(penalty(measure, previous.clone(), active.clone()), 0.0);
        }
    }

    #[test]
    fn rows_without_a_direction_have_no_cosine() {
        let measure = Orthogonality::MeanAbsoluteCosine;
        let unit = matrix(&[1.0, 0.0], 2);
        for (length, expected) in [(1.0, 1.0), (1e-15, 1.0), (1e-24, 0.0), (0.0, 0.0)] {
            let found = penalty(measure, unit.clone(), matrix(&[length, 0.0], 2));
            assert!((found - expected).abs() < 1e-4, "{length}: {found}");
        }
    }

    #[test]
    fn norms_have_zero_gradient_at_zero() {
        let device = Device::flex().autodiff();
        let a = Tensor::<2>::from_floats([[3.0, 4.0]], &device).require_grad();
        let b = Tensor::<2>::zeros([2, 1], &device).require_grad();
        let value = norm_penalty(a.clone(), b.clone());
        let grads = value.backward();
        assert_eq!(value.without_autodiff().into_scalar::<f32>(), 5.0);
        let a: Vec<f32> = a.grad(&grads).unwrap().into_data().try_to_vec().unwrap();
        let b: Vec<f32> = b.grad(&grads).unwrap().into_data().try_to_vec().unwrap();
        assert_eq!(a, [0.6, 0.8]);
        assert_eq!(b, [0.0, 0.0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn sign_of_a_row_does_not_matter(previous in rows(3), active in rows(2), row in 0usize..2) {
            let flipped: Vec<f32> = active
                .iter()
                .enumerate()
                .map(|(i, v)| if i / 6 == row { -v } else { *v })
                .collect();
            for measure in MEASURES {
                let a = penalty(measure, matrix(&previous, 6), matrix(&active, 6));
                let b = penalty(measure, matrix(&previous, 6), matrix(&flipped, 6));
                prop_assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0));
            }
        }

        #[test]
        fn sums_are_additive_over_tasks(first in rows(2), second in rows(3), active in rows(2)) {
            let both: Vec<f32> = first.iter().chain(&second).copied().collect();
            for measure in [Orthogonality::AbsoluteSum, Orthogonality::SquaredFrobenius] {
                let whole = penalty(measure, matrix(&both, 6), matrix(&active, 6));
                let parts = penalty(measure, matrix(&first, 6), matrix(&active, 6))
                    + penalty(measure, matrix(&second, 6), matrix(&active, 6));
                prop_assert!((whole - parts).abs() <= 1e-5 * whole.max(1.0));
            }
        }

        #[test]
        fn row_weights_weigh_tasks(first in rows(2), second in rows(3), active in rows(2), w in 0.0f64..1.0) {
            let both: Vec<f32> = first.iter().chain(&second).copied().collect();
            let weights = [w as f32, w as f32, 1.0, 1.0, 1.0];
            let weighted: f64 = OrthogonalityPenalty::default()
                .forward([SubspacePair {
                    previous: matrix(&both, 6),
                    active: matrix(&active, 6),
                    row_weights: Some(weights.to_vec()),
                }])
                .unwrap()
                .into_scalar();
            let measure = Orthogonality::AbsoluteSum;
            let parts = w * penalty(measure, matrix(&first, 6), matrix(&active, 6))
                + penalty(measure, matrix(&second, 6), matrix(&active, 6));
            prop_assert!((weighted - parts).abs() <= 1e-5 * parts.max(1.0));
        }

        #[test]
        fn cosine_ignores_scale_and_task_count(previous in rows(2), active in rows(2), scale in 0.1f32..10.0) {
            let scaled: Vec<f32> = active.iter().map(|v| v * scale).collect();
            let twice: Vec<f32> = previous.iter().chain(&previous).copied().collect();
            let measure = Orthogonality::MeanAbsoluteCosine;
            let value = penalty(measure, matrix(&previous, 6), matrix(&active, 6));
            prop_assert!((penalty(measure, matrix(&previous, 6), matrix(&scaled, 6)) - value).abs() < 1e-5);
            prop_assert!((penalty(measure, matrix(&twice, 6), matrix(&active, 6)) - value).abs() < 1e-5);
        }
    }
}
