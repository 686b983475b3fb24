//! `aso sweep`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aso_trainer::sweep::{Ledger, Sweep, SweptRun, SweptStatus};

use crate::args::{Global, JobArgs, SweepArgs};
use crate::jobs::{self, Ended};
use crate::output;
use crate::progress::Terminal;

pub(crate) fn run(
    args: &SweepArgs,
    global: &Global,
    terminal: &Terminal,
) -> anyhow::Result<ExitCode> {
    let sweep = Sweep::load(&args.file, &args.jobs.set)?;
    let runs = sweep.runs()?;
    let out = directory(&args.jobs, &args.file, "");
    let mut ledger = Ledger::open(&runs, &out)?;
    if args.jobs.dry_run {
        return dry_run(&ledger, &args.jobs, false);
    }
    let write = &mut |ledger: &Ledger<'_>| Ok(ledger.write()?);
    let ended = jobs::execute(&mut ledger, &args.jobs, global, terminal, false, write)?;
    let results = ledger.results();
    if args.jobs.json {
        output::print_json(&results)?;
    } else {
        let directory = out.display();
        let tables = output::sweep(&results);
        output::write_stdout(&format!("{tables}\n\nSweep directory: {directory}"))?;
    }
    exit(
        &ledger,
        ended,
        &format!("aso sweep {}", args.file.display()),
    )
}

/// The directory of all runs.
pub(crate) fn directory(args: &JobArgs, file: &Path, suffix: &str) -> PathBuf {
    args.out.clone().unwrap_or_else(|| {
        let name = file.file_stem().unwrap_or("sweep".as_ref());
        Path::new("runs").join(format!("{}{suffix}", name.to_string_lossy()))
    })
}

/// Lists the runs; then an error, if one that is left could not start. `dev`: for `aso tune`.
pub(crate) fn dry_run(ledger: &Ledger<'_>, args: &JobArgs, dev: bool) -> anyhow::Result<ExitCode> {
    let results = ledger.results();
    if args.json {
        output::print_json(&results)?;
    } else {
        output::write_stdout(&output::planned(&results))?;
    }
    jobs::check(ledger, dev)?;
    Ok(ExitCode::SUCCESS)
}

/// The exit status; lists the runs that failed.
pub(crate) fn exit(ledger: &Ledger<'_>, ended: Ended, command: &str) -> anyhow::Result<ExitCode> {
    let failed = |record: &&SweptRun| record.status == SweptStatus::Failed;
    let failed: Vec<_> = ledger.records().iter().filter(failed).collect();
    if ended == Ended::Interrupted {
        tracing::warn!("interrupted; progress is saved: {command} goes on");
        return Ok(ExitCode::from(crate::INTERRUPTED));
    }
    if !failed.is_empty() {
        let list: Vec<String> = failed
            .iter()
            .map(|record| {
                let error = record.error.as_deref().unwrap_or("failed");
                format!("\n  {}: {error}", record.directory)
            })
            .collect();
        let of = ledger.records().len();
        anyhow::bail!("{} of {of} runs failed:{}", failed.len(), list.concat());
    }
    let open = ledger.records().len() - ledger.finished();
    if open > 0 {
        anyhow::bail!("{open} runs were interrupted; {command} goes on with them");
    }
    Ok(ExitCode::SUCCESS)
}
