//! `cargo xtask bench`: the criterion benchmarks, or with `--peer` the same work here and in PyTorch.

mod criterion;
mod peer;
mod report;
mod worker;
mod workloads;

use std::num::NonZeroUsize;
use std::thread;

use regex::Regex;

use crate::workspace::Workspace;

pub(crate) use self::peer::ChecksDiffer;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only benchmarks (with --peer: workloads) whose name matches this regular expression
    #[arg(long, value_name = "REGEX")]
    filter: Option<Regex>,
    /// Measure against PyTorch, Transformers and PEFT, or what the interpreter in ASO_PEER_PYTHON has of them
    #[arg(long)]
    peer: bool,
    /// Pairs of runs of each workload [default: 7, or 5 where a run takes minutes]
    #[arg(long, value_name = "N", requires = "peer")]
    pairs: Option<NonZeroUsize>,
    /// Threads of both sides [default: one for each core]
    #[arg(long, value_name = "N", requires = "peer")]
    threads: Option<NonZeroUsize>,
    /// Keep the results as target/bench/NAME.json
    #[arg(long, value_name = "NAME", value_parser = report::name)]
    save: Option<String>,
    /// Show the results kept under NAME beside the new ones
    #[arg(long, value_name = "NAME", value_parser = report::name)]
    compare: Option<String>,
}

impl Args {
    fn selects(&self, name: &str) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| filter.is_match(name))
    }

    fn threads(&self) -> usize {
        let cores = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.threads.map_or_else(cores, NonZeroUsize::get)
    }
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    if args.peer {
        peer::run(workspace, args)
    } else {
        criterion::run(workspace, args)
    }
}
