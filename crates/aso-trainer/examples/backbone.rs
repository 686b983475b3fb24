//! Pre-trains the demo backbone and writes it as a Hugging Face folder.
//!
//! `cargo run --release -p aso-trainer --example backbone -- [--out DIR] [--steps N] [--seed N]`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use aso_backbones::t5::T5ForConditionalGeneration;
use aso_data::TextTokenizer;
use aso_trainer::pretrain::{PretrainConfig, PretrainError, instruction_accuracy, pretrain};
use burn::tensor::Device;

fn main() -> ExitCode {
    let (config, out) = match arguments(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("error: {message}\nusage: backbone [--out DIR] [--steps N] [--seed N]");
            return ExitCode::from(2);
        }
    };
    match run(&config, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The configuration and the output folder (default: the crate's `assets/demo`).
fn arguments(
    mut arguments: impl Iterator<Item = String>,
) -> Result<(PretrainConfig, PathBuf), String> {
    let mut config = PretrainConfig::default();
    let mut out = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo"));
    while let Some(option) = arguments.next() {
        let value = arguments
            .next()
            .ok_or_else(|| format!("{option} needs a value"))?;
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("{option} {value}: no number"))
        };
        match option.as_str() {
            "--out" => out = value.into(),
            "--steps" => config.steps = number()? as usize,
            "--seed" => config.seed = number()?,
            _ => return Err(format!("unknown option {option}")),
        }
    }
    Ok((config, out))
}

fn run(config: &PretrainConfig, out: &std::path::Path) -> Result<(), PretrainError> {
    let start = Instant::now();
    let pretrained = pretrain(config, &Device::flex(), &mut |progress| {
        let seconds = start.elapsed().as_secs_f64();
        eprintln!(
            "step {:5} of {}  loss {:.3}  {seconds:.0} s",
            progress.step, progress.steps, progress.loss
        );
    })?;
    pretrained.save(out)?;
    eprintln!(
        "{} bytes of weights in {}",
        pretrained.weights.len(),
        out.display()
    );
    // What will be loaded is what was rounded to half precision.
    let model = T5ForConditionalGeneration::from_pretrained(out, &Device::flex())?;
    let tokenizer = TextTokenizer::from_file(out.join("tokenizer.json"))?;
    // Items of another seed than the training's: not seen.
    for (kind, accuracy) in instruction_accuracy(&model, &tokenizer, config.seed + 1000, 1000)? {
        eprintln!("{kind:16} {accuracy:5.1} %");
    }
    Ok(())
}
