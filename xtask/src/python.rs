//! Virtual environments with pinned packages, in the target folder.

use std::path::{Path, PathBuf};

use anyhow::Context;
use xshell::Shell;

use crate::steps::execute;

/// The Python of a virtual environment in `environment` that holds what the file `requirements` names; made anew
/// by `python` when that file changes.
pub(crate) fn python_with(
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
