//! `aso eval`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use aso_backbones::{Backbone, GenerationConfig};
use aso_data::Layout;
use aso_lora::AdapterScope;
use aso_trainer::config::{DataFormat, ModelSettings};
use aso_trainer::evaluate::Evaluator;
use aso_trainer::events::{Event, Observer};
use aso_trainer::files::CONFIG_FILE;
use aso_trainer::load::{load_adapters, load_model, open_library};
use aso_trainer::method::Structure;
use aso_trainer::state::{RunState, adapter_dir};
use aso_trainer::{RunConfig, Task};
use burn::tensor::Device;
use serde::Serialize;

use crate::args::EvalArgs;
use crate::output;
use crate::progress::Terminal;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Scores {
    tasks: Vec<String>,
    scores: Vec<f64>,
    examples: Vec<usize>,
    average: f64,
}

pub(crate) fn run(
    args: &EvalArgs,
    device: &Device,
    terminal: Terminal,
) -> anyhow::Result<ExitCode> {
    let (mut config, adapters) = match &args.run {
        Some(run) => from_run(run, args)?,
        None => (from_arguments(args)?, args.adapter.clone()),
    };
    if let Some(mode) = args.mode {
        config.eval.mode = mode.into();
    }
    let mut progress = terminal.observer(config.train.log_every);
    let mut loaded = load_model(&config.model, device, &mut progress)?;
    load_adapters(&mut loaded.model, &adapters, &loaded.fingerprint, false)?;
    let library = open_library(&config.data)?;
    let names = if !args.tasks.is_empty() {
        args.tasks.clone()
    } else if args.run.is_some() {
        config.tasks()?
    } else {
        library.names()
    };
    let mut result = Scores {
        tasks: Vec::new(),
        scores: Vec::new(),
        examples: Vec::new(),
        average: 0.0,
    };
    let vocabulary = loaded.model.vocabulary();
    let evaluator = Evaluator {
        codec: &loaded.codec,
        mode: config.eval.mode,
        batch_size: config.eval.batch_size,
        generation: GenerationConfig::greedy(config.eval.max_new_tokens),
        stop: &[],
    };
    for name in names {
        let task = Task::load(library.as_ref(), &name, &config, &loaded.codec, vocabulary)?;
        let examples = task.evaluation.len();
        progress.event(Event::EvaluationStarted {
            after: None,
            task: &name,
            examples,
        });
        let score = evaluator.score(&loaded.model, &task, AdapterScope::All, &mut |done| {
            progress.event(Event::EvaluationProgress { done });
        })?;
        let after = Some("adapters").filter(|_| !adapters.is_empty());
        progress.event(Event::EvaluationFinished {
            after,
            task: &name,
            score,
        });
        result.tasks.push(name);
        result.scores.push(score);
        result.examples.push(examples);
    }
    result.average = result.scores.iter().sum::<f64>() / result.scores.len().max(1) as f64;
    if args.json {
        output::print_json(&result)?;
    } else {
        let lines = result
            .tasks
            .iter()
            .zip(&result.scores)
            .zip(&result.examples);
        let lines =
            lines.map(|((task, score), n)| format!("{task:24} {score:6.2}  ({n} examples)"));
        let average = format!("{:24} {:6.2}", "average", result.average);
        let text = lines.chain([average]).collect::<Vec<_>>().join("\n");
        output::write_stdout(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Configuration and adapters of a run's present model.
fn from_run(run: &Path, args: &EvalArgs) -> anyhow::Result<(RunConfig, Vec<PathBuf>)> {
    let mut config = RunConfig::load(&run.join(CONFIG_FILE), &args.set)?;
    config.data.max_eval = args.max_eval.or(config.data.max_eval);
    let state = RunState::read(run)?
        .with_context(|| format!("{}: the run has not trained a task yet", run.display()))?;
    let mut adapters: Vec<PathBuf> = config
        .tasks()?
        .iter()
        .take(state.trained)
        .enumerate()
        .map(|(index, task)| adapter_dir(run, index, task))
        .collect();
    match config.method.name.structure() {
        Structure::Stack => {}
        Structure::Single | Structure::Joint => adapters = adapters.pop().into_iter().collect(),
        Structure::PerTask => bail!(
            "{}: method `per-task` has an adapter for each task; name one with --adapter",
            run.display()
        ),
    }
    Ok((config, adapters))
}

fn from_arguments(args: &EvalArgs) -> anyhow::Result<RunConfig> {
    let mut config = config_of(args.model.as_deref(), args.data.as_deref(), &args.set)?;
    config.data.max_eval = args.max_eval.or(config.data.max_eval);
    Ok(config)
}

/// A configuration for a model and data that were given as arguments.
pub(super) fn config_of(
    model: Option<&str>,
    data: Option<&Path>,
    set: &[String],
) -> anyhow::Result<RunConfig> {
    let mut config = RunConfig::parse("", Path::new("./arguments"), set)?;
    if let Some(model) = model {
        config.model = ModelSettings {
            path: model.to_owned(),
            ..config.model
        };
    }
    if let Some(data) = data {
        config.data.path = Some(data.to_owned());
        config.data.format = match Layout::of(data) {
            Layout::ClBenchmark => DataFormat::ClBenchmark,
            Layout::Jsonl => DataFormat::Jsonl,
            Layout::Trace => DataFormat::Trace,
            Layout::SuperNi => DataFormat::SuperNi,
        };
    }
    Ok(config)
}
