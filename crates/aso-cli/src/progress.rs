//! Progress bars on a terminal, a plain log elsewhere; both on stderr.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aso_trainer::config::EvalMode;
use aso_trainer::events::{Event, Observer, Progress as Download};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::EnvFilter;

use crate::output;

/// The terminal: where bars are drawn and log lines go.
#[derive(Clone)]
pub(crate) struct Terminal {
    bars: MultiProgress,
    interactive: bool,
}

impl Terminal {
    /// Sets up logging. `RUST_LOG` overrides the level.
    pub(crate) fn start(quiet: bool, verbose: bool) -> Self {
        let interactive = io::stderr().is_terminal() && !quiet;
        let target = if interactive {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let terminal = Self {
            bars: MultiProgress::with_draw_target(target),
            interactive,
        };
        let level = match (quiet, verbose) {
            (true, _) => "warn",
            (_, true) => "aso=debug,aso_data=debug,aso_report=debug,aso_trainer=debug,info",
            _ => "info",
        };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into());
        let writer = terminal.clone();
        let format = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(move || LogLine {
                terminal: writer.clone(),
                buffer: Vec::new(),
            })
            .with_ansi(interactive && colours())
            .with_target(false)
            .without_time();
        // Only a second call could fail.
        let _ = format.try_init();
        terminal
    }

    /// A bar for `length` things of which `done` are behind us; hidden where there is no terminal.
    pub(crate) fn bar(&self, length: usize, done: usize) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::new(length as u64));
        if let Ok(style) = ProgressStyle::with_template(RUNS) {
            bar.set_style(style);
        }
        bar.set_position(done as u64);
        bar.reset_eta();
        bar
    }

    /// An observer of a run. A line is logged every `log_every` steps when there is no terminal.
    pub(crate) fn observer(&self, log_every: usize) -> Progress {
        Progress {
            terminal: self.clone(),
            log_every: log_every.max(1),
            bar: None,
            seen: 0,
            started: Instant::now(),
        }
    }
}

/// Writes one log line without tearing a bar.
struct LogLine {
    terminal: Terminal,
    buffer: Vec<u8>,
}

impl Write for LogLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogLine {
    fn drop(&mut self) {
        self.terminal.bars.suspend(|| {
            // There is no better place to report that stderr is gone.
            let _ = io::stderr().write_all(&self.buffer);
        });
    }
}

/// Whether colours are welcome (<https://no-color.org>).
fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A flag that the first SIGINT or SIGTERM sets; the second ends the process. Whatever else sets the flag does not count.
pub(crate) fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let stop = Arc::new(AtomicBool::new(false));
    let signalled = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let code = i32::from(crate::INTERRUPTED);
        signal_hook::flag::register_conditional_shutdown(signal, code, signalled.clone())?;
        signal_hook::flag::register(signal, signalled.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// Sets the flag of [`stop_flag`] when standard input ends.
pub(crate) fn stop_at_eof(stop: &Arc<AtomicBool>) -> io::Result<()> {
    let stop = stop.clone();
    let watch = move || {
        // Whatever is read says nothing; an unreadable input has ended too.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        stop.store(true, Ordering::Relaxed);
    };
    // The thread ends with the process.
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(watch)?;
    Ok(())
}

/// Draws or logs the events of a run.
pub(crate) struct Progress {
    terminal: Terminal,
    log_every: usize,
    bar: Option<ProgressBar>,
    /// Examples trained since `started`.
    seen: usize,
    started: Instant,
}

const COUNTS: &str = "{msg:32!} {bar:30} {pos}/{len} {elapsed_precise} left {eta_precise} {prefix}";
const RUNS: &str = "{bar:30} {pos}/{len} {elapsed_precise} {wide_msg}";
const BYTES: &str = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta}";

impl Progress {
    /// Draws a bar of which `done` is behind us, if there is a terminal.
    fn start_bar(&mut self, style: &str, length: u64, done: u64, message: String) {
        self.finish_bar();
        if !self.terminal.interactive {
            return;
        }
        let bar = self.terminal.bars.add(ProgressBar::new(length));
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_message(message);
        bar.set_position(done);
        bar.reset_eta();
        self.bar = Some(bar);
    }

    fn finish_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Examples per second since the task began here.
    fn throughput(&self) -> f64 {
        self.seen as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    fn download(&mut self, progress: Download<'_>) {
        match progress {
            Download::Planned { files, bytes } => {
                tracing::info!(files, size = %HumanBytes(bytes), "downloading the model");
            }
            Download::Started { file, size, offset } => {
                self.start_bar(BYTES, size, offset, file.to_owned());
                if self.bar.is_none() {
                    tracing::info!(file, size = %HumanBytes(size), from = offset, "download");
                }
            }
            Download::Advanced { done, .. } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(done);
                }
            }
            Download::Finished { file, .. } => {
                self.finish_bar();
                tracing::debug!(file, "downloaded");
            }
            // The library warns of what it tries again.
            _ => {}
        }
    }
}

impl Observer for Progress {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Download(progress) => self.download(progress),
            Event::RunStarted {
                method,
                tasks,
                trained,
            } => {
                tracing::info!(method, tasks = tasks.join(" > "), trained, "run");
            }
            Event::EvaluationStarted { task, examples, .. } => {
                self.start_bar(COUNTS, examples as u64, 0, format!("evaluate {task}"));
            }
            Event::EvaluationProgress { done } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(done as u64);
                }
            }
            Event::EvaluationFinished {
                after,
                task,
                mode,
                score,
            } => {
                self.finish_bar();
                let after = after.unwrap_or("(backbone)");
                let answers = match mode {
                    EvalMode::Generate => "generated",
                    EvalMode::Score => "chosen",
                };
                let score = output::score(Some(score));
                tracing::info!(after, task, answers, score, "evaluated");
            }
            Event::TaskStarted {
                index,
                name,
                first_step,
                steps,
            } => {
                let message = format!("train {name}");
                self.start_bar(COUNTS, steps as u64, first_step as u64, message);
                (self.seen, self.started) = (0, Instant::now());
                tracing::info!(
                    task = name,
                    number = index + 1,
                    steps,
                    first_step,
                    "training"
                );
            }
            Event::Step {
                task,
                step,
                steps,
                examples,
                loss,
                lr,
                weight,
            } => {
                self.seen += examples;
                let rate = self.throughput();
                if let Some(bar) = &self.bar {
                    let weight = weight.map_or(String::new(), |w| format!(" w {w:.2}"));
                    bar.set_prefix(format!("loss {loss:.3}{weight} {rate:.0} ex/s"));
                    bar.set_position(step as u64 + 1);
                } else if (step + 1).is_multiple_of(self.log_every) || step + 1 == steps {
                    let left = (steps - step - 1) * examples;
                    let left = Duration::from_secs_f64(left as f64 / rate.max(1e-9));
                    tracing::info!(
                        task,
                        step = step + 1,
                        of = steps,
                        loss = format!("{loss:.4}"),
                        lr,
                        weight,
                        examples_per_second = format!("{rate:.1}"),
                        left = format!("{}s", left.as_secs()),
                        "step"
                    );
                }
            }
            Event::Looked { task, steps, score } => {
                tracing::debug!(task, steps, score = format!("{score:.2}"), "looked at dev");
            }
            Event::Measured { task, step, weight } => {
                tracing::debug!(task, step, weight, "soft weight");
            }
            Event::TaskFinished { name, seconds } => {
                self.finish_bar();
                tracing::info!(task = name, seconds = format!("{seconds:.1}"), "trained");
            }
            Event::RunFinished => tracing::info!("finished"),
            _ => {}
        }
    }
}
