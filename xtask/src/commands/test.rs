//! `cargo xtask test`: all tests, offline once the dependencies are there.

use std::ffi::OsString;

use crate::steps::{Steps, execute};
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Further arguments of `cargo test`
    #[arg(last = true, value_name = "ARGS")]
    cargo_args: Vec<OsString>,
}

/// The test command of the README.
const TEST: [&str; 4] = ["test", "--release", "--workspace", "--locked"];

pub(crate) fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    execute(workspace.cargo().args(TEST).args(&args.cargo_args))
}

/// Runs all tests as a step of a longer command.
pub(crate) fn all(workspace: &Workspace, steps: &mut Steps) -> anyhow::Result<()> {
    steps.run("test", workspace.cargo().args(TEST))
}
