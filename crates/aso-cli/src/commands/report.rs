//! `aso report`.

use std::ffi::OsStr;
use std::process::ExitCode;

use aso_report::{Report, ReportError, RunSource};
use aso_trainer::files::atomic_write;
use clap::ValueEnum;

use crate::args::{ReportArgs, ReportFormat};
use crate::output;

pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let format = format(args)?;
    let sources = args.runs.iter().map(|argument| argument.parse());
    let sources = sources.collect::<Result<Vec<RunSource>, ReportError>>()?;
    let report = Report::read(&sources, args.reference.as_deref())?;
    let text = match format {
        ReportFormat::Html => report.html()?,
        ReportFormat::Md => report.markdown(),
        ReportFormat::Csv => report.csv(),
        ReportFormat::Json => report.json()?,
    };
    if let Some(dir) = &args.svg {
        report.write_figures(dir)?;
        tracing::info!(directory = %dir.display(), "figures written");
    }
    if let Some(dir) = &args.tensorboard {
        report.write_tensorboard(dir)?;
        tracing::info!(directory = %dir.display(), "event files written");
    }
    match &args.out {
        Some(path) => {
            atomic_write(path, text.as_bytes())?;
            tracing::info!(file = %path.display(), "report written");
        }
        None => output::write_stdout(text.trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The form asked for, or the one that the file's name ends in; what a terminal can show where there is neither.
fn format(args: &ReportArgs) -> anyhow::Result<ReportFormat> {
    if let Some(format) = args.format {
        return Ok(format);
    }
    let Some(path) = &args.out else {
        return Ok(ReportFormat::Md);
    };
    let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    ReportFormat::from_str(ending, false).map_err(|_| {
        anyhow::anyhow!(
            "{}: expected a name that ends in .html, .md, .csv or .json, or --format",
            path.display()
        )
    })
}
