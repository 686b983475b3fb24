//! The commands on good input.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;

use aso_tests::{assert_close, fixture, read_tensors, shared};
use common::{fail, results, run, succeed, text};

/// `aso probe` against the fixtures, with the whole stack of adapters.
#[test]
fn probe_matches_the_fixtures() {
    let dir = tempfile::tempdir().unwrap();
    for variant in ["v1_0", "v1_1", "mt5"] {
        let root = fixture(&format!("t5/{variant}"));
        let adapters = ["task0", "task1", "active"].map(|name| root.join("adapters").join(name));
        let expected = read_tensors(&root.join("expected.safetensors"));
        let scores = read_tensors(&root.join("attribution.safetensors"));
        for preset in ["aso", "reference"] {
            let out = dir.path().join(format!("{variant}-{preset}.safetensors"));
            let batch = root.join("batch.json");
            let mut arguments = vec!["probe", "--model", text(&root), "--batch", text(&batch)];
            for adapter in &adapters {
                arguments.extend(["--adapter", text(adapter)]);
            }
            arguments.extend(["--out", text(&out), "--gradients", "--attribution", preset]);
            succeed(&arguments);
            let found = read_tensors(&out);
            let mut compared = 0;
            for (name, (shape, values)) in &expected {
                let written = ["logits", "loss", "penalty.", "grad."];
                if !written.iter().any(|start| name.starts_with(start)) {
                    continue;
                }
                let (found_shape, found) = &found[name];
                assert_eq!(found_shape, shape, "{variant}: {name}");
                assert_close(name, found, values, 1e-4);
                compared += 1;
            }
            assert!(compared > 20, "{variant}: only {compared} tensors compared");
            for (name, (shape, values)) in &scores {
                let Some(name) = name.strip_prefix(&format!("{preset}.")) else {
                    continue;
                };
                let (found_shape, found) = &found[name];
                assert_eq!(found_shape, shape, "{variant}: {name}");
                if name == "weight" {
                    assert!(
                        (found[0] - values[0]).abs() <= 1e-3,
                        "{variant} {preset}: weight"
                    );
                } else {
                    assert_close(name, found, values, 1e-3);
                }
            }
        }
    }
}

#[test]
fn probe_without_adapters() {
    let dir = tempfile::tempdir().unwrap();
    let (root, out) = (fixture("t5/v1_1"), dir.path().join("out.safetensors"));
    let batch = root.join("batch.json");
    succeed(&[
        "probe",
        "--model",
        text(&root),
        "--batch",
        text(&batch),
        "--out",
        text(&out),
        "--gradients",
    ]);
    let found = read_tensors(&out);
    let expected = read_tensors(&root.join("expected.safetensors"));
    assert_close(
        "logits",
        &found["logits"].1,
        &expected["base.logits"].1,
        1e-4,
    );
    assert_close("loss", &found["loss"].1, &expected["base.loss"].1, 1e-4);
    for (name, value) in [
        ("penalty.orthogonality", 0.0),
        ("penalty.norm", 0.0),
        ("weight", 1.0),
    ] {
        assert_eq!(found[name], (vec![1], vec![value]), "{name}");
    }
    assert!(!found.keys().any(|name| name.starts_with("grad.")));
    // Half precision and shards are read alike.
    let sharded = fixture("t5/v1_1_bf16_sharded");
    let batch = sharded.join("batch.json");
    succeed(&[
        "probe",
        "--model",
        text(&sharded),
        "--batch",
        text(&batch),
        "--out",
        text(&out),
    ]);
    let expected = read_tensors(&sharded.join("expected.safetensors"));
    assert_close(
        "logits",
        &read_tensors(&out)["logits"].1,
        &expected["base.logits"].1,
        1e-4,
    );
}

#[test]
fn probe_of_the_benchmark_checkpoint() {
    let Some(model) = shared("models/t5-mini-clb") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (out, batch) = (dir.path().join("out.safetensors"), model.join("batch.json"));
    succeed(&[
        "probe",
        "--model",
        text(&model),
        "--batch",
        text(&batch),
        "--out",
        text(&out),
    ]);
    let expected: serde_json::Value =
        serde_json::from_slice(&fs::read(model.join("expected.json")).unwrap()).unwrap();
    let found = read_tensors(&out);
    let loss = expected["loss"].as_f64().unwrap() as f32;
    assert_close("loss", &found["loss"].1, &[loss], 1e-4);
    let first: Vec<f32> = expected["logits_row0_pos0_first16"]
        .as_array()
        .unwrap()
        .iter()
        .map(|value| value.as_f64().unwrap() as f32)
        .collect();
    assert_close("logits", &found["logits"].1[..16], &first, 1e-4);
}

#[test]
fn example_configurations_run() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("demo.toml");
    fs::write(&config, succeed(&["config", "--example", "demo"])).unwrap();
    let out = dir.path().join("out");
    let small = ["data.max_train=16", "data.max_eval=8", "train.steps=2"];
    let mut arguments = vec!["run", text(&config), "--out", text(&out), "--json"];
    small
        .iter()
        .for_each(|set| arguments.extend(["--set", set]));
    let printed: serde_json::Value = serde_json::from_str(&succeed(&arguments)).unwrap();
    assert_eq!(printed["tasks"], results(&out)["tasks"]);
    assert_eq!(printed["accuracy"], results(&out)["accuracy"]);

    let Some(data) = shared("data/cl-benchmark") else {
        return;
    };
    let config = dir.path().join("clb.toml");
    fs::write(&config, succeed(&["config", "--example", "cl-benchmark"])).unwrap();
    let out = dir.path().join("clb");
    let data = format!("data.path={}", text(&data));
    let mut arguments = vec!["run", text(&config), "--out", text(&out), "--set", &data];
    let more = [
        "train.batch_size=4",
        "train.micro_batch=4",
        "eval.max_new_tokens=2",
    ];
    small
        .iter()
        .chain(&more)
        .for_each(|set| arguments.extend(["--set", set]));
    succeed(&arguments);
    assert_eq!(
        results(&out)["tasks"],
        serde_json::json!(["dbpedia", "amazon", "agnews"])
    );
}

/// Training options that the other tests do not use, end to end on the built-in model.
#[test]
fn every_method_and_option_runs() {
    let dir = tempfile::tempdir().unwrap();
    let base = [
        "data.max_train=16",
        "data.max_eval=4",
        "train.batch_size=8",
        "train.micro_batch=4",
        "train.steps=3",
        "eval.max_new_tokens=4",
    ];
    let cases: &[&[&str]] = &[
        &[
            "method.name=o-lora",
            "method.penalty=squared-frobenius",
            "method.lambda2=0.1",
        ],
        &[
            "method.name=inc-lora",
            "lora.frozen=stack",
            "lora.target_modules=all-linear",
        ],
        &[
            "method.name=seq-lora",
            "train.schedule=linear",
            "train.warmup_steps=1",
        ],
        &[
            "method.penalty=mean-abs-cosine",
            "attribution.alpha_min=0.1",
        ],
        &[
            "attribution.preset=reference",
            "attribution.interval=2",
            "train.max_grad_norm=0.0",
        ],
        &[
            "attribution.per_task=true",
            "attribution.interval=1",
            "eval.tasks=seen",
        ],
        &[
            "attribution.per_block=true",
            "attribution.interval=1",
            "train.clip=task",
            "eval.tasks=seen+next",
        ],
        &[
            "attribution.stack=encoder",
            "attribution.interval=1",
            "train.length_grouping=false",
        ],
        &[
            "attribution.stack=encoder-readout",
            "attribution.interval=2",
            "attribution.hold=false",
            "attribution.clamp=false",
            "train.steps=4",
        ],
        &[
            "attribution.per_task=true",
            "attribution.compare=reliance",
            "attribution.interval=1",
        ],
    ];
    for (at, case) in cases.iter().enumerate() {
        let config = dir.path().join("empty.toml");
        fs::write(&config, "").unwrap();
        let out = dir.path().join(at.to_string());
        let mut arguments = vec!["run", text(&config), "--out", text(&out), "--quiet"];
        base.iter()
            .chain(*case)
            .for_each(|set| arguments.extend(["--set", set]));
        succeed(&arguments);
        let results = results(&out);
        let count = results["tasks"].as_array().unwrap().len();
        assert_eq!(
            fs::read_dir(out.join("adapters")).unwrap().count(),
            count,
            "{case:?}"
        );
        let weights = results["soft_weights"].as_array().unwrap();
        let measured = weights
            .iter()
            .any(|points| !points.as_array().unwrap().is_empty());
        assert_eq!(measured, results["method"] == "aso-lora", "{case:?}");
        assert!(results["ap"].is_number(), "{case:?}");
    }
    // What `seen+next` did not evaluate is null, never 0.
    let rows = results(&dir.path().join("6"))["accuracy"].clone();
    assert!(rows[0][1].is_number() && rows[0][2].is_null());
    // Without `hold` the weight measured at step 2 of the second task is 1 again at step 3.
    let metrics = fs::read_to_string(dir.path().join("8/metrics.jsonl")).unwrap();
    let lines = metrics
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    // What the loss was made with: lambda1 is 0.5.
    let in_force = |line: serde_json::Value| {
        let number = |key: &str| line[key].as_f64().unwrap();
        (number("loss") - number("cross_entropy")) / (0.5 * number("orthogonality"))
    };
    let weights: Vec<f64> = lines.skip(4).take(4).map(in_force).collect();
    for step in [0, 1, 3] {
        assert!((weights[step] - 1.0).abs() < 1e-5, "{weights:?}");
    }
    assert!((weights[2] - 1.0).abs() > 1e-3, "{weights:?}");
}

/// Before its first task is learned a run would answer as the backbone does.
#[test]
fn a_run_that_learned_nothing_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("run.toml");
    let settings = "[data]\nmax_eval = 2\nmax_train = 8\n[train]\nbatch_size = 8\n\
                    [stream]\ntasks = [\"topic-news\"]\n";
    fs::write(&config, settings).unwrap();
    let out = dir.path().join("out");
    succeed(&["run", text(&config), "--out", text(&out), "--quiet"]);
    let state = out.join("state.json");
    let mut unlearned: serde_json::Value =
        serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    unlearned["trained"] = 0.into();
    fs::write(&state, unlearned.to_string()).unwrap();
    let input = dir.path().join("input.jsonl");
    fs::write(&input, "{\"input\": \"a\"}\n").unwrap();
    let output = dir.path().join("output.jsonl");
    let why = [text(&out), "has not trained a task yet"];
    fail(&["eval", "--run", text(&out)], &why);
    let predict = ["predict", "--run", text(&out), "--input", text(&input)];
    fail(&[&predict[..], &["--output", text(&output)]].concat(), &why);
    assert!(!output.exists());
}

#[test]
fn evaluation_and_prediction_agree_with_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("run.toml");
    fs::write(
        &config,
        "[data]\nmax_eval = 30\nmax_train = 64\n[train]\nbatch_size = 8\n",
    )
    .unwrap();
    for method in ["aso-lora", "seq-lora"] {
        let out = dir.path().join(method);
        let set = format!("method.name={method}");
        succeed(&[
            "run",
            text(&config),
            "--out",
            text(&out),
            "--set",
            &set,
            "--quiet",
        ]);
        let results = results(&out);
        let last = results["accuracy"]
            .as_array()
            .unwrap()
            .last()
            .unwrap()
            .clone();
        let scores: serde_json::Value =
            serde_json::from_str(&succeed(&["eval", "--run", text(&out), "--json"])).unwrap();
        assert_eq!(scores["scores"], last, "{method}");

        // The same through adapter folders and a JSONL file.
        let suite = aso_data::SyntheticSuite::demo(1);
        let task = &suite.tasks()[0];
        let input = dir.path().join("input.jsonl");
        aso_data::jsonl::write_jsonl(&input, &task.test[..30]).unwrap();
        let mut adapters: Vec<_> = fs::read_dir(out.join("adapters"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        adapters.sort();
        if method == "seq-lora" {
            let output = dir.path().join("refused.jsonl");
            let two = [text(&adapters[0]), text(&adapters[1])];
            let refused = run(&[
                "predict",
                "--model",
                "embedded:demo",
                "--adapter",
                two[0],
                "--adapter",
                two[1],
                "--input",
                text(&input),
                "--output",
                text(&output),
            ]);
            assert_eq!(refused.status.code(), Some(2));
            assert!(String::from_utf8_lossy(&refused.stderr).contains("snapshot"));
            adapters = adapters.pop().into_iter().collect();
        }
        let output = dir.path().join(format!("{method}.jsonl"));
        let mut arguments = vec!["predict", "--model", "embedded:demo"];
        for adapter in &adapters {
            arguments.extend(["--adapter", text(adapter)]);
        }
        arguments.extend(["--input", text(&input), "--output", text(&output)]);
        succeed(&arguments);
        let of_run = dir.path().join(format!("{method}-run.jsonl"));
        let arguments = ["predict", "--run", text(&out), "--input", text(&input)];
        succeed(&[&arguments[..], &["--output", text(&of_run)]].concat());
        assert_eq!(fs::read(&of_run).unwrap(), fs::read(&output).unwrap());
        let lines: Vec<serde_json::Value> = fs::read_to_string(&output)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 30);
        let right = lines.iter().filter(|line| line["correct"] == true).count();
        let score = scores["scores"][0].as_f64().unwrap();
        assert!(
            (100.0 * right as f64 / 30.0 - score).abs() < 1e-9,
            "{method}: {right} right"
        );
    }
}

#[test]
fn the_book_shows_every_key() {
    let book = fs::read_to_string(aso_tests::root().join("docs/configuration.md")).unwrap();
    let printed = succeed(&["config", "--example", "cl-benchmark"]);
    assert!(
        book.contains(printed.trim_end()),
        "docs/configuration.md: its block is no longer what `aso config --example cl-benchmark` prints"
    );
}

#[test]
fn help_lists_commands_and_examples() {
    let help = succeed(&["--help"]);
    for part in ["Examples:", "Exit status"] {
        assert!(help.contains(part), "{part}");
    }
    let commands = help.split("Commands:").nth(1).unwrap();
    let commands = commands.lines().skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<&str> = commands
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(commands.len() > 10, "{commands:?}");
    for command in commands.into_iter().filter(|command| *command != "help") {
        assert!(succeed(&[command, "--help"]).contains("Usage"), "{command}");
    }
}

/// Runs on the other layouts of tasks, and their evaluation, which tells the layout by itself.
#[test]
fn every_layout_of_tasks_runs() {
    let dir = tempfile::tempdir().unwrap();
    let trace = r#"[{"prompt": "Which stance?\nText:\nRates rise.\nStance:", "answer": "up"}]"#;
    let superni =
        r#"{"Definition": ["Copy."], "Instances": [{"input": "a b", "output": ["a b", "b a"]}]}"#;
    for (format, task, dev, text_of) in [
        ("trace", "FOMC", "eval", trace),
        ("superni", "task1_copy", "dev", superni),
    ] {
        let data = dir.path().join(format);
        fs::create_dir_all(data.join(task)).unwrap();
        for split in ["train", dev, "test"] {
            fs::write(data.join(task).join(format!("{split}.json")), text_of).unwrap();
        }
        let config = dir.path().join(format!("{format}.toml"));
        let settings = format!(
            "[data]\nformat = \"{format}\"\npath = \"{format}\"\n[stream]\ntasks = [\"{task}\"]\n\
             [train]\nsteps = 1\n[eval]\nmax_new_tokens = 2\n"
        );
        fs::write(&config, settings).unwrap();
        let out = dir.path().join(format!("{format}-out"));
        succeed(&["run", text(&config), "--out", text(&out)]);
        assert_eq!(results(&out)["tasks"], serde_json::json!([task]));
        let model = [
            "eval",
            "--model",
            "embedded:demo",
            "--data",
            text(&data),
            "--json",
        ];
        let scores: serde_json::Value = serde_json::from_str(&succeed(&model)).unwrap();
        assert_eq!(scores["tasks"], serde_json::json!([task]));
    }
}

/// What the model says counts as right when it is one of several right answers, whichever of them.
#[test]
fn an_answer_is_compared_with_every_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data/task1_copy");
    fs::create_dir_all(&data).unwrap();
    let config = dir.path().join("run.toml");
    let settings = "[data]\nformat = \"superni\"\npath = \"data\"\n[stream]\ntasks = [\"task1\"]\n\
         [train]\nsteps = 1\n";
    fs::write(&config, settings).unwrap();
    let run = |name: &str, right: &[&str]| -> serde_json::Value {
        for (split, outputs) in [("train", &["same"][..]), ("test", right)] {
            let task = serde_json::json!({
                "Definition": ["Is the review good or bad?"],
                "Instances": [{ "input": "a fine film", "output": outputs }],
            });
            fs::write(data.join(format!("{split}.json")), task.to_string()).unwrap();
        }
        let out = dir.path().join(name);
        succeed(&["run", text(&config), "--out", text(&out)]);
        let kept = out.join("predictions/00-task1/00-task1.jsonl");
        serde_json::from_str(&fs::read_to_string(kept).unwrap()).unwrap()
    };
    let wrong = run("wrong", &["zebra", "quagga"]);
    let said = wrong["answer"].as_str().unwrap();
    assert_eq!(
        (&wrong["score"], &wrong["expected"]),
        (&0.0.into(), &"zebra".into())
    );
    let right = run("right", &["zebra", said]);
    // What identifies the example does not depend on the answer.
    assert_eq!(
        (&right["score"], &right["expected"]),
        (&1.0.into(), &"zebra".into())
    );
}

#[test]
fn orders_are_listed() {
    let all = succeed(&["orders"]);
    let published = aso_data::order_presets();
    for order in published {
        assert!(all.contains(&order.tasks.join(" > ")), "{}", order.name);
    }
    let one = succeed(&["orders", "Order-6"]);
    assert!(
        one.starts_with("order6: yelp > amazon > MNLI > CB > COPA"),
        "{one}"
    );
    let json: serde_json::Value = serde_json::from_str(&succeed(&["orders", "--json"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), published.len());
    assert_eq!(json[0]["tasks"][3], "agnews");
    common::fail(&["orders", "order99"], &["unknown task order `order99`"]);
}

/// A run has the same bytes without a cache of tokens, with an empty one and with a full one.
#[test]
fn no_result_depends_on_the_token_cache() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let config = dir.path().join("run.toml");
    let settings = "[stream]\ntasks = [\"topic-news\"]\n[train]\nsteps = 3\n[data]\nmax_eval = 20";
    std::fs::write(&config, settings).unwrap();
    let mut runs = Vec::new();
    for (name, set) in [
        ("off", "data.cache=false"),
        ("cold", "data.cache=true"),
        ("warm", "data.cache=true"),
    ] {
        let out = dir.path().join(name);
        let status = common::aso()
            .env("ASO_CACHE", &cache)
            .args(["run", text(&config), "--out", text(&out), "--set", set])
            .output()
            .unwrap()
            .status;
        assert!(status.success());
        // The train and the test examples.
        let kept = std::fs::read_dir(cache.join("tokens")).map_or(0, Iterator::count);
        assert_eq!(kept, if name == "off" { 0 } else { 2 });
        let adapter = std::fs::read(out.join("adapters/00-topic-news/adapter_model.safetensors"));
        runs.push((results(&out), adapter.unwrap()));
    }
    assert!(runs.iter().all(|run| *run == runs[0]));
}
