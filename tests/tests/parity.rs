//! Numbers against Transformers, PEFT and PyTorch (fixtures: `xtask/fixtures`, versions in
//! `tests/fixtures/t5/provenance.json`).
//!
//! The tolerance of logits, losses, gradients and steps is 1e-4 of the largest magnitude: both sides
//! compute in f32 with different summation orders, and the fixtures' own f32 and f64 runs differ by
//! less than 2e-5. Attribution is compared to 1e-3: the reference path starts at alpha = 0, where
//! the norm's gradient is 1/sqrt(eps) = 1000 times larger than elsewhere.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::path::Path;

use aso_attribution::{Attributor, IntegratedGradients, Preset, Similarity, TapChoice};
use aso_backbones::t5::T5ForConditionalGeneration;
use aso_backbones::{Backbone, GenerationConfig, TapPoint, TokenBatch};
use aso_lora::{Adapter, AdapterHost, AdapterScope, ForwardContext};
use aso_losses::{
    OrthogonalityPenalty, SequenceCrossEntropy, SoftWeight, SubspacePair, norm_penalty,
};
use aso_tests::{Tensors, assert_close, fixture, read_tensors, shared};
use aso_trainer::optimizer::{AdamWSettings, SubspaceGradients, SubspaceOptimizer};
use burn::tensor::{Device, Tensor};

const TOLERANCE: f64 = 1e-4;
const ATTRIBUTION_TOLERANCE: f64 = 1e-3;
const DIALECTS: [&str; 3] = ["v1_0", "v1_1", "mt5"];

fn load(variant: &str) -> T5ForConditionalGeneration {
    let dir = fixture(&format!("t5/{variant}"));
    T5ForConditionalGeneration::from_pretrained(&dir, &Device::flex())
        .unwrap_or_else(|error| panic!("{error}"))
}

fn batch(variant: &str, file: &str) -> TokenBatch {
    let path = fixture(&format!("t5/{variant}/{file}"));
    let text = std::fs::read_to_string(&path).unwrap();
    TokenBatch::from_json(&path, &text).unwrap()
}

fn adapter(path: &str) -> Adapter {
    Adapter::load(&fixture(&format!("t5/{path}"))).unwrap_or_else(|error| panic!("{error}"))
}

/// Base, task0 and task1 frozen, `active` active.
fn stack(variant: &str, adapters: &str, active: &str) -> T5ForConditionalGeneration {
    let mut model = load(variant);
    for task in ["task0", "task1"] {
        model
            .push_frozen(&adapter(&format!("{adapters}/{task}")))
            .unwrap();
    }
    model
        .set_active(&adapter(&format!("{adapters}/{active}")), 0.0)
        .unwrap();
    model
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor
        .without_autodiff()
        .into_data()
        .iter::<f32>()
        .collect()
}

fn expect<'a>(tensors: &'a Tensors, name: &str) -> &'a [f32] {
    &tensors
        .get(name)
        .unwrap_or_else(|| panic!("fixture has no `{name}`"))
        .1
}

fn check(name: &str, found: &[f32], tensors: &Tensors) {
    assert_close(name, found, expect(tensors, name), TOLERANCE);
}

fn mean_cross_entropy(
    model: &impl Backbone,
    batch: &TokenBatch,
    context: &ForwardContext,
) -> Tensor<1> {
    let loss = SequenceCrossEntropy::default()
        .forward(model.logits(batch, context), &model.aligned_labels(batch));
    loss.sum.div_scalar(loss.tokens as f64)
}

fn penalties(model: &impl AdapterHost) -> (Tensor<1>, Tensor<1>) {
    let (mut pairs, mut norm) = (Vec::new(), None::<Tensor<1>>);
    model.visit_linears(&mut |layer| {
        let Some(active) = layer.active() else { return };
        let (a, b) = (active.a.val(), active.b.val());
        if let Some(frozen) = layer.frozen() {
            pairs.push(SubspacePair {
                previous: frozen.a(),
                active: a.clone(),
                row_weights: None,
            });
        }
        let term = norm_penalty(a, b);
        norm = Some(match norm.take() {
            Some(total) => total + term,
            None => term,
        });
    });
    (
        OrthogonalityPenalty::default().forward(pairs).unwrap(),
        norm.unwrap(),
    )
}

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

fn check_generation(
    model: &T5ForConditionalGeneration,
    batch: &TokenBatch,
    name: &str,
    tensors: &Tensors,
) {
    let config = GenerationConfig { max_new_tokens: 8 };
    let cached = model.generate(batch, &config, &ForwardContext::inference());
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

fn check_model(model: &T5ForConditionalGeneration, batch: &TokenBatch, tensors: &Tensors) {
    let context = ForwardContext::inference();
    check("logits", &values(model.logits(batch, &context)), tensors);
    check(
        "loss",
        &values(mean_cross_entropy(model, batch, &context)),
        tensors,
    );
    check_generation(model, batch, "generated", tensors);
}

fn check_gradients(model: &T5ForConditionalGeneration, batch: &TokenBatch, tensors: &Tensors) {
    let (orthogonality, norm) = penalties(model);
    check("penalty.orthogonality", &values(orthogonality), tensors);
    check("penalty.norm", &values(norm), tensors);
    let loss = mean_cross_entropy(model, batch, &ForwardContext::training(None));
    let gradients = SubspaceGradients::collect(model, &mut loss.backward());
    let names: Vec<_> = tensors
        .keys()
        .filter(|name| name.starts_with("grad."))
        .collect();
    assert_eq!(names.len(), gradients.iter().count(), "number of gradients");
    for name in names {
        let key = name.trim_start_matches("grad.").trim_end_matches(".weight");
        check(name, &values(gradients.get(key).unwrap().clone()), tensors);
    }
}

#[test]
fn dialects_match_transformers_and_peft() {
    for variant in DIALECTS {
        let expected = read_tensors(&fixture(&format!("t5/{variant}/expected.safetensors")));
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
fn every_linear_layer_can_be_adapted() {
    let expected = read_tensors(&fixture("t5/mt5/expected_all.safetensors"));
    let batch = batch("mt5", "batch.json");
    let mut model = stack("mt5", "mt5/adapters_all", "active");
    for _ in 0..2 {
        check_model(&model, &batch, &expected);
        check_gradients(&model, &batch, &expected);
        model.fold();
    }
}

#[test]
fn half_precision_and_sharded_files() {
    for (variant, adapters) in [("v1_0_f16", "v1_0"), ("v1_1_bf16_sharded", "v1_1")] {
        let expected = read_tensors(&fixture(&format!("t5/{variant}/expected.safetensors")));
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
    let batch = batch("v1_0", "batch.json");
    for name in ["rslora_patterns", "regex"] {
        let mut model = load("v1_0");
        model
            .push_frozen(&adapter(&format!("v1_0/adapters/{name}")))
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
            .chain([("v1_0", "active_zero_b", "steps_zero_b")])
    {
        let expected = read_tensors(&fixture(&format!("t5/{variant}/{file}.safetensors")));
        let batch = batch(variant, "batch.json");
        let mut model = stack(variant, &format!("{variant}/adapters"), active);
        model.fold();
        let mut optimizer = SubspaceOptimizer::new(AdamWSettings::default());
        for step in 0..3 {
            let cross_entropy = mean_cross_entropy(&model, &batch, &ForwardContext::training(None));
            let (orthogonality, norm) = penalties(&model);
            let loss = cross_entropy.clone()
                + orthogonality.clone().mul_scalar(0.5 * 0.7)
                + norm.clone().mul_scalar(0.1);
            let name = |what: &str| format!("step.{step}.{what}");
            check(&name("cross_entropy"), &values(cross_entropy), &expected);
            check(
                &name("penalty.orthogonality"),
                &values(orthogonality),
                &expected,
            );
            check(&name("penalty.norm"), &values(norm), &expected);
            check(&name("loss"), &values(loss.clone()), &expected);
            let mut gradients = SubspaceGradients::collect(&model, &mut loss.backward());
            let before = gradients.clip(1.0);
            check(&name("grad_norm"), &[before as f32], &expected);
            optimizer.step(&mut model, &gradients, 1e-2);
            for (module, weights) in model.active_weights() {
                check(
                    &name(&format!("{module}.lora_A.weight")),
                    &weights.a,
                    &expected,
                );
                check(
                    &name(&format!("{module}.lora_B.weight")),
                    &weights.b,
                    &expected,
                );
            }
        }
    }
}

fn check_scores(name: &str, found: &[Vec<f64>], tensors: &Tensors) {
    for (block, scores) in found.iter().enumerate() {
        let scores: Vec<f32> = scores.iter().map(|score| *score as f32).collect();
        let name = format!("{name}.{block}");
        assert_close(
            &name,
            &scores,
            expect(tensors, &name),
            ATTRIBUTION_TOLERANCE,
        );
    }
}

fn check_attribution(
    model: &T5ForConditionalGeneration,
    batch: &TokenBatch,
    attributor: &Attributor,
    weight: SoftWeight,
    prefix: &str,
    tensors: &Tensors,
) {
    let measured = attributor.measure(model, batch).unwrap().unwrap();
    check_scores(
        &format!("{prefix}.attribution.current"),
        &measured.current,
        tensors,
    );
    check_scores(
        &format!("{prefix}.attribution.previous"),
        &measured.previous,
        tensors,
    );
    let similarity: Vec<f32> = measured
        .similarity
        .blocks
        .iter()
        .map(|rho| rho.unwrap() as f32)
        .collect();
    let name = format!("{prefix}.similarity");
    assert_close(
        &name,
        &similarity,
        expect(tensors, &name),
        ATTRIBUTION_TOLERANCE,
    );
    let weight = weight.weight(measured.similarity.mean()) as f32;
    let expected = expect(tensors, &format!("{prefix}.weight"))[0];
    assert!(
        (weight - expected).abs() <= 1e-3,
        "{prefix}.weight: {weight}, expected {expected}"
    );
}

#[test]
fn both_attribution_presets_match_an_independent_implementation() {
    for (variant, adapters) in [
        ("v1_0", "v1_0"),
        ("v1_1", "v1_1"),
        ("mt5", "mt5"),
        ("v1_0_eps", "v1_0"),
        ("mt5_eps", "mt5"),
    ] {
        let tensors = read_tensors(&fixture(&format!("t5/{variant}/attribution.safetensors")));
        let full = batch(variant, "batch.json");
        let mut model = stack(variant, &format!("{adapters}/adapters"), "active");
        // Stack and fold, whole path at once and one row at a time: all must agree.
        for max_rows in [1024, 1] {
            let aso = Attributor::preset(Preset::Aso, max_rows);
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
            let tasks = aso.measure_tasks(&model, &full, 2).unwrap().unwrap();
            let rho: Vec<f32> = tasks
                .tasks
                .iter()
                .map(|task| task.mean().unwrap() as f32)
                .collect();
            assert_close(
                "rho",
                &rho,
                expect(&tensors, "aso_per_task.rho"),
                ATTRIBUTION_TOLERANCE,
            );
            model.fold();
        }
    }
}

/// Sum over dimensions of the score with a fine path, and P at its two ends, as means over the rows.
fn completeness(variant: &str, adapters: &str) -> (Vec<f64>, Vec<f64>) {
    use aso_backbones::BlockTaps;
    let model = stack(variant, &format!("{adapters}/adapters"), "active");
    let batch = batch(variant, "batch.json");
    let attributor = Attributor::preset(Preset::Aso, 256);
    let fine = Attributor {
        gradients: IntegratedGradients {
            steps: 320,
            ..attributor.gradients
        },
        ..attributor
    };
    let scores = fine
        .scores(&model, &batch, AdapterScope::All)
        .unwrap()
        .unwrap();
    let sums = scores.iter().map(|scores| scores.iter().sum()).collect();
    let trace = model
        .trace(&batch, TapPoint::Answer, AdapterScope::All)
        .unwrap();
    let gaps = (0..scores.len())
        .map(|block| {
            let hidden = model.hidden(&trace, block);
            let [rows, positions, width] = hidden.dims();
            let ends = hidden.clone().reshape([rows, 1, positions, width]);
            let ends = Tensor::cat(vec![ends.clone(), ends.mul_scalar(0.0)], 1);
            let p = values(model.probability(&trace, block, ends));
            p.chunks(2)
                .map(|ends| f64::from(ends[0] - ends[1]))
                .sum::<f64>()
                / rows as f64
        })
        .collect();
    (sums, gaps)
}

#[test]
fn integrated_gradients_are_complete() {
    let (sums, gaps) = completeness("mt5_eps", "mt5");
    for (sum, gap) in sums.iter().zip(&gaps) {
        // The midpoint rule at m = 320 leaves 8e-4 on this model in f64.
        assert!(
            (sum - gap).abs() <= 2e-3 * gap.abs().max(1e-3),
            "{sums:?} {gaps:?}"
        );
    }
    // With several norms in a row and a smaller epsilon m = 320 is not yet the limit; the sum itself
    // still has to be that of the independent implementation.
    for variant in ["v1_0", "mt5"] {
        let tensors = read_tensors(&fixture(&format!(
            "t5/{variant}_eps/attribution.safetensors"
        )));
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
    let mut model = stack("v1_0", "v1_0/adapters", "active_zero_b");
    let batch = batch("v1_0", "batch.json");
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
fn similarity_of_a_model_with_itself() {
    let model = stack("v1_0", "v1_0/adapters", "active");
    let batch = batch("v1_0", "batch.json");
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
    let model = T5ForConditionalGeneration::from_pretrained(&dir, &Device::flex()).unwrap();
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
    let greedy = model.generate(&batch, &GenerationConfig { max_new_tokens: 12 }, &context);
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
