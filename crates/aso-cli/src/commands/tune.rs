//! `aso tune`.

use std::process::ExitCode;

use aso_trainer::files::write_json;
use aso_trainer::sweep::{CHOSEN_FILE, Ledger, Sweep, TUNE_FILE, choose};

use crate::args::{Global, TuneArgs};
use crate::commands::sweep::{directory, dry_run, exit};
use crate::jobs;
use crate::output;
use crate::progress::Terminal;

pub(crate) fn run(
    args: &TuneArgs,
    global: &Global,
    terminal: &Terminal,
) -> anyhow::Result<ExitCode> {
    let sweep = Sweep::load(&args.file, &args.jobs.set)?;
    let runs = sweep.candidates()?;
    let out = directory(&args.jobs, &args.file, "-tune");
    let mut ledger = Ledger::open(&runs, &out)?;
    if args.jobs.dry_run {
        return dry_run(&ledger, &args.jobs, true);
    }
    let path = out.join(TUNE_FILE);
    let write = &mut |ledger: &Ledger<'_>| Ok(write_json(&path, &choose(&sweep, ledger)?)?);
    let ended = jobs::execute(&mut ledger, &args.jobs, global, terminal, true, write)?;
    let results = choose(&sweep, &ledger)?;
    let budgets: Vec<usize> = results.choices.iter().map(|choice| choice.runs).collect();
    if budgets.iter().any(|runs| *runs != budgets[0]) {
        tracing::warn!(
            ?budgets,
            "the methods have different budgets (runs per method)"
        );
    }
    for choice in &results.choices {
        for key in &choice.at_edge {
            tracing::warn!(
                method = choice.label,
                key,
                "the chosen value is at the edge of its range: the best one may lie beyond"
            );
        }
    }
    let decided = results.choices.iter().all(|choice| choice.chosen.is_some());
    let chosen = args.chosen.clone().unwrap_or_else(|| out.join(CHOSEN_FILE));
    if decided {
        results.write_chosen(&sweep, &chosen)?;
    } else if chosen.exists() {
        tracing::warn!(file = %chosen.display(), "not everything is chosen yet: the file is of an earlier choice");
    }
    if args.jobs.json {
        output::print_json(&results)?;
    } else {
        let mut text = output::tuning(&results);
        if decided {
            text += &format!("\n\nChosen: aso sweep {}", chosen.display());
        }
        output::write_stdout(&text)?;
    }
    exit(&ledger, ended, &format!("aso tune {}", args.file.display()))
}
