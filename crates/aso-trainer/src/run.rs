//! Run directories: start, resume, extend.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::config::{ConfigError, RunConfig, dotted_keys};
use crate::events::Observer;
use crate::files::{CONFIG_FILE, FilesError, RunDir, atomic_write, check_run_dir, prepare_run_dir};
use crate::load::{Loaded, load_model, open_library};
use crate::method::{self, Method, Structure};
use crate::results::{RESULTS_FILE, RunResults};
use crate::state::RunState;
use crate::{Outcome, RunTasks, Trainer, TrainerError};
use aso_backbones::Backbone;

/// Keys of a configuration that may differ when a run is resumed: they change no result, or only add some.
pub const FREE_KEYS: [&str; 4] = [
    "data.cache",
    "eval.choose_last",
    "train.checkpoint_every",
    "train.log_every",
];

/// What a directory holds of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunStatus {
    /// Nothing yet.
    Missing,
    /// A run that was started and has something left to do.
    Incomplete,
    /// A run with nothing left to do.
    Finished,
}

/// What `dir` holds of the run with `config`. Nothing is locked or written.
///
/// # Errors
/// A directory that holds something else than a run, or a run that was started with another
/// configuration ([`TrainerError::ConfigChanged`]).
pub fn status(config: &RunConfig, dir: &Path) -> Result<RunStatus, TrainerError> {
    if !dir.exists() {
        return Ok(RunStatus::Missing);
    }
    if !check_run_dir(dir, true)? {
        return Ok(RunStatus::Missing);
    }
    let path = dir.join(CONFIG_FILE);
    refuse_changes(&path, &RunConfig::load(&path, &[])?, config)?;
    Ok(match finished(config, dir)? {
        true => RunStatus::Finished,
        false => RunStatus::Incomplete,
    })
}

/// A configured run in its locked directory.
#[derive(Debug)]
pub struct Run {
    config: RunConfig,
    dir: RunDir,
}

impl Run {
    /// Starts a run in `dir`, or with `resume` goes on with the one there. The run keeps the configuration
    /// [resolved](RunConfig::resolved).
    ///
    /// Nothing but the lock is written before the first [`execute`](Self::execute) has read model and data.
    ///
    /// # Errors
    /// A directory in use, a non-empty one without `resume`, or a run that was started with another
    /// configuration ([`TrainerError::ConfigChanged`]).
    pub fn open(config: RunConfig, dir: &Path, resume: bool) -> Result<Self, TrainerError> {
        let dir = prepare_run_dir(dir, resume)?;
        if dir.started {
            let path = dir.path.join(CONFIG_FILE);
            let stored = RunConfig::load(&path, &[])?;
            refuse_changes(&path, &stored, &config)?;
        }
        let config = config.resolved();
        Ok(Self { config, dir })
    }

    /// Goes on with the run in `dir` under its stored configuration.
    ///
    /// # Errors
    /// As [`open`](Self::open); also if there is no run.
    pub fn resume(dir: &Path) -> Result<Self, TrainerError> {
        let config = RunConfig::load(&dir.join(CONFIG_FILE), &[])?;
        Self::open(config, dir, true)
    }

    /// Appends tasks to a finished run. The stored configuration is replaced when the tasks have been
    /// read.
    ///
    /// # Errors
    /// [`TrainerError::Unfinished`] if the run is not finished, [`TrainerError::AllAtOnce`] if its method learns all tasks
    /// together; a task that is already part of it.
    pub fn extend(dir: &Path, tasks: &[String]) -> Result<Self, TrainerError> {
        let mut run = Self::resume(dir)?;
        let method = run.config.method.name;
        if method.structure() == Structure::Joint {
            let path = run.dir.path;
            return Err(TrainerError::AllAtOnce { path, method });
        }
        let before = run.config.tasks()?;
        if !run.is_finished()? {
            let trained = RunState::read(&run.dir.path)?.map_or(0, |state| state.trained);
            let (path, tasks) = (run.dir.path, before.len());
            return Err(TrainerError::Unfinished {
                path,
                trained,
                tasks,
            });
        }
        run.config.stream.order = None;
        run.config.stream.tasks = Some(before.into_iter().chain(tasks.iter().cloned()).collect());
        run.config.validate()?;
        Ok(run)
    }

    /// The configuration.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir.path
    }

    /// Whether there is nothing left to do.
    ///
    /// # Errors
    /// If the stored state cannot be read.
    pub fn is_finished(&self) -> Result<bool, TrainerError> {
        finished(&self.config, &self.dir.path)
    }

    /// Reads model and data, then trains and evaluates what is missing.
    ///
    /// # Errors
    /// Whatever is wrong with model, data or directory, before any training; later a diverging loss or a
    /// full disk. What was saved stays.
    pub fn execute(
        self,
        device: &Device,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<(Outcome, RunResults), TrainerError> {
        let loaded = load_model(&self.config.model, device, observer)?;
        let method = method::from_config(&self.config);
        self.execute_with(loaded, method, observer, stop)
    }

    /// [`execute`](Self::execute) on a model that is already loaded, with a method that may be your own.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub fn execute_with<M: Backbone>(
        self,
        loaded: Loaded<M>,
        method: Box<dyn Method<M>>,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<(Outcome, RunResults), TrainerError> {
        let Self { config, dir } = self;
        method.check(&loaded.model)?;
        let library = open_library(&config.data)?;
        let vocabulary = loaded.model.vocabulary();
        let tasks = RunTasks::load(library.as_ref(), &config, &loaded.codec, vocabulary)?;
        let targets = loaded.model.default_targets();
        let lora = method.lora(config.lora.to_lora_config(targets));
        loaded.model.check_targets(&lora)?;
        let path = dir.path.clone();
        let (file, text) = (path.join(CONFIG_FILE), config.to_toml()?);
        // Without it the directory would hold no run.
        if !file.exists() {
            atomic_write(&file, text.as_bytes())?;
        }
        let mut trainer = Trainer::new(loaded, config, method, tasks, dir)?;
        // Further tasks, once the run is known to go on.
        write_changed(&file, text.as_bytes())?;
        let outcome = trainer.run(observer, stop)?;
        let results = trainer.results();
        results.write(&path)?;
        Ok((outcome, results))
    }
}

/// Writes a file unless it holds these bytes already: a resumed run keeps the time at which it was started.
fn write_changed(path: &Path, bytes: &[u8]) -> Result<(), FilesError> {
    match std::fs::read(path) {
        Ok(stored) if stored == bytes => Ok(()),
        _ => atomic_write(path, bytes),
    }
}

fn finished(config: &RunConfig, dir: &Path) -> Result<bool, TrainerError> {
    let tasks = config.tasks()?.len();
    let Some(state) = RunState::read(dir)? else {
        return Ok(false);
    };
    if !state.is_complete(tasks, &config.eval) {
        return Ok(false);
    }
    // The results are written after the state: a kill in between leaves older ones.
    Ok(dir.join(RESULTS_FILE).exists() && {
        let results = RunResults::read(dir)?;
        results.accuracy == state.matrix.rows()
            && results.zero_shot == state.matrix.zero_shot()
            && results.general == state.general
            && results.chosen == state.chosen
    })
}

fn refuse_changes(path: &Path, stored: &RunConfig, now: &RunConfig) -> Result<(), TrainerError> {
    let (stored, now) = (flat(&stored.resolved())?, flat(&now.resolved())?);
    let keys = stored.keys().chain(now.keys());
    for key in keys.filter(|key| !FREE_KEYS.contains(&key.as_str())) {
        let value = |table: &Table| {
            table
                .get(key)
                .map_or_else(|| "unset".to_owned(), Value::to_string)
        };
        let (expected, found) = (value(&stored), value(&now));
        if expected != found {
            let (path, key) = (path.to_owned(), key.clone());
            return Err(TrainerError::ConfigChanged {
                path,
                key,
                expected,
                found,
            });
        }
    }
    Ok(())
}

/// Every set key with its value.
fn flat(config: &RunConfig) -> Result<Table, ConfigError> {
    Ok(dotted_keys(&Table::try_from(config)?))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn the_time_of_a_file_is_that_of_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CONFIG_FILE);
        let modified = || path.metadata().unwrap().modified().unwrap();
        let age = || {
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        };
        write_changed(&path, b"seed = 1").unwrap();
        age();
        write_changed(&path, b"seed = 1").unwrap();
        assert_eq!(modified(), SystemTime::UNIX_EPOCH);
        write_changed(&path, b"seed = 2").unwrap();
        assert_ne!(modified(), SystemTime::UNIX_EPOCH);
        assert_eq!(std::fs::read(&path).unwrap(), b"seed = 2");
    }
}
