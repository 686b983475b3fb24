//! From similarity to the weight of the orthogonality penalty.

/// `w = 1 - rho`, optionally clamped to `[0, 1]` (docs/method.md, Loss).
///
/// Similar tasks (rho near 1) are hardly isolated, unrelated ones (rho near 0) fully. The weight is a
/// constant in the gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoftWeight {
    /// Range `[0, 1]`: negative similarity isolates no more than none at all. Preset `aso`.
    Clamped,
    /// Range `[0, 2]`, as released. Preset `reference`.
    Unclamped,
}

impl SoftWeight {
    /// The weight for similarity `rho` in `[-1, 1]`; full isolation, 1, if it could not be measured.
    pub fn weight(self, rho: Option<f64>) -> f64 {
        match (self, rho) {
            (_, None) => 1.0,
            (Self::Clamped, Some(rho)) => (1.0 - rho).clamp(0.0, 1.0),
            (Self::Unclamped, Some(rho)) => 1.0 - rho,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_typical_similarities() {
        assert_eq!(SoftWeight::Clamped.weight(Some(1.0)), 0.0);
        assert_eq!(SoftWeight::Clamped.weight(Some(0.25)), 0.75);
        assert_eq!(SoftWeight::Clamped.weight(Some(-0.5)), 1.0);
        assert_eq!(SoftWeight::Unclamped.weight(Some(-0.5)), 1.5);
        assert_eq!(SoftWeight::Clamped.weight(None), 1.0);
    }
}
