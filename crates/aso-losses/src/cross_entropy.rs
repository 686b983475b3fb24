//! Cross entropy over the target tokens of a batch.

use burn::tensor::{Int, Tensor};

/// Cross entropy between logits and labels, positions labelled [`ignore_index`](Self::ignore_index)
/// left out.
///
/// Returned as a sum together with the number of tokens, because the loss of an optimizer step is
/// `(sum of token losses) / (number of target tokens)` over all its micro-batches (docs/method.md, Loss):
/// averaging per micro-batch would weigh tokens unequally.
#[derive(Debug, Clone, Copy)]
pub struct SequenceCrossEntropy {
    /// The label of positions that do not count. Default: -100.
    pub ignore_index: i64,
}

/// A sum of token losses.
#[derive(Debug, Clone)]
pub struct TokenLoss {
    /// `sum_i -log softmax(logits_i)[label_i]`, shape `[1]`.
    pub sum: Tensor<1>,
    /// Number of tokens in the sum.
    pub tokens: usize,
}

impl Default for SequenceCrossEntropy {
    fn default() -> Self {
        Self { ignore_index: -100 }
    }
}

impl SequenceCrossEntropy {
    /// Sums the token losses.
    ///
    /// # Shapes
    /// - logits: `[batch, length, vocabulary]`
    /// - labels: `batch * length` ids, row-major, on the host
    ///
    /// # Panics
    /// Panics if the number of labels is not `batch * length`.
    pub fn forward(&self, logits: Tensor<3>, labels: &[i64]) -> TokenLoss {
        let [batch, length, vocabulary] = logits.dims();
        assert_eq!(
            labels.len(),
            batch * length,
            "labels for {batch} rows of {length}"
        );
        let device = logits.device().without_autodiff();
        let (positions, targets): (Vec<i64>, Vec<i64>) = labels
            .iter()
            .enumerate()
            .filter(|(_, label)| **label != self.ignore_index)
            .map(|(position, label)| (position as i64, *label))
            .unzip();
        let tokens = targets.len();
        let flat = logits.reshape([batch * length, vocabulary]);
        if tokens == 0 {
            // Still part of the graph, so that the caller need not treat this batch specially.
            return TokenLoss {
                sum: flat.mul_scalar(0.0).sum_dim(1).sum(),
                tokens,
            };
        }
        let flat = if tokens == batch * length {
            flat
        } else {
            flat.select(
                0,
                Tensor::<1, Int>::from_ints(positions.as_slice(), &device),
            )
        };
        let sum = aso_kernels::cross_entropy(flat, &targets).sum();
        TokenLoss { sum, tokens }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    // Python:
    //   l = torch.tensor([[[1., 2., 3.], [0., 0., 0.]]]); y = torch.tensor([[2, 1]])
    //   F.cross_entropy(l[0], y[0], reduction='sum') -> 0.4076059 + 1.0986123 = 1.5062182
    #[test]
    fn known_value_and_ignored_positions() {
        let logits =
            Tensor::<3>::from_floats([[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]], &Device::flex());
        let loss = SequenceCrossEntropy::default().forward(logits.clone(), &[2, 1]);
        assert_eq!(loss.tokens, 2);
        assert!((loss.sum.into_scalar::<f32>() - 1.506_218_2).abs() < 1e-6);
        let loss = SequenceCrossEntropy::default().forward(logits.clone(), &[2, -100]);
        assert_eq!(loss.tokens, 1);
        assert!((loss.sum.into_scalar::<f32>() - 0.407_605_9).abs() < 1e-6);
        let loss = SequenceCrossEntropy::default().forward(logits, &[-100, -100]);
        assert_eq!((loss.tokens, loss.sum.into_scalar::<f32>()), (0, 0.0));
    }

    #[test]
    fn gradient_is_softmax_minus_one_hot() {
        let device = Device::flex().autodiff();
        let logits =
            Tensor::<3>::from_floats([[[1.0, 2.0, 3.0], [5.0, 1.0, 1.0]]], &device).require_grad();
        let loss = SequenceCrossEntropy::default().forward(logits.clone(), &[2, -100]);
        let grads = loss.sum.backward();
        let grad: Vec<f32> = logits
            .grad(&grads)
            .unwrap()
            .into_data()
            .try_to_vec()
            .unwrap();
        let expected = [
            0.090_030_57,
            0.244_728_48,
            0.665_240_94 - 1.0,
            0.0,
            0.0,
            0.0,
        ];
        for (found, expected) in grad.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{grad:?}");
        }
    }
}
