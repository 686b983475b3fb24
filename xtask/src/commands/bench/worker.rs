//! A process that runs one workload on request.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A worker that is ready.
pub(super) struct Worker {
    name: String,
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    log: PathBuf,
    pub(super) ready: Ready,
}

/// The first line of a worker.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Ready {
    pub(super) threads: usize,
    pub(super) version: String,
    pub(super) check: Option<f64>,
}

/// The answer to `run`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Answer {
    pub(super) seconds: f64,
    pub(super) check: f64,
    pub(super) peak_bytes: Option<u64>,
    pub(super) score: Option<f64>,
}

impl Worker {
    /// Starts `command` and waits until it is ready. Its error output goes to the file `log`.
    pub(super) fn start(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let errors = File::create(log).with_context(|| log.display().to_string())?;
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            bail!("{name}: no pipes");
        };
        let mut output = BufReader::new(output);
        let ready = answer(name, &mut output, log)?;
        Ok(Self {
            name: name.to_owned(),
            process,
            input,
            output,
            log: log.to_owned(),
            ready,
        })
    }

    /// Lets it do its work once.
    pub(super) fn run(&mut self) -> anyhow::Result<Answer> {
        // If the worker is gone, what it said matters more than the broken pipe.
        let _ = self
            .input
            .write_all(b"run\n")
            .and_then(|()| self.input.flush());
        answer(&self.name, &mut self.output, &self.log)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self
            .input
            .write_all(b"quit\n")
            .and_then(|()| self.input.flush());
        let _ = self.process.wait();
    }
}

/// The next line of JSON.
fn answer<T: DeserializeOwned>(
    name: &str,
    output: &mut impl BufRead,
    log: &Path,
) -> anyhow::Result<T> {
    let mut line = String::new();
    output.read_line(&mut line)?;
    if line.is_empty() {
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let from = log.lines().count().saturating_sub(20);
        let tail: Vec<&str> = log.lines().skip(from).collect();
        bail!("worker {name} ended:\n{}", tail.join("\n"));
    }
    serde_json::from_str(&line).with_context(|| format!("worker {name} said `{}`", line.trim()))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str) -> anyhow::Result<Worker> {
        let dir = xshell::Shell::new()?.create_temp_dir()?;
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Worker::start("test", command, &dir.path().join("log"))
    }

    #[test]
    fn a_worker_answers_until_it_quits() {
        let script = r#"echo '{"ready": true, "threads": 2, "version": "v", "check": 1.5}'
            while read line && [ "$line" = run ]; do echo '{"seconds": 0.5, "check": 2}'; done"#;
        let mut worker = shell(script).unwrap();
        assert_eq!((worker.ready.threads, worker.ready.check), (2, Some(1.5)));
        for _ in 0..2 {
            let answer = worker.run().unwrap();
            assert_eq!((answer.seconds, answer.check), (0.5, 2.0));
        }
    }

    #[test]
    fn a_worker_that_fails_is_quoted() {
        let Err(error) = shell("echo no model here >&2; exit 1") else {
            panic!("it was not ready");
        };
        assert!(error.to_string().contains("no model here"), "{error}");
    }
}
