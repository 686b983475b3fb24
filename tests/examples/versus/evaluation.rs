//! Greedy answers to the test prompts of agnews, with an adapter that has learned the task for a while.

use std::path::{Path, PathBuf};

use anyhow::Context;
use aso_backbones::{AutoModel, Backbone, GenerationConfig, RowControl};
use aso_data::{EncodedExample, evaluation_order};
use aso_lora::{AdapterScope, ForwardContext};
use aso_trainer::config::EvalMode;
use aso_trainer::evaluate::Evaluator;
use aso_trainer::events::Silent;
use aso_trainer::load::{Loaded, load_adapters, load_model, open_library};
use aso_trainer::state::adapter_dir;
use aso_trainer::{RunConfig, Task};
use burn::tensor::Device;
use serde::Serialize;

use crate::order::{Encoded, execute, settings};
use crate::{Outcome, Workload, write_json};

const BATCH_SIZE: usize = 32;
const MAX_NEW_TOKENS: usize = 10;

#[derive(Serialize)]
struct Export<'a> {
    model: &'a str,
    adapter: PathBuf,
    batch_size: usize,
    max_new_tokens: usize,
    examples: Vec<Encoded<'a>>,
}

/// One short task, so that answers have the lengths of answers.
fn config() -> anyhow::Result<RunConfig> {
    settings(&[
        "stream.tasks=[\"agnews\"]",
        "method.name=inc-lora",
        "data.max_train=640",
        "data.max_eval=500",
        "eval.zero_shot=false",
    ])
}

/// Trains the adapter once, and writes the prompts.
pub(crate) fn export(work: &Path) -> anyhow::Result<()> {
    let run = work.join("agnews");
    if run.exists() {
        std::fs::remove_dir_all(&run).with_context(|| run.display().to_string())?;
    }
    let config = config()?;
    execute(&config, &run)?;
    let Evaluation { task, .. } = Evaluation::new(work)?;
    write_json(
        &work.join("agnews.json"),
        &Export {
            model: &config.model.path,
            adapter: adapter_dir(&run, 0, "agnews"),
            batch_size: BATCH_SIZE,
            max_new_tokens: MAX_NEW_TOKENS,
            examples: Encoded::all(&task.evaluation),
        },
    )
}

pub(crate) struct Evaluation {
    loaded: Loaded<AutoModel>,
    task: Task,
}

impl Evaluation {
    pub(crate) fn new(work: &Path) -> anyhow::Result<Self> {
        let config = config()?;
        let mut loaded = load_model(&config.model, &Device::default(), &mut Silent)?;
        let adapter = adapter_dir(&work.join("agnews"), 0, "agnews");
        load_adapters(&mut loaded.model, &[adapter], &loaded.fingerprint, false)?;
        let library = open_library(&config.data)?;
        let (codec, vocabulary) = (&loaded.codec, loaded.model.vocabulary());
        let library = library.as_ref();
        let task = Task::load(library, "agnews", &config, codec, vocabulary)?;
        Ok(Self { loaded, task })
    }
}

impl Workload for Evaluation {
    fn warm_up(&mut self) -> anyhow::Result<Option<f64>> {
        // The sum of all generated ids: equal only if practically every token is.
        let examples: Vec<&EncodedExample> = self.task.evaluation.iter().collect();
        let lengths: Vec<usize> = examples.iter().map(|e| e.source.len()).collect();
        let Loaded { model, codec, .. } = &self.loaded;
        let mut sum = 0.0;
        for indices in evaluation_order(&lengths, BATCH_SIZE) {
            let rows: Vec<_> = indices.iter().map(|index| examples[*index]).collect();
            let tokens = model.generate(
                &codec.prompts(&rows)?,
                &GenerationConfig::greedy(MAX_NEW_TOKENS),
                RowControl::default(),
                &ForwardContext::inference(),
            );
            sum += tokens
                .iter()
                .flatten()
                .map(|id| f64::from(*id))
                .sum::<f64>();
        }
        Ok(Some(sum))
    }

    fn run(&mut self) -> anyhow::Result<Outcome> {
        let evaluator = Evaluator {
            codec: &self.loaded.codec,
            mode: EvalMode::Generate,
            batch_size: BATCH_SIZE,
            generation: GenerationConfig::greedy(MAX_NEW_TOKENS),
            stop: &[],
        };
        let model = &self.loaded.model;
        let score = evaluator.score(model, &self.task, AdapterScope::All, &mut |_| {})?;
        Ok(Outcome::check(score))
    }
}
