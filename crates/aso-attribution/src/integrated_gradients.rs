//! Integrated gradients (Sundararajan et al. 2017) along `alpha h` at a block's output.

use aso_backbones::BlockTaps;
use burn::tensor::Tensor;

/// Where on the path from 0 to h gradients are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathRule {
    /// `alpha_i = i / m`: left end included, right end not. Preset `reference`.
    Left,
    /// `alpha_i = (i + 1/2) / m`. Preset `aso`.
    Midpoint,
}

/// Which rows' h multiplies the summed gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowFactor {
    /// Every row's own; scores are averaged over the rows. Preset `aso`.
    Own,
    /// Row 0's, for gradients summed over all rows, as released. Preset `reference`.
    First,
}

/// One score vector `[d_model]` per tapped block.
pub type AttributionScores = Vec<Vec<f64>>;

/// Settings of the path integral.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IntegratedGradients {
    /// Number m of points on the path, at least 1.
    pub steps: usize,
    /// Where the points lie.
    pub rule: PathRule,
    /// How rows combine.
    pub factor: RowFactor,
    /// Start of the path: points are spread over `[alpha_min, 1]` instead of `[0, 1]`, which leaves out
    /// the jump of P near 0 that a root-mean-square norm causes. The factor becomes
    /// `(1 - alpha_min) h / m`. Default: 0.
    pub alpha_min: f64,
    /// Upper bound on path rows (examples times points) that run through the model at once, where the paths of blocks run one
    /// after the other.
    pub max_rows: usize,
    /// The same bound where the paths of all blocks join ([`BlockTaps::joint_probabilities`]): positions (examples times points times
    /// blocks). Default: [`MAX_JOINED_POSITIONS`](crate::MAX_JOINED_POSITIONS).
    pub max_joined_positions: usize,
}

impl IntegratedGradients {
    /// Points on the path.
    fn alphas(&self) -> Vec<f32> {
        assert!(self.steps > 0, "a path has at least one point");
        let offset = match self.rule {
            PathRule::Left => 0.0,
            PathRule::Midpoint => 0.5,
        };
        (0..self.steps)
            .map(|i| {
                let share = (i as f64 + offset) / self.steps as f64;
                (self.alpha_min + (1.0 - self.alpha_min) * share) as f32
            })
            .collect()
    }

    /// Scores of every tapped block:
    /// `attr = (h / m) * sum_i dP(alpha_i h) / d(alpha_i h)`, summed over the tapped positions.
    ///
    /// Memory is bounded: path points run in chunks of at most [`max_rows`](Self::max_rows) rows or
    /// [`max_joined_positions`](Self::max_joined_positions) positions, but one point at least, and no graph is recorded for
    /// parameters.
    ///
    /// # Panics
    /// If [`steps`](Self::steps) is 0.
    pub fn attribute<M: BlockTaps>(
        &self,
        model: &M,
        trace: &M::Trace,
        blocks: usize,
    ) -> AttributionScores {
        let hidden: Vec<Tensor<3>> = (0..blocks).map(|at| model.hidden(trace, at)).collect();
        let gradients = self
            .joint_gradients(model, trace, &hidden)
            .unwrap_or_else(|| {
                let each = hidden.iter().enumerate();
                each.map(|(block, hidden)| self.block_gradients(model, trace, block, hidden))
                    .collect()
            });
        hidden
            .into_iter()
            .zip(gradients)
            .map(|(hidden, gradients)| self.scores(hidden, gradients))
            .collect()
    }

    /// Summed gradients per block and row, `[rows, positions, d_model]`, the paths of all blocks joined.
    fn joint_gradients<M: BlockTaps>(
        &self,
        model: &M,
        trace: &M::Trace,
        hidden: &[Tensor<3>],
    ) -> Option<Vec<Option<Tensor<3>>>> {
        let rows = hidden.first()?.dims()[0];
        let mut gradients = vec![None; hidden.len()];
        for alphas in self.chunks(self.max_joined_positions / (rows * hidden.len())) {
            let paths: Vec<Tensor<4>> = hidden.iter().map(|h| path(h, &alphas)).collect();
            let probabilities = model.joint_probabilities(trace, &paths)?;
            let sum = Tensor::cat(probabilities, 1).sum_dim(1).sum();
            let mut grads = sum.backward();
            for (gradients, path) in gradients.iter_mut().zip(&paths) {
                add(gradients, path.grad_remove(&mut grads));
            }
        }
        Some(gradients)
    }

    /// Summed gradients of one block, `[rows, positions, d_model]`.
    fn block_gradients<M: BlockTaps>(
        &self,
        model: &M,
        trace: &M::Trace,
        block: usize,
        hidden: &Tensor<3>,
    ) -> Option<Tensor<3>> {
        let mut gradients = None;
        for alphas in self.chunks(self.max_rows / hidden.dims()[0]) {
            let path = path(hidden, &alphas);
            let probability = model.probability(trace, block, path.clone());
            let mut grads = probability.sum_dim(1).sum().backward();
            // The last block's path may not depend on the patch at some positions; that is a zero.
            add(&mut gradients, path.grad_remove(&mut grads));
        }
        gradients
    }

    /// The points on the path, at most `count` (but one at least) at a time.
    fn chunks(&self, count: usize) -> Vec<Vec<f32>> {
        let alphas = self.alphas();
        alphas.chunks(count.max(1)).map(<[f32]>::to_vec).collect()
    }

    /// `[d_model]` scores from a block's output and the summed gradients, both `[rows, positions, d_model]`.
    fn scores(&self, hidden: Tensor<3>, gradients: Option<Tensor<3>>) -> Vec<f64> {
        let [rows, positions, width] = hidden.dims();
        let Some(gradients) = gradients else {
            return vec![0.0; width];
        };
        let host = |tensor: Tensor<3>| -> Vec<f64> {
            tensor.into_data().iter::<f32>().map(f64::from).collect()
        };
        let (hidden, gradients) = (host(hidden), host(gradients));
        let row_size = positions * width;
        let mut scores = vec![0.0; width];
        for (at, gradient) in gradients.iter().enumerate() {
            let factor = match self.factor {
                RowFactor::Own => hidden[at] / rows as f64,
                RowFactor::First => hidden[at % row_size],
            };
            scores[at % width] += factor * gradient;
        }
        let scale = (1.0 - self.alpha_min) / self.steps as f64;
        scores.iter_mut().for_each(|score| *score *= scale);
        scores
    }
}

/// The points `alpha h` for `hidden: [rows, positions, d_model]`, leaves of a graph,
/// `[rows, alphas, positions, d_model]`.
fn path(hidden: &Tensor<3>, alphas: &[f32]) -> Tensor<4> {
    let [rows, positions, width] = hidden.dims();
    let device = hidden.device().without_autodiff();
    let alphas = Tensor::<1>::from_floats(alphas, &device).reshape([1, alphas.len(), 1, 1]);
    (hidden.clone().reshape([rows, 1, positions, width]) * alphas)
        .autodiff()
        .require_grad()
}

/// Adds a gradient `[rows, alphas, positions, d_model]`, summed over the points.
fn add(total: &mut Option<Tensor<3>>, gradient: Option<Tensor<4>>) {
    let Some(gradient) = gradient else { return };
    let [rows, _, positions, width] = gradient.dims();
    let summed = gradient.sum_dim(1).reshape([rows, positions, width]);
    *total = Some(match total.take() {
        Some(total) => total + summed,
        None => summed,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(steps: usize, rule: PathRule) -> IntegratedGradients {
        IntegratedGradients {
            steps,
            rule,
            factor: RowFactor::Own,
            alpha_min: 0.0,
            max_rows: 1,
            max_joined_positions: 1,
        }
    }

    #[test]
    fn points_lie_where_the_rule_says() {
        assert_eq!(settings(2, PathRule::Left).alphas(), [0.0, 0.5]);
        let mut midpoint = settings(2, PathRule::Midpoint);
        assert_eq!(midpoint.alphas(), [0.25, 0.75]);
        midpoint.alpha_min = 0.5;
        assert_eq!(midpoint.alphas(), [0.625, 0.875]);
        assert_eq!(midpoint.chunks(0), [[0.625], [0.875]]);
    }

    #[test]
    #[should_panic(expected = "at least one point")]
    fn a_path_without_points_is_refused() {
        settings(0, PathRule::Left).alphas();
    }
}
