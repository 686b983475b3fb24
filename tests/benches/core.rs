//! The costs of a run: training step and its growth, attribution, penalties, generation, evaluation, folding, merging,
//! loading.
//!
//! `cargo xtask bench`, which ends with a table, or `cargo bench -p aso-tests`. The model is a random T5 with T5-small's
//! widths in 2 + 2 blocks, so that a pass takes seconds; ratios between rows are meaningful, absolute times are not.
//! `cargo xtask bench --peer` measures whole models against PyTorch.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use aso_attribution::{Attributor, Preset};
use aso_backbones::llama::{self, HfLlamaConfig, LlamaConfig, LlamaForCausalLm};
use aso_backbones::t5::{HfT5Config, RandomInit, T5Config, T5ForConditionalGeneration};
use aso_backbones::{
    Backbone, FloatDtype, GenerationConfig, NamedTensor, RowControl, TokenBatch, checkpoint,
};
use aso_lora::{AdapterHost, AdapterScope, ForwardContext, LoraConfig};
use aso_losses::{OrthogonalityPenalty, SequenceCrossEntropy, SubspacePair};
use aso_trainer::config::{EvalMode, ModelSettings};
use aso_trainer::evaluate::Evaluator;
use aso_trainer::events::Silent;
use aso_trainer::load::{load_model, open_library};
use aso_trainer::optimizer::{AdamWSettings, SubspaceGradients, SubspaceOptimizer};
use aso_trainer::{RunConfig, Task};
use burn::tensor::Device;
use criterion::{Criterion, criterion_group, criterion_main};

fn hf_config() -> HfT5Config {
    HfT5Config {
        num_layers: 2,
        vocab_size: 8192,
        ..HfT5Config::default()
    }
}

fn config() -> T5Config {
    T5Config::resolve("bench".as_ref(), &hf_config()).expect("a valid configuration")
}

/// A model with `past` frozen subspaces, folded, and an active one.
fn model(past: u64) -> T5ForConditionalGeneration {
    let init = RandomInit::new(config(), true, 1);
    let mut model = T5ForConditionalGeneration::from_source(
        config(),
        &init,
        FloatDtype::F32,
        &Device::default(),
    )
    .expect("every tensor is drawn");
    for task in 0..=past {
        model.freeze_active();
        model
            .start_subspace(&LoraConfig::default(), 1, task)
            .expect("q and v exist");
    }
    model.fold();
    model.keep_transposed();
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

/// A step with the orthogonality penalty: what grows with the number of tasks.
fn growth(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("growth: step with penalty, batch 8, source 128");
    let batch = batch(8, 128, 8);
    for past in [1, 5, 15, 50] {
        let mut model = model(past);
        let mut optimizer = SubspaceOptimizer::new(AdamWSettings::default());
        group.bench_function(format!("{past} past tasks"), |bencher| {
            bencher.iter(|| {
                let logits = model.logits(&batch, &ForwardContext::training(None));
                let loss = SequenceCrossEntropy::default().forward(logits, batch.labels());
                let mut gradients = SubspaceGradients::collect(&model, &mut loss.sum.backward());
                gradients.add(penalty_gradients(&model));
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

/// Attribution of both models, over one forward pass of the same batch: 12 causal blocks of width 512,
/// prompt 256, batch 4, and an answer of 2 tokens.
fn causal_attribution(criterion: &mut Criterion) {
    let hf = HfLlamaConfig {
        vocab_size: 8192,
        hidden_size: 512,
        intermediate_size: 1408,
        num_hidden_layers: 12,
        num_attention_heads: 8,
        num_key_value_heads: Some(4),
        tie_word_embeddings: Some(true),
        ..HfLlamaConfig::default()
    };
    let config = LlamaConfig::resolve("bench".as_ref(), &hf).expect("a valid configuration");
    let init = llama::RandomInit::new(true, 0.02, 1);
    let device = Device::default();
    let mut model = LlamaForCausalLm::from_source(config, &init, FloatDtype::F32, &device)
        .expect("every tensor is drawn");
    let lora = LoraConfig {
        target_modules: model.default_targets(),
        ..LoraConfig::default()
    };
    for task in 0..2 {
        model.freeze_active();
        model.start_subspace(&lora, 1, task).expect("q_proj exists");
    }
    model.fold();
    let (rows, prompt, answer) = (4, 256, 2);
    let ids = (0..rows * (prompt + answer)).map(|at| (at as i64 * 7919) % 8000 + 3);
    let ids: Vec<i64> = ids.collect();
    let labels = ids.chunks(prompt + answer).flat_map(|row| {
        let answer = &row[prompt..];
        std::iter::repeat_n(-100, prompt).chain(answer.iter().copied())
    });
    let mask = vec![1; ids.len()];
    let batch = TokenBatch::new(rows, ids.clone(), mask, labels.collect()).expect("a valid batch");
    let attributor = Attributor::preset(Preset::Aso, 64);
    let context = ForwardContext::inference();
    let mut group = criterion.benchmark_group("causal, 12 x 512, batch 4, prompt 256");
    group.sample_size(10);
    group.bench_function("attribution over forward pass", |bencher| {
        let mut ratios = Vec::new();
        bencher.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                let start = Instant::now();
                black_box(model.logits(&batch, &context).into_data());
                let forward = start.elapsed();
                let start = Instant::now();
                black_box(attributor.measure(&model, &batch)).expect("a causal model");
                spent += start.elapsed();
                ratios.push(start.elapsed().as_secs_f64() / forward.as_secs_f64());
            }
            spent
        });
        ratios.sort_by(f64::total_cmp);
        println!(
            "attribution / forward pass: {:.2} (median of {})",
            ratios[ratios.len() / 2],
            ratios.len()
        );
    });
    group.finish();
}

fn penalties(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("orthogonality penalty and its gradient");
    for past in [1, 14] {
        let model = model(past);
        group.bench_function(format!("{past} past tasks"), |bencher| {
            bencher.iter(|| black_box(penalty_gradients(&model)));
        });
    }
    group.finish();
}

fn penalty_gradients(model: &T5ForConditionalGeneration) -> SubspaceGradients {
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
    SubspaceGradients::collect(model, &mut gradients)
}

fn generation(criterion: &mut Criterion) {
    let (model, batch) = (model(2), batch(16, 128, 8));
    let config = GenerationConfig::greedy(8);
    criterion.bench_function("generate 8 tokens, batch 16, source 128", |bencher| {
        bencher.iter(|| {
            black_box(model.generate(
                &batch,
                &config,
                RowControl::default(),
                &ForwardContext::inference(),
            ))
        });
    });
}

/// The built-in model on a task of the built-in suite, text to score.
fn evaluation(criterion: &mut Criterion) {
    let settings = ModelSettings::default();
    let loaded = load_model(&settings, &Device::default(), &mut Silent).expect("a built-in model");
    let mut config = RunConfig::default();
    config.data.max_train = Some(1);
    config.data.max_eval = Some(100);
    let library = open_library(&config.data).expect("built-in tasks");
    let name = library.names().remove(0);
    let (codec, vocabulary) = (&loaded.codec, loaded.model.vocabulary());
    let task = Task::load(library.as_ref(), &name, &config, codec, vocabulary);
    let task = task.expect("a built-in task");
    let evaluator = Evaluator {
        mode: EvalMode::Generate,
        codec,
        batch_size: 32,
        generation: GenerationConfig::greedy(6),
        stop: &[],
    };
    criterion.bench_function("evaluate 100 examples, built-in model", |bencher| {
        bencher.iter(|| {
            let model = &loaded.model;
            let score = evaluator.score(model, &task, AdapterScope::All, &mut |_| {});
            black_box(score).expect("answers that can be decoded")
        });
    });
}

/// What happens to the weights at the ends of tasks and of runs.
fn weights(criterion: &mut Criterion) {
    let mut model = model(2);
    criterion.bench_function("fold 2 past tasks", |bencher| bencher.iter(|| model.fold()));
    criterion.bench_function("merge 3 subspaces", |bencher| {
        bencher.iter(|| model.visit_linears(&mut |layer| drop(black_box(layer.merge()))));
    });
    let dir = tempfile::tempdir().expect("a temporary folder");
    criterion.bench_function("write the merged model", |bencher| {
        bencher.iter(|| write_merged(&model, dir.path()));
    });
    // Also where a filter leaves the writing out.
    write_merged(&model, dir.path());
    let config = serde_json::to_string(&hf_config()).expect("plain values");
    std::fs::write(dir.path().join("config.json"), config).expect("a writable folder");
    criterion.bench_function("load the merged model", |bencher| {
        bencher.iter(|| {
            let model = T5ForConditionalGeneration::from_pretrained(dir.path(), &Device::default());
            black_box(model).expect("just written")
        });
    });
}

/// The backbone with every subspace added to its weights, as a safetensors file.
fn write_merged(model: &T5ForConditionalGeneration, dir: &Path) {
    let mut parameters = model.named_parameters();
    let mut merged = Vec::new();
    model.visit_linears(&mut |layer| {
        if layer.frozen().is_some() || layer.active().is_some() {
            let weight = layer.merge().weight.val().transpose();
            merged.push(NamedTensor::new(format!("{}.weight", layer.name()), weight));
        }
    });
    parameters.retain(|known| merged.iter().all(|new| new.name != known.name));
    parameters.extend(merged);
    let bytes = checkpoint::serialize(parameters, FloatDtype::F32).expect("distinct names");
    std::fs::write(dir.join("model.safetensors"), bytes).expect("a writable folder");
}

criterion_group! {
    name = core;
    config = Criterion::default().sample_size(10);
    targets = train_step, growth, attribution, causal_attribution, penalties, generation, evaluation, weights
}
criterion_main!(core);
