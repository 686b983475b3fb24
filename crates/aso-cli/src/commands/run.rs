//! `aso run`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use aso_trainer::{Outcome, Run, RunConfig, RunResults, TrainerError};
use burn::tensor::Device;

use crate::args::RunArgs;
use crate::output;
use crate::progress::{Terminal, stop_at_eof, stop_flag};

pub(crate) fn run(
    args: RunArgs,
    open_device: impl Fn() -> anyhow::Result<Device>,
    terminal: Terminal,
) -> anyhow::Result<ExitCode> {
    let run = open(&args)?;
    let path = run.path().to_owned();
    if run.is_finished()? {
        tracing::info!(run = %path.display(), "already finished: nothing to do");
        return finish(&RunResults::read(&path)?, &path, args.json);
    }
    let stop = stop_flag()?;
    if args.stop_at_eof {
        stop_at_eof(&stop)?;
    }
    let mut observer = terminal.observer(run.config().train.log_every);
    let (outcome, results) = run.execute(&open_device()?, &mut observer, &stop)?;
    match outcome {
        Outcome::Finished => finish(&results, &path, args.json),
        Outcome::Stopped => {
            tracing::warn!(
                "interrupted; progress is saved: aso run --resume --out {}",
                path.display()
            );
            Ok(ExitCode::from(crate::INTERRUPTED))
        }
    }
}

fn open(args: &RunArgs) -> anyhow::Result<Run> {
    if let Some(run) = &args.extend {
        return Ok(Run::extend(run, &args.tasks)?);
    }
    let Some(config_path) = &args.config else {
        let dir = args
            .out
            .as_ref()
            .context("--resume without CONFIG needs --out DIR")?;
        if args.seed.is_some() || !args.set.is_empty() {
            anyhow::bail!("--seed and --set need CONFIG: a run is resumed with its own settings");
        }
        return Ok(Run::resume(dir)?);
    };
    let mut set = args.set.clone();
    set.extend(args.seed.map(|seed| format!("seed={seed}")));
    let config = RunConfig::load(config_path, &set)?;
    let dir = args
        .out
        .clone()
        .unwrap_or_else(|| default_directory(config_path));
    match Run::open(config, &dir, args.resume) {
        Err(error @ TrainerError::ConfigChanged { .. }) => anyhow::bail!(
            "{error}; without a configuration, aso run --resume --out {} goes on with the stored one",
            dir.display()
        ),
        run => Ok(run?),
    }
}

/// `runs/NAME` for `NAME.toml`.
fn default_directory(config: &Path) -> PathBuf {
    Path::new("runs").join(config.file_stem().unwrap_or("run".as_ref()))
}

fn finish(results: &RunResults, path: &Path, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        output::print_json(results)?;
    } else {
        let directory = path.display();
        output::write_stdout(&format!(
            "{}\n\nRun directory: {directory}",
            output::report(results)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
