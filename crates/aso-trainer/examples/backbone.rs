//! Pre-trains a demo backbone and writes it as a Hugging Face folder.
//!
//! `cargo run --release -p aso-trainer --example backbone -- [--arch t5|llama] [--out DIR] [--steps N] [--seed N]`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use aso_backbones::{AutoModel, Backbone, FloatDtype};
use aso_data::TextTokenizer;
use aso_trainer::TextCodec;
use aso_trainer::pretrain::{PretrainConfig, PretrainError, instruction_accuracy, pretrain};
use burn::tensor::Device;

fn main() -> ExitCode {
    let (config, out) = match arguments(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!(
                "error: {message}\nusage: backbone [--arch t5|llama] [--out DIR] [--steps N] [--seed N]"
            );
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

/// The configuration and the output folder (default: the crate's `assets/demo` or `assets/demo-llama`).
fn arguments(arguments: impl Iterator<Item = String>) -> Result<(PretrainConfig, PathBuf), String> {
    let mut arguments = arguments.peekable();
    let mut config = PretrainConfig::t5();
    let mut folder = "demo";
    let mut out = None;
    if arguments.next_if(|option| option == "--arch").is_some() {
        match arguments.next().as_deref() {
            Some("t5") => {}
            Some("llama") => (config, folder) = (PretrainConfig::llama(), "demo-llama"),
            other => {
                return Err(format!(
                    "--arch {}: expected t5 or llama",
                    other.unwrap_or("")
                ));
            }
        }
    }
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
            "--out" => out = Some(value.into()),
            "--steps" => config.steps = number()? as usize,
            "--seed" => config.seed = number()?,
            "--arch" => return Err("--arch comes first".to_owned()),
            _ => return Err(format!("unknown option {option}")),
        }
    }
    let assets = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/assets"));
    Ok((config, out.unwrap_or_else(|| assets.join(folder))))
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
    let model = AutoModel::from_pretrained(out, FloatDtype::F32, &Device::flex())?;
    let tokenizer = TextTokenizer::from_file(out.join("tokenizer.json"))?;
    let codec = TextCodec::new(model.kind(), &model.special_tokens(), tokenizer);
    // Items of another seed than the training's: not seen.
    for (kind, accuracy) in instruction_accuracy(&model, &codec, config.seed + 1000, 1000)? {
        eprintln!("{kind:16} {accuracy:5.1} %");
    }
    Ok(())
}
