//! Checkpoints as other programs write them: what is stored under another name, twice or not at all.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::path::Path;

use aso_backbones::checkpoint::serialize;
use aso_backbones::llama::{HfLlamaConfig, LlamaConfig, LlamaForCausalLm};
use aso_backbones::t5::{HfT5Config, T5Config, T5ForConditionalGeneration};
use aso_backbones::{
    Backbone, BackboneError, Checkpoint, FloatDtype, NamedTensor, TokenBatch, llama, t5,
};
use aso_lora::ForwardContext;
use burn::tensor::Device;

const VOCABULARY: usize = 50;

fn t5_config() -> HfT5Config {
    HfT5Config {
        vocab_size: VOCABULARY,
        d_model: 16,
        d_ff: 24,
        d_kv: 8,
        num_heads: 2,
        num_layers: 1,
        feed_forward_proj: "gated-gelu".into(),
        tie_word_embeddings: Some(true),
        ..HfT5Config::default()
    }
}

fn t5_tensors() -> Vec<NamedTensor> {
    let config = T5Config::resolve("test".as_ref(), &t5_config()).unwrap();
    let init = t5::RandomInit::new(config.clone(), true, 1);
    T5ForConditionalGeneration::from_source(config, &init, FloatDtype::F32, &Device::flex())
        .unwrap()
        .named_parameters()
}

fn llama_config(tied: Option<bool>) -> HfLlamaConfig {
    HfLlamaConfig {
        vocab_size: VOCABULARY,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        tie_word_embeddings: tied,
        ..HfLlamaConfig::default()
    }
}

fn llama_tensors(tied: bool) -> Vec<NamedTensor> {
    let config = LlamaConfig::resolve("test".as_ref(), &llama_config(Some(tied))).unwrap();
    let init = llama::RandomInit::new(tied, 0.3, 1);
    LlamaForCausalLm::from_source(config, &init, FloatDtype::F32, &Device::flex())
        .unwrap()
        .named_parameters()
}

fn write(dir: &Path, config: &impl serde::Serialize, tensors: Vec<NamedTensor>) {
    let config = serde_json::to_vec(config).unwrap();
    std::fs::write(dir.join("config.json"), config).unwrap();
    let bytes = serialize(tensors, FloatDtype::F32).unwrap();
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
}

fn logits(model: &impl Backbone) -> Vec<f32> {
    let ids = (0..12).map(|at| at * 7 % 47 + 3).collect();
    let batch = TokenBatch::new(2, ids, vec![1; 12], vec![5, 1, 6, 1]).unwrap();
    let logits = model.logits(&batch, &ForwardContext::inference());
    logits.into_data().iter::<f32>().collect()
}

#[test]
fn a_shared_embedding_has_several_names() {
    let dir = tempfile::tempdir().unwrap();
    let load = || T5ForConditionalGeneration::from_pretrained(dir.path(), &Device::flex());
    write(dir.path(), &t5_config(), t5_tensors());
    let expected = logits(&load().unwrap());
    for name in ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"] {
        let mut tensors = t5_tensors();
        let shared = tensors.iter_mut().find(|one| one.name == "shared.weight");
        shared.unwrap().name = name.into();
        write(dir.path(), &t5_config(), tensors);
        assert_eq!(logits(&load().unwrap()), expected, "{name}");
    }
    let mut tensors = t5_tensors();
    tensors.retain(|one| one.name != "shared.weight");
    write(dir.path(), &t5_config(), tensors);
    let message = load().map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("`shared.weight`"), "{message}");
}

/// The hidden layer of a large T5 reaches beyond 65504, the largest number of f16.
#[test]
fn the_feed_forward_output_of_a_model_in_f16_does_not_overflow() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = t5_tensors();
    for tensor in &mut tensors {
        let factor = if tensor.name.contains(".wi_") {
            1000.0
        } else if tensor.name.ends_with(".wo.weight") {
            1e-6
        } else {
            continue;
        };
        tensor.values.iter_mut().for_each(|value| *value *= factor);
    }
    write(dir.path(), &t5_config(), tensors);
    let config = T5Config::from_dir(dir.path()).unwrap();
    let load = |dtype| {
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let device = Device::flex();
        T5ForConditionalGeneration::from_checkpoint(config.clone(), &checkpoint, dtype, &device)
    };
    let wide = logits(&load(FloatDtype::F32).unwrap());
    let narrow = logits(&load(FloatDtype::F16).unwrap());
    let largest = wide
        .iter()
        .fold(0f32, |largest, value| largest.max(value.abs()));
    // 11 bits of mantissa, over some ten products.
    let tolerance = 1e-2 * largest;
    for (wide, narrow) in wide.iter().zip(&narrow) {
        assert!((wide - narrow).abs() < tolerance, "{wide} {narrow}");
    }
}

#[test]
fn a_missing_head_is_the_embedding_only_where_they_are_tied() {
    let dir = tempfile::tempdir().unwrap();
    let load = || LlamaForCausalLm::from_pretrained(dir.path(), &Device::flex());
    write(dir.path(), &llama_config(Some(true)), llama_tensors(true));
    let tied = logits(&load().unwrap());
    for untied in [None, Some(false)] {
        write(dir.path(), &llama_config(untied), llama_tensors(true));
        let error = load().map(|_| ()).unwrap_err();
        assert!(
            matches!(&error, BackboneError::MissingTensor { tensor, .. } if tensor == "lm_head.weight"),
            "{error}"
        );
    }
    // A head that is stored is used, whatever the configuration says.
    write(dir.path(), &llama_config(Some(false)), llama_tensors(false));
    let stored = logits(&load().unwrap());
    assert_ne!(stored, tied);
    write(dir.path(), &llama_config(Some(true)), llama_tensors(false));
    assert_eq!(logits(&load().unwrap()), stored);
}

#[test]
fn an_index_says_which_shard_holds_a_tensor() {
    const NORM: &str = "model.norm.weight";
    let dir = tempfile::tempdir().unwrap();
    let load = || LlamaForCausalLm::from_pretrained(dir.path(), &Device::flex());
    write(dir.path(), &llama_config(Some(true)), llama_tensors(true));
    let expected = logits(&load().unwrap());
    let whole = dir.path().join("model.safetensors");
    std::fs::rename(whole, dir.path().join("a.safetensors")).unwrap();
    // Another shard holds one of the tensors, too, with other values.
    let mut again = llama_tensors(true);
    again.retain(|one| one.name == NORM);
    again[0].values.fill(7.0);
    let bytes = serialize(again, FloatDtype::F32).unwrap();
    std::fs::write(dir.path().join("b.safetensors"), bytes).unwrap();
    let index = |norm: &str| {
        let names = llama_tensors(true).into_iter().map(|one| one.name);
        let mut map: BTreeMap<String, &str> = names.map(|name| (name, "./a.safetensors")).collect();
        map.insert(NORM.to_owned(), norm);
        let path = dir.path().join("model.safetensors.index.json");
        let index = serde_json::json!({ "weight_map": map });
        std::fs::write(path, index.to_string()).unwrap();
    };
    index("./a.safetensors");
    assert_eq!(logits(&load().unwrap()), expected);
    index("b.safetensors");
    assert_ne!(logits(&load().unwrap()), expected);
}

#[test]
fn a_value_of_the_wrong_type_is_named_by_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    let config = r#"{"model_type": "llama", "rope_scaling": {"factor": "8"}}"#;
    std::fs::write(&file, config).unwrap();
    let message = LlamaConfig::from_dir(dir.path()).unwrap_err().to_string();
    assert!(
        message.contains("config.json: `rope_scaling.factor`: invalid type: string \"8\""),
        "{message}"
    );
    std::fs::write(&file, "{} x").unwrap();
    let message = T5Config::from_dir(dir.path()).unwrap_err().to_string();
    assert!(
        message.contains("not a valid JSON file: trailing"),
        "{message}"
    );
}
