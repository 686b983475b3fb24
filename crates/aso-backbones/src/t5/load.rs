//! From a checkpoint, or a random initialisation, to a model; and back to files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use aso_lora::{LoraLinear, site};
use burn::tensor::Device;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use super::attention::{RelativePositionBias, T5Attention};
use super::block::{T5Block, T5LayerCrossAttention};
use super::layers::T5DenseReluDense;
use super::stack::T5Stack;
use super::{T5Config, T5ForConditionalGeneration};
use crate::layers::RmsNorm;
use crate::weights::{FloatDtype, FloatValues, Layout, Loader, WeightSource, check_given};
use crate::{BackboneError, Checkpoint};

/// Tensors that old files carry and the model does not use.
fn is_ignored(name: &str) -> bool {
    // Copies of `shared.weight`, and a bias that Hugging Face once created for cross attention.
    matches!(
        name,
        "encoder.embed_tokens.weight"
            | "decoder.embed_tokens.weight"
            | "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    )
}

impl T5ForConditionalGeneration {
    /// Loads a Hugging Face model folder: `config.json` and safetensors weights of any float type,
    /// computed in f32.
    ///
    /// # Errors
    /// Names the file, key or tensor, what was expected and what was found. Every tensor of the files
    /// must be used or be on the (short) list of known leftovers.
    pub fn from_pretrained(dir: &Path, device: &Device) -> Result<Self, BackboneError> {
        let config = T5Config::from_dir(dir)?;
        let checkpoint = Checkpoint::open(dir)?;
        Self::from_checkpoint(config, &checkpoint, FloatDtype::F32, device)
    }

    /// Loads from an opened checkpoint; see [`from_pretrained`](Self::from_pretrained).
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained).
    pub fn from_checkpoint(
        config: T5Config,
        checkpoint: &Checkpoint,
        dtype: FloatDtype,
        device: &Device,
    ) -> Result<Self, BackboneError> {
        let model = Self::from_source(config, checkpoint, dtype, device)?;
        checkpoint.finish(is_ignored)?;
        Ok(model)
    }

    /// Builds the model from any source of weights, the matrices of its linear layers and embeddings kept
    /// in `dtype`, except that `wo` is f32 in a model in f16.
    ///
    /// The head is untied exactly if the source stores `lm_head.weight`.
    ///
    /// # Errors
    /// Those of the source.
    pub fn from_source(
        config: T5Config,
        source: &dyn WeightSource,
        dtype: FloatDtype,
        device: &Device,
    ) -> Result<Self, BackboneError> {
        let loader = Loader {
            source,
            dtype,
            device,
        };
        let builder = Builder {
            config: &config,
            loader: &loader,
        };
        let embedding = [config.vocabulary, config.d_model];
        let lm_head = if source.contains("lm_head.weight") {
            Some(loader.matrix("lm_head.weight", embedding, dtype)?)
        } else {
            None
        };
        // Some files store the shared embedding as that of a stack alone.
        let shared = [
            SHARED,
            "encoder.embed_tokens.weight",
            "decoder.embed_tokens.weight",
        ];
        let shared = shared.into_iter().find(|name| source.contains(name));
        Ok(Self {
            shared: loader.matrix(shared.unwrap_or(SHARED), embedding, dtype)?,
            encoder: builder.stack("encoder", config.encoder_blocks, false)?,
            decoder: builder.stack("decoder", config.decoder_blocks, true)?,
            lm_head,
            transposed_head: None,
            config,
        })
    }
}

/// The embedding of both stacks.
const SHARED: &str = "shared.weight";

struct Builder<'a> {
    config: &'a T5Config,
    loader: &'a Loader<'a>,
}

impl Builder<'_> {
    fn linear(&self, name: &str, d_in: usize, d_out: usize) -> Result<LoraLinear, BackboneError> {
        self.loader.linear(name, [d_in, d_out], false)
    }

    /// The output of a feed-forward layer: its inputs can be beyond the range of f16, so that its product does not run in that type
    /// (`_keep_in_fp32_modules` of Transformers).
    fn output(&self, name: &str, d_in: usize, d_out: usize) -> Result<LoraLinear, BackboneError> {
        let dtype = match self.loader.dtype {
            FloatDtype::F16 => FloatDtype::F32,
            dtype => dtype,
        };
        let loader = Loader {
            dtype,
            ..*self.loader
        };
        loader.linear(name, [d_in, d_out], false)
    }

    fn norm(&self, name: String) -> Result<RmsNorm, BackboneError> {
        Ok(RmsNorm {
            weight: self.loader.vector(&name, self.config.d_model)?,
            epsilon: self.config.epsilon,
            name,
        })
    }

    fn attention(&self, name: &str) -> Result<T5Attention, BackboneError> {
        let T5Config {
            d_model,
            heads,
            d_kv,
            dropout,
            ..
        } = *self.config;
        let inner = heads * d_kv;
        Ok(T5Attention {
            q: self.linear(&format!("{name}.q"), d_model, inner)?,
            k: self.linear(&format!("{name}.k"), d_model, inner)?,
            v: self.linear(&format!("{name}.v"), d_model, inner)?,
            o: self.linear(&format!("{name}.o"), inner, d_model)?,
            heads,
            dropout,
            site: site(name),
        })
    }

    fn block(&self, name: &str, decoder: bool) -> Result<T5Block, BackboneError> {
        let T5Config {
            d_model,
            d_ff,
            dropout,
            feed_forward,
            ..
        } = *self.config;
        let cross = if decoder {
            let layer = format!("{name}.layer.1");
            Some(T5LayerCrossAttention {
                attention: self.attention(&format!("{layer}.EncDecAttention"))?,
                norm: self.norm(format!("{layer}.layer_norm.weight"))?,
                site: site(&layer),
            })
        } else {
            None
        };
        let first = format!("{name}.layer.0");
        let last = format!("{name}.layer.{}", if decoder { 2 } else { 1 });
        let dense = format!("{last}.DenseReluDense");
        let inputs: &[&str] = if feed_forward.is_gated() {
            &["wi_0", "wi_1"]
        } else {
            &["wi"]
        };
        let wi = inputs
            .iter()
            .map(|input| self.linear(&format!("{dense}.{input}"), d_model, d_ff))
            .collect::<Result<_, _>>()?;
        Ok(T5Block {
            self_attention: self.attention(&format!("{first}.SelfAttention"))?,
            self_norm: self.norm(format!("{first}.layer_norm.weight"))?,
            self_site: site(&first),
            cross,
            feed_forward: T5DenseReluDense {
                wi,
                wo: self.output(&format!("{dense}.wo"), d_ff, d_model)?,
                kind: feed_forward,
                dropout,
            },
            feed_forward_norm: self.norm(format!("{last}.layer_norm.weight"))?,
            feed_forward_site: site(&last),
            dropout,
        })
    }

    fn stack(&self, name: &str, count: usize, decoder: bool) -> Result<T5Stack, BackboneError> {
        let blocks = self.loader.parts(count, |at| {
            self.block(&format!("{name}.block.{at}"), decoder)
        })?;
        let bias = format!("{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        Ok(T5Stack {
            blocks,
            position_bias: RelativePositionBias {
                weight: self.loader.matrix(
                    &bias,
                    [self.config.buckets, self.config.heads],
                    FloatDtype::F32,
                )?,
                bidirectional: !decoder,
                max_distance: self.config.max_distance,
                name: bias,
            },
            final_norm: self.norm(format!("{name}.final_layer_norm.weight"))?,
            dropout: self.config.dropout,
            input_site: site(&format!("{name}.input")),
            output_site: site(&format!("{name}.output")),
        })
    }
}

/// Hugging Face's initialisation of T5 (`T5PreTrainedModel._init_weights`, factor 1), drawn in the order
/// in which tensors are asked for.
///
/// With `tied` there is no `lm_head.weight`.
pub struct RandomInit {
    config: T5Config,
    tied: bool,
    /// Standard deviation of the embedding (1 in Hugging Face).
    embedding_std: f64,
    /// Tensors that are given instead of drawn.
    given: BTreeMap<String, Vec<f32>>,
    rng: Mutex<ChaCha8Rng>,
}

impl RandomInit {
    /// An initialisation that is a function of `seed`.
    pub fn new(config: T5Config, tied: bool, seed: u64) -> Self {
        let rng = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
        Self {
            config,
            tied,
            embedding_std: 1.0,
            given: BTreeMap::new(),
            rng,
        }
    }

    /// Another standard deviation of the embedding.
    #[must_use]
    pub fn with_embedding_std(mut self, std: f64) -> Self {
        self.embedding_std = std;
        self
    }

    /// A given tensor instead of a drawn one, by its Hugging Face name, in PyTorch's orientation, row-major; the embedding
    /// `shared.weight` is `[vocabulary, d_model]`. One of another size than the model's is an error when the model is made.
    #[must_use]
    pub fn with_tensor(mut self, name: impl Into<String>, values: Vec<f32>) -> Self {
        self.given.insert(name.into(), values);
        self
    }
}

impl WeightSource for RandomInit {
    fn is_unordered(&self) -> bool {
        false
    }

    fn contains(&self, name: &str) -> bool {
        name != "lm_head.weight" || !self.tied
    }

    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
        dtype: FloatDtype,
        layout: Layout,
    ) -> Result<FloatValues, BackboneError> {
        let count = shape.iter().product();
        let values = |values: &[f32]| FloatValues::new(values, shape, dtype, layout);
        if let Some(given) = self.given.get(name) {
            check_given(name, shape, given)?;
            return Ok(values(given));
        }
        if name.ends_with("layer_norm.weight") {
            return Ok(values(&vec![1.0; count]));
        }
        let T5Config {
            d_model,
            d_kv,
            heads,
            d_ff,
            ..
        } = self.config;
        let std = match name.trim_end_matches(".weight").rsplit('.').next() {
            Some("shared" | "lm_head") => self.embedding_std,
            Some("q") => ((d_model * d_kv) as f64).powf(-0.5),
            Some("o") => ((heads * d_kv) as f64).powf(-0.5),
            Some("wo") => (d_ff as f64).powf(-0.5),
            _ => (d_model as f64).powf(-0.5),
        };
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        // A standard deviation above is positive and finite, so the distribution exists.
        let normal = Normal::new(0.0, std).map_err(|_| BackboneError::Dtype {
            origin: "random initialisation".into(),
            tensor: name.to_owned(),
            found: format!("standard deviation {std}"),
        })?;
        let drawn: Vec<f32> = (0..count)
            .map(|_| normal.sample(&mut *rng) as f32)
            .collect();
        Ok(values(&drawn))
    }
}
