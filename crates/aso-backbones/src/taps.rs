//! Reading and patching block outputs.

use aso_lora::AdapterScope;
use burn::tensor::{Device, Tensor};

use crate::{BackboneError, TokenBatch};

/// Which blocks are tapped, at which positions, and which probability is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TapPoint {
    /// The blocks that produce the answer (T5: decoder; causal: all), at the position that predicts the
    /// row's first label; the model's own next-token probability of that label (docs/method.md, Attribution and the soft weight).
    Answer,
    /// Encoder blocks, all positions at once; the same probability as [`Answer`](Self::Answer).
    Encoder,
    /// Encoder blocks at position S - 2 of the padded length S; probability of token
    /// `input_ids[0][S - 2]` under the LM head on the encoder's own output (docs/method.md, Attribution and the soft weight, what the
    /// released code computes).
    EncoderReadout,
}

/// A model whose blocks can be read and patched: all that attribution knows of a model.
///
/// Use: [`trace`](Self::trace) runs the model once; then for any block,
/// [`probability`](Self::probability) continues from patched outputs of that block. Everything that the
/// patch cannot change is computed in the trace, once.
///
/// A model is shared between threads, which measure it with different subspaces.
pub trait BlockTaps: Sync {
    /// What one traced forward pass keeps.
    type Trace;

    /// Where the weights are, outside autodiff.
    fn device(&self) -> Device;

    /// Number of tapped blocks, numbered from 0.
    fn tapped_blocks(&self, point: TapPoint) -> usize;

    /// The tapped block that a linear layer belongs to, as the point under which it is numbered and its
    /// number; `None` for a layer outside the blocks.
    fn tapped_block_of(&self, layer: &str) -> Option<(TapPoint, usize)>;

    /// Runs the model without dropout and without a graph, keeping what continuing needs.
    ///
    /// Every row must have a label ([`TokenBatch::first_label`]) unless the point is
    /// [`TapPoint::EncoderReadout`].
    ///
    /// # Errors
    /// [`BackboneError::Tap`] if the batch or the model does not support the point,
    /// [`BackboneError::BatchShape`] if the batch is one for another kind of model.
    fn trace(
        &self,
        batch: &TokenBatch,
        point: TapPoint,
        scope: AdapterScope,
    ) -> Result<Self::Trace, BackboneError>;

    /// The token that the model finds most likely where each row's first label is predicted, one for each row.
    ///
    /// # Errors
    /// Those of [`trace`](Self::trace) at [`TapPoint::Answer`].
    fn predicted(&self, batch: &TokenBatch, scope: AdapterScope)
    -> Result<Vec<i64>, BackboneError>;

    /// Output of a tapped block (the residual stream after all its sublayers) at the tapped positions,
    /// `[rows, positions, d_model]`, outside autodiff.
    fn hidden(&self, trace: &Self::Trace, block: usize) -> Tensor<3>;

    /// Probability of each row's target token when the tapped positions of the block's output are
    /// replaced; differentiable in `patched`, everything else is constant.
    ///
    /// # Shapes
    /// - patched: `[rows, variants, positions, d_model]`
    /// - output: `[rows, variants]`
    fn probability(&self, trace: &Self::Trace, block: usize, patched: Tensor<4>) -> Tensor<2>;

    /// [`probability`](Self::probability) of every tapped block at once, `patched[l]` at block l: the paths of
    /// all taps below a block run through it together. `None` where a path runs more than the tapped
    /// position, so that joining would cost memory and save nothing.
    fn joint_probabilities(
        &self,
        _trace: &Self::Trace,
        _patched: &[Tensor<4>],
    ) -> Option<Vec<Tensor<2>>> {
        None
    }
}

/// Runs joined paths through a stack: `patched[l]: [rows, variants, 1, d_model]` joins behind block l,
/// `block(l, x)` runs block l on `x: [rows, paths, d_model]`, `read` turns the last output into probabilities
/// `[rows, paths]`.
pub(crate) fn join_paths(
    patched: &[Tensor<4>],
    block: impl Fn(usize, Tensor<3>) -> Tensor<3>,
    read: impl FnOnce(Tensor<3>) -> Tensor<2>,
) -> Option<Vec<Tensor<2>>> {
    let mut x: Option<Tensor<3>> = None;
    for (at, path) in patched.iter().enumerate() {
        let [rows, variants, _, width] = path.dims();
        let path = path.clone().reshape([rows, variants, width]);
        x = Some(match x {
            Some(x) => Tensor::cat(vec![block(at, x), path], 1),
            None => path,
        });
    }
    let probabilities = read(x?);
    let mut start = 0;
    let split = patched.iter().map(|path| {
        let variants = path.dims()[1];
        start += variants;
        probabilities.clone().narrow(1, start - variants, variants)
    });
    Some(split.collect())
}
