//! Tapping T5's blocks.

use aso_lora::{AdapterScope, ForwardContext};
use burn::tensor::{Int, Tensor};

use super::model::T5ForConditionalGeneration;
use super::stack::{EncoderMemory, StackOutput};
use crate::layers::{
    KeyValue, additive_mask, leading_columns, pick_position, repeat_rows, target_probability,
};
use crate::taps::join_paths;
use crate::{Backbone, BackboneError, BlockTaps, TapPoint, TokenBatch};

/// What a traced pass of T5 keeps.
#[derive(Debug)]
pub struct T5Trace {
    context: ForwardContext,
    /// Token whose probability is read, one per row.
    targets: Vec<i64>,
    point: Traced,
}

/// What continuing from the answer position needs.
#[derive(Debug)]
struct TracedAnswer {
    /// Block outputs at the answer position, `[rows, 1, d_model]`.
    hidden: Vec<Tensor<3>>,
    /// Keys and values of every decoder position, and which of them precede the answer position;
    /// absent when none does.
    prefix: Option<(Vec<KeyValue>, Tensor<4>)>,
    own_bias: Tensor<4>,
    memory: EncoderMemory,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one value per trace")]
enum Traced {
    Answer(TracedAnswer),
    Encoder {
        hidden: Vec<Tensor<3>>,
        /// Self-attention bias `[rows, heads, S, S]`.
        bias: Tensor<4>,
        mask: Tensor<4>,
        decoder_ids: Vec<i64>,
        positions: Vec<i64>,
    },
    EncoderReadout {
        hidden: Vec<Tensor<3>>,
        bias: Tensor<4>,
        position: usize,
    },
}

impl T5ForConditionalGeneration {
    fn trace_answer(
        &self,
        batch: &TokenBatch,
        context: &ForwardContext,
    ) -> Result<(Traced, Vec<i64>), BackboneError> {
        let (positions, targets): (Vec<_>, Vec<_>) =
            batch.answers("answer position")?.into_iter().unzip();
        let memory = self.encode(batch, context);
        let (rows, width) = (batch.rows(), batch.target_len());
        // Later positions cannot reach back: only the inputs up to the last answer position run.
        let length = positions.iter().max().map_or(1, |last| *last as usize + 1);
        let ids = leading_columns(&self.shift_right(batch), width, length);
        let StackOutput {
            hidden,
            memory: key_value,
            ..
        } = self.run_decoder(&ids, rows, &memory, true, context);
        let hidden = hidden
            .into_iter()
            .map(|h| pick_position(h, &positions))
            .collect();
        let position_bias = self
            .decoder
            .position_bias
            .forward(0, length, length, context);
        let heads = self.config.heads;
        let own_bias = position_bias.clone().narrow(2, 0, 1).narrow(3, 0, 1);
        let prefix = (length > 1).then(|| {
            // Row b: the bias of a query at its own position, keys from there on masked.
            let device = self.device();
            let index = Tensor::<1, Int>::from_ints(positions.as_slice(), &device);
            let bias = position_bias
                .reshape([heads, length, length])
                .select(1, index)
                .swap_dims(0, 1)
                .reshape([rows, heads, 1, length]);
            let visible = positions
                .iter()
                .flat_map(|at| (0..length as i64).map(move |key| key < *at));
            let mask = additive_mask(visible, [rows, 1, 1, length], &device);
            (key_value, bias + mask)
        });
        Ok((
            Traced::Answer(TracedAnswer {
                hidden,
                prefix,
                own_bias,
                memory,
            }),
            targets,
        ))
    }

    fn trace_encoder(
        &self,
        batch: &TokenBatch,
        context: &ForwardContext,
    ) -> Result<(Traced, Vec<i64>), BackboneError> {
        let (positions, targets): (Vec<_>, Vec<_>) =
            batch.answers("encoder blocks")?.into_iter().unzip();
        let (output, mask) = self.run_encoder(batch, true, context);
        let length = positions.iter().max().map_or(1, |last| *last as usize + 1);
        let decoder_ids = leading_columns(&self.shift_right(batch), batch.target_len(), length);
        let traced = Traced::Encoder {
            hidden: output.hidden,
            bias: self.encoder_bias(batch.source_len(), &mask, context),
            mask,
            decoder_ids,
            positions,
        };
        Ok((traced, targets))
    }

    fn trace_readout(
        &self,
        batch: &TokenBatch,
        context: &ForwardContext,
    ) -> Result<(Traced, Vec<i64>), BackboneError> {
        let Some(position) = batch.source_len().checked_sub(2) else {
            let reason = "position S - 2 needs sources of at least 2 tokens".to_owned();
            return Err(BackboneError::Tap {
                point: "encoder readout",
                reason,
            });
        };
        let (output, mask) = self.run_encoder(batch, true, context);
        let targets = vec![batch.input_ids()[position]; batch.rows()];
        let bias = self.encoder_bias(batch.source_len(), &mask, context);
        Ok((
            Traced::EncoderReadout {
                hidden: output.hidden,
                bias,
                position,
            },
            targets,
        ))
    }

    /// Decoder block `at` on alternatives for the answer position, `[rows, alternatives, d_model]`.
    fn run_alternatives(
        &self,
        answer: &TracedAnswer,
        at: usize,
        x: Tensor<3>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let prefix = answer.prefix.as_ref();
        let prefix = prefix.map(|(kv, bias)| (&kv[at], bias.clone()));
        let (own_bias, memory) = (answer.own_bias.clone(), answer.memory.block(at));
        self.decoder.blocks[at].forward_alternatives(x, prefix, own_bias, memory, context)
    }

    fn encoder_bias(&self, length: usize, mask: &Tensor<4>, context: &ForwardContext) -> Tensor<4> {
        self.encoder
            .position_bias
            .forward(0, length, length, context)
            + mask.clone()
    }
}

impl BlockTaps for T5ForConditionalGeneration {
    type Trace = T5Trace;

    fn tapped_blocks(&self, point: TapPoint) -> usize {
        match point {
            TapPoint::Answer => self.decoder.blocks.len(),
            TapPoint::Encoder | TapPoint::EncoderReadout => self.encoder.blocks.len(),
        }
    }

    fn tapped_block_of(&self, layer: &str) -> Option<(TapPoint, usize)> {
        let (stack, rest) = layer.split_once(".block.")?;
        let block = rest.split('.').next()?.parse().ok()?;
        match stack {
            "encoder" => Some((TapPoint::Encoder, block)),
            "decoder" => Some((TapPoint::Answer, block)),
            _ => None,
        }
    }

    fn trace(
        &self,
        batch: &TokenBatch,
        point: TapPoint,
        scope: AdapterScope,
    ) -> Result<T5Trace, BackboneError> {
        let context = ForwardContext::inference().with_scope(scope);
        let (point, targets) = match point {
            TapPoint::Answer => self.trace_answer(batch, &context)?,
            TapPoint::Encoder => self.trace_encoder(batch, &context)?,
            TapPoint::EncoderReadout => self.trace_readout(batch, &context)?,
        };
        Ok(T5Trace {
            context,
            targets,
            point,
        })
    }

    fn hidden(&self, trace: &T5Trace, block: usize) -> Tensor<3> {
        match &trace.point {
            Traced::Answer(answer) => answer.hidden[block].clone(),
            Traced::Encoder { hidden, .. } => hidden[block].clone(),
            Traced::EncoderReadout {
                hidden, position, ..
            } => hidden[block].clone().narrow(1, *position, 1),
        }
    }

    fn probability(&self, trace: &T5Trace, block: usize, patched: Tensor<4>) -> Tensor<2> {
        let context = &trace.context;
        let [rows, variants, positions, width] = patched.dims();
        let logits = match &trace.point {
            Traced::Answer(answer) => {
                let mut x = patched.reshape([rows, variants, width]);
                for at in block + 1..self.decoder.blocks.len() {
                    x = self.run_alternatives(answer, at, x, context);
                }
                self.head(self.decoder.finish(x, context), context)
            }
            Traced::Encoder {
                bias,
                mask,
                decoder_ids,
                positions: answers,
                ..
            } => {
                let mut x = patched.reshape([rows * variants, positions, width]);
                let bias = repeat_rows(bias.clone(), variants);
                for layer in self.encoder.blocks.iter().skip(block + 1) {
                    (x, _) = layer.forward(x, bias.clone(), None, None, context);
                }
                let encoded = self.encoder.finish(x, context);
                let mask = repeat_rows(mask.clone(), variants);
                let memory = self.decoder.encoder_memory(&encoded, mask, context);
                let length = decoder_ids.len() / rows;
                let ids: Vec<i64> = decoder_ids
                    .chunks(length)
                    .flat_map(|row| row.repeat(variants))
                    .collect();
                let output = self.run_decoder(&ids, rows * variants, &memory, false, context);
                let answers: Vec<i64> = answers
                    .iter()
                    .flat_map(|at| std::iter::repeat_n(*at, variants))
                    .collect();
                let last = pick_position(output.last, &answers);
                self.head(self.decoder.finish(last, context), context)
            }
            Traced::EncoderReadout {
                hidden,
                bias,
                position,
            } => {
                let x = patched.reshape([rows * variants, 1, width]);
                let last = self.encoder.blocks.len() - 1;
                let at = if block == last {
                    x
                } else {
                    let rest = repeat_rows(hidden[block].clone(), variants);
                    let length = rest.dims()[1];
                    let after = position + 1;
                    let mut x = Tensor::cat(
                        vec![
                            rest.clone().narrow(1, 0, *position),
                            x,
                            rest.narrow(1, after, length - after),
                        ],
                        1,
                    );
                    let bias = repeat_rows(bias.clone(), variants);
                    for layer in &self.encoder.blocks[block + 1..last] {
                        (x, _) = layer.forward(x, bias.clone(), None, None, context);
                    }
                    self.encoder.blocks[last].forward_at(x, *position, bias, context)
                };
                self.unscaled_head(self.encoder.finish(at, context), context)
            }
        };
        let vocabulary = self.vocabulary();
        target_probability(logits.reshape([rows, variants, vocabulary]), &trace.targets)
    }

    fn joint_probabilities(
        &self,
        trace: &T5Trace,
        patched: &[Tensor<4>],
    ) -> Option<Vec<Tensor<2>>> {
        let Traced::Answer(answer) = &trace.point else {
            return None;
        };
        let context = &trace.context;
        join_paths(
            patched,
            |at, x| self.run_alternatives(answer, at, x, context),
            |x| {
                let logits = self.head(self.decoder.finish(x, context), context);
                target_probability(logits, &trace.targets)
            },
        )
    }
}
