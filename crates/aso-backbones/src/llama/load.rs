//! From a checkpoint, or a random initialisation, to a model.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use aso_lora::site;
use burn::tensor::Device;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::attention::LlamaAttention;
use super::block::{LlamaDecoderLayer, LlamaMlp};
use super::{LlamaConfig, LlamaForCausalLm};
use crate::layers::RmsNorm;
use crate::weights::{FloatDtype, FloatValues, Layout, Loader, WeightSource, check_given};
use crate::{BackboneError, Checkpoint};

impl LlamaForCausalLm {
    /// Loads a Hugging Face model folder: `config.json` and safetensors weights of any float type,
    /// kept in f32.
    ///
    /// # Errors
    /// Names the file, key or tensor, what was expected and what was found. Every tensor of the files
    /// must be used or be on the (short) list of known leftovers.
    pub fn from_pretrained(dir: &Path, device: &Device) -> Result<Self, BackboneError> {
        let config = LlamaConfig::from_dir(dir)?;
        let checkpoint = Checkpoint::open(dir)?;
        Self::from_checkpoint(config, &checkpoint, FloatDtype::F32, device)
    }

    /// Loads from an opened checkpoint, its matrices kept in `dtype`; see
    /// [`from_pretrained`](Self::from_pretrained).
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained).
    pub fn from_checkpoint(
        config: LlamaConfig,
        checkpoint: &Checkpoint,
        dtype: FloatDtype,
        device: &Device,
    ) -> Result<Self, BackboneError> {
        let model = Self::from_source(config, checkpoint, dtype, device)?;
        // Buffers that old versions of Transformers saved with the weights.
        checkpoint.finish(|name| name.ends_with(".self_attn.rotary_emb.inv_freq"))?;
        Ok(model)
    }

    /// Builds the model from any source of weights, the matrices of its linear layers and embeddings kept
    /// in `dtype`.
    ///
    /// The head is `lm_head.weight` if the source stores it, as in Transformers; else the embedding, of a configuration that
    /// is [`tied`](LlamaConfig::tied).
    ///
    /// # Errors
    /// Those of the source, which must have a head for a configuration that is not tied.
    pub fn from_source(
        config: LlamaConfig,
        source: &dyn WeightSource,
        dtype: FloatDtype,
        device: &Device,
    ) -> Result<Self, BackboneError> {
        let loader = Loader {
            source,
            dtype,
            device,
        };
        let embedding = [config.vocabulary, config.d_model];
        let lm_head = if !config.tied || source.contains("lm_head.weight") {
            Some(loader.matrix("lm_head.weight", embedding, dtype)?)
        } else {
            None
        };
        let builder = Builder {
            config: &config,
            loader: &loader,
        };
        Ok(Self {
            embed_tokens: loader.matrix("model.embed_tokens.weight", embedding, dtype)?,
            layers: loader.parts(config.blocks, |at| {
                builder.layer(&format!("model.layers.{at}"))
            })?,
            norm: builder.norm("model.norm.weight")?,
            lm_head,
            transposed_head: None,
            config,
        })
    }
}

struct Builder<'a> {
    config: &'a LlamaConfig,
    loader: &'a Loader<'a>,
}

impl Builder<'_> {
    fn norm(&self, name: &str) -> Result<RmsNorm, BackboneError> {
        Ok(RmsNorm {
            weight: self.loader.vector(name, self.config.d_model)?,
            epsilon: self.config.epsilon,
            name: name.to_owned(),
        })
    }

    fn layer(&self, name: &str) -> Result<LlamaDecoderLayer, BackboneError> {
        let LlamaConfig {
            d_model,
            d_ff,
            heads,
            kv_heads,
            d_head,
            dropout,
            qkv_bias,
            output_bias,
            feed_forward_bias,
            ..
        } = *self.config;
        let attention = format!("{name}.self_attn");
        let mlp = format!("{name}.mlp");
        let linear = |name: String, dims, bias| self.loader.linear(&name, dims, bias);
        let (queries, keys) = ([d_model, heads * d_head], [d_model, kv_heads * d_head]);
        Ok(LlamaDecoderLayer {
            input_layernorm: self.norm(&format!("{name}.input_layernorm.weight"))?,
            self_attn: LlamaAttention {
                q_proj: linear(format!("{attention}.q_proj"), queries, qkv_bias)?,
                k_proj: linear(format!("{attention}.k_proj"), keys, qkv_bias)?,
                v_proj: linear(format!("{attention}.v_proj"), keys, qkv_bias)?,
                o_proj: linear(
                    format!("{attention}.o_proj"),
                    [heads * d_head, d_model],
                    output_bias,
                )?,
                heads,
                kv_heads,
                d_head,
                dropout,
                site: site(&attention),
            },
            post_attention_layernorm: self
                .norm(&format!("{name}.post_attention_layernorm.weight"))?,
            mlp: LlamaMlp {
                gate_proj: linear(
                    format!("{mlp}.gate_proj"),
                    [d_model, d_ff],
                    feed_forward_bias,
                )?,
                up_proj: linear(format!("{mlp}.up_proj"), [d_model, d_ff], feed_forward_bias)?,
                down_proj: linear(
                    format!("{mlp}.down_proj"),
                    [d_ff, d_model],
                    feed_forward_bias,
                )?,
            },
        })
    }
}

/// Hugging Face's initialisation (`LlamaPreTrainedModel._init_weights`): matrices `N(0, std)`, norms 1, biases
/// 0; drawn in the order in which tensors are asked for.
///
/// With `tied` there is no `lm_head.weight`.
pub struct RandomInit {
    tied: bool,
    std: f32,
    /// Tensors that are given instead of drawn.
    given: BTreeMap<String, Vec<f32>>,
    rng: Mutex<ChaCha8Rng>,
}

impl RandomInit {
    /// An initialisation that is a function of `seed`. Hugging Face's `std` is 0.02.
    pub fn new(tied: bool, std: f64, seed: u64) -> Self {
        Self {
            tied,
            std: std as f32,
            given: BTreeMap::new(),
            rng: Mutex::new(ChaCha8Rng::seed_from_u64(seed)),
        }
    }

    /// A given tensor instead of a drawn one, by its Hugging Face name, in PyTorch's orientation, row-major; the embedding
    /// `model.embed_tokens.weight` is `[vocabulary, width]`. One of another size than the model's is an error when the model is made.
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
        let values: Vec<f32> = if let Some(given) = self.given.get(name) {
            check_given(name, shape, given)?;
            given.clone()
        } else if name.ends_with("norm.weight") {
            vec![1.0; count]
        } else if name.ends_with(".bias") {
            vec![0.0; count]
        } else {
            let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
            let draw = |_| self.std * Distribution::<f32>::sample(&StandardNormal, &mut *rng);
            (0..count).map(draw).collect()
        };
        Ok(FloatValues::new(&values, shape, dtype, layout))
    }
}
