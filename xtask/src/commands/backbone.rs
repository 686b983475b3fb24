//! `cargo xtask backbone`: makes the small T5 and the task suite that ship with `aso demo`.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::steps::execute;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to write to, from the root of the workspace
    #[arg(
        long,
        value_name = "DIR",
        default_value = "crates/aso-trainer/assets/demo"
    )]
    out: PathBuf,
    /// Further arguments of the `backbone` example of aso-trainer
    #[arg(last = true, value_name = "ARGS")]
    example_args: Vec<OsString>,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    let example = ["run", "--release", "--locked", "--package", "aso-trainer"];
    let cargo = workspace
        .cargo()
        .args(example)
        .args(["--example", "backbone", "--", "--out"]);
    execute(
        cargo
            .arg(workspace.path(&args.out))
            .args(&args.example_args),
    )
}
