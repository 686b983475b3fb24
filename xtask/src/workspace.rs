//! The workspace as commands see it: its root, its target folder and its cargo.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Context;
use xshell::{Cmd, Shell};

/// A shell whose current directory is the root of the workspace.
pub(crate) struct Workspace {
    shell: Shell,
}

impl Workspace {
    /// Finds the root of the workspace.
    pub(crate) fn open() -> anyhow::Result<Self> {
        // Asked at run time first: two checkouts that share a target folder may share this binary.
        let package = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = package
            .parent()
            .context("the xtask package lies outside a workspace")?;
        let shell = Shell::new()?;
        shell.change_dir(root);
        Ok(Self { shell })
    }

    /// The shell, for files and for programs other than cargo.
    pub(crate) fn shell(&self) -> &Shell {
        &self.shell
    }

    /// `path`, made absolute from the root.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.shell.current_dir().join(path)
    }

    /// The folder of build output.
    pub(crate) fn target_dir(&self) -> PathBuf {
        self.path(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
    }

    /// The cargo that started this program, ready for arguments.
    pub(crate) fn cargo(&self) -> Cmd<'_> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        // `cargo run` describes the xtask package in variables. Build scripts that watch them would run
        // again whenever cargo is called from here after being called by hand, and the other way round.
        env::vars_os()
            .map(|(name, _)| name)
            .filter(|name| {
                let name = name.to_string_lossy();
                name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
            })
            .fold(self.shell.cmd(cargo), |command, name| {
                command.env_remove(name)
            })
    }
}
