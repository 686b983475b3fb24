//! `cargo xtask bench`: all criterion benchmarks.

use crate::steps::execute;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only benchmarks whose name matches this regular expression
    #[arg(long, value_name = "REGEX")]
    filter: Option<String>,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    // `--bench *` leaves out the unit tests, which would not understand criterion's arguments.
    let bench = ["bench", "--workspace", "--locked", "--bench", "*"];
    let filter = args
        .filter
        .iter()
        .flat_map(|filter| ["--", filter.as_str()]);
    execute(workspace.cargo().args(bench).args(filter))
}
