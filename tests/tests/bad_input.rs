//! Bad input ends with exit code 2 and an error that names the file, key or value; never with a panic.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use aso_tests::{fixture, root};
use common::{fail, text};

/// A model of either family and one of its tensors, which is not square.
const MODELS: [(&str, &str); 2] = [
    ("t5/v1_1", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    (
        "llama/llama_gqa_llama3",
        "model.layers.0.mlp.down_proj.weight",
    ),
];

/// A writable copy of a fixture model.
fn copy_of(model: &str, dir: &Path) -> PathBuf {
    let copy = dir.join("model");
    fs::create_dir(&copy).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture(model).join(file), copy.join(file)).unwrap();
    }
    copy
}

fn model(dir: &Path) -> PathBuf {
    copy_of("t5/v1_1", dir)
}

fn probe(model: &Path, batch: &Path, parts: &[&str]) {
    let out = model.join("out.safetensors");
    let arguments = [
        "probe",
        "--model",
        text(model),
        "--batch",
        text(batch),
        "--out",
        text(&out),
    ];
    fail(&arguments, parts);
    assert!(!out.exists(), "something was written");
}

fn batch() -> PathBuf {
    fixture("t5/v1_1/batch.json")
}

/// Rewrites the JSON header of a safetensors file.
fn edit_header(path: &Path, edit: impl Fn(&mut serde_json::Value)) {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(&mut header);
    let header = header.to_string();
    let mut edited = (header.len() as u64).to_le_bytes().to_vec();
    edited.extend_from_slice(header.as_bytes());
    edited.extend_from_slice(&bytes[8 + length..]);
    fs::write(path, edited).unwrap();
}

#[test]
fn missing_model_files() {
    let dir = tempfile::tempdir().unwrap();
    probe(
        &dir.path().join("nowhere"),
        &batch(),
        &["nowhere", "config.json"],
    );
    let copy = model(dir.path());
    fs::remove_file(copy.join("model.safetensors")).unwrap();
    probe(
        &copy,
        &batch(),
        &[text(&copy), "no weights", "model.safetensors"],
    );
    fs::remove_file(copy.join("config.json")).unwrap();
    probe(&copy, &batch(), &["config.json"]);
}

#[test]
fn tensors_that_do_not_fit() {
    MODELS.into_iter().for_each(check_tensors);
}

fn check_tensors((model, tensor): (&str, &str)) {
    let dir = tempfile::tempdir().unwrap();
    let copy = copy_of(model, dir.path());
    let batch = || fixture(&format!("{model}/batch.json"));
    let weights = copy.join("model.safetensors");
    let original = fs::read(&weights).unwrap();
    edit_header(&weights, |header| {
        let shape = header[tensor]["shape"].as_array_mut().unwrap();
        shape.reverse();
    });
    probe(
        &copy,
        &batch(),
        &["model.safetensors", tensor, "shape", "expected"],
    );

    fs::write(&weights, &original).unwrap();
    edit_header(&weights, |header| {
        let moved = header.as_object_mut().unwrap().remove(tensor).unwrap();
        header["surplus.weight"] = moved;
    });
    probe(&copy, &batch(), &[tensor, "missing"]);

    fs::write(&weights, &original).unwrap();
    edit_header(&weights, |header| {
        let end = header[tensor]["data_offsets"][1].as_u64().unwrap();
        header["surplus.weight"] = serde_json::json!(
            {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
        );
    });
    probe(&copy, &batch(), &["surplus.weight"]);

    fs::write(&weights, &original).unwrap();
    edit_header(&weights, |header| header[tensor]["dtype"] = "I32".into());
    probe(&copy, &batch(), &[tensor, "I32", "F32"]);
}

#[test]
fn damaged_weight_files() {
    MODELS.into_iter().for_each(check_damage);
}

fn check_damage((model, _): (&str, &str)) {
    let dir = tempfile::tempdir().unwrap();
    let copy = copy_of(model, dir.path());
    let batch = || fixture(&format!("{model}/batch.json"));
    let weights = copy.join("model.safetensors");
    let original = fs::read(&weights).unwrap();
    fs::write(&weights, &original[..original.len() - 5]).unwrap();
    let expected = original.len().to_string();
    probe(
        &copy,
        &batch(),
        &["model.safetensors", &expected, "truncated"],
    );
    fs::write(&weights, &original[..100]).unwrap();
    probe(&copy, &batch(), &["model.safetensors", "truncated"]);
    fs::write(&weights, [1, 2, 3]).unwrap();
    probe(&copy, &batch(), &["model.safetensors", "3 bytes"]);
    fs::write(&weights, [0xff; 64]).unwrap();
    probe(&copy, &batch(), &["model.safetensors", "header"]);
    let mut garbage = 16u64.to_le_bytes().to_vec();
    garbage.extend_from_slice(&[b'x'; 16]);
    fs::write(&weights, garbage).unwrap();
    probe(
        &copy,
        &batch(),
        &["model.safetensors", "not a valid safetensors file"],
    );
}

#[test]
fn configurations_of_other_models() {
    let dir = tempfile::tempdir().unwrap();
    let copy = model(dir.path());
    let config = copy.join("config.json");
    fs::write(&config, r#"{"model_type": "bert"}"#).unwrap();
    probe(
        &copy,
        &batch(),
        &["config.json", "`model_type`", "bert", "t5"],
    );
    fs::write(&config, "{").unwrap();
    probe(&copy, &batch(), &["config.json", "JSON"]);
    fs::write(&config, r#"{"d_model": 16}"#).unwrap();
    probe(&copy, &batch(), &["config.json", "model_type"]);
    for model in ["t5", "llama"] {
        let wide = r#"{"model_type": "MODEL", "d_model": "wide", "hidden_size": "wide"}"#;
        fs::write(&config, wide.replace("MODEL", model)).unwrap();
        probe(&copy, &batch(), &["config.json", "wide"]);
    }
}

#[test]
fn llama_configurations_that_are_not_supported() {
    let model = "llama/llama_gqa_llama3";
    let dir = tempfile::tempdir().unwrap();
    let copy = copy_of(model, dir.path());
    let batch = fixture(&format!("{model}/batch.json"));
    let config = copy.join("config.json");
    let original: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let check = |key: &str, value: serde_json::Value, parts: &[&str]| {
        let mut edited = original.clone();
        edited[key] = value;
        fs::write(&config, edited.to_string()).unwrap();
        probe(&copy, &batch, &[&["config.json", key], parts].concat());
    };
    use serde_json::json;
    check("model_type", json!("mixtral"), &["mixtral", "mistral"]);
    check("model_type", json!("qwen2_moe"), &["qwen2_moe", "qwen2"]);
    check(
        "rope_parameters",
        json!({"rope_type": "yarn", "factor": 2.0}),
        &["yarn", "llama3"],
    );
    check(
        "rope_parameters",
        json!({"rope_type": "llama3"}),
        &["factor"],
    );
    check("hidden_act", json!("gelu"), &["gelu", "silu"]);
    check("num_key_value_heads", json!(4), &["divisor"]);
    check(
        "quantization_config",
        json!({"quant_method": "gptq"}),
        &["quantisation"],
    );
    // Sizes that do not belong to the weights.
    let mut edited = original.clone();
    edited["intermediate_size"] = json!(7);
    fs::write(&config, edited.to_string()).unwrap();
    probe(
        &copy,
        &batch,
        &["model.layers.0.mlp.gate_proj.weight", "shape", "7"],
    );
    edited = original.clone();
    edited["attention_bias"] = json!(true);
    fs::write(&config, edited.to_string()).unwrap();
    probe(
        &copy,
        &batch,
        &["model.layers.0.self_attn.q_proj.bias", "missing"],
    );
    fs::write(&config, original.to_string()).unwrap();
    fs::write(
        copy.join("generation_config.json"),
        r#"{"eos_token_id": [2, 4000]}"#,
    )
    .unwrap();
    probe(
        &copy,
        &batch,
        &["generation_config.json", "eos_token_id", "4000"],
    );
}

#[test]
fn shards_that_are_missing() {
    let model = "llama/llama_bf16_sharded";
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("model");
    fs::create_dir(&copy).unwrap();
    let index = "model.safetensors.index.json";
    let shards = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    for file in ["config.json", index, shards[0], shards[1]] {
        fs::copy(fixture(model).join(file), copy.join(file)).unwrap();
    }
    let batch = fixture(&format!("{model}/batch.json"));
    let stored = fs::read_to_string(copy.join(index)).unwrap();
    let swapped = stored.replacen(shards[0], shards[1], 1);
    fs::write(copy.join(index), swapped).unwrap();
    probe(&copy, &batch, &[index, shards[1], "does not hold it"]);
    fs::write(copy.join(index), stored).unwrap();
    fs::remove_file(copy.join(shards[1])).unwrap();
    probe(&copy, &batch, &[shards[1]]);
}

#[test]
fn batches_that_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("batch.json");
    let model = fixture("t5/v1_1");
    let out = dir.path().join("out.safetensors");
    let probe = |json: &str, parts: &[&str]| {
        fs::write(&path, json).unwrap();
        let arguments = [
            "probe",
            "--model",
            text(&model),
            "--batch",
            text(&path),
            "--out",
            text(&out),
        ];
        fail(&arguments, &[&["batch.json"], parts].concat());
        assert!(!out.exists());
    };
    let mask = r#""attention_mask": [[1, 1]]"#;
    probe(
        &format!(r#"{{"input_ids": [[5, 99999]], {mask}, "labels": [[3]]}}"#),
        &["input_ids", "row 0", "position 1", "99999", "vocabulary"],
    );
    probe(
        &format!(r#"{{"input_ids": [[5, 6]], {mask}, "labels": [[-7]]}}"#),
        &["labels", "-7", "vocabulary"],
    );
    probe(
        &format!(r#"{{"input_ids": [[5, 6], [7]], {mask}, "labels": [[3], [3]]}}"#),
        &["input_ids", "row 1"],
    );
    probe(
        &format!(r#"{{"input_ids": [[5, 6]], {mask}}}"#),
        &["labels"],
    );
    probe(r#"{"input_ids": [[5,"#, &["line 1"]);
    let model = fixture("llama/llama_mha_tied");
    fs::write(
        &path,
        format!(r#"{{"input_ids": [[5, 6]], {mask}, "labels": [[3]]}}"#),
    )
    .unwrap();
    let arguments = [
        "probe",
        "--model",
        text(&model),
        "--batch",
        text(&path),
        "--out",
        text(&out),
    ];
    fail(
        &arguments,
        &[
            "batch.json",
            "labels",
            "2 columns as in `input_ids`",
            "1 columns",
        ],
    );
}

#[test]
fn adapters_that_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.safetensors");
    let adapter = dir.path().join("adapter");
    let probe = |parts: &[&str]| {
        let model = fixture("t5/v1_0");
        let batch = fixture("t5/v1_0/batch.json");
        let arguments = [
            "probe",
            "--model",
            text(&model),
            "--adapter",
            text(&adapter),
            "--batch",
            text(&batch),
            "--out",
            text(&out),
        ];
        fail(&arguments, parts);
    };
    probe(&["adapter_config.json"]);
    fs::create_dir(&adapter).unwrap();
    let source = fixture("t5/v1_0/adapters/task0");
    let copy = |file: &str| fs::copy(source.join(file), adapter.join(file)).unwrap();
    copy("adapter_config.json");
    probe(&["adapter_model.safetensors"]);
    copy("adapter_model.safetensors");
    let config = adapter.join("adapter_config.json");
    let edit = |edit: &dyn Fn(&mut serde_json::Value)| {
        copy("adapter_config.json");
        let mut value: serde_json::Value =
            serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        edit(&mut value);
        fs::write(&config, value.to_string()).unwrap();
    };
    edit(&|value| value["peft_type"] = "IA3".into());
    probe(&["adapter_config.json", "peft_type", "IA3", "LORA"]);
    edit(&|value| value["use_dora"] = true.into());
    probe(&["use_dora"]);
    edit(&|value| value["init_lora_weights"] = "pissa".into());
    probe(&["init_lora_weights", "pissa", "change the base weights"]);
    edit(&|value| value["alpha_pattern"] = serde_json::json!({ "(?!q)": 8 }));
    probe(&["adapter_config.json", "alpha_pattern", "(?!q)"]);
    edit(&|value| value["r"] = 5.into());
    probe(&["adapter_model.safetensors", "lora_A", "expected [5"]);
    // An adapter of another model.
    copy("adapter_config.json");
    let mut sidecar = serde_json::json!({
        "format": 1, "task": "a", "order": 0, "kind": "subspace",
        "base_model_fingerprint": "sha256:00",
    });
    let path = adapter.join("aso_subspace.json");
    fs::write(&path, sidecar.to_string()).unwrap();
    probe(&["adapter", "sha256:00"]);
    sidecar["kind"] = "whatever".into();
    fs::write(&path, sidecar.to_string()).unwrap();
    probe(&["aso_subspace.json", "whatever"]);
    sidecar["format"] = 2.into();
    fs::write(&path, sidecar.to_string()).unwrap();
    probe(&["aso_subspace.json", "format 2", "expected 1"]);
    fs::remove_file(&path).unwrap();
    edit_header(&adapter.join("adapter_model.safetensors"), |header| {
        let name = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight";
        let tensor = header.as_object_mut().unwrap().remove(name).unwrap();
        let other = name.replace("block.0", "block.9");
        header[other] = tensor;
    });
    probe(&["block.0.layer.0.SelfAttention.q.lora_A.weight", "missing"]);
}

/// A task folder of the CL benchmark with the given training records.
fn benchmark(dir: &Path, train: &str) -> PathBuf {
    let root = dir.join("data");
    let task = root.join("SC/tiny");
    fs::create_dir_all(&task).unwrap();
    fs::write(
        root.join("instruction_config.json"),
        r#"{"SC": [{"instruction_type": "zero-shot", "instruction": "What?\n"}]}"#,
    )
    .unwrap();
    fs::write(task.join("labels.json"), r#"["good", "bad"]"#).unwrap();
    let right = r#"[{"sentence": "a", "label": "good"}]"#;
    fs::write(task.join("test.json"), right).unwrap();
    fs::write(task.join("dev.json"), right).unwrap();
    fs::write(task.join("train.json"), train).unwrap();
    root
}

fn run_config(dir: &Path, text_of_config: &str, parts: &[&str]) {
    let config = dir.join("run.toml");
    fs::write(&config, text_of_config).unwrap();
    let out = dir.join("out");
    fail(&["run", text(&config), "--out", text(&out)], parts);
    assert!(!out.join("config.toml").exists(), "the run was started");
}

#[test]
fn malformed_data() {
    let cases: [(&str, &[&str]); 6] = [
        ("[{", &["train.json", "JSON"]),
        (
            r#"[{"sentence": "a", "label": "good"}, {"sentence": "b"}]"#,
            &["train.json", "record 1", "label"],
        ),
        (
            r#"[{"sentence": "a", "label": "god"}]"#,
            &["train.json", "record 0", "god", "good", "bad"],
        ),
        (
            r#"[{"sentence": 3, "label": "good"}]"#,
            &["train.json", "record 0", "sentence"],
        ),
        ("[]", &["train.json", "empty task"]),
        (r#"{"Instances": []}"#, &["train.json", "expected"]),
    ];
    for (train, parts) in cases {
        let dir = tempfile::tempdir().unwrap();
        benchmark(dir.path(), train);
        let config =
            "[data]\nformat = \"cl-benchmark\"\npath = \"data\"\n[stream]\ntasks = [\"tiny\"]\n";
        run_config(dir.path(), config, parts);
    }
    let dir = tempfile::tempdir().unwrap();
    benchmark(dir.path(), r#"[{"sentence": "a", "label": "good"}]"#);
    let config =
        "[data]\nformat = \"cl-benchmark\"\npath = \"data\"\n[stream]\ntasks = [\"tinny\"]\n";
    run_config(dir.path(), config, &["unknown task `tinny`", "tiny"]);
    let twice = config.replace("[\"tinny\"]", "[\"tiny\", \"SC/tiny\"]");
    run_config(
        dir.path(),
        &twice,
        &["`stream`", "`tiny`", "`SC/tiny`", "same task"],
    );
    let both = config.replace(
        "[\"tinny\"]",
        "[\"tiny\"]\n[eval]\ngeneral_tasks = [\"SC/tiny\"]",
    );
    run_config(
        dir.path(),
        &both,
        &["eval.general_tasks", "`SC/tiny`", "same task"],
    );
    let config = "[data]\nformat = \"jsonl\"\npath = \"lines\"\n[stream]\ntasks = [\"own\"]\n";
    let own = dir.path().join("lines/own");
    fs::create_dir_all(&own).unwrap();
    fs::write(
        own.join("test.jsonl"),
        "{\"input\": \"a\", \"target\": \"b\"}\n",
    )
    .unwrap();
    fs::write(
        own.join("train.jsonl"),
        "{\"input\": \"a\", \"target\": \"b\"}\n{\"input\": \"a\"}\n",
    )
    .unwrap();
    run_config(dir.path(), config, &["train.jsonl", "line 2", "target"]);
}

/// The best adapter on dev can be chosen neither without dev nor where dev is test.
#[test]
fn a_dev_split_that_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("lines/own");
    fs::create_dir_all(&own).unwrap();
    let write = |file: &str, answer: &str| {
        let line = format!("{{\"input\": \"a\", \"target\": \"{answer}\"}}\n");
        fs::write(own.join(file), line).unwrap();
    };
    write("train.jsonl", "b");
    write("test.jsonl", "b");
    let config = "[data]\nformat = \"jsonl\"\npath = \"lines\"\n[stream]\ntasks = [\"own\"]\n\
                  [train]\nsteps = 1\nselect = \"best-on-dev\"\nselect_every = 1\n";
    run_config(
        dir.path(),
        config,
        &["task `own`", "split `dev`", "`train.select`"],
    );
    write("dev.jsonl", "b");
    run_config(
        dir.path(),
        config,
        &[
            "task `own`",
            "1 of its 1 dev examples",
            "`train.select`",
            "data.dev_from_train",
        ],
    );
    write("dev.jsonl", "c");
    let (file, out) = (dir.path().join("run.toml"), dir.path().join("out"));
    common::succeed(&["run", text(&file), "--out", text(&out)]);
}

#[test]
fn a_tokenizer_of_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let tokenizer = root().join("crates/aso-trainer/assets/demo/tokenizer.json");
    fs::copy(tokenizer, model.join("tokenizer.json")).unwrap();
    let parts = ["topic-news", "example 0", "token id", "vocabulary of 43"];
    run_config(dir.path(), "[model]\npath = \"model\"\n", &parts);
    fs::write(model.join("tokenizer.json"), "{}").unwrap();
    run_config(
        dir.path(),
        "[model]\npath = \"model\"\n",
        &["tokenizer.json"],
    );
    fs::remove_file(model.join("tokenizer.json")).unwrap();
    run_config(
        dir.path(),
        "[model]\npath = \"model\"\n",
        &["tokenizer.json"],
    );
}

#[test]
fn malformed_configurations() {
    let dir = tempfile::tempdir().unwrap();
    let check = |config: &str, parts: &[&str]| run_config(dir.path(), config, parts);
    check(
        "[train]\nlrate = 0.1\n",
        &["run.toml:2", "train.lrate", "train.lr"],
    );
    check(
        "[train]\nlr = \"fast\"\n",
        &["run.toml:2", "train.lr", "fast"],
    );
    check("[train\n", &["run.toml:1", "TOML"]);
    check("[lora]\nrank = 0\n", &["run.toml:2", "lora.rank", "0"]);
    check(
        "[method]\nname = \"magic\"\n",
        &["method.name", "magic", "aso-lora"],
    );
    check(
        "[stream]\norder = \"order9\"\n",
        &["stream.order", "order9", "order1"],
    );
    check("[stream]\ntasks = [\"no-such-task\"]\n", &["no-such-task"]);
    check("[model]\npath = \"nowhere\"\n", &["nowhere", "config.json"]);
    check(
        "[model]\nchat_template = \"{{ x\"\n",
        &["model.chat_template", "encoder-decoder"],
    );
    check(
        "[model]\ndtype = \"int4\"\n",
        &["model.dtype", "int4", "bf16"],
    );
    check(
        "[lora]\ntarget_modules = [\"w\"]\n[data]\nmax_train = 2\nmax_eval = 2\n[eval]\nzero_shot = false\n",
        &["target modules", "\"w\"", "wo"],
    );
    fail(
        &["run", text(&dir.path().join("none.toml"))],
        &["none.toml"],
    );
    let config = dir.path().join("run.toml");
    fs::write(&config, "").unwrap();
    fail(
        &["run", text(&config), "--set", "train.lrr=1"],
        &["train.lrr", "train.lr"],
    );
    fail(&["run", text(&config), "--set", "seed"], &["--set seed"]);
}

#[test]
fn devices_and_arguments() {
    let config = ["config", "--example", "demo"];
    fail(
        &[&config[..], &["--device", "cuda:0", "--threads", "0"]].concat(),
        &["--threads"],
    );
    let demo = ["demo", "--device", "cuda:0"];
    if cfg!(not(feature = "cuda")) {
        fail(&demo, &["cuda:0", "--features cuda"]);
    }
    fail(&["demo", "--device", "gpu"], &["gpu", "flex"]);
    fail(&["run"], &["CONFIG"]);
}
