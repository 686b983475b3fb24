//! The demo backbones that are part of the program: a very small T5 and a very small LLaMA, each with its own
//! tokenizer.
//!
//! `assets/README.md` says how they were made ([`pretrain`](crate::pretrain)) and how to make them again.

use std::path::PathBuf;

use aso_backbones::{AutoConfig, AutoModel, BackboneError, Checkpoint, FloatDtype};
use aso_data::{DataError, TextTokenizer};
use burn::tensor::Device;

/// A model that is part of the program, in the form of a Hugging Face folder.
#[derive(Debug)]
pub struct EmbeddedModel {
    /// Its name behind `embedded:`.
    pub name: &'static str,
    config: &'static [u8],
    weights: &'static [u8],
    tokenizer: &'static [u8],
}

/// Every built-in model.
pub static MODELS: [EmbeddedModel; 2] = [
    EmbeddedModel {
        name: "demo",
        config: include_bytes!("../assets/demo/config.json"),
        weights: include_bytes!("../assets/demo/model.safetensors"),
        tokenizer: include_bytes!("../assets/demo/tokenizer.json"),
    },
    EmbeddedModel {
        name: "demo-llama",
        config: include_bytes!("../assets/demo-llama/config.json"),
        weights: include_bytes!("../assets/demo-llama/model.safetensors"),
        tokenizer: include_bytes!("../assets/demo-llama/tokenizer.json"),
    },
];

impl EmbeddedModel {
    /// The model of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        MODELS.iter().find(|model| model.name == name)
    }

    fn path(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("embedded:{}/{file}", self.name))
    }

    /// The model, on a device.
    ///
    /// # Errors
    /// None unless the program was built from damaged assets.
    pub fn model(&self, dtype: FloatDtype, device: &Device) -> Result<AutoModel, BackboneError> {
        AutoModel::from_checkpoint(self.config()?, &self.checkpoint()?, dtype, device)
    }

    /// The model's configuration.
    ///
    /// # Errors
    /// As [`model`](Self::model).
    pub fn config(&self) -> Result<AutoConfig, BackboneError> {
        AutoConfig::from_json(&self.path("config.json"), self.config)
    }

    /// The model's weights.
    ///
    /// # Errors
    /// As [`model`](Self::model).
    pub fn checkpoint(&self) -> Result<Checkpoint, BackboneError> {
        let path = self.path("model.safetensors");
        Checkpoint::from_static(&path.to_string_lossy(), self.weights)
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// As [`model`](Self::model).
    pub fn tokenizer(&self) -> Result<TextTokenizer, DataError> {
        TextTokenizer::from_bytes(self.tokenizer)
    }
}

#[cfg(test)]
mod tests {
    use aso_backbones::Backbone;

    use super::*;

    #[test]
    fn the_assets_fit_together() {
        for embedded in &MODELS {
            let model = embedded.model(FloatDtype::F32, &Device::flex()).unwrap();
            let tokenizer = embedded.tokenizer().unwrap();
            assert_eq!(model.vocabulary(), tokenizer.vocab_size());
            let special = model.special_tokens();
            assert_eq!(tokenizer.pad_id(), Some(special.pad));
            assert_eq!(tokenizer.eos_id(), special.ends.first().copied());
            if let Some(bos) = special.bos {
                assert_eq!(
                    (tokenizer.bos_id(), tokenizer.adds_bos()),
                    (Some(bos), true)
                );
            }
            assert!(embedded.weights.len() + embedded.tokenizer.len() <= 4 << 20);
        }
    }
}
