//! The loop: full-parameter steps, saved now and then.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use aso_backbones::{Backbone, BackboneError, FloatDtype, NamedTensor, TokenBatch, checkpoint};
use aso_lora::{DropoutStream, ForwardContext};
use aso_losses::SequenceCrossEntropy;
use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::{AdafactorConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::examples::Examples;
use super::{
    CHECKPOINT_EVERY, PretrainConfig, PretrainData, PretrainError, PretrainLength, PretrainProgress,
};
use crate::files::{
    FilesError, RunLock, atomic_dir, atomic_write, create_dir_all, read_json, write_json,
};

/// Steps between two reports.
const REPORT_EVERY: usize = 50;
/// Steps whose time decides how many fit into the wished hours, after as many that warm up.
const TIMED: usize = 20;

const STATE_FILE: &str = "state.json";
const OPTIMIZER_FILE: &str = "optimizer.bpk";

/// A model that can be saved.
pub(super) trait Parameters {
    fn named(&self) -> Vec<NamedTensor>;
    fn embedding(&self) -> ParamId;
}

impl Parameters for aso_backbones::t5::T5ForConditionalGeneration {
    fn named(&self) -> Vec<NamedTensor> {
        self.named_parameters()
    }

    fn embedding(&self) -> ParamId {
        self.embedding_id()
    }
}

impl Parameters for aso_backbones::llama::LlamaForCausalLm {
    fn named(&self) -> Vec<NamedTensor> {
        self.named_parameters()
    }

    fn embedding(&self) -> ParamId {
        self.embedding_id()
    }
}

/// What a fit is about.
pub(super) struct Fitting<'a> {
    config: &'a PretrainConfig,
    keep: Option<&'a Path>,
    stop: &'a AtomicBool,
    /// SHA-256 of settings, tokenizer and texts.
    run: String,
    _lock: Option<RunLock>,
}

/// Where a pre-training stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    /// [`Fitting::run`].
    run: String,
    /// Steps done.
    step: usize,
    /// Steps in all, once that is known.
    steps: Option<usize>,
    /// Folder with the weights and the optimizer.
    checkpoint: String,
}

impl<'a> Fitting<'a> {
    /// Locks the folder `keep`, which is made if need be.
    pub(super) fn new(
        config: &'a PretrainConfig,
        data: &PretrainData,
        tokenizer: &[u8],
        keep: Option<&'a Path>,
        stop: &'a AtomicBool,
    ) -> Result<Self, PretrainError> {
        let mut hash = Sha256::new();
        hash.update(format!("{config:?}"));
        hash.update(tokenizer);
        if let PretrainData::Corpus(corpus) = data {
            for text in corpus.texts() {
                hash.update((text.len() as u64).to_le_bytes());
                hash.update(text);
            }
        }
        let run = hash.finalize();
        let lock = |dir: &Path| {
            create_dir_all(dir)?;
            RunLock::acquire(dir)
        };
        Ok(Self {
            config,
            keep,
            stop,
            run: run.iter().map(|byte| format!("{byte:02x}")).collect(),
            _lock: keep.map(lock).transpose()?,
        })
    }

    /// Trains all parameters. `None` if it was stopped.
    pub(super) fn fit<M: Backbone + Module + Parameters>(
        &self,
        mut examples: Examples,
        json: &Map<String, Value>,
        fresh: impl FnOnce() -> Result<M, BackboneError>,
        saved: impl FnOnce(&Path) -> Result<M, BackboneError>,
        report: &mut dyn FnMut(PretrainProgress),
    ) -> Result<Option<M>, PretrainError> {
        let config = self.config;
        // Updates are scaled by each parameter's root mean square: with Adam's uniform steps, embeddings
        // of unit variance hardly move while small projections jump.
        let mut optimizer = AdafactorConfig::new().with_relative_step(false).init();
        let state = self.read()?;
        let model = match (&state, self.keep) {
            (Some(state), Some(keep)) => {
                let dir = keep.join(&state.checkpoint);
                let path = dir.join(OPTIMIZER_FILE);
                optimizer = optimizer
                    .load(&path)
                    .map_err(|error| PretrainError::Optimizer {
                        path,
                        problem: error.to_string(),
                    })?;
                saved(&dir)?
            }
            _ => fresh()?,
        };
        let mut model = model.map(&mut MakeTrainable);
        let first = state.as_ref().map_or(0, |state| state.step);
        let mut steps = match config.length {
            PretrainLength::Steps(steps) => Some(steps),
            PretrainLength::Hours(_) => state.and_then(|state| state.steps),
        };
        let (mut sum, mut since) = (0.0, 0);
        let mut clock = Instant::now();
        for step in first + 1.. {
            if steps.is_some_and(|steps| step > steps) {
                break;
            }
            if self.stop.load(Ordering::Relaxed) {
                self.write(&model, &optimizer, json, step - 1, steps)?;
                return Ok(None);
            }
            if let (PretrainLength::Hours(hours), None) = (config.length, steps) {
                if step == first + TIMED {
                    clock = Instant::now();
                } else if step == first + 2 * TIMED {
                    let seconds = clock.elapsed().as_secs_f64() / TIMED as f64;
                    steps = Some((hours * 3600.0 / seconds).max(step as f64) as usize);
                }
            }
            // Before the number of steps is known only the first of them have been made.
            let known = steps.unwrap_or(usize::MAX);
            let batch = examples.batch(step, |step| config.text_share_at(step, known))?;
            let rates = config.rates_at(step, known);
            let dropout = DropoutStream::new(config.seed, 0, step as u64, 0);
            let loss = update(&mut model, &mut optimizer, &batch, dropout, rates);
            if !loss.is_finite() {
                let lr = config.lr;
                return Err(PretrainError::Diverged { step, loss, lr });
            }
            sum += loss;
            since += 1;
            let saved = step.is_multiple_of(CHECKPOINT_EVERY) || Some(step) == steps;
            if saved || step.is_multiple_of(REPORT_EVERY) {
                report(PretrainProgress {
                    step,
                    steps,
                    loss: sum / since as f64,
                    accuracy: match saved {
                        true => examples.accuracy(&model)?,
                        false => None,
                    },
                });
                (sum, since) = (0.0, 0);
            }
            if saved {
                self.write(&model, &optimizer, json, step, steps)?;
            }
        }
        Ok(Some(model))
    }

    fn read(&self) -> Result<Option<State>, PretrainError> {
        let Some(path) = self.keep.map(|keep| keep.join(STATE_FILE)) else {
            return Ok(None);
        };
        if !path.exists() {
            return Ok(None);
        }
        let state: State = read_json(&path)?;
        if state.run == self.run {
            Ok(Some(state))
        } else {
            Err(PretrainError::OtherRun { path })
        }
    }

    fn write<M: Parameters>(
        &self,
        model: &M,
        optimizer: &ModuleOptimizer,
        json: &Map<String, Value>,
        step: usize,
        steps: Option<usize>,
    ) -> Result<(), PretrainError> {
        let Some(keep) = self.keep else { return Ok(()) };
        let name = format!("checkpoint-{step}");
        if self.read()?.is_some_and(|state| state.checkpoint == name) {
            // Stopped before the first step since it was resumed.
            return Ok(());
        }
        atomic_dir(&keep.join(&name), |dir| {
            write_json(&dir.join("config.json"), json)?;
            let weights = checkpoint::serialize(model.named(), FloatDtype::F32)?;
            atomic_write(&dir.join("model.safetensors"), &weights)?;
            let path = dir.join(OPTIMIZER_FILE);
            optimizer
                .save(&path)
                .map_err(|error| PretrainError::Optimizer {
                    path,
                    problem: error.to_string(),
                })
        })?;
        let state = State {
            run: self.run.clone(),
            step,
            steps,
            checkpoint: name.clone(),
        };
        write_json(&keep.join(STATE_FILE), &state)?;
        remove_others(keep, &name)?;
        Ok(())
    }
}

/// Removes the checkpoints that the state does not name.
fn remove_others(keep: &Path, name: &str) -> Result<(), FilesError> {
    let failed = |path: PathBuf| move |source| FilesError::Io { path, source };
    for entry in std::fs::read_dir(keep).map_err(failed(keep.to_owned()))? {
        let entry = entry.map_err(failed(keep.to_owned()))?;
        let found = entry.file_name();
        let found = found.to_string_lossy();
        if found.starts_with("checkpoint-") && found != name {
            std::fs::remove_dir_all(entry.path()).map_err(failed(entry.path()))?;
        }
    }
    Ok(())
}

impl PretrainConfig {
    /// Learning rates of a step (from 1) of `steps`: linear warm-up, then linear decay to 0 behind the last step.
    fn rates_at(&self, step: usize, steps: usize) -> Rates {
        let rise = step as f64 / self.warmup_steps.max(1) as f64;
        let left = steps.saturating_sub(step) as f64 + 1.0;
        let fall = left / (steps.saturating_sub(self.warmup_steps) as f64 + 1.0).max(1.0);
        let factor = rise.min(fall).min(1.0);
        Rates {
            lr: self.lr * factor,
            embedding: self.embedding_lr * factor,
        }
    }

    /// Share of text in a step (from 1) of `steps`.
    fn text_share_at(&self, step: usize, steps: usize) -> f64 {
        let done = step as f64 / steps.max(1) as f64;
        self.text_share + (self.final_text_share - self.text_share) * done
    }
}

/// Learning rates of a step, those of other parameters than the embedding first.
#[derive(Clone, Copy)]
struct Rates {
    lr: f64,
    embedding: f64,
}

/// One optimizer step; returns the mean token loss before it.
fn update<M: Backbone + Module + Parameters>(
    model: &mut M,
    optimizer: &mut ModuleOptimizer,
    batch: &TokenBatch,
    dropout: DropoutStream,
    rates: Rates,
) -> f64 {
    let context = ForwardContext::training(Some(dropout));
    let (logits, labels) = model.answer_logits(batch, &context);
    let loss = SequenceCrossEntropy::default().forward(logits, &labels);
    let mean = loss.sum.div_scalar(loss.tokens as f64);
    let mut gradients = mean.backward();
    let id = model.embedding();
    let embedding = GradientsParams::from_params(&mut gradients, model, &[id]);
    let others = GradientsParams::from_grads(gradients, model);
    *model = optimizer.step(rates.embedding, model.clone(), embedding);
    *model = optimizer.step(rates.lr, model.clone(), others);
    mean.into_scalar::<f32>().into()
}

/// Makes every parameter a leaf of the autodiff graph.
struct MakeTrainable;

impl ModuleMapper for MakeTrainable {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        Param::initialized(param.id, param.val().autodiff().require_grad())
    }
}
