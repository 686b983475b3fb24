//! `aso demo`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use aso_trainer::config::{ExampleKind, MethodName};
use aso_trainer::{Outcome, Run, RunResults};
use burn::tensor::Device;

use crate::args::{DemoArgs, DemoModel};
use crate::output;
use crate::progress::{Terminal, stop_flag};

/// The method that forgets, and the one that should forget less.
const METHODS: [MethodName; 2] = [MethodName::SeqLora, MethodName::AsoLora];

pub(crate) fn run(
    args: &DemoArgs,
    device: &Device,
    terminal: Terminal,
) -> anyhow::Result<ExitCode> {
    let temporary;
    let out = match &args.out {
        Some(out) => out.as_path(),
        None => {
            temporary = tempfile::tempdir().context("no place for the demo's run directories")?;
            temporary.path()
        }
    };
    let mut results = Vec::new();
    for method in METHODS {
        match run_method(method, args, out, device, &terminal)? {
            (Outcome::Finished, result) => results.push(result),
            (Outcome::Stopped, _) => {
                match &args.out {
                    Some(_) => {
                        tracing::warn!("interrupted; progress is saved: the same command goes on");
                    }
                    None => tracing::warn!("interrupted; without --out nothing is kept"),
                }
                return Ok(ExitCode::from(crate::INTERRUPTED));
            }
        }
    }
    if args.json {
        output::print_json(&results)?;
    } else {
        output::write_stdout(&output::comparison(&results[0], &results[1]))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run_method(
    method: MethodName,
    args: &DemoArgs,
    out: &Path,
    device: &Device,
    terminal: &Terminal,
) -> anyhow::Result<(Outcome, RunResults)> {
    let mut config = ExampleKind::Demo.config();
    config.method.name = method;
    config.model.path = match args.model {
        DemoModel::T5 => "embedded:demo".to_owned(),
        DemoModel::Llama => "embedded:demo-llama".to_owned(),
    };
    config.seed = args.seed.unwrap_or(config.seed);
    config.validate()?;
    let mut observer = terminal.observer(config.train.log_every);
    // A demo that was interrupted goes on where it was stopped.
    let run = Run::open(config, &out.join(method.as_str()), true)?;
    Ok(run.execute(device, &mut observer, &*stop_flag()?)?)
}
