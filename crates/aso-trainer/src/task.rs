//! Tasks ready for training and evaluation.

use std::collections::{BTreeMap, HashSet};

use aso_data::{
    AnswerSet, DataError, EncodedExample, Example, ExampleCaps, Metric, Split, TaskData,
    TaskLibrary, TaskSource,
};
use sha2::{Digest, Sha256};

use crate::TrainerError;
use crate::codec::TextCodec;
use crate::config::{EvalMode, EvalSplit, RunConfig, Select};
use crate::selection::Selection;
use crate::token_cache::{TokenCache, hex, update_text};

/// One task, tokenised.
#[derive(Debug, Clone)]
pub struct Task {
    /// Name as in the stream.
    pub name: String,
    /// Training examples.
    pub train: Vec<EncodedExample>,
    /// Examples to evaluate on.
    pub evaluation: Vec<EncodedExample>,
    /// The right answers to each example of `evaluation`, as text ([`Example::answers`]).
    pub answers: Vec<Vec<String>>,
    /// How answers are scored.
    pub metric: Metric,
    /// The prompts of the examples of `evaluation`, for a metric that compares with them; else empty.
    pub sources: Vec<String>,
    /// What an answer is chosen from, where answers are chosen ([`EvalMode::Score`], or after the last task).
    pub labels: Option<Labels>,
    /// Digest of the texts that a run with this configuration reads of the task: `sha256:<hex>`.
    pub digest: String,
}

/// The tasks of a run.
#[derive(Debug, Clone, Default)]
pub struct RunTasks {
    /// Those that are learned, in order.
    pub stream: Vec<Task>,
    /// The same with their dev split for evaluation, where adapters are chosen on it; else empty.
    pub dev: Vec<Task>,
    /// Those that are evaluated only.
    pub general: Vec<Task>,
}

impl RunTasks {
    /// Reads the tasks that a run with `config` needs.
    ///
    /// # Errors
    /// As [`Task::load`].
    pub fn load(
        library: &dyn TaskLibrary,
        config: &RunConfig,
        codec: &TextCodec,
        vocabulary: usize,
    ) -> Result<Self, TrainerError> {
        let names = config.tasks()?;
        let general = config.eval.general_tasks.as_deref().unwrap_or_default();
        check_distinct(library, config)?;
        let evaluated = |names: &[String], config: &RunConfig| {
            names
                .iter()
                .map(|name| Task::load_evaluation(library, name, config, codec, vocabulary))
                .collect::<Result<Vec<_>, _>>()
        };
        let stream = names
            .iter()
            .map(|name| Task::load(library, name, config, codec, vocabulary));
        if config.train.select == Select::BestOnDev {
            for name in &names {
                check_dev(library.task(name)?.as_ref(), name, "`train.select`")?;
            }
        }
        Ok(Self {
            stream: stream.collect::<Result<_, _>>()?,
            dev: match config.train.select {
                Select::Last => Vec::new(),
                Select::BestOnDev => evaluated(&names, &Selection::dev_config(config))?,
            },
            general: evaluated(general, config)?,
        })
    }
}

/// `sha256:<hex>` of what a run with `config` reads of a task, as text: its labels, the examples of the evaluated split, and
/// of a task that is `trained` its training examples, both behind their caps, and the dev split where adapters are chosen on it.
///
/// # Errors
/// Those of reading.
pub(crate) fn task_digest(
    library: &dyn TaskLibrary,
    name: &str,
    config: &RunConfig,
    trained: bool,
) -> Result<String, TrainerError> {
    let source = library.task(name)?;
    let loaded = load(source.as_ref(), config, trained)?;
    Ok(digest(source.as_ref(), &loaded, config, trained)?)
}

fn digest(
    source: &dyn TaskSource,
    loaded: &TaskData,
    config: &RunConfig,
    trained: bool,
) -> Result<String, DataError> {
    let mut hasher = Sha256::new();
    let mut part = |examples: &[Example]| {
        hasher.update((examples.len() as u64).to_le_bytes());
        for example in examples {
            for text in [&example.prefix, &example.sentence, &example.suffix] {
                update_text(&mut hasher, text);
            }
            hasher.update((example.answers().count() as u64).to_le_bytes());
            for answer in example.answers() {
                update_text(&mut hasher, answer);
            }
        }
    };
    part(loaded.split(evaluated_split(config)));
    if trained {
        part(&loaded.train);
        if config.train.select == Select::BestOnDev {
            part(&source.load(Split::Dev)?);
        }
    }
    for label in loaded.labels.iter().flatten() {
        update_text(&mut hasher, label);
    }
    Ok(format!("sha256:{}", hex(&hasher.finalize())))
}

/// What a run with `config` reads of a task, capped.
fn load(source: &dyn TaskSource, config: &RunConfig, trained: bool) -> Result<TaskData, DataError> {
    let caps = ExampleCaps {
        max_train: config.data.max_train,
        max_eval: config.data.max_eval,
        seed: config.seed,
    };
    let evaluated = evaluated_split(config);
    let splits = [evaluated, Split::Train];
    TaskData::load_splits(source, &caps, if trained { &splits } else { &splits[..1] })
}

fn evaluated_split(config: &RunConfig) -> Split {
    match config.data.eval_split {
        EvalSplit::Test => Split::Test,
        EvalSplit::Dev => Split::Dev,
    }
}

/// The examples of the split that `wanted_by` asks for, if there are any.
fn not_empty<'a>(
    examples: &'a [Example],
    task: &str,
    split: Split,
    wanted_by: &'static str,
) -> Result<&'a [Example], TrainerError> {
    match examples.is_empty() {
        false => Ok(examples),
        true => Err(TrainerError::NoEvaluation {
            task: task.to_owned(),
            split: split.name(),
            wanted_by,
        }),
    }
}

/// That a run with `config` can read a task, before its model and tokenizer are there.
///
/// # Errors
/// Those of [`Task::load`] that do not depend on tokens.
pub(crate) fn check_task(
    source: &dyn TaskSource,
    task: &str,
    config: &RunConfig,
    trained: bool,
) -> Result<(), TrainerError> {
    if trained {
        source.load(Split::Train)?;
    }
    let split = evaluated_split(config);
    not_empty(&source.load(split)?, task, split, EVAL_SPLIT)?;
    match source.labels() {
        None if chooses(config, trained) => Err(TrainerError::NoLabels {
            task: task.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// The key that asks for the evaluated split.
const EVAL_SPLIT: &str = "`data.eval_split`";

/// Whether answers to a task are chosen among its labels at some time.
fn chooses(config: &RunConfig, trained: bool) -> bool {
    config.eval.mode == EvalMode::Score || (trained && config.eval.choose_last)
}

/// That no task of a run is learned twice, or learned and evaluated as one that is not, under two of its names (`amazon`, `SC/amazon`).
pub(crate) fn check_distinct(
    library: &dyn TaskLibrary,
    config: &RunConfig,
) -> Result<(), TrainerError> {
    let stream = config.tasks()?;
    let general = config.eval.general_tasks.iter().flatten();
    let general = general.map(|name| ("eval.general_tasks", name));
    let mut seen = BTreeMap::new();
    for (key, name) in stream.iter().map(|name| ("stream", name)).chain(general) {
        if let Some(first) = seen.insert(library.task(name)?.id(), name) {
            return Err(TrainerError::SameTask {
                key,
                first: first.clone(),
                second: name.clone(),
            });
        }
    }
    Ok(())
}

/// That a task has a dev split for what `wanted_by` chooses on it, and that this is not the test split: examples that are in
/// both, as there are in real data, are reported, and most of them may not be.
pub(crate) fn check_dev(
    source: &dyn TaskSource,
    task: &str,
    wanted_by: &'static str,
) -> Result<(), TrainerError> {
    let dev = source.load(Split::Dev)?;
    not_empty(&dev, task, Split::Dev, wanted_by)?;
    let test = source.load(Split::Test)?;
    let text = |example: &Example| (example.prompt(), example.target.clone());
    let test: HashSet<_> = test.iter().map(text).collect();
    let shared = dev
        .iter()
        .filter(|&example| test.contains(&text(example)))
        .count();
    if 2 * shared > dev.len() {
        return Err(TrainerError::DevIsTest {
            task: task.to_owned(),
            shared,
            dev: dev.len(),
            wanted_by,
        });
    }
    if shared > 0 {
        let of = dev.len();
        tracing::warn!(task, shared, of, "dev examples are test examples, too");
    }
    Ok(())
}

/// The labels of a task.
#[derive(Debug, Clone)]
pub struct Labels {
    /// As text.
    pub names: Vec<String>,
    /// As answers to the examples of `evaluation`.
    pub ids: AnswerSet,
}

impl Task {
    /// Reads, caps and tokenises a task, as a run with `config` needs it.
    ///
    /// # Errors
    /// [`TrainerError::Data`] for unknown, empty or malformed tasks; [`TrainerError::NoLabels`] if answers are to be
    /// chosen from labels that the task lacks; [`TrainerError::Vocabulary`] if a token is beyond the model's
    /// vocabulary.
    pub fn load(
        library: &dyn TaskLibrary,
        name: &str,
        config: &RunConfig,
        codec: &TextCodec,
        vocabulary: usize,
    ) -> Result<Self, TrainerError> {
        Self::read(library, name, config, codec, vocabulary, true)
    }

    /// The same without training examples, for a task that is evaluated only.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_evaluation(
        library: &dyn TaskLibrary,
        name: &str,
        config: &RunConfig,
        codec: &TextCodec,
        vocabulary: usize,
    ) -> Result<Self, TrainerError> {
        Self::read(library, name, config, codec, vocabulary, false)
    }

    fn read(
        library: &dyn TaskLibrary,
        name: &str,
        config: &RunConfig,
        codec: &TextCodec,
        vocabulary: usize,
        trained: bool,
    ) -> Result<Self, TrainerError> {
        let data = &config.data;
        let source = library.task(name)?;
        let loaded = load(source.as_ref(), config, trained)?;
        let split = evaluated_split(config);
        let evaluated = not_empty(loaded.split(split), name, split, EVAL_SPLIT)?;
        let limits = (data.max_source, data.max_target);
        let encoder = codec.encoder(data.max_source, data.max_target)?;
        let cache = data.cache.then(TokenCache::from_env).flatten();
        let encode = |examples: &[Example]| match &cache {
            Some(cache) => cache.encode_all(codec, limits, name, examples),
            None => encoder.encode_all(name, examples),
        };
        let labels = match chooses(config, trained) {
            false => None,
            true => {
                let names = loaded
                    .labels
                    .clone()
                    .ok_or_else(|| TrainerError::NoLabels {
                        task: name.to_owned(),
                    })?;
                let ids = encoder.answers(evaluated, &names)?;
                Some(Labels { names, ids })
            }
        };
        let task = Self {
            name: name.to_owned(),
            train: match trained {
                true => encode(&loaded.train)?,
                false => Vec::new(),
            },
            evaluation: encode(evaluated)?,
            answers: evaluated
                .iter()
                .map(|example| example.answers().map(str::to_owned).collect())
                .collect(),
            metric: loaded.metric,
            sources: match loaded.metric {
                Metric::Sari => evaluated.iter().map(Example::prompt).collect(),
                _ => Vec::new(),
            },
            labels,
            digest: digest(source.as_ref(), &loaded, config, trained)?,
        };
        task.check_vocabulary(split.name(), vocabulary)?;
        let cut = task
            .train
            .iter()
            .filter(|example| example.truncated())
            .count();
        if cut > 0 {
            tracing::info!(
                task = name,
                examples = cut,
                of = task.train.len(),
                "training examples were cut to data.max_source or data.max_target"
            );
        }
        Ok(task)
    }

    /// The labels, which must be known.
    ///
    /// # Errors
    /// [`TrainerError::NoLabels`].
    pub(crate) fn labels(&self) -> Result<&Labels, TrainerError> {
        self.labels.as_ref().ok_or_else(|| TrainerError::NoLabels {
            task: self.name.clone(),
        })
    }

    fn check_vocabulary(
        &self,
        evaluated: &'static str,
        vocabulary: usize,
    ) -> Result<(), TrainerError> {
        for (split, examples) in [("train", &self.train), (evaluated, &self.evaluation)] {
            for (example, encoded) in examples.iter().enumerate() {
                let ids = encoded.source.iter().chain(&encoded.target);
                if let Some(&id) = ids.into_iter().find(|id| **id as usize >= vocabulary) {
                    let task = self.name.clone();
                    return Err(TrainerError::Vocabulary {
                        task,
                        split,
                        example,
                        id,
                        vocabulary,
                    });
                }
            }
        }
        let mut of_labels = self.labels.iter().flat_map(|labels| labels.ids.ids());
        match of_labels.find(|(_, id)| *id as usize >= vocabulary) {
            None => Ok(()),
            Some((example, id)) => Err(TrainerError::Vocabulary {
                task: self.name.clone(),
                split: "label",
                example,
                id,
                vocabulary,
            }),
        }
    }
}
