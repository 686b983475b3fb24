//! From a configuration to a model, its tokenizer and its data.

use std::path::{Path, PathBuf};

use aso_backbones::{AutoConfig, AutoModel, Backbone, BackboneError, Checkpoint, FloatDtype};
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
) -> Result<Loaded<AutoModel>, TrainerError> {
    let (mut model, fingerprint, tokenizer) = match settings.source() {
        ModelSource::Embedded(_) => {
            let checkpoint = embedded::checkpoint()?;
            let fingerprint = checkpoint.fingerprint()?;
            let config = AutoConfig::T5(embedded::config()?);
            let model = AutoModel::from_checkpoint(config, &checkpoint, settings.dtype, device)?;
            (model, fingerprint, embedded::tokenizer()?)
        }
        ModelSource::Folder(dir) => {
            let (model, fingerprint) = load_backbone(dir, settings.dtype, device)?;
            let tokenizer = TextTokenizer::from_file(dir.join("tokenizer.json"))?;
            (model, fingerprint, tokenizer)
        }
    };
    if let Some(dropout) = settings.dropout {
        model.set_dropout(dropout);
    }
    let special = model.special_tokens();
    let tokenizer = tokenizer.with_pad_id(special.pad);
    let tokenizer = match special.eos {
        Some(eos) => tokenizer.with_eos_id(eos),
        None => tokenizer,
    };
    Ok(Loaded {
        model,
        tokenizer,
        fingerprint,
        name: settings.path.clone(),
    })
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
    let hashed = Checkpoint::open(dir)?;
    std::thread::scope(|scope| {
        let fingerprint = scope.spawn(move || hashed.fingerprint());
        let model = AutoModel::from_checkpoint(config, &checkpoint, dtype, device)?;
        let fingerprint = fingerprint
            .join()
            .unwrap_or_else(|_| checkpoint.fingerprint())?;
        Ok((model, fingerprint))
    })
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
