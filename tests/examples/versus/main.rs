//! Our side of `cargo xtask bench --peer`; `xtask/peer/peer.py` is the other one, and docs/performance.md says what
//! the workloads are.
//!
//! ```text
//! versus export WORK      what the other side needs of the benchmark's data
//! versus WORKLOAD WORK    a worker
//! ```
//!
//! A worker loads, runs its work once and prints `{"ready": true, ..}`. Then every line `run` on its input runs the
//! work once and is answered by one line of JSON; `quit` ends it.

mod attribution;
mod evaluation;
mod memory;
mod order;
mod training;

// The allocator of the program.
use aso_cli as _;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use serde::Serialize;

/// What one run has to show.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    /// Seconds of the part that is measured; those of the whole run if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    /// A number that shows that both sides do the same work.
    check: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_bytes: Option<u64>,
    /// Score of a stream of tasks in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
}

impl Outcome {
    fn check(check: f64) -> Self {
        Self {
            check,
            ..Self::default()
        }
    }
}

/// The first line of a worker.
#[derive(Debug, Serialize)]
struct Ready {
    ready: bool,
    threads: usize,
    version: &'static str,
    /// As in [`Outcome`], where one is known that later runs do not show.
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<f64>,
}

/// A loaded workload.
trait Workload {
    /// Runs the work once, so that nothing is done for the first time later.
    fn warm_up(&mut self) -> anyhow::Result<Option<f64>> {
        self.run().map(|_| None)
    }

    fn run(&mut self) -> anyhow::Result<Outcome>;
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, work] = arguments.as_slice() else {
        bail!("usage: versus export|WORKLOAD WORK");
    };
    let work = Path::new(work);
    if name == "export" {
        return order::export(work).and_then(|()| evaluation::export(work));
    }
    let mut workload = open(name, work)?;
    let check = workload.warm_up()?;
    say(&Ready {
        ready: true,
        threads: rayon::current_num_threads(),
        version: concat!("aso-lora ", env!("CARGO_PKG_VERSION")),
        check,
    })?;
    for line in std::io::stdin().lock().lines() {
        match line?.trim() {
            "run" => {
                let start = Instant::now();
                let mut outcome = workload.run()?;
                let seconds = start.elapsed().as_secs_f64();
                outcome.seconds.get_or_insert(seconds);
                say(&outcome)?;
            }
            "quit" => break,
            other => bail!("expected `run` or `quit`, found `{other}`"),
        }
    }
    Ok(())
}

fn open(name: &str, work: &Path) -> anyhow::Result<Box<dyn Workload>> {
    Ok(match name {
        "train-t5" => Box::new(training::t5(work)?),
        "train-llama" => Box::new(training::llama(work)?),
        "memory" => Box::new(memory::Memory::new(training::t5(work)?)),
        "attribution-aso" => Box::new(attribution::Attribution::aso(work)?),
        "attribution-reference" => Box::new(attribution::Attribution::reference(work)?),
        "eval-agnews" => Box::new(evaluation::Evaluation::new(work)?),
        "order1-aso" => Box::new(order::Stream::new("aso-lora", "aso")?),
        "order1-reference" => Box::new(order::Stream::new("aso-lora", "reference")?),
        // A weight below AdamW's epsilon: the two models, and with them the lengths of their answers, stay the same,
        // and the difference in time is what the methods cost. A larger one would decide the first update of A,
        // whose cross entropy has no gradient yet.
        "run-aso-lora" => Box::new(order::Stream::with_lambda("aso-lora", "aso", 1e-30)?),
        "run-o-lora" => Box::new(order::Stream::with_lambda("o-lora", "aso", 1e-30)?),
        "growth-1" => Box::new(order::Growth::new(work, 0)?),
        "growth-2" => Box::new(order::Growth::new(work, 1)?),
        "growth-15" => Box::new(order::Growth::new(work, 14)?),
        _ => bail!("unknown workload `{name}`"),
    })
}

fn say(line: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// A batch that both sides read.
fn read_batch(path: &Path) -> anyhow::Result<aso_backbones::TokenBatch> {
    let text = read(path)?;
    Ok(aso_backbones::TokenBatch::from_json(path, &text)?)
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn write_json(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_vec(value)?;
    std::fs::write(path, text).with_context(|| path.display().to_string())
}
