//! `cargo xtask fixtures`: the parity fixtures, made by PyTorch, Transformers and PEFT.
//!
//! The Python packages live in a virtual environment in the target folder, which is made anew when
//! `requirements.txt` changes. Nothing of this is needed to build, test or use the project.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::python::python_with;
use crate::steps::execute;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Let PEFT load adapters that this project wrote and compare its logits, instead of writing fixtures
    #[arg(long)]
    pub(crate) verify: bool,
    /// Python that makes the virtual environment, 3.11 or newer
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
    /// Arguments of the script: `--family t5|llama|all`, `--out DIR`; with --verify `--model DIR --adapters DIR .. --batch FILE
    /// --expected FILE`
    #[arg(last = true, value_name = "ARGS")]
    pub(crate) script_args: Vec<OsString>,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    let scripts = workspace.path("xtask/fixtures");
    let script = scripts.join(if args.verify {
        "verify_peft.py"
    } else {
        "generate.py"
    });
    let requirements = scripts.join("requirements.txt");
    let environment = workspace.target_dir().join("fixtures-venv");
    let python = python_with(workspace.shell(), &requirements, &environment, &args.python)?;
    execute(
        workspace
            .shell()
            .cmd(python)
            .arg(script)
            .args(&args.script_args),
    )
}
