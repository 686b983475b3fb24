//! The command line.

use std::path::PathBuf;

use aso_backbones::{Decoding, FloatDtype, GenerationConfig, Sampling};
use aso_trainer::config::EvalMode;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::device::DeviceName;

/// Continual learning of language models: one low-rank subspace per task, attribution-weighted soft
/// orthogonality between them.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_STATUS, after_long_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

fn positive(text: &str) -> Result<usize, &'static str> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or("expected a number of at least 1")
}

const EXIT_STATUS: &str = "Exit status: 0 done; 2 bad usage, bad input or a failed run; \
130 interrupted, with everything needed to resume saved.";

const EXAMPLES: &str = "\
Examples:
  aso demo
      The built-in model learns the built-in tasks, with seq-lora and with aso-lora.
  aso config --example cl-benchmark > run.toml
      A commented configuration to start from.
  aso run run.toml --out runs/order1 --set method.name=o-lora --seed 2
      One run; runs/order1 then holds adapters, metrics and results.json.
  aso run --resume --out runs/order1
      Goes on after any interruption.
  aso run --continue runs/order1 --tasks SST-2,RTE
      Teaches a finished run more tasks.
  aso sweep sweep.toml --out runs/sweep --jobs 2
      Methods x orders x seeds; runs what is missing, and prints means over seeds.
  aso report runs --out report.html
      Compares all runs below runs on one page.
  aso predict --run runs/order1 --input in.jsonl --output out.jsonl
      What the model after the last task answers.

Exit status: 0 done; 2 bad usage, bad input or a failed run; 130 interrupted, with everything
needed to resume saved.";

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Where to compute: flex (CPU), cuda, rocm, metal, vulkan, wgpu; a number picks one of several,
    /// as in cuda:1 [default: the first of these that is compiled in]
    #[arg(
        long,
        global = true,
        value_name = "DEVICE",
        help_heading = "Global options"
    )]
    pub(crate) device: Option<DeviceName>,
    /// CPU threads [default: one per core]
    #[arg(long, global = true, value_name = "N", help_heading = "Global options")]
    pub(crate) threads: Option<usize>,
    /// No progress and no information, only warnings and errors
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub(crate) quiet: bool,
    /// More information
    #[arg(
        long,
        short,
        global = true,
        conflicts_with = "quiet",
        help_heading = "Global options"
    )]
    pub(crate) verbose: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the built-in example: seq-lora forgets, aso-lora less
    Demo(DemoArgs),
    /// Train a stream of tasks and evaluate after each
    Run(RunArgs),
    /// Run methods x orders x seeds, whatever of them is missing
    Sweep(SweepArgs),
    /// Choose settings on dev, and write a sweep file with them
    Tune(TuneArgs),
    /// Evaluate a model with adapters on tasks
    Eval(EvalArgs),
    /// Answer the inputs of a JSONL file
    Predict(PredictArgs),
    /// Write what the model computes for one batch, for comparison with other systems
    Probe(ProbeArgs),
    /// Compare tasks after training: attributions, subspaces, responses to inputs
    Similarity(SimilarityArgs),
    /// Compare runs: tables, statistics and plots on one page
    Report(ReportArgs),
    /// Print a commented configuration
    Config(ConfigArgs),
    /// List the published task orders, with their sequences and sources
    Orders(OrdersArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// The built-in model that learns
    #[arg(long, value_enum, default_value_t = DemoModel::T5)]
    pub(crate) model: DemoModel,
    /// Keep the two run directories, DIR/seq-lora and DIR/aso-lora; the same command goes on after an interruption. Without it nothing is kept
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Seed of subspaces, dropout and order
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The models of `aso demo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DemoModel {
    /// An encoder-decoder
    T5,
    /// A causal model
    Llama,
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  aso run run.toml
  aso run run.toml --out runs/a --seed 3 --set train.lr=5e-4 --set method.name=inc-lora
  aso run --resume --out runs/a
  aso run --continue runs/a --tasks SST-2,RTE")]
pub(crate) struct RunArgs {
    /// The configuration (TOML); left out with --continue, and with --resume unless the run may not have been started: it must be
    /// the same then, --set and --seed included
    #[arg(value_name = "CONFIG", required_unless_present_any = ["resume", "extend"])]
    pub(crate) config: Option<PathBuf>,
    /// The run directory [default: runs/NAME for NAME.toml]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Overrides `seed` of the configuration
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Go on with the run in the directory, or start it if it is empty
    #[arg(long)]
    pub(crate) resume: bool,
    /// Overrides one key of the configuration, e.g. train.lr=5e-4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Append --tasks to a finished run
    #[arg(
        long = "continue",
        value_name = "RUN",
        requires = "tasks",
        conflicts_with_all = ["config", "out", "resume", "set", "seed"]
    )]
    pub(crate) extend: Option<PathBuf>,
    /// The tasks to append, separated by commas
    #[arg(
        long,
        value_name = "TASK,..",
        value_delimiter = ',',
        requires = "extend"
    )]
    pub(crate) tasks: Vec<String>,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Stop, as after SIGINT, when standard input ends; so a sweep that dies takes its runs along
    #[arg(long, hide = true)]
    pub(crate) stop_at_eof: bool,
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
DIR holds a run directory ORDER/LABEL/seed-N for each run, sweep.json with the metrics, and what the runs
logged in logs/. A run that failed does not stop the others; the exit status is then 2.

Examples:
  aso config --example sweep > sweep.toml
  aso sweep sweep.toml --out runs/sweep --dry-run
  aso sweep sweep.toml --out runs/sweep --jobs 2")]
pub(crate) struct SweepArgs {
    /// The sweep file (TOML); docs/sweeps.md describes it
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) jobs: JobArgs,
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
Every candidate of a method's grid runs with data.eval_split = \"dev\". The highest mean AP over orders and
seeds wins, the first of several. DIR holds tune.json with every score and chosen.toml, which aso sweep reads.

Examples:
  aso tune sweep.toml --out runs/tune --chosen chosen.toml
  aso sweep chosen.toml --out runs/sweep")]
pub(crate) struct TuneArgs {
    /// The sweep file (TOML) with a grid for each method to tune; docs/sweeps.md describes it
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Where to write the sweep file with the choice [default: DIR/chosen.toml]
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) chosen: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) jobs: JobArgs,
}

/// How the runs of a sweep are run.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The directory of all runs [default: runs/NAME for NAME.toml, runs/NAME-tune for aso tune]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Runs at the same time, each a process with its share of the threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub(crate) jobs: usize,
    /// List the runs and what is there of them, check whether the rest could start, and run nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Overrides one key of every run's configuration, e.g. data.path=/data
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A model with adapters.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("base").args(["run", "model"]).required(true)))]
pub(crate) struct ModelArgs {
    /// Take model, adapters and settings of a run
    #[arg(long, value_name = "RUN", conflicts_with = "adapter")]
    pub(crate) run: Option<PathBuf>,
    /// Model folder, organisation/name on the Hugging Face Hub, or embedded:demo
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Adapter folder; repeat in task order
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Vec<PathBuf>,
}

/// A model with adapters and tasks.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Folder of tasks in any layout of docs/data-layout.md; left out, the tasks of the run or the built-in suite
    #[arg(long, value_name = "DIR", conflicts_with = "run")]
    pub(crate) data: Option<PathBuf>,
    /// Overrides one key of the configuration, e.g. data.eval_split=dev
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  aso eval --run runs/a
  aso eval --model t5 --adapter runs/a/adapters/00-dbpedia --data data/cl-benchmark --tasks dbpedia --max-eval 500")]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// The tasks, separated by commas [default: all of the run or folder]
    #[arg(long, value_name = "TASK,..", value_delimiter = ',')]
    pub(crate) tasks: Vec<String>,
    /// Evaluate at most the first N examples of each task
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) max_eval: Option<usize>,
    /// Generate answers, or choose the most likely label of each task [default: as the run, or generate]
    #[arg(long, value_enum)]
    pub(crate) mode: Option<ModeArg>,
    /// Print the scores as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
Every adapter is put on the base model alone. Attribution similarity: mean over blocks of the correlation of the attribution
scores of two such models, averaged over a batch of either task (of training examples). Subspace overlap: mean squared
cosine of the principal angles between the rows of their A, over layers. Response: how strongly the rows of one A see what
another task feeds the layers, 1 being random rows; what is not seen is not disturbed. Of a run, `similarity.json` is written into it.

Examples:
  aso similarity --run runs/a
  aso similarity --model t5 --data data/cl-benchmark --adapter runs/a/adapters/00-dbpedia --adapter runs/b/adapters/00-agnews")]
pub(crate) struct SimilarityArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Examples of each task; they are attributed in one batch, so memory grows with their number
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = positive)]
    pub(crate) examples: usize,
    /// How to attribute
    #[arg(long, value_enum, default_value_t = AttributionArg::Aso)]
    pub(crate) attribution: AttributionArg,
    /// Where to write the matrices as JSON [default: similarity.json in the run]
    #[arg(long, value_name = "FILE.json")]
    pub(crate) out: Option<PathBuf>,
    /// Print the matrices as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
Each line of the input is {\"input\": \"..\"}, with an optional \"target\". Each line of the output adds
\"prediction\" and, where there is a target, \"correct\".

Examples:
  aso predict --run runs/a --input in.jsonl --output out.jsonl
  aso predict --model t5 --adapter runs/a/adapters/00-news --adapter runs/a/adapters/01-reviews --input in.jsonl --output out.jsonl")]
pub(crate) struct PredictArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Inputs, one JSON object a line
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) input: PathBuf,
    /// Answers, one JSON object a line; replaced as a whole
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) output: PathBuf,
    /// Examples generated together
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) batch_size: usize,
    /// Longest source in tokens [default: as the run, or 512]
    #[arg(long, value_name = "N")]
    pub(crate) max_source: Option<usize>,
    /// Longest answer in tokens [default: as the run, or 50]
    #[arg(long, value_name = "N")]
    pub(crate) max_new_tokens: Option<usize>,
    /// Element type of the backbone's matrices [default: as the run, or f32]
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<DtypeArg>,
    /// Jinja chat template for a causal model's prompts, or "checkpoint" for the one in the model folder [default: as the run, or none]
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) chat_template: Option<String>,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

/// How `aso predict` chooses tokens: greedily, unless one of the sampling options is given.
#[derive(Debug, Args)]
#[command(next_help_heading = "Generation")]
pub(crate) struct GenerationArgs {
    /// Sample, with logits divided by T
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Sample among the K most likely tokens
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Sample among the most likely tokens that together reach probability P
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// Seed of sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Divides the logits of tokens that occurred already; 1 is off
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub(crate) repetition_penalty: f64,
    /// End an answer before this string; may be repeated
    #[arg(long, value_name = "STRING")]
    pub(crate) stop: Vec<String>,
}

impl GenerationArgs {
    /// The settings, checked.
    pub(crate) fn config(&self, max_new_tokens: usize) -> anyhow::Result<GenerationConfig> {
        let greedy = (self.temperature, self.top_k, self.top_p) == (None, None, None);
        let defaults = Sampling::default();
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            seed: self.seed,
        };
        let config = GenerationConfig {
            max_new_tokens,
            decoding: match greedy {
                true => Decoding::Greedy,
                false => Decoding::Sample(sampling),
            },
            repetition_penalty: self.repetition_penalty,
        };
        config.validate()?;
        Ok(config)
    }
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
The batch is a JSON object with nested arrays `input_ids`, `attention_mask` and `labels` (-100 ignored). T5: the
decoder's inputs are the labels shifted right, with -100 fed as padding. Causal: labels lie at the position of their
own token and are shifted inside. No tokenizer is read, nothing is dropped out. Adapters are given in task order: the last one is the active subspace, the others are frozen.

Written as f32: `logits` [B, T, V]; `loss` [1] (mean cross entropy); `penalty.orthogonality` and `penalty.norm`
[1] (raw); `attribution.current.L` and `attribution.previous.L` [d_model] for every tapped block L from 0;
`similarity` [blocks] (NaN where a block was skipped); `weight` [1]. With --gradients, of the loss:
`grad.MODULE.lora_A.weight` [r, d_in] and `grad.MODULE.lora_B.weight` [d_out, r] of the active subspace.
Without adapters the penalties are 0, the weight is 1 and there are no gradients.

Example:
  aso probe --model t5 --adapter a --adapter b --batch batch.json --out probe.safetensors --gradients")]
pub(crate) struct ProbeArgs {
    /// Model folder, or organisation/name on the Hugging Face Hub
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: String,
    /// Adapter folder; repeat in task order
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Vec<PathBuf>,
    /// Token ids, mask and labels
    #[arg(long, value_name = "FILE.json")]
    pub(crate) batch: PathBuf,
    /// Where to write; replaced as a whole
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) out: PathBuf,
    /// Element type of the backbone's matrices
    #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
    pub(crate) dtype: DtypeArg,
    /// How to attribute
    #[arg(long, value_enum, default_value_t = AttributionArg::Aso)]
    pub(crate) attribution: AttributionArg,
    /// Also write gradients of the loss
    #[arg(long)]
    pub(crate) gradients: bool,
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
Runs of the same tasks and the same configuration but for the seed are one group, called by its method and by the
settings that tell it from others of that method. LABEL=DIR gives the runs in DIR another name.

Examples:
  aso report runs --out report.html
  aso report runs/a runs/b \"larger rank=runs/c\" --reference o-lora --out report.html
  aso report runs --format md
  aso report runs --out report.html --svg figures --tensorboard board")]
pub(crate) struct ReportArgs {
    /// Run directories, or folders that hold some at any depth
    #[arg(value_name = "[LABEL=]DIR", required = true)]
    pub(crate) runs: Vec<String>,
    /// Where to write; replaced as a whole [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// What to write [default: as the name of the file ends, md without a file]
    #[arg(long, value_enum)]
    pub(crate) format: Option<ReportFormat>,
    /// The method or label that the others are compared with [default: aso-lora, or the first]
    #[arg(long, value_name = "METHOD")]
    pub(crate) reference: Option<String>,
    /// Also write every figure as an SVG file into DIR
    #[arg(long, value_name = "DIR")]
    pub(crate) svg: Option<PathBuf>,
    /// Also write a TensorBoard event file for each run below DIR
    #[arg(long, value_name = "DIR")]
    pub(crate) tensorboard: Option<PathBuf>,
}

/// The forms of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// A self-contained page
    Html,
    /// Markdown tables
    Md,
    /// One row for each method
    Csv,
    /// All numbers
    Json,
}

/// How answers are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeArg {
    Generate,
    Score,
}

impl From<ModeArg> for EvalMode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Generate => Self::Generate,
            ModeArg::Score => Self::Score,
        }
    }
}

/// An element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeArg {
    F32,
    Bf16,
    F16,
}

impl From<DtypeArg> for FloatDtype {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::F32 => Self::F32,
            DtypeArg::Bf16 => Self::Bf16,
            DtypeArg::F16 => Self::F16,
        }
    }
}

/// The attribution of `aso probe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AttributionArg {
    /// Gold-token attribution through the decoder
    Aso,
    /// What the released code computes
    Reference,
    /// Leave it out
    None,
}

#[derive(Debug, Args)]
pub(crate) struct OrdersArgs {
    /// Only this order
    #[arg(value_name = "ORDER")]
    pub(crate) order: Option<String>,
    /// The order of O-LoRA's task files: a folder with DATASET/{train,test}_tasks.json, such as order1_configs
    #[arg(long, value_name = "DIR", conflicts_with = "order")]
    pub(crate) configs: Option<PathBuf>,
    /// Print them as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Which configuration to print; it runs as it is
    #[arg(long, value_enum)]
    pub(crate) example: ExampleArg,
}

/// The examples of `aso config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExampleArg {
    /// The built-in model on the built-in tasks
    Demo,
    /// The CL benchmark
    ClBenchmark,
    /// A sweep over the built-in tasks, for aso sweep and aso tune
    Sweep,
}
