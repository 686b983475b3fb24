//! `aso similarity` and `aso eval` on runs of different structure.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::path::{Path, PathBuf};

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
        for measure in ["attribution", "overlap", "response"] {
            assert_eq!(matrices[measure].as_array().unwrap().len(), 2, "{measure}");
        }
    }
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
