//! `aso config`.

use std::process::ExitCode;

use aso_trainer::config::{ExampleKind, example};

use crate::args::{ConfigArgs, ExampleArg};
use crate::output::write_stdout;

pub(crate) fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let text = match args.example {
        ExampleArg::Demo => example(ExampleKind::Demo),
        ExampleArg::ClBenchmark => example(ExampleKind::ClBenchmark),
        ExampleArg::Sweep => aso_trainer::sweep::EXAMPLE.to_owned(),
    };
    write_stdout(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}
