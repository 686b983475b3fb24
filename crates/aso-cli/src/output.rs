//! Results as tables and JSON on stdout.

use std::collections::BTreeMap;

use aso_trainer::RunResults;
use aso_trainer::metrics::{Metric, Spread, rounded};
use aso_trainer::sweep::{Group, SweepResults, TuneResults};
use comfy_table::{CellAlignment, Table, presets};

/// Prints a value as JSON.
pub(crate) fn print_json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    write_stdout(&serde_json::to_string_pretty(value)?)
}

/// Prints text and a line end.
pub(crate) fn write_stdout(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut stdout = anstream::stdout().lock();
    writeln!(stdout, "{text}")?;
    Ok(stdout.flush()?)
}

/// The accuracy matrix, the metrics and the soft weights of a run.
pub(crate) fn report(results: &RunResults) -> String {
    let weights = soft_weights(results);
    let parts = [matrix(results), metrics(std::slice::from_ref(results))];
    parts
        .into_iter()
        .chain(weights)
        .collect::<Vec<_>>()
        .join("\n\n")
}

/// Two runs next to one another.
pub(crate) fn comparison(left: &RunResults, right: &RunResults) -> String {
    let tables = side_by_side(&matrix(left), &matrix(right));
    let metrics = metrics(&[left.clone(), right.clone()]);
    let weights = [left, right].into_iter().filter_map(soft_weights);
    [tables, metrics]
        .into_iter()
        .chain(weights)
        .collect::<Vec<_>>()
        .join("\n\n")
}

/// A score with two decimals.
pub(crate) fn score(score: Option<f64>) -> String {
    score.map_or_else(
        || "-".to_owned(),
        |score| format!("{:.2}", rounded(score, 2)),
    )
}

fn table(header: Vec<String>) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// R with one row per trained task.
fn matrix(results: &RunResults) -> String {
    let header = std::iter::once("after \\ on".to_owned()).chain(results.tasks.iter().cloned());
    let mut table = table(header.collect());
    for row in results.matrix_rows() {
        let name = row.after.unwrap_or("(backbone)").to_owned();
        let scores = row.scores.iter().map(|value| score(*value));
        table.add_row(std::iter::once(name).chain(scores));
    }
    if !results.chosen.is_empty() {
        let scores = results.chosen.iter().map(|value| score(*value));
        table.add_row(std::iter::once("(last, chosen)".to_owned()).chain(scores));
    }
    format!(
        "{}, seed {}: scores in percent\n{table}",
        results.method, results.seed
    )
}

/// A matrix over pairs of tasks.
pub(crate) fn square(title: &str, names: &[String], matrix: &[Vec<Option<f64>>]) -> String {
    let header = std::iter::once(title.to_owned()).chain(names.iter().cloned());
    let mut table = table(header.collect());
    for (name, row) in names.iter().zip(matrix) {
        let cells = row.iter().map(|value| three(*value));
        table.add_row(std::iter::once(name.clone()).chain(cells));
    }
    table.to_string()
}

fn metrics(runs: &[RunResults]) -> String {
    let shown = Metric::shown(|metric| runs.iter().any(|run| metric.of(run).is_some()));
    let mut table = table(with_metrics(&["method"], &shown));
    for run in runs {
        let values = shown.iter().map(|metric| score(metric.of(run)));
        table.add_row(std::iter::once(run.method.clone()).chain(values));
    }
    table.to_string()
}

/// The header of a table whose last columns are the metrics.
fn with_metrics(names: &[&str], metrics: &[Metric]) -> Vec<String> {
    let metrics = metrics.iter().map(|metric| metric.heading());
    let names = names.iter().copied().chain(metrics);
    names.map(str::to_owned).collect()
}

/// Soft weight and similarity per task, for a method that has them.
fn soft_weights(results: &RunResults) -> Option<String> {
    if results.soft_weights.iter().all(Vec::is_empty) {
        return None;
    }
    let header = [
        "task",
        "measurements",
        "soft weight w",
        "similarity rho",
        "per block (mean)",
    ];
    let mut table = table(header.map(str::to_owned).to_vec());
    let traces = results
        .tasks
        .iter()
        .zip(&results.soft_weights)
        .zip(&results.similarity);
    for ((task, weights), similarity) in traces.filter(|((_, weights), _)| !weights.is_empty()) {
        let blocks = similarity.first().map_or(0, |point| point.blocks.len());
        let blocks: Vec<String> = (0..blocks)
            .map(|block| {
                three(mean(
                    similarity
                        .iter()
                        .filter_map(|point| point.blocks.get(block).copied()?),
                ))
            })
            .collect();
        table.add_row([
            task.clone(),
            weights.len().to_string(),
            three(mean(weights.iter().map(|point| point.weight))),
            three(mean(similarity.iter().filter_map(|point| point.mean()))),
            blocks.join(" "),
        ]);
    }
    Some(format!(
        "{}: how similar each task looked to the past (mean over its measurements)\n{table}",
        results.method
    ))
}

/// Means over seeds, a table for each order.
pub(crate) fn sweep(results: &SweepResults) -> String {
    let of = |group: &Group, metric| group.metrics.get(&metric).copied().flatten();
    let known = |metric| {
        let mut groups = results.summary.iter();
        groups.any(|group| of(group, metric).is_some())
    };
    let shown = Metric::shown(known);
    let tables = results.orders.iter().map(|(order, tasks)| {
        let mut table = table(with_metrics(&["method", "runs"], &shown));
        for group in results.summary.iter().filter(|group| group.order == *order) {
            let runs = match group.finished == group.planned {
                true => group.planned.to_string(),
                false => format!("{} of {}", group.finished, group.planned),
            };
            let values = shown.iter().map(|metric| spread(of(group, *metric)));
            table.add_row([group.label.clone(), runs].into_iter().chain(values));
        }
        format!("{order}: {}\n{table}", tasks.join(" > "))
    });
    tables.collect::<Vec<_>>().join("\n\n")
}

/// The runs of a sweep and what is there of them.
pub(crate) fn planned(results: &SweepResults) -> String {
    let mut table = table(["run", "method", "status"].map(str::to_owned).to_vec());
    for run in &results.runs {
        table.add_row([&run.directory, &run.method, run.status.as_str()]);
    }
    format!("{}\n{table}", sequences(&results.orders))
}

/// The tasks of each order, a line each.
fn sequences(orders: &BTreeMap<String, Vec<String>>) -> String {
    let lines = orders
        .iter()
        .map(|(order, tasks)| format!("{order}: {}", tasks.join(" > ")));
    lines.collect::<Vec<_>>().join("\n")
}

/// The tasks of each order, and the candidates of each method with their scores on dev.
pub(crate) fn tuning(results: &TuneResults) -> String {
    let tables = results.choices.iter().map(|choice| {
        let names = ["candidate", "runs", "AP on dev", ""];
        let mut table = table(names.map(str::to_owned).to_vec());
        for (at, candidate) in choice.candidates.iter().enumerate() {
            let chosen = choice.chosen == Some(at + 1);
            let runs = match (candidate.finished == candidate.runs, candidate.failed) {
                (true, _) => candidate.runs.to_string(),
                (false, 0) => format!("{} of {}", candidate.finished, candidate.runs),
                (false, failed) => format!("{failed} of {} failed", candidate.runs),
            };
            table.add_row([
                candidate.set.to_string().trim().replace('\n', ", "),
                runs,
                score(candidate.score),
                if chosen { "chosen" } else { "" }.to_owned(),
            ]);
        }
        let (label, count) = (&choice.label, choice.configurations);
        format!(
            "{label}: {count} configurations, {} runs\n{table}",
            choice.runs
        )
    });
    let orders = std::iter::once(sequences(&results.orders));
    orders.chain(tables).collect::<Vec<_>>().join("\n\n")
}

/// `mean ± sd`.
fn spread(value: Option<Spread>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.text(2))
}

/// A number near 1.
fn three(value: Option<f64>) -> String {
    value.map_or_else(
        || "-".to_owned(),
        |value| format!("{:.3}", rounded(value, 3)),
    )
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    Spread::of(&values.collect::<Vec<_>>()).map(|spread| spread.mean)
}

/// Joins two blocks of text line by line, or puts one under the other if the terminal is too narrow.
fn side_by_side(left: &str, right: &str) -> String {
    let width = |text: &str| {
        text.lines()
            .map(|line| line.chars().count())
            .max()
            .unwrap_or(0)
    };
    let left_width = width(left);
    let columns = terminal_width();
    if columns.is_some_and(|columns| left_width + 3 + width(right) > columns) {
        return format!("{left}\n\n{right}");
    }
    let lines = left.lines().count().max(right.lines().count());
    let line = |text: &'_ str, at: usize| text.lines().nth(at).unwrap_or("").to_owned();
    (0..lines)
        .map(|at| {
            let start = line(left, at);
            let padding = " ".repeat(left_width - start.chars().count() + 3);
            format!("{start}{padding}{}", line(right, at))
                .trim_end()
                .to_owned()
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// Columns of the terminal on stdout; `None` where there is none.
fn terminal_width() -> Option<usize> {
    use std::io::IsTerminal;
    let columns = std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok());
    std::io::stdout()
        .is_terminal()
        .then(|| columns.unwrap_or(120))
}
