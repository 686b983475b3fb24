//! A configuration with adapters: of a run, or of a model and folders that are named one by one.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use aso_data::Layout;
use aso_trainer::RunConfig;
use aso_trainer::config::{DataFormat, ModelSettings};
use aso_trainer::files::CONFIG_FILE;
use aso_trainer::method::Structure;
use aso_trainer::state::{RunState, adapter_dir};

use crate::args::SourceArgs;

/// What [`SourceArgs`] name.
pub(super) struct Source {
    pub(super) config: RunConfig,
    /// In the order of the tasks.
    pub(super) adapters: Vec<PathBuf>,
}

impl Source {
    /// The given adapters, or those that together are the present model of a run.
    pub(super) fn of_model(args: &SourceArgs) -> anyhow::Result<Self> {
        let Some(run) = &args.run else {
            return Self::from_arguments(args);
        };
        let mut source = Self::from_run(run, &args.set)?;
        let adapters = &mut source.adapters;
        match source.config.method.name.structure() {
            Structure::Stack => {}
            Structure::Single | Structure::Joint => {
                *adapters = adapters.pop().into_iter().collect()
            }
            Structure::PerTask => bail!(
                "{}: method `per-task` has an adapter for each task; name one with --adapter",
                run.display()
            ),
        }
        Ok(source)
    }

    /// The given adapters, or those of the tasks of a run.
    pub(super) fn of_tasks(args: &SourceArgs) -> anyhow::Result<Self> {
        let Some(run) = &args.run else {
            return Self::from_arguments(args);
        };
        let source = Self::from_run(run, &args.set)?;
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
        let state = RunState::read(run)?
            .with_context(|| format!("{}: the run has not trained a task yet", run.display()))?;
        let tasks = config.tasks()?;
        let trained = tasks.iter().take(state.trained).enumerate();
        let adapters = trained.map(|(index, task)| adapter_dir(run, index, task));
        Ok(Self {
            adapters: adapters.collect(),
            config,
        })
    }

    fn from_arguments(args: &SourceArgs) -> anyhow::Result<Self> {
        let mut config = RunConfig::parse("", Path::new("./arguments"), &args.set)?;
        if let Some(model) = &args.model {
            config.model = ModelSettings {
                path: model.clone(),
                ..config.model
            };
        }
        if let Some(data) = &args.data {
            config.data.path = Some(data.clone());
            config.data.format = match Layout::of(data) {
                Layout::ClBenchmark => DataFormat::ClBenchmark,
                Layout::Jsonl => DataFormat::Jsonl,
                Layout::Trace => DataFormat::Trace,
                Layout::SuperNi => DataFormat::SuperNi,
            };
        }
        Ok(Self {
            config,
            adapters: args.adapter.clone(),
        })
    }
}
