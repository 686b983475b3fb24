//! From a configuration to a model, its tokenizer and its data.

use std::path::{Path, PathBuf};

use aso_backbones::t5::{T5Config, T5ForConditionalGeneration};
use aso_backbones::{Backbone, BackboneError, Checkpoint};
use aso_data::{ClBenchmark, JsonlLibrary, SyntheticSuite, TaskLibrary, TextTokenizer};
use aso_lora::{Adapter, AdapterKind};
use burn::tensor::Device;

use crate::TrainerError;
use crate::config::{DataFormat, DataSettings, ModelSettings, ModelSource};
use crate::embedded;

/// Seed of the built-in suite: its data are the same in every run.
pub const EMBEDDED_SUITE_SEED: u64 = 1;

/// A model with everything that belongs to it.
pub struct Loaded<M> {
    /// The model.
    pub model: M,
    /// Its tokenizer, with the model's padding and end tokens.
    pub tokenizer: TextTokenizer,
    /// Fingerprint of the weights.
    pub fingerprint: String,
    /// Path or built-in name, as written into adapter files.
    pub name: String,
}

/// Loads the model that a configuration names, with its tokenizer.
///
/// # Errors
/// Names the file, key or tensor that is missing or wrong.
pub fn load_model(
    settings: &ModelSettings,
    device: &Device,
) -> Result<Loaded<T5ForConditionalGeneration>, TrainerError> {
    let mut loaded = match settings.source() {
        ModelSource::Embedded(_) => {
            let checkpoint = embedded::checkpoint()?;
            let fingerprint = checkpoint.fingerprint()?;
            let config = embedded::config()?;
            let model = T5ForConditionalGeneration::from_checkpoint(config, &checkpoint, device)?;
            let name = settings.path.clone();
            Loaded {
                model,
                tokenizer: embedded::tokenizer()?,
                fingerprint,
                name,
            }
        }
        ModelSource::Folder(dir) => {
            let (model, fingerprint) = load_backbone(dir, device)?;
            let path = dir.join("tokenizer.json");
            let tokenizer = TextTokenizer::from_file(path)?;
            Loaded {
                model,
                tokenizer,
                fingerprint,
                name: settings.path.clone(),
            }
        }
    };
    if let Some(dropout) = settings.dropout {
        loaded.model.set_dropout(dropout);
    }
    let config = loaded.model.config();
    let (pad, eos) = (config.pad as u32, config.eos as u32);
    loaded.tokenizer = loaded.tokenizer.with_pad_id(pad).with_eos_id(eos);
    Ok(loaded)
}

/// Loads a model folder without its tokenizer, and the fingerprint of its weights.
///
/// # Errors
/// As [`load_model`].
pub fn load_backbone(
    dir: &Path,
    device: &Device,
) -> Result<(T5ForConditionalGeneration, String), BackboneError> {
    let config = T5Config::from_dir(dir)?;
    let checkpoint = Checkpoint::open(dir)?;
    let model = T5ForConditionalGeneration::from_checkpoint(config, &checkpoint, device)?;
    Ok((model, checkpoint.fingerprint()?))
}

/// Opens the tasks that a configuration names.
///
/// # Errors
/// [`TrainerError::Data`] if the folder does not hold the layout.
pub fn open_library(settings: &DataSettings) -> Result<Box<dyn TaskLibrary>, TrainerError> {
    // Validation made sure that the path is there for the formats that need one.
    let path = settings.path.clone().unwrap_or_else(|| PathBuf::from("."));
    Ok(match settings.format {
        DataFormat::ClBenchmark => Box::new(ClBenchmark::open(path)?),
        DataFormat::Jsonl => Box::new(JsonlLibrary::open(path)?),
        DataFormat::Embedded => Box::new(SyntheticSuite::demo(EMBEDDED_SUITE_SEED)),
    })
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
        if let Some(sidecar) = &adapter.sidecar {
            if sidecar.base_model_fingerprint != fingerprint {
                return Err(TrainerError::OtherModel {
                    path: dir.clone(),
                    expected: sidecar.base_model_fingerprint.clone(),
                    found: fingerprint.to_owned(),
                });
            }
            if sidecar.kind == AdapterKind::Snapshot && dirs.len() > 1 {
                return Err(TrainerError::Snapshots { path: dir.clone() });
            }
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
