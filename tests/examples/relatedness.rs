//! Does measured similarity follow constructed relatedness? (docs/relatedness.md)
//!
//! ```text
//! cargo run --release -p aso-tests --example relatedness -- OUT.json [SEEDS]
//! ```
//!
//! Generated tasks of known relatedness are learned by the built-in model, each with an adapter of its own; then the
//! similarity of all pairs is measured in four ways and ranked against what was constructed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use aso_attribution::{Attributor, MAX_PATH_ROWS, Preset};
use aso_data::random::{below, keyed};
use aso_data::synthetic::{Bank, Factor, Genre, Style, TOPICS, TaskSpec};
use aso_data::{SyntheticSuite, TaskLibrary};
use aso_lora::Adapter;
use aso_trainer::events::Silent;
use aso_trainer::load::{load_model, open_library};
use aso_trainer::similarity::{TaskSimilarities, TrainedTask};
use aso_trainer::state::adapter_dir;
use aso_trainer::{Run, RunConfig, Task};
use burn::tensor::Device;
use serde::Serialize;

/// Examples of each task that are attributed.
const ROWS: usize = 16;
/// Resamplings of the interval.
const RESAMPLES: usize = 10_000;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let out = arguments
        .first()
        .context("usage: relatedness OUT.json [SEEDS]")?;
    let seeds = match arguments.get(1) {
        Some(seeds) => seeds.parse().context("SEEDS")?,
        None => 10,
    };
    let specs = specs();
    let mut found: BTreeMap<&str, Vec<Seed>> = BTreeMap::new();
    for seed in 1..=seeds {
        for (measure, matrix) in measure(&specs, seed)? {
            let pairs = pairs(&specs, &matrix);
            let rank_correlation = spearman(&pairs);
            let means = [0, 1, 2].map(|level| mean_at(&pairs, level));
            eprintln!("seed {seed:2} {measure:22} {rank_correlation:6.3}  {means:.3?}");
            found.entry(measure).or_default().push(Seed {
                seed,
                rank_correlation: rounded(rank_correlation),
                same_task_auc: rounded(same_task_auc(&pairs)),
                mean_by_level: means.map(rounded),
                pairs: pairs.iter().map(|(_, value)| rounded(*value)).collect(),
            });
        }
    }
    let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let levels: Vec<usize> = all_pairs(&specs)
        .map(|(i, j)| level(&specs[i], &specs[j]))
        .collect();
    let measures = found.into_iter().map(|(measure, seeds)| {
        let summary = Summary {
            rank_correlation: Estimate::of(seeds.iter().map(|seed| seed.rank_correlation)),
            same_task_auc: Estimate::of(seeds.iter().map(|seed| seed.same_task_auc)),
            seeds,
        };
        (measure, summary)
    });
    let report = Report {
        tasks: names,
        pair_levels: levels,
        measures: measures.collect(),
    };
    std::fs::write(out, serde_json::to_string(&report)? + "\n").with_context(|| out.clone())?;
    for (measure, summary) in &report.measures {
        println!("{measure:22} rank correlation {}", summary.rank_correlation);
        println!("{:22} same task (AUC)  {}", "", summary.same_task_auc);
    }
    Ok(())
}

#[derive(Serialize)]
struct Report<'a> {
    tasks: Vec<&'a str>,
    /// Of every pair (i, j), i < j, in order: 2 the same question and answers in other words, 1 the same question, 0
    /// another one.
    pair_levels: Vec<usize>,
    measures: BTreeMap<&'a str, Summary>,
}

#[derive(Serialize)]
struct Summary {
    /// Spearman's, of similarity and level.
    rank_correlation: Estimate,
    /// Probability that a pair of level 2 is more similar than another pair.
    same_task_auc: Estimate,
    seeds: Vec<Seed>,
}

/// A mean over seeds.
#[derive(Serialize)]
struct Estimate {
    mean: f64,
    /// Bootstrap over seeds.
    interval_95: [f64; 2],
}

impl Estimate {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.collect();
        let (low, high) = interval(&values);
        Self {
            mean: rounded(mean(&values)),
            interval_95: [rounded(low), rounded(high)],
        }
    }
}

impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [low, high] = self.interval_95;
        write!(f, "{:6.3}  95 % [{low:.3}, {high:.3}]", self.mean)
    }
}

/// Four decimals say enough.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[derive(Serialize)]
struct Seed {
    seed: u64,
    rank_correlation: f64,
    same_task_auc: f64,
    mean_by_level: [f64; 3],
    pairs: Vec<f64>,
}

/// Ten tasks in four groups.
fn specs() -> Vec<TaskSpec> {
    let spec = |name: &str, question: &str, factor, labels: &[&str], genre, bank| TaskSpec {
        name: name.to_owned(),
        question: question.to_owned(),
        factor,
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
        style: Style {
            genre,
            bank,
            noise_percent: 10,
        },
    };
    let topics = |from: usize| Factor::Topic((from..from + 4).collect());
    let names =
        |from: usize| -> Vec<&str> { TOPICS[from..from + 4].iter().map(|t| t.name).collect() };
    let (about, feel, count) = ("what is it about?", "how does it feel?", "which number?");
    use {Bank::*, Factor::*, Genre::*};
    vec![
        spec("topic-news", about, topics(0), &names(0), News, First),
        spec("topic-forum", about, topics(0), &names(0), Forum, Second),
        spec("kind-news", about, topics(4), &names(4), News, First),
        spec("kind-forum", about, topics(4), &names(4), Forum, Second),
        spec(
            "sentiment-reviews",
            feel,
            Sentiment,
            &["good", "bad"],
            Review,
            First,
        ),
        spec(
            "sentiment-posts",
            feel,
            Sentiment,
            &["good", "bad"],
            Post,
            Second,
        ),
        spec(
            "words-reviews",
            feel,
            Sentiment,
            &["happy", "sad"],
            Review,
            Second,
        ),
        spec("number-notes", count, Number, &["one", "many"], Note, First),
        spec(
            "number-posts",
            count,
            Number,
            &["single", "several"],
            Post,
            Second,
        ),
        spec(
            "time-notes",
            "when is it?",
            Tense,
            &["before", "now", "later"],
            Note,
            Second,
        ),
    ]
}

/// How related two tasks were made.
fn level(left: &TaskSpec, right: &TaskSpec) -> usize {
    match left.factor.group() == right.factor.group() {
        true if left.labels == right.labels => 2,
        true => 1,
        false => 0,
    }
}

fn all_pairs(specs: &[TaskSpec]) -> impl Iterator<Item = (usize, usize)> {
    let count = specs.len();
    (0..count).flat_map(move |i| (i + 1..count).map(move |j| (i, j)))
}

type Matrix = Vec<Vec<Option<f64>>>;

/// Learns every task alone and measures all pairs.
fn measure(specs: &[TaskSpec], seed: u64) -> anyhow::Result<Vec<(&'static str, Matrix)>> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let suite = SyntheticSuite::generate(seed, specs, [400, 16, 100], true);
    suite.write_jsonl(&data)?;
    let tasks: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let set = [
        "data.format=jsonl".to_owned(),
        format!("data.path={}", data.display()),
        format!("stream.tasks={tasks:?}"),
        format!("seed={seed}"),
        "method.name=per-task".to_owned(),
        "train.batch_size=16".to_owned(),
        "train.epochs=3".to_owned(),
        "train.checkpoint_every=0".to_owned(),
        "eval.tasks=seen".to_owned(),
        "eval.zero_shot=false".to_owned(),
        "eval.max_new_tokens=4".to_owned(),
    ];
    let config = RunConfig::parse("", Path::new("./relatedness.toml"), &set)?;
    let run_dir = dir.path().join("run");
    let never = AtomicBool::new(false);
    let run = Run::open(config.clone(), &run_dir, false)?;
    let (_, results) = run.execute(&Device::default(), &mut Silent, &never)?;
    eprintln!(
        "seed {seed:2} learning accuracy {:.1}",
        results.learning_accuracy.unwrap_or(0.0)
    );

    let mut loaded = load_model(&config.model, &Device::default(), &mut Silent)?;
    let library: Box<dyn TaskLibrary> = open_library(&config.data)?;
    let vocabulary = aso_backbones::Backbone::vocabulary(&loaded.model);
    let mut trained = Vec::new();
    for (index, name) in tasks.iter().enumerate() {
        let mut task = Task::load(library.as_ref(), name, &config, &loaded.codec, vocabulary)?;
        task.train.truncate(ROWS);
        trained.push(TrainedTask {
            name: (*name).to_owned(),
            adapter: Adapter::load(&adapter_dir(&run_dir, index, name))?,
            examples: task.train,
        });
    }
    let mut found = Vec::new();
    for (name, preset) in [
        ("attribution, aso", Preset::Aso),
        ("attribution, reference", Preset::Reference),
    ] {
        let attributor = Attributor::preset(preset, MAX_PATH_ROWS);
        let measured =
            TaskSimilarities::measure(&mut loaded.model, &loaded.codec, &trained, &attributor)?;
        if found.is_empty() {
            found.push(("subspace overlap", measured.overlap));
            found.push(("response to inputs", symmetric(&measured.response)));
        }
        found.push((name, measured.attribution));
    }
    Ok(found)
}

/// The mean of both directions.
fn symmetric(matrix: &Matrix) -> Matrix {
    let both = |i: usize, j: usize| Some((matrix[i][j]? + matrix[j][i]?) / 2.0);
    let all = 0..matrix.len();
    all.clone()
        .map(|i| all.clone().map(|j| both(i, j)).collect())
        .collect()
}

/// Level and similarity of every pair; one that could not be measured counts as 0.
fn pairs(specs: &[TaskSpec], matrix: &Matrix) -> Vec<(usize, f64)> {
    all_pairs(specs)
        .map(|(i, j)| (level(&specs[i], &specs[j]), matrix[i][j].unwrap_or(0.0)))
        .collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn mean_at(pairs: &[(usize, f64)], level: usize) -> f64 {
    let values = pairs.iter().filter(|(at, _)| *at == level);
    mean(&values.map(|(_, value)| *value).collect::<Vec<_>>())
}

/// Spearman's rank correlation, ties with their mean rank.
fn spearman(pairs: &[(usize, f64)]) -> f64 {
    let left = ranks(
        &pairs
            .iter()
            .map(|(level, _)| *level as f64)
            .collect::<Vec<_>>(),
    );
    let right = ranks(&pairs.iter().map(|(_, value)| *value).collect::<Vec<_>>());
    aso_attribution::pearson(&left, &right).unwrap_or(0.0)
}

/// Probability that a pair of level 2 is more similar than one of a lower level; ties count half.
fn same_task_auc(pairs: &[(usize, f64)]) -> f64 {
    let of = |same: bool| pairs.iter().filter(move |(level, _)| (*level == 2) == same);
    let wins = of(true).flat_map(|(_, same)| {
        of(false).map(move |(_, other)| match same.total_cmp(other) {
            std::cmp::Ordering::Greater => 1.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Less => 0.0,
        })
    });
    mean(&wins.collect::<Vec<f64>>())
}

fn ranks(values: &[f64]) -> Vec<f64> {
    values
        .iter()
        .map(|value| {
            let below = values.iter().filter(|other| *other < value).count();
            let same = values.iter().filter(|other| *other == value).count();
            below as f64 + (same as f64 - 1.0) / 2.0
        })
        .collect()
}

/// 95 % percentile interval of the mean over seeds.
fn interval(values: &[f64]) -> (f64, f64) {
    let mut rng = keyed(&[1, values.len() as u64]);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn = (0..values.len()).map(|_| values[below(&mut rng, values.len())]);
            mean(&drawn.collect::<Vec<_>>())
        })
        .collect();
    means.sort_by(f64::total_cmp);
    (means[RESAMPLES / 40], means[RESAMPLES - 1 - RESAMPLES / 40])
}
