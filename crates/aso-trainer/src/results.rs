//! `results.json`, what a run has to show.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::{FilesError, read_json, write_json};
use crate::metrics::{AccuracyMatrix, Metric, mean};
pub use crate::selection::Selected;

/// The name of the file in a run directory.
pub const RESULTS_FILE: &str = "results.json";

/// The results of a run. Lists over tasks have the order of `tasks`; scores are in percent, and
/// `null` where nothing was evaluated.
///
/// Everything but `timings` is the same, bit for bit, whenever the same configuration runs on CPUs with the same vector
/// instructions, with any number of threads, interrupted or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResults {
    /// Version of this program.
    pub version: String,
    /// The method's name.
    pub method: String,
    /// The seed.
    pub seed: u64,
    /// The tasks in the order in which they were learned.
    pub tasks: Vec<String>,
    /// Evaluation examples of each task.
    pub evaluation_samples: Vec<usize>,
    /// `R[i][j]`: the score on task j after training task i.
    pub accuracy: Vec<Vec<Option<f64>>>,
    /// The scores of the untouched backbone.
    pub zero_shot: Vec<Option<f64>>,
    /// Average performance over tasks after the last task.
    pub ap: Option<f64>,
    /// The same, weighted by evaluation examples.
    pub ap_by_sample: Option<f64>,
    /// The scores after the last task where answers are chosen among labels (`eval.choose_last`); empty without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chosen: Vec<Option<f64>>,
    /// AP of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ap_chosen: Option<f64>,
    /// Backward transfer.
    pub bwt: Option<f64>,
    /// Forgetting.
    pub forgetting: Option<f64>,
    /// Forward transfer.
    pub fwt: Option<f64>,
    /// Mean score on a task right after it was trained.
    pub learning_accuracy: Option<f64>,
    /// The measured soft weights of each task; empty where none was measured.
    pub soft_weights: Vec<Vec<WeightPoint>>,
    /// The measured similarities of each task; empty where none was measured.
    pub similarity: Vec<Vec<SimilarityPoint>>,
    /// Fingerprint of the base model's weights; absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// Digests of what was read of each task, by name; none of tasks that earlier versions worked on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// Scores on tasks that are not learned (`eval.general_tasks`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub general: Vec<GeneralScore>,
    /// The step whose adapter each task kept, with `train.select = "best-on-dev"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selected: Vec<Selected>,
    /// What is kept after the last trained task; absent before that, and in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub footprint: Option<Footprint>,
    /// Wall-clock times, memory and the kind of machine.
    pub timings: Timings,
}

/// Scores on a task that is not learned, in percent; `null` where nothing was evaluated yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GeneralScore {
    /// The task.
    pub task: String,
    /// Of the untouched backbone.
    pub before: Option<f64>,
    /// Behind the last task.
    pub after: Option<f64>,
}

impl GeneralScore {
    /// Nothing evaluated yet.
    pub fn new(task: String) -> Self {
        let (before, after) = (None, None);
        Self {
            task,
            before,
            after,
        }
    }
}

/// What a method keeps beside the backbone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// Elements of all adapters that answering takes; of `seq-ft` also the identities that its form `B I` stores.
    pub adapter_elements: u64,
    /// Elements of the matrices that training the next task takes: importances, bases of inputs, an adapter to merge with.
    pub method_elements: u64,
    /// Examples of earlier tasks.
    pub examples: u64,
}

/// One measurement of the soft weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightPoint {
    /// Optimizer step within the task, from 0, before whose update it was measured.
    pub step: usize,
    /// The weight w; the mean of `weights` where there are several.
    pub weight: f64,
    /// One weight for each past task (`attribution.per_task`) or block (`attribution.per_block`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<f64>,
}

/// One measurement of the similarity rho between two models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SimilarityPoint {
    /// Optimizer step within the task, from 0.
    pub step: usize,
    /// The past task (from 0) that the current one is compared with, with `attribution.per_task`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub past_task: Option<usize>,
    /// rho_l of each tapped block from 0; `null` where the block was skipped for lack of variance.
    pub blocks: Vec<Option<f64>>,
}

impl SimilarityPoint {
    /// rho, the mean over the blocks that were not skipped.
    pub fn mean(&self) -> Option<f64> {
        let kept = self.blocks.iter().flatten();
        let count = kept.clone().count();
        (count > 0).then(|| kept.sum::<f64>() / count as f64)
    }
}

/// Wall-clock seconds, one number for each task, the memory of the process and the kind of machine.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Timings {
    /// Evaluation of the untouched backbone.
    pub zero_shot: f64,
    /// Training, attribution included.
    pub train: Vec<f64>,
    /// Attribution.
    pub attribution: Vec<f64>,
    /// Evaluation after the task.
    pub evaluation: Vec<f64>,
    /// The most bytes that a process of the run held in memory, data and all tasks included; absent where the system does
    /// not say (anything but Linux).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// Kinds of the processors that the run worked on ([`processor`]); several if it went on elsewhere, none in files of
    /// earlier versions.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub processors: BTreeSet<String>,
}

/// This machine's processor as far as numbers depend on it: architecture and widest vector instructions, such as
/// `x86_64 avx512f`. Kernels for wider vectors add in another order.
pub fn processor() -> String {
    #[cfg(target_arch = "x86_64")]
    let vectors = if std::arch::is_x86_feature_detected!("avx512f") {
        " avx512f"
    } else if std::arch::is_x86_feature_detected!("avx2") {
        " avx2"
    } else {
        ""
    };
    #[cfg(not(target_arch = "x86_64"))]
    let vectors = "";
    format!("{}{vectors}", std::env::consts::ARCH)
}

impl Timings {
    /// Takes in what this process has held so far, and where it works.
    pub(crate) fn note_machine(&mut self) {
        self.processors.insert(processor());
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        self.peak_bytes = self
            .peak_bytes
            .max(kilobytes.map(|kilobytes| 1024 * kilobytes));
    }
}

/// A line of the accuracy matrix for display.
#[derive(Debug, Clone, PartialEq)]
pub struct MatrixRow<'a> {
    /// The task that was trained last; `None` for the untouched backbone.
    pub after: Option<&'a str>,
    /// The score on each task.
    pub scores: &'a [Option<f64>],
}

impl RunResults {
    /// The results for an accuracy matrix, with all metrics; traces and timings are empty.
    pub fn new(
        method: &str,
        seed: u64,
        tasks: Vec<String>,
        evaluation_samples: Vec<usize>,
        matrix: &AccuracyMatrix,
    ) -> Self {
        let count = tasks.len();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            method: method.to_owned(),
            seed,
            ap: matrix.average_performance(),
            ap_by_sample: matrix.average_performance_by_sample(&evaluation_samples),
            chosen: Vec::new(),
            ap_chosen: None,
            bwt: matrix.backward_transfer(),
            forgetting: matrix.forgetting(),
            fwt: matrix.forward_transfer(),
            learning_accuracy: matrix.learning_accuracy(),
            accuracy: matrix.rows().to_vec(),
            zero_shot: matrix.zero_shot().to_vec(),
            tasks,
            evaluation_samples,
            soft_weights: vec![Vec::new(); count],
            similarity: vec![Vec::new(); count],
            base_model: None,
            data: BTreeMap::new(),
            general: Vec::new(),
            selected: Vec::new(),
            footprint: None,
            timings: Timings {
                zero_shot: 0.0,
                train: vec![0.0; count],
                attribution: vec![0.0; count],
                evaluation: vec![0.0; count],
                peak_bytes: None,
                processors: BTreeSet::new(),
            },
        }
    }

    /// With the scores of chosen answers, a score for each task or none at all.
    pub fn with_chosen(mut self, chosen: Vec<Option<f64>>) -> Self {
        self.ap_chosen = mean(chosen.iter().copied());
        self.chosen = chosen;
        self
    }

    /// Every metric.
    pub fn metrics(&self) -> BTreeMap<Metric, Option<f64>> {
        Metric::ALL.map(|metric| (metric, metric.of(self))).into()
    }

    /// Reads the `results.json` of a run directory.
    ///
    /// # Errors
    /// [`FilesError`] names the file.
    pub fn read(dir: &Path) -> Result<Self, FilesError> {
        read_json(&dir.join(RESULTS_FILE))
    }

    /// Writes the `results.json` of a run directory, whole or not at all.
    ///
    /// # Errors
    /// [`FilesError`] names the file.
    pub fn write(&self, dir: &Path) -> Result<(), FilesError> {
        write_json(&dir.join(RESULTS_FILE), self)
    }

    /// The rows to show: the untouched backbone where it was evaluated, then one for each task.
    pub fn matrix_rows(&self) -> Vec<MatrixRow<'_>> {
        let evaluated = self.zero_shot.iter().any(Option::is_some);
        let backbone = MatrixRow {
            after: None,
            scores: &self.zero_shot,
        };
        let trained = self.tasks.iter().zip(&self.accuracy);
        let trained = trained.map(|(task, scores)| MatrixRow {
            after: Some(task),
            scores,
        });
        evaluated
            .then_some(backbone)
            .into_iter()
            .chain(trained)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn results(scores: &[f64]) -> RunResults {
        let mut matrix = AccuracyMatrix::new(2);
        matrix.set_zero_shot(1, scores[0]);
        matrix.set(0, 0, scores[1]);
        matrix.set(0, 1, scores[2]);
        matrix.set(1, 0, scores[3]);
        matrix.set(1, 1, scores[4]);
        let tasks = vec!["a".to_owned(), "b".to_owned()];
        let mut results = RunResults::new("aso-lora", 1, tasks, vec![10, 30], &matrix);
        results.soft_weights[1].push(WeightPoint {
            step: 3,
            weight: scores[5],
            weights: vec![],
        });
        results.similarity[1].push(SimilarityPoint {
            step: 3,
            past_task: None,
            blocks: vec![None, Some(scores[6]), Some(scores[7])],
        });
        results.timings.train[0] = 1.5;
        results
    }

    #[test]
    fn the_file() {
        let found = results(&[20.0, 80.0, 25.0, 60.0, 90.0, 0.25, 0.5, 1.0]);
        let expected = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "method": "aso-lora",
            "seed": 1,
            "tasks": ["a", "b"],
            "evaluation_samples": [10, 30],
            "accuracy": [[80.0, 25.0], [60.0, 90.0]],
            "zero_shot": [null, 20.0],
            "ap": 75.0,
            "ap_by_sample": 82.5,
            "bwt": -20.0,
            "forgetting": 20.0,
            "fwt": 5.0,
            "learning_accuracy": 85.0,
            "soft_weights": [[], [{ "step": 3, "weight": 0.25 }]],
            "similarity": [[], [{ "step": 3, "blocks": [null, 0.5, 1.0] }]],
            "timings": {
                "zero_shot": 0.0,
                "train": [1.5, 0.0],
                "attribution": [0.0, 0.0],
                "evaluation": [0.0, 0.0],
            },
        });
        assert_eq!(serde_json::to_value(&found).unwrap(), expected);
        assert_eq!(found.similarity[1][0].mean(), Some(0.75));
        let skipped = SimilarityPoint {
            step: 0,
            past_task: Some(1),
            blocks: vec![None],
        };
        assert_eq!(skipped.mean(), None);
    }

    #[test]
    fn machines_add_up() {
        let mut timings: Timings = serde_json::from_str(
            r#"{"zero_shot":0.0,"train":[],"attribution":[],"evaluation":[],"processors":["elsewhere"]}"#,
        )
        .unwrap();
        timings.note_machine();
        timings.note_machine();
        assert_eq!(timings.processors.len(), 2);
        assert!(timings.processors.contains(&processor()));
        assert!(processor().starts_with(std::env::consts::ARCH));
    }

    #[test]
    fn rows_to_show() {
        let mut results = results(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let labels = |results: &RunResults| -> Vec<Option<String>> {
            results
                .matrix_rows()
                .iter()
                .map(|row| row.after.map(str::to_owned))
                .collect()
        };
        assert_eq!(labels(&results), [None, Some("a".into()), Some("b".into())]);
        assert_eq!(results.matrix_rows()[2].scores, [Some(3.0), Some(4.0)]);
        results.zero_shot = vec![None, None];
        assert_eq!(labels(&results), [Some("a".into()), Some("b".into())]);
    }

    #[test]
    fn one_task_has_nulls() {
        let mut matrix = AccuracyMatrix::new(1);
        matrix.set(0, 0, 50.0);
        let results = RunResults::new("seq-lora", 1, vec!["a".into()], vec![4], &matrix);
        let json = serde_json::to_value(&results).unwrap();
        for key in ["bwt", "forgetting", "fwt"] {
            assert!(json[key].is_null(), "{key}");
        }
        assert_eq!(json["ap"], 50.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_bit_survives_the_file(scores in prop::collection::vec(-100.0..100.0_f64, 8)) {
            let dir = tempfile::tempdir().unwrap();
            let results = results(&scores);
            results.write(dir.path()).unwrap();
            prop_assert_eq!(RunResults::read(dir.path()).unwrap(), results);
        }
    }
}
