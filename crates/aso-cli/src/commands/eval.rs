//! `aso eval`.

use std::path::PathBuf;
use std::process::ExitCode;

use aso_backbones::{Backbone, GenerationConfig};
use aso_lora::AdapterScope;
use aso_trainer::Task;
use aso_trainer::evaluate::Evaluator;
use aso_trainer::events::{Event, Observer};
use aso_trainer::load::{load_adapters, load_model, open_library};
use burn::tensor::Device;
use serde::Serialize;

use super::source::Source;
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
    let mut source = Source::new(&args.source)?;
    let config = &mut source.config;
    config.data.max_eval = args.max_eval.or(config.data.max_eval);
    if let Some(mode) = args.mode {
        config.eval.mode = mode.into();
    }
    let config = &source.config;
    let library = open_library(&config.data)?;
    let names = if !args.tasks.is_empty() {
        args.tasks.clone()
    } else if args.source.model.run.is_some() {
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
    let parts: Vec<(String, &[PathBuf])> = names
        .into_iter()
        .map(|name| Ok((name.clone(), source.adapters_for(&name)?)))
        .collect::<anyhow::Result<_>>()?;
    let mut progress = terminal.observer(config.train.log_every);
    // One model answers all tasks unless the run's method has one for each.
    for part in parts.chunk_by(|(_, a), (_, b)| a == b) {
        let mut loaded = load_model(&config.model, device, &mut progress)?;
        let adapters = part[0].1;
        load_adapters(&mut loaded.model, adapters, &loaded.fingerprint, false)?;
        let codec = &loaded.codec;
        let evaluator = Evaluator {
            codec,
            mode: config.eval.mode,
            batch_size: config.eval.batch_size,
            generation: GenerationConfig::greedy(config.eval.max_new_tokens),
            stop: &[],
        };
        let vocabulary = loaded.model.vocabulary();
        for (name, _) in part {
            let task = Task::load_evaluation(library.as_ref(), name, config, codec, vocabulary)?;
            let examples = task.evaluation.len();
            progress.event(Event::EvaluationStarted {
                after: None,
                task: name,
                examples,
            });
            let score = evaluator.score(&loaded.model, &task, AdapterScope::All, &mut |done| {
                progress.event(Event::EvaluationProgress { done });
            })?;
            let after = Some("adapters").filter(|_| !adapters.is_empty());
            progress.event(Event::EvaluationFinished {
                after,
                task: name,
                mode: config.eval.mode,
                score,
            });
            result.tasks.push(name.clone());
            result.scores.push(score);
            result.examples.push(examples);
        }
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
