//! Run directories for the tests of this crate.

use std::fs;
use std::path::Path;

use aso_trainer::metrics::AccuracyMatrix;
use aso_trainer::results::{GeneralScore, RunResults};

use crate::record::RunRecord;

/// Results on the tasks `a` and `b`, with 10 and 30 examples; `scores` are the rows of R.
pub(crate) fn results(method: &str, seed: u64, scores: &[f64; 4]) -> RunResults {
    let mut matrix = AccuracyMatrix::new(2);
    for (at, score) in scores.iter().enumerate() {
        matrix.set(at / 2, at % 2, *score);
    }
    matrix.set_zero_shot(0, 10.0);
    matrix.set_zero_shot(1, 20.0);
    let tasks = vec!["a".to_owned(), "b".to_owned()];
    let results = RunResults::new(method, seed, tasks, vec![10, 30], &matrix);
    let mut results = results.with_chosen(vec![Some(scores[2] + 10.0), Some(scores[3])]);
    results.general = vec![GeneralScore {
        task: "other".to_owned(),
        before: Some(31.25),
        after: Some(scores[3] / 8.0),
    }];
    results
}

/// A run directory with nothing but results.
pub(crate) fn write_run(dir: &Path, results: &RunResults) {
    fs::create_dir_all(dir).expect("a folder");
    results.write(dir).expect("results.json");
}

/// A run in a directory of its own below `dir`, as it is read.
pub(crate) fn record(dir: &Path, results: &RunResults) -> (Option<String>, RunRecord) {
    let run = dir.join(format!("{}-{}", results.method, results.seed));
    write_run(&run, results);
    (None, RunRecord::read(&run).expect("a run"))
}
