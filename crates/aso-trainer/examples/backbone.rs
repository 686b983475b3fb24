//! Pre-trains a small backbone and writes it as a Hugging Face folder: one of the demo's, or one on the texts of a data
//! folder.
//!
//! `cargo run --release -p aso-trainer --example backbone -- [--arch t5|llama] [--data DIR] [--out DIR]
//! [--steps N | --hours H] [--seed N] [--device flex|default]`
//!
//! `default` is the device that Burn prefers among the backends that are compiled in: `cargo xtask backbone --backend vulkan`
//! builds with one more and passes it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use aso_backbones::{AutoModel, Backbone, FloatDtype};
use aso_data::{ClBenchmark, TextTokenizer};
use aso_trainer::TextCodec;
use aso_trainer::pretrain::{
    Corpus, PretrainConfig, PretrainData, PretrainError, PretrainLength, instruction_accuracy,
    pretrain,
};
use burn::tensor::Device;

// The system's allocator hands the buffers of each step back to the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "usage: backbone [--arch t5|llama] [--data DIR] [--out DIR] [--steps N | --hours H] [--seed N] \
                     [--device flex|default]";

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("error: {message}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    config: PretrainConfig,
    data: Option<PathBuf>,
    out: PathBuf,
    device: Device,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut arch, mut data, mut out) = ("t5".to_owned(), None, None);
        let (mut length, mut seed, mut device) = (None, None, Device::flex());
        while let Some(option) = arguments.next() {
            let value = arguments
                .next()
                .ok_or_else(|| format!("{option} needs a value"))?;
            let wrong = || format!("{option} {value}: no number");
            let count = || value.parse::<u64>().map_err(|_| wrong());
            match option.as_str() {
                "--arch" => arch = value,
                "--data" => data = Some(value.into()),
                "--out" => out = Some(value.into()),
                "--steps" | "--hours" if length.is_some() => {
                    return Err("--steps and --hours exclude each other".to_owned());
                }
                "--steps" => match count()? {
                    0 => return Err(wrong()),
                    steps => length = Some(PretrainLength::Steps(steps as usize)),
                },
                "--hours" => match value.parse::<f64>() {
                    Ok(hours) if hours > 0.0 => length = Some(PretrainLength::Hours(hours)),
                    _ => return Err(wrong()),
                },
                "--seed" => seed = Some(count()?),
                "--device" => match value.as_str() {
                    "flex" => device = Device::flex(),
                    "default" => device = Device::default(),
                    _ => return Err(format!("--device {value}: expected flex or default")),
                },
                _ => return Err(format!("unknown option {option}")),
            }
        }
        let (mut config, folder) = match (arch.as_str(), &data) {
            ("t5", None) => (PretrainConfig::t5(), "demo"),
            ("llama", None) => (PretrainConfig::llama(), "demo-llama"),
            ("t5", Some(_)) => (PretrainConfig::corpus_t5(), "t5-small-corpus"),
            ("llama", Some(_)) => (PretrainConfig::corpus_llama(), "llama-small-corpus"),
            _ => return Err(format!("--arch {arch}: expected t5 or llama")),
        };
        config.length = length.unwrap_or(config.length);
        config.seed = seed.unwrap_or(config.seed);
        let package = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let default = match data {
            None => package.join("assets").join(folder),
            Some(_) => folder.into(),
        };
        Ok(Self {
            config,
            data,
            out: out.unwrap_or(default),
            device,
        })
    }
}

fn run(arguments: &Arguments) -> Result<(), PretrainError> {
    let Arguments {
        config,
        data,
        out,
        device,
    } = arguments;
    let start = Instant::now();
    let (material, keep) = match data {
        None => (PretrainData::Generated, None),
        Some(dir) => {
            let corpus = Corpus::read(&ClBenchmark::open(dir)?)?;
            eprintln!("{} texts in {}", corpus.texts().len(), dir.display());
            (PretrainData::Corpus(corpus), Some(out.join("training")))
        }
    };
    let report = &mut |progress: aso_trainer::pretrain::PretrainProgress| {
        let steps = progress
            .steps
            .map_or("?".to_owned(), |steps| steps.to_string());
        eprintln!(
            "step {:6} of {steps}  loss {:.3}  {:.0} s",
            progress.step,
            progress.loss,
            start.elapsed().as_secs_f64()
        );
        for (kind, accuracy) in progress.accuracy.iter().flatten() {
            eprintln!(
                "    {:8} {accuracy:5.1} %",
                format!("{kind:?}").to_lowercase()
            );
        }
    };
    let never = AtomicBool::new(false);
    let pretrained = pretrain(config, &material, keep.as_deref(), device, report, &never)?;
    let Some(pretrained) = pretrained else {
        return Ok(());
    };
    pretrained.save(out)?;
    let bytes = pretrained.weights.len();
    eprintln!("{bytes} bytes of weights in {}", out.display());
    if data.is_none() {
        // Items of another seed than the training's: not seen.
        for (kind, accuracy) in accuracy(out, config.seed + 1000)? {
            eprintln!("{kind:16} {accuracy:5.1} %");
        }
    }
    Ok(())
}

/// What will be loaded is what was rounded to half precision.
fn accuracy(
    out: &Path,
    seed: u64,
) -> Result<std::collections::BTreeMap<String, f64>, PretrainError> {
    let model = AutoModel::from_pretrained(out, FloatDtype::F32, &Device::flex())?;
    let tokenizer = TextTokenizer::from_file(out.join("tokenizer.json"))?;
    let codec = TextCodec::new(model.kind(), &model.special_tokens(), tokenizer);
    instruction_accuracy(&model, &codec, seed, 1000)
}
