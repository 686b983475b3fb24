//! What both kinds of measurement share: result files, tables, times.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::workspace::Workspace;

/// Where a measurement was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) processor: String,
    pub(super) cores: usize,
}

impl Machine {
    pub(super) fn here() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            processor: model
                .map_or("unknown", |(_, model)| model.trim())
                .to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// `--save` and `--compare`: a file name without a folder.
pub(super) fn name(text: &str) -> Result<String, String> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    if !text.is_empty() && !text.starts_with('.') && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("expected letters, digits, `-`, `_` and `.`".to_owned())
    }
}

/// Where results are kept.
pub(super) fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target_dir().join("bench")
}

/// Writes `results` under `latest` and, if it was asked for, under `save`.
pub(super) fn write<T: Serialize>(
    workspace: &Workspace,
    latest: &str,
    save: Option<&str>,
    results: &T,
) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(results)?;
    for name in std::iter::once(latest).chain(save) {
        let path = folder(workspace).join(format!("{name}.json"));
        workspace.shell().write_file(&path, &text)?;
    }
    Ok(())
}

/// Reads what was kept under `name`.
pub(super) fn read<T: DeserializeOwned>(workspace: &Workspace, name: &str) -> anyhow::Result<T> {
    let path = folder(workspace).join(format!("{name}.json"));
    read_json(&path).context("results of the same kind are kept with --save")
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// A table whose first column is text and whose others are numbers.
pub(super) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Seconds in a unit that suits them.
pub(super) fn seconds(value: f64) -> String {
    match value {
        value if value < 1e-6 => format!("{:.1} ns", value * 1e9),
        value if value < 1e-3 => format!("{:.2} us", value * 1e6),
        value if value < 1.0 => format!("{:.2} ms", value * 1e3),
        value => format!("{value:.2} s"),
    }
}

/// The middle value, or the mean of the two in the middle; NaN if there is none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_does_not_depend_on_the_order() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn names_are_no_paths() {
        assert_eq!(name("before-2.1"), Ok("before-2.1".to_owned()));
        for bad in ["", "a/b", "..", "../a", "a b"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn seconds_have_a_unit_that_suits_them() {
        assert_eq!(seconds(0.85), "850.00 ms");
        assert_eq!(seconds(61.234), "61.23 s");
        assert_eq!(seconds(2.5e-5), "25.00 us");
    }
}
