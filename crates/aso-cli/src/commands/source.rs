//! A configuration with adapters: of a run, or of a model and folders that are named one by one.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use aso_data::Layout;
use aso_trainer::RunConfig;
use aso_trainer::config::{DataFormat, ModelSettings};
use aso_trainer::files::CONFIG_FILE;
use aso_trainer::method::Structure;
use aso_trainer::state::{RunState, adapter_dir};

use crate::args::{ModelArgs, SourceArgs};

/// What [`ModelArgs`] or [`SourceArgs`] name.
pub(super) struct Source {
    pub(super) config: RunConfig,
    /// In the order of the tasks.
    pub(super) adapters: Vec<PathBuf>,
    /// The task that the run trained with each adapter; empty without a run.
    trained: Vec<String>,
    run: Option<PathBuf>,
}

impl Source {
    /// The given adapters, or those of a run.
    pub(super) fn of_model(args: &ModelArgs) -> anyhow::Result<Self> {
        match &args.run {
            Some(run) => Self::from_run(run, &[]),
            None => Self::from_arguments(args, None, &[]),
        }
    }

    /// The same, with tasks.
    pub(super) fn new(args: &SourceArgs) -> anyhow::Result<Self> {
        match &args.model.run {
            Some(run) => Self::from_run(run, &args.set),
            None => Self::from_arguments(&args.model, args.data.as_deref(), &args.set),
        }
    }

    /// The adapters that together are the model: all that were given, or what a run's method makes of its own.
    pub(super) fn adapters_of_model(&self) -> anyhow::Result<&[PathBuf]> {
        let Some(run) = &self.run else {
            return Ok(&self.adapters);
        };
        let last = self.adapters.len().saturating_sub(1);
        match self.config.method.name.structure() {
            Structure::Stack => Ok(&self.adapters),
            Structure::Single | Structure::Joint => Ok(&self.adapters[last..]),
            Structure::PerTask => bail!(
                "{}: method `per-task` has a model for each task; name one with --model and --adapter instead of --run",
                run.display()
            ),
        }
    }

    /// The adapters of the model that answers a task. They are the same for all tasks unless the run's method has a model for
    /// each.
    pub(super) fn adapters_for(&self, task: &str) -> anyhow::Result<&[PathBuf]> {
        let run = match &self.run {
            Some(run) if self.config.method.name.structure() == Structure::PerTask => run,
            _ => return self.adapters_of_model(),
        };
        // A task is named in any case.
        let same = |trained: &String| trained.eq_ignore_ascii_case(task);
        let at = self.trained.iter().position(same);
        let at = at.with_context(|| {
            format!(
                "{}: method `per-task` has a model for each task that it has learned, {}, but none for {task}",
                run.display(),
                self.trained.join(", ")
            )
        })?;
        Ok(&self.adapters[at..=at])
    }

    /// The given adapters, or those of a run, to be compared with one another.
    pub(super) fn of_tasks(args: &SourceArgs) -> anyhow::Result<Self> {
        let source = Self::new(args)?;
        let Some(run) = &source.run else {
            return Ok(source);
        };
        let method = source.config.method.name;
        match method.structure() {
            Structure::Stack | Structure::PerTask => {}
            Structure::Single => tracing::warn!(
                "{}: an adapter of `{method}` holds what it learned from earlier tasks, too",
                run.display()
            ),
            Structure::Joint => bail!(
                "{}: method `{method}` has one adapter for all tasks: there is nothing to compare",
                run.display()
            ),
        }
        Ok(source)
    }

    fn from_run(run: &Path, set: &[String]) -> anyhow::Result<Self> {
        let config = RunConfig::load(&run.join(CONFIG_FILE), set)?;
        // Without an adapter the answers would be those of the backbone.
        let state = RunState::read(run)?
            .filter(|state| state.trained > 0)
            .with_context(|| format!("{}: the run has not trained a task yet", run.display()))?;
        let mut trained = config.tasks()?;
        trained.truncate(state.trained);
        let tasks = trained.iter().enumerate();
        let adapters = tasks.map(|(index, task)| adapter_dir(run, index, task));
        Ok(Self {
            adapters: adapters.collect(),
            config,
            trained,
            run: Some(run.to_owned()),
        })
    }

    fn from_arguments(
        args: &ModelArgs,
        data: Option<&Path>,
        set: &[String],
    ) -> anyhow::Result<Self> {
        let mut config = RunConfig::parse("", Path::new("./arguments"), set)?;
        if let Some(model) = &args.model {
            config.model = ModelSettings {
                path: model.clone(),
                ..config.model
            };
        }
        if let Some(data) = data {
            config.data.path = Some(data.to_owned());
            config.data.format = match Layout::of(data)? {
                Layout::ClBenchmark => DataFormat::ClBenchmark,
                Layout::Jsonl => DataFormat::Jsonl,
                Layout::Trace => DataFormat::Trace,
                Layout::SuperNi => DataFormat::SuperNi,
            };
        }
        Ok(Self {
            config,
            adapters: args.adapter.clone(),
            trained: Vec::new(),
            run: None,
        })
    }
}
