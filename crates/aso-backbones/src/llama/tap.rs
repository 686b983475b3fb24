//! Tapping the blocks of a causal stack.

use aso_lora::{AdapterScope, ForwardContext};
use burn::tensor::{Device, Tensor};

use super::model::{LlamaForCausalLm, Sequence, token_positions};
use super::rotary::Rotary;
use crate::layers::{KeyValue, additive_mask, leading_columns, most_likely, target_probability};
use crate::taps::join_paths;
use crate::{BackboneError, BlockTaps, ModelKind, TapPoint, TokenBatch};

/// What a traced pass of a causal stack keeps.
///
/// Nothing before the answer position depends on that position, so keys and values of the prompt are
/// computed once and every point of the path runs one position only.
#[derive(Debug)]
pub struct LlamaTrace {
    context: ForwardContext,
    /// Token whose probability is read, one per row.
    targets: Vec<i64>,
    /// Block outputs at the answer position, `[rows, 1, d_model]`.
    hidden: Vec<Tensor<3>>,
    /// Keys and values of the prompt, per block.
    prefix: Vec<KeyValue>,
    /// Per block `[rows, 1, 1, keys]`: what the answer position sees, itself left out.
    biases: Vec<Tensor<4>>,
    /// Angles of the answer position.
    rotary: Rotary,
}

const POINT: &str = "answer position";

impl LlamaForCausalLm {
    /// The position that predicts each row's first label, and that label.
    fn answers(batch: &TokenBatch) -> Result<(Vec<i64>, Vec<i64>), BackboneError> {
        let mut answers = batch.answers(POINT)?;
        let mask = batch.attention_mask().chunks(batch.source_len());
        for (row, ((at, _), mask)) in answers.iter_mut().zip(mask).enumerate() {
            *at -= 1;
            if usize::try_from(*at).is_err() || mask[*at as usize] == 0 {
                let reason = format!("row {row} has no token before its first label");
                return Err(BackboneError::Tap {
                    point: POINT,
                    reason,
                });
            }
        }
        Ok(answers.into_iter().unzip())
    }

    /// Block `at` on alternatives for the answer position, `[rows, alternatives, d_model]`.
    fn run_alternatives(&self, trace: &LlamaTrace, at: usize, x: Tensor<3>) -> Tensor<3> {
        let (prefix, bias) = (&trace.prefix[at], trace.biases[at].clone());
        self.layers[at].forward_alternatives(x, &trace.rotary, prefix, bias, &trace.context)
    }
}

impl BlockTaps for LlamaForCausalLm {
    type Trace = LlamaTrace;

    fn device(&self) -> Device {
        self.embed_tokens.val().device().without_autodiff()
    }

    fn tapped_blocks(&self, point: TapPoint) -> usize {
        match point {
            TapPoint::Answer => self.layers.len(),
            TapPoint::Encoder | TapPoint::EncoderReadout => 0,
        }
    }

    fn tapped_block_of(&self, layer: &str) -> Option<(TapPoint, usize)> {
        let rest = layer.strip_prefix("model.layers.")?;
        let block = rest.split('.').next()?.parse().ok()?;
        Some((TapPoint::Answer, block))
    }

    fn trace(
        &self,
        batch: &TokenBatch,
        point: TapPoint,
        scope: AdapterScope,
    ) -> Result<LlamaTrace, BackboneError> {
        let unsupported = |point, reason: &str| {
            let reason = reason.to_owned();
            Err(BackboneError::Tap { point, reason })
        };
        match point {
            TapPoint::Answer => {}
            TapPoint::Encoder => {
                return unsupported("encoder blocks", "a causal model has no encoder");
            }
            TapPoint::EncoderReadout => {
                return unsupported(
                    "encoder readout",
                    "preset `reference` reads an encoder, and a causal model has none",
                );
            }
        }
        batch.check_kind(ModelKind::Causal)?;
        let context = ForwardContext::inference().with_scope(scope);
        let (positions, targets) = Self::answers(batch)?;
        let (rows, width) = (batch.rows(), batch.source_len());
        // Later positions cannot reach back: only the columns up to the last answer position run.
        let length = positions.iter().max().map_or(1, |last| *last as usize + 1);
        let ids = leading_columns(batch.input_ids(), width, length);
        let mask = leading_columns(batch.attention_mask(), width, length);
        let sequence = Sequence {
            ids: &ids,
            mask: &mask,
            rows,
        };
        let output = self.run(&sequence, None, Some(&positions), &context);
        let device = self.device();
        let own_positions: Vec<i64> = mask
            .chunks(length)
            .zip(&positions)
            .map(|(row, at)| token_positions(row)[*at as usize])
            .collect();
        let biases = self.per_window(|window| {
            let window = window.map_or(i64::MAX, |window| window as i64);
            let visible = mask.chunks(length).zip(&positions).flat_map(|(row, at)| {
                let keys = row.iter().zip(0i64..);
                keys.map(move |(kept, key)| *kept != 0 && key < *at && at - key < window)
            });
            additive_mask(visible, [rows, 1, 1, length], &device)
        });
        Ok(LlamaTrace {
            context,
            targets,
            hidden: output.picked,
            prefix: output.memory,
            biases,
            rotary: Rotary::new(&own_positions, rows, &self.config.frequencies, &device),
        })
    }

    fn predicted(
        &self,
        batch: &TokenBatch,
        scope: AdapterScope,
    ) -> Result<Vec<i64>, BackboneError> {
        let trace = self.trace(batch, TapPoint::Answer, scope)?;
        let last = trace.hidden[trace.hidden.len() - 1].clone();
        Ok(most_likely(self.head(last, &trace.context)))
    }

    fn hidden(&self, trace: &LlamaTrace, block: usize) -> Tensor<3> {
        trace.hidden[block].clone()
    }

    fn probability(&self, trace: &LlamaTrace, block: usize, patched: Tensor<4>) -> Tensor<2> {
        let [rows, variants, _, width] = patched.dims();
        let mut x = patched.reshape([rows, variants, width]);
        for at in block + 1..self.layers.len() {
            x = self.run_alternatives(trace, at, x);
        }
        target_probability(self.head(x, &trace.context), &trace.targets)
    }

    fn joint_probabilities(
        &self,
        trace: &LlamaTrace,
        patched: &[Tensor<4>],
    ) -> Option<Vec<Tensor<2>>> {
        join_paths(
            patched,
            |at, x| self.run_alternatives(trace, at, x),
            |x| target_probability(self.head(x, &trace.context), &trace.targets),
        )
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::FloatDtype;
    use crate::layers::repeat_rows;
    use crate::llama::{HfLlamaConfig, LlamaConfig, RandomInit};

    /// Largest difference over the largest expected magnitude.
    fn relative_error(found: Vec<f32>, expected: Vec<f32>) -> f32 {
        assert_eq!(found.len(), expected.len());
        let scale = expected.iter().fold(1e-30f32, |m, v| m.max(v.abs()));
        let pairs = found.iter().zip(&expected);
        pairs.fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / scale
    }

    fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().iter::<f32>().collect()
    }

    fn model(window: Option<usize>) -> LlamaForCausalLm {
        let hf = HfLlamaConfig {
            model_type: "mistral".into(),
            vocab_size: 50,
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: Some(2),
            sliding_window: Some(window),
            ..HfLlamaConfig::default()
        };
        let config = LlamaConfig::resolve("test".as_ref(), &hf).unwrap();
        // Far from 0, so that attention is far from uniform.
        let init = RandomInit::new(false, 0.4, 7);
        let device = Device::flex();
        LlamaForCausalLm::from_source(config, &init, FloatDtype::F32, &device).unwrap()
    }

    /// Two rows of unequal length whose answers of 1 and 3 tokens begin at different columns.
    fn batch() -> TokenBatch {
        let ids = [
            [0, 0, 0, 0, 1, 9, 17, 33, 21, 12, 2],
            [1, 7, 30, 22, 14, 8, 41, 19, 5, 11, 2],
        ];
        let mask = [4, 0].map(|padding| (0..11).map(move |at| i64::from(at >= padding)));
        let labels = [9, 7].map(|first| (0..11).map(move |at| at >= first));
        let labels = labels.into_iter().zip(&ids).flat_map(|(counts, ids)| {
            counts
                .zip(ids)
                .map(|(counts, id)| if counts { *id } else { -100 })
        });
        let mask = mask.into_iter().flatten().collect();
        TokenBatch::new(2, ids.concat(), mask, labels.collect()).unwrap()
    }

    /// P when position p of block `block`'s output is replaced, every later block run over the whole
    /// sequence.
    fn uncached(
        model: &LlamaForCausalLm,
        batch: &TokenBatch,
        block: usize,
        patched: Tensor<4>,
    ) -> Tensor<2> {
        let context = ForwardContext::inference();
        let (positions, targets) = LlamaForCausalLm::answers(batch).unwrap();
        let [rows, variants, _, width] = patched.dims();
        let length = batch.source_len();
        let device = model.device();
        // Everything repeated for every variant, and the block's whole output.
        let repeat = |values: &[i64]| -> Vec<i64> {
            let rows = values.chunks(length);
            rows.flat_map(|row| row.repeat(variants)).collect()
        };
        let mask = repeat(batch.attention_mask());
        let all: Vec<Vec<i64>> = (0..length as i64).map(|at| vec![at; rows]).collect();
        let outputs = all.iter().map(|at| {
            let sequence = Sequence {
                ids: batch.input_ids(),
                mask: batch.attention_mask(),
                rows,
            };
            model.run(&sequence, None, Some(at), &context).picked[block].clone()
        });
        let full = repeat_rows(Tensor::cat(outputs.collect(), 1), variants);
        let selected: Vec<f32> = positions
            .iter()
            .flat_map(|p| {
                let one = (0..length as i64).map(|at| f32::from(u8::from(at == *p)));
                one.collect::<Vec<_>>().repeat(variants)
            })
            .collect();
        let selected = Tensor::<1>::from_floats(selected.as_slice(), &device).reshape([
            rows * variants,
            length,
            1,
        ]);
        let patch = patched.reshape([rows * variants, 1, width]);
        let mut x = full * (selected.clone().neg() + 1.0) + patch * selected;
        let token_at: Vec<i64> = mask.chunks(length).flat_map(token_positions).collect();
        let frequencies = &model.config.frequencies;
        let rotary = Rotary::new(&token_at, rows * variants, frequencies, &device);
        let biases = model.biases(&mask, rows * variants, length, &device);
        for (layer, bias) in model.layers.iter().zip(biases).skip(block + 1) {
            (x, _) = layer.forward(x, &rotary, bias, None, &context);
        }
        let positions: Vec<i64> = positions
            .iter()
            .flat_map(|at| std::iter::repeat_n(*at, variants))
            .collect();
        let last = crate::layers::pick_position(x, &positions);
        let logits = model.head(last, &context);
        let vocabulary = model.config.vocabulary;
        target_probability(logits.reshape([rows, variants, vocabulary]), &targets)
    }

    /// Labels of another width than the input are those of an encoder-decoder.
    #[test]
    fn a_batch_for_an_encoder_decoder_is_refused() {
        for width in [1, 4] {
            let mut labels = vec![-100; width];
            labels[width - 1] = 5;
            let batch = TokenBatch::new(1, vec![1, 2], vec![1; 2], labels).unwrap();
            let error = model(None).trace(&batch, TapPoint::Answer, AdapterScope::All);
            let error = error.unwrap_err();
            assert!(matches!(error, BackboneError::BatchShape { .. }), "{error}");
        }
    }

    #[test]
    fn the_shared_prefix_gives_what_the_whole_sequence_gives() {
        for window in [None, Some(4)] {
            let (model, batch) = (model(window), batch());
            let trace = model
                .trace(&batch, TapPoint::Answer, AdapterScope::All)
                .unwrap();
            let alphas = [0.1f32, 0.5, 0.9];
            let paths = |block: usize| {
                let h = model.hidden(&trace, block);
                let [rows, _, width] = h.dims();
                let alphas = Tensor::<1>::from_floats(alphas, &model.device());
                let h = h.reshape([rows, 1, 1, width]);
                (h * alphas.reshape([1, 3, 1, 1])).autodiff().require_grad()
            };
            let joined: Vec<_> = (0..3).map(paths).collect();
            let joint = model.joint_probabilities(&trace, &joined).unwrap();
            let sum = Tensor::cat(joint.clone(), 1).sum();
            let mut joint_gradients = sum.backward();
            for block in 0..3 {
                let slow_path = paths(block);
                let slow = uncached(&model, &batch, block, slow_path.clone());
                let expected = slow_path.grad(&slow.clone().sum().backward()).unwrap();
                let fast_path = paths(block);
                let fast = model.probability(&trace, block, fast_path.clone());
                let found = fast_path.grad(&fast.clone().sum().backward()).unwrap();
                let joint_found = joined[block].grad_remove(&mut joint_gradients).unwrap();
                for (name, found, expected) in [
                    ("P", host(fast), host(slow.clone())),
                    ("joint P", host(joint[block].clone()), host(slow)),
                    ("gradient", host(found), host(expected.clone())),
                    ("joint gradient", host(joint_found), host(expected)),
                ] {
                    let error = relative_error(found, expected);
                    assert!(error <= 1e-5, "block {block}, {name}: {error:e}");
                }
            }
        }
    }
}
