//! Runs of a sweep as processes of this program, several at a time.
//!
//! A process each, so that one that crashes takes no other along. A child stops, and saves what it has,
//! as soon as its standard input ends: when the sweep closes it or dies.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use aso_trainer::files::{RunLock, in_use};
use aso_trainer::metrics::Metric;
use aso_trainer::sweep::{LOG_FOLDER, Ledger, PlannedRun, SweptStatus, check_inputs, start_order};

use crate::args::{Global, JobArgs};
use crate::output;
use crate::progress::{Terminal, stop_flag};

/// How often children are looked at.
const POLL: Duration = Duration::from_millis(50);

/// How runs end together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Every run was started; some may have failed.
    Completed,
    /// A signal stopped them.
    Interrupted,
}

/// What all children have in common.
struct Jobs<'a> {
    program: PathBuf,
    device: Option<String>,
    threads: usize,
    jobs: usize,
    out: &'a Path,
    verbose: bool,
}

/// A child at work.
struct Job {
    index: usize,
    child: Child,
    log: PathBuf,
    /// Where this attempt's lines begin in the log.
    from: u64,
    started: Instant,
    /// Read by the child, which may not have done so yet.
    _config: tempfile::TempPath,
}

/// Runs what the ledger does not call finished. `changed` is called before the first run and after each.
///
/// # Errors
/// If a run could never start; nothing has been started then. Failures of runs are in the ledger.
pub(crate) fn execute(
    ledger: &mut Ledger<'_>,
    args: &JobArgs,
    global: &Global,
    terminal: &Terminal,
    dev: bool,
    changed: &mut dyn FnMut(&Ledger<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<Ended> {
    let out = ledger.out().to_owned();
    let pending = check(ledger, dev)?;
    fs::create_dir_all(&out).with_context(|| format!("{}", out.display()))?;
    let _lock = RunLock::acquire(&out)?;
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = Jobs {
        program: own_program()?,
        device: global.device.as_ref().map(ToString::to_string),
        threads: (global.threads.unwrap_or(available) / args.jobs).max(1),
        jobs: args.jobs,
        out: &out,
        verbose: global.verbose,
    };
    let stop = stop_flag()?;
    changed(ledger)?;
    jobs.work(ledger, pending, terminal, &stop, changed)
}

/// The runs that are left, in the order in which they are to start.
///
/// # Errors
/// If one of them could never start.
pub(crate) fn check(ledger: &Ledger<'_>, dev: bool) -> anyhow::Result<VecDeque<usize>> {
    let runs = ledger.runs();
    let unfinished = |&index: &usize| ledger.records()[index].status != SweptStatus::Finished;
    let pending: VecDeque<usize> = start_order(runs).into_iter().filter(unfinished).collect();
    let missing: Vec<PlannedRun> = pending.iter().map(|&index| runs[index].clone()).collect();
    check_inputs(&missing, dev)?;
    Ok(pending)
}

impl Jobs<'_> {
    fn work(
        &self,
        ledger: &mut Ledger<'_>,
        mut pending: VecDeque<usize>,
        terminal: &Terminal,
        stop: &AtomicBool,
        changed: &mut dyn FnMut(&Ledger<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Ended> {
        let runs = ledger.runs();
        let bar = terminal.bar(runs.len(), ledger.finished());
        let mut active: Vec<Job> = Vec::new();
        let mut waiting = false;
        loop {
            let stopped = stop.load(Ordering::Relaxed);
            if stopped {
                pending.clear();
                // The end of its standard input tells a child to save and stop.
                active
                    .iter_mut()
                    .for_each(|job| drop(job.child.stdin.take()));
            }
            while active.len() < self.jobs
                && let Some(index) = self.next_free(runs, &mut pending)?
            {
                match self.start(index, &runs[index]) {
                    Ok(job) => {
                        tracing::info!(run = runs[index].directory, "started");
                        active.push(job);
                    }
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::error!(run = runs[index].directory, error, "not started");
                        ledger.fail(index, error);
                        changed(ledger)?;
                    }
                }
            }
            if active.is_empty() && pending.is_empty() {
                bar.finish_and_clear();
                return Ok(match stopped && ledger.finished() < runs.len() {
                    true => Ended::Interrupted,
                    false => Ended::Completed,
                });
            }
            if active.is_empty() && !waiting {
                let run = &runs[pending[0]].directory;
                tracing::warn!(run, "waiting for another process that works there");
                waiting = true;
            }
            let mut at = 0;
            while at < active.len() {
                match active[at].child.try_wait()? {
                    None => at += 1,
                    Some(status) => {
                        let job = active.swap_remove(at);
                        let run = &runs[job.index];
                        settle(ledger, &job, status);
                        report(ledger, &job, run, stopped);
                        changed(ledger)?;
                        bar.set_position(ledger.finished() as u64);
                    }
                }
            }
            let names = active.iter().map(|job| runs[job.index].directory.as_str());
            bar.set_message(names.collect::<Vec<_>>().join(", "));
            bar.tick();
            std::thread::sleep(POLL);
        }
    }

    /// The first run whose directory no other process works in, such as the child of a sweep that was killed
    /// and that is about to stop.
    fn next_free(
        &self,
        runs: &[PlannedRun],
        pending: &mut VecDeque<usize>,
    ) -> anyhow::Result<Option<usize>> {
        for at in 0..pending.len() {
            if !in_use(&self.out.join(&runs[pending[at]].directory))? {
                return Ok(pending.remove(at));
            }
        }
        Ok(None)
    }

    fn start(&self, index: usize, run: &PlannedRun) -> anyhow::Result<Job> {
        let log = log_path(self.out, run);
        let folder = log.parent().unwrap_or(self.out);
        fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        // What a killed sweep leaves behind, the next one overwrites.
        let config = log.with_extension("toml");
        fs::write(&config, run.config.to_toml()?)
            .with_context(|| format!("{}", config.display()))?;
        let config = tempfile::TempPath::try_from_path(config)?;
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("{}", log.display()))?;
        let from = file.metadata()?.len();
        let mut command = Command::new(&self.program);
        command.arg("run").arg(&config);
        command.arg("--out").arg(self.out.join(&run.directory));
        command.args(["--resume", "--stop-at-eof", "--threads"]);
        command.arg(self.threads.to_string());
        if let Some(device) = &self.device {
            command.args(["--device", device]);
        }
        if self.verbose {
            command.arg("--verbose");
        }
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .with_context(|| format!("{}", self.program.display()))?;
        Ok(Job {
            index,
            child,
            log,
            from,
            started: Instant::now(),
            _config: config,
        })
    }
}

/// This very program, for runs that start hours from now: on Linux also if its file has been replaced by another build.
fn own_program() -> anyhow::Result<PathBuf> {
    let running = Path::new("/proc/self/exe");
    match running.exists() {
        true => Ok(running.to_owned()),
        false => std::env::current_exe().context("the path of this program"),
    }
}

/// Puts into the ledger how a child ended. What its directory holds decides, then its exit status.
fn settle(ledger: &mut Ledger<'_>, job: &Job, status: ExitStatus) {
    if let Err(error) = ledger.refresh(job.index) {
        ledger.fail(job.index, error.to_string());
        return;
    }
    let interrupted = status.code() == Some(i32::from(crate::INTERRUPTED));
    let unfinished = ledger.records()[job.index].status != SweptStatus::Finished;
    if unfinished && !interrupted {
        let error = last_error(&job.log, job.from);
        ledger.fail(job.index, error.unwrap_or_else(|| ended(status)));
    }
}

fn report(ledger: &Ledger<'_>, job: &Job, run: &PlannedRun, stopped: bool) {
    let record = &ledger.records()[job.index];
    let (run, log) = (&run.directory, job.log.display());
    let seconds = format!("{:.0}", job.started.elapsed().as_secs_f64());
    match record.status {
        SweptStatus::Finished => {
            let ap = output::score(record.metric(Metric::Ap));
            let done = format!("{}/{}", ledger.finished(), ledger.records().len());
            tracing::info!(run, ap, seconds, done, "finished");
        }
        SweptStatus::Failed => {
            let error = record.error.as_deref().unwrap_or_default();
            tracing::error!(run, error, %log, "failed");
        }
        _ if stopped => tracing::info!(run, "stopped; its progress is saved"),
        _ => tracing::warn!(run, "was interrupted; a later call goes on with it"),
    }
}

/// What a run logs: `DIR/logs/ORDER/LABEL/seed-N.log`.
fn log_path(out: &Path, run: &PlannedRun) -> PathBuf {
    out.join(LOG_FOLDER).join(format!("{}.log", run.directory))
}

/// The last error that the program wrote behind offset `from` of a log.
fn last_error(log: &Path, from: u64) -> Option<String> {
    let bytes = fs::read(log).ok()?;
    error_in(&String::from_utf8_lossy(
        bytes.get(usize::try_from(from).ok()?..)?,
    ))
}

/// The last error in a log; of a panic, which ends a process without one, the message below the place.
fn error_in(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().collect();
    let found = lines.iter().enumerate().rev().find_map(|(at, line)| {
        let panicked = || {
            let place = line.split_once("panicked at ")?.1;
            let message = lines.get(at + 1).unwrap_or(&"");
            Some(format!("panicked at {place} {message}"))
        };
        let error = line.strip_prefix("error: ").map(str::to_owned);
        error.or_else(panicked)
    });
    found.map(|error| error.trim_end().to_owned())
}

/// How a process ended that said nothing.
fn ended(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("ended with status {code}"),
        None => format!("was ended: {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_a_failure_is_its_last_error() {
        let log = " INFO started\nerror: first\n INFO started\nerror: second: cause\n";
        assert_eq!(error_in(log).unwrap(), "error: second: cause"[7..]);
        let log = "error: first\n\nthread 'main' (7) panicked at src/a.rs:1:2:\nindex out of bounds\nnote: run with `RUST_BACKTRACE=1`\n";
        let expected = "panicked at src/a.rs:1:2: index out of bounds";
        assert_eq!(error_in(log).unwrap(), expected);
        assert_eq!(
            error_in("thread 'x' panicked at a.rs:1:2:").unwrap(),
            "panicked at a.rs:1:2:"
        );
        assert_eq!(error_in(" INFO started\n"), None);
    }
}
