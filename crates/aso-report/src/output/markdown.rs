//! Tables for papers and issues.

use std::fmt::Write;

use aso_trainer::metrics::Metric;

use super::table::{Cell, Mark, Table, cost, differences, general, results, sentence};
use crate::summary::ReportSummary;

/// Writes results, differences and costs of each sequence of tasks. The best number of a column is bold, the second
/// best underlined.
pub(crate) fn markdown(report: &ReportSummary) -> String {
    let mut text = String::from("# Continual-learning report\n");
    // Writing to a string cannot fail.
    for across in &report.across {
        let tasks = sentence(&across.orders[0]);
        let count = across.orders.len();
        let _ = write!(text, "\n## {count} orders of {}\n", escape(&tasks));
        for order in &across.orders {
            let _ = write!(text, "\n- {}", escape(&order.join(" \u{2192} ")));
        }
        text += "\n\nScores in percent. The value of a seed is its mean over these orders; mean \u{b1} standard deviation over seeds.\n";
        section(&mut text, "Results", &results(&across.lines()));
        if let Some(table) = differences(&across.differences, &report.reference, &Metric::ALL) {
            section(&mut text, "Differences", &table);
        }
    }
    for stream in &report.streams {
        let _ = write!(text, "\n## {}\n", escape(&stream.tasks.join(" \u{2192} ")));
        text += "\nScores in percent, mean \u{b1} standard deviation over seeds.\n";
        section(&mut text, "Results", &results(&stream.lines()));
        if let Some(table) = differences(&stream.differences, &report.reference, &Metric::ALL) {
            section(&mut text, "Differences", &table);
        }
        if let Some(table) = general(stream) {
            section(&mut text, "Tasks that were not learned", &table);
        }
        section(&mut text, "Cost", &cost(stream));
    }
    text
}

fn section(text: &mut String, title: &str, table: &Table) {
    let header = table.header.iter().map(|heading| escape(&heading.text));
    let _ = write!(text, "\n### {title}\n\n");
    line(text, header);
    let numbers = table.header.len().saturating_sub(1);
    line(
        text,
        std::iter::once("---").chain(std::iter::repeat_n("---:", numbers)),
    );
    for row in &table.rows {
        line(text, row.iter().map(cell));
    }
}

fn line(text: &mut String, cells: impl IntoIterator<Item = impl AsRef<str>>) {
    text.push('|');
    for cell in cells {
        let _ = write!(text, " {} |", cell.as_ref());
    }
    text.push('\n');
}

fn cell(cell: &Cell) -> String {
    let text = escape(&cell.text);
    match cell.mark {
        Mark::None => text,
        Mark::Best => format!("**{text}**"),
        Mark::Second => format!("<u>{text}</u>"),
    }
}

/// Escapes what Markdown and HTML would take for their own.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '<' => escaped += "&lt;",
            '&' => escaped += "&amp;",
            '|' | '*' | '_' | '`' | '\\' | '[' => escaped.extend(['\\', c]),
            '\n' => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
