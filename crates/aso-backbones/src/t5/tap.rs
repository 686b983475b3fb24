//! Tapping T5's blocks.

use aso_lora::{AdapterScope, ForwardContext};
use burn::tensor::{Device, Int, Tensor};

use super::model::T5ForConditionalGeneration;
use super::stack::{EncoderMemory, StackOutput};
use crate::layers::{
    KeyValue, additive_mask, leading_columns, most_likely, pick_position, repeat_rows,
    target_probability,
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
        /// Self-attention keys and values of every block.
        memory: Vec<KeyValue>,
        bias: Tensor<4>,
        position: usize,
    },
}

impl T5ForConditionalGeneration {
    fn trace_answer(
        &self,
        batch: &TokenBatch,
        context: &ForwardContext,
    ) -> Result<(TracedAnswer, Vec<i64>), BackboneError> {
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
            TracedAnswer {
                hidden,
                prefix,
                own_bias,
                memory,
            },
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
                memory: output.memory,
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

    fn device(&self) -> Device {
        self.shared.val().device().without_autodiff()
    }

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
            TapPoint::Answer => {
                let (answer, targets) = self.trace_answer(batch, &context)?;
                (Traced::Answer(answer), targets)
            }
            TapPoint::Encoder => self.trace_encoder(batch, &context)?,
            TapPoint::EncoderReadout => self.trace_readout(batch, &context)?,
        };
        Ok(T5Trace {
            context,
            targets,
            point,
        })
    }

    fn predicted(
        &self,
        batch: &TokenBatch,
        scope: AdapterScope,
    ) -> Result<Vec<i64>, BackboneError> {
        let context = ForwardContext::inference().with_scope(scope);
        let (answer, _) = self.trace_answer(batch, &context)?;
        let last = answer.hidden[answer.hidden.len() - 1].clone();
        let logits = self.head(self.decoder.finish(last, &context), &context);
        Ok(most_likely(logits))
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
                memory,
                bias,
                position,
            } => {
                let x = patched.reshape([rows * variants, 1, width]);
                let last = self.encoder.blocks.len() - 1;
                let at = if block == last {
                    x
                } else {
                    let bias = repeat_rows(bias.clone(), variants);
                    let first = block + 1;
                    let traced = (hidden[block].clone(), &memory[first]);
                    let mut x = self.encoder.blocks[first].forward_patched(
                        traced,
                        x,
                        *position,
                        bias.clone(),
                        first == last,
                        context,
                    );
                    if first < last {
                        for layer in &self.encoder.blocks[first + 1..last] {
                            (x, _) = layer.forward(x, bias.clone(), None, None, context);
                        }
                        x = self.encoder.blocks[last].forward_at(x, *position, bias, context);
                    }
                    x
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

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::FloatDtype;
    use crate::t5::{HfT5Config, RandomInit, T5Config};

    const POSITION: usize = 4;

    fn model() -> T5ForConditionalGeneration {
        let hf = HfT5Config {
            vocab_size: 50,
            d_model: 32,
            d_ff: 48,
            d_kv: 8,
            num_heads: 4,
            num_layers: 4,
            ..HfT5Config::default()
        };
        let config = T5Config::resolve("test".as_ref(), &hf).unwrap();
        let init = RandomInit::new(config.clone(), true, 1);
        let device = Device::flex();
        T5ForConditionalGeneration::from_source(config, &init, FloatDtype::F32, &device).unwrap()
    }

    #[test]
    fn a_given_tensor_of_another_size_is_refused() {
        let config = model().config;
        let init = RandomInit::new(config.clone(), true, 1)
            .with_tensor("shared.weight", vec![0.0; 50 * 16]);
        let device = Device::flex();
        let made = T5ForConditionalGeneration::from_source(config, &init, FloatDtype::F32, &device);
        let error = made.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("shared.weight"), "{error}");
    }

    fn batch() -> TokenBatch {
        let ids = (0..12).map(|at| at * 7 % 47 + 3).collect();
        let mask = vec![1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0];
        TokenBatch::new(2, ids, mask, vec![5, 1, 6, 1]).unwrap()
    }

    /// Probabilities with every block run in full on every variant.
    fn in_full(
        model: &T5ForConditionalGeneration,
        trace: &T5Trace,
        block: usize,
        patched: Tensor<4>,
    ) -> Tensor<2> {
        let Traced::EncoderReadout { hidden, bias, .. } = &trace.point else {
            panic!("another point was traced");
        };
        let [rows, variants, _, width] = patched.dims();
        let context = ForwardContext::inference();
        let rest = repeat_rows(hidden[block].clone(), variants);
        let after = POSITION + 1;
        let mut x = Tensor::cat(
            vec![
                rest.clone().narrow(1, 0, POSITION),
                patched.reshape([rows * variants, 1, width]),
                rest.clone().narrow(1, after, rest.dims()[1] - after),
            ],
            1,
        );
        let bias = repeat_rows(bias.clone(), variants);
        for layer in &model.encoder.blocks[block + 1..] {
            (x, _) = layer.forward(x, bias.clone(), None, None, &context);
        }
        let x = model.encoder.finish(x.narrow(1, POSITION, 1), &context);
        let logits = model.unscaled_head(x, &context);
        let logits = logits.reshape([rows, variants, model.vocabulary()]);
        target_probability(logits, &trace.targets)
    }

    #[test]
    fn a_patched_position_gives_what_whole_sequences_give() {
        let (model, batch) = (model(), batch());
        let trace = model
            .trace(&batch, TapPoint::EncoderReadout, AdapterScope::All)
            .unwrap();
        for block in 0..4 {
            let path = || {
                let h = model.hidden(&trace, block).reshape([2, 1, 1, 32]);
                let alphas = Tensor::<1>::from_floats([0.0, 0.4, 0.8], &model.device());
                (h * alphas.reshape([1, 3, 1, 1])).autodiff().require_grad()
            };
            let (fast_path, slow_path) = (path(), path());
            let fast = model.probability(&trace, block, fast_path.clone());
            let slow = in_full(&model, &trace, block, slow_path.clone());
            let gradient = |path: Tensor<4>, p: &Tensor<2>| {
                let gradient = path.grad(&p.clone().sum().backward()).unwrap();
                gradient.into_data().iter::<f32>().collect::<Vec<_>>()
            };
            let value = |p: &Tensor<2>| p.clone().into_data().iter::<f32>().collect::<Vec<_>>();
            for (name, found, expected) in [
                ("P", value(&fast), value(&slow)),
                (
                    "gradient",
                    gradient(fast_path, &fast),
                    gradient(slow_path, &slow),
                ),
            ] {
                let scale = expected.iter().fold(1e-30f32, |m, v| m.max(v.abs()));
                for (found, expected) in found.iter().zip(&expected) {
                    // Sums in another order, in f32.
                    let error = (found - expected).abs() / scale;
                    assert!(
                        error <= 1e-5,
                        "block {block}, {name}: {found} against {expected}"
                    );
                }
            }
        }
    }
}
