//! The continual loop: one task after another, evaluation after each, resumable at any moment.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use aso_backbones::{Backbone, GenerationConfig};
use aso_data::EncodedExample;
use aso_lora::peft::SIDECAR_FORMAT;
use aso_lora::{
    Adapter, AdapterScope, DropoutStream, ForwardContext, LoraConfig, PeftConfig, Sidecar,
};
use aso_losses::SequenceCrossEntropy;
use burn::tensor::Tensor;
use serde::Serialize;

use crate::TrainerError;
use crate::batches::BatchOrder;
use crate::codec::TextCodec;
use crate::config::{Clip, EvalMode, FrozenMode, RunConfig, TrainLength};
use crate::evaluate::{Evaluator, mean_percent};
use crate::events::{Event, Observer};
use crate::files::{MetricsLog, RunDir, atomic_dir, create_dir_all};
use crate::load::Loaded;
use crate::method::{Method, MethodState, Penalty, StepInfo, Structure, TaskContext, TaskInfo};
use crate::optimizer::{AdamWSettings, SubspaceGradients, SubspaceOptimizer};
use crate::predictions::{
    Prediction, chosen_predictions_file, copy_predictions, general_predictions_file,
    predictions_file, write_predictions,
};
use crate::results::{Footprint, GeneralScore, RunResults, Selected};
use crate::schedule::learning_rate;
use crate::selection::Selection;
use crate::state::{
    CHECKPOINTS, KeptState, METHOD, RunState, STATE_FILE, TrainingState, adapter_dir,
    read_checkpoint, read_method_tensors, write_checkpoint,
};
use crate::task::{RunTasks, Task};

/// The log of steps.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// The name of the one task of a method that learns all tasks together, as for `[stream.overrides]`.
pub const JOINT: &str = "multi-task";

/// How a call of [`Trainer::run`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All tasks are trained and evaluated.
    Finished,
    /// The stop flag was set; everything needed to go on is saved.
    Stopped,
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Serialize)]
struct StepRecord<'a> {
    task: &'a str,
    step: usize,
    loss: f64,
    cross_entropy: f64,
    /// Raw values of the penalties.
    #[serde(flatten)]
    penalties: BTreeMap<&'static str, f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    soft_weight: Option<f64>,
    lr: f64,
    grad_norm: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    penalty_grad_norm: Option<f64>,
    examples: usize,
    target_tokens: usize,
    seconds: f64,
}

/// What the passes over one step's examples gave.
struct Passed {
    gradients: SubspaceGradients,
    /// With all terms.
    loss: f64,
    cross_entropy: f64,
    /// Values of the other terms, without their weights.
    raw: BTreeMap<&'static str, f64>,
    target_tokens: usize,
}

/// Runs a stream of tasks on a model.
pub struct Trainer<M: Backbone> {
    model: M,
    codec: TextCodec,
    model_name: String,
    config: RunConfig,
    lora: LoraConfig,
    tasks: Arc<[Task]>,
    /// The tasks with their dev splits, where adapters are chosen on them.
    dev: Vec<Task>,
    general: Vec<Task>,
    names: Vec<String>,
    method: Box<dyn Method<M>>,
    dir: RunDir,
    state: RunState,
    metrics: MetricsLog,
}

impl<M: Backbone> Trainer<M> {
    /// A trainer in a prepared run directory whose `config.toml` is `config`. If the directory holds a
    /// state, the run goes on from it. `tasks` are those of [`RunTasks::load`]. `method` is usually [`method::from_config`](crate::method::from_config),
    /// or a type of your own.
    ///
    /// # Errors
    /// If the stored state does not fit, belongs to another base model or cannot be read.
    pub fn new(
        loaded: Loaded<M>,
        config: RunConfig,
        method: Box<dyn Method<M>>,
        tasks: RunTasks,
        dir: RunDir,
    ) -> Result<Self, TrainerError> {
        let Loaded {
            mut model,
            codec,
            fingerprint,
            name,
        } = loaded;
        let mut state = match RunState::read(&dir.path)? {
            Some(state) => state,
            None => RunState::new(fingerprint.clone(), tasks.stream.len()),
        };
        if state.base_model != fingerprint {
            return Err(TrainerError::OtherModel {
                path: dir.path.join(STATE_FILE),
                expected: state.base_model,
                found: fingerprint,
            });
        }
        state.grow(tasks.stream.len());
        if state.general.len() != tasks.general.len() {
            let names = tasks.general.iter().map(|task| task.name.clone());
            state.general = names.map(GeneralScore::new).collect();
        }
        state.check_data(&tasks, &dir.path.join(STATE_FILE))?;
        let RunTasks {
            stream: tasks,
            dev,
            general,
        } = tasks;
        if config.train.transposed_weights {
            model.keep_transposed();
        }
        let metrics = MetricsLog::open(&dir.path.join(METRICS_FILE), state.metrics_lines)?;
        let mut trainer = Self {
            lora: method.lora(config.lora.to_lora_config(model.default_targets())),
            names: tasks.iter().map(|task| task.name.clone()).collect(),
            method,
            model_name: name,
            model,
            codec,
            config,
            tasks: tasks.into(),
            dev,
            general,
            dir,
            state,
            metrics,
        };
        // A kill between a save and the clean-up after it leaves a checkpoint that nothing names.
        let named = trainer
            .state
            .training
            .as_ref()
            .map(|training| training.checkpoint.as_str());
        trainer.remove_checkpoints(named);
        trainer.restore_adapters()?;
        trainer.restore_method()?;
        Ok(trainer)
    }

    /// The model in its present state.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Trains and evaluates what is missing. Between steps and between evaluated tasks `stop` is looked at.
    ///
    /// # Errors
    /// Whatever stops a run; the directory then still holds the last saved state.
    pub fn run(
        &mut self,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Outcome, TrainerError> {
        observer.event(Event::RunStarted {
            method: self.method.name(),
            tasks: &self.names,
            trained: self.state.trained,
        });
        if self.config.eval.zero_shot
            && self.evaluate_row(None, observer, stop)? == Outcome::Stopped
        {
            return Ok(Outcome::Stopped);
        }
        if self.evaluate_general(false, observer, stop)? == Outcome::Stopped {
            return Ok(Outcome::Stopped);
        }
        // Rows before the last trained task are complete; the last one may not be.
        let first = match self.method.structure() {
            Structure::Joint => self.tasks.len().saturating_sub(1),
            _ => self.state.trained.saturating_sub(1),
        };
        for index in first..self.tasks.len() {
            if index >= self.state.trained
                && self.train_task(index, observer, stop)? == Outcome::Stopped
            {
                return Ok(Outcome::Stopped);
            }
            if self.evaluate_row(Some(index), observer, stop)? == Outcome::Stopped {
                return Ok(Outcome::Stopped);
            }
            self.results().write(&self.dir.path)?;
        }
        if self.evaluate_general(true, observer, stop)? == Outcome::Stopped
            || self.choose_last(observer, stop)? == Outcome::Stopped
        {
            return Ok(Outcome::Stopped);
        }
        observer.event(Event::RunFinished);
        Ok(Outcome::Finished)
    }

    /// The results so far.
    pub fn results(&self) -> RunResults {
        let samples = self.tasks.iter().map(|task| task.answers.len()).collect();
        let mut results = RunResults::new(
            self.method.name(),
            self.config.seed,
            self.names.clone(),
            samples,
            &self.state.matrix,
        )
        .with_chosen(self.state.chosen.clone());
        results.soft_weights = self.state.soft_weights.clone();
        results.similarity = self.state.similarity.clone();
        results.base_model = Some(self.state.base_model.clone());
        results.data = self.state.data.clone();
        results.general = self.state.general.clone();
        results.selected = self.state.selected.clone();
        results.footprint = self.state.footprint;
        results.timings = self.state.timings.clone();
        results
    }

    /// Puts the adapters of the trained tasks on the model.
    fn restore_adapters(&mut self) -> Result<(), TrainerError> {
        let trained = self.state.trained;
        let dir = |index: usize| adapter_dir(&self.dir.path, index, &self.names[index]);
        match self.method.structure() {
            Structure::Stack => {
                for index in 0..trained {
                    self.model.push_frozen(&Adapter::load(&dir(index))?)?;
                }
                self.settle_frozen();
            }
            Structure::Single | Structure::PerTask | Structure::Joint => {
                if let Some(last) = trained.checked_sub(1) {
                    self.model
                        .set_active(&Adapter::load(&dir(last))?, self.lora.dropout)?;
                }
            }
        }
        Ok(())
    }

    /// Gives the method what it kept at the end of the last trained task.
    fn restore_method(&mut self) -> Result<(), TrainerError> {
        let Some(kept) = self.state.method.clone() else {
            return Ok(());
        };
        let device = self.model.device();
        let state = kept.read(&self.dir.path.join(METHOD), &device)?;
        self.restored(state, "method")
    }

    fn restored(&mut self, state: MethodState, key: &'static str) -> Result<(), TrainerError> {
        self.method
            .restore(state)
            .map_err(|source| TrainerError::State {
                path: self.dir.path.join(STATE_FILE),
                key,
                source,
            })
    }

    /// Folds the frozen stack, if so configured.
    fn settle_frozen(&mut self) {
        if self.config.lora.frozen == FrozenMode::Folded {
            self.model.fold();
        }
    }

    fn evaluate_row(
        &mut self,
        after: Option<usize>,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Outcome, TrainerError> {
        let after_name = after.map(|index| self.names[index].clone());
        for index in self.state.missing(after, self.config.eval.tasks) {
            if stop.load(Ordering::Relaxed) {
                return Ok(Outcome::Stopped);
            }
            if let (Structure::PerTask, Some(after)) = (self.method.structure(), after)
                && index != after
            {
                // The task's own adapter has not changed since; a later task has none yet.
                let matrix = &mut self.state.matrix;
                let score = match index < after {
                    true => matrix.get(index, index),
                    false => matrix.zero_shot()[index],
                };
                if let Some(score) = score {
                    matrix.set(after, index, score);
                    let known = (index < after).then(|| (index, self.names[index].as_str()));
                    let last = after_name.as_deref().map(|name| (after, name));
                    let task = (index, self.names[index].as_str());
                    copy_predictions(&self.dir.path, known, last, task)?;
                }
                continue;
            }
            let start = Instant::now();
            let task = &self.tasks[index];
            let mode = self.config.eval.mode;
            let (score, scored) = self.evaluate(task, after_name.as_deref(), mode, observer)?;
            let last = after.zip(after_name.as_deref());
            let path = predictions_file(&self.dir.path, last, (index, &task.name));
            write_predictions(&path, &scored)?;
            let seconds = start.elapsed().as_secs_f64();
            match after {
                Some(after) => {
                    self.state.matrix.set(after, index, score);
                    self.state.timings.evaluation[after] += seconds;
                }
                None => {
                    self.state.matrix.set_zero_shot(index, score);
                    self.state.timings.zero_shot += seconds;
                }
            }
            self.write_state()?;
        }
        Ok(Outcome::Finished)
    }

    /// Evaluates the model, or without `after` the untouched backbone, on a task.
    fn evaluate(
        &self,
        task: &Task,
        after: Option<&str>,
        mode: EvalMode,
        observer: &mut dyn Observer,
    ) -> Result<(f64, Vec<Prediction>), TrainerError> {
        let scope = match after {
            Some(_) => AdapterScope::All,
            None => AdapterScope::Base,
        };
        let name = task.name.as_str();
        observer.event(Event::EvaluationStarted {
            after,
            task: name,
            examples: task.evaluation.len(),
        });
        let scored = self
            .evaluator(mode)
            .scored(&self.model, task, scope, &mut |done| {
                observer.event(Event::EvaluationProgress { done });
            })?;
        let score = mean_percent(&scored);
        observer.event(Event::EvaluationFinished {
            after,
            task: name,
            mode,
            score,
        });
        Ok((score, scored))
    }

    /// Evaluates tasks that are not learned, before the first task or behind the last one.
    fn evaluate_general(
        &mut self,
        trained: bool,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Outcome, TrainerError> {
        for index in 0..self.general.len() {
            let known = &self.state.general[index];
            if (if trained { known.after } else { known.before }).is_some() {
                continue;
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(Outcome::Stopped);
            }
            let start = Instant::now();
            let last = self.names.last().filter(|_| trained).map(String::as_str);
            let task = &self.general[index];
            let mode = self.config.eval.mode;
            let (score, scored) = self.evaluate(task, last, mode, observer)?;
            let path = general_predictions_file(&self.dir.path, trained, (index, &task.name));
            write_predictions(&path, &scored)?;
            let seconds = start.elapsed().as_secs_f64();
            let (known, timings) = (&mut self.state.general[index], &mut self.state.timings);
            if trained {
                known.after = Some(score);
                timings.evaluation[self.names.len() - 1] += seconds;
            } else {
                known.before = Some(score);
                timings.zero_shot += seconds;
            }
            self.write_state()?;
        }
        Ok(Outcome::Finished)
    }

    /// Answers every task once more by choosing among its labels, with `eval.choose_last`; a method with an adapter for each task
    /// by that task's own.
    fn choose_last(
        &mut self,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Outcome, TrainerError> {
        let count = self.tasks.len();
        let known = self.state.chosen.iter().flatten().count();
        if !self.config.eval.choose_last || known == count {
            return Ok(Outcome::Finished);
        }
        self.state.chosen.resize(count, None);
        // Shared, so that a task can be borrowed beside the rest of `self`.
        let tasks = self.tasks.clone();
        for (index, task) in tasks.iter().enumerate() {
            if self.state.chosen[index].is_some() {
                continue;
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(Outcome::Stopped);
            }
            if self.method.structure() == Structure::PerTask {
                let own = Adapter::load(&adapter_dir(&self.dir.path, index, &task.name))?;
                self.model.set_active(&own, self.lora.dropout)?;
            }
            let start = Instant::now();
            let last = self.names.last().map(String::as_str);
            let (score, scored) = self.evaluate(task, last, EvalMode::Score, observer)?;
            let path = chosen_predictions_file(&self.dir.path, (index, &task.name));
            write_predictions(&path, &scored)?;
            self.state.chosen[index] = Some(score);
            self.state.timings.evaluation[count - 1] += start.elapsed().as_secs_f64();
            self.write_state()?;
        }
        if self.method.structure() == Structure::PerTask {
            self.restore_adapters()?;
        }
        Ok(Outcome::Finished)
    }

    fn evaluator(&self, mode: EvalMode) -> Evaluator<'_> {
        Evaluator {
            codec: &self.codec,
            mode,
            batch_size: self.config.eval.batch_size,
            generation: GenerationConfig::greedy(self.config.eval.max_new_tokens),
            stop: &[],
        }
    }

    /// The training examples of a stage: of its task, or of all tasks.
    fn examples(tasks: &[Task], structure: Structure, index: usize) -> Vec<&EncodedExample> {
        match structure {
            Structure::Joint => tasks.iter().flat_map(|task| &task.train).collect(),
            _ => tasks[index].train.iter().collect(),
        }
    }

    fn train_task(
        &mut self,
        index: usize,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Outcome, TrainerError> {
        let structure = self.method.structure();
        // Shared, so that the examples can be borrowed beside the rest of `self`.
        let tasks = self.tasks.clone();
        let examples = Self::examples(&tasks, structure, index);
        let name = match structure {
            Structure::Joint => JOINT.to_owned(),
            _ => self.names[index].clone(),
        };
        let settings = self.config.task_settings(&name);
        let batch_size = self.config.train.batch_size;
        let steps = settings.length.optimizer_steps(examples.len(), batch_size);
        let steps = match (structure, settings.length) {
            // As many as a stream makes.
            (Structure::Joint, TrainLength::Steps(_)) => steps * tasks.len(),
            _ => steps,
        };
        let task = TaskInfo {
            index,
            name,
            steps,
            settings,
        };
        let mut optimizer = SubspaceOptimizer::new(self.adamw());
        let mut selection = Selection::new(&self.config);
        let mut since_saved = Instant::now();
        let first_step = self.begin(&task, &examples, &mut optimizer, selection.as_mut())?;
        observer.event(Event::TaskStarted {
            index,
            name: &task.name,
            first_step,
            steps,
        });
        let mut order = BatchOrder::new(examples.iter().copied(), &self.config, index);
        if structure == Structure::Joint {
            // Prompts of one task are of similar length: grouping would part the tasks again.
            order = order.ungrouped();
        }

        for step in first_step..steps {
            if stop.load(Ordering::Relaxed) {
                self.state.timings.train[index] += since_saved.elapsed().as_secs_f64();
                self.checkpoint(&task, step, &optimizer, selection.as_ref())?;
                return Ok(Outcome::Stopped);
            }
            let chosen: Vec<_> = order.batch(step).iter().map(|at| examples[*at]).collect();
            self.step(&task, step, &chosen, &mut optimizer, observer)?;
            if let Some(selection) = &mut selection
                && selection.is_due(step + 1, steps)
            {
                let score = self.dev_score(&task)?;
                let steps = step + 1;
                observer.event(Event::Looked {
                    task: &task.name,
                    steps,
                    score,
                });
                selection.offer(Selected { steps, score }, || self.active_adapter(&task));
            }
            let every = self.config.train.checkpoint_every;
            if every > 0 && (step + 1).is_multiple_of(every) && step + 1 < steps {
                self.state.timings.train[index] += since_saved.elapsed().as_secs_f64();
                since_saved = Instant::now();
                self.checkpoint(&task, step + 1, &optimizer, selection.as_ref())?;
            }
        }
        if let Some((selected, adapter)) = selection.as_ref().and_then(Selection::best) {
            if selected.steps < steps {
                self.model.set_active(adapter, self.lora.dropout)?;
            }
            self.state.selected.push(*selected);
        }
        let context = TaskContext {
            task: &task,
            examples: &examples,
            codec: &self.codec,
            seed: self.config.seed,
        };
        self.method.end_task(&mut self.model, &context)?;
        self.state.timings.train[index] += since_saved.elapsed().as_secs_f64();
        self.finish_task(&task)?;
        let seconds = self.state.timings.train[index];
        observer.event(Event::TaskFinished {
            name: &task.name,
            seconds,
        });
        Ok(Outcome::Finished)
    }

    /// The score of the model on the dev split of the task in training, or the mean over all tasks.
    fn dev_score(&self, task: &TaskInfo) -> Result<f64, TrainerError> {
        let tasks = match self.method.structure() {
            Structure::Joint => &self.dev[..],
            _ => std::slice::from_ref(&self.dev[task.index]),
        };
        Selection::score(&self.evaluator(self.config.eval.mode), &self.model, tasks)
    }

    fn adamw(&self) -> AdamWSettings {
        let train = &self.config.train;
        AdamWSettings {
            beta1: train.beta1,
            beta2: train.beta2,
            epsilon: train.eps,
            weight_decay: train.weight_decay,
        }
    }

    /// Fresh subspace and method, or those of the checkpoint. Returns the first step to run.
    fn begin(
        &mut self,
        task: &TaskInfo,
        examples: &[&EncodedExample],
        optimizer: &mut SubspaceOptimizer,
        selection: Option<&mut Selection>,
    ) -> Result<usize, TrainerError> {
        let fresh = match self.method.structure() {
            Structure::Stack | Structure::PerTask | Structure::Joint => true,
            Structure::Single => task.index == 0,
        };
        if fresh {
            self.model
                .start_subspace(&self.lora, self.config.seed, task.index as u64)?;
        }
        let context = TaskContext {
            task,
            examples,
            codec: &self.codec,
            seed: self.config.seed,
        };
        self.method.start_task(&mut self.model, &context)?;
        let Some(training) = self.state.training.clone() else {
            return Ok(0);
        };
        let dir = self.dir.path.join(CHECKPOINTS).join(&training.checkpoint);
        let device = self.model.device();
        read_checkpoint(&dir, &self.lora, &mut self.model, optimizer, &device)?;
        if let Some(selection) = selection {
            selection.restore(training.best, &dir)?;
        }
        let state = MethodState {
            values: training.method,
            tensors: read_method_tensors(&dir, &device)?,
        };
        self.restored(state, "training.method")?;
        Ok(training.step)
    }

    /// One optimizer step on examples of the task.
    fn step(
        &mut self,
        task: &TaskInfo,
        step: usize,
        own: &[&EncodedExample],
        optimizer: &mut SubspaceOptimizer,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainerError> {
        let start = Instant::now();
        let micro_batch = self.config.train.micro_batch();
        let info = StepInfo {
            model: &self.model,
            task,
            step,
            examples: own,
            micro_batch,
            codec: &self.codec,
            seed: self.config.seed,
        };
        if let Some(observation) = self.method.start_step(&info)? {
            let weight = observation.weight.weight;
            observer.event(Event::Measured {
                task: &task.name,
                step,
                weight,
            });
            self.state.soft_weights[task.index].push(observation.weight);
            self.state.similarity[task.index].extend(observation.similarity);
            self.state.timings.attribution[task.index] += start.elapsed().as_secs_f64();
        }

        let rehearsed = self.method.rehearsal(&info);
        let examples: Vec<&EncodedExample> = own.iter().copied().chain(rehearsed).collect();
        let example_count = examples.len();
        let mut passed = self.task_loss(task, step, &examples)?;
        let penalty = self.penalty_gradients(task, &mut passed);
        let Passed {
            mut gradients,
            loss,
            cross_entropy,
            raw,
            target_tokens,
        } = passed;
        let penalty_grad_norm = penalty.as_ref().map(SubspaceGradients::norm);
        let train = &self.config.train;
        let clip = |gradients: &mut SubspaceGradients| {
            if train.max_grad_norm > 0.0 {
                gradients.clip(train.max_grad_norm)
            } else {
                gradients.norm()
            }
        };
        let alone = penalty.is_some() && self.config.clip() == Clip::Task;
        let clipped_alone = alone.then(|| clip(&mut gradients));
        if let Some(penalty) = penalty {
            gradients.add(penalty);
        }
        self.method.adjust(&info, &mut gradients)?;
        self.keep_trained(&mut gradients);
        let grad_norm = clipped_alone.unwrap_or_else(|| clip(&mut gradients));
        let checked = [
            ("loss", loss),
            ("gradient norm", grad_norm),
            (
                "gradient norm of the penalties",
                penalty_grad_norm.unwrap_or_default(),
            ),
        ];
        for (what, value) in checked {
            if !value.is_finite() {
                return Err(TrainerError::Diverged {
                    task: task.name.clone(),
                    step,
                    what,
                    value,
                });
            }
        }
        let lr = learning_rate(
            train.schedule,
            task.settings.lr,
            train.warmup_steps,
            step,
            task.steps,
        );
        optimizer.step(&mut self.model, &gradients, lr);

        let soft_weight = self.state.soft_weights[task.index]
            .last()
            .map(|point| point.weight);
        self.metrics.append(&StepRecord {
            task: &task.name,
            step,
            loss,
            cross_entropy,
            penalties: raw,
            soft_weight,
            lr,
            grad_norm,
            penalty_grad_norm,
            examples: example_count,
            target_tokens,
            seconds: start.elapsed().as_secs_f64(),
        })?;
        observer.event(Event::Step {
            task: &task.name,
            step,
            steps: task.steps,
            examples: example_count,
            loss,
            lr,
            weight: soft_weight,
        });
        Ok(())
    }

    /// Cross entropy and the method's [`Method::batch_term`] over the examples, one pass forward and back for each micro-batch.
    fn task_loss(
        &self,
        task: &TaskInfo,
        step: usize,
        examples: &[&EncodedExample],
    ) -> Result<Passed, TrainerError> {
        let target_tokens: usize = examples.iter().map(|example| example.target.len()).sum();
        let mut gradients = SubspaceGradients::default();
        let mut cross_entropy = 0.0;
        let mut raw = BTreeMap::new();
        let mut extra = 0.0;
        for (shard, rows) in examples.chunks(self.config.train.micro_batch()).enumerate() {
            let batch = self.codec.batch(rows)?;
            let context = self.training_context(task, step, shard);
            let (logits, labels) = self.model.answer_logits(&batch, &context);
            let term = self.method.batch_term(&batch, &logits, &labels);
            let loss = SequenceCrossEntropy::default().forward(logits, &labels);
            let value = loss.sum.clone();
            let term = term.filter(|term| term.weight != 0.0);
            let sum = match &term {
                Some(term) => loss.sum + term.value.clone().mul_scalar(term.weight),
                None => loss.sum,
            };
            gradients.add(SubspaceGradients::collect(&self.model, &mut sum.backward()));
            cross_entropy += scalar(value);
            if let Some(Penalty {
                name,
                weight,
                value,
            }) = term
            {
                let mean = scalar(value) / target_tokens as f64;
                *raw.entry(name).or_insert(0.0) += mean;
                extra += weight * mean;
            }
        }
        // Divided once over the whole step: every target token counts the same.
        gradients.scale(1.0 / target_tokens as f64);
        cross_entropy /= target_tokens as f64;
        self.keep_trained(&mut gradients);
        Ok(Passed {
            gradients,
            loss: cross_entropy + extra,
            cross_entropy,
            raw,
            target_tokens,
        })
    }

    /// The gradient of the method's [`Method::penalties`], whose values go into `passed`; `None` if all have weight 0.
    fn penalty_gradients(&self, task: &TaskInfo, passed: &mut Passed) -> Option<SubspaceGradients> {
        let mut total: Option<Tensor<1>> = None;
        for Penalty {
            name,
            weight,
            value,
        } in self.method.penalties(&self.model, task)
        {
            let amount = scalar(value.clone());
            passed.raw.insert(name, amount);
            if weight != 0.0 {
                passed.loss += weight * amount;
                let term = value.mul_scalar(weight);
                total = Some(match total {
                    Some(total) => total + term,
                    None => term,
                });
            }
        }
        let mut gradients = SubspaceGradients::collect(&self.model, &mut total?.backward());
        self.keep_trained(&mut gradients);
        Some(gradients)
    }

    /// Drops the gradients of a half of the adapter that does not train.
    fn keep_trained(&self, gradients: &mut SubspaceGradients) {
        if self.config.lora.freeze_a || !self.method.trains_a() {
            gradients.retain(|name| !name.ends_with(".lora_A"));
        }
    }

    fn training_context(&self, task: &TaskInfo, step: usize, shard: usize) -> ForwardContext {
        let (task, step, shard) = (task.index as u64, step as u64, shard as u64);
        let stream = DropoutStream::new(self.config.seed, task, step, shard);
        ForwardContext {
            drop_frozen_input: self.method.drops_frozen_input(),
            ..ForwardContext::training(Some(stream))
        }
    }

    /// Saves progress within a task. What is saved already, because a resumed run has made no step yet, is left as it is: a kill
    /// while a folder is replaced could lose it.
    fn checkpoint(
        &mut self,
        task: &TaskInfo,
        step: usize,
        optimizer: &SubspaceOptimizer,
        selection: Option<&Selection>,
    ) -> Result<(), TrainerError> {
        let name = format!("task-{:02}-step-{step}", task.index);
        let stored = self.state.training.as_ref();
        if stored.is_none_or(|training| training.checkpoint != name) {
            let dir = self.dir.path.join(CHECKPOINTS).join(&name);
            create_dir_all(&self.dir.path.join(CHECKPOINTS))?;
            let method = self.method.state();
            let adapter = self.active_adapter(task);
            write_checkpoint(&dir, &adapter, optimizer, &method, selection)?;
            self.state.training = Some(TrainingState {
                step,
                checkpoint: name.clone(),
                best: selection.and_then(Selection::best).map(|(best, _)| *best),
                method: method.values,
            });
        }
        self.save_state()?;
        self.remove_checkpoints(Some(&name));
        Ok(())
    }

    /// Saves the task's adapter, freezes it and records that the task is done.
    fn finish_task(&mut self, task: &TaskInfo) -> Result<(), TrainerError> {
        let adapter = self.active_adapter(task);
        let dir = adapter_dir(&self.dir.path, task.index, &self.names[task.index]);
        create_dir_all(dir.parent().unwrap_or(&self.dir.path))?;
        atomic_dir(&dir, |dir| adapter.save(dir).map_err(TrainerError::from))?;
        if self.method.structure() == Structure::Stack {
            self.model.freeze_active();
            self.settle_frozen();
        }
        let method = self.method.state();
        self.state.footprint = Some(self.footprint(&adapter, &method, task.index + 1));
        let kept = KeptState::write(&self.dir.path.join(METHOD), task.index, method)?;
        self.state.method = kept;
        self.state.trained = task.index + 1;
        for score in &mut self.state.general {
            // Of the model before this task, if tasks are appended to a finished run.
            score.after = None;
        }
        self.state.training = None;
        self.save_state()?;
        self.remove_checkpoints(None);
        let kept = self.state.method.as_ref().and_then(|m| m.file.as_deref());
        remove_except(&self.dir.path.join(METHOD), kept);
        Ok(())
    }

    fn footprint(&self, adapter: &Adapter, method: &MethodState, trained: usize) -> Footprint {
        let one: usize = adapter
            .weights
            .values()
            .map(|layer| layer.a.len() + layer.b.len())
            .sum();
        let adapters = match self.method.structure() {
            Structure::Stack | Structure::PerTask => trained,
            Structure::Single | Structure::Joint => 1,
        };
        let of_method = method.tensors.values().map(|t| t.shape().num_elements());
        Footprint {
            adapter_elements: (adapters * one) as u64,
            method_elements: of_method.sum::<usize>() as u64,
            examples: self.method.kept_examples() as u64,
        }
    }

    fn save_state(&mut self) -> Result<(), TrainerError> {
        self.metrics.sync()?;
        self.state.metrics_lines = self.metrics.lines();
        self.write_state()
    }

    fn write_state(&mut self) -> Result<(), TrainerError> {
        self.state.timings.note_machine();
        Ok(self.state.write(&self.dir.path)?)
    }

    fn active_adapter(&self, task: &TaskInfo) -> Adapter {
        let base_model = Some(self.model_name.clone());
        let weights = self.model.active_weights();
        let config = PeftConfig::new(&self.lora, self.model.kind().peft_task_type(), base_model);
        Adapter {
            origin: task.name.clone(),
            config: config.with_patterns(&weights),
            weights,
            sidecar: Some(Sidecar {
                format: SIDECAR_FORMAT,
                task: task.name.clone(),
                order: task.index,
                kind: self.method.structure().adapter_kind(),
                base_model_fingerprint: self.state.base_model.clone(),
            }),
        }
    }

    /// Removes checkpoints that the state no longer names.
    fn remove_checkpoints(&self, keep: Option<&str>) {
        remove_except(&self.dir.path.join(CHECKPOINTS), keep);
    }
}

/// Removes everything in a folder but `keep`; what cannot be removed only costs space.
fn remove_except(dir: &Path, keep: Option<&str>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if keep.is_none_or(|keep| entry.file_name() != keep) {
            let path = entry.path();
            let _ = if path.is_dir() {
                std::fs::remove_dir_all(path)
            } else {
                std::fs::remove_file(path)
            };
        }
    }
}

fn scalar(tensor: Tensor<1>) -> f64 {
    tensor
        .without_autodiff()
        .into_data()
        .iter::<f32>()
        .map(f64::from)
        .sum()
}
