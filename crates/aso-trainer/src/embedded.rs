//! The demo backbone that is part of the program: a very small T5 with its own tokenizer.
//!
//! `assets/demo/README.md` says how it was made ([`pretrain`](crate::pretrain)) and how to make it again.

use std::path::Path;

use aso_backbones::t5::{HfT5Config, T5Config, T5ForConditionalGeneration};
use aso_backbones::{BackboneError, Checkpoint, FloatDtype};
use aso_data::{DataError, TextTokenizer};
use burn::tensor::Device;

/// `config.json`.
static CONFIG: &[u8] = include_bytes!("../assets/demo/config.json");
/// `model.safetensors`.
static WEIGHTS: &[u8] = include_bytes!("../assets/demo/model.safetensors");
/// `tokenizer.json`.
static TOKENIZER: &[u8] = include_bytes!("../assets/demo/tokenizer.json");

/// The model, on a device.
///
/// # Errors
/// None unless the program was built from damaged assets.
pub fn model(device: &Device) -> Result<T5ForConditionalGeneration, BackboneError> {
    T5ForConditionalGeneration::from_checkpoint(config()?, &checkpoint()?, FloatDtype::F32, device)
}

/// The model's configuration.
///
/// # Errors
/// As [`model`].
pub fn config() -> Result<T5Config, BackboneError> {
    let path = Path::new("embedded:demo/config.json");
    let hf: HfT5Config = serde_json::from_slice(CONFIG).map_err(|source| BackboneError::Json {
        path: path.to_owned(),
        source,
    })?;
    T5Config::resolve(path, &hf)
}

/// The model's weights.
///
/// # Errors
/// As [`model`].
pub fn checkpoint() -> Result<Checkpoint, BackboneError> {
    Checkpoint::from_static("embedded:demo/model.safetensors", WEIGHTS)
}

/// The model's tokenizer.
///
/// # Errors
/// As [`model`].
pub fn tokenizer() -> Result<TextTokenizer, DataError> {
    TextTokenizer::from_bytes(TOKENIZER)
}

#[cfg(test)]
mod tests {
    use aso_backbones::Backbone;

    use super::*;

    #[test]
    fn the_assets_fit_together() {
        let model = model(&Device::flex()).unwrap();
        let tokenizer = tokenizer().unwrap();
        assert_eq!(model.vocabulary(), tokenizer.vocab_size());
        let config = model.config();
        let ids = [tokenizer.pad_id(), tokenizer.eos_id()].map(|id| id.map(i64::from));
        assert_eq!(ids, [Some(config.pad), Some(config.eos)]);
        assert!(WEIGHTS.len() + TOKENIZER.len() <= 4 << 20);
    }
}
