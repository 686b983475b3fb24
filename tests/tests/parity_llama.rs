//! LLaMA, Mistral and Qwen2 against Transformers, PEFT and PyTorch (fixtures: `xtask/fixtures`, versions in
//! `tests/fixtures/llama/provenance.json`).

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod witness;

use aso_attribution::{Attributor, MAX_JOINED_POSITIONS, Preset, TapChoice};
use aso_backbones::llama::{HfLlamaConfig, LlamaConfig};
use aso_backbones::{
    AutoModel, Backbone, BackboneError, FloatDtype, GenerationConfig, RowControl, TapPoint,
    TokenBatch,
};
use aso_lora::{AdapterHost, ForwardContext};
use aso_losses::SoftWeight;
use aso_tests::{Tensors, assert_close, fixture, read_tensors, shared};
use aso_trainer::optimizer::SubspaceGradients;
use burn::tensor::{DType, Device};
use witness::{
    TOLERANCE, adapter, batch, check, check_attribution, check_cached_generation, check_gradients,
    check_likelihoods, check_predicted_target, check_steps, check_tasks, completeness, expect,
    load, mean_cross_entropy, padded_prompts, stack, values,
};

/// MHA tied, GQA with llama3 scaling untied, a window shorter than the sequence, biases, a head width of its
/// own. Two half-precision files are copies of the first two.
const VARIANTS: [&str; 5] = [
    "llama/llama_mha_tied",
    "llama/llama_gqa_llama3",
    "llama/mistral_window",
    "llama/qwen2_bias",
    "llama/llama_head_dim",
];

fn expected(variant: &str, file: &str) -> Tensors {
    read_tensors(&fixture(&format!("{variant}/{file}")))
}

/// Logits with those at padding set to 0, as in the fixtures.
fn token_logits(model: &AutoModel, batch: &TokenBatch) -> Vec<f32> {
    let mut logits = values(model.logits(batch, &ForwardContext::inference()));
    let rows = logits.chunks_mut(model.vocabulary());
    for (row, kept) in rows.zip(batch.attention_mask()) {
        if *kept == 0 {
            row.fill(0.0);
        }
    }
    logits
}

/// Tokens as the fixtures store them: filled up with the padding id.
fn check_generation(
    model: &AutoModel,
    prompts: &TokenBatch,
    config: &GenerationConfig,
    name: &str,
    tensors: &Tensors,
) {
    let context = ForwardContext::inference();
    let found = model.generate(prompts, config, RowControl::default(), &context);
    assert_eq!(found, model.generate_uncached(prompts, config), "{name}");
    let pad = model.special_tokens().pad;
    let padded = found.into_iter().flat_map(|mut row| {
        row.resize(config.max_new_tokens, pad);
        row
    });
    let padded: Vec<f32> = padded.map(|id| id as f32).collect();
    assert_eq!(padded, expect(tensors, name), "{name}");
}

fn check_model(model: &AutoModel, variant: &str, prefix: &str, tensors: &Tensors) {
    let full = batch(variant, "batch.json");
    check(
        &format!("{prefix}logits"),
        &token_logits(model, &full),
        tensors,
    );
    let loss = mean_cross_entropy(model, &full, &ForwardContext::inference());
    check(&format!("{prefix}loss"), &values(loss), tensors);
    let prompts = batch(variant, "prompts.json");
    let greedy = GenerationConfig::greedy(10);
    let name = format!("{prefix}generated");
    check_generation(model, &prompts, &greedy, &name, tensors);
}

#[test]
fn variants_match_transformers_and_peft() {
    for variant in VARIANTS {
        let expected = expected(variant, "expected.safetensors");
        check_model(&load(variant), variant, "base.", &expected);
        let mut model = stack(variant, &format!("{variant}/adapters"), "active");
        for _ in 0..2 {
            check_model(&model, variant, "", &expected);
            check_gradients(&model, &batch(variant, "batch.json"), &expected);
            model.fold();
        }
    }
}

#[test]
fn likelihoods_equal_those_of_single_answers() {
    for variant in VARIANTS {
        check_likelihoods(&stack(variant, &format!("{variant}/adapters"), "active"));
    }
}

#[test]
fn every_linear_layer_can_be_adapted() {
    let variant = "llama/llama_mha_tied";
    let expected = expected(variant, "expected_all.safetensors");
    let mut model = stack(variant, &format!("{variant}/adapters_all"), "active");
    for _ in 0..2 {
        check_model(&model, variant, "", &expected);
        check_gradients(&model, &batch(variant, "batch.json"), &expected);
        model.fold();
    }
}

#[test]
fn half_precision_and_sharded_files() {
    for (variant, adapters) in [
        ("llama/llama_f16", "llama/llama_mha_tied"),
        ("llama/llama_bf16_sharded", "llama/llama_gqa_llama3"),
    ] {
        let expected = expected(variant, "expected.safetensors");
        check_model(&load(variant), variant, "base.", &expected);
        let model = stack(variant, &format!("{adapters}/adapters"), "active");
        check_model(&model, variant, "", &expected);
    }
}

/// Products in half precision: the weights of the file as they are, activations rounded to 8 bits of mantissa
/// in bf16 and 11 in f16. The tolerances are a few units of that rounding.
#[test]
fn weights_can_stay_in_half_precision() {
    for (variant, adapters, dtype, tolerance) in [
        (
            "llama/llama_f16",
            "llama/llama_mha_tied",
            FloatDtype::F16,
            4e-3,
        ),
        (
            "llama/llama_bf16_sharded",
            "llama/llama_gqa_llama3",
            FloatDtype::Bf16,
            3e-2,
        ),
    ] {
        let device = Device::flex();
        let mut model = AutoModel::from_pretrained(&fixture(variant), dtype, &device).unwrap();
        for task in ["task0", "task1"] {
            let past = adapter(&format!("{adapters}/adapters/{task}"));
            model.push_frozen(&past).unwrap();
        }
        let active = adapter(&format!("{adapters}/adapters/active"));
        model.set_active(&active, 0.0).unwrap();
        let full = batch(variant, "batch.json");
        let tensors = expected(variant, "expected.safetensors");
        let unfolded = token_logits(&model, &full);
        assert_close("logits", &unfolded, expect(&tensors, "logits"), tolerance);
        // Folding into so few bits would lose the subspaces: it does nothing.
        model.fold();
        assert_eq!(token_logits(&model, &full), unfolded);
        // Subspaces and their gradients are f32 all the same.
        let loss = mean_cross_entropy(&model, &full, &ForwardContext::training(None));
        let gradients = SubspaceGradients::collect(&model, &mut loss.backward());
        let tensors = expected(adapters, "expected.safetensors");
        assert_ne!(gradients.iter().count(), 0);
        for (name, gradient) in gradients.iter() {
            assert_eq!(gradient.dtype(), DType::F32);
            let expected = expect(&tensors, &format!("grad.{name}.weight"));
            assert_close(name, &values(gradient.clone()), expected, 3.0 * tolerance);
        }
    }
}

#[test]
fn the_repetition_penalty_is_that_of_transformers() {
    for variant in &VARIANTS[..3] {
        let expected = expected(variant, "expected.safetensors");
        let model = stack(variant, &format!("{variant}/adapters"), "active");
        let config = GenerationConfig {
            repetition_penalty: 1.3,
            ..GenerationConfig::greedy(10)
        };
        let prompts = batch(variant, "prompts.json");
        check_generation(&model, &prompts, &config, "repetition.generated", &expected);
    }
}

#[test]
fn both_spellings_of_a_config_mean_the_same() {
    let dir = fixture("llama/llama_gqa_llama3");
    let resolve = |file: &str| {
        let path = dir.join(file);
        let hf: HfLlamaConfig = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        LlamaConfig::resolve(&path, &hf).unwrap()
    };
    assert_eq!(resolve("config.json"), resolve("config_old.json"));
    assert_eq!(LlamaConfig::from_dir(&dir).unwrap().ends, [2, 4]);
}

#[test]
fn three_optimizer_steps_with_both_penalties() {
    check_steps("llama/llama_gqa_llama3", "active", "steps");
}

#[test]
fn cached_generation_equals_uncached() {
    for variant in VARIANTS {
        check_cached_generation(&stack(variant, &format!("{variant}/adapters"), "active"));
    }
}

/// The shared prefix against an independent implementation that runs every later block over the whole
/// sequence, in f64.
#[test]
fn attribution_matches_an_independent_implementation() {
    for variant in VARIANTS.into_iter().chain(["llama/llama_eps"]) {
        let tensors = expected(variant, "attribution.safetensors");
        let adapters = match variant {
            "llama/llama_eps" => "llama/llama_mha_tied",
            variant => variant,
        };
        let full = batch(variant, "batch.json");
        let mut model = stack(variant, &format!("{adapters}/adapters"), "active");
        // Stack and fold, whole path at once and one point at a time.
        for max_joined_positions in [MAX_JOINED_POSITIONS, 1] {
            let mut aso = Attributor::preset(Preset::Aso, 64);
            aso.gradients.max_joined_positions = max_joined_positions;
            let both = Attributor {
                taps: TapChoice::Both,
                ..aso
            };
            let clamped = SoftWeight::Clamped;
            check_attribution(&model, &full, &aso, clamped, "aso", &tensors);
            // "Both stacks" of a model that has one.
            check_attribution(&model, &full, &both, clamped, "aso", &tensors);
            let missing = batch(variant, "batch_missing_row.json");
            check_attribution(&model, &missing, &aso, clamped, "aso_missing_row", &tensors);
            check_tasks(&model, &full, &aso, &tensors);
            model.fold();
        }
    }
}

#[test]
fn the_predicted_token_is_attributed_if_told() {
    let variant = "llama/llama_mha_tied";
    let model = stack(variant, &format!("{variant}/adapters"), "active");
    let batch = batch(variant, "batch.json");
    check_predicted_target(&model, &batch, TapChoice::One(TapPoint::Answer));
}

#[test]
fn integrated_gradients_are_complete() {
    let (sums, gaps) = completeness("llama/llama_eps", "llama/llama_mha_tied");
    for (sum, gap) in sums.iter().zip(&gaps) {
        // The midpoint rule at m = 320 leaves 2e-4 on this model in f64.
        assert!((sum - gap).abs() <= 1e-3 * gap.abs(), "{sums:?} {gaps:?}");
    }
}

/// Preset `reference` reads an encoder; a causal model has none, and says so.
#[test]
fn taps_of_an_encoder_are_refused() {
    let variant = "llama/llama_mha_tied";
    let model = stack(variant, &format!("{variant}/adapters"), "active");
    let full = batch(variant, "batch.json");
    let encoder = Attributor {
        taps: TapChoice::One(TapPoint::Encoder),
        ..Attributor::preset(Preset::Aso, 64)
    };
    for attributor in [Attributor::preset(Preset::Reference, 64), encoder] {
        let error = attributor.measure(&model, &full).unwrap_err();
        assert!(matches!(error, BackboneError::Tap { .. }));
        assert!(error.to_string().contains("encoder"), "{error}");
    }
}

#[test]
fn the_benchmark_checkpoint_gives_transformers_figures() {
    let Some(dir) = shared("models/llama-mini-clb") else {
        return;
    };
    let model = AutoModel::from_pretrained(&dir, FloatDtype::F32, &Device::flex()).unwrap();
    let path = dir.join("batch.json");
    let batch = TokenBatch::from_json(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
    let expected: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
    let numbers = |key: &str| -> Vec<f32> {
        let values = expected[key].as_array().unwrap().iter();
        values.map(|v| v.as_f64().unwrap() as f32).collect()
    };
    let context = ForwardContext::inference();
    let logits = model.logits(&batch, &context);
    let [rows, length, vocabulary] = logits.dims();
    let shape = [rows, length, vocabulary].map(|d| d as f32).to_vec();
    assert_eq!(shape, numbers("logits_shape"));
    let last = values(logits.narrow(1, length - 1, 1));
    let first = numbers("logits_row0_last_pos_first16");
    assert_close("first logits", &last[..16], &first, TOLERANCE);
    let logsumexp = |logits: &[f32]| {
        let top = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = logits.iter().map(|v| f64::from(v - top).exp()).sum();
        (f64::from(top) + sum.ln()) as f32
    };
    let found: Vec<f32> = last.chunks(vocabulary).map(logsumexp).collect();
    assert_close(
        "logsumexp",
        &found,
        &numbers("logsumexp_last_pos"),
        TOLERANCE,
    );
    let loss = values(mean_cross_entropy(&model, &batch, &context));
    let expected_loss = expected["loss"].as_f64().unwrap() as f32;
    assert_close("loss", &loss, &[expected_loss], TOLERANCE);

    let prompts = prompts_of(&batch);
    let config = GenerationConfig::greedy(12);
    let greedy = model.generate(&prompts, &config, RowControl::default(), &context);
    let expected: Vec<Vec<u32>> =
        serde_json::from_value(expected["greedy_new_tokens"].clone()).unwrap();
    assert_eq!(greedy, expected);
    assert_eq!(greedy, model.generate_uncached(&prompts, &config));
}

/// The prompts alone: every row up to its first label.
fn prompts_of(batch: &TokenBatch) -> TokenBatch {
    let rows: Vec<Vec<i64>> = (0..batch.rows())
        .map(|row| {
            let (end, _) = batch.first_label(row).unwrap();
            let columns = row * batch.source_len()..row * batch.source_len() + end;
            let ids = batch.input_ids()[columns.clone()].iter();
            let kept = ids.zip(&batch.attention_mask()[columns]);
            let kept = kept.filter(|(_, kept)| **kept != 0);
            kept.map(|(id, _)| *id).collect()
        })
        .collect();
    padded_prompts(&rows, true)
}
