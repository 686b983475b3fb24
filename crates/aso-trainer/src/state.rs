//! What a run must remember to go on after any interruption.
//!
//! `state.json` is the one source of truth and is replaced atomically. It names the checkpoint folder
//! that belongs to it; a checkpoint gets a new name each time, so whichever of the two a crash
//! separates, the state still finds what it names.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use aso_lora::floats::decode_floats;
use aso_lora::{Adapter, AdapterHost, LoraConfig};
use burn::tensor::{Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};

pub use aso_lora::peft::WEIGHTS_FILE;

use crate::TrainerError;
use crate::config::{EvalSettings, EvalTasks};
use crate::files::{
    FilesError, TEMPORARY, atomic_dir, atomic_write, create_dir_all, read_json, write_json,
};
use crate::method::MethodState;
use crate::metrics::AccuracyMatrix;
use crate::optimizer::{MomentState, SubspaceOptimizer, parameters};
use crate::results::{Footprint, GeneralScore, Selected, SimilarityPoint, Timings, WeightPoint};
use crate::selection::Selection;
use crate::task::RunTasks;

/// Layout version of `state.json`.
pub const STATE_FORMAT: u32 = 1;
/// The state's file.
pub const STATE_FILE: &str = "state.json";
/// Folder of the adapters, one per task.
pub const ADAPTERS: &str = "adapters";
/// Folder of the checkpoint within a task.
pub const CHECKPOINTS: &str = "checkpoints";
/// Folder of what the method keeps from task to task.
pub const METHOD: &str = "method";

/// Progress of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// [`STATE_FORMAT`].
    pub format: u32,
    /// Fingerprint of the base model.
    pub base_model: String,
    /// Digests of what was read of each task, by name; none of tasks that earlier versions worked on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// Tasks whose adapters are saved.
    pub trained: usize,
    /// Progress within the next task, if it has begun and been saved.
    pub training: Option<TrainingState>,
    /// What the method kept at the end of the last trained task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<KeptState>,
    /// Scores so far.
    pub matrix: AccuracyMatrix,
    /// Measured soft weights per task.
    pub soft_weights: Vec<Vec<WeightPoint>>,
    /// Measured similarities per task.
    pub similarity: Vec<Vec<SimilarityPoint>>,
    /// Scores on tasks that are not learned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub general: Vec<GeneralScore>,
    /// Scores after the last task with answers that are chosen among labels (`eval.choose_last`), by task; empty before that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chosen: Vec<Option<f64>>,
    /// The step whose adapter each trained task kept, where it was chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selected: Vec<Selected>,
    /// What is kept after the last trained task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub footprint: Option<Footprint>,
    /// Seconds and memory.
    pub timings: Timings,
    /// Lines of `metrics.jsonl` that belong to this state.
    pub metrics_lines: u64,
}

/// Progress within a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingState {
    /// The next optimizer step.
    pub step: usize,
    /// Folder below [`CHECKPOINTS`] with the active subspace and the optimizer.
    pub checkpoint: String,
    /// The best adapter so far, whose weights are in the checkpoint, where one is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Selected>,
    /// The method's own state.
    pub method: serde_json::Value,
}

impl RunState {
    /// The state before anything was done.
    pub fn new(base_model: String, tasks: usize) -> Self {
        let mut state = Self {
            format: STATE_FORMAT,
            base_model,
            data: BTreeMap::new(),
            trained: 0,
            training: None,
            method: None,
            matrix: AccuracyMatrix::new(0),
            soft_weights: Vec::new(),
            similarity: Vec::new(),
            general: Vec::new(),
            chosen: Vec::new(),
            selected: Vec::new(),
            footprint: None,
            timings: Timings::default(),
            metrics_lines: 0,
        };
        state.grow(tasks);
        state
    }

    /// Makes room for more tasks.
    pub fn grow(&mut self, tasks: usize) {
        if tasks > self.matrix.tasks() {
            // Of what was the last task.
            self.chosen.clear();
        }
        self.matrix.grow(tasks);
        self.soft_weights.resize_with(tasks, Vec::new);
        self.similarity.resize_with(tasks, Vec::new);
        for seconds in [
            &mut self.timings.train,
            &mut self.timings.attribution,
            &mut self.timings.evaluation,
        ] {
            seconds.resize(tasks, 0.0);
        }
    }

    /// Compares what was read of tasks with what was read before, and remembers what nothing has come of yet: of tasks of
    /// the stream that are not trained, and of others that are not evaluated. `path` is the state's file.
    ///
    /// # Errors
    /// [`TrainerError::OtherData`] for the first task that has other examples now.
    pub fn check_data(&mut self, tasks: &RunTasks, path: &Path) -> Result<(), TrainerError> {
        let begun = self.trained + usize::from(self.training.is_some());
        let scored = |index: usize| {
            let mut rows = self.matrix.rows().iter();
            self.matrix.zero_shot()[index].is_some() || rows.any(|row| row[index].is_some())
        };
        let stream = tasks.stream.iter().enumerate();
        let stream = stream.map(|(index, task)| (task, index >= begun && !scored(index)));
        let general = tasks.general.iter().zip(&self.general);
        let general = general.map(|(task, score)| (task, score.before.is_none()));
        for (task, fresh) in stream.chain(general).collect::<Vec<_>>() {
            match self.data.get(&task.name) {
                Some(expected) if *expected != task.digest => {
                    return Err(TrainerError::OtherData {
                        path: path.to_owned(),
                        task: task.name.clone(),
                        expected: expected.clone(),
                        found: task.digest.clone(),
                    });
                }
                None if fresh => {
                    self.data.insert(task.name.clone(), task.digest.clone());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Tasks without a score in the row after task `after` (`None`: the untouched backbone).
    pub fn missing(&self, after: Option<usize>, evaluated: EvalTasks) -> Vec<usize> {
        (0..self.matrix.tasks())
            .filter(|&task| match after {
                Some(after) => {
                    evaluated.includes(after, task) && self.matrix.get(after, task).is_none()
                }
                None => self.matrix.zero_shot()[task].is_none(),
            })
            .collect()
    }

    /// Whether `tasks` tasks are trained, the last row and what comes behind it are evaluated. Earlier rows are complete when
    /// a later task is trained.
    pub fn is_complete(&self, tasks: usize, eval: &EvalSettings) -> bool {
        let general = self.general.len() == eval.general_tasks.iter().flatten().count()
            && self
                .general
                .iter()
                .all(|score| score.before.is_some() && score.after.is_some());
        let chosen = self.chosen.iter().flatten().count();
        general
            && (!eval.choose_last || chosen == tasks)
            && self.trained == tasks
            && self.matrix.tasks() == tasks
            && self.missing(tasks.checked_sub(1), eval.tasks).is_empty()
            && (!eval.zero_shot || self.missing(None, eval.tasks).is_empty())
    }

    /// Reads the state of a run directory; `None` if it has none yet.
    ///
    /// # Errors
    /// If the file is unreadable or of another format.
    pub fn read(dir: &Path) -> Result<Option<Self>, TrainerError> {
        let path = dir.join(STATE_FILE);
        if !path.exists() {
            return Ok(None);
        }
        let state: Self = read_json(&path)?;
        if state.format != STATE_FORMAT {
            let (expected, found) = (STATE_FORMAT, state.format);
            return Err(TrainerError::StateFormat {
                path,
                expected,
                found,
            });
        }
        Ok(Some(state))
    }

    /// Replaces the state of a run directory.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn write(&self, dir: &Path) -> Result<(), FilesError> {
        write_json(&dir.join(STATE_FILE), self)
    }
}

/// Folder of the adapter of task `index`: `adapters/00-name` ([`numbered`]).
pub fn adapter_dir(run: &Path, index: usize, task: &str) -> PathBuf {
    run.join(ADAPTERS).join(numbered(index, task))
}

/// `00-name`, with characters that a file name should not hold replaced, and without what marks a temporary file.
pub fn numbered(index: usize, task: &str) -> String {
    let name: String = task
        .replace(TEMPORARY, "_tmp-")
        .chars()
        .map(|c| {
            if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') {
                c
            } else {
                '_'
            }
        })
        .collect();
    format!("{index:02}-{name}")
}

const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const METHOD_FILE: &str = "method.safetensors";

/// What a method keeps from task to task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptState {
    /// Its values.
    pub values: serde_json::Value,
    /// File below [`METHOD`] with its matrices, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

impl KeptState {
    /// Writes the matrices of a state into the folder `dir`. `None` if there is
    /// nothing to keep.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(
        dir: &Path,
        task: usize,
        state: MethodState,
    ) -> Result<Option<Self>, TrainerError> {
        if state.is_empty() {
            return Ok(None);
        }
        let mut file = None;
        if !state.tensors.is_empty() {
            let name = format!("task-{task:02}.safetensors");
            let path = dir.join(&name);
            create_dir_all(dir)?;
            let bytes = state.tensor_bytes().map_err(|e| moments_error(&path, e))?;
            atomic_write(&path, &bytes)?;
            file = Some(name);
        }
        let values = state.values;
        Ok(Some(Self { values, file }))
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// If the file is missing or damaged.
    pub fn read(&self, dir: &Path, device: &Device) -> Result<MethodState, TrainerError> {
        let tensors = match &self.file {
            Some(file) => read_tensors(&dir.join(file), device)?,
            None => BTreeMap::new(),
        };
        let values = self.values.clone();
        Ok(MethodState { values, tensors })
    }
}

/// The matrices of the method's state in a checkpoint folder.
///
/// # Errors
/// If the file is damaged.
pub fn read_method_tensors(
    dir: &Path,
    device: &Device,
) -> Result<BTreeMap<String, Tensor<2>>, TrainerError> {
    let path = dir.join(METHOD_FILE);
    if path.exists() {
        read_tensors(&path, device)
    } else {
        Ok(BTreeMap::new())
    }
}

fn read_tensors(path: &Path, device: &Device) -> Result<BTreeMap<String, Tensor<2>>, TrainerError> {
    let bytes = std::fs::read(path).map_err(|source| FilesError::Io {
        path: path.to_owned(),
        source,
    })?;
    MethodState::read_tensors(&bytes, device).map_err(|source| moments_error(path, source))
}

/// Writes the active subspace, the optimizer's moments, the method's matrices and the best adapter as a folder that appears whole.
///
/// # Errors
/// If a file cannot be written or a weight is not finite.
pub(crate) fn write_checkpoint(
    dir: &Path,
    adapter: &Adapter,
    optimizer: &SubspaceOptimizer,
    method: &MethodState,
    selection: Option<&Selection>,
) -> Result<(), TrainerError> {
    atomic_dir(dir, |dir| {
        adapter.save(dir)?;
        let bytes = serialize_moments(&optimizer.export(), &dir.join(OPTIMIZER_FILE))?;
        atomic_write(&dir.join(OPTIMIZER_FILE), &bytes)?;
        if !method.tensors.is_empty() {
            let path = dir.join(METHOD_FILE);
            let bytes = method.tensor_bytes().map_err(|e| moments_error(&path, e))?;
            atomic_write(&path, &bytes)?;
        }
        selection.map_or(Ok(()), |selection| selection.write(dir))
    })
}

/// Restores what [`write_checkpoint`] wrote.
///
/// # Errors
/// If a file is missing, damaged or does not fit the model.
pub fn read_checkpoint<M: AdapterHost>(
    dir: &Path,
    lora: &LoraConfig,
    model: &mut M,
    optimizer: &mut SubspaceOptimizer,
    device: &Device,
) -> Result<(), TrainerError> {
    let adapter = Adapter::load(dir)?;
    model.set_active(&adapter, lora.dropout)?;
    let path = dir.join(OPTIMIZER_FILE);
    let moments = deserialize_moments(&path)?;
    let trained: BTreeMap<_, _> = parameters(model).into_iter().collect();
    for (name, MomentState { shape, .. }) in &moments {
        let expected = trained.get(name).map(Tensor::dims);
        if expected != Some(*shape) {
            return Err(TrainerError::Moments {
                path,
                name: name.clone(),
                expected,
                found: *shape,
            });
        }
    }
    optimizer.import(moments, device);
    Ok(())
}

/// Moments as tensors `{name}.moment_1`, `{name}.moment_2`, step counts as `{name}.time` (i64).
fn serialize_moments(
    state: &BTreeMap<String, MomentState>,
    path: &Path,
) -> Result<Vec<u8>, TrainerError> {
    let mut buffers: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, moments) in state {
        let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = moments.shape.to_vec();
        let (m1, m2) = (floats(&moments.moment_1), floats(&moments.moment_2));
        buffers.push((format!("{name}.moment_1"), Dtype::F32, shape.clone(), m1));
        buffers.push((format!("{name}.moment_2"), Dtype::F32, shape, m2));
        let time = (moments.time as i64).to_le_bytes().to_vec();
        buffers.push((format!("{name}.time"), Dtype::I64, vec![1], time));
    }
    let damaged = |source| moments_error(path, source);
    let views = buffers
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((
                name.as_str(),
                TensorView::new(*dtype, shape.clone(), bytes)?,
            ))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(damaged)?;
    safetensors::serialize(views, None::<HashMap<String, String>>).map_err(damaged)
}

fn deserialize_moments(path: &Path) -> Result<BTreeMap<String, MomentState>, TrainerError> {
    let bytes = std::fs::read(path).map_err(|source| FilesError::Io {
        path: path.to_owned(),
        source,
    })?;
    let damaged = |source| moments_error(path, source);
    let file = SafeTensors::deserialize(&bytes).map_err(damaged)?;
    let floats = |name: String| -> Result<(Vec<usize>, Vec<f32>), TrainerError> {
        let view = file.tensor(&name).map_err(damaged)?;
        let (dtype, shape) = (view.dtype(), view.shape().to_vec());
        match decode_floats(dtype, view.data()) {
            Some(values) => Ok((shape, values)),
            None => Err(damaged(SafeTensorError::InvalidTensorView(
                dtype,
                shape,
                view.data().len(),
            ))),
        }
    };
    let mut state = BTreeMap::new();
    for tensor in file.names() {
        let Some(name) = tensor.strip_suffix(".time") else {
            continue;
        };
        let time = file.tensor(tensor).map_err(damaged)?;
        let invalid = |dtype, shape: &[usize], length| {
            damaged(SafeTensorError::InvalidTensorView(
                dtype,
                shape.to_vec(),
                length,
            ))
        };
        let steps = time.data().first_chunk().copied().map(i64::from_le_bytes);
        let steps = steps.and_then(|steps| usize::try_from(steps).ok());
        let Some(steps) = steps.filter(|_| time.dtype() == Dtype::I64) else {
            return Err(invalid(time.dtype(), time.shape(), time.data().len()));
        };
        let (shape, moment_1) = floats(format!("{name}.moment_1"))?;
        let (shape_2, moment_2) = floats(format!("{name}.moment_2"))?;
        let &[rows, columns] = shape.as_slice() else {
            return Err(invalid(Dtype::F32, &shape, moment_1.len()));
        };
        if shape_2 != shape {
            return Err(invalid(Dtype::F32, &shape_2, moment_2.len()));
        }
        let state_of = MomentState {
            time: steps,
            shape: [rows, columns],
            moment_1,
            moment_2,
        };
        state.insert(name.to_owned(), state_of);
    }
    Ok(state)
}

fn moments_error(path: &Path, source: safetensors::SafeTensorError) -> TrainerError {
    TrainerError::Lora(aso_lora::LoraError::Safetensors {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_tasks_are_never_taken_for_leftovers() {
        assert_eq!(numbered(3, "news/a b.c"), "03-news_a_b.c");
        assert_eq!(numbered(0, "news.tmp-old"), "00-news_tmp-old");
    }
}
