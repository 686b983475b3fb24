//! `aso report`.

use std::path::Path;
use std::process::ExitCode;

use aso_report::{Report, ReportError, RunSource};
use aso_trainer::files::atomic_write;

use crate::args::{ReportArgs, ReportFormat};
use crate::output;

pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let sources = args.runs.iter().map(|argument| argument.parse());
    let sources = sources.collect::<Result<Vec<RunSource>, ReportError>>()?;
    let report = Report::read(&sources, args.reference.as_deref())?;
    let text = match format(args) {
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

/// The form asked for, or the one that the file's name ends in.
fn format(args: &ReportArgs) -> ReportFormat {
    let ending = args.out.as_deref().and_then(Path::extension);
    let named = match ending.and_then(|ending| ending.to_str()) {
        Some("md") => ReportFormat::Md,
        Some("csv") => ReportFormat::Csv,
        Some("json") => ReportFormat::Json,
        _ => ReportFormat::Html,
    };
    args.format.unwrap_or(named)
}
