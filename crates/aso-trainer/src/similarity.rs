//! Similarity of tasks after training, task by task.

use std::collections::BTreeMap;
use std::path::Path;

use aso_attribution::{
    AttributionScores, Attributor, Similarity, input_response, subspace_overlap,
};
use aso_backbones::Backbone;
use aso_data::EncodedExample;
use aso_lora::{Adapter, AdapterScope};
use serde::{Deserialize, Serialize};

use crate::TrainerError;
use crate::codec::TextCodec;
use crate::files::{FilesError, read_json, write_json};
use crate::method::input_covariances;
use crate::metrics::Spread;

/// The name of the file in a run directory.
pub const SIMILARITY_FILE: &str = "similarity.json";

/// A task after training.
#[derive(Debug, Clone)]
pub struct TrainedTask {
    /// Its name.
    pub name: String,
    /// What was trained on it.
    pub adapter: Adapter,
    /// The examples of it that are measured on.
    pub examples: Vec<EncodedExample>,
}

/// Three measures between all pairs of tasks; lists have the order of `tasks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskSimilarities {
    /// The tasks.
    pub tasks: Vec<String>,
    /// Mean over blocks of the Pearson correlation of the attribution scores of base + adapter i and base + adapter
    /// j, averaged over a batch of task i and a batch of task j (docs/method.md, Attribution and the soft weight). `null` where no block varies.
    pub attribution: Vec<Vec<Option<f64>>>,
    /// Mean over layers of the overlap of the row spaces of A_i and A_j ([`subspace_overlap`]). `null` where the two
    /// adapters share no layer.
    pub overlap: Vec<Vec<Option<f64>>>,
    /// Row i, column j: how strongly A_i responds to what the examples of task j feed its layers, relative to random rows
    /// ([`input_response`]), mean over layers; adapter j is on the model then. `null` where the two adapters share no layer. Empty
    /// in files that were written before there was this measure.
    #[serde(default)]
    pub response: Vec<Vec<Option<f64>>>,
}

impl TaskSimilarities {
    /// Measures adapters, each alone on the model, with the examples of each task.
    ///
    /// The model must carry no frozen subspaces; its active one is replaced.
    ///
    /// # Errors
    /// If an adapter does not fit, or the model has nothing to tap.
    pub fn measure<M: Backbone>(
        model: &mut M,
        codec: &TextCodec,
        tasks: &[TrainedTask],
        attributor: &Attributor,
    ) -> Result<Self, TrainerError> {
        let batches = tasks.iter().map(|task| {
            let rows: Vec<_> = task.examples.iter().collect();
            codec.batch(&rows)
        });
        let batches: Vec<_> = batches.collect::<Result<_, _>>()?;
        // scores[i][b]: adapter i on the batch of task b.
        let mut scores: Vec<Vec<Option<AttributionScores>>> = Vec::new();
        let mut inputs: Vec<BTreeMap<String, Vec<f32>>> = Vec::new();
        for task in tasks {
            model.set_active(&task.adapter, 0.0)?;
            let covariances = input_covariances(model, codec, &task.examples)?;
            let host = covariances.into_iter().map(|(layer, sum)| {
                let values = sum.into_data().iter::<f32>().collect();
                (layer, values)
            });
            inputs.push(host.collect());
            let row = batches
                .iter()
                .map(|batch| attributor.scores(model, batch, AdapterScope::All));
            scores.push(row.collect::<Result<_, _>>()?);
        }
        let on_batch = |i: usize, j: usize, batch: usize| {
            let (left, right) = (scores[i][batch].as_ref()?, scores[j][batch].as_ref()?);
            Similarity::between(left, right).mean()
        };
        let attribution =
            |i: usize, j: usize| mean([on_batch(i, j, i), on_batch(i, j, j)].into_iter().flatten());
        let weights = |i: usize| &tasks[i].adapter.weights;
        let overlap = |i: usize, j: usize| {
            mean(weights(i).iter().filter_map(|(layer, left)| {
                let right = weights(j).get(layer)?;
                subspace_overlap(&left.a, &right.a, left.d_in)
            }))
        };
        let response = |i: usize, j: usize| {
            mean(weights(i).iter().filter_map(|(layer, left)| {
                let covariance = inputs[j].get(layer)?;
                input_response(&left.a, covariance, left.d_in)
            }))
        };
        let count = tasks.len();
        Ok(Self {
            tasks: tasks.iter().map(|task| task.name.clone()).collect(),
            attribution: matrix(count, attribution),
            overlap: matrix(count, overlap),
            response: matrix(count, response),
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

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    Spread::of(&values.collect::<Vec<_>>()).map(|spread| spread.mean)
}

fn matrix(size: usize, entry: impl Fn(usize, usize) -> Option<f64>) -> Vec<Vec<Option<f64>>> {
    (0..size)
        .map(|i| (0..size).map(|j| entry(i, j)).collect())
        .collect()
}
