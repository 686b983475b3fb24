//! `aso config`.

use std::process::ExitCode;

use aso_trainer::config::{ExampleKind, example};

use crate::args::{ConfigArgs, ExampleArg};
use crate::output::write_stdout;

pub(crate) fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let kind = match args.example {
        ExampleArg::Demo => ExampleKind::Demo,
        ExampleArg::ClBenchmark => ExampleKind::ClBenchmark,
    };
    write_stdout(example(kind).trim_end())?;
    Ok(ExitCode::SUCCESS)
}
