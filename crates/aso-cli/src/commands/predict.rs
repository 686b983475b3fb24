//! `aso predict`.

use std::process::ExitCode;

use aso_backbones::Backbone;
use aso_data::jsonl::read_inputs;
use aso_data::{Example, exact_match};
use aso_lora::AdapterScope;
use aso_trainer::config::EvalMode;
use aso_trainer::evaluate::Evaluator;
use aso_trainer::events::{Event, Observer};
use aso_trainer::files::atomic_write;
use aso_trainer::load::{load_adapters, load_model};
use burn::tensor::Device;
use serde::Serialize;

use super::source::Source;
use crate::args::PredictArgs;
use crate::progress::Terminal;

/// One line of the output.
#[derive(Debug, Serialize)]
struct Prediction<'a> {
    input: &'a str,
    prediction: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correct: Option<bool>,
}

pub(crate) fn run(
    args: &PredictArgs,
    device: &Device,
    terminal: Terminal,
) -> anyhow::Result<ExitCode> {
    let mut source = Source::of_model(&args.model)?;
    let model = &mut source.config.model;
    model.dtype = args.dtype.map_or(model.dtype, Into::into);
    model.chat_template = args.chat_template.clone().or(model.chat_template.take());
    let (data, eval) = (&source.config.data, &source.config.eval);
    let max_source = args.max_source.unwrap_or(data.max_source);
    let max_new_tokens = args.max_new_tokens.unwrap_or(eval.max_new_tokens);
    let generation = args.generation.config(max_new_tokens)?;
    let adapters = source.adapters_of_model()?;
    let inputs = read_inputs(&args.input)?;
    let mut progress = terminal.observer(1);
    let mut loaded = load_model(&source.config.model, device, &mut progress)?;
    load_adapters(&mut loaded.model, adapters, &loaded.fingerprint, false)?;

    let examples: Vec<Example> = inputs
        .iter()
        .map(|line| Example::plain(&line.input, line.target.as_deref().unwrap_or_default()))
        .collect();
    let encoder = loaded.codec.encoder(max_source, max_new_tokens.max(2))?;
    let name = args.input.display().to_string();
    let encoded = encoder.encode_all(&name, &examples)?;
    let vocabulary = loaded.model.vocabulary();
    for (line, example) in encoded.iter().enumerate() {
        if let Some(id) = example.source.iter().find(|id| **id as usize >= vocabulary) {
            anyhow::bail!(
                "{name}: input {line}: token id {id} is outside the model's vocabulary of {vocabulary}; \
                 the tokenizer does not belong to this model"
            );
        }
    }

    let evaluator = Evaluator {
        codec: &loaded.codec,
        mode: EvalMode::Generate,
        batch_size: args.batch_size,
        generation,
        stop: &args.generation.stop,
    };
    let rows: Vec<_> = encoded.iter().collect();
    progress.event(Event::EvaluationStarted {
        after: None,
        task: &name,
        examples: rows.len(),
    });
    let answers = evaluator.answers(&loaded.model, &rows, AdapterScope::All, &mut |done| {
        progress.event(Event::EvaluationProgress { done });
    })?;

    let mut text = Vec::new();
    let (mut right, mut known) = (0, 0);
    for (line, prediction) in inputs.iter().zip(&answers) {
        let target = line.target.as_deref();
        let correct = target.map(|target| exact_match(prediction, target));
        known += usize::from(correct.is_some());
        right += usize::from(correct == Some(true));
        serde_json::to_writer(
            &mut text,
            &Prediction {
                input: &line.input,
                prediction,
                target,
                correct,
            },
        )?;
        text.push(b'\n');
    }
    atomic_write(&args.output, &text)?;
    drop(progress);
    tracing::info!(
        inputs = inputs.len(),
        with_target = known,
        correct = right,
        output = %args.output.display(),
        "predicted"
    );
    Ok(ExitCode::SUCCESS)
}
