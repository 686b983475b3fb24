//! Integrated gradients (Sundararajan et al. 2017) along `alpha h` at a block's output.

use aso_backbones::BlockTaps;
use burn::tensor::Tensor;

/// Where on the path from 0 to h gradients are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathRule {
    /// `alpha_i = i / m`: left end included, right end not. Preset `reference`.
    Left,
    /// `alpha_i = (i + 1/2) / m`. Preset `aso`.
    Midpoint,
}

/// Which rows' h multiplies the summed gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Number m of points on the path.
    pub steps: usize,
    /// Where the points lie.
    pub rule: PathRule,
    /// How rows combine.
    pub factor: RowFactor,
    /// Start of the path: points are spread over `[alpha_min, 1]` instead of `[0, 1]`, which leaves out
    /// the jump of P near 0 that a root-mean-square norm causes. The factor becomes
    /// `(1 - alpha_min) h / m`. Default: 0.
    pub alpha_min: f64,
    /// Upper bound on path rows (examples times points) that run through the model at once.
    pub max_rows: usize,
}

impl IntegratedGradients {
    /// Points on the path.
    fn alphas(&self) -> Vec<f32> {
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
    /// Memory is bounded: path points run in chunks of at most [`max_rows`](Self::max_rows) rows,
    /// and no graph is recorded for parameters.
    pub fn attribute<M: BlockTaps>(
        &self,
        model: &M,
        trace: &M::Trace,
        blocks: usize,
    ) -> AttributionScores {
        (0..blocks)
            .map(|block| self.attribute_block(model, trace, block))
            .collect()
    }

    fn attribute_block<M: BlockTaps>(&self, model: &M, trace: &M::Trace, block: usize) -> Vec<f64> {
        let hidden = model.hidden(trace, block);
        let [rows, positions, width] = hidden.dims();
        let device = hidden.device().without_autodiff();
        // Summed gradients per row, `[rows, positions, d_model]`.
        let mut gradients: Option<Tensor<3>> = None;
        for alphas in self.alphas().chunks((self.max_rows / rows).max(1)) {
            let count = alphas.len();
            let alphas = Tensor::<1>::from_floats(alphas, &device).reshape([1, count, 1, 1]);
            let path = (hidden.clone().reshape([rows, 1, positions, width]) * alphas)
                .autodiff()
                .require_grad();
            let probability = model.probability(trace, block, path.clone());
            let grads = probability.sum_dim(1).sum().backward();
            // The last block's path may not depend on the patch at some positions; that is a zero.
            let Some(gradient) = path.grad(&grads) else {
                continue;
            };
            let summed = gradient.sum_dim(1).reshape([rows, positions, width]);
            gradients = Some(match gradients {
                Some(total) => total + summed,
                None => summed,
            });
        }
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
