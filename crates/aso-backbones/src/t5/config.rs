//! `config.json` as stored, and the configuration with everything resolved.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::BackboneError;
use crate::checkpoint::{SIZES, read_json, size_range};
use crate::generation::EndTokens;

/// Mirror of Hugging Face's `T5Config` / `MT5Config`; unknown keys are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HfT5Config {
    /// `"t5"` or `"mt5"`.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of one head.
    pub d_kv: usize,
    /// Width of the feed-forward layer.
    pub d_ff: usize,
    /// Encoder blocks.
    pub num_layers: usize,
    /// Decoder blocks; as many as encoder blocks if absent.
    pub num_decoder_layers: Option<usize>,
    /// Attention heads.
    pub num_heads: usize,
    /// Buckets of the relative position bias.
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all positions share the last bucket.
    pub relative_attention_max_distance: usize,
    /// Dropout everywhere.
    pub dropout_rate: f64,
    /// Epsilon of the norms.
    pub layer_norm_epsilon: f64,
    /// `relu`, `gated-gelu`, ..
    pub feed_forward_proj: String,
    /// In old files: whether the head is tied, and therefore scaled.
    pub tie_word_embeddings: Option<bool>,
    /// In new files: whether logits are scaled by `d_model^-0.5`.
    pub scale_decoder_outputs: Option<bool>,
    /// Padding token.
    pub pad_token_id: i64,
    /// End token.
    pub eos_token_id: i64,
    /// First decoder input.
    pub decoder_start_token_id: Option<i64>,
}

impl Default for HfT5Config {
    fn default() -> Self {
        Self {
            model_type: "t5".into(),
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            dropout_rate: 0.1,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".into(),
            tie_word_embeddings: None,
            scale_decoder_outputs: None,
            pad_token_id: 0,
            eos_token_id: 1,
            decoder_start_token_id: None,
        }
    }
}

/// The feed-forward layer of a dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedForward {
    /// `wo(relu(wi(x)))`: v1.0.
    Relu,
    /// `wo(gelu_new(wi_0(x)) * wi_1(x))`: v1.1, Flan, mT5.
    GatedGelu,
    /// `wo(silu(wi_0(x)) * wi_1(x))`.
    GatedSilu,
    /// `wo(relu(wi_0(x)) * wi_1(x))`.
    GatedRelu,
    /// `wo(gelu_new(wi(x)))`.
    Gelu,
}

impl FeedForward {
    /// Whether the layer has two input projections.
    pub fn is_gated(self) -> bool {
        matches!(self, Self::GatedGelu | Self::GatedSilu | Self::GatedRelu)
    }
}

/// A T5 configuration with every default and every historical spelling resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct T5Config {
    /// Rows of the embedding, V.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of one head.
    pub d_kv: usize,
    /// Width of the feed-forward layer.
    pub d_ff: usize,
    /// Encoder blocks.
    pub encoder_blocks: usize,
    /// Decoder blocks.
    pub decoder_blocks: usize,
    /// Attention heads.
    pub heads: usize,
    /// Buckets of the relative position bias.
    pub buckets: usize,
    /// Distance of the last bucket.
    pub max_distance: usize,
    /// Dropout probability while training.
    pub dropout: f64,
    /// Epsilon of the norms.
    pub epsilon: f64,
    /// Feed-forward dialect.
    pub feed_forward: FeedForward,
    /// Factor of the decoder's output before the head: `d_model^-0.5` for v1.0, else 1.
    pub head_scale: f64,
    /// Padding token.
    pub pad: i64,
    /// End token of targets.
    pub eos: i64,
    /// Every token that ends generation: [`eos`](Self::eos) and those of `generation_config.json`.
    pub ends: Vec<i64>,
    /// First decoder input.
    pub decoder_start: i64,
}

impl T5Config {
    /// Reads `config.json` of a model folder, and the end tokens of its `generation_config.json` if there
    /// is one.
    ///
    /// # Errors
    /// Names the file and the key that is missing, of the wrong type or not supported.
    pub fn from_dir(dir: &Path) -> Result<Self, BackboneError> {
        let path = dir.join("config.json");
        let mut config = Self::resolve(&path, &read_json(&path)?)?;
        EndTokens::of_generation_config(dir, config.vocabulary)?.add_to(&mut config.ends);
        Ok(config)
    }

    /// Resolves a stored configuration. `path` is for messages.
    ///
    /// # Errors
    /// [`BackboneError::UnsupportedConfig`].
    pub fn resolve(path: &Path, hf: &HfT5Config) -> Result<Self, BackboneError> {
        let unsupported = |key, expected: &str, found: String| {
            let (path, expected) = (path.to_owned(), expected.to_owned());
            Err(BackboneError::UnsupportedConfig {
                path,
                key,
                expected,
                found,
            })
        };
        if !matches!(hf.model_type.as_str(), "t5" | "mt5") {
            return unsupported(
                "model_type",
                "\"t5\" or \"mt5\"",
                format!("{:?}", hf.model_type),
            );
        }
        let feed_forward = match hf.feed_forward_proj.as_str() {
            "relu" => FeedForward::Relu,
            // The tanh approximation. Hugging Face: `gated-gelu` has always meant it, while plain `gelu` is the exact form.
            "gelu_new" => FeedForward::Gelu,
            "gated-gelu" | "gated-gelu_new" => FeedForward::GatedGelu,
            "gated-silu" => FeedForward::GatedSilu,
            "gated-relu" => FeedForward::GatedRelu,
            other => {
                let expected = "relu, gelu_new, gated-gelu, gated-silu or gated-relu";
                return unsupported("feed_forward_proj", expected, format!("{other:?}"));
            }
        };
        let sizes = [
            ("vocab_size", hf.vocab_size),
            ("d_model", hf.d_model),
            ("d_kv", hf.d_kv),
            ("d_ff", hf.d_ff),
            ("num_layers", hf.num_layers),
            ("num_heads", hf.num_heads),
            (
                "num_decoder_layers",
                hf.num_decoder_layers.unwrap_or(hf.num_layers),
            ),
        ];
        for (key, value) in sizes {
            if !SIZES.contains(&value) {
                return unsupported(key, &size_range(), value.to_string());
            }
        }
        if hf.relative_attention_num_buckets < 4 {
            let found = hf.relative_attention_num_buckets.to_string();
            return unsupported("relative_attention_num_buckets", "at least 4", found);
        }
        if hf.relative_attention_max_distance <= hf.relative_attention_num_buckets / 2 {
            let found = hf.relative_attention_max_distance.to_string();
            let expected = "more than half the number of buckets";
            return unsupported("relative_attention_max_distance", expected, found);
        }
        if !(0.0..1.0).contains(&hf.dropout_rate) {
            return unsupported(
                "dropout_rate",
                "a number in [0, 1)",
                hf.dropout_rate.to_string(),
            );
        }
        if !(hf.layer_norm_epsilon > 0.0 && hf.layer_norm_epsilon.is_finite()) {
            return unsupported(
                "layer_norm_epsilon",
                "a positive number",
                hf.layer_norm_epsilon.to_string(),
            );
        }
        let decoder_start = hf.decoder_start_token_id.unwrap_or(hf.pad_token_id);
        let ids = [
            ("pad_token_id", hf.pad_token_id),
            ("eos_token_id", hf.eos_token_id),
            ("decoder_start_token_id", decoder_start),
        ];
        for (key, id) in ids {
            if !usize::try_from(id).is_ok_and(|id| id < hf.vocab_size) {
                let expected = format!("a token id below vocab_size = {}", hf.vocab_size);
                return unsupported(key, &expected, id.to_string());
            }
        }
        // Old T5 files scale exactly when they tie; new ones say so and set `tie_word_embeddings` to true
        // whatever the head is; mT5 never scales. Which head is used is decided by what the file
        // stores, not by a flag.
        let scaled = hf
            .scale_decoder_outputs
            .unwrap_or_else(|| hf.model_type == "t5" && hf.tie_word_embeddings.unwrap_or(true));
        Ok(Self {
            vocabulary: hf.vocab_size,
            d_model: hf.d_model,
            d_kv: hf.d_kv,
            d_ff: hf.d_ff,
            encoder_blocks: hf.num_layers,
            decoder_blocks: hf.num_decoder_layers.unwrap_or(hf.num_layers),
            heads: hf.num_heads,
            buckets: hf.relative_attention_num_buckets,
            max_distance: hf.relative_attention_max_distance,
            dropout: hf.dropout_rate,
            epsilon: hf.layer_norm_epsilon,
            feed_forward,
            head_scale: if scaled {
                (hf.d_model as f64).powf(-0.5)
            } else {
                1.0
            },
            pad: hf.pad_token_id,
            eos: hf.eos_token_id,
            ends: vec![hf.eos_token_id],
            decoder_start,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(json: &str) -> Result<T5Config, BackboneError> {
        T5Config::resolve(
            Path::new("config.json"),
            &serde_json::from_str(json).unwrap(),
        )
    }

    #[test]
    fn both_spellings_of_the_head_rule() {
        let scale = 512f64.powf(-0.5);
        assert_eq!(resolve("{}").unwrap().head_scale, scale);
        assert_eq!(
            resolve(r#"{"tie_word_embeddings": true}"#)
                .unwrap()
                .head_scale,
            scale
        );
        assert_eq!(
            resolve(r#"{"tie_word_embeddings": false}"#)
                .unwrap()
                .head_scale,
            1.0
        );
        let rewritten = r#"{"tie_word_embeddings": true, "scale_decoder_outputs": false}"#;
        assert_eq!(resolve(rewritten).unwrap().head_scale, 1.0);
        // What Transformers 5 writes for an mT5 model.
        let mt5 = r#"{"model_type": "mt5", "tie_word_embeddings": true}"#;
        assert_eq!(resolve(mt5).unwrap().head_scale, 1.0);
    }

    #[test]
    fn unsupported_values_are_named() {
        let message = |json| resolve(json).unwrap_err().to_string();
        assert!(message(r#"{"layer_norm_epsilon": 0}"#).contains("`layer_norm_epsilon` is 0"));
        assert!(message(r#"{"num_layers": 1000000000000}"#).contains("`num_layers`"));
        assert_eq!(
            message(r#"{"model_type": "bert"}"#),
            "config.json: `model_type` is \"bert\"; expected \"t5\" or \"mt5\""
        );
        assert!(message(r#"{"feed_forward_proj": "gated-mish"}"#).contains("gated-mish"));
        assert!(message(r#"{"eos_token_id": 40000}"#).contains("eos_token_id"));
        assert!(message(r#"{"num_layers": 0}"#).contains("num_layers"));
    }
}
