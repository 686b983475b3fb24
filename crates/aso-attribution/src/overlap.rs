//! How much two subspaces share, by the angles between them, and how much a subspace sees of inputs.

use nalgebra::DMatrix;

/// Cosines of the principal angles between the row spaces of `a: [r1, width]` and `b: [r2, width]`, row-major, largest
/// first: the singular values of `Q_a^T Q_b` for orthonormal bases Q of the two (Bjorck & Golub 1973). As many as the
/// smaller space has dimensions; 1 where the spaces meet, 0 where they are orthogonal.
///
/// A matrix of zeros, one without rows, or one with a value that is not finite spans nothing: the result is empty.
///
/// # Panics
/// If a length is no multiple of the width.
pub fn principal_cosines(a: &[f32], b: &[f32], width: usize) -> Vec<f64> {
    let (Some(a), Some(b)) = (basis(a, width), basis(b, width)) else {
        return Vec::new();
    };
    let mut cosines: Vec<f64> = (a.transpose() * b)
        .singular_values()
        .iter()
        .map(|cosine| cosine.clamp(0.0, 1.0))
        .collect();
    cosines.sort_by(|a, b| b.total_cmp(a));
    cosines
}

/// Mean squared cosine of the principal angles: the share of the smaller space that lies in the larger one. `None` if one
/// of the two spans nothing.
///
/// # Panics
/// Those of [`principal_cosines`].
pub fn subspace_overlap(a: &[f32], b: &[f32], width: usize) -> Option<f64> {
    let cosines = principal_cosines(a, b, width);
    let squares = cosines.iter().map(|cosine| cosine * cosine);
    (!cosines.is_empty()).then(|| squares.sum::<f64>() / cosines.len() as f64)
}

/// How strongly the rows of `a: [r, width]` respond to inputs x with `covariance = sum x x^T: [width, width]`, both row-major,
/// relative to rows of random directions:
///
/// ```text
/// sum |A x|^2 / (|A|_F^2 sum |x|^2 / width) = width tr(A C A^T) / (|A|_F^2 tr(C))
/// ```
///
/// 0 if A is orthogonal to all inputs, 1 on average over random directions, up to `width` where inputs have one direction and all
/// rows have it, too. The update of an adapter, `B A x`, changes what a layer makes of x in this measure. `None` if A or C is zero,
/// or without rows.
///
/// # Panics
/// If the lengths fit no matrices of that width.
pub fn input_response(a: &[f32], covariance: &[f32], width: usize) -> Option<f64> {
    assert_eq!(
        covariance.len(),
        width * width,
        "covariance: [width, width]"
    );
    assert!(a.len().is_multiple_of(width), "a: [r, width]");
    let rows = a.len().checked_div(width).filter(|rows| *rows > 0)?;
    let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
    let a = DMatrix::from_row_slice(rows, width, &wide(a));
    let covariance = DMatrix::from_row_slice(width, width, &wide(covariance));
    let random = a.norm_squared() * covariance.trace() / width as f64;
    (random > 0.0).then(|| (&a * covariance).dot(&a) / random)
}

/// Orthonormal columns that span the rows.
fn basis(rows: &[f32], width: usize) -> Option<DMatrix<f64>> {
    assert!(rows.len().is_multiple_of(width), "[r, {width}]");
    // The decomposition of a matrix with NaN does not converge, and tries for ever.
    if !rows.iter().all(|value| value.is_finite()) {
        return None;
    }
    let columns = rows.len().checked_div(width).filter(|rows| *rows > 0)?;
    let matrix = DMatrix::from_fn(width, columns, |row, column| {
        f64::from(rows[column * width + row])
    });
    let svd = matrix.svd(true, false);
    let largest = svd.singular_values.max();
    let u = svd.u?;
    // Relative to the largest, as a numerical rank.
    let floor = largest * f64::from(f32::EPSILON) * width as f64;
    let kept: Vec<usize> = (0..u.ncols())
        .filter(|at| svd.singular_values[*at] > floor)
        .collect();
    (!kept.is_empty()).then(|| u.select_columns(&kept))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_angles() {
        let x = [1.0, 0.0, 0.0];
        let diagonal = [1.0, 1.0, 0.0];
        let cosines = principal_cosines(&x, &diagonal, 3);
        assert!((cosines[0] - 0.5f64.sqrt()).abs() < 1e-6);
        assert!((subspace_overlap(&x, &diagonal, 3).unwrap() - 0.5).abs() < 1e-6);
        assert!(subspace_overlap(&x, &[0.0, 0.0, 2.0], 3).unwrap() < 1e-12);
        assert_eq!(subspace_overlap(&x, &[0.0; 3], 3), None);
        assert_eq!(subspace_overlap(&x, &[], 3), None);
        assert_eq!(subspace_overlap(&[], &[], 0), None);
        // A line in a plane.
        let plane = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0];
        assert!((subspace_overlap(&x, &plane, 3).unwrap() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn what_is_not_finite_spans_nothing() {
        let (x, mut y) = ([1.0; 24], [0.5; 24]);
        for broken in [f32::NAN, f32::INFINITY] {
            y[7] = broken;
            assert!(principal_cosines(&x, &y, 6).is_empty());
            assert_eq!(subspace_overlap(&y, &x, 6), None);
        }
    }

    #[test]
    #[should_panic(expected = "[r, 3]")]
    fn part_of_a_row_is_refused() {
        principal_cosines(&[1.0; 3], &[1.0; 5], 3);
    }

    #[test]
    fn known_responses() {
        // Inputs (3, 0, 0) and (0, 4, 0).
        let covariance = [9.0, 0.0, 0.0, 0.0, 16.0, 0.0, 0.0, 0.0, 0.0];
        let of = |a: &[f32]| input_response(a, &covariance, 3);
        assert_eq!(of(&[0.0, 0.0, 2.0]), Some(0.0));
        assert!((of(&[1.0, 0.0, 0.0]).unwrap() - 3.0 * 9.0 / 25.0).abs() < 1e-12);
        assert!((of(&[0.0, 5.0, 0.0]).unwrap() - 3.0 * 16.0 / 25.0).abs() < 1e-12);
        assert_eq!(of(&[0.0; 3]), None);
        assert_eq!(of(&[]), None);
        assert_eq!(input_response(&[1.0; 3], &[0.0; 9], 3), None);
        assert_eq!(input_response(&[], &[], 0), None);
    }

    proptest! {
        #[test]
        fn an_orthonormal_basis_responds_as_random_rows_do(
            inputs in proptest::collection::vec(-1.0f32..1.0, 4 * 3), mix in proptest::collection::vec(-1.0f32..1.0, 3 * 3),
        ) {
            let covariance: Vec<f32> = (0..9)
                .map(|at| inputs.chunks(3).map(|x| x[at / 3] * x[at % 3]).sum())
                .collect();
            let q = DMatrix::from_row_slice(3, 3, &mix).qr().q();
            let rows: Vec<f32> = q.transpose().iter().copied().collect();
            let whole = input_response(&rows, &covariance, 3).unwrap();
            prop_assert!((whole - 1.0).abs() < 1e-4, "{whole}");
        }

        #[test]
        fn overlap_is_symmetric_and_ignores_the_basis(
            a in proptest::collection::vec(-1.0f32..1.0, 2 * 6),
            b in proptest::collection::vec(-1.0f32..1.0, 3 * 6),
            mix in -0.5f32..0.5,
        ) {
            let overlap = subspace_overlap(&a, &b, 6).unwrap();
            prop_assert!((0.0..=1.0 + 1e-9).contains(&overlap));
            prop_assert!((subspace_overlap(&b, &a, 6).unwrap() - overlap).abs() < 1e-9);
            prop_assert!((subspace_overlap(&a, &a, 6).unwrap() - 1.0).abs() < 1e-6);
            let mixed: Vec<f32> = (0..12).map(|at| match at < 6 {
                true => 2.0 * a[at] + mix * a[at + 6],
                false => a[at] - 0.5 * mix * a[at - 6],
            }).collect();
            prop_assert!((subspace_overlap(&mixed, &b, 6).unwrap() - overlap).abs() < 1e-3);
        }
    }
}
