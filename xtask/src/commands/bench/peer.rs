//! The same work here and in PyTorch, in turn.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::Args;
use super::report::{self, Machine, median};
use super::worker::{Answer, Worker};
use super::workloads::{Measure, Shared, Side, WORKLOADS, Workload};
use crate::python::python_with;
use crate::workspace::Workspace;

/// The name of the file of the last run.
const LATEST: &str = "peer-latest";

/// Between two runs: threads that wait for more work spin for a while.
const PAUSE: Duration = Duration::from_millis(300);

/// The two sides did different work.
#[derive(Debug)]
pub(crate) struct ChecksDiffer(Vec<String>);

impl fmt::Display for ChecksDiffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the checks of both sides differ: {}", self.0.join(", "))
    }
}

impl std::error::Error for ChecksDiffer {}

/// What is written to a result file.
#[derive(Debug, Serialize, Deserialize)]
struct Results {
    machine: Machine,
    /// By workload.
    workloads: BTreeMap<String, Measured>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    /// Median, least and largest of the ratios of each pair.
    ratio: f64,
    lowest: f64,
    highest: f64,
    goal: f64,
    least: f64,
    ours: SideResults,
    theirs: SideResults,
    /// Whether the checks agree; absent where they are different work.
    agree: Option<bool>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SideResults {
    worker: String,
    version: String,
    threads: usize,
    check: f64,
    /// Scores of the runs in percent, where they have one.
    scores: Vec<f64>,
    /// Seconds or bytes of every run.
    values: Vec<f64>,
}

pub(super) fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    let before: Option<Results> = match &args.compare {
        Some(name) => Some(report::read(workspace, name)?),
        None => None,
    };
    let selected: Vec<&Workload> = WORKLOADS
        .iter()
        .filter(|workload| args.selects(workload.id))
        .collect();
    if selected.is_empty() {
        let all: Vec<_> = WORKLOADS.iter().map(|workload| workload.id).collect();
        bail!("no workload matches; there are {}", all.join(", "));
    }
    let selected = available(workspace, selected);
    if selected.is_empty() {
        return Ok(());
    }
    let bench = Bench::open(workspace, args.threads(), &selected)?;
    let mut results = Results {
        machine: Machine::here(),
        workloads: BTreeMap::new(),
    };
    for workload in selected {
        let pairs = args.pairs.map_or(workload.pairs, usize::from);
        let measured = bench
            .measure(workload, pairs)
            .with_context(|| format!("workload {}", workload.id))?;
        results.workloads.insert(workload.id.to_owned(), measured);
        // After every one: a later failure should not cost hours of measurements.
        report::write(workspace, LATEST, args.save.as_deref(), &results)?;
    }
    println!("{}", table(&results, before.as_ref()));
    eprintln!("results are in {}", report::folder(workspace).display());
    let differ: Vec<String> = results
        .workloads
        .iter()
        .filter(|(_, measured)| measured.agree == Some(false))
        .map(|(id, _)| id.clone())
        .collect();
    if differ.is_empty() {
        Ok(())
    } else {
        Err(ChecksDiffer(differ).into())
    }
}

/// The workloads whose data are there.
fn available<'a>(workspace: &Workspace, selected: Vec<&'a Workload>) -> Vec<&'a Workload> {
    let missing: Vec<&str> = [
        "../shared/models/t5-mini-clb",
        "../shared/data/cl-benchmark",
    ]
    .into_iter()
    .filter(|path| !workspace.path(path).exists())
    .collect();
    let (there, skipped): (Vec<_>, Vec<_>) = selected
        .into_iter()
        .partition(|workload| workload.shared == Shared::No || missing.is_empty());
    for workload in skipped {
        eprintln!("[{}] skipped: no {}", workload.id, missing.join(", no "));
    }
    there
}

/// Both programs and the files they read.
struct Bench {
    ours: PathBuf,
    python: PathBuf,
    script: PathBuf,
    work: PathBuf,
    threads: usize,
}

impl Bench {
    fn open(workspace: &Workspace, threads: usize, selected: &[&Workload]) -> anyhow::Result<Self> {
        let work = report::folder(workspace).join("work");
        workspace.shell().create_dir(&work)?;
        let bench = Self {
            ours: build(workspace)?,
            python: python(workspace)?,
            script: workspace.path("xtask/peer/peer.py"),
            work,
            threads,
        };
        let prepare = [workspace.path("xtask/peer/prepare.py")];
        bench.once(workspace, "prepared.txt", &prepare, Side::Peer("prepare"))?;
        let exported = |workload: &&Workload| workload.shared == Shared::Export;
        if selected.iter().any(exported) {
            let sources = ["order.rs", "evaluation.rs"];
            let sources = sources.map(|file| workspace.path("tests/examples/versus").join(file));
            bench.once(workspace, "exported.txt", &sources, Side::Ours("export"))?;
        }
        Ok(bench)
    }

    /// Runs a command that writes into the work folder, unless it has been run since `sources` changed.
    fn once(
        &self,
        workspace: &Workspace,
        stamp: &str,
        sources: &[PathBuf],
        side: Side,
    ) -> anyhow::Result<()> {
        let shell = workspace.shell();
        let texts = sources.iter().map(|path| shell.read_file(path));
        let wanted = texts.collect::<Result<Vec<_>, _>>()?.concat();
        let stamp = self.work.join(stamp);
        if shell.path_exists(&stamp) && shell.read_file(&stamp).is_ok_and(|text| text == wanted) {
            return Ok(());
        }
        let (name, mut command) = self.command(side);
        eprintln!("[{name}] into {}", self.work.display());
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {command:?}"))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{command:?} failed: {}\n{errors}", output.status);
        }
        // Written last, so that an interrupted preparation counts as none.
        Ok(shell.write_file(&stamp, wanted)?)
    }

    fn command(&self, side: Side) -> (&'static str, Command) {
        let threads = self.threads.to_string();
        let (name, mut command) = match side {
            Side::Ours(name) => {
                let mut command = Command::new(&self.ours);
                command.arg(name).arg(&self.work);
                (name, command)
            }
            Side::Peer(name) => {
                let mut command = Command::new(&self.python);
                command.arg(&self.script).arg(name).arg(&self.work);
                command.args(["--threads", &threads]);
                (name, command)
            }
        };
        for variable in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"] {
            command.env(variable, &threads);
        }
        // Everything is a local file.
        command.env("HF_HUB_OFFLINE", "1");
        (name, command)
    }

    fn start(&self, side: Side) -> anyhow::Result<Worker> {
        let (name, command) = self.command(side);
        let kind = match side {
            Side::Ours(_) => "ours",
            Side::Peer(_) => "peer",
        };
        Worker::start(name, command, &self.work.join(format!("{kind}-{name}.log")))
    }

    fn measure(&self, workload: &Workload, pairs: usize) -> anyhow::Result<Measured> {
        eprintln!("[{}] loading", workload.id);
        let sides = [workload.ours, workload.theirs];
        let start = || -> anyhow::Result<Vec<Worker>> {
            sides.into_iter().map(|side| self.start(side)).collect()
        };
        let mut workers = start()?;
        let mut answers: [Vec<Answer>; 2] = [Vec::new(), Vec::new()];
        for pair in 0..pairs {
            if pair > 0 && workload.measure == Measure::PeakBytes {
                workers.clear();
                workers = start()?;
            }
            // Who goes first alternates, so that neither always meets the other's caches.
            for side in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
                thread::sleep(PAUSE);
                answers[side].push(workers[side].run()?);
            }
            let [ours, theirs] = [0, 1].map(|side| value(workload.measure, &answers[side][pair]));
            eprintln!(
                "[{}] pair {} of {pairs}: {} / {} = {:.3}",
                workload.id,
                pair + 1,
                shown(workload.measure, ours),
                shown(workload.measure, theirs),
                ours / theirs
            );
        }
        let [ours, theirs] =
            [0, 1].map(|side| side_results(workload, sides[side], &workers[side], &answers[side]));
        let ratios: Vec<f64> = ours
            .values
            .iter()
            .zip(&theirs.values)
            .map(|(ours, theirs)| ours / theirs)
            .collect();
        Ok(Measured {
            ratio: median(&ratios),
            lowest: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            highest: ratios.iter().copied().fold(0.0, f64::max),
            goal: workload.goal,
            least: workload.least,
            agree: workload
                .tolerance
                .map(|tolerance| agree(ours.check, theirs.check, tolerance)),
            ours,
            theirs,
        })
    }
}

/// Builds our worker, in the way of the tests, so that dependencies are compiled once.
fn build(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    let arguments = [
        "build",
        "--release",
        "--workspace",
        "--locked",
        "--example",
        "versus",
    ];
    let cargo = workspace
        .cargo()
        .args(arguments)
        .arg("--message-format=json-render-diagnostics");
    eprintln!("[build] cargo {}", arguments.join(" "));
    let output = Command::from(cargo)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("building our worker failed: {}", output.status);
    }
    #[derive(Deserialize)]
    struct Message {
        target: Option<Target>,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let messages = output.stdout.split(|byte| *byte == b'\n');
    messages
        .filter_map(|line| serde_json::from_slice::<Message>(line).ok())
        .filter(|message| {
            message
                .target
                .as_ref()
                .is_some_and(|target| target.name == "versus")
        })
        .find_map(|message| message.executable)
        .context("cargo named no executable of the example versus")
}

/// The interpreter of the other side.
fn python(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    if let Some(python) = std::env::var_os("ASO_PEER_PYTHON") {
        return Ok(python.into());
    }
    let requirements = workspace.path("xtask/peer/requirements.txt");
    let environment = workspace.target_dir().join("peer-venv");
    let python = Path::new("python3");
    python_with(workspace.shell(), &requirements, &environment, python)
}

fn value(measure: Measure, answer: &Answer) -> f64 {
    match measure {
        Measure::Seconds => answer.seconds,
        Measure::PeakBytes => answer.peak_bytes.map_or(f64::NAN, |bytes| bytes as f64),
    }
}

fn shown(measure: Measure, value: f64) -> String {
    match measure {
        Measure::Seconds => report::seconds(value),
        Measure::PeakBytes => format!("{:.0} MiB", value / f64::from(1 << 20)),
    }
}

fn side_results(
    workload: &Workload,
    side: Side,
    worker: &Worker,
    answers: &[Answer],
) -> SideResults {
    let (Side::Ours(name) | Side::Peer(name)) = side;
    SideResults {
        worker: name.to_owned(),
        version: worker.ready.version.clone(),
        threads: worker.ready.threads,
        check: worker.ready.check.unwrap_or(answers[0].check),
        scores: answers.iter().filter_map(|answer| answer.score).collect(),
        values: answers
            .iter()
            .map(|answer| value(workload.measure, answer))
            .collect(),
    }
}

fn agree(ours: f64, theirs: f64, tolerance: f64) -> bool {
    (ours - theirs).abs() <= tolerance * ours.abs().max(theirs.abs())
}

fn table(results: &Results, before: Option<&Results>) -> String {
    let mut table = report::table([
        "workload",
        "ratio",
        "lowest .. highest",
        "pairs",
        "ours",
        "theirs",
        "goal",
        "least",
        "verdict",
        "checks",
        "before",
    ]);
    let mut versions: Vec<String> = Vec::new();
    // In the order in which they were measured.
    for workload in &WORKLOADS {
        let Some(measured) = results.workloads.get(workload.id) else {
            continue;
        };
        let Measured { ours, theirs, .. } = measured;
        for side in [ours, theirs] {
            let line = format!("{}, {} threads", side.version, side.threads);
            if !versions.contains(&line) {
                versions.push(line);
            }
        }
        let verdict = match measured.ratio {
            ratio if ratio <= measured.goal => "goal",
            ratio if ratio <= measured.least => "least",
            _ => "MISSED",
        };
        let differ = if measured.agree == Some(false) {
            " DIFFER"
        } else {
            ""
        };
        let old = before.and_then(|before| before.workloads.get(workload.id));
        table.add_row([
            workload.id.to_owned(),
            format!("{:.3}", measured.ratio),
            format!("{:.3} .. {:.3}", measured.lowest, measured.highest),
            ours.values.len().to_string(),
            shown(workload.measure, median(&ours.values)),
            shown(workload.measure, median(&theirs.values)),
            format!("{:.2}", measured.goal),
            format!("{:.2}", measured.least),
            verdict.to_owned(),
            format!("{:.6} / {:.6}{differ}", ours.check, theirs.check),
            old.map_or_else(String::new, |old| format!("{:.3}", old.ratio)),
        ]);
    }
    let Machine { processor, cores } = &results.machine;
    let versions = versions.join("\n");
    format!("{processor}, {cores} cores\n{versions}\n{table}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_agree_relative_to_their_size() {
        assert!(agree(100.0, 100.9, 1e-2));
        assert!(!agree(100.0, 102.0, 1e-2));
        assert!(agree(0.0, 0.0, 1e-2));
        assert!(!agree(f64::NAN, 1.0, 1e-2));
    }
}
