//! How much two subspaces share, by the angles between them.

use nalgebra::DMatrix;

/// Cosines of the principal angles between the row spaces of `a: [r1, width]` and `b: [r2, width]`, row-major, largest
/// first: the singular values of `Q_a^T Q_b` for orthonormal bases Q of the two (Bjorck & Golub 1973). As many as the
/// smaller space has dimensions; 1 where the spaces meet, 0 where they are orthogonal.
///
/// A matrix of zeros, or one without rows, spans nothing: the result is empty.
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
pub fn subspace_overlap(a: &[f32], b: &[f32], width: usize) -> Option<f64> {
    let cosines = principal_cosines(a, b, width);
    let squares = cosines.iter().map(|cosine| cosine * cosine);
    (!cosines.is_empty()).then(|| squares.sum::<f64>() / cosines.len() as f64)
}

/// Orthonormal columns that span the rows.
fn basis(rows: &[f32], width: usize) -> Option<DMatrix<f64>> {
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

    proptest! {
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
