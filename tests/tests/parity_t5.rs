//! Numbers against Transformers, PEFT and PyTorch (fixtures: `xtask/fixtures`, versions in
//! `tests/fixtures/t5/provenance.json`).

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod witness;

use std::collections::BTreeMap;
use std::path::Path;

use aso_attribution::{Attributor, MAX_JOINED_POSITIONS, Preset, Similarity, TapChoice};
use aso_backbones::{
    AutoModel, Backbone, FloatDtype, GenerationConfig, RowControl, TapPoint, TokenBatch,
};
use aso_lora::{AdapterHost, AdapterScope, ForwardContext};
use aso_losses::SoftWeight;
use aso_tests::{Tensors, assert_close, fixture, read_tensors, shared};
use burn::tensor::Device;
use witness::{
    ATTRIBUTION_TOLERANCE, TOLERANCE, adapter, batch, check, check_attribution,
    check_cached_generation, check_gradients, check_likelihoods, check_predicted_target,
    check_steps, check_tasks, completeness, expect, load, mean_cross_entropy, stack, values,
};

const DIALECTS: [&str; 3] = ["t5/v1_0", "t5/v1_1", "t5/mt5"];

/// Greedy tokens in the fixture's form: start token, then new tokens, padded with 0.
fn padded(tokens: &[Vec<u32>], width: usize) -> Vec<f32> {
    let row = |row: &Vec<u32>| {
        let mut padded = vec![0.0; width];
        for (slot, id) in padded[1..].iter_mut().zip(row) {
            *slot = *id as f32;
        }
        padded
    };
    tokens.iter().flat_map(row).collect()
}

fn check_generation(model: &AutoModel, batch: &TokenBatch, name: &str, tensors: &Tensors) {
    let config = GenerationConfig::greedy(8);
    let cached = model.generate(
        batch,
        &config,
        RowControl::default(),
        &ForwardContext::inference(),
    );
    assert_eq!(
        cached,
        model.generate_uncached(batch, &config),
        "{name}: cached and uncached"
    );
    assert_eq!(
        padded(&cached, 9),
        expect(tensors, name),
        "{name}: greedy tokens"
    );
}

fn check_model(model: &AutoModel, batch: &TokenBatch, tensors: &Tensors) {
    let context = ForwardContext::inference();
    check("logits", &values(model.logits(batch, &context)), tensors);
    check(
        "loss",
        &values(mean_cross_entropy(model, batch, &context)),
        tensors,
    );
    check_generation(model, batch, "generated", tensors);
}

#[test]
fn dialects_match_transformers_and_peft() {
    for variant in DIALECTS {
        let expected = read_tensors(&fixture(&format!("{variant}/expected.safetensors")));
        let batch = batch(variant, "batch.json");
        let base = load(variant);
        let context = ForwardContext::inference();
        check(
            "base.logits",
            &values(base.logits(&batch, &context)),
            &expected,
        );
        check(
            "base.loss",
            &values(mean_cross_entropy(&base, &batch, &context)),
            &expected,
        );
        check_generation(&base, &batch, "base.generated", &expected);

        let mut model = stack(variant, &format!("{variant}/adapters"), "active");
        check_model(&model, &batch, &expected);
        check_gradients(&model, &batch, &expected);
        model.fold();
        check_model(&model, &batch, &expected);
        check_gradients(&model, &batch, &expected);
    }
}

#[test]
fn cached_generation_equals_uncached() {
    for variant in DIALECTS {
        check_cached_generation(&stack(variant, &format!("{variant}/adapters"), "active"));
    }
}

#[test]
fn likelihoods_equal_those_of_single_answers() {
    for variant in DIALECTS {
        check_likelihoods(&stack(variant, &format!("{variant}/adapters"), "active"));
    }
}

#[test]
fn every_linear_layer_can_be_adapted() {
    let expected = read_tensors(&fixture("t5/mt5/expected_all.safetensors"));
    let batch = batch("t5/mt5", "batch.json");
    let mut model = stack("t5/mt5", "t5/mt5/adapters_all", "active");
    for _ in 0..2 {
        check_model(&model, &batch, &expected);
        check_gradients(&model, &batch, &expected);
        model.fold();
    }
}

#[test]
fn half_precision_and_sharded_files() {
    for (variant, adapters) in [
        ("t5/v1_0_f16", "t5/v1_0"),
        ("t5/v1_1_bf16_sharded", "t5/v1_1"),
    ] {
        let expected = read_tensors(&fixture(&format!("{variant}/expected.safetensors")));
        let batch = batch(variant, "batch.json");
        let base = load(variant);
        let logits = base.logits(&batch, &ForwardContext::inference());
        check("base.logits", &values(logits), &expected);
        check_model(
            &stack(variant, &format!("{adapters}/adapters"), "active"),
            &batch,
            &expected,
        );
    }
}

#[test]
fn pefts_other_spellings_load() {
    let expected = read_tensors(&fixture("t5/v1_0/expected.safetensors"));
    let batch = batch("t5/v1_0", "batch.json");
    for name in ["rslora_patterns", "regex"] {
        let mut model = load("t5/v1_0");
        model
            .push_frozen(&adapter(&format!("t5/v1_0/adapters/{name}")))
            .unwrap();
        let logits = model.logits(&batch, &ForwardContext::inference());
        check(&format!("{name}.logits"), &values(logits), &expected);
    }
}

#[test]
fn three_optimizer_steps_with_both_penalties() {
    let cases = DIALECTS.map(|variant| (variant, "active", "steps"));
    for (variant, active, file) in
        cases
            .into_iter()
            .chain([("t5/v1_0", "active_zero_b", "steps_zero_b")])
    {
        check_steps(variant, active, file);
    }
}

#[test]
fn both_attribution_presets_match_an_independent_implementation() {
    for (variant, adapters) in [
        ("t5/v1_0", "t5/v1_0"),
        ("t5/v1_1", "t5/v1_1"),
        ("t5/mt5", "t5/mt5"),
        ("t5/v1_0_eps", "t5/v1_0"),
        ("t5/mt5_eps", "t5/mt5"),
    ] {
        let tensors = read_tensors(&fixture(&format!("{variant}/attribution.safetensors")));
        let full = batch(variant, "batch.json");
        let mut model = stack(variant, &format!("{adapters}/adapters"), "active");
        // Stack and fold, whole path at once and one point at a time: all must agree.
        for (max_rows, max_joined_positions) in [(1024, MAX_JOINED_POSITIONS), (1, 1)] {
            let mut aso = Attributor::preset(Preset::Aso, max_rows);
            aso.gradients.max_joined_positions = max_joined_positions;
            let encoder = Attributor {
                taps: TapChoice::One(TapPoint::Encoder),
                ..aso
            };
            let reference = Attributor::preset(Preset::Reference, max_rows);
            let clamped = SoftWeight::Clamped;
            check_attribution(
                &model,
                &full,
                &reference,
                SoftWeight::Unclamped,
                "reference",
                &tensors,
            );
            check_attribution(&model, &full, &aso, clamped, "aso", &tensors);
            check_attribution(&model, &full, &encoder, clamped, "aso_encoder", &tensors);
            let missing = batch(variant, "batch_missing_row.json");
            check_attribution(&model, &missing, &aso, clamped, "aso_missing_row", &tensors);
            check_tasks(&model, &full, &aso, &tensors);
            model.fold();
        }
    }
}

#[test]
fn the_predicted_token_is_attributed_if_told() {
    let model = stack("t5/v1_1", "t5/v1_1/adapters", "active");
    let batch = batch("t5/v1_1", "batch.json");
    for point in [TapPoint::Answer, TapPoint::Encoder] {
        check_predicted_target(&model, &batch, TapChoice::One(point));
    }
}

#[test]
fn integrated_gradients_are_complete() {
    let (sums, gaps) = completeness("t5/mt5_eps", "t5/mt5");
    for (sum, gap) in sums.iter().zip(&gaps) {
        // The midpoint rule at m = 320 leaves 8e-4 on this model in f64.
        assert!(
            (sum - gap).abs() <= 2e-3 * gap.abs().max(1e-3),
            "{sums:?} {gaps:?}"
        );
    }
    // With several norms in a row and a smaller epsilon m = 320 is not yet the limit; the sum itself
    // still has to be that of the independent implementation.
    for variant in ["t5/v1_0", "t5/mt5"] {
        let tensors = read_tensors(&fixture(&format!("{variant}_eps/attribution.safetensors")));
        let (sums, _) = completeness(&format!("{variant}_eps"), variant);
        let sums: Vec<f32> = sums.iter().map(|sum| *sum as f32).collect();
        assert_close(
            "sum",
            &sums,
            expect(&tensors, "aso_m320.sum"),
            ATTRIBUTION_TOLERANCE,
        );
    }
}

#[test]
fn a_fresh_subspace_is_similar_to_its_past() {
    let mut model = stack("t5/v1_0", "t5/v1_0/adapters", "active_zero_b");
    let batch = batch("t5/v1_0", "batch.json");
    for preset in [Preset::Aso, Preset::Reference] {
        for _ in 0..2 {
            let measured = Attributor::preset(preset, 64)
                .measure(&model, &batch)
                .unwrap()
                .unwrap();
            let rho = measured.similarity.mean().unwrap();
            assert!((rho - 1.0).abs() <= 1e-6, "{preset:?}: rho = {rho}");
            assert!(SoftWeight::Unclamped.weight(Some(rho)).abs() <= 1e-6);
            model.fold();
        }
    }
}

#[test]
fn a_measurement_does_not_depend_on_the_threads() {
    let mut model = stack("t5/v1_0", "t5/v1_0/adapters", "active");
    model.fold();
    let batch = batch("t5/v1_0", "batch.json");
    for preset in [Preset::Aso, Preset::Reference] {
        let attributor = Attributor::preset(preset, 64);
        // The plain way: one model after the other.
        let scores = |scope| attributor.scores(&model, &batch, scope).unwrap().unwrap();
        let current = scores(AdapterScope::All);
        let previous = scores(AdapterScope::WithoutActive);
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let measure = || attributor.measure(&model, &batch).unwrap().unwrap();
            let measured = pool.build().unwrap().install(measure);
            assert_eq!(measured.current, current, "{preset:?}, {threads} threads");
            assert_eq!(measured.previous, previous, "{preset:?}, {threads} threads");
        }
    }
}

#[test]
fn similarity_of_a_model_with_itself() {
    let model = stack("t5/v1_0", "t5/v1_0/adapters", "active");
    let batch = batch("t5/v1_0", "batch.json");
    let attributor = Attributor::preset(Preset::Aso, 64);
    let scores = attributor
        .scores(&model, &batch, AdapterScope::All)
        .unwrap()
        .unwrap();
    let similarity = Similarity::between(&scores, &scores);
    assert!((similarity.mean().unwrap() - 1.0).abs() < 1e-12);
}

#[test]
fn the_benchmark_checkpoint_gives_transformers_figures() {
    let Some(dir) = shared("models/t5-mini-clb") else {
        return;
    };
    let model = AutoModel::from_pretrained(&dir, FloatDtype::F32, &Device::flex()).unwrap();
    let path = dir.join("batch.json");
    let batch = TokenBatch::from_json(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
    let expected: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
    let numbers = |value: &serde_json::Value| -> Vec<f32> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_f64().unwrap() as f32)
            .collect()
    };
    let context = ForwardContext::inference();
    let logits = model.logits(&batch, &context);
    let [rows, length, vocabulary] = logits.dims();
    assert_eq!(
        [rows, length, vocabulary].map(|d| d as f32).to_vec(),
        numbers(&expected["logits_shape"])
    );
    let flat = values(logits);
    let first = numbers(&expected["logits_row0_pos0_first16"]);
    assert_close("first logits", &flat[..16], &first, TOLERANCE);
    let row = |at: usize| &flat[at * vocabulary..(at + 1) * vocabulary];
    let logsumexp = |logits: &[f32]| {
        let top = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = logits.iter().map(|v| f64::from(v - top).exp()).sum();
        (f64::from(top) + sum.ln()) as f32
    };
    for (at, expected) in expected["logsumexp"].as_array().unwrap().iter().enumerate() {
        let found: Vec<f32> = (0..length)
            .map(|t| logsumexp(row(at * length + t)))
            .collect();
        assert_close("logsumexp", &found, &numbers(expected), TOLERANCE);
    }
    let loss = values(mean_cross_entropy(&model, &batch, &context));
    assert_close(
        "loss",
        &loss,
        &[expected["loss"].as_f64().unwrap() as f32],
        TOLERANCE,
    );
    let greedy = model.generate(
        &batch,
        &GenerationConfig::greedy(12),
        RowControl::default(),
        &context,
    );
    let expected: Vec<f32> = expected["greedy"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(&numbers)
        .collect();
    assert_eq!(padded(&greedy, 13), expected);
}

#[test]
fn fixtures_say_where_they_come_from() {
    let path: &Path = &fixture("t5/provenance.json");
    let provenance: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(
        provenance.contains_key("versions"),
        "{:?}",
        provenance.keys()
    );
}
