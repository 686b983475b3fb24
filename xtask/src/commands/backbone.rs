//! `cargo xtask backbone`: pre-trains small models.

use std::env;
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
    /// Train on another backend than the CPU's, as the features of aso-cli are called
    #[arg(long, value_name = "NAME", value_parser = ["wgpu", "vulkan", "metal", "cuda", "rocm"])]
    backend: Option<String>,
    /// Further arguments of the `backbone` example of aso-trainer
    #[arg(last = true, value_name = "ARGS")]
    example_args: Vec<OsString>,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    // `cargo run` knows no --workspace, and a package built alone has other features than in all other builds.
    let build = ["build", "--release", "--locked", "--workspace"];
    let mut build = workspace
        .cargo()
        .args(build)
        .args(["--example", "backbone"]);
    if let Some(backend) = &args.backend {
        build = build.args(["--features", &format!("aso-cli/{backend}")]);
    }
    execute(build)?;
    let program = workspace
        .target_dir()
        .join("release/examples/backbone")
        .with_extension(env::consts::EXE_EXTENSION);
    let mut command = workspace.shell().cmd(program).args(["--arch", &args.arch]);
    if args.backend.is_some() {
        command = command.args(["--device", "default"]);
    }
    if let Some(data) = &args.data {
        command = command.arg("--data").arg(workspace.path(data));
    }
    if let Some(hours) = args.hours {
        command = command.args(["--hours", &hours.to_string()]);
    }
    if let Some(steps) = args.steps {
        command = command.args(["--steps", &steps.to_string()]);
    }
    if let Some(out) = &args.out {
        command = command.arg("--out").arg(workspace.path(out));
    }
    execute(command.args(&args.example_args))
}
