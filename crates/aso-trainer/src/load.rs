//! From a configuration to a model, its tokenizer and its data.

use std::path::{Path, PathBuf};

use aso_backbones::{
    AutoConfig, AutoModel, Backbone, BackboneError, Checkpoint, FloatDtype, ModelKind,
};
use aso_data::{
    ClBenchmark, DevFromTrain, JsonlLibrary, SuperNiLibrary, SyntheticSuite, TaskLibrary,
    TextTokenizer, TraceLibrary,
};
use aso_hub::{DEFAULT_REVISION, Hub, HubConfig, ModelId};
use aso_lora::{Adapter, AdapterKind};
use burn::tensor::Device;
use serde::Deserialize;

use crate::TrainerError;
use crate::codec::TextCodec;
use crate::config::{DataFormat, DataSettings, ModelSettings, ModelSource};
use crate::events::{Event, Observer};

/// Seed of the built-in suite: its data are the same in every run.
pub const EMBEDDED_SUITE_SEED: u64 = 1;

/// A model with everything that belongs to it.
pub struct Loaded<M> {
    /// The model.
    pub model: M,
    /// Its tokenizer, with the model's special tokens.
    pub codec: TextCodec,
    /// Fingerprint of the weights.
    pub fingerprint: String,
    /// Path, id on the Hub or built-in name, as written into adapter files.
    pub name: String,
}

/// The folder of a model, which is downloaded first if it is on the Hugging Face Hub and not in the cache;
/// `None` for a built-in model.
///
/// # Errors
/// [`TrainerError::Hub`], [`TrainerError::ModelId`].
pub fn model_folder(
    settings: &ModelSettings,
    observer: &mut dyn Observer,
) -> Result<Option<PathBuf>, TrainerError> {
    Ok(match settings.source() {
        ModelSource::Embedded(_) => None,
        ModelSource::Folder(dir) => Some(dir.to_owned()),
        ModelSource::Hub(id) => {
            let model: ModelId = id.parse()?;
            tracing::info!(%model, "not a folder here, so a model of the Hugging Face Hub");
            let revision = settings.revision.as_deref().unwrap_or(DEFAULT_REVISION);
            let folder = HubConfig::from_env().and_then(Hub::new).and_then(|hub| {
                hub.snapshot(&model, revision, &mut |progress| {
                    observer.event(Event::Download(progress));
                })
            });
            Some(folder.map_err(|error| TrainerError::Hub {
                model,
                source: Box::new(error),
            })?)
        }
    })
}

/// Loads the model that a configuration names, with its tokenizer. `observer` hears of downloads.
///
/// # Errors
/// Names the file, key or tensor that is missing or wrong.
pub fn load_model(
    settings: &ModelSettings,
    device: &Device,
    observer: &mut dyn Observer,
) -> Result<Loaded<AutoModel>, TrainerError> {
    let dir = model_folder(settings, observer)?;
    let (mut model, fingerprint, tokenizer) = match &dir {
        None => {
            let embedded = settings.embedded()?;
            let checkpoint = embedded.checkpoint()?;
            let fingerprint = checkpoint.fingerprint()?;
            let config = embedded.config()?;
            let model = AutoModel::from_checkpoint(config, &checkpoint, settings.dtype, device)?;
            (model, fingerprint, embedded.tokenizer()?)
        }
        Some(dir) => {
            let (model, fingerprint) = load_backbone(dir, settings.dtype, device)?;
            let tokenizer = TextTokenizer::from_file(dir.join("tokenizer.json"))?;
            (model, fingerprint, tokenizer)
        }
    };
    if let Some(dropout) = settings.dropout {
        model.set_dropout(dropout);
    }
    let codec = match &dir {
        Some(dir) => folder_codec(settings, dir, &model, tokenizer)?,
        None if settings.chat_template.is_some() => return Err(TrainerError::TemplateUnused),
        None => TextCodec::new(model.kind(), &model.special_tokens(), tokenizer),
    };
    Ok(Loaded {
        model,
        codec,
        fingerprint,
        name: match settings.source() {
            ModelSource::Hub(id) => id.to_owned(),
            ModelSource::Embedded(_) | ModelSource::Folder(_) => settings.path.clone(),
        },
    })
}

/// The codec of a model folder: a causal model's answers end as its `tokenizer_config.json` says, and its
/// prompts may be rendered with a chat template.
fn folder_codec(
    settings: &ModelSettings,
    dir: &Path,
    model: &AutoModel,
    tokenizer: TextTokenizer,
) -> Result<TextCodec, TrainerError> {
    let special = model.special_tokens();
    let file = TokenizerConfig::read(dir)?;
    let end = file.eos_token.as_ref().and_then(TokenText::text);
    let end = end.and_then(|text| tokenizer.inner().token_to_id(text));
    let codec = TextCodec::new(model.kind(), &special, tokenizer);
    // Instruction-tuned models list several end tokens; the tokenizer's own is the one behind an answer.
    let codec = match end.filter(|id| special.ends.contains(id)) {
        Some(id) => codec.with_end_token(id),
        None => codec,
    };
    let Some(template) = &settings.chat_template else {
        return Ok(codec);
    };
    if model.kind() != ModelKind::Causal {
        return Err(TrainerError::TemplateUnused);
    }
    if template != OWN_TEMPLATE {
        return Ok(codec.with_template(template)?);
    }
    let jinja = dir.join("chat_template.jinja");
    let own = if jinja.exists() {
        let source = std::fs::read_to_string(&jinja);
        Some(source.map_err(|source| BackboneError::Io {
            path: jinja,
            source,
        })?)
    } else {
        file.chat_template.and_then(TemplateText::text)
    };
    match own {
        Some(own) => Ok(codec.with_template(&own)?),
        None => Err(TrainerError::NoTemplate {
            dir: dir.to_owned(),
        }),
    }
}

/// The value of `model.chat_template` that means the template in the model's folder.
const OWN_TEMPLATE: &str = "checkpoint";

/// What is read of `tokenizer_config.json`; everything may be absent.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    eos_token: Option<TokenText>,
    chat_template: Option<TemplateText>,
}

/// A token as Hugging Face writes it: its text, or an object with it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenText {
    Text(String),
    Object { content: String },
    Other(serde::de::IgnoredAny),
}

/// A template, or several with names.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TemplateText {
    Text(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl TokenizerConfig {
    fn read(dir: &Path) -> Result<Self, BackboneError> {
        let path = dir.join("tokenizer_config.json");
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| BackboneError::Json { path, source }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(BackboneError::Io { path, source }),
        }
    }
}

impl TokenText {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Object { content: text } => Some(text),
            Self::Other(_) => None,
        }
    }
}

impl TemplateText {
    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Named(templates) => {
                let mut templates = templates.into_iter();
                let default = templates.find(|template| template.name == "default");
                default.map(|template| template.template)
            }
        }
    }
}

/// Loads a model folder without its tokenizer, and the fingerprint of its weights.
///
/// # Errors
/// [`BackboneError::Precision`] if the device cannot compute in `dtype`; otherwise as [`load_model`].
pub fn load_backbone(
    dir: &Path,
    dtype: FloatDtype,
    device: &Device,
) -> Result<(AutoModel, String), BackboneError> {
    let config = AutoConfig::from_dir(dir)?;
    let checkpoint = Checkpoint::open(dir)?;
    // Hashing takes as long as loading, and needs only the file.
    std::thread::scope(|scope| {
        let fingerprint = scope.spawn(|| checkpoint.fingerprint());
        let model = AutoModel::from_checkpoint(config, &checkpoint, dtype, device)?;
        let fingerprint = fingerprint
            .join()
            .unwrap_or_else(|_| checkpoint.fingerprint())?;
        Ok((model, fingerprint))
    })
}

/// Opens the tasks that a configuration names, with the dev splits that it asks for.
///
/// # Errors
/// [`TrainerError::Data`] if the folder does not hold the layout.
pub fn open_library(settings: &DataSettings) -> Result<Box<dyn TaskLibrary>, TrainerError> {
    // Validation made sure that the path is there for the formats that need one.
    let path = settings.path.clone().unwrap_or_else(|| PathBuf::from("."));
    let library: Box<dyn TaskLibrary> = match settings.format {
        DataFormat::ClBenchmark => Box::new(ClBenchmark::open(path)?),
        DataFormat::Jsonl => Box::new(JsonlLibrary::open(path)?),
        DataFormat::Trace => Box::new(TraceLibrary::open(path)?),
        DataFormat::SuperNi => Box::new(SuperNiLibrary::open(path)?),
        DataFormat::Embedded => Box::new(SyntheticSuite::demo(EMBEDDED_SUITE_SEED)),
    };
    Ok(match settings.dev_from_train {
        0 => library,
        examples => Box::new(DevFromTrain::new(library, examples)),
    })
}

/// Whether an adapter, read from `dir`, was made for the base model with this fingerprint; one that does not say is taken.
///
/// # Errors
/// [`TrainerError::OtherModel`].
pub fn check_base(adapter: &Adapter, dir: &Path, fingerprint: &str) -> Result<(), TrainerError> {
    match &adapter.sidecar {
        Some(sidecar) if sidecar.base_model_fingerprint != fingerprint => {
            Err(TrainerError::OtherModel {
                path: dir.to_owned(),
                expected: sidecar.base_model_fingerprint.clone(),
                found: fingerprint.to_owned(),
            })
        }
        _ => Ok(()),
    }
}

/// Puts adapters on a model: all frozen, in the given order, except that the last one becomes the active
/// subspace if `last_active`.
///
/// # Errors
/// [`TrainerError::OtherModel`] if an adapter says that it belongs to other weights,
/// [`TrainerError::Snapshots`] if several are given and one of them is a snapshot, and what
/// does not fit or cannot be read.
pub fn load_adapters<M: Backbone>(
    model: &mut M,
    dirs: &[PathBuf],
    fingerprint: &str,
    last_active: bool,
) -> Result<(), TrainerError> {
    for (at, dir) in dirs.iter().enumerate() {
        let adapter = Adapter::load(dir)?;
        check_base(&adapter, dir, fingerprint)?;
        let kind = adapter.sidecar.as_ref().map(|sidecar| sidecar.kind);
        if kind == Some(AdapterKind::Snapshot) && dirs.len() > 1 {
            return Err(TrainerError::Snapshots { path: dir.clone() });
        }
        if last_active && at + 1 == dirs.len() {
            model.set_active(&adapter, adapter.config.lora_dropout)?;
        } else {
            model.push_frozen(&adapter)?;
        }
    }
    model.fold();
    Ok(())
}
