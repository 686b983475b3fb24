//! A run that is killed at any moment and resumed ends as if nothing had happened: same numbers, same
//! bytes.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{aso, fail, files, results, succeed, text};

/// A short run of the built-in model: three tasks of six steps, a checkpoint every second step.
const CONFIG: &str = r#"
seed = 3
[data]
max_train = 48
max_eval = 24
[stream]
tasks = TASKS
[method]
name = "METHOD"
[train]
batch_size = 8
micro_batch = 4
checkpoint_every = 2
[eval]
batch_size = 8
max_new_tokens = 6
general_tasks = GENERAL
choose_last = true
"#;

fn all_tasks() -> Vec<String> {
    let suite = aso_data::SyntheticSuite::demo(1);
    let names = suite.tasks().iter().map(|task| task.name.clone());
    names.collect()
}

fn tasks() -> Vec<String> {
    all_tasks()[..3].to_vec()
}

fn write_config(dir: &Path, method: &str) -> std::path::PathBuf {
    let path = dir.join(format!("{method}.toml"));
    let config = CONFIG
        .replace("METHOD", method)
        .replace("TASKS", &format!("{:?}", tasks()))
        .replace("GENERAL", &format!("{:?}", &all_tasks()[4..]));
    std::fs::write(&path, config).unwrap();
    path
}

fn start(config: &Path, out: &Path, resume: bool) -> Child {
    let mut command = aso();
    command.args(["run", text(config), "--out", text(out), "--quiet"]);
    if resume {
        command.arg("--resume");
    }
    command.stdout(Stdio::null()).spawn().unwrap()
}

/// Kills the run with SIGKILL as soon as `moment` is there. Returns whether it was still running.
fn kill_when(mut child: Child, moment: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}; what it said stands above");
            return false;
        }
        if moment() {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        assert!(Instant::now() < deadline, "the moment never came");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read(path).map_or(0, |bytes| {
        bytes.iter().filter(|byte| **byte == b'\n').count()
    })
}

fn entries(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().display().to_string())
        .collect()
}

fn scores(run: &Path) -> usize {
    let Ok(bytes) = std::fs::read(run.join("state.json")) else {
        return 0;
    };
    let Ok(state) = serde_json::from_slice::<serde_json::Value>(&bytes) else {
        return 0;
    };
    let rows = state["matrix"]["rows"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    rows.iter()
        .flat_map(|row| row.as_array())
        .flatten()
        .filter(|score| !score.is_null())
        .count()
}

fn assert_same(run: &Path, reference: &Path, what: &str) {
    assert_eq!(results(run), results(reference), "{what}: results.json");
    let general = &results(run)["general"][0];
    assert!(
        general["before"].is_f64() && general["after"].is_f64(),
        "{what}: {general}"
    );
    assert!(results(run)["ap_chosen"].is_f64(), "{what}: AP chosen");
    let adapters = |run: &Path| files(&run.join("adapters"));
    let (found, expected) = (adapters(run), adapters(reference));
    let names = |files: &[(String, Vec<u8>)]| -> Vec<String> {
        files.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(names(&found), names(&expected), "{what}: adapter files");
    for ((name, found), (_, expected)) in found.iter().zip(&expected) {
        assert!(found == expected, "{what}: {name} differs");
    }
    assert_eq!(
        lines(&run.join("metrics.jsonl")),
        18,
        "{what}: one line per step"
    );
    assert!(
        entries(&run.join("checkpoints")).is_empty(),
        "{what}: a checkpoint was left"
    );
}

/// Named conditions on a run directory.
type Moment = (&'static str, fn(&Path) -> bool);

const MOMENTS: &[Moment] = &[
    ("first step", |run| lines(&run.join("metrics.jsonl")) >= 1),
    ("checkpoint being written", |run| {
        entries(&run.join("checkpoints"))
            .iter()
            .any(|name| name.contains(".tmp-"))
    }),
    ("checkpoint written", |run| {
        !entries(&run.join("checkpoints")).is_empty()
    }),
    ("adapter being written", |run| {
        entries(&run.join("adapters"))
            .iter()
            .any(|name| name.contains(".tmp-"))
    }),
    ("first evaluation", |run| {
        !entries(&run.join("adapters")).is_empty()
    }),
    ("within an evaluation row", |run| scores(run) >= 2),
    ("second task, after an attribution", |run| {
        lines(&run.join("metrics.jsonl")) >= 10
    }),
    ("third task", |run| lines(&run.join("metrics.jsonl")) >= 15),
    ("last evaluation", |run| scores(run) >= 8),
    ("choosing", |run| {
        !entries(&run.join("predictions/chosen")).is_empty()
    }),
];

fn kill_and_resume(method: &str, moments: &[Moment]) {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), method);
    let reference = dir.path().join("reference");
    succeed(&["run", text(&config), "--out", text(&reference)]);
    for (at, (what, moment)) in moments.iter().enumerate() {
        // What is there for an instant only can be missed.
        let mut tries = (0..5).map(|attempt| dir.path().join(format!("run-{at}-{attempt}")));
        let killed = tries.find(|run| kill_when(start(&config, run, false), || moment(run)));
        let Some(run) = killed else {
            assert!(
                what.contains("being written"),
                "{method}: not caught: {what}"
            );
            eprintln!("{method}: not caught: {what}");
            continue;
        };
        succeed(&["run", text(&config), "--out", text(&run), "--resume"]);
        assert_same(&run, &reference, &format!("{method}, killed at: {what}"));
    }
}

#[test]
fn killed_at_any_moment_aso_lora() {
    kill_and_resume("aso-lora", MOMENTS);
}

#[test]
fn killed_at_any_moment_seq_lora() {
    kill_and_resume("seq-lora", &[MOMENTS[2], MOMENTS[5], MOMENTS[6]]);
}

/// Killed again and again, each time right after it saved something.
#[test]
fn killed_after_every_save() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "aso-lora");
    let reference = dir.path().join("reference");
    succeed(&["run", text(&config), "--out", text(&reference)]);
    let run = dir.path().join("run");
    let state = run.join("state.json");
    let mut kills = 0;
    loop {
        let before = std::fs::read(&state).ok();
        let killed = kill_when(start(&config, &run, true), || {
            std::fs::read(&state).ok() != before
        });
        if !killed {
            break;
        }
        kills += 1;
        assert!(kills < 200, "no progress");
    }
    assert!(
        kills >= 10,
        "only {kills} kills: the test did not test much"
    );
    assert_same(&run, &reference, "killed after every save");
}

/// The best adapter on dev is part of a checkpoint, and what the task keeps.
#[test]
fn the_best_on_dev_is_kept_and_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "o-lora");
    let last = dir.path().join("last");
    succeed(&["run", text(&config), "--out", text(&last)]);
    let settings = std::fs::read_to_string(&config).unwrap().replace(
        "[train]",
        "[train]\nselect = \"best-on-dev\"\nselect_every = 1\nselect_examples = 12\nlr = 2e-2",
    );
    std::fs::write(&config, settings).unwrap();
    let reference = dir.path().join("reference");
    succeed(&["run", text(&config), "--out", text(&reference)]);
    for at in [2, 5, 6] {
        let (what, moment) = MOMENTS[at];
        let run = dir.path().join(format!("run-{at}"));
        kill_when(start(&config, &run, false), || moment(&run));
        succeed(&["run", text(&config), "--out", text(&run), "--resume"]);
        assert_same(&run, &reference, what);
    }
    let selected = results(&reference)["selected"].clone();
    let steps: Vec<u64> = selected
        .as_array()
        .unwrap()
        .iter()
        .map(|selected| selected["steps"].as_u64().unwrap())
        .collect();
    assert_eq!(steps.len(), 3, "{selected}");
    assert!(
        steps.iter().all(|steps| (1..=6).contains(steps)),
        "{selected}"
    );
    // At this rate the last step is not the best one of every task.
    assert!(steps.iter().any(|steps| *steps < 6), "{selected}");
    // Where nothing is chosen the results say nothing about it.
    assert!(results(&last).get("selected").is_none());
    // The kept adapter is the chosen one: with it, a task that did not keep its last step has the chosen score on dev.
    let at = steps.iter().position(|steps| *steps < 6).unwrap();
    let mut adapters = entries(&reference.join("adapters"));
    adapters.sort();
    let dirs = adapters.iter().take(at + 1);
    let dirs: Vec<_> = dirs
        .map(|name| reference.join("adapters").join(name))
        .collect();
    let task = tasks().remove(at);
    let output = aso()
        .args(["eval", "--model", "embedded:demo"])
        .args(dirs.iter().flat_map(|dir| ["--adapter", text(dir)]))
        .args([
            "--tasks",
            &task,
            "--set",
            "data.eval_split=dev",
            "--max-eval",
            "12",
        ])
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let score = selected[at]["score"].as_f64().unwrap();
    assert!(shown.contains(&format!("{score:.2}")), "{shown} {selected}");
}

#[test]
fn an_interrupted_run_says_so_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "o-lora");
    let reference = dir.path().join("reference");
    succeed(&["run", text(&config), "--out", text(&reference)]);
    let run = dir.path().join("run");
    let mut child = start(&config, &run, false);
    while lines(&run.join("metrics.jsonl")) < 3 {
        assert!(child.try_wait().unwrap().is_none(), "ended too early");
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = child.id().to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(130));
    // Without CONFIG: the run's own settings.
    succeed(&["run", "--resume", "--out", text(&run)]);
    assert_same(&run, &reference, "interrupted");
}

#[test]
fn threads_do_not_change_a_bit() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "aso-lora");
    let outs = ["1", "2"].map(|threads| {
        let out = dir.path().join(threads);
        succeed(&[
            "run",
            text(&config),
            "--out",
            text(&out),
            "--threads",
            threads,
        ]);
        out
    });
    assert_same(&outs[0], &outs[1], "1 and 2 threads");
}

#[test]
fn run_directories_are_guarded() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "inc-lora");
    let run = dir.path().join("run");
    let (config, out) = (text(&config), text(&run));
    // In use: the lock belongs to a living process.
    let child = start(config.as_ref(), &run, false);
    let in_use = kill_when(child, || {
        let busy = lines(&run.join("metrics.jsonl")) >= 1;
        if busy {
            fail(&["run", config, "--out", out, "--resume"], &[out, "in use"]);
        }
        busy
    });
    assert!(in_use);
    // Not empty, and nobody said --resume.
    fail(
        &["run", config, "--out", out],
        &[out, "not empty", "--resume"],
    );
    // Another configuration.
    let other = [
        "run",
        config,
        "--out",
        out,
        "--resume",
        "--set",
        "train.lr=0.01",
    ];
    fail(&other, &["config.toml", "`train.lr`", "0.001", "0.01"]);
    // Not finished.
    fail(
        &["run", "--continue", out, "--tasks", "x"],
        &[out, "not finished"],
    );
    succeed(&["run", config, "--out", out, "--resume"]);
    // Finished: nothing to do, exit code 0.
    let before = files(&run);
    let again = aso()
        .args(["run", config, "--out", out, "--resume"])
        .output()
        .unwrap();
    assert!(again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("already finished"));
    assert_eq!(files(&run), before);
    // A folder with other things in it is never taken over.
    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.tex"), "x").unwrap();
    fail(
        &["run", config, "--out", text(&foreign), "--resume"],
        &["no run to resume"],
    );
    assert_eq!(files(&foreign).len(), 1);
}

/// A configuration, and a finished run of it with the first of its tasks.
fn run_of_one_task(dir: &Path) -> (PathBuf, PathBuf) {
    let config = write_config(dir, "aso-lora");
    let run = dir.join("run");
    let first = format!("stream.tasks=[\"{}\"]", tasks()[0]);
    succeed(&["run", text(&config), "--out", text(&run), "--set", &first]);
    (config, run)
}

#[test]
fn a_finished_run_learns_more_tasks() {
    let dir = tempfile::tempdir().unwrap();
    let (config, run) = run_of_one_task(dir.path());
    let tasks = tasks();
    let more = tasks[1..].join(",");
    succeed(&["run", "--continue", text(&run), "--tasks", &more]);
    let results = results(&run);
    assert_eq!(results["tasks"], serde_json::json!(tasks));
    let missing = |row: &serde_json::Value| row.as_array().unwrap().iter().any(|v| v.is_null());
    let accuracy = results["accuracy"].as_array().unwrap();
    // The row after the first task gets scores on the new tasks: the model was still in that state.
    assert!(!accuracy.iter().any(missing), "{accuracy:?}");
    assert!(!missing(&results["zero_shot"]));
    // The same stream in one go gives the same adapters.
    let whole = dir.path().join("whole");
    succeed(&["run", text(&config), "--out", text(&whole)]);
    assert_same(&run, &whole, "continued");
    fail(
        &["run", "--continue", text(&run), "--tasks", &tasks[0]],
        &[&tasks[0], "once"],
    );
    fail(
        &["run", "--continue", text(&run), "--tasks", "no-such-task"],
        &["no-such-task"],
    );
}

/// What cannot learn more stays a finished run.
#[test]
fn a_run_that_cannot_be_continued_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (_, run) = run_of_one_task(dir.path());
    let tasks = tasks();
    let state = run.join("state.json");
    let content = std::fs::read_to_string(&state).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&content).unwrap();
    other["base_model"] = "sha256:0".into();
    std::fs::write(&state, other.to_string()).unwrap();
    let before = files(&run);
    fail(
        &["run", "--continue", text(&run), "--tasks", &tasks[1]],
        &["state.json", "made for the base model"],
    );
    assert_eq!(files(&run), before);
    std::fs::write(&state, content).unwrap();
    succeed(&["run", "--continue", text(&run), "--tasks", &tasks[1]]);
}
