//! Learning-rate schedules, as in Transformers.

use crate::config::Schedule;

/// The rate of optimizer step `step` (0-based) of a task of `steps` steps.
///
/// Warm-up: `lr * step / warmup` for `step < warmup`. Then `lr` (constant) or
/// `lr * (steps - step) / (steps - warmup)` (linear).
pub fn learning_rate(schedule: Schedule, lr: f64, warmup: usize, step: usize, steps: usize) -> f64 {
    if step < warmup {
        return lr * step as f64 / warmup as f64;
    }
    match schedule {
        Schedule::Constant => lr,
        Schedule::Linear => {
            let left = steps.saturating_sub(step) as f64;
            lr * left / steps.saturating_sub(warmup).max(1) as f64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Python: transformers.get_linear_schedule_with_warmup(optimizer, 2, 6) with lr 1:
    //   0, 0.5, 1, 0.75, 0.5, 0.25
    #[test]
    fn linear_with_warmup() {
        let rates: Vec<f64> = (0..6)
            .map(|step| learning_rate(Schedule::Linear, 1.0, 2, step, 6))
            .collect();
        assert_eq!(rates, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
    }

    #[test]
    fn constant() {
        assert_eq!(learning_rate(Schedule::Constant, 0.1, 0, 0, 5), 0.1);
        assert_eq!(learning_rate(Schedule::Constant, 0.1, 0, 4, 5), 0.1);
    }
}
