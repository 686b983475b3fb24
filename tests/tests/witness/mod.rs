//! Comparing a model with what Transformers, PEFT and PyTorch computed.
//!
//! The tolerance of logits, losses, gradients and steps is 1e-4 of the largest magnitude: both sides
//! compute in f32 with different summation orders, and the fixtures' own f32 and f64 runs differ by
//! less than 2e-5. Attribution is compared to 1e-3: the reference path starts at alpha = 0, where
//! the norm's gradient is 1/sqrt(eps) = 1000 times larger than elsewhere.

#![allow(dead_code, reason = "every test binary uses a part of it")]

use aso_attribution::{
    Attributor, IntegratedGradients, Preset, TapChoice, TargetToken, TaskComparison,
};
use aso_backbones::{
    AutoModel, Backbone, BlockTaps, Decoding, FloatDtype, GenerationConfig, ModelKind, RowControl,
    Sampling, TapPoint, TokenBatch,
};
use aso_lora::{Adapter, AdapterHost, AdapterScope, ForwardContext};
use aso_losses::{
    OrthogonalityPenalty, SequenceCrossEntropy, SoftWeight, SubspacePair, norm_penalty,
};
use aso_tests::{Tensors, assert_close, fixture, read_tensors};
use aso_trainer::optimizer::{AdamWSettings, SubspaceGradients, SubspaceOptimizer};
use burn::tensor::{Device, Tensor};

pub(crate) const TOLERANCE: f64 = 1e-4;
pub(crate) const ATTRIBUTION_TOLERANCE: f64 = 1e-3;

pub(crate) fn load(variant: &str) -> AutoModel {
    let dir = fixture(variant);
    AutoModel::from_pretrained(&dir, FloatDtype::F32, &Device::flex())
        .unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn batch(variant: &str, file: &str) -> TokenBatch {
    let path = fixture(&format!("{variant}/{file}"));
    let text = std::fs::read_to_string(&path).unwrap();
    TokenBatch::from_json(&path, &text).unwrap()
}

pub(crate) fn adapter(path: &str) -> Adapter {
    Adapter::load(&fixture(path)).unwrap_or_else(|error| panic!("{error}"))
}

/// Base, task0 and task1 frozen, `active` active.
pub(crate) fn stack(variant: &str, adapters: &str, active: &str) -> AutoModel {
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

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor
        .without_autodiff()
        .into_data()
        .iter::<f32>()
        .collect()
}

pub(crate) fn expect<'a>(tensors: &'a Tensors, name: &str) -> &'a [f32] {
    &tensors
        .get(name)
        .unwrap_or_else(|| panic!("fixture has no `{name}`"))
        .1
}

pub(crate) fn check(name: &str, found: &[f32], tensors: &Tensors) {
    assert_close(name, found, expect(tensors, name), TOLERANCE);
}

pub(crate) fn mean_cross_entropy(
    model: &impl Backbone,
    batch: &TokenBatch,
    context: &ForwardContext,
) -> Tensor<1> {
    let loss = SequenceCrossEntropy::default()
        .forward(model.logits(batch, context), &model.aligned_labels(batch));
    loss.sum.div_scalar(loss.tokens as f64)
}

pub(crate) fn penalties(model: &impl AdapterHost) -> (Tensor<1>, Tensor<1>) {
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

pub(crate) fn check_gradients(model: &AutoModel, batch: &TokenBatch, tensors: &Tensors) {
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

pub(crate) fn check_scores(name: &str, found: &[Vec<f64>], tensors: &Tensors) {
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
    let further = format!("{name}.{}", found.len());
    assert!(!tensors.contains_key(&further), "no scores for `{further}`");
}

pub(crate) fn check_attribution(
    model: &AutoModel,
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

/// The similarity of the current task and each past one, in every way to compare them.
pub(crate) fn check_tasks(
    model: &AutoModel,
    batch: &TokenBatch,
    attributor: &Attributor,
    tensors: &Tensors,
) {
    // One minus the first.
    let measure = |comparison| attributor.measure_tasks(model, batch, 2, comparison);
    let reliance = measure(TaskComparison::Reliance).unwrap().unwrap();
    let without = measure(TaskComparison::Without).unwrap().unwrap();
    for (reliance, without) in reliance.tasks.iter().zip(&without.tasks) {
        let sum = reliance.mean().unwrap() + without.mean().unwrap();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
    }
    for (comparison, name) in [
        (TaskComparison::Without, "aso_per_task"),
        (TaskComparison::Alone, "aso_alone"),
    ] {
        let tasks = measure(comparison).unwrap().unwrap().tasks;
        let blocks = tasks.iter().flat_map(|task| &task.blocks);
        let similarity = blocks.map(|rho| rho.unwrap() as f32).collect();
        let rho = tasks
            .iter()
            .map(|task| task.mean().unwrap() as f32)
            .collect();
        for (part, found) in [("similarity", similarity), ("rho", rho)] {
            let (name, found): (String, Vec<f32>) = (format!("{name}.{part}"), found);
            assert_close(&name, &found, expect(tensors, &name), ATTRIBUTION_TOLERANCE);
        }
    }
}

/// The predicted token is the one with the highest logit, whatever the labels say, and it is the one that is attributed.
pub(crate) fn check_predicted_target(model: &AutoModel, batch: &TokenBatch, taps: TapChoice) {
    let logits = model.logits(batch, &ForwardContext::inference());
    let [_, positions, vocabulary] = logits.dims();
    let logits = values(logits);
    let highest = |row: usize| {
        let (label, _) = batch.first_label(row).unwrap();
        let at = match model.kind() {
            ModelKind::EncoderDecoder => label,
            ModelKind::Causal => label - 1,
        };
        let logits = &logits[(row * positions + at) * vocabulary..][..vocabulary];
        (0..vocabulary).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
    };
    let highest: Vec<i64> = (0..batch.rows())
        .map(|row| highest(row).unwrap() as i64)
        .collect();
    let predicted = model.predicted(batch, AdapterScope::All).unwrap();
    assert_eq!(predicted, highest);

    let gold = Attributor {
        taps,
        ..Attributor::preset(Preset::Aso, 64)
    };
    let free = Attributor {
        target: TargetToken::Predicted,
        ..gold
    };
    let answered = batch.with_first_labels(&predicted);
    let other: Vec<i64> = highest.iter().map(|token| (token + 1) % 5).collect();
    let mistaken = batch.with_first_labels(&other);
    let measure = |attributor: &Attributor, batch| attributor.measure(model, batch).unwrap();
    let expected = measure(&gold, &answered);
    assert!(expected.is_some());
    assert_eq!(measure(&free, batch), expected);
    assert_eq!(measure(&free, &mistaken), expected);
    assert_ne!(measure(&gold, &mistaken), expected);
    let tasks = |attributor: &Attributor, batch| {
        let measured = attributor.measure_tasks(model, batch, 2, TaskComparison::Without);
        measured.unwrap()
    };
    assert_eq!(tasks(&free, &mistaken), tasks(&gold, &answered));
}

/// Sum over dimensions of the score with a fine path, and P at its two ends, as means over the rows.
pub(crate) fn completeness(variant: &str, adapters: &str) -> (Vec<f64>, Vec<f64>) {
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

/// Three optimizer steps with both penalties: values before and weights after each.
pub(crate) fn check_steps(variant: &str, active: &str, file: &str) {
    let expected = read_tensors(&fixture(&format!("{variant}/{file}.safetensors")));
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

/// Kept keys and values against computing everything again, for one row and for five of unequal length,
/// greedy and sampled; and every row alone against the same row in the batch.
pub(crate) fn check_cached_generation(model: &AutoModel) {
    let sampled = GenerationConfig {
        decoding: Decoding::Sample(Sampling {
            temperature: 1.5,
            top_k: 12,
            top_p: 0.9,
            seed: 3,
        }),
        ..GenerationConfig::greedy(10)
    };
    let context = ForwardContext::inference();
    let lengths = [7, 1, 12, 3, 9];
    let prompts: Vec<Vec<i64>> = lengths
        .iter()
        .map(|length| {
            (0..*length)
                .map(|at| (at * 13 + length * 5) % 31 + 6)
                .collect()
        })
        .collect();
    let left = model.kind() == ModelKind::Causal;
    for config in [&GenerationConfig::greedy(10), &sampled] {
        let batch = padded_prompts(&prompts, left);
        let together = model.generate(&batch, config, RowControl::default(), &context);
        assert_eq!(together, model.generate_uncached(&batch, config));
        for (row, prompt) in prompts.iter().enumerate() {
            let alone = padded_prompts(std::slice::from_ref(prompt), left);
            let control = RowControl {
                streams: Some(&[row as u64]),
                ..RowControl::default()
            };
            let found = model.generate(&alone, config, control, &context);
            assert_eq!(found[0], together[row], "row {row}");
        }
        let alone = padded_prompts(&prompts[..1], left);
        let uncached = model.generate_uncached(&alone, config);
        assert_eq!(uncached[0], together[0]);
    }
}

/// Likelihoods of answers behind a shared prompt against the loss of each answer with a prompt of its own.
pub(crate) fn check_likelihoods(model: &AutoModel) {
    let context = ForwardContext::inference();
    let lengths = [7, 1, 12, 3, 9];
    let prompts: Vec<Vec<i64>> = lengths
        .iter()
        .map(|length| {
            (0..*length)
                .map(|at| (at * 13 + length * 5) % 31 + 6)
                .collect()
        })
        .collect();
    // Of unequal lengths, with shared beginnings, one a beginning of another; another set for some rows.
    let many: Vec<Vec<u32>> = [
        &[8, 9, 1][..],
        &[8, 9, 10, 11, 12, 13, 1],
        &[8, 9],
        &[20, 1],
        &[1],
    ]
    .map(<[u32]>::to_vec)
    .into();
    let (few, none) = (vec![vec![30, 8, 1], vec![9]], Vec::new());
    let sets: [&[Vec<u32>]; 5] = [&many, &few, &many, &none, &many];
    let left = model.kind() == ModelKind::Causal;
    let batch = padded_prompts(&prompts, left);
    let found = model.answer_log_likelihoods(&batch, &sets, &context);
    for (row, prompt) in prompts.iter().enumerate() {
        assert_eq!(found[row].len(), sets[row].len());
        for (answer, found) in sets[row].iter().zip(&found[row]) {
            let answer: Vec<i64> = answer.iter().map(|id| i64::from(*id)).collect();
            let (ids, labels) = if left {
                let ignored = vec![-100; prompt.len()];
                let ids = [prompt.as_slice(), &answer].concat();
                (ids, [ignored, answer].concat())
            } else {
                (prompt.clone(), answer)
            };
            let mask = vec![1; ids.len()];
            let alone = TokenBatch::new(1, ids, mask, labels).unwrap();
            let (logits, labels) = model.answer_logits(&alone, &context);
            let loss = SequenceCrossEntropy::default().forward(logits, &labels);
            let expected = -values(loss.sum)[0];
            assert_close("log-likelihood", &[*found as f32], &[expected], TOLERANCE);
        }
    }
    // Nothing to choose from, one token each, a single row.
    let one = padded_prompts(&prompts[..1], left);
    assert_eq!(
        model.answer_log_likelihoods(&one, &[&none], &context),
        [Vec::<f64>::new()]
    );
    let single = model.answer_log_likelihoods(&one, &[&[vec![8], vec![1]]], &context);
    assert!(single[0].iter().all(|value| *value < 0.0));
}

/// Prompts as a batch without labels, padded with id 0.
pub(crate) fn padded_prompts(prompts: &[Vec<i64>], left: bool) -> TokenBatch {
    let width = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let pad = |row: &[i64]| {
        let padding = vec![0; width - row.len()];
        if left {
            [padding.as_slice(), row].concat()
        } else {
            [row, padding.as_slice()].concat()
        }
    };
    let ids = prompts.iter().flat_map(|row| pad(row)).collect();
    let mask = prompts
        .iter()
        .flat_map(|row| pad(&vec![1; row.len()]))
        .collect();
    let labels = vec![-100; width * prompts.len()];
    TokenBatch::new(prompts.len(), ids, mask, labels).unwrap()
}
