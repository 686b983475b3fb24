//! `aso`: continual learning of language models with one low-rank subspace per task.
//!
//! The library holds the whole program, so that tests run the same code; the binary calls [`main`].
//!
//! Exit status: 0 done, 2 bad usage, bad input or a failed run (one error on stderr says why), 130
//! interrupted after everything needed to resume was saved.

mod args;
mod commands;
mod device;
mod jobs;
mod output;
mod progress;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::progress::Terminal;

/// Keeps the buffers of one training step for the next. glibc's gives large ones back, so that every step pays for
/// mapping and clearing its pages again (docs/performance.md).
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit status after an interruption that saved its progress: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Parses the arguments of the process and runs the command.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let terminal = Terminal::start(cli.global.quiet, cli.global.verbose);
    match run(cli, terminal) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("error: {}", chain(&error));
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli, terminal: Terminal) -> anyhow::Result<ExitCode> {
    device::set_threads(cli.global.threads)?;
    let open_device = || device::open(cli.global.device.as_ref());
    match cli.command {
        Command::Demo(args) => commands::demo::run(&args, &open_device()?, terminal),
        Command::Run(args) => commands::run::run(args, open_device, terminal),
        Command::Sweep(args) => commands::sweep::run(&args, &cli.global, &terminal),
        Command::Tune(args) => commands::tune::run(&args, &cli.global, &terminal),
        Command::Eval(args) => commands::eval::run(&args, &open_device()?, terminal),
        Command::Predict(args) => commands::predict::run(&args, &open_device()?, terminal),
        Command::Probe(args) => commands::probe::run(&args, &open_device()?, &terminal),
        Command::Similarity(args) => commands::similarity::run(&args, &open_device()?, &terminal),
        Command::Report(args) => commands::report::run(&args),
        Command::Config(args) => commands::config::run(&args),
        Command::Orders(args) => commands::orders::run(&args),
    }
}

/// The error and its causes on one line. A cause that its error already spells out is not repeated.
fn chain(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

/// A reader that closed the pipe (`aso .. | head`) is no error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn causes_are_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("file: {source}")]
        struct File {
            source: std::fmt::Error,
        }
        let source = std::fmt::Error;
        let error = Err::<(), _>(File { source })
            .context("loading")
            .unwrap_err();
        assert_eq!(chain(&error), format!("loading: file: {}", std::fmt::Error));
    }
}
