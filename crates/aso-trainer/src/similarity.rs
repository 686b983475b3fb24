//! Similarity of tasks after training, task by task.

use std::path::Path;

use aso_attribution::{AttributionScores, Attributor, Similarity, subspace_overlap};
use aso_backbones::{Backbone, TokenBatch};
use aso_lora::{Adapter, AdapterScope};
use serde::{Deserialize, Serialize};

use crate::TrainerError;
use crate::files::{FilesError, read_json, write_json};

/// The name of the file in a run directory.
pub const SIMILARITY_FILE: &str = "similarity.json";

/// Two similarities between all pairs of tasks; lists have the order of `tasks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskSimilarities {
    /// The tasks.
    pub tasks: Vec<String>,
    /// Mean over blocks of the Pearson correlation of the attribution scores of base + adapter i and base + adapter
    /// j, averaged over a batch of task i and a batch of task j (method.md section 3.2). `null` where no block varies.
    pub attribution: Vec<Vec<Option<f64>>>,
    /// Mean over layers of the overlap of the row spaces of A_i and A_j ([`subspace_overlap`]). `null` where the two
    /// adapters share no layer.
    pub overlap: Vec<Vec<Option<f64>>>,
}

impl TaskSimilarities {
    /// Measures adapters, each alone on the model, with one batch of each task.
    ///
    /// The model must carry no frozen subspaces; its active one is replaced.
    ///
    /// # Errors
    /// If an adapter does not fit, or the model has nothing to tap.
    pub fn measure<M: Backbone>(
        model: &mut M,
        adapters: &[(String, Adapter)],
        batches: &[TokenBatch],
        attributor: &Attributor,
    ) -> Result<Self, TrainerError> {
        // scores[i][b]: adapter i on the batch of task b.
        let mut scores: Vec<Vec<Option<AttributionScores>>> = Vec::new();
        for (_, adapter) in adapters {
            model.set_active(adapter, 0.0)?;
            let row = batches
                .iter()
                .map(|batch| attributor.scores(model, batch, AdapterScope::All));
            scores.push(row.collect::<Result<_, _>>()?);
        }
        let on_batch = |i: usize, j: usize, batch: usize| {
            let (left, right) = (scores[i][batch].as_ref()?, scores[j][batch].as_ref()?);
            Similarity::between(left, right).mean()
        };
        let attribution = |i: usize, j: usize| {
            let both = [on_batch(i, j, i), on_batch(i, j, j)];
            let known = both.iter().flatten();
            let count = known.clone().count();
            (count > 0).then(|| known.sum::<f64>() / count as f64)
        };
        let overlap = |i: usize, j: usize| {
            let (left, right) = (&adapters[i].1.weights, &adapters[j].1.weights);
            let shared = left.iter().filter_map(|(layer, left)| {
                let right = right.get(layer)?;
                subspace_overlap(&left.a, &right.a, left.d_in)
            });
            let shared: Vec<f64> = shared.collect();
            (!shared.is_empty()).then(|| shared.iter().sum::<f64>() / shared.len() as f64)
        };
        let count = adapters.len();
        Ok(Self {
            tasks: adapters.iter().map(|(task, _)| task.clone()).collect(),
            attribution: matrix(count, attribution),
            overlap: matrix(count, overlap),
        })
    }

    /// Reads the `similarity.json` of a run directory.
    ///
    /// # Errors
    /// [`FilesError`] names the file.
    pub fn read(dir: &Path) -> Result<Self, FilesError> {
        read_json(&dir.join(SIMILARITY_FILE))
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    /// [`FilesError`] names the file.
    pub fn write(&self, path: &Path) -> Result<(), FilesError> {
        write_json(path, self)
    }
}

fn matrix(size: usize, entry: impl Fn(usize, usize) -> Option<f64>) -> Vec<Vec<Option<f64>>> {
    (0..size)
        .map(|i| (0..size).map(|j| entry(i, j)).collect())
        .collect()
}
