//! The costs of a run: training step, attribution, penalties, generation, folding, loading.
//!
//! `cargo xtask bench`, or `cargo bench -p aso-tests`. The model is a random T5 with T5-small's widths in
//! 2 + 2 blocks, so that a pass takes seconds; ratios between rows are meaningful, absolute times are not.

use std::hint::black_box;

use aso_attribution::{Attributor, Preset};
use aso_backbones::t5::{HfT5Config, RandomInit, T5Config, T5ForConditionalGeneration};
use aso_backbones::{Backbone, GenerationConfig, TokenBatch};
use aso_lora::{AdapterHost, ForwardContext, LoraConfig};
use aso_losses::{OrthogonalityPenalty, SequenceCrossEntropy, SubspacePair};
use aso_trainer::optimizer::{AdamWSettings, SubspaceGradients, SubspaceOptimizer};
use burn::tensor::Device;
use criterion::{Criterion, criterion_group, criterion_main};

fn config() -> T5Config {
    let hf = HfT5Config {
        num_layers: 2,
        vocab_size: 8192,
        ..HfT5Config::default()
    };
    T5Config::resolve("bench".as_ref(), &hf).expect("a valid configuration")
}

/// A model with `past` frozen subspaces, folded, and an active one.
fn model(past: u64) -> T5ForConditionalGeneration {
    let init = RandomInit::new(config(), true, 1);
    let mut model = T5ForConditionalGeneration::from_source(config(), &init, &Device::default())
        .expect("every tensor is drawn");
    for task in 0..=past {
        model.freeze_active();
        model
            .start_subspace(&LoraConfig::default(), 1, task)
            .expect("q and v exist");
    }
    model.fold();
    model
}

fn batch(rows: usize, source: usize, target: usize) -> TokenBatch {
    let ids = |count: usize| (0..count).map(|at| (at as i64 * 7919) % 8000 + 3).collect();
    TokenBatch::new(
        rows,
        ids(rows * source),
        vec![1; rows * source],
        ids(rows * target),
    )
    .expect("a valid batch")
}

fn train_step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("train step, batch 8, source 128, target 8");
    let batch = batch(8, 128, 8);
    for past in [0, 14] {
        let mut model = model(past);
        let mut optimizer = SubspaceOptimizer::new(AdamWSettings::default());
        group.bench_function(format!("{past} past tasks"), |bencher| {
            bencher.iter(|| {
                let logits = model.logits(&batch, &ForwardContext::training(None));
                let loss = SequenceCrossEntropy::default().forward(logits, batch.labels());
                let mut gradients = SubspaceGradients::collect(&model, &mut loss.sum.backward());
                gradients.clip(1.0);
                optimizer.step(&mut model, &gradients, 1e-3);
            });
        });
    }
    group.finish();
}

fn attribution(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attribution, batch 4, source 128");
    let (model, batch) = (model(2), batch(4, 128, 8));
    for (name, preset) in [("aso", Preset::Aso), ("reference", Preset::Reference)] {
        let attributor = Attributor::preset(preset, 64);
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(attributor.measure(&model, &batch)));
        });
    }
    group.finish();
}

fn penalties(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("orthogonality penalty and its gradient");
    for past in [1, 14] {
        let model = model(past);
        group.bench_function(format!("{past} past tasks"), |bencher| {
            bencher.iter(|| {
                let mut pairs = Vec::new();
                model.visit_linears(&mut |layer| {
                    if let (Some(active), Some(frozen)) = (layer.active(), layer.frozen()) {
                        let (previous, active) = (frozen.a(), active.a.val());
                        pairs.push(SubspacePair {
                            previous,
                            active,
                            row_weights: None,
                        });
                    }
                });
                let penalty = OrthogonalityPenalty::default().forward(pairs);
                let mut gradients = penalty.expect("there are past tasks").backward();
                black_box(SubspaceGradients::collect(&model, &mut gradients))
            });
        });
    }
    group.finish();
}

fn evaluation(criterion: &mut Criterion) {
    let (mut model, batch) = (model(2), batch(16, 128, 8));
    let config = GenerationConfig { max_new_tokens: 8 };
    criterion.bench_function("generate 8 tokens, batch 16, source 128", |bencher| {
        bencher.iter(|| black_box(model.generate(&batch, &config, &ForwardContext::inference())));
    });
    criterion.bench_function("fold 2 past tasks", |bencher| bencher.iter(|| model.fold()));
}

criterion_group! {
    name = core;
    config = Criterion::default().sample_size(10);
    targets = train_step, attribution, penalties, evaluation
}
criterion_main!(core);
