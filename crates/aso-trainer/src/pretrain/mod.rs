//! Pre-training of small backbones from a random initialisation: the demo's T5 and LLaMA on the generated language of
//! [`aso_data::synthetic`], others on the texts of a [corpus].
//!
//! Two kinds of examples can be mixed: unlabelled text (under T5's [span corruption](SpanCorruption), or to be
//! predicted from left to right), and items that teach to read a question and to choose among options, without the
//! questions' answers that later tasks will ask for. On a corpus the items, which are made from its texts, are all: text
//! stands in only where an item is too long. All parameters train, with Burn's Adafactor.
//!
//! Everything is a function of the configuration and the data, seed included. `cargo xtask backbone` runs the example
//! `backbone` around it.

pub mod corpus;
mod corruption;
mod examples;
mod fit;
mod mimetic;
mod tokenizer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use aso_backbones::generation::EndTokens;
use aso_backbones::llama::{self, HfLlamaConfig, LlamaConfig, LlamaForCausalLm};
use aso_backbones::t5::{self, HfT5Config, T5Config, T5ForConditionalGeneration};
use aso_backbones::{
    Backbone, BackboneError, FloatDtype, GenerationConfig, ModelKind, RowControl, checkpoint,
};
use aso_data::synthetic::instruction_items;
use aso_data::{DataError, Example, exact_match};
use aso_lora::ForwardContext;
use burn::tensor::Device;
use thiserror::Error;

use crate::codec::TextCodec;
use crate::files::{FilesError, atomic_write};
use examples::{Examples, MAX_TARGET};
use fit::Fitting;

pub use corpus::{Corpus, ItemKind};
pub use corruption::SpanCorruption;
pub use mimetic::Mimetic;

/// Settings of a pre-training run.
#[derive(Debug, Clone, PartialEq)]
pub struct PretrainConfig {
    /// Seed of initialisation and data.
    pub seed: u64,
    /// Family and shape of the model.
    pub model: PretrainModel,
    /// Share of unlabelled text among the examples of the first step, in [0, 1]; the others are instruction items.
    pub text_share: f64,
    /// The share at the last step; in between it changes linearly.
    pub final_text_share: f64,
    /// Tokens of the vocabulary made for a corpus; generated language has its own.
    pub vocabulary: usize,
    /// Longest source in tokens; longer ones are cut.
    pub max_source: usize,
    /// How long to train.
    pub length: PretrainLength,
    /// Examples a step.
    pub batch_size: usize,
    /// Highest learning rate, relative to the root mean square of a parameter.
    pub lr: f64,
    /// The same of the embedding. A rare token's row moves far in its few steps, so vectors that mean something from the
    /// start need a lower rate.
    pub embedding_lr: f64,
    /// Steps of linear warm-up; after them the rate falls linearly to 0.
    pub warmup_steps: usize,
}

/// How long to train.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PretrainLength {
    /// Optimizer steps.
    Steps(usize),
    /// About so many hours on this machine: the first steps are timed, and how many fit is decided once.
    Hours(f64),
}

/// What to train on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PretrainData {
    /// The generated language of [`aso_data::synthetic`].
    Generated,
    /// Texts, and items made from them.
    Corpus(Corpus),
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
        /// How attention starts; `None` is Hugging Face's initialisation.
        mimetic: Option<Mimetic>,
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
#[derive(Debug, Clone, PartialEq)]
pub struct PretrainProgress {
    /// Steps done, from 1.
    pub step: usize,
    /// Steps in all, once that is known.
    pub steps: Option<usize>,
    /// Mean token loss since the last report.
    pub loss: f64,
    /// Exact match in percent by kind of item, on items that are never trained on; of a corpus, now and then.
    pub accuracy: Option<BTreeMap<ItemKind, f64>>,
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
    /// The texts make no tokenizer.
    #[error("no tokenizer can be made from the texts: {problem}")]
    Tokenizer {
        /// What is wrong.
        problem: String,
    },
    /// The corpus is too small.
    #[error("the corpus is too small: {found} texts make no item")]
    SmallCorpus {
        /// Its texts.
        found: usize,
    },
    /// A folder holds the state of another pre-training.
    #[error("{path} belongs to a pre-training with other settings or data; name another folder")]
    OtherRun {
        /// The state's file.
        path: PathBuf,
    },
    /// The state of the optimizer.
    #[error("{path}: {problem}")]
    Optimizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file of the state.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A file could not be written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Steps between two saved states.
pub const CHECKPOINT_EVERY: usize = 500;

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
                mimetic: None,
            },
            text_share: 0.2,
            final_text_share: 0.2,
            vocabulary: 0,
            max_source: 512,
            length: PretrainLength::Steps(1200),
            batch_size: 64,
            lr: 3e-2,
            embedding_lr: 3e-2,
            warmup_steps: 100,
        }
    }

    /// A T5 for a corpus of a few megabytes: v1.0 with d_model 256, three and two blocks, about 7 million parameters.
    pub fn corpus_t5() -> Self {
        Self {
            model: PretrainModel::T5 {
                config: HfT5Config {
                    d_model: 256,
                    d_kv: 32,
                    d_ff: 1024,
                    num_layers: 3,
                    num_decoder_layers: Some(2),
                    num_heads: 8,
                    dropout_rate: 0.1,
                    tie_word_embeddings: Some(true),
                    scale_decoder_outputs: Some(true),
                    decoder_start_token_id: Some(0),
                    ..HfT5Config::default()
                },
                embedding_std: 1.0,
                sentinels: 32,
                corruption: SpanCorruption {
                    rate: 0.15,
                    mean_span: 2.0,
                },
                mimetic: Some(Mimetic {
                    similarity: 0.4,
                    copy: 1.2,
                    noise: 0.3,
                    branch: 0.4,
                    gain: 3.0,
                    start: 0.1,
                }),
            },
            text_share: 0.0,
            final_text_share: 0.0,
            vocabulary: 10_000,
            max_source: 104,
            length: PretrainLength::Hours(1.0),
            batch_size: 64,
            lr: 4e-2,
            embedding_lr: 1e-3,
            warmup_steps: 50,
            seed: 1,
        }
    }

    /// A LLaMA for a corpus of a few megabytes: width 256, six blocks, grouped-query attention, tied head.
    ///
    /// Rates and shares are those that were found for [`corpus_t5`](Self::corpus_t5); how well a LLaMA learns with them, and
    /// without its [`Mimetic`] start, was not measured.
    pub fn corpus_llama() -> Self {
        Self {
            model: PretrainModel::Llama {
                config: HfLlamaConfig {
                    hidden_size: 256,
                    intermediate_size: 704,
                    num_hidden_layers: 6,
                    num_attention_heads: 8,
                    num_key_value_heads: Some(4),
                    rope_theta: Some(10_000.0),
                    tie_word_embeddings: Some(true),
                    bos_token_id: Some(Some(3)),
                    eos_token_id: Some(EndTokens::One(1)),
                    pad_token_id: Some(0),
                    ..HfLlamaConfig::default()
                },
                std: 0.05,
            },
            ..Self::corpus_t5()
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
                    bos_token_id: Some(Some(3)),
                    eos_token_id: Some(EndTokens::One(1)),
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
/// With `keep` the state is saved in that folder every [`CHECKPOINT_EVERY`] steps, at the end, and when `stop` is set; a later call
/// with the same configuration and data goes on from there and ends with the same weights.
///
/// Returns `None` if it was stopped.
///
/// # Errors
/// [`PretrainError::Diverged`], [`PretrainError::OtherRun`] and those of the configuration of the model.
pub fn pretrain(
    config: &PretrainConfig,
    data: &PretrainData,
    keep: Option<&Path>,
    device: &Device,
    report: &mut dyn FnMut(PretrainProgress),
    stop: &AtomicBool,
) -> Result<Option<Pretrained>, PretrainError> {
    let path = Path::new("config.json");
    let dtype = FloatDtype::F32;
    let kind = match &config.model {
        PretrainModel::T5 { .. } => ModelKind::EncoderDecoder,
        PretrainModel::Llama { .. } => ModelKind::Causal,
    };
    let sentinels = match &config.model {
        PretrainModel::T5 { sentinels, .. } => *sentinels,
        PretrainModel::Llama { .. } => 0,
    };
    let tokenizer = match data {
        PretrainData::Generated => tokenizer::tokenizer_json(kind, sentinels),
        PretrainData::Corpus(corpus) => {
            corpus::tokenizer_json(corpus.texts(), kind, config.vocabulary, sentinels)?
        }
    };
    let text = tokenizer::parse(&tokenizer)?;
    let vocabulary = text.vocab_size();
    let fitting = Fitting::new(config, data, &tokenizer, keep, stop)?;
    let (mut json, parameters);
    match &config.model {
        PretrainModel::T5 {
            config: hf,
            embedding_std,
            mimetic,
            ..
        } => {
            let hf = HfT5Config {
                vocab_size: vocabulary,
                ..hf.clone()
            };
            let resolved = T5Config::resolve(path, &hf)?;
            let examples = Examples::new(config, data, &text, resolved.d_model)?;
            let tied = hf.tie_word_embeddings.unwrap_or(true);
            let mut init = t5::RandomInit::new(resolved.clone(), tied, config.seed)
                .with_embedding_std(*embedding_std);
            if let Some(mut vectors) = examples.vectors() {
                if let (Some(mimetic), Some(start)) = (mimetic, hf.decoder_start_token_id) {
                    mimetic.quieten(&mut vectors[start as usize * hf.d_model..][..hf.d_model]);
                }
                init = init.with_tensor("shared.weight", vectors);
            }
            for (name, values) in mimetic.iter().flat_map(|m| m.tensors(&hf, config.seed)) {
                init = init.with_tensor(name, values);
            }
            json = model_json(&hf, "T5ForConditionalGeneration", true);
            let fresh =
                || T5ForConditionalGeneration::from_source(resolved.clone(), &init, dtype, device);
            let saved = |dir: &Path| T5ForConditionalGeneration::from_pretrained(dir, device);
            let fitted = fitting.fit(examples, &json, fresh, saved, report)?;
            let Some(model) = fitted else { return Ok(None) };
            parameters = model.named_parameters();
        }
        PretrainModel::Llama { config: hf, std } => {
            let hf = HfLlamaConfig {
                vocab_size: vocabulary,
                ..hf.clone()
            };
            let resolved = LlamaConfig::resolve(path, &hf)?;
            let examples = Examples::new(config, data, &text, hf.hidden_size)?;
            let mut init = llama::RandomInit::new(true, *std, config.seed);
            if let Some(vectors) = examples.vectors() {
                // As large as the rest of the model expects them.
                let vectors = vectors.iter().map(|v| v * *std as f32).collect();
                init = init.with_tensor("model.embed_tokens.weight", vectors);
            }
            json = model_json(&hf, "LlamaForCausalLM", false);
            let fresh = || LlamaForCausalLm::from_source(resolved.clone(), &init, dtype, device);
            let saved = |dir: &Path| LlamaForCausalLm::from_pretrained(dir, device);
            let fitted = fitting.fit(examples, &json, fresh, saved, report)?;
            let Some(model) = fitted else { return Ok(None) };
            parameters = model.named_parameters();
        }
    }
    json.insert("dtype".into(), "float16".into());
    Ok(Some(Pretrained {
        config: json,
        tokenizer,
        weights: checkpoint::serialize(parameters, FloatDtype::F16)?,
    }))
}

/// `config.json` without `dtype`.
fn model_json(
    config: &impl serde::Serialize,
    class: &str,
    encoder_decoder: bool,
) -> serde_json::Map<String, serde_json::Value> {
    let json = serde_json::to_value(config).ok();
    let mut json = json
        .and_then(|json| json.as_object().cloned())
        .unwrap_or_default();
    json.retain(|_, value| !value.is_null());
    json.insert("architectures".into(), serde_json::json!([class]));
    json.insert("is_encoder_decoder".into(), encoder_decoder.into());
    json
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
    let items = instruction_items(seed).take(count).map(|item| {
        let prompt = item.prompt();
        let kind = prompt.split(':').next().unwrap_or_default().to_owned();
        (kind, item)
    });
    accuracy(model, codec, items.collect())
}

/// Exact match, in percent, of greedy answers, by key.
fn accuracy<K: Ord>(
    model: &impl Backbone,
    codec: &TextCodec,
    items: Vec<(K, Example)>,
) -> Result<BTreeMap<K, f64>, PretrainError> {
    let (keys, items): (Vec<K>, Vec<Example>) = items.into_iter().unzip();
    let encoded = codec
        .encoder(512, MAX_TARGET)?
        .encode_all("items", &items)?;
    let generation = GenerationConfig::greedy(MAX_TARGET);
    let mut kinds = BTreeMap::<K, (usize, usize)>::new();
    let mut keys = keys.into_iter();
    for (items, rows) in items.chunks(100).zip(encoded.chunks(100)) {
        let batch = codec.prompts(&rows.iter().collect::<Vec<_>>())?;
        let answers = model.generate(
            &batch,
            &generation,
            RowControl::default(),
            &ForwardContext::inference(),
        );
        for ((item, answer), key) in items.iter().zip(answers).zip(&mut keys) {
            let (right, all) = kinds.entry(key).or_default();
            let answer = codec.tokenizer().decode(&answer)?;
            *right += usize::from(exact_match(&answer, &item.target));
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
            atomic_write(&dir.join(name), bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use aso_backbones::{AutoModel, ModelKind};

    use super::*;

    /// Texts about two things.
    fn corpus() -> Corpus {
        let words = [
            [
                "river", "water", "stone", "bridge", "boat", "fish", "shore", "rain",
            ],
            [
                "market", "price", "trade", "money", "share", "bank", "profit", "stock",
            ],
        ];
        let text = |n: usize| {
            let of = &words[n % 2];
            let words = (0..24).map(|at| of[(n * 5 + at * at) % 8]);
            words.collect::<Vec<_>>().join(" ") + "."
        };
        // Frequent words are no terms, so something must be more frequent.
        let filler = (0..160)
            .map(|n| format!("f{}", "abcdefghijklm".repeat(1 + n / 13)) + &"x".repeat(n % 13));
        let filler = filler
            .collect::<Vec<_>>()
            .join(" ")
            .replace(|c: char| c.is_ascii_digit(), "");
        let texts = (0..80).map(text).chain(std::iter::repeat_n(filler, 100));
        Corpus::new(texts.collect())
    }

    fn config() -> PretrainConfig {
        let mut config = PretrainConfig::corpus_t5();
        if let PretrainModel::T5 { config, .. } = &mut config.model {
            config.d_model = 16;
            config.d_kv = 8;
            config.d_ff = 32;
            config.num_heads = 2;
            config.num_layers = 1;
            config.num_decoder_layers = Some(1);
        }
        PretrainConfig {
            vocabulary: 300,
            batch_size: 2,
            max_source: 64,
            length: PretrainLength::Steps(56),
            warmup_steps: 4,
            ..config
        }
    }

    #[test]
    fn an_interrupted_training_ends_with_the_same_weights() {
        let device = Device::flex();
        let data = PretrainData::Corpus(corpus());
        let never = AtomicBool::new(false);
        let whole = pretrain(&config(), &data, None, &device, &mut |_| {}, &never);
        let whole = whole.unwrap().unwrap();

        let dir = tempfile::tempdir().unwrap();
        let keep = dir.path().join("training");
        let stop = AtomicBool::new(false);
        let mut stopper = |progress: PretrainProgress| {
            assert_eq!(progress.step, 50);
            stop.store(true, Ordering::Relaxed);
        };
        let stopped = pretrain(&config(), &data, Some(&keep), &device, &mut stopper, &stop);
        assert_eq!(stopped.unwrap(), None);
        let mut steps = Vec::new();
        let mut seen = |progress: PretrainProgress| steps.push(progress.step);
        let resumed = pretrain(&config(), &data, Some(&keep), &device, &mut seen, &never);
        assert!(resumed.unwrap().unwrap() == whole);
        assert_eq!(steps, [56]);

        let other = PretrainConfig {
            seed: 2,
            ..config()
        };
        let refused = pretrain(&other, &data, Some(&keep), &device, &mut |_| {}, &never);
        assert!(matches!(refused, Err(PretrainError::OtherRun { .. })));
    }

    /// How many steps an hour has is known after some of them, and stays so.
    #[test]
    fn a_length_in_hours_becomes_steps() {
        let config = PretrainConfig {
            length: PretrainLength::Hours(1e-9),
            ..config()
        };
        let data = PretrainData::Corpus(corpus());
        let never = AtomicBool::new(false);
        let dir = tempfile::tempdir().unwrap();
        let keep = dir.path().join("training");
        let run = |stop: &AtomicBool| {
            let mut seen = Vec::new();
            let mut report =
                |progress: PretrainProgress| seen.push((progress.step, progress.steps));
            let trained = pretrain(
                &config,
                &data,
                Some(&keep),
                &Device::flex(),
                &mut report,
                stop,
            );
            (trained.unwrap(), seen)
        };
        assert_eq!(run(&AtomicBool::new(true)), (None, vec![]));
        let (whole, seen) = run(&never);
        // The shortest that can be timed.
        assert_eq!(seen, [(40, Some(40))]);
        assert!(run(&never) == (whole, vec![]), "nothing is left to do");
    }

    #[test]
    fn a_llama_learns_from_texts_too() {
        let mut config = PretrainConfig::corpus_llama();
        if let PretrainModel::Llama { config, .. } = &mut config.model {
            config.hidden_size = 16;
            config.intermediate_size = 32;
            config.num_hidden_layers = 1;
            config.num_attention_heads = 2;
            config.num_key_value_heads = Some(1);
        }
        let config = PretrainConfig {
            vocabulary: 300,
            batch_size: 2,
            max_source: 64,
            length: PretrainLength::Steps(4),
            warmup_steps: 2,
            ..config
        };
        let data = PretrainData::Corpus(corpus());
        let never = AtomicBool::new(false);
        let trained = pretrain(&config, &data, None, &Device::flex(), &mut |_| {}, &never);
        let dir = tempfile::tempdir().unwrap();
        trained.unwrap().unwrap().save(dir.path()).unwrap();
        let loaded = AutoModel::from_pretrained(dir.path(), FloatDtype::F32, &Device::flex());
        assert_eq!(loaded.unwrap().kind(), ModelKind::Causal);
    }

    #[test]
    fn a_corpus_without_items_is_refused() {
        let data = PretrainData::Corpus(Corpus::new(vec!["one two three".to_owned(); 4]));
        let never = AtomicBool::new(false);
        let refused = pretrain(&config(), &data, None, &Device::flex(), &mut |_| {}, &never);
        assert!(matches!(
            refused,
            Err(PretrainError::SmallCorpus { found: 4 })
        ));
    }
}
