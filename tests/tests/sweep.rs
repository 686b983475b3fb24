//! Sweeps and tuning from end to end: complete, interrupted, repeated, refused.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use aso_trainer::sweep::Sweep;
use common::{aso, fail, files, run, succeed, text};
use serde_json::Value;

/// Two methods, two orders, two seeds, less one: seven short runs of the built-in model.
const SWEEP: &str = r#"
seeds = [1, 2]
[config]
"data.max_train" = 24
"data.max_eval" = 12
"train.batch_size" = 8
"train.checkpoint_every" = 1
"eval.max_new_tokens" = 4
[orders]
there = ["topic-news", "sentiment-reviews"]
back = ["sentiment-reviews", "topic-news"]
[[methods]]
set = { "method.name" = "aso-lora", "attribution.interval" = 2 }
[[methods]]
label = "sequential"
set = { "method.name" = "seq-lora" }
seeds = [3, 4]
orders = ["there"]
"#;

const RUNS: [&str; 6] = [
    "back/aso-lora/seed-1",
    "back/aso-lora/seed-2",
    "there/aso-lora/seed-1",
    "there/aso-lora/seed-2",
    "there/sequential/seed-3",
    "there/sequential/seed-4",
];

fn write(dir: &Path, content: &str) -> PathBuf {
    let path = dir.join("sweep.toml");
    std::fs::write(&path, content).unwrap();
    path
}

fn start(file: &Path, out: &Path, more: &[&str]) -> Child {
    let mut command = aso();
    command.args(["sweep", text(file), "--out", text(out)]);
    command.args(more);
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let status = std::process::Command::new("kill")
        .args([name, &pid])
        .status();
    assert!(status.unwrap().success());
}

/// Waits for a moment; panics if the child ends before.
fn wait_for(child: &mut Child, what: &str, moment: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !moment() {
        assert!(child.try_wait().unwrap().is_none(), "ended before: {what}");
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A JSON file of a sweep, without what may differ.
fn without_timings(path: &Path) -> Value {
    let mut value = json(path);
    assert!(value.as_object_mut().unwrap().remove("timings").is_some());
    value
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

fn modified(out: &Path) -> Vec<SystemTime> {
    let time = |run: &&str| {
        out.join(run)
            .join("state.json")
            .metadata()
            .unwrap()
            .modified()
    };
    RUNS.iter().map(|run| time(run).unwrap()).collect()
}

#[test]
fn a_whole_sweep_and_interrupted_ones() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), SWEEP);
    let reference = dir.path().join("reference");

    // Nothing is written by a dry run.
    let listed = succeed(&["sweep", text(&file), "--out", text(&reference), "--dry-run"]);
    assert!(
        listed.contains("there: topic-news > sentiment-reviews"),
        "{listed}"
    );
    assert!(RUNS.iter().all(|run| listed.contains(run)), "{listed}");
    assert!(!reference.exists());

    let table = succeed(&["sweep", text(&file), "--out", text(&reference)]);
    assert!(
        table.contains("sequential") && table.contains(" ± "),
        "{table}"
    );
    let sweep = without_timings(&reference.join("sweep.json"));
    let runs = sweep["runs"].as_array().unwrap();
    assert_eq!(runs.len(), RUNS.len());
    for (run, directory) in runs.iter().zip(RUNS) {
        assert_eq!(
            (&run["directory"], &run["status"]),
            (&directory.into(), &"finished".into())
        );
        let results = json(&reference.join(directory).join("results.json"));
        for metric in [
            "ap",
            "bwt",
            "forgetting",
            "fwt",
            "learning_accuracy",
            "seed",
            "method",
        ] {
            assert_eq!(run[metric], results[metric], "{directory}: {metric}");
        }
    }
    let group = &sweep["summary"][2];
    let ap = |at: usize| runs[at]["ap"].as_f64().unwrap();
    assert_eq!(
        (&group["label"], &group["finished"]),
        (&"sequential".into(), &2.into())
    );
    let mean = group["ap"]["mean"].as_f64().unwrap();
    assert!((mean - (ap(4) + ap(5)) / 2.0).abs() < 1e-9);

    // A run of a sweep is a run like any other, with the same numbers.
    let alone = dir.path().join("alone");
    let config = reference.join(RUNS[0]).join("config.toml");
    succeed(&["run", text(&config), "--out", text(&alone)]);
    assert_eq!(
        common::results(&alone),
        common::results(&reference.join(RUNS[0]))
    );

    // Finished runs are not repeated; the table is the same.
    let before = modified(&reference);
    let again = succeed(&["sweep", text(&file), "--out", text(&reference)]);
    assert_eq!(again, table);
    assert_eq!(modified(&reference), before);

    // Two at a time, interrupted: the children stop too, and a later call goes on.
    let out = dir.path().join("interrupted");
    let mut child = start(&file, &out, &["--jobs", "2"]);
    let steps = |run: &str| lines(&out.join(run).join("metrics.jsonl"));
    wait_for(&mut child, "steps", || steps(RUNS[1]) >= 2);
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let listed = succeed(&["sweep", text(&file), "--out", text(&out), "--dry-run"]);
    assert!(listed.contains("missing"), "{listed}");
    let partly = json(&out.join("sweep.json"));
    assert!(partly["runs"][5]["ap"].is_null());
    assert_eq!(partly["runs"][5]["status"], "missing");
    succeed(&["sweep", text(&file), "--out", text(&out), "--jobs", "2"]);
    assert_eq!(without_timings(&out.join("sweep.json")), sweep);

    // Killed: the orphans notice, and a sweep that comes too early waits for them.
    let out = dir.path().join("killed");
    let mut child = start(&file, &out, &["--jobs", "2"]);
    wait_for(&mut child, "steps", || {
        lines(&out.join(RUNS[3]).join("metrics.jsonl")) >= 1
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let table = succeed(&["sweep", text(&file), "--out", text(&out), "--jobs", "3"]);
    assert_eq!(without_timings(&out.join("sweep.json")), sweep);
    assert_eq!(table.replace("killed", "reference"), again);
    let log = out.join("logs/there/aso-lora/seed-2.log");
    assert!(std::fs::read_to_string(log).unwrap().contains("trained"));
}

#[test]
fn a_broken_sweep_is_refused_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for (broken, complaint) in [
        (
            SWEEP.replace("\"method.name\" = \"seq-lora\"", "\"train.lr\" = 3.0"),
            "sweep.toml:16: `train.lr`",
        ),
        (SWEEP.replace("\"seq-lora\"", "\"seq\""), "unknown variant"),
        (
            SWEEP.replace("[\"sentiment-reviews\", ", "[\"sentiment-revews\", "),
            "did you mean",
        ),
        (
            SWEEP.replace("label =", "labels ="),
            "did you mean `methods.1.label`?",
        ),
    ] {
        let file = write(dir.path(), &broken);
        let sweep = ["sweep", text(&file), "--out", text(&out)];
        fail(&sweep, &[complaint]);
        fail(&[&sweep[..], &["--dry-run"]].concat(), &[complaint]);
        assert!(!out.exists(), "{complaint}");
    }
    let file = write(dir.path(), SWEEP);
    fail(
        &["sweep", text(&file), "--jobs", "0"],
        &["'0' for '--jobs <N>'", "at least 1"],
    );

    // A directory of another configuration, found although it belongs to the last run.
    let set = ["--set", "train.steps=1"];
    let last = out.join(RUNS[5]);
    let config = dir.path().join("last.toml");
    let content =
        "seed = 4\n[data]\nmax_train = 24\nmax_eval = 2\n[stream]\ntasks = [\"topic-news\"]\n";
    std::fs::write(&config, content).unwrap();
    succeed(&[&["run", text(&config), "--out", text(&last)], &set[..]].concat());
    let before = files(&out);
    let refused = fail(
        &["sweep", text(&file), "--out", text(&out)],
        &[RUNS[5], "config.toml", "started with another"],
    );
    assert!(refused.lines().count() < 3, "{refused}");
    assert_eq!(files(&out), before);
}

/// A run that fails stops no other; fixed, only it is run again.
#[test]
fn failures_are_collected() {
    let dir = tempfile::tempdir().unwrap();
    let content = r#"
seeds = [1]
[config]
"data.max_train" = 16
"data.max_eval" = 4
"train.steps" = 2
"eval.max_new_tokens" = 2
[orders]
a = ["topic-news"]
[[methods]]
label = "broken"
set = { "lora.target_modules" = ["no-such-layer"] }
[[methods]]
label = "whole"
"#;
    let file = write(dir.path(), content);
    let out = dir.path().join("out");
    let failed = run(&["sweep", text(&file), "--out", text(&out), "--json"]);
    assert_eq!(failed.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&failed.stderr);
    assert!(stderr.contains("1 of 2 runs failed"), "{stderr}");
    assert!(
        stderr.contains("a/broken/seed-1: ") && stderr.contains("no-such-layer"),
        "{stderr}"
    );
    let printed: Value = serde_json::from_slice(&failed.stdout).unwrap();
    assert_eq!(printed, json(&out.join("sweep.json")));
    assert_eq!(printed["runs"][0]["status"], "failed");
    assert_eq!(printed["runs"][1]["status"], "finished");
    // Nothing was written for the failed run, so another configuration may take its place.
    write(dir.path(), &content.replace("no-such-layer", "q"));
    succeed(&["sweep", text(&file), "--out", text(&out)]);
    let fixed = json(&out.join("sweep.json"));
    assert_eq!(fixed["runs"][1], printed["runs"][1]);
    assert_eq!(fixed["runs"][0]["status"], "finished");
}

/// Weights that changed under a finished run: its results and those of new runs must not meet in one table.
#[test]
fn finished_runs_on_other_weights_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    let demo = aso_tests::root().join("crates/aso-trainer/assets/demo");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(demo).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let content = r#"
[config]
"model.path" = "./model"
"data.max_train" = 8
"data.max_eval" = 2
"train.steps" = 1
"eval.max_new_tokens" = 2
[orders]
a = ["topic-news"]
[[methods]]
set = { "method.name" = "seq-lora" }
"#;
    let file = write(dir.path(), content);
    let out = dir.path().join("out");
    let sweep = ["sweep", text(&file), "--out", text(&out)];
    succeed(&sweep);
    succeed(&sweep);
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    fail(
        &sweep,
        &["a/seq-lora/seed-1", "made for the base model sha256:"],
    );
}

/// Where adapters are chosen on dev, a sweep misses the split before anything starts, and says what wants it.
#[test]
fn a_missing_dev_split_is_found_before_the_first_run() {
    let dir = tempfile::tempdir().unwrap();
    let task = mine(dir.path());
    write_examples(&task.join("train.jsonl"), 0..1);
    write_examples(&task.join("test.jsonl"), 0..1);
    let content = sweep_of_mine("\"train.select\" = \"best-on-dev\"\n\"train.select_every\" = 1");
    let file = write(dir.path(), &(content.clone() + GRID));
    let out = dir.path().join("out");
    let parts = |wanted_by| ["a/seq-lora/", "task `mine`", "split `dev`", wanted_by];
    fail(
        &["tune", text(&file), "--out", text(&out)],
        &parts("`aso tune`"),
    );
    write(dir.path(), &content);
    fail(
        &["sweep", text(&file), "--out", text(&out)],
        &parts("`train.select`"),
    );
}

/// A sweep of one method over the task `mine` in JSON lines below `data`, with more keys of the configuration.
fn sweep_of_mine(keys: &str) -> String {
    format!(
        r#"
[config]
"data.format" = "jsonl"
"data.path" = "data"
{keys}
[orders]
a = ["mine"]
[[methods]]
set = {{ "method.name" = "seq-lora" }}
"#
    )
}

/// What [`sweep_of_mine`] is tuned with.
const GRID: &str = "grid = [{}, { \"train.lr\" = 1e-2 }]\n";

/// The folder of the task `mine`.
fn mine(dir: &Path) -> PathBuf {
    let task = dir.join("data/mine");
    std::fs::create_dir_all(&task).unwrap();
    task
}

/// Lines of examples.
fn write_examples(path: &Path, examples: impl Iterator<Item = usize>) {
    let line = |number| format!("{{\"input\": \"text {number}\", \"target\": \"a\"}}\n");
    std::fs::write(path, examples.map(line).collect::<String>()).unwrap();
}

/// A dev split that is made of test examples, in whatever order, is none; one that is cut from the training examples is.
#[test]
fn nothing_is_chosen_on_test() {
    const SHORT: &str = "\"train.steps\" = 1\n\"eval.max_new_tokens\" = 2\n";
    let dir = tempfile::tempdir().unwrap();
    let task = mine(dir.path());
    write_examples(&task.join("train.jsonl"), 0..8);
    write_examples(&task.join("dev.jsonl"), (8..12).rev());
    write_examples(&task.join("test.jsonl"), 8..16);
    let with = |keys: &str| sweep_of_mine(&format!("{SHORT}{keys}"));
    let tuned = |keys: &str| write(dir.path(), &(with(keys) + GRID));
    let file = tuned("");
    let out = dir.path().join("out");
    let tune = ["tune", text(&file), "--out", text(&out)];
    let parts = |wanted_by| {
        [
            "task `mine`: 4 of its 4 dev examples",
            wanted_by,
            "data.dev_from_train",
        ]
    };
    fail(&tune, &parts("`aso tune`"));
    write(dir.path(), &with("\"train.select\" = \"best-on-dev\""));
    fail(
        &["sweep", text(&file), "--out", text(&out)],
        &parts("`train.select`"),
    );
    // All training examples.
    tuned("\"data.dev_from_train\" = 8");
    fail(&tune, &["task `mine`", "8 training examples", "it has 8"]);
    tuned("\"data.dev_from_train\" = 3");
    succeed(&tune);
    let results = json(&out.join("a/seq-lora/grid-1/seed-1/results.json"));
    assert_eq!(results["evaluation_samples"], serde_json::json!([3]));
}

/// Examples that changed under a run: neither it nor its sweep goes on, and both say which task it is.
#[test]
fn other_examples_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let task = mine(dir.path());
    let (train, test) = (task.join("train.jsonl"), task.join("test.jsonl"));
    write_examples(&train, 0..8);
    write_examples(&test, 8..12);
    let content = sweep_of_mine("\"train.steps\" = 1\n\"eval.max_new_tokens\" = 2");
    let file = write(dir.path(), &content);
    let out = dir.path().join("out");
    let sweep = ["sweep", text(&file), "--out", text(&out)];
    let single = out.join("a/seq-lora/seed-1");
    let resume = ["run", "--resume", "--out", text(&single)];
    succeed(&sweep);
    for (changed, kept) in [(&train, 0..8), (&test, 8..12)] {
        write_examples(changed, kept.clone().rev());
        let parts = ["task `mine` has other examples", "sha256:", "seed-1"];
        fail(&sweep, &parts);
        let state = single.join("state.json");
        let whole = std::fs::read_to_string(&state).unwrap();
        // Not finished any more.
        let mut unfinished: Value = serde_json::from_str(&whole).unwrap();
        unfinished["matrix"]["rows"][0][0] = Value::Null;
        std::fs::write(&state, unfinished.to_string()).unwrap();
        fail(&resume, &parts[..2]);
        std::fs::write(&state, whole).unwrap();
        write_examples(changed, kept);
        succeed(&sweep);
    }
    // Nothing is left to do, so the data may be gone.
    std::fs::remove_dir_all(&task).unwrap();
    succeed(&sweep);
}

#[test]
fn settings_are_chosen_on_dev() {
    let dir = tempfile::tempdir().unwrap();
    let content = r#"
seeds = [1, 2]
[config]
"data.max_train" = 64
"data.max_eval" = 16
"train.batch_size" = 8
"eval.max_new_tokens" = 4
[orders]
a = ["topic-news"]
[[methods]]
set = { "method.name" = "seq-lora" }
# A rate at which nothing is learned, one that learns, its twin, and another at which nothing is learned.
grid = [{ "train.lr" = 1e-9 }, { "train.lr" = 2e-3 }, { "train.lr" = 2e-3, "train.log_every" = 3 }, { "train.lr" = 1e-8 }]
[tune]
seeds = [5]
"#;
    let file = write(dir.path(), content);
    let (out, chosen) = (dir.path().join("tune"), dir.path().join("chosen.toml"));
    let arguments = [
        "tune",
        text(&file),
        "--out",
        text(&out),
        "--chosen",
        text(&chosen),
    ];
    let table = succeed(&arguments);
    for part in ["a: topic-news\n", "seq-lora: 4 configurations, 4 runs"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let tuned = json(&out.join("tune.json"));
    assert_eq!(tuned["split"], "dev");
    let choice = &tuned["choices"][0];
    let score = |at: usize| choice["candidates"][at]["score"].as_f64().unwrap();
    assert!(score(1) > score(0), "{choice}");
    // Equal scores: the first.
    assert_eq!((score(1), &choice["chosen"]), (score(2), &2.into()));
    let config = std::fs::read_to_string(out.join("a/seq-lora/grid-1/seed-5/config.toml"));
    assert!(config.unwrap().contains("eval_split = \"dev\""));
    // The highest of three rates.
    assert_eq!(choice["at_edge"], serde_json::json!(["train.lr"]));
    let before = std::fs::read(out.join("tune.json")).unwrap();
    let again = run(&arguments);
    assert_eq!(String::from_utf8(again.stdout).unwrap(), table);
    let warned = String::from_utf8(again.stderr).unwrap();
    assert!(warned.contains("at the edge of its range"), "{warned}");
    assert_eq!(std::fs::read(out.join("tune.json")).unwrap(), before);

    // The choice is a sweep file, for test.
    let sweep = dir.path().join("sweep");
    succeed(&["sweep", text(&chosen), "--out", text(&sweep), "--jobs", "2"]);
    let config = std::fs::read_to_string(sweep.join("a/seq-lora/seed-2/config.toml")).unwrap();
    assert!(
        config.contains("eval_split = \"test\"") && config.contains("lr = 0.002"),
        "{config}"
    );

    // A grid that is still to be chosen from is not swept, and test is never chosen on.
    fail(&["sweep", text(&file)], &["`methods.0.grid`", "aso tune"]);
    let on_test = ["tune", text(&file), "--set", "data.eval_split=test"];
    fail(
        &on_test,
        &["--set data.eval_split=test", "expected \"dev\""],
    );
}

/// Keys come and go; the files that docs/results.md tells to run must follow.
#[test]
fn the_experiments_of_the_book_can_be_planned() {
    let folder = aso_tests::root().join("docs/experiments");
    let files = std::fs::read_dir(folder).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let sweeps = files.filter(|path| {
        path.extension().is_some_and(|ending| ending == "toml") && !path.ends_with("base.toml")
    });
    let mut seen = 0;
    for path in sweeps {
        let sweep = Sweep::load(&path, &[]).unwrap();
        let tuned = sweep
            .file()
            .methods
            .iter()
            .any(|method| !method.grid.is_empty());
        let planned = match tuned {
            true => sweep.candidates(),
            false => sweep.runs(),
        };
        assert!(!planned.unwrap().is_empty(), "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 4, "{seen}");
}
