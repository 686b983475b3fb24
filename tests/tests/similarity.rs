//! `aso similarity` and `aso eval` on runs of different structure.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aso_attribution::{
    Attributor, MAX_PATH_ROWS, Preset, Similarity, input_response, subspace_overlap,
};
use aso_backbones::Backbone;
use aso_lora::{Adapter, AdapterHost, AdapterScope, ForwardContext, InputCovariance, LoraWeights};
use aso_trainer::events::Silent;
use aso_trainer::load::{load_model, open_library};
use aso_trainer::similarity::{TaskSimilarities, TrainedTask};
use aso_trainer::state::adapter_dir;
use aso_trainer::{RunConfig, Task};
use burn::tensor::Device;
use common::{fail, succeed, text};

/// A run of two tasks with two steps each.
fn short_run(dir: &Path, method: &str) -> PathBuf {
    let config = dir.join(format!("{method}.toml"));
    let suite = aso_data::SyntheticSuite::demo(1);
    let tasks: Vec<_> = suite.tasks().iter().take(2).map(|t| &t.name).collect();
    let settings = format!(
        "[data]\nmax_train = 16\nmax_eval = 8\n[stream]\ntasks = {tasks:?}\n[method]\nname = \"{method}\"\n[train]\n\
         batch_size = 8\nmicro_batch = 8\n[eval]\nmax_new_tokens = 4\n"
    );
    std::fs::write(&config, settings).unwrap();
    let run = dir.join(method);
    succeed(&["run", text(&config), "--out", text(&run), "--quiet"]);
    run
}

#[test]
fn tasks_of_a_run_are_compared_where_there_are_several_adapters() {
    let dir = tempfile::tempdir().unwrap();
    for method in ["o-lora", "per-task"] {
        let run = short_run(dir.path(), method);
        let shown = succeed(&["similarity", "--run", text(&run), "--examples", "4"]);
        assert!(shown.contains("attribution similarity"), "{shown}");
        assert!(shown.contains("subspace overlap"), "{shown}");
        assert!(shown.contains("response of A"), "{shown}");
        let file = std::fs::read_to_string(run.join("similarity.json")).unwrap();
        let matrices: serde_json::Value = serde_json::from_str(&file).unwrap();
        let entry = |measure: &str, i: usize, j: usize| matrices[measure][i][j].as_f64().unwrap();
        for measure in ["attribution", "overlap"] {
            for i in 0..2 {
                assert!((entry(measure, i, i) - 1.0).abs() < 1e-6, "{measure}");
            }
            let (above, below) = (entry(measure, 0, 1), entry(measure, 1, 0));
            assert!((above - below).abs() < 1e-9, "{measure}: {above} {below}");
            assert!(above < 1.0, "{measure}: {above}");
        }
        assert_ne!(entry("response", 0, 1), entry("response", 1, 0));

        // The same, named one by one.
        let adapters = std::fs::read_dir(run.join("adapters")).unwrap();
        let mut adapters: Vec<_> = adapters.map(|entry| entry.unwrap().path()).collect();
        adapters.sort();
        let out = dir.path().join("named.json");
        let data = [
            "--set",
            "data.max_train=16",
            "--set",
            "data.format=\"embedded\"",
        ];
        let mut arguments = vec!["similarity", "--model", "embedded:demo", "--examples", "4"];
        arguments.extend(adapters.iter().flat_map(|dir| ["--adapter", text(dir)]));
        arguments.extend(data);
        arguments.extend(["--out", text(&out)]);
        succeed(&arguments);
        let named = std::fs::read_to_string(&out).unwrap();
        let named: serde_json::Value = serde_json::from_str(&named).unwrap();
        assert_eq!(named, matrices);
    }
    let arguments = ["similarity", "--model", "embedded:demo"];
    fail(&arguments, &["--adapter", "found none"]);
    let run = short_run(dir.path(), "multi-task");
    let why = &["multi-task", "one adapter for all tasks"];
    fail(&["similarity", "--run", text(&run)], why);
    assert!(!run.join("similarity.json").exists());
    succeed(&["eval", "--run", text(&run)]);
    let arguments = ["run", "--continue", text(&run), "--tasks", "number-notes"];
    fail(&arguments, &["multi-task", "learns all tasks at once"]);

    // Each task by its own adapter, as the run itself scored it.
    let run = dir.path().join("per-task");
    let shown = succeed(&["eval", "--run", text(&run), "--json"]);
    let scores: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let results = std::fs::read_to_string(run.join("results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&results).unwrap();
    assert_eq!(scores["scores"], results["accuracy"][1]);
    let arguments = ["eval", "--run", text(&run), "--tasks", "number-notes"];
    fail(&arguments, &["per-task", "none for number-notes"]);
    let arguments = [
        "predict",
        "--run",
        text(&run),
        "--input",
        "x",
        "--output",
        "y",
    ];
    fail(&arguments, &["per-task", "--adapter"]);
}

/// Every measure from its definition: whose A, on whose inputs, on whose batch.
#[test]
fn rows_are_adapters_and_columns_are_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let run = short_run(dir.path(), "o-lora");
    let config = RunConfig::load(&run.join("config.toml"), &[]).unwrap();
    let mut loaded = load_model(&config.model, &Device::flex(), &mut Silent).unwrap();
    let library = open_library(&config.data).unwrap();
    let vocabulary = loaded.model.vocabulary();
    let names = config.tasks().unwrap();
    let tasks: Vec<TrainedTask> = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let task = Task::load(library.as_ref(), name, &config, &loaded.codec, vocabulary);
            let mut examples = task.unwrap().train;
            examples.truncate(3);
            TrainedTask {
                name: name.clone(),
                adapter: Adapter::load(&adapter_dir(&run, index, name)).unwrap(),
                examples,
            }
        })
        .collect();
    let attributor = Attributor::preset(Preset::Aso, MAX_PATH_ROWS);
    let found = TaskSimilarities::measure(&mut loaded.model, &loaded.codec, &tasks, &attributor);
    let found = found.unwrap();
    assert_eq!(found.tasks, names);

    // What task 1 feeds the layers, with its own adapter.
    loaded.model.set_active(&tasks[1].adapter, 0.0).unwrap();
    let inputs = Arc::new(InputCovariance::default());
    let context = ForwardContext {
        inputs: Some(inputs.clone()),
        ..ForwardContext::inference()
    };
    for example in &tasks[1].examples {
        let batch = loaded.codec.batch(&[example]).unwrap();
        let _ = loaded.model.answer_logits(&batch, &context);
    }
    let covariances: BTreeMap<String, Vec<f32>> = inputs
        .take()
        .into_iter()
        .map(|(layer, sum)| (layer, sum.into_data().iter::<f32>().collect()))
        .collect();
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let layers = &tasks[0].adapter.weights;
    let response = |(layer, weights): (&String, &LoraWeights)| {
        input_response(&weights.a, &covariances[layer], weights.d_in).unwrap()
    };
    assert_eq!(
        found.response[0][1],
        Some(mean(layers.iter().map(response).collect()))
    );
    let overlap = |(layer, weights): (&String, &LoraWeights)| {
        let other = &tasks[1].adapter.weights[layer];
        subspace_overlap(&weights.a, &other.a, weights.d_in).unwrap()
    };
    assert_eq!(
        found.overlap[0][1],
        Some(mean(layers.iter().map(overlap).collect()))
    );

    // Both adapters on the batch of each of the two tasks.
    let rho = |batch: usize| {
        let rows: Vec<_> = tasks[batch].examples.iter().collect();
        let batch = loaded.codec.batch(&rows).unwrap();
        let [left, right] = [0, 1].map(|adapter| {
            let mut model = loaded.model.clone();
            model.set_active(&tasks[adapter].adapter, 0.0).unwrap();
            let scores = attributor.scores(&model, &batch, AdapterScope::All);
            scores.unwrap().unwrap()
        });
        Similarity::between(&left, &right).mean().unwrap()
    };
    assert_eq!(found.attribution[0][1], Some(mean(vec![rho(0), rho(1)])));
}
