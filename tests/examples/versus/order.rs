//! Whole runs of the trainer.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use aso_backbones::Backbone;
use aso_data::EncodedExample;
use aso_trainer::batches::BatchOrder;
use aso_trainer::events::Silent;
use aso_trainer::load::{load_model, open_library};
use aso_trainer::trainer::METRICS_FILE;
use aso_trainer::{Run, RunConfig, RunResults, Task};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::{Outcome, Workload, read, write_json};

/// Order 1' with 50 steps a task, so that preset `reference` measures as often per step as in a long run.
const SETTINGS: [&str; 6] = [
    "data.format=cl-benchmark",
    "data.max_train=800",
    "data.max_eval=100",
    "train.batch_size=16",
    "train.checkpoint_every=0",
    "eval.max_new_tokens=10",
];

/// The settings of every run on the benchmark, then `more`, given as `--set` of `aso run` takes them.
pub(crate) fn settings(more: &[&str]) -> anyhow::Result<RunConfig> {
    let shared = |path: &str| {
        aso_tests::shared(path).with_context(|| format!("../shared/{path} is not there"))
    };
    let set = [
        format!("model.path={}", shared("models/t5-mini-clb")?.display()),
        format!("data.path={}", shared("data/cl-benchmark")?.display()),
    ];
    let set = SETTINGS
        .iter()
        .chain(more)
        .map(ToString::to_string)
        .chain(set);
    let set: Vec<String> = set.collect();
    Ok(RunConfig::parse("", Path::new("versus.toml"), &set)?)
}

/// A run from nothing to its results in `dir`, which does not exist.
pub(crate) fn execute(config: &RunConfig, dir: &Path) -> anyhow::Result<RunResults> {
    let run = Run::open(config.clone(), dir, false)?;
    Ok(finish(run)?)
}

fn finish(run: Run) -> Result<RunResults, aso_trainer::TrainerError> {
    let never = AtomicBool::new(false);
    let (_, results) = run.execute(&Device::default(), &mut Silent, &never)?;
    Ok(results)
}

/// One line of a run's log.
#[derive(Debug, Deserialize)]
struct Step {
    task: String,
    cross_entropy: f64,
    seconds: f64,
}

fn steps(run: &Path) -> anyhow::Result<Vec<Step>> {
    let text = read(&run.join(METRICS_FILE))?;
    let lines = text.lines().map(serde_json::from_str);
    Ok(lines.collect::<Result<_, _>>()?)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// A whole run of order 1', loading and reading included.
pub(crate) struct Stream {
    config: RunConfig,
    warm_up: RunConfig,
}

impl Stream {
    pub(crate) fn new(method: &str, preset: &str) -> anyhow::Result<Self> {
        Self::with_lambda(method, preset, RunConfig::default().method.lambda1)
    }

    pub(crate) fn with_lambda(method: &str, preset: &str, lambda1: f64) -> anyhow::Result<Self> {
        let set = [
            format!("method.name={method}"),
            format!("method.lambda1={lambda1}"),
            format!("attribution.preset={preset}"),
        ];
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let order = [set.as_slice(), &["stream.order=order1p"]].concat();
        let short = [
            "stream.tasks=[\"dbpedia\", \"amazon\"]",
            "data.max_train=48",
            "data.max_eval=8",
        ];
        Ok(Self {
            config: settings(&order)?,
            warm_up: settings(&[set.as_slice(), &short].concat())?,
        })
    }

    fn learn(config: &RunConfig) -> anyhow::Result<Outcome> {
        let dir = TempDir::new()?;
        let run = dir.path().join("run");
        let results = execute(config, &run)?;
        Ok(Outcome {
            check: mean(steps(&run)?.iter().map(|step| step.cross_entropy)),
            score: results.ap,
            ..Outcome::default()
        })
    }
}

impl Workload for Stream {
    fn warm_up(&mut self) -> anyhow::Result<Option<f64>> {
        Self::learn(&self.warm_up).map(|_| None)
    }

    fn run(&mut self) -> anyhow::Result<Outcome> {
        Self::learn(&self.config)
    }
}

/// A tokenised example as the other side reads it.
#[derive(Serialize)]
pub(crate) struct Encoded<'a> {
    source: &'a [u32],
    target: &'a [u32],
}

impl<'a> Encoded<'a> {
    pub(crate) fn all(examples: &'a [EncodedExample]) -> Vec<Self> {
        let encoded = |example: &'a EncodedExample| Self {
            source: &example.source,
            target: &example.target,
        };
        examples.iter().map(encoded).collect()
    }
}

#[derive(Serialize)]
struct ExportedTask<'a> {
    name: &'a str,
    train: Vec<Encoded<'a>>,
    evaluation: Vec<Encoded<'a>>,
    /// The examples of every step.
    batches: Vec<Vec<usize>>,
}

#[derive(Serialize)]
struct Export<'a> {
    model: &'a str,
    rank: usize,
    alpha: f64,
    dropout: f64,
    lr: f64,
    lambda1: f64,
    /// Steps between measurements of preset `reference`.
    interval: usize,
    eval_batch_size: usize,
    max_new_tokens: usize,
    tasks: Vec<ExportedTask<'a>>,
}

/// Writes order 1' for the other side.
pub(crate) fn export(work: &Path) -> anyhow::Result<()> {
    let config = Stream::new("aso-lora", "reference")?.config;
    let loaded = load_model(&config.model, &Device::default(), &mut Silent)?;
    let library = open_library(&config.data)?;
    let (codec, vocabulary) = (&loaded.codec, loaded.model.vocabulary());
    let library = library.as_ref();
    let load = |name: &String| Task::load(library, name, &config, codec, vocabulary);
    let tasks: Vec<Task> = config.tasks()?.iter().map(load).collect::<Result<_, _>>()?;
    let exported = tasks.iter().enumerate().map(|(index, task)| ExportedTask {
        name: &task.name,
        train: Encoded::all(&task.train),
        evaluation: Encoded::all(&task.evaluation),
        batches: batches(&config, index, task),
    });
    write_json(
        &work.join("order1.json"),
        &Export {
            model: &config.model.path,
            rank: config.lora.rank,
            alpha: config.lora.alpha,
            dropout: config.lora.dropout,
            lr: config.train.lr,
            lambda1: config.method.lambda1,
            interval: config.attribution.interval_for(usize::MAX),
            eval_batch_size: config.eval.batch_size,
            max_new_tokens: config.eval.max_new_tokens,
            tasks: exported.collect(),
        },
    )
}

/// The batches of a task's one epoch, in the trainer's order.
fn batches(config: &RunConfig, index: usize, task: &Task) -> Vec<Vec<usize>> {
    let mut order = BatchOrder::new(&task.train, config, index);
    let steps = task.train.len().div_ceil(config.train.batch_size);
    (0..steps).map(|step| order.batch(step).to_vec()).collect()
}

/// Steps of the measured task in [`Growth`], of which the first is left out. Preset `aso` measures before every
/// multiple of [`INTERVAL`]: its default for 1000 examples in batches of [`BATCH_SIZE`], 125 steps.
const STEPS: usize = 51;
const INTERVAL: usize = 25;
const BATCH_SIZE: usize = 8;

/// The mean step of a task behind a number of others, with T5-small's shape, sources of 128 and targets of 8 tokens.
pub(crate) struct Growth {
    _dir: TempDir,
    /// The run over the past tasks, if there are any.
    past: Option<PathBuf>,
    config: RunConfig,
    runs: PathBuf,
}

impl Growth {
    pub(crate) fn new(work: &Path, past: usize) -> anyhow::Result<Self> {
        let dir = TempDir::new()?;
        let data = dir.path().join("data");
        let names: Vec<String> = (0..past).map(|task| format!("past{task:02}")).collect();
        for name in &names {
            write_task(&data.join(name), BATCH_SIZE)?;
        }
        write_task(&data.join(MEASURED), STEPS * BATCH_SIZE)?;
        let model = model_with_tokenizer(work, dir.path())?;
        let config = |tasks: &[String]| {
            let set = [
                format!("model.path={}", model.display()),
                "data.format=jsonl".to_owned(),
                format!("data.path={}", data.display()),
                format!("stream.tasks={tasks:?}"),
                "data.max_source=128".to_owned(),
                "data.max_target=8".to_owned(),
                "data.max_eval=1".to_owned(),
                format!("attribution.interval={INTERVAL}"),
                format!("train.batch_size={BATCH_SIZE}"),
                "train.checkpoint_every=0".to_owned(),
                "eval.tasks=seen".to_owned(),
                "eval.zero_shot=false".to_owned(),
                "eval.max_new_tokens=1".to_owned(),
            ];
            RunConfig::parse("", Path::new("versus.toml"), &set)
        };
        let runs = dir.path().join("runs");
        std::fs::create_dir(&runs)?;
        let past = match names.as_slice() {
            [] => None,
            names => {
                let run = runs.join("past");
                execute(&config(names)?, &run)?;
                Some(run)
            }
        };
        Ok(Self {
            past,
            config: config(&[MEASURED.to_owned()])?,
            runs,
            _dir: dir,
        })
    }
}

const MEASURED: &str = "measured";

impl Workload for Growth {
    fn run(&mut self) -> anyhow::Result<Outcome> {
        let run = self.runs.join("run");
        match &self.past {
            None => {
                execute(&self.config, &run)?;
            }
            Some(past) => {
                copy_dir(past, &run)?;
                finish(Run::extend(&run, &[MEASURED.to_owned()])?)?;
            }
        }
        let steps = steps(&run)?;
        // The first step after a start maps memory, which takes up to a step's time; that is not what is compared.
        let measured = || steps.iter().filter(|step| step.task == MEASURED).skip(1);
        let outcome = Outcome {
            seconds: Some(mean(measured().map(|step| step.seconds))),
            check: mean(measured().map(|step| step.cross_entropy)),
            ..Outcome::default()
        };
        std::fs::remove_dir_all(&run)?;
        Ok(outcome)
    }
}

/// A task whose every source and target is longer than the limits.
fn write_task(dir: &Path, examples: usize) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut text = String::new();
    for example in 0..examples {
        let words: Vec<String> = (0..200)
            .map(|word| format!("word{}", (example * 31 + word * 17) % 97))
            .collect();
        let (input, target) = (words.join(" "), words[..20].join(" "));
        writeln!(
            text,
            "{}",
            serde_json::json!({"input": input, "target": target})
        )?;
    }
    for split in ["train", "dev", "test"] {
        std::fs::write(dir.join(format!("{split}.jsonl")), &text)?;
    }
    Ok(())
}

/// The random T5, with the tokenizer of the built-in model.
fn model_with_tokenizer(work: &Path, dir: &Path) -> anyhow::Result<PathBuf> {
    let model = dir.join("model");
    std::fs::create_dir(&model)?;
    for file in ["config.json", "model.safetensors"] {
        let from = work.join("t5").join(file);
        std::fs::copy(&from, model.join(file)).with_context(|| from.display().to_string())?;
    }
    let tokenizer = aso_tests::root().join("crates/aso-trainer/assets/demo/tokenizer.json");
    std::fs::copy(tokenizer, model.join("tokenizer.json"))?;
    Ok(model)
}

fn copy_dir(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
