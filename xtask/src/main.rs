//! Developer commands of the workspace, started as `cargo xtask COMMAND`.
//!
//! They only start other programs, so this crate depends on none of the others and builds in seconds. Continuous
//! integration runs nothing else: what `cargo xtask validate` accepts here is accepted there.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | every step passed |
//! | 1 | a step ran and found something wrong |
//! | 2 | wrong usage, or a step could not be run |

mod commands;
mod python;
mod steps;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::bench::ChecksDiffer;
use crate::commands::{backbone, bench, check, fixtures, test, validate};
use crate::steps::CommandFailed;
use crate::workspace::Workspace;

const EXIT_CODES: &str = "\
Exit codes:
  0  every step passed
  1  a step ran and found something wrong
  2  wrong usage, or a step could not be run

Examples:
  cargo xtask validate                     everything a change must pass
  cargo xtask check format clippy          two of the checks
  cargo xtask test -- resume               tests whose name contains `resume`
  cargo xtask bench --filter fold          benchmarks whose name contains `fold`
  cargo xtask bench --peer --filter train  training steps, against PyTorch
  cargo xtask fixtures -- --out /tmp/t5    parity fixtures, written elsewhere to compare";

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXIT_CODES)]
/// Developer commands of the workspace
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Format, licences, book, lints, API documentation and a type check of the GPU backends
    Check(check::Args),
    /// All tests, with the command of the README
    Test(test::Args),
    /// All benchmarks, or with --peer the same work here and in PyTorch, in turn
    Bench(bench::Args),
    /// Rewrite the parity fixtures with PyTorch, Transformers and PEFT, or let PEFT read our adapters
    Fixtures(fixtures::Args),
    /// Pre-train a small backbone: one for the texts of a folder, or without --data those of `aso demo`
    Backbone(backbone::Args),
    /// Everything continuous integration does, cheapest first: check, then test
    Validate,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let found = error.is::<CommandFailed>() || error.is::<ChecksDiffer>();
            ExitCode::from(if found { 1 } else { 2 })
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let workspace = Workspace::open()?;
    match &cli.command {
        Command::Check(args) => check::run(&workspace, args),
        Command::Test(args) => test::run(&workspace, args),
        Command::Bench(args) => bench::run(&workspace, args),
        Command::Fixtures(args) => fixtures::run(&workspace, args),
        Command::Backbone(args) => backbone::run(&workspace, args),
        Command::Validate => validate::run(&workspace),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_after_two_dashes_reach_the_script() {
        let cli = Cli::try_parse_from(["xtask", "fixtures", "--verify", "--", "--model", "m"]);
        let Command::Fixtures(args) = cli.unwrap().command else {
            panic!("another command was parsed");
        };
        assert!(args.verify);
        assert_eq!(args.script_args, ["--model", "m"]);
    }
}
