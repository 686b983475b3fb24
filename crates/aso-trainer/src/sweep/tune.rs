//! Settings chosen on dev.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::ledger::{Ledger, SweptRun, SweptStatus};
use super::{OrderSpec, Sweep, SweepError};
use crate::config::dotted_keys;
use crate::config::load::{alternative, is_relative_path};
use crate::files::atomic_write;
use crate::metrics::Metric;
use crate::results::Timings;

/// Every candidate with its score, in the directory of a tuning.
pub const TUNE_FILE: &str = "tune.json";

/// The sweep file with the chosen settings, in the directory of a tuning.
pub const CHOSEN_FILE: &str = "chosen.toml";

/// `tune.json`. Everything but `timings` is the same, bit for bit, whether the tuning was interrupted or not (as for
/// [`SweepResults`](super::SweepResults)).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TuneResults {
    /// Version of this program.
    pub version: String,
    /// The split that settings were chosen on: `dev`.
    pub split: String,
    /// The tasks of each order.
    pub orders: BTreeMap<String, Vec<String>>,
    /// One for each method with a grid.
    pub choices: Vec<Choice>,
    /// The runs.
    pub runs: Vec<SweptRun>,
    /// Wall-clock times of finished runs, by directory.
    pub timings: BTreeMap<String, Timings>,
}

/// The candidates of a method, and the chosen one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The method's label.
    pub label: String,
    /// The method's budget: its candidates, and the runs of all of them.
    pub configurations: usize,
    /// Runs.
    pub runs: usize,
    /// The candidates in the order of the grid.
    pub candidates: Vec<Candidate>,
    /// The best candidate, from 1: the highest mean AP on dev, the first of several. `None` while a run that
    /// could change the choice is not finished.
    pub chosen: Option<usize>,
    /// The keys whose chosen value is the lowest or the highest of three or more numbers: the best one may lie beyond. A key that
    /// not every candidate sets is left out.
    pub at_edge: Vec<String>,
}

/// A candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its values, laid over the method's.
    pub set: Table,
    /// Mean AP on dev over orders and seeds; `None` unless all runs are finished.
    pub score: Option<f64>,
    /// Its runs.
    pub runs: usize,
    /// Those that are finished.
    pub finished: usize,
    /// Those that failed. A candidate with one of them is not chosen.
    pub failed: usize,
}

/// Compares the candidates that the runs of a ledger (from [`Sweep::candidates`]) are of.
///
/// # Errors
/// [`SweepError`] if two methods would have the same label.
pub fn choose(sweep: &Sweep, ledger: &Ledger<'_>) -> Result<TuneResults, SweepError> {
    let labels = sweep.labels()?;
    let mut choices = Vec::new();
    for (label, method) in labels.into_iter().zip(&sweep.file().methods) {
        if method.grid.is_empty() {
            continue;
        }
        let candidates: Vec<Candidate> = method
            .grid
            .iter()
            .enumerate()
            .map(|(at, set)| {
                let of_it =
                    |record: &&SweptRun| record.label == label && record.candidate == Some(at + 1);
                candidate(set, ledger.records().iter().filter(of_it))
            })
            .collect();
        let best = best(&candidates);
        choices.push(Choice {
            at_edge: best.map_or_else(Vec::new, |best| at_edge(&candidates, best)),
            configurations: candidates.len(),
            runs: candidates.iter().map(|candidate| candidate.runs).sum(),
            chosen: best.map(|at| at + 1),
            label,
            candidates,
        });
    }
    let results = ledger.results();
    Ok(TuneResults {
        version: results.version,
        split: "dev".to_owned(),
        orders: results.orders,
        choices,
        runs: results.runs,
        timings: results.timings,
    })
}

fn candidate<'a>(set: &Table, records: impl Iterator<Item = &'a SweptRun>) -> Candidate {
    let records: Vec<&SweptRun> = records.collect();
    let count = |state| records.iter().filter(|run| run.status == state).count();
    let scores: Option<Vec<f64>> = records
        .iter()
        .map(|run| (run.status == SweptStatus::Finished).then(|| run.metric(Metric::Ap))?)
        .collect();
    let scores = scores.filter(|scores| !scores.is_empty());
    Candidate {
        set: set.clone(),
        score: scores.map(|scores| scores.iter().sum::<f64>() / scores.len() as f64),
        runs: records.len(),
        finished: count(SweptStatus::Finished),
        failed: count(SweptStatus::Failed),
    }
}

/// The first candidate with the highest score, once all others have a score or failed.
fn best(candidates: &[Candidate]) -> Option<usize> {
    let decided = |candidate: &Candidate| candidate.score.is_some() || candidate.failed > 0;
    if !candidates.iter().all(decided) {
        return None;
    }
    let mut best: Option<(usize, f64)> = None;
    for (at, candidate) in candidates.iter().enumerate() {
        if let Some(score) = candidate.score
            && best.is_none_or(|(_, highest)| score > highest)
        {
            best = Some((at, score));
        }
    }
    best.map(|(at, _)| at)
}

/// The keys that every candidate sets to a number, three different ones at least, and the chosen one to the lowest or highest.
fn at_edge(candidates: &[Candidate], chosen: usize) -> Vec<String> {
    let number = |value: &Value| {
        value
            .as_float()
            .or(value.as_integer().map(|int| int as f64))
    };
    let numbers = |candidate: &Candidate| -> Vec<(String, f64)> {
        let flat = dotted_keys(&candidate.set).into_iter();
        flat.filter_map(|(key, value)| Some((key, number(&value)?)))
            .collect()
    };
    let all: Vec<(String, f64)> = candidates.iter().flat_map(&numbers).collect();
    let is_edge = |(key, value): &(String, f64)| {
        let of_key = all.iter().filter(|(other, _)| other == key);
        let mut tried: Vec<f64> = of_key.map(|(_, value)| *value).collect();
        let everywhere = tried.len() == candidates.len();
        tried.sort_by(f64::total_cmp);
        tried.dedup();
        everywhere
            && tried.len() >= 3
            && (tried.first() == Some(value) || tried.last() == Some(value))
    };
    let chosen = numbers(&candidates[chosen]).into_iter();
    chosen.filter(is_edge).map(|(key, _)| key).collect()
}

impl TuneResults {
    /// The sweep file of `sweep` with the chosen settings, to be written into `folder`: the same base,
    /// orders and seeds, without grids. Paths are relative to `folder`.
    ///
    /// # Errors
    /// [`SweepError::NothingToChoose`] if a method with a grid has no chosen candidate.
    pub fn chosen(&self, sweep: &Sweep, folder: &Path) -> Result<String, SweepError> {
        let from = sweep.path().parent().unwrap_or(Path::new(""));
        let moved = |table: &Table| relocated(table, from, folder);
        let mut file = sweep.file().clone();
        if let Some(base) = &mut file.base
            && base.is_relative()
        {
            *base = between(&from.join(&*base), folder).into();
        }
        for order in file.orders.values_mut() {
            if let OrderSpec::Files { configs } = order
                && configs.is_relative()
            {
                *configs = between(&from.join(&*configs), folder).into();
            }
        }
        file.config = moved(&file.config);
        file.tune = Default::default();
        for (label, method) in sweep.labels()?.into_iter().zip(&mut file.methods) {
            let mut set = moved(&method.set);
            if !method.grid.is_empty() {
                let choice = self.choices.iter().find(|choice| choice.label == label);
                let chosen = choice.and_then(|choice| {
                    Some(&choice.candidates.get(choice.chosen?.checked_sub(1)?)?.set)
                });
                let Some(chosen) = chosen else {
                    return Err(SweepError::NothingToChoose { label });
                };
                for (key, value) in moved(chosen) {
                    // Of two keys that replace one another, the candidate's counts.
                    if let Some(replaced) = alternative(&key) {
                        set.remove(&replaced);
                    }
                    set.insert(key, value);
                }
            }
            method.label = Some(label);
            method.set = set;
            method.grid = Vec::new();
        }
        let mut table = Table::try_from(&file).map_err(crate::config::ConfigError::from)?;
        // What is empty says nothing.
        table.retain(|_, value| !is_empty(value));
        if let Some(Value::Array(methods)) = table.get_mut("methods") {
            for method in methods.iter_mut().filter_map(Value::as_table_mut) {
                method.retain(|_, value| !is_empty(value));
            }
        }
        let name = sweep.path().file_name().unwrap_or_default();
        Ok(format!(
            "# Written by `aso tune {}`: settings chosen on dev. Run: aso sweep FILE\n\n{}",
            name.to_string_lossy(),
            toml::to_string_pretty(&table).map_err(crate::config::ConfigError::from)?
        ))
    }

    /// Writes [`chosen`](Self::chosen) to `path`.
    ///
    /// # Errors
    /// As [`chosen`](Self::chosen), or if the file cannot be written.
    pub fn write_chosen(&self, sweep: &Sweep, path: &Path) -> Result<(), SweepError> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let text = self.chosen(sweep, folder)?;
        Ok(atomic_write(path, text.as_bytes())?)
    }
}

/// A table of dotted keys, with relative paths below `from` made relative to `to`.
fn relocated(table: &Table, from: &Path, to: &Path) -> Table {
    let mut flat = dotted_keys(table);
    for (key, value) in flat.iter_mut() {
        if let Value::String(path) = value
            && is_relative_path(key, path, from)
        {
            *path = between(&from.join(&*path), to);
        }
    }
    flat
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Table(table) => table.values().all(is_empty),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// `path` relative to `folder`, with `/` between its parts; absolute where that cannot be.
fn between(path: &Path, folder: &Path) -> String {
    let (Ok(path), Ok(folder)) = (std::path::absolute(path), std::path::absolute(folder)) else {
        return path.to_string_lossy().into_owned();
    };
    let (path, folder) = (normal(&path), normal(&folder));
    let shared = path
        .iter()
        .zip(&folder)
        .take_while(|(one, other)| one == other)
        .count();
    if shared == 0 {
        return path.join("/");
    }
    let up = std::iter::repeat_n("..".to_owned(), folder.len() - shared);
    let parts: Vec<String> = up.chain(path[shared..].iter().cloned()).collect();
    parts.join("/")
}

/// The parts of an absolute path without `.` and `..`.
fn normal(path: &Path) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir if parts.len() > 1 => {
                parts.pop();
            }
            std::path::Component::ParentDir => {}
            part => parts.push(part.as_os_str().to_string_lossy().into_owned()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(score: Option<f64>, failed: usize) -> Candidate {
        Candidate {
            set: Table::new(),
            score,
            runs: 1,
            finished: usize::from(score.is_some()),
            failed,
        }
    }

    #[test]
    fn the_first_of_the_best_is_chosen_once_all_are_decided() {
        let scores = [Some(60.0), Some(70.0), Some(70.0)].map(|score| scored(score, 0));
        assert_eq!(best(&scores), Some(1));
        assert_eq!(best(&[scored(None, 1), scored(Some(1.0), 0)]), Some(1));
        assert_eq!(best(&[scored(None, 0), scored(Some(1.0), 0)]), None);
        assert_eq!(best(&[scored(None, 1)]), None);
    }

    #[test]
    fn a_choice_at_the_edge_of_its_range_is_named() {
        let candidates: Vec<Candidate> = [
            "\"train.lr\" = 1e-3\n\"method.lambda1\" = 1\n\"lora.rank\" = 4",
            "\"train.lr\" = 2e-3\n\"method.lambda1\" = 2\n\"lora.rank\" = 8",
            "\"train.lr\" = 2e-3\n[method]\nlambda1 = 0.5\n[lora]\nrank = 8",
            "\"train.lr\" = 4e-3\nseed = 3\n[method]\nlambda1 = 1\n[lora]\nrank = 4",
        ]
        .map(|set| Candidate {
            set: set.parse().unwrap(),
            ..scored(Some(1.0), 0)
        })
        .into();
        // Of two values either is an edge; that says nothing.
        assert_eq!(at_edge(&candidates, 0), ["train.lr"]);
        assert_eq!(at_edge(&candidates, 1), ["method.lambda1"]);
        assert_eq!(at_edge(&candidates, 2), ["method.lambda1"]);
        assert_eq!(at_edge(&candidates, 3), ["train.lr"]);
    }

    #[test]
    fn paths_between_folders() {
        let between = |path: &str, folder: &str| between(Path::new(path), Path::new(folder));
        assert_eq!(between("/a/b/c.toml", "/a/b"), "c.toml");
        assert_eq!(between("/a/b/c.toml", "/a/b/d/e"), "../../c.toml");
        assert_eq!(between("/a/b/../c.toml", "/a/./b"), "../c.toml");
        assert_eq!(between("/x", "/a"), "../x");
    }

    #[test]
    fn relative_paths_follow_the_file() {
        let table: Table = "train.lr = 0.1\n[model]\npath = \"t5\"".parse().unwrap();
        let moved = relocated(&table, Path::new("/w/here"), Path::new("/w/there"));
        assert_eq!(moved["model.path"].as_str(), Some("../here/t5"));
        assert_eq!(moved["train.lr"].as_float(), Some(0.1));
    }
}
