//! A causal model through the commands.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;

use aso_data::TextTokenizer;
use aso_tests::{assert_close, read_tensors, shared};
use common::{fail, results, succeed, text};

#[test]
fn predict_and_probe_give_transformers_figures() {
    let Some(model) = shared("models/llama-mini-clb") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let expected: serde_json::Value =
        serde_json::from_slice(&fs::read(model.join("expected.json")).unwrap()).unwrap();
    let prompts: Vec<String> = serde_json::from_value(expected["prompts"].clone()).unwrap();
    let input = dir.path().join("in.jsonl");
    let lines = prompts
        .iter()
        .map(|prompt| format!("{}\n", serde_json::json!({"input": prompt})));
    fs::write(&input, lines.collect::<String>()).unwrap();
    let output = dir.path().join("out.jsonl");
    let arguments = ["predict", "--model", text(&model), "--max-new-tokens", "12"];
    for batch_size in ["1", "5"] {
        let files = ["--input", text(&input), "--output", text(&output)];
        let batch_size = ["--batch-size", batch_size];
        succeed(&[arguments.as_slice(), &files, &batch_size].concat());
        let tokenizer = TextTokenizer::from_file(model.join("tokenizer.json")).unwrap();
        let tokens: Vec<Vec<u32>> =
            serde_json::from_value(expected["greedy_new_tokens"].clone()).unwrap();
        let found = fs::read_to_string(&output).unwrap();
        assert_eq!(found.lines().count(), tokens.len());
        for (line, tokens) in found.lines().zip(&tokens) {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["prediction"], tokenizer.decode(tokens).unwrap());
        }
    }
    let out = dir.path().join("probe.safetensors");
    let batch = model.join("batch.json");
    succeed(&[
        "probe",
        "--model",
        text(&model),
        "--batch",
        text(&batch),
        "--out",
        text(&out),
    ]);
    let tensors = read_tensors(&out);
    let loss = expected["loss"].as_f64().unwrap() as f32;
    assert_close("loss", &tensors["loss"].1, &[loss], 1e-4);
    let (shape, logits) = &tensors["logits"];
    let first = (shape[1] - 1) * shape[2];
    let last: Vec<f32> =
        serde_json::from_value(expected["logits_row0_last_pos_first16"].clone()).unwrap();
    assert_close("logits", &logits[first..first + 16], &last, 1e-4);
}

/// The configuration of a T5 run with another `model.path`: trains, resumes, evaluates, and writes adapters
/// under PEFT's doubled `model.model`.
#[test]
fn the_same_configuration_runs_a_causal_model() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("run.toml");
    fs::write(
        &config,
        "[data]\nmax_train = 24\nmax_eval = 10\n[stream]\ntasks = [\"topic-news\", \"topic-forum\"]\n\
         [train]\nbatch_size = 8\n[eval]\nmax_new_tokens = 4\nzero_shot = false\n",
    )
    .unwrap();
    let run = |model: &str, method: &str, extra: &[&str]| {
        let out = dir
            .path()
            .join(format!("{model}-{method}").replace(':', "-"));
        let path = format!("model.path={model}");
        let name = format!("method.name={method}");
        let arguments = ["run", text(&config), "--set", &path, "--set", &name];
        succeed(&[arguments.as_slice(), &["--out", text(&out)], extra].concat());
        out
    };
    for method in ["seq-lora", "inc-lora", "o-lora", "aso-lora"] {
        for model in ["embedded:demo", "embedded:demo-llama"] {
            let out = run(model, method, &[]);
            let finished = results(&out);
            assert_eq!(finished["tasks"].as_array().unwrap().len(), 2);
            let again = run(model, method, &["--resume"]);
            assert_eq!(results(&again), finished);
        }
    }
    let adapter = dir
        .path()
        .join("embedded-demo-llama-aso-lora/adapters/00-topic-news");
    let weights = read_tensors(&adapter.join("adapter_model.safetensors"));
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    assert!(weights.contains_key(name), "{:?}", weights.keys());
    assert_eq!(weights.len(), 4 * 2 * 2, "q_proj and v_proj of four blocks");
    let adapter_config = fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
    assert!(adapter_config.contains("CAUSAL_LM"), "{adapter_config}");
    let out = dir.path().join("embedded-demo-llama-aso-lora");
    let scores = succeed(&["eval", "--run", text(&out), "--json"]);
    let scores: serde_json::Value = serde_json::from_str(&scores).unwrap();
    assert_eq!(scores["scores"], results(&out)["accuracy"][1]);
    // Every linear layer; half precision, in whose weights no subspace is folded.
    let half = &[
        "model.dtype=bf16",
        "attribution.per_task=true",
        "attribution.compare=alone",
    ][..];
    for extra in [&["lora.target_modules=all-linear"], half] {
        let out = dir.path().join(extra[0].replace(['.', '='], "-"));
        let arguments = [
            "run",
            text(&config),
            "--set",
            "model.path=embedded:demo-llama",
        ];
        let extra = extra.iter().flat_map(|set| ["--set", *set]);
        let extra: Vec<&str> = extra.chain(["--out", text(&out)]).collect();
        succeed(&[arguments.as_slice(), &extra].concat());
    }
}

#[test]
fn what_needs_an_encoder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("run.toml");
    fs::write(&config, "[model]\npath = \"embedded:demo-llama\"\n").unwrap();
    for setting in ["attribution.preset=reference", "attribution.stack=encoder"] {
        let out = dir.path().join("out");
        let arguments = ["run", text(&config), "--set", setting, "--out", text(&out)];
        fail(&arguments, &["causal model has no encoder", "preset `aso`"]);
        assert!(!out.join("config.toml").exists());
    }
}

/// Seeded: the same answers whatever the batch, others with another seed.
#[test]
fn sampling_is_reproducible() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.jsonl");
    fs::write(
        &input,
        "{\"input\": \"the\"}\n{\"input\": \"a b c\"}\n{\"input\": \"it\"}\n",
    )
    .unwrap();
    for model in ["embedded:demo", "embedded:demo-llama"] {
        let predict = |extra: &[&str]| {
            let output = dir.path().join("out.jsonl");
            let arguments = ["predict", "--model", model, "--input", text(&input)];
            let output_argument = ["--output", text(&output), "--max-new-tokens", "8"];
            succeed(&[arguments.as_slice(), &output_argument, extra].concat());
            fs::read_to_string(&output).unwrap()
        };
        let sampled = predict(&["--temperature", "2", "--top-k", "40", "--seed", "1"]);
        let alone = [
            "--temperature",
            "2",
            "--top-k",
            "40",
            "--seed",
            "1",
            "--batch-size",
            "1",
        ];
        assert_eq!(predict(&alone), sampled);
        assert_ne!(
            predict(&["--temperature", "2", "--top-k", "40", "--seed", "2"]),
            sampled
        );
    }
    let output = dir.path().join("out.jsonl");
    let arguments = [
        "predict",
        "--model",
        "embedded:demo",
        "--input",
        text(&input),
        "--output",
        text(&output),
    ];
    for (option, value) in [
        ("--temperature", "0"),
        ("--top-p", "1.5"),
        ("--repetition-penalty", "-1"),
    ] {
        let parts = [
            option.trim_start_matches('-').replace('-', "_"),
            value.to_owned(),
        ];
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        fail(
            &[arguments.as_slice(), &[&format!("{option}={value}")]].concat(),
            &parts,
        );
    }
}
