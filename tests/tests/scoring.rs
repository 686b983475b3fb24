//! Choosing the most likely label, against generating an answer.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use aso_backbones::{Backbone, GenerationConfig};
use aso_data::Split;
use aso_lora::AdapterScope;
use aso_trainer::config::EvalMode;
use aso_trainer::evaluate::Evaluator;
use aso_trainer::events::Silent;
use aso_trainer::load::{EMBEDDED_SUITE_SEED, load_adapters, load_model, open_library};
use aso_trainer::run::Run;
use aso_trainer::state::adapter_dir;
use aso_trainer::{RunConfig, Task};
use burn::tensor::Device;
use common::{fail, results, succeed, text};

/// A label of more than half of all probability wins in every way: at each step its token has more than half, so
/// greedy decoding follows it.
#[test]
fn both_modes_agree_where_a_label_has_most_of_the_probability() {
    let mut sure = 0;
    for model in ["embedded:demo", "embedded:demo-llama"] {
        let dir = tempfile::tempdir().unwrap();
        let set = [
            &format!("model.path={model}"),
            "stream.tasks=[\"topic-news\"]",
            "method.name=inc-lora",
            "train.steps=40",
            "train.batch_size=16",
            "data.max_eval=100",
            "eval.zero_shot=false",
            "eval.max_new_tokens=8",
        ];
        let set = set.map(str::to_owned);
        let mut config = RunConfig::parse("", Path::new("./scoring"), &set).unwrap();
        let run = Run::open(config.clone(), dir.path(), false).unwrap();
        let (device, stop) = (Device::flex(), AtomicBool::new(false));
        run.execute(&device, &mut Silent, &stop).unwrap();

        let mut loaded = load_model(&config.model, &device, &mut Silent).unwrap();
        let adapter = adapter_dir(dir.path(), 0, "topic-news");
        load_adapters(&mut loaded.model, &[adapter], &loaded.fingerprint, false).unwrap();
        let library = open_library(&config.data).unwrap();
        config.eval.mode = EvalMode::Score;
        let task = Task::load(
            library.as_ref(),
            "topic-news",
            &config,
            &loaded.codec,
            loaded.model.vocabulary(),
        )
        .unwrap();
        let evaluator = |mode| Evaluator {
            codec: &loaded.codec,
            mode,
            batch_size: 32,
            generation: GenerationConfig::greedy(config.eval.max_new_tokens),
            stop: &[],
        };
        let predictions = |mode| {
            let scope = AdapterScope::All;
            let evaluator = evaluator(mode);
            evaluator.predictions(&loaded.model, &task, scope, &mut |_| {})
        };
        let generated = predictions(EvalMode::Generate).unwrap();
        let chosen = predictions(EvalMode::Score).unwrap();
        let likelihoods = evaluator(EvalMode::Score)
            .log_likelihoods(&loaded.model, &task, AdapterScope::All, &mut |_| {})
            .unwrap();
        let labels = &task.labels.as_ref().unwrap().names;
        for (at, row) in likelihoods.iter().enumerate() {
            let label = labels
                .iter()
                .position(|label| *label == chosen[at])
                .unwrap();
            assert!(row.iter().all(|value| *value <= row[label]));
            if row[label].exp() > 0.5 {
                assert_eq!(generated[at], chosen[at], "{model}, example {at}");
                sure += 1;
            }
        }
    }
    // Of 200; after 40 steps the models are sure of most.
    assert!(sure >= 50, "only {sure} examples were compared");
}

/// The text of the right answer has the ids that training gave it.
#[test]
fn labels_are_encoded_as_answers_are() {
    for model in ["embedded:demo", "embedded:demo-llama"] {
        let set = [format!("model.path={model}")];
        let config = RunConfig::parse("", Path::new("./scoring"), &set).unwrap();
        let loaded = load_model(&config.model, &Device::flex(), &mut Silent).unwrap();
        let suite = aso_data::SyntheticSuite::demo(EMBEDDED_SUITE_SEED);
        for task in suite.tasks() {
            let examples = &task.split(Split::Test)[..20];
            let encoder = loaded.codec.encoder(512, 50).unwrap();
            let encoded = encoder.encode_all("test", examples).unwrap();
            let set = encoder.answers(examples, &task.labels).unwrap();
            for (at, (example, encoded)) in examples.iter().zip(&encoded).enumerate() {
                let label = task
                    .labels
                    .iter()
                    .position(|label| *label == example.target);
                assert_eq!(set.of(at)[label.unwrap()], encoded.target);
            }
        }
    }
}

#[test]
fn runs_and_evaluations_choose_among_labels_if_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (config, run) = (dir.path().join("run.toml"), dir.path().join("run"));
    std::fs::write(
        &config,
        "[stream]\ntasks = [\"topic-news\"]\n[train]\nsteps = 5\n[data]\nmax_eval = 20\n[eval]\nmode = \"score\"",
    )
    .unwrap();
    succeed(&["run", text(&config), "--out", text(&run)]);
    let expected = results(&run)["accuracy"][0][0].as_f64().unwrap();
    let score = |more: &[&str]| {
        let arguments = [&["eval", "--run", text(&run), "--json"], more].concat();
        let printed = succeed(&arguments);
        let scores: serde_json::Value = serde_json::from_str(&printed).unwrap();
        scores["scores"][0].as_f64().unwrap()
    };
    assert_eq!(score(&[]), expected);
    assert_eq!(score(&["--mode", "score"]), expected);
    score(&["--mode", "generate"]);
}

/// What is chosen after the last task is what `aso eval` chooses, each task by its own adapter where it has one, and asking for it
/// later adds the same.
#[test]
fn the_last_row_is_chosen_too_if_asked() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("run.toml");
    std::fs::write(
        &config,
        "[stream]\ntasks = [\"topic-news\", \"sentiment-reviews\"]\n[train]\nsteps = 8\n[data]\nmax_eval = 30\n[eval]\nmax_new_tokens = 6",
    )
    .unwrap();
    for method in ["o-lora", "seq-lora", "per-task", "multi-task"] {
        let run = |name: &str, choose: bool| {
            let out = dir.path().join(format!("{method}-{name}"));
            let method = format!("method.name={method}");
            let choose = format!("eval.choose_last={choose}");
            let settings = ["--set", &method, "--set", &choose];
            let arguments = ["run", text(&config), "--out", text(&out), "--resume"];
            succeed(&[&arguments[..], &settings[..]].concat());
            out
        };
        let found = results(&run("asked", true));
        let later = run("later", false);
        let without = results(&later);
        assert!(without.get("chosen").is_none() && without.get("ap_chosen").is_none());
        assert_eq!(without["accuracy"], found["accuracy"]);
        let later = run("later", true);
        assert_eq!(results(&later), found, "{method}");

        let printed = succeed(&["eval", "--run", text(&later), "--mode", "score", "--json"]);
        let scores: serde_json::Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(scores["scores"], found["chosen"], "{method}");
        assert_eq!(scores["average"], found["ap_chosen"], "{method}");
    }
    let report = |name: &str| succeed(&["report", text(&dir.path().join(name))]);
    assert!(report("o-lora-later").contains("AP chosen"));

    // A further task makes another model.
    let run = dir.path().join("o-lora-later");
    succeed(&["run", "--continue", text(&run), "--tasks", "topic-forum"]);
    let printed = succeed(&["eval", "--run", text(&run), "--mode", "score", "--json"]);
    let scores: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(scores["scores"], results(&run)["chosen"]);
}

#[test]
fn a_task_without_labels_cannot_be_scored() {
    let dir = tempfile::tempdir().unwrap();
    let task = dir.path().join("mine");
    std::fs::create_dir(&task).unwrap();
    let line = "{\"input\": \"a good film\", \"target\": \"good\"}\n";
    for split in ["train.jsonl", "test.jsonl"] {
        std::fs::write(task.join(split), line).unwrap();
    }
    let data = text(dir.path());
    let eval = ["eval", "--model", "embedded:demo", "--data", data];
    succeed(&eval);
    let parts = ["task `mine`", "labels.json", "eval.mode"];
    fail(&[&eval[..], &["--mode", "score"]].concat(), &parts);
    let config = dir.path().join("run.toml");
    let settings = format!(
        "[data]\nformat = \"jsonl\"\npath = '{data}'\n[stream]\ntasks = [\"mine\"]\n[eval]\nmode = \"score\""
    );
    std::fs::write(&config, settings).unwrap();
    let out = dir.path().join("run");
    fail(&["run", text(&config), "--out", text(&out)], &parts);
    let last = ["eval.mode=generate", "eval.choose_last=true"];
    let last = last.map(|setting| ["--set", setting]).concat();
    let run = ["run", text(&config), "--out", text(&out)];
    fail(&[&run[..], &last[..]].concat(), &parts);
    std::fs::write(task.join("labels.json"), "[\"good\", \"bad\"]").unwrap();
    succeed(&[&eval[..], &["--mode", "score"]].concat());
}
