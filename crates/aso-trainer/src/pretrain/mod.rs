//! Pre-training of the built-in demo backbones: a very small T5 and a very small LLaMA, from a random
//! initialisation, on the generated language of [`aso_data::synthetic`].
//!
//! Two kinds of examples are mixed: unlabelled text (under T5's [span corruption](SpanCorruption), or to be
//! predicted from left to right), and instruction items that teach to read a question and to choose among options, without the
//! questions' answers that the demo tasks will ask for. All parameters train, with Burn's Adafactor.
//!
//! Everything is a function of the configuration, seed included. `cargo xtask backbone` runs the example
//! `backbone` around it and writes `assets/demo`.

mod corruption;
mod tokenizer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aso_backbones::generation::EndTokens;
use aso_backbones::llama::{self, HfLlamaConfig, LlamaConfig, LlamaForCausalLm};
use aso_backbones::t5::{self, HfT5Config, T5Config, T5ForConditionalGeneration};
use aso_backbones::{
    Backbone, BackboneError, FloatDtype, GenerationConfig, ModelKind, RowControl, TokenBatch,
    checkpoint,
};
use aso_data::synthetic::{instruction_items, pretraining_text};
use aso_data::{DataError, EncodedExample, Example, ExampleEncoder, exact_match};
use aso_lora::ForwardContext;
use aso_losses::SequenceCrossEntropy;
use burn::module::{Module, ModuleMapper, Param};
use burn::optim::{AdafactorConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

use crate::codec::TextCodec;

pub use corruption::SpanCorruption;

/// Settings of a pre-training run.
#[derive(Debug, Clone, PartialEq)]
pub struct PretrainConfig {
    /// Seed of initialisation and data.
    pub seed: u64,
    /// Family and shape of the model.
    pub model: PretrainModel,
    /// Share of unlabelled text among the examples, in [0, 1]; the others are instruction items.
    pub text_share: f64,
    /// Optimizer steps.
    pub steps: usize,
    /// Examples a step.
    pub batch_size: usize,
    /// Highest learning rate, relative to the root mean square of a parameter.
    pub lr: f64,
    /// Steps of linear warm-up; after them the rate falls linearly to 0.
    pub warmup_steps: usize,
}

/// The model to pre-train; the size of the vocabulary is filled in.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one value per run")]
pub enum PretrainModel {
    /// An encoder-decoder.
    T5 {
        /// Shape.
        config: HfT5Config,
        /// Standard deviation of the initial embedding.
        embedding_std: f64,
        /// Number of sentinel tokens.
        sentinels: usize,
        /// The denoising objective.
        corruption: SpanCorruption,
    },
    /// A causal model, with a tied head.
    Llama {
        /// Shape.
        config: HfLlamaConfig,
        /// Standard deviation of the initial matrices.
        std: f64,
    },
}

/// State of a running pre-training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PretrainProgress {
    /// Steps done, from 1.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// Mean token loss since the last report.
    pub loss: f64,
}

/// The files of a pre-trained model.
#[derive(Debug, Clone, PartialEq)]
pub struct Pretrained {
    /// `config.json`.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// `model.safetensors`, in half precision.
    pub weights: Vec<u8>,
}

/// Why pre-training failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PretrainError {
    /// The model.
    #[error(transparent)]
    Backbone(#[from] BackboneError),
    /// Tokenizer or data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The loss is no number any more.
    #[error("the loss is {loss} at step {step}; lower the learning rate ({lr})")]
    Diverged {
        /// The step, from 1.
        step: usize,
        /// Its loss.
        loss: f64,
        /// The highest learning rate.
        lr: f64,
    },
    /// A file could not be written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Steps between two reports.
const REPORT_EVERY: usize = 50;

impl PretrainConfig {
    /// The demo's T5: v1.0 with d_model 128 and two blocks a stack.
    pub fn t5() -> Self {
        Self {
            seed: 1,
            model: PretrainModel::T5 {
                config: HfT5Config {
                    d_model: 128,
                    d_kv: 32,
                    d_ff: 256,
                    num_layers: 2,
                    num_decoder_layers: Some(2),
                    num_heads: 4,
                    relative_attention_num_buckets: 16,
                    relative_attention_max_distance: 64,
                    dropout_rate: 0.0,
                    tie_word_embeddings: Some(true),
                    scale_decoder_outputs: Some(true),
                    decoder_start_token_id: Some(0),
                    ..HfT5Config::default()
                },
                embedding_std: 1.0,
                sentinels: 8,
                corruption: SpanCorruption {
                    rate: 0.25,
                    mean_span: 1.5,
                },
            },
            text_share: 0.2,
            steps: 1200,
            batch_size: 64,
            lr: 3e-2,
            warmup_steps: 100,
        }
    }

    /// The demo's LLaMA: width 128, four blocks, grouped-query attention, tied head.
    pub fn llama() -> Self {
        Self {
            model: PretrainModel::Llama {
                config: HfLlamaConfig {
                    hidden_size: 128,
                    intermediate_size: 320,
                    num_hidden_layers: 4,
                    num_attention_heads: 4,
                    num_key_value_heads: Some(2),
                    rope_theta: Some(10_000.0),
                    tie_word_embeddings: Some(true),
                    bos_token_id: Some(3),
                    eos_token_id: EndTokens::One(1),
                    pad_token_id: Some(0),
                    ..HfLlamaConfig::default()
                },
                std: 0.05,
            },
            ..Self::t5()
        }
    }
}

/// Pre-trains a model. `report` is called every 50 steps and at the end.
///
/// # Errors
/// [`PretrainError::Diverged`], and those of the configuration of the model.
pub fn pretrain(
    config: &PretrainConfig,
    device: &Device,
    report: &mut dyn FnMut(PretrainProgress),
) -> Result<Pretrained, PretrainError> {
    let path = Path::new("config.json");
    let dtype = FloatDtype::F32;
    let (json, parameters, tokenizer, class);
    match &config.model {
        PretrainModel::T5 {
            config: hf,
            embedding_std,
            sentinels,
            ..
        } => {
            tokenizer = tokenizer::tokenizer_json(ModelKind::EncoderDecoder, *sentinels);
            let hf = HfT5Config {
                vocab_size: tokenizer::parse(&tokenizer)?.vocab_size(),
                ..hf.clone()
            };
            let resolved = T5Config::resolve(path, &hf)?;
            let tied = hf.tie_word_embeddings.unwrap_or(true);
            let init = t5::RandomInit::new(resolved.clone(), tied, config.seed)
                .with_embedding_std(*embedding_std);
            let model = T5ForConditionalGeneration::from_source(resolved, &init, dtype, device)?;
            let model = fit(model, config, &tokenizer, report)?;
            (json, parameters) = (serde_json::to_value(&hf), model.named_parameters());
            class = "T5ForConditionalGeneration";
        }
        PretrainModel::Llama { config: hf, std } => {
            tokenizer = tokenizer::tokenizer_json(ModelKind::Causal, 0);
            let hf = HfLlamaConfig {
                vocab_size: tokenizer::parse(&tokenizer)?.vocab_size(),
                ..hf.clone()
            };
            let resolved = LlamaConfig::resolve(path, &hf)?;
            let init = llama::RandomInit::new(true, *std, config.seed);
            let model = LlamaForCausalLm::from_source(resolved, &init, dtype, device)?;
            let model = fit(model, config, &tokenizer, report)?;
            (json, parameters) = (serde_json::to_value(&hf), model.named_parameters());
            class = "LlamaForCausalLM";
        }
    }
    let mut json = json
        .ok()
        .and_then(|json| json.as_object().cloned())
        .unwrap_or_default();
    json.retain(|_, value| !value.is_null());
    json.insert("architectures".into(), serde_json::json!([class]));
    json.insert("dtype".into(), "float16".into());
    let encoder_decoder = matches!(config.model, PretrainModel::T5 { .. });
    json.insert("is_encoder_decoder".into(), encoder_decoder.into());
    Ok(Pretrained {
        config: json,
        tokenizer,
        weights: checkpoint::serialize(parameters, FloatDtype::F16)?,
    })
}

/// Trains all parameters of a model.
fn fit<M: Backbone + Module>(
    model: M,
    config: &PretrainConfig,
    tokenizer: &[u8],
    report: &mut dyn FnMut(PretrainProgress),
) -> Result<M, PretrainError> {
    let tokenizer = tokenizer::parse(tokenizer)?;
    let codec = TextCodec::new(model.kind(), &model.special_tokens(), tokenizer);
    let mut model = model.map(&mut MakeTrainable);
    // Updates are scaled by each parameter's root mean square: with Adam's uniform steps, embeddings
    // of unit variance hardly move while small projections jump.
    let mut optimizer = AdafactorConfig::new().with_relative_step(false).init();
    let mut examples = ExampleStream::new(config, &codec)?;
    let (mut sum, mut since) = (0.0, 0);
    for step in 1..=config.steps {
        let batch = examples.batch(config.batch_size)?;
        let loss = update(&mut model, &mut optimizer, &batch, config.lr_at(step));
        if !loss.is_finite() {
            let lr = config.lr;
            return Err(PretrainError::Diverged { step, loss, lr });
        }
        sum += loss;
        since += 1;
        if since == REPORT_EVERY || step == config.steps {
            report(PretrainProgress {
                step,
                steps: config.steps,
                loss: sum / since as f64,
            });
            (sum, since) = (0.0, 0);
        }
    }
    Ok(model)
}

impl PretrainConfig {
    /// Learning rate of a step (from 1): linear warm-up, then linear decay to 0 behind the last step.
    fn lr_at(&self, step: usize) -> f64 {
        let rise = step as f64 / self.warmup_steps.max(1) as f64;
        let left = (self.steps + 1 - step) as f64;
        let fall = left / (self.steps + 1).saturating_sub(self.warmup_steps).max(1) as f64;
        self.lr * rise.min(fall).min(1.0)
    }
}

/// One optimizer step; returns the mean token loss before it.
fn update<M: Backbone + Module>(
    model: &mut M,
    optimizer: &mut ModuleOptimizer,
    batch: &TokenBatch,
    lr: f64,
) -> f64 {
    let (logits, labels) = model.answer_logits(batch, &ForwardContext::training(None));
    let loss = SequenceCrossEntropy::default().forward(logits, &labels);
    let mean = loss.sum.div_scalar(loss.tokens as f64);
    let gradients = GradientsParams::from_grads(mean.backward(), model);
    *model = optimizer.step(lr, model.clone(), gradients);
    mean.into_scalar::<f32>().into()
}

/// Makes every parameter a leaf of the autodiff graph.
struct MakeTrainable;

impl ModuleMapper for MakeTrainable {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        Param::initialized(param.id, param.val().autodiff().require_grad())
    }
}

/// Text and instruction items, encoded, without end.
struct ExampleStream<'a> {
    /// `None` for a causal model, which predicts text as it is.
    corruption: Option<SpanCorruption>,
    text_share: f64,
    codec: &'a TextCodec,
    encoder: ExampleEncoder<'a>,
    sentinels: Vec<u32>,
    text: Box<dyn Iterator<Item = String>>,
    items: Box<dyn Iterator<Item = Example>>,
    rng: ChaCha8Rng,
}

impl<'a> ExampleStream<'a> {
    fn new(config: &PretrainConfig, codec: &'a TextCodec) -> Result<Self, PretrainError> {
        Ok(Self {
            corruption: match config.model {
                PretrainModel::T5 { corruption, .. } => Some(corruption),
                PretrainModel::Llama { .. } => None,
            },
            text_share: config.text_share,
            encoder: encoder(codec)?,
            sentinels: tokenizer::sentinel_ids(codec.tokenizer()),
            codec,
            text: Box::new(pretraining_text(config.seed)),
            items: Box::new(instruction_items(config.seed)),
            rng: ChaCha8Rng::seed_from_u64(config.seed),
        })
    }

    fn batch(&mut self, rows: usize) -> Result<TokenBatch, PretrainError> {
        let mut examples = Vec::with_capacity(rows);
        while examples.len() < rows {
            let text = self.rng.random_bool(self.text_share.clamp(0.0, 1.0));
            examples.extend(if text {
                self.text()?
            } else {
                self.instruction()?
            });
        }
        Ok(self.codec.batch(&examples.iter().collect::<Vec<_>>())?)
    }

    fn instruction(&mut self) -> Result<Option<EncodedExample>, PretrainError> {
        let Some(item) = self.items.next() else {
            return Ok(None);
        };
        Ok(Some(self.encoder.encode("instruction items", &item)?))
    }

    fn text(&mut self) -> Result<Option<EncodedExample>, PretrainError> {
        let Some(text) = self.text.next() else {
            return Ok(None);
        };
        let tokenizer = self.codec.tokenizer();
        let ids = tokenizer.encode(&text)?;
        let end = tokenizer.eos_id();
        let (source, target) = match self.corruption {
            Some(corruption) => {
                let (mut source, mut target) =
                    corruption.corrupt(&ids, &self.sentinels, &mut self.rng);
                source.extend(end);
                target.extend(end);
                (source, target)
            }
            // The begin token is the prompt.
            None => {
                let target = ids.into_iter().chain(end).collect();
                (tokenizer.bos_id().into_iter().collect(), target)
            }
        };
        Ok(Some(EncodedExample {
            source,
            target,
            source_removed: 0,
            target_removed: 0,
        }))
    }
}

fn encoder(codec: &TextCodec) -> Result<ExampleEncoder<'_>, DataError> {
    // Generated examples are far shorter.
    codec.encoder(512, 50)
}

/// Exact match, in percent, of a model's greedy answers to instruction items, by kind of item (the word
/// before the prompt's first colon). Another seed than that of the training gives unseen items.
///
/// # Errors
/// Those of the tokenizer.
pub fn instruction_accuracy(
    model: &impl Backbone,
    codec: &TextCodec,
    seed: u64,
    count: usize,
) -> Result<BTreeMap<String, f64>, PretrainError> {
    let items: Vec<Example> = instruction_items(seed).take(count).collect();
    let encoded = encoder(codec)?.encode_all("instruction items", &items)?;
    let generation = GenerationConfig::greedy(4);
    let mut kinds = BTreeMap::<String, (usize, usize)>::new();
    for (items, rows) in items.chunks(100).zip(encoded.chunks(100)) {
        let batch = codec.prompts(&rows.iter().collect::<Vec<_>>())?;
        let answers = model.generate(
            &batch,
            &generation,
            RowControl::default(),
            &ForwardContext::inference(),
        );
        for (item, answer) in items.iter().zip(answers) {
            let prompt = item.prompt();
            let kind = prompt.split(':').next().unwrap_or_default();
            let (right, all) = kinds.entry(kind.to_owned()).or_default();
            *right += usize::from(exact_match(
                &codec.tokenizer().decode(&answer)?,
                &item.target,
            ));
            *all += 1;
        }
    }
    let percent = |(right, all)| 100.0 * right as f64 / all as f64;
    Ok(kinds
        .into_iter()
        .map(|(kind, counts)| (kind, percent(counts)))
        .collect())
}

impl Pretrained {
    /// Writes `config.json`, `model.safetensors` and `tokenizer.json` in Hugging Face's form.
    ///
    /// # Errors
    /// [`PretrainError::Io`] names the file.
    pub fn save(&self, dir: &Path) -> Result<(), PretrainError> {
        let io = |path: PathBuf| move |source| PretrainError::Io { path, source };
        std::fs::create_dir_all(dir).map_err(io(dir.to_owned()))?;
        let config = format!("{:#}\n", serde_json::Value::Object(self.config.clone()));
        let files = [
            ("config.json", config.as_bytes()),
            ("model.safetensors", &self.weights),
            ("tokenizer.json", &self.tokenizer),
        ];
        for (name, bytes) in files {
            let path = dir.join(name);
            std::fs::write(&path, bytes).map_err(io(path))?;
        }
        Ok(())
    }
}
