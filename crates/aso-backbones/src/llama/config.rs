//! `config.json` as stored, and the configuration with everything resolved.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use crate::BackboneError;
use crate::checkpoint::{SIZES, read_json, size_range};
use crate::generation::EndTokens;

/// Mirror of Hugging Face's `LlamaConfig`, `MistralConfig` and `Qwen2Config`; keys that change nothing are
/// ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HfLlamaConfig {
    /// `"llama"`, `"mistral"` or `"qwen2"`.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; as many as query heads if absent or null.
    pub num_key_value_heads: Option<usize>,
    /// Width of one head; `hidden_size / num_attention_heads` if absent or null.
    pub head_dim: Option<usize>,
    /// `silu`.
    pub hidden_act: String,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies, in old files.
    pub rope_theta: Option<f64>,
    /// Scaling of the rotary frequencies, in old files.
    pub rope_scaling: Option<RopeScaling>,
    /// Both, in new files.
    pub rope_parameters: Option<RopeScaling>,
    /// Share of a head's width that is rotated; only 1 is supported.
    pub partial_rotary_factor: Option<f64>,
    /// LLaMA: whether q, k, v and o have biases.
    pub attention_bias: bool,
    /// LLaMA: whether the feed-forward layers have biases.
    pub mlp_bias: bool,
    /// Dropout of the attention weights.
    pub attention_dropout: f64,
    /// Mistral, Qwen2: how many positions a query sees, itself included. Null: all; absent: 4096.
    #[serde(deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<Option<usize>>,
    /// Qwen2: whether there is a window at all.
    pub use_sliding_window: bool,
    /// Qwen2: blocks before this one have no window, unless `layer_types` says otherwise.
    pub max_window_layers: Option<usize>,
    /// Qwen2: `full_attention` or `sliding_attention` for each block.
    pub layer_types: Option<Vec<String>>,
    /// Whether the head is the embedding; no if absent. A head that is stored is used all the same.
    pub tie_word_embeddings: Option<bool>,
    /// First token. Null: none; absent: 1, or none for Qwen2.
    #[serde(deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<Option<i64>>,
    /// End tokens. Null: none; absent: 2, or none for Qwen2.
    #[serde(
        deserialize_with = "some_ends",
        skip_serializing_if = "Option::is_none"
    )]
    pub eos_token_id: Option<EndTokens>,
    /// Padding token.
    pub pad_token_id: Option<i64>,
    /// Present in quantised checkpoints, which are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization_config: Option<serde_json::Value>,
}

/// Rotary parameters as stored.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RopeScaling {
    /// `default` or `llama3`.
    pub rope_type: Option<String>,
    /// The same in old files; some files have both.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub old_type: Option<String>,
    /// Base of the frequencies, in new files.
    pub rope_theta: Option<f64>,
    /// Factor of low frequencies (llama3).
    pub factor: Option<f64>,
    /// (llama3)
    pub low_freq_factor: Option<f64>,
    /// (llama3)
    pub high_freq_factor: Option<f64>,
    /// Context length before scaling (llama3).
    pub original_max_position_embeddings: Option<usize>,
    /// Share of a head's width that is rotated; only 1 is supported.
    pub partial_rotary_factor: Option<f64>,
}

/// Tells an absent key (`None`) from a null one (`Some(None)`).
fn some<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// The same for end tokens, of which null is none.
fn some_ends<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<EndTokens>, D::Error> {
    EndTokens::deserialize(deserializer).map(Some)
}

impl Default for HfLlamaConfig {
    fn default() -> Self {
        Self {
            model_type: "llama".into(),
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: "silu".into(),
            rms_norm_eps: 1e-6,
            rope_theta: None,
            rope_scaling: None,
            rope_parameters: None,
            partial_rotary_factor: None,
            attention_bias: false,
            mlp_bias: false,
            attention_dropout: 0.0,
            sliding_window: None,
            use_sliding_window: false,
            max_window_layers: None,
            layer_types: None,
            tie_word_embeddings: None,
            bos_token_id: None,
            eos_token_id: None,
            pad_token_id: None,
            quantization_config: None,
        }
    }
}

/// A LLaMA-family configuration with every default and every historical spelling resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Rows of the embedding, V.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the feed-forward layer.
    pub d_ff: usize,
    /// Blocks.
    pub blocks: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of [`heads`](Self::heads).
    pub kv_heads: usize,
    /// Width of one head; even.
    pub d_head: usize,
    /// Epsilon of the norms.
    pub epsilon: f64,
    /// Angles per position of the rotary embedding, `d_head / 2` of them, scaling included.
    pub frequencies: Vec<f32>,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether o has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward layers have biases.
    pub feed_forward_bias: bool,
    /// Whether the head may be the embedding, where no head is stored.
    pub tied: bool,
    /// Dropout of the attention weights while training.
    pub dropout: f64,
    /// For each block how many positions a query sees, itself included; `None` for all.
    pub windows: Vec<Option<usize>>,
    /// First token of a sequence, if the model has one.
    pub bos: Option<i64>,
    /// Every token that ends generation: those of `config.json`, then those of `generation_config.json`.
    pub ends: Vec<i64>,
    /// Padding token; the first end token, or 0, if the file names none.
    pub pad: i64,
}

impl LlamaConfig {
    /// The values of `model_type` that are supported.
    pub const MODEL_TYPES: [&'static str; 3] = ["llama", "mistral", "qwen2"];

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
    pub fn resolve(path: &Path, hf: &HfLlamaConfig) -> Result<Self, BackboneError> {
        let check = Check { path };
        if !Self::MODEL_TYPES.contains(&hf.model_type.as_str()) {
            let expected = format!("one of {:?}", Self::MODEL_TYPES);
            return Err(check.error("model_type", expected, format!("{:?}", hf.model_type)));
        }
        if !matches!(hf.hidden_act.as_str(), "silu" | "swish") {
            let found = format!("{:?}", hf.hidden_act);
            return Err(check.error("hidden_act", "\"silu\"", found));
        }
        if hf.quantization_config.is_some() {
            let expected = "weights of type F32, F16 or BF16 and no quantisation";
            return Err(check.error("quantization_config", expected, "present"));
        }
        // Files from before grouped queries do not name it.
        let kv_heads = hf.num_key_value_heads.unwrap_or(hf.num_attention_heads);
        let sizes = [
            ("vocab_size", hf.vocab_size),
            ("hidden_size", hf.hidden_size),
            ("intermediate_size", hf.intermediate_size),
            ("num_hidden_layers", hf.num_hidden_layers),
            ("num_attention_heads", hf.num_attention_heads),
            ("num_key_value_heads", kv_heads),
        ];
        for (key, value) in sizes {
            if !SIZES.contains(&value) {
                return Err(check.error(key, size_range(), value));
            }
        }
        if !hf.num_attention_heads.is_multiple_of(kv_heads) {
            let expected = format!(
                "a divisor of num_attention_heads = {}",
                hf.num_attention_heads
            );
            return Err(check.error("num_key_value_heads", expected, kv_heads));
        }
        let d_head = match hf.head_dim {
            Some(width) => width,
            None if hf.hidden_size.is_multiple_of(hf.num_attention_heads) => {
                hf.hidden_size / hf.num_attention_heads
            }
            None => {
                let expected = format!(
                    "a multiple of num_attention_heads = {}",
                    hf.num_attention_heads
                );
                return Err(check.error("hidden_size", expected, hf.hidden_size));
            }
        };
        if !SIZES.contains(&d_head) || !d_head.is_multiple_of(2) {
            let expected = format!("an even number, {}", size_range());
            return Err(check.error("head_dim", expected, d_head));
        }
        if !(hf.rms_norm_eps > 0.0 && hf.rms_norm_eps.is_finite()) {
            return Err(check.error("rms_norm_eps", "a positive number", hf.rms_norm_eps));
        }
        if !(0.0..1.0).contains(&hf.attention_dropout) {
            return Err(check.error(
                "attention_dropout",
                "a number in [0, 1)",
                hf.attention_dropout,
            ));
        }
        // What Transformers takes where a file is silent.
        let silent = match hf.model_type.as_str() {
            "qwen2" => (None, EndTokens::None),
            _ => (Some(1), EndTokens::One(2)),
        };
        let bos = hf.bos_token_id.unwrap_or(silent.0);
        let eos = hf.eos_token_id.as_ref().unwrap_or(&silent.1);
        let ids = [("bos_token_id", bos), ("pad_token_id", hf.pad_token_id)];
        for (key, id) in ids {
            // Old LLaMA files say -1 for "no padding token".
            let Some(id) = id.filter(|id| *id >= 0) else {
                continue;
            };
            if !usize::try_from(id).is_ok_and(|id| id < hf.vocab_size) {
                let expected = format!("a token id below vocab_size = {}", hf.vocab_size);
                return Err(check.error(key, expected, id));
            }
        }
        eos.check(path, hf.vocab_size)?;
        let ends = eos.ids().to_vec();
        let pad = hf.pad_token_id.filter(|id| *id >= 0);
        let pad = pad.or(ends.first().copied()).unwrap_or(0);
        let is_llama = hf.model_type == "llama";
        Ok(Self {
            vocabulary: hf.vocab_size,
            d_model: hf.hidden_size,
            d_ff: hf.intermediate_size,
            blocks: hf.num_hidden_layers,
            heads: hf.num_attention_heads,
            kv_heads,
            d_head,
            epsilon: hf.rms_norm_eps,
            frequencies: check.frequencies(hf, d_head)?,
            // Qwen2 has no flag: its q, k and v always have biases, its o never.
            qkv_bias: hf.model_type == "qwen2" || (is_llama && hf.attention_bias),
            output_bias: is_llama && hf.attention_bias,
            feed_forward_bias: is_llama && hf.mlp_bias,
            tied: hf.tie_word_embeddings.unwrap_or(false),
            dropout: hf.attention_dropout,
            windows: check.windows(hf)?,
            // Qwen2 files name one that the model never sees.
            bos: bos.filter(|id| *id >= 0 && hf.model_type != "qwen2"),
            ends,
            pad,
        })
    }
}

struct Check<'a> {
    path: &'a Path,
}

impl Check<'_> {
    fn error(
        &self,
        key: &'static str,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> BackboneError {
        BackboneError::UnsupportedConfig {
            path: self.path.to_owned(),
            key,
            expected: expected.into(),
            found: found.to_string(),
        }
    }

    /// `theta^(-2 i / d)`, with llama3's scaling where it is asked for.
    fn frequencies(&self, hf: &HfLlamaConfig, d_head: usize) -> Result<Vec<f32>, BackboneError> {
        let (key, rope) = match (&hf.rope_parameters, &hf.rope_scaling) {
            (Some(rope), _) => ("rope_parameters", rope.clone()),
            (None, Some(rope)) => ("rope_scaling", rope.clone()),
            (None, None) => ("rope_scaling", RopeScaling::default()),
        };
        let partial = rope.partial_rotary_factor.or(hf.partial_rotary_factor);
        if let Some(factor) = partial.filter(|factor| *factor != 1.0) {
            return Err(self.error("partial_rotary_factor", "1", factor));
        }
        let theta = rope.rope_theta.or(hf.rope_theta).unwrap_or(10_000.0);
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(self.error("rope_theta", "a positive number", theta));
        }
        // In single precision, as Hugging Face computes them.
        let plain =
            (0..d_head / 2).map(|at| 1.0 / (theta as f32).powf((2 * at) as f32 / d_head as f32));
        let kind = rope.rope_type.as_deref().or(rope.old_type.as_deref());
        match kind.unwrap_or("default") {
            "default" => Ok(plain.collect()),
            "llama3" => {
                let scaling = Llama3Scaling::new(&rope)
                    .ok_or_else(|| self.error(key, Llama3Scaling::EXPECTED, format!("{rope:?}")))?;
                Ok(plain.map(|frequency| scaling.apply(frequency)).collect())
            }
            other => {
                let expected = "a rotary embedding of type \"default\" or \"llama3\"";
                Err(self.error(key, expected, format!("of type {other:?}")))
            }
        }
    }

    fn windows(&self, hf: &HfLlamaConfig) -> Result<Vec<Option<usize>>, BackboneError> {
        let blocks = hf.num_hidden_layers;
        let window = match hf.model_type.as_str() {
            "mistral" => hf.sliding_window.unwrap_or(Some(4096)),
            "qwen2" if hf.use_sliding_window => hf.sliding_window.unwrap_or(Some(4096)),
            _ => None,
        };
        if window == Some(0) {
            return Err(self.error("sliding_window", "at least 1, or null", 0));
        }
        let Some(types) = &hf.layer_types else {
            let first = match hf.model_type.as_str() {
                "qwen2" => hf.max_window_layers.unwrap_or(28),
                _ => 0,
            };
            return Ok((0..blocks)
                .map(|at| window.filter(|_| at >= first))
                .collect());
        };
        if types.len() != blocks {
            let expected = format!("num_hidden_layers = {blocks} entries");
            return Err(self.error("layer_types", expected, types.len()));
        }
        types
            .iter()
            .map(|kind| match kind.as_str() {
                "full_attention" => Ok(None),
                "sliding_attention" => Ok(window),
                other => {
                    let expected = "\"full_attention\" or \"sliding_attention\"";
                    Err(self.error("layer_types", expected, format!("{other:?}")))
                }
            })
            .collect()
    }
}

/// LLaMA 3.1's scaling of the rotary frequencies.
struct Llama3Scaling {
    factor: f32,
    low: f32,
    high: f32,
    original: f32,
}

impl Llama3Scaling {
    const EXPECTED: &'static str = "a llama3 scaling with positive `factor`, `low_freq_factor` < \
         `high_freq_factor` and `original_max_position_embeddings`";

    /// `None` if a parameter is missing or out of range.
    fn new(rope: &RopeScaling) -> Option<Self> {
        let positive = |value: Option<f64>| value.filter(|value| *value > 0.0 && value.is_finite());
        let (low, high) = (
            positive(rope.low_freq_factor)?,
            positive(rope.high_freq_factor)?,
        );
        let original = rope
            .original_max_position_embeddings
            .filter(|length| *length > 0)?;
        (low < high).then_some(Self {
            factor: positive(rope.factor)? as f32,
            low: low as f32,
            high: high as f32,
            original: original as f32,
        })
    }

    /// Keeps short wavelengths, divides the frequency of long ones by the factor, interpolates between.
    fn apply(&self, frequency: f32) -> f32 {
        let wavelength = 2.0 * std::f32::consts::PI / frequency;
        if wavelength < self.original / self.high {
            frequency
        } else if wavelength > self.original / self.low {
            frequency / self.factor
        } else {
            let smooth = (self.original / wavelength - self.low) / (self.high - self.low);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(json: &str) -> Result<LlamaConfig, BackboneError> {
        let hf = serde_json::from_str(json).unwrap();
        LlamaConfig::resolve(Path::new("config.json"), &hf)
    }

    fn message(json: &str) -> String {
        resolve(json).unwrap_err().to_string()
    }

    #[test]
    fn both_spellings_of_the_rotary_parameters_agree() {
        let scaling = r#""factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192"#;
        let old = format!(
            r#"{{"rope_theta": 500000.0, "rope_scaling": {{"type": "llama3", {scaling}}}}}"#
        );
        let new = format!(
            r#"{{"rope_parameters": {{"rope_theta": 500000.0, "rope_type": "llama3", {scaling}}}}}"#
        );
        let (old, new) = (resolve(&old).unwrap(), resolve(&new).unwrap());
        assert_eq!(old, new);
        let both = r#"{"rope_theta": 500000.0, "rope_scaling": {"type": "linear", "rope_type": "default"}}"#;
        assert_eq!(
            resolve(both).unwrap(),
            resolve(r#"{"rope_theta": 500000.0}"#).unwrap()
        );
        let plain = resolve(r#"{"rope_theta": 500000.0}"#).unwrap().frequencies;
        let scaled = old.frequencies;
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
        assert!(
            scaled
                .iter()
                .zip(&plain)
                .any(|(s, p)| s < p && *s > p / 8.0)
        );
    }

    #[test]
    fn windows_of_the_three_families() {
        let windows = |json| resolve(json).unwrap().windows;
        assert_eq!(windows(r#"{"num_hidden_layers": 2}"#), [None, None]);
        let llama = r#"{"num_hidden_layers": 1, "sliding_window": 5}"#;
        assert_eq!(windows(llama), [None]);
        let mistral = r#"{"model_type": "mistral", "num_hidden_layers": 1}"#;
        assert_eq!(windows(mistral), [Some(4096)]);
        let mistral =
            r#"{"model_type": "mistral", "num_hidden_layers": 1, "sliding_window": null}"#;
        assert_eq!(windows(mistral), [None]);
        let qwen2 = r#"{"model_type": "qwen2", "num_hidden_layers": 3, "sliding_window": 7,
            "use_sliding_window": true, "max_window_layers": 1}"#;
        assert_eq!(windows(qwen2), [None, Some(7), Some(7)]);
        let off = qwen2.replace("true", "false");
        assert_eq!(windows(&off), [None; 3]);
        let types = qwen2.replace(
            r#""max_window_layers": 1"#,
            r#""layer_types": ["sliding_attention", "full_attention", "full_attention"]"#,
        );
        assert_eq!(windows(&types), [Some(7), None, None]);
    }

    #[test]
    fn biases_of_the_three_families() {
        let biases = |json| {
            let config = resolve(json).unwrap();
            [
                config.qkv_bias,
                config.output_bias,
                config.feed_forward_bias,
            ]
        };
        assert_eq!(biases("{}"), [false; 3]);
        assert_eq!(biases(r#"{"attention_bias": true}"#), [true, true, false]);
        assert_eq!(biases(r#"{"model_type": "qwen2"}"#), [true, false, false]);
        assert_eq!(
            biases(r#"{"model_type": "mistral", "mlp_bias": true}"#),
            [false; 3]
        );
    }

    #[test]
    fn end_tokens_are_one_or_a_list() {
        let ends = |json| resolve(json).unwrap().ends;
        assert_eq!(ends(r#"{"eos_token_id": null}"#), [0i64; 0]);
        assert_eq!(ends(r#"{"eos_token_id": 2}"#), [2]);
        assert_eq!(ends(r#"{"eos_token_id": [5, 2]}"#), [5, 2]);
        assert_eq!(
            resolve(r#"{"eos_token_id": [5, 2], "pad_token_id": -1}"#)
                .unwrap()
                .pad,
            5
        );
    }

    /// `LlamaConfig()`, `MistralConfig()` and `Qwen2Config()` of Transformers.
    #[test]
    fn special_tokens_where_a_file_is_silent() {
        let tokens = |json| {
            let config = resolve(json).unwrap();
            (config.bos, config.ends)
        };
        assert_eq!(tokens("{}"), (Some(1), vec![2]));
        assert_eq!(tokens(r#"{"model_type": "mistral"}"#), (Some(1), vec![2]));
        assert_eq!(tokens(r#"{"model_type": "qwen2"}"#), (None, vec![]));
        assert_eq!(
            tokens(r#"{"bos_token_id": null, "eos_token_id": [7]}"#),
            (None, vec![7])
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let mixtral = message(r#"{"model_type": "mixtral"}"#);
        assert!(
            mixtral.contains("\"mixtral\"") && mixtral.contains("qwen2"),
            "{mixtral}"
        );
        let yarn = message(r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}"#);
        assert!(
            yarn.contains("rope_scaling") && yarn.contains("yarn"),
            "{yarn}"
        );
        let linear = message(r#"{"rope_scaling": {"type": "linear", "factor": 2.0}}"#);
        assert!(linear.contains("linear"), "{linear}");
        let llama3 = message(r#"{"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}"#);
        assert!(llama3.contains("low_freq_factor"), "{llama3}");
        assert!(message(r#"{"hidden_act": "gelu"}"#).contains("gelu"));
        assert!(message(r#"{"num_key_value_heads": 5}"#).contains("num_key_value_heads"));
        assert!(message(r#"{"head_dim": 5}"#).contains("head_dim"));
        for key in ["num_hidden_layers", "head_dim", "vocab_size"] {
            let absurd = message(&format!(r#"{{"{key}": 1000000000000}}"#));
            assert!(
                absurd.contains(key) && absurd.contains("1000000000000"),
                "{absurd}"
            );
        }
        assert!(message(r#"{"eos_token_id": 64000}"#).contains("eos_token_id"));
        assert!(message(r#"{"quantization_config": {"bits": 4}}"#).contains("quantization_config"));
        assert!(message(r#"{"partial_rotary_factor": 0.5}"#).contains("partial_rotary_factor"));
    }
}
