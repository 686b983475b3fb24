//! `cargo xtask backbone`: pre-trains small models.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::steps::execute;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Family of the model: t5 or llama
    #[arg(long, value_name = "ARCH", default_value = "t5")]
    arch: String,
    /// Folder of the CL benchmark, whose texts (not their labels) are learned [default: the generated language of
    /// `aso demo`]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// About how long to train; a run that was interrupted goes on where it was
    #[arg(long, value_name = "H")]
    hours: Option<f64>,
    /// Optimizer steps, instead of hours
    #[arg(long, value_name = "N", conflicts_with = "hours")]
    steps: Option<usize>,
    /// Folder to write to, from the root of the workspace; with --data also the state of the training [default: where
    /// the program's own model is; with --data, t5-small-corpus or llama-small-corpus]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Further arguments of the `backbone` example of aso-trainer
    #[arg(last = true, value_name = "ARGS")]
    example_args: Vec<OsString>,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    let example = ["run", "--release", "--locked", "--workspace"];
    let mut cargo =
        workspace
            .cargo()
            .args(example)
            .args(["--example", "backbone", "--", "--arch", &args.arch]);
    if let Some(data) = &args.data {
        cargo = cargo.arg("--data").arg(workspace.path(data));
    }
    if let Some(hours) = args.hours {
        cargo = cargo.args(["--hours", &hours.to_string()]);
    }
    if let Some(steps) = args.steps {
        cargo = cargo.args(["--steps", &steps.to_string()]);
    }
    if let Some(out) = &args.out {
        cargo = cargo.arg("--out").arg(workspace.path(out));
    }
    execute(cargo.args(&args.example_args))
}
