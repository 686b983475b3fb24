//! `aso report` on runs of the built-in model: all forms show the numbers of `results.json`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use aso_trainer::config::{ExampleKind, MethodName};
use aso_trainer::events::Silent;
use aso_trainer::{Outcome, Run, RunResults};
use burn::tensor::Device;
use common::{fail, files, succeed, text};
use serde_json::Value;

const METRICS: [&str; 7] = [
    "ap",
    "ap_by_sample",
    "ap_chosen",
    "bwt",
    "forgetting",
    "fwt",
    "learning_accuracy",
];

/// A run of a few steps on two tasks.
fn small_run(method: MethodName, seed: u64, dir: &Path) -> RunResults {
    let mut config = ExampleKind::Demo.config();
    config.method.name = method;
    config.seed = seed;
    config.stream.tasks = Some(config.tasks().unwrap().into_iter().take(2).collect());
    config.data.max_train = Some(48);
    config.data.max_eval = Some(12);
    config.eval.max_new_tokens = 4;
    config.eval.choose_last = true;
    config.train.batch_size = 8;
    config.train.steps = Some(6);
    let run = Run::open(config, &dir.join(format!("{method}-{seed}")), false).unwrap();
    let stop = AtomicBool::new(false);
    let (outcome, results) = run.execute(&Device::flex(), &mut Silent, &stop).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    results
}

/// Mean and sample standard deviation of two values.
fn of_two(a: f64, b: f64) -> (f64, f64) {
    ((a + b) / 2.0, (a - b).abs() / 2.0_f64.sqrt())
}

/// Looks at a page in Chromium, as wide as a desk and as a phone: nothing may stick out. Skipped where there is no Chromium.
fn fits(page: &str, dir: &Path) {
    const WIDTHS: [u32; 2] = [1400, 400];
    let escaped = page.replace('&', "&amp;").replace('"', "&quot;");
    let frames = WIDTHS.map(|width| {
        format!(r#"<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{escaped}"></iframe>"#)
    });
    let script = r#"<pre></pre><script>onload = () => {
        const frames = [...document.querySelectorAll("iframe")];
        const roots = frames.map(frame => frame.contentDocument.documentElement);
        document.querySelector("pre").textContent = JSON.stringify(roots.map(root => [root.clientWidth, root.scrollWidth]));
        frames.forEach(frame => frame.remove());
    }</script>"#;
    let file = dir.join("frames.html");
    fs::write(&file, format!("<!doctype html>{}{script}", frames.concat())).unwrap();
    let look = |program: &str| {
        let options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=10000",
            "--dump-dom",
        ];
        let profile = format!("--user-data-dir={}", text(&dir.join("chromium")));
        let address = format!("file://{}", text(&file));
        Command::new(program)
            .args(options)
            .args([profile, address])
            .output()
            .ok()
            // Some systems have a program of that name that only tells how to install one.
            .filter(|output| output.status.success())
    };
    let Some(seen) = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find_map(look)
    else {
        eprintln!("skipped: no Chromium to look at the page with");
        return;
    };
    let seen = String::from_utf8(seen.stdout).unwrap();
    let found = seen
        .split_once("<pre>")
        .and_then(|(_, rest)| rest.split_once("</pre>"));
    let found =
        found.unwrap_or_else(|| panic!("no widths in what Chromium made of the page: {seen}"));
    let found: Vec<[u32; 2]> = serde_json::from_str(found.0).unwrap();
    assert_eq!(found.len(), WIDTHS.len());
    for (width, [visible, whole]) in WIDTHS.into_iter().zip(found) {
        assert!(
            whole <= visible && visible <= width,
            "{whole} pixels wide in a frame of {visible}"
        );
    }
}

#[test]
fn every_form_shows_the_numbers_of_the_runs() {
    let dir = tempfile::tempdir().unwrap();
    let runs = dir.path().join("runs");
    for method in [MethodName::AsoLora, MethodName::SeqLora] {
        for seed in [1, 2] {
            small_run(method, seed, &runs);
        }
    }
    let out = |name: &str| dir.path().join(name);
    let (page, svg, board) = (out("report.html"), out("svg"), out("board"));
    let arguments = ["report", text(&runs), "--out", text(&page)];
    let more = ["--svg", text(&svg), "--tensorboard", text(&board)];
    succeed(&[&arguments[..], &more[..]].concat());
    let page = fs::read_to_string(page).unwrap();
    let markdown = succeed(&["report", text(&runs)]);
    let csv = succeed(&["report", text(&runs), "--format", "csv"]);
    let json = out("report.json");
    succeed(&["report", text(&runs), "--out", text(&json)]);
    let json: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();

    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(json["reference"], "aso-lora");
    let stream = &json["streams"][0];
    for (at, method) in ["aso-lora", "seq-lora"].into_iter().enumerate() {
        let group = &stream["groups"][at];
        assert_eq!(group["label"], method);
        assert!(group["cost"]["trainable_parameters"].as_u64().unwrap() > 0);
        assert!(group["cost"]["seconds_per_step"]["mean"].as_f64().unwrap() > 0.0);
        for metric in METRICS {
            let of_run = |seed: usize| {
                let file = runs.join(format!("{method}-{seed}")).join("results.json");
                let results: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
                let value = results[metric].as_f64().unwrap();
                assert_eq!(group["runs"][seed - 1]["metrics"][metric], value);
                value
            };
            let (mean, sd) = of_two(of_run(1), of_run(2));
            let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9);
            let found = &group["metrics"][metric];
            close(found["mean"].as_f64().unwrap(), mean);
            close(found["sd"].as_f64().unwrap(), sd);
            let column = |name: String| lines[0].iter().position(|head| *head == name).unwrap();
            let row = &lines[at + 1];
            close(row[column(format!("{metric}_mean"))].parse().unwrap(), mean);
            close(row[column(format!("{metric}_sd"))].parse().unwrap(), sd);
            let shown = format!("{mean:.2} \u{b1} {sd:.2}");
            assert!(markdown.contains(&shown), "{shown} in\n{markdown}");
            let shown = shown.replace('-', "\u{2212}");
            assert!(page.contains(&format!(">{shown}<")), "{metric}: {shown}");
        }
    }
    assert_eq!(stream["differences"][0]["label"], "seq-lora");

    fits(&page, dir.path());
    for foreign in ["<script", "http:", "https:", "@import", "url(", "src="] {
        assert!(!page.contains(foreign), "the page has {foreign}");
    }
    let figures = files(&svg);
    for name in [
        "accuracy-matrix-aso-lora",
        "forgetting",
        "loss",
        "soft-weight-aso-lora",
    ] {
        assert!(
            figures
                .iter()
                .any(|(file, _)| *file == format!("{name}.svg")),
            "{name}"
        );
    }
    assert!(figures.iter().all(|(_, bytes)| bytes.starts_with(b"<svg ")));
    let boards = files(&board);
    assert_eq!(boards.len(), 4);
    assert!(
        boards[0]
            .0
            .starts_with("aso-lora/seed-1/events.out.tfevents.aso"),
        "{}",
        boards[0].0
    );
}

#[test]
fn what_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let runs = dir.path().join("runs");
    fs::create_dir(&runs).unwrap();
    fail(&["report", text(&runs)], &["runs: no run found"]);
    fail(&["report", "=x"], &["expected a folder, or LABEL=FOLDER"]);
    small_run(MethodName::SeqLora, 1, &runs);
    fail(
        &["report", text(&runs), "--reference", "x"],
        &["reference \"x\": expected one of seq-lora"],
    );
    let metrics = runs.join("seq-lora-1").join("metrics.jsonl");
    fs::write(&metrics, "{\"task\": 1}\n").unwrap();
    let out = dir.path().join("report.html");
    fail(
        &["report", text(&runs), "--out", text(&out)],
        &["metrics.jsonl:1: expected an optimizer step"],
    );
    assert!(!out.exists());
    let out = dir.path().join("report.pdf");
    fail(
        &["report", text(&runs), "--out", text(&out)],
        &["report.pdf: expected a name that ends in .html, .md, .csv or .json"],
    );
}
