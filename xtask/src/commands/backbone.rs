//! `cargo xtask backbone`: makes the small models that ship with `aso demo`.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::steps::execute;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Family of the model: t5 or llama
    #[arg(long, value_name = "ARCH", default_value = "t5")]
    arch: String,
    /// Folder to write to, from the root of the workspace [default: where the program's own model is]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Further arguments of the `backbone` example of aso-trainer
    #[arg(last = true, value_name = "ARGS")]
    example_args: Vec<OsString>,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    let example = ["run", "--release", "--locked", "--package", "aso-trainer"];
    let cargo =
        workspace
            .cargo()
            .args(example)
            .args(["--example", "backbone", "--", "--arch", &args.arch]);
    let cargo = match &args.out {
        Some(out) => cargo.arg("--out").arg(workspace.path(out)),
        None => cargo,
    };
    execute(cargo.args(&args.example_args))
}
