//! Runs commands one after another, stops at the first that fails and says at the end what was done.

use std::env;
use std::error::Error;
use std::fmt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Context;
use xshell::Cmd;

/// A command that ran and reported a failure.
#[derive(Debug)]
pub(crate) struct CommandFailed {
    command: String,
    status: ExitStatus,
}

impl fmt::Display for CommandFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` failed: {}", self.command, self.status)
    }
}

impl Error for CommandFailed {}

/// Steps run so far.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    done: Vec<(&'static str, Outcome)>,
}

#[derive(Debug)]
enum Outcome {
    Passed(Duration),
    Skipped,
}

impl Steps {
    /// Runs `command` as the step `name`, its output going where ours goes.
    ///
    /// # Errors
    /// [`CommandFailed`] if it exits with another code than 0, something else if it cannot be started.
    pub(crate) fn run(&mut self, name: &'static str, command: Cmd<'_>) -> anyhow::Result<()> {
        eprintln!("[{name}] {}", shown(&command));
        let start = Instant::now();
        execute(command).with_context(|| format!("step {name}"))?;
        self.done.push((name, Outcome::Passed(start.elapsed())));
        Ok(())
    }

    /// Notes that the step `name` is left out, and why.
    pub(crate) fn skip(&mut self, name: &'static str, reason: &str) {
        eprintln!("[{name}] skipped: {reason}");
        self.done.push((name, Outcome::Skipped));
    }
}

/// One line: each step with its time.
impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, outcome)) in self.done.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            match outcome {
                Outcome::Passed(time) => write!(f, "{separator}{name} {:.0} s", time.as_secs_f32()),
                Outcome::Skipped => write!(f, "{separator}{name} skipped"),
            }?;
        }
        Ok(())
    }
}

/// Runs one command.
///
/// # Errors
/// As [`Steps::run`].
pub(crate) fn execute(command: Cmd<'_>) -> anyhow::Result<()> {
    let text = shown(&command);
    // Not `Cmd::run`: its error does not tell a command that failed from one that is not there.
    let status = Command::from(command)
        .status()
        .with_context(|| format!("cannot run `{text}`"))?;
    if status.success() {
        Ok(())
    } else {
        Err(CommandFailed {
            command: text,
            status,
        }
        .into())
    }
}

/// `command` as one would type it: `$CARGO` is a long path into a toolchain.
fn shown(command: &Cmd<'_>) -> String {
    let text = command.to_string();
    match env::var("CARGO") {
        Ok(cargo) => text.replacen(&cargo, "cargo", 1),
        Err(_) => text,
    }
}

/// Whether `command` can be started and succeeds, without showing its output.
pub(crate) fn succeeds(command: Cmd<'_>) -> bool {
    Command::from(command)
        .output()
        .is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;
    use xshell::Shell;

    #[test]
    fn a_failing_command_is_told_from_a_missing_one() {
        let shell = Shell::new().unwrap();
        let mut steps = Steps::default();
        let cargo = || shell.cmd(env!("CARGO")).ignore_stdout().ignore_stderr();

        steps.run("version", cargo().arg("--version")).unwrap();
        let failed = steps
            .run("nonsense", cargo().arg("--no-such-option"))
            .unwrap_err();
        assert!(failed.is::<CommandFailed>());
        assert!(
            format!("{failed:#}").starts_with("step nonsense: `cargo --no"),
            "{failed:#}"
        );
        let missing = steps
            .run("missing", shell.cmd("no-such-program-here"))
            .unwrap_err();
        assert!(!missing.is::<CommandFailed>());
        assert!(
            format!("{missing:#}").contains("cannot run `no-such-program-here`"),
            "{missing:#}"
        );

        steps.skip("extra", "not needed");
        let summary = steps.to_string();
        assert!(
            summary.starts_with("version ") && summary.ends_with(" s, extra skipped"),
            "{summary}"
        );
    }
}
