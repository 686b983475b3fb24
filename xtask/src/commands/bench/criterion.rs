//! The criterion benchmarks, and a table of what they found.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::Args;
use super::report::{self, Machine};
use crate::steps::execute;
use crate::workspace::Workspace;

/// The name of the file of the last run.
const LATEST: &str = "latest";

/// What is written to a result file.
#[derive(Debug, Serialize, Deserialize)]
struct Results {
    machine: Machine,
    /// By benchmark.
    benchmarks: BTreeMap<String, Times>,
}

/// Seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Times {
    median: f64,
    /// Ends of the median's confidence interval.
    low: f64,
    high: f64,
}

/// `benchmark.json` of criterion.
#[derive(Debug, Deserialize)]
struct Benchmark {
    full_id: String,
}

/// `estimates.json` of criterion, in nanoseconds.
#[derive(Debug, Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Debug, Deserialize)]
struct Estimate {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Debug, Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

pub(super) fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    // Read first: a wrong name should not cost a run.
    let before: Option<Results> = match &args.compare {
        Some(name) => Some(report::read(workspace, name)?),
        None => None,
    };
    let home = workspace.target_dir().join("criterion");
    // `--bench *` leaves out the unit tests, which would not understand criterion's arguments.
    let bench = ["bench", "--workspace", "--locked", "--bench", "*"];
    let filter = args
        .filter
        .iter()
        .flat_map(|filter| ["--", filter.as_str()]);
    let start = SystemTime::now();
    execute(
        workspace
            .cargo()
            .args(bench)
            .args(filter)
            .env("CRITERION_HOME", &home),
    )?;
    let mut benchmarks = BTreeMap::new();
    collect(&home, start, &mut benchmarks)?;
    let results = Results {
        machine: Machine::here(),
        benchmarks,
    };
    println!("{}", table(&results, before.as_ref()));
    eprintln!("results are in {}", report::folder(workspace).display());
    report::write(workspace, LATEST, args.save.as_deref(), &results)
}

/// Reads the results below `dir` that were written after `start`.
fn collect(
    dir: &Path,
    start: SystemTime,
    benchmarks: &mut BTreeMap<String, Times>,
) -> anyhow::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let path = dir.join("estimates.json");
    if dir.file_name() == Some("new".as_ref()) && path.exists() {
        let written = fs::metadata(&path)?.modified()?;
        // File systems may keep whole seconds.
        if written + std::time::Duration::from_secs(1) >= start {
            let Benchmark { full_id } = report::read_json(&dir.join("benchmark.json"))?;
            let Estimates { median } = report::read_json(&path)?;
            let times = Times {
                median: median.point_estimate * 1e-9,
                low: median.confidence_interval.lower_bound * 1e-9,
                high: median.confidence_interval.upper_bound * 1e-9,
            };
            benchmarks.insert(full_id, times);
        }
        return Ok(());
    }
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), start, benchmarks)?;
        }
    }
    Ok(())
}

fn table(results: &Results, before: Option<&Results>) -> String {
    let mut table = report::table(["benchmark", "median", "95 % interval", "before", "ratio"]);
    for (id, times) in &results.benchmarks {
        let old = before.and_then(|before| before.benchmarks.get(id));
        let interval = [times.low, times.high].map(report::seconds).join(" .. ");
        table.add_row([
            id.clone(),
            report::seconds(times.median),
            interval,
            old.map_or_else(String::new, |old| report::seconds(old.median)),
            old.map_or_else(String::new, |old| {
                format!("{:.3}", times.median / old.median)
            }),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use xshell::Shell;

    #[test]
    fn only_new_results_are_read() {
        let shell = Shell::new().unwrap();
        let dir = shell.create_temp_dir().unwrap();
        let new = dir.path().join("group/one/new");
        let estimate = r#"{"point_estimate": 2e9, "confidence_interval": {"lower_bound": 1e9, "upper_bound": 3e9}}"#;
        let write = |file: &str, text: &str| shell.write_file(new.join(file), text).unwrap();
        write("benchmark.json", r#"{"full_id": "group/one", "other": 1}"#);
        write("estimates.json", &format!("{{\"median\": {estimate}}}"));

        let mut found = BTreeMap::new();
        let now = SystemTime::now();
        collect(dir.path(), now + Duration::from_secs(60), &mut found).unwrap();
        assert!(found.is_empty());
        collect(dir.path(), now - Duration::from_secs(60), &mut found).unwrap();
        let times = Times {
            median: 2.0,
            low: 1.0,
            high: 3.0,
        };
        assert!((found["group/one"].median - times.median).abs() < 1e-9);
        assert!((found["group/one"].high - times.high).abs() < 1e-9);
    }
}
