//! `cargo xtask fixtures`: the parity fixtures, made by PyTorch, Transformers and PEFT.
//!
//! The Python packages live in a virtual environment in the target folder, which is made anew when
//! `requirements.txt` changes. Nothing of this is needed to build, test or use the project.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context;
use xshell::Shell;

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

/// The Python of a virtual environment in `environment` that holds what `requirements` names.
fn python_with(
    shell: &Shell,
    requirements: &Path,
    environment: &Path,
    python: &Path,
) -> anyhow::Result<PathBuf> {
    let inside = environment.join(if cfg!(windows) {
        "Scripts/python.exe"
    } else {
        "bin/python"
    });
    let wanted = shell.read_file(requirements)?;
    // Written last, so that an interrupted installation counts as none.
    let installed = environment.join("installed.txt");
    if !is_current(shell, &installed, &wanted) {
        let venv = shell
            .cmd(python)
            .args(["-m", "venv", "--clear"])
            .arg(environment);
        execute(venv).context("cannot make a virtual environment")?;
        let pip = shell
            .cmd(&inside)
            .args(["-m", "pip", "install", "--requirement"]);
        execute(pip.arg(requirements)).context("cannot install the Python packages")?;
        shell.write_file(&installed, wanted)?;
    }
    Ok(inside)
}

/// Whether the file `installed` says `wanted`.
fn is_current(shell: &Shell, installed: &Path, wanted: &str) -> bool {
    shell.path_exists(installed) && shell.read_file(installed).is_ok_and(|text| text == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_current_only_with_the_same_requirements() {
        let shell = Shell::new().unwrap();
        let dir = shell.create_temp_dir().unwrap();
        let installed = dir.path().join("installed.txt");
        assert!(!is_current(&shell, &installed, "torch==2\n"));
        shell.write_file(&installed, "torch==2\n").unwrap();
        assert!(is_current(&shell, &installed, "torch==2\n"));
        assert!(!is_current(&shell, &installed, "torch==3\n"));
    }
}
