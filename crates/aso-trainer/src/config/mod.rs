//! The configuration of a run: one TOML file with the sections `[model]`, `[lora]`, `[data]`,
//! `[stream]`, `[method]`, `[attribution]`, `[train]`, `[eval]` and a top-level `seed`.
//!
//! Every key has a default, and an empty file is a valid configuration: the built-in model learns
//! the built-in suite. Unknown keys are errors. Relative paths in a file are relative to the folder
//! of that file; relative paths in a `--set` argument are relative to the current directory.

mod error;
mod example;
pub(crate) mod load;
pub(crate) mod schema;
mod validate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aso_backbones::FloatDtype;
use aso_hub::ModelId;
use aso_lora::{LoraConfig, TargetModules};
use serde::{Deserialize, Serialize};

use crate::embedded::EmbeddedModel;
use crate::method::{MemorySize, Structure};

pub use self::error::{ConfigError, Origin, UnknownMethod};
pub use self::example::{ExampleKind, example};
pub use self::load::dotted_keys;
use self::schema::{plain, settings};

/// The built-in model, as a value of `model.path`.
pub const EMBEDDED_MODEL: &str = "embedded:demo";

/// What begins a `model.path` that means the Hub, whatever folders there are.
const HUB: &str = "hub:";

settings! {
    /// The configuration of a run.
    pub struct RunConfig {
        /// Seed of every random choice: initial subspaces, dropout, order of examples, subsets.
        pub seed: u64 = 1,
        /// The backbone.
        pub model: ModelSettings = ModelSettings::default(),
        /// The low-rank subspaces.
        pub lora: LoraSettings = LoraSettings::default(),
        /// The examples.
        pub data: DataSettings = DataSettings::default(),
        /// The tasks and their order.
        pub stream: StreamSettings = StreamSettings::default(),
        /// The continual-learning method: L = CE + lambda1 * w * O + lambda2 * N.
        pub method: MethodSettings = MethodSettings::default(),
        /// Attribution scores and the soft weight w (method `aso-lora`).
        pub attribution: AttributionSettings = AttributionSettings::default(),
        /// The optimizer loop of one task.
        pub train: TrainSettings = TrainSettings::default(),
        /// Evaluation after each task.
        pub eval: EvalSettings = EvalSettings::default(),
    }
}

settings! {
    /// The backbone, section `[model]`.
    pub struct ModelSettings {
        /// Folder of a Hugging Face checkpoint (`config.json`, `model.safetensors` or shards,
        /// `tokenizer.json`), "organisation/name" of a model on the Hugging Face Hub (where there is
        /// no such folder; "hub:organisation/name" in any case), or "embedded:demo" (T5) or
        /// "embedded:demo-llama" for the built-in models.
        pub path: String = EMBEDDED_MODEL.to_owned(),
        /// Branch, tag or commit of a model on the Hub. Unset: "main".
        #[sample = "\"main\""]
        pub revision: Option<String> = None,
        /// Element type in which the backbone's matrices are kept and multiplied: "f32", "bf16" or
        /// "f16". Subspaces, norms, softmax and the optimizer are f32 in any case.
        pub dtype: FloatDtype = FloatDtype::F32,
        /// Jinja chat template that renders the prompts of a causal model, or "checkpoint" for the
        /// template in the model's folder. Unset: prompts as they are.
        #[sample = "\"checkpoint\""]
        pub chat_template: Option<String> = None,
        /// Dropout of the backbone while training, 0 <= p < 1. Unset: as `config.json` says.
        #[sample = "0.1"]
        pub dropout: Option<f64> = None,
    }
}

settings! {
    /// The low-rank subspaces, section `[lora]`.
    pub struct LoraSettings {
        /// Rank r of each subspace.
        pub rank: usize = 8,
        /// A subspace is scaled by alpha / rank.
        pub alpha: f64 = 32.0,
        /// Dropout on the input of the active subspace, 0 <= p < 1.
        pub dropout: f64 = 0.1,
        /// The adapted layers: a list of names, as in PEFT, or "all-linear". Unset: the query and
        /// value projections of the model, ["q", "v"] or ["q_proj", "v_proj"].
        #[sample = "\"all-linear\""]
        #[serde(deserialize_with = "load::target_modules")]
        pub target_modules: Option<TargetModules> = None,
        /// Train B alone, with A as drawn (LoRA-FA, Zhang et al. 2023). Not with "aso-lora" and "o-lora", whose penalty acts
        /// on A.
        pub freeze_a: bool = false,
        /// How the frozen subspaces run: "folded" into the base weights (step time independent of
        /// the number of tasks) or as a "stack" beside them. Both give the same outputs.
        pub frozen: FrozenMode = FrozenMode::Folded,
    }
}

/// How the frozen subspaces take part in the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrozenMode {
    /// Added into the base weight at the task boundary.
    Folded,
    /// Kept as low-rank pairs beside the base weight.
    Stack,
}

settings! {
    /// The examples, section `[data]`.
    pub struct DataSettings {
        /// "cl-benchmark" (`TASK/DATASET/{train,dev,test,labels}.json` with
        /// `instruction_config.json`), "jsonl" (`TASK/{train,dev,test}.jsonl`, one object with
        /// `input` and `target` a line), "trace" (`TASK/{train,eval,test}.json` with `prompt` and
        /// `answer`), "superni" (Super-NaturalInstructions) or "embedded" (the built-in suite).
        pub format: DataFormat = DataFormat::Embedded,
        /// Folder of the data; unset for "embedded".
        #[sample = "\"data/cl-benchmark\""]
        pub path: Option<PathBuf> = None,
        /// At most this many training examples a task, a seeded choice. Unset: all.
        #[sample = "1000"]
        pub max_train: Option<usize> = None,
        /// At most this many evaluation examples a task, the first ones. Unset: all.
        #[sample = "500"]
        pub max_eval: Option<usize> = None,
        /// Longest source in tokens; too long a source loses the end of its sentence only.
        pub max_source: usize = 512,
        /// Longest target in tokens.
        pub max_target: usize = 50,
        /// Whether tokenised examples are kept in the cache folder, `$ASO_CACHE/tokens` or
        /// `~/.cache/aso-lora/tokens`. No result depends on it.
        pub cache: bool = true,
        /// So many training examples of each task are set aside as its dev split, in place of that in its files, which is
        /// not read; the same ones for every seed. For data whose dev split is its test split (the published CL benchmark)
        /// or that has none. 0: the files' dev split.
        pub dev_from_train: usize = 0,
        /// The split that is evaluated: "test" or "dev".
        pub eval_split: EvalSplit = EvalSplit::Test,
    }
}

/// The layout of the data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataFormat {
    /// The layout of O-LoRA's CL benchmark.
    ClBenchmark,
    /// One folder a task with `input` and `target` in JSON lines.
    Jsonl,
    /// The layout of TRACE.
    Trace,
    /// Super-NaturalInstructions: JSON with `Definition` and `Instances`.
    #[serde(rename = "superni")]
    SuperNi,
    /// The suite built into the crate.
    Embedded,
}

/// The split that evaluation reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvalSplit {
    /// `test`.
    Test,
    /// `dev`, for choosing settings.
    Dev,
}

settings! {
    /// The tasks and their order, section `[stream]`. Exactly one of `order` and `tasks` is set;
    /// with the embedded data both may be absent (the whole suite).
    pub struct StreamSettings {
        /// A named order of tasks, instead of `tasks`.
        #[sample = "\"order1\""]
        pub order: Option<String> = None,
        /// The tasks in the order in which they are learned, instead of `order`.
        #[sample = "[\"dbpedia\", \"amazon\", \"agnews\"]"]
        pub tasks: Option<Vec<String>> = None,
        /// Settings of single tasks that differ from `[train]` and `[method]`: a table for each
        /// such task.
        pub overrides: BTreeMap<String, TaskOverride> = BTreeMap::new(),
    }
}

settings! {
    /// Settings of one task, section `[stream.overrides.TASK]`.
    pub struct TaskOverride {
        /// Instead of `train.lr`.
        #[sample = "1e-4"]
        pub lr: Option<f64> = None,
        /// Instead of `train.epochs` or `train.steps`.
        #[sample = "2"]
        pub epochs: Option<usize> = None,
        /// Instead of `method.lambda1`.
        #[sample = "5.0"]
        pub lambda1: Option<f64> = None,
        /// Instead of `method.lambda2`.
        #[sample = "0.1"]
        pub lambda2: Option<f64> = None,
    }
}

settings! {
    /// The continual-learning method, section `[method]`: L = CE + lambda1 * w * O + lambda2 * N.
    pub struct MethodSettings {
        /// One subspace a task: "aso-lora" (soft orthogonality), "o-lora" (w = 1), "inc-lora" (no orthogonality),
        /// "n-lora" (sparse), "inf-lora" (away from earlier inputs). One adapter for all tasks: "seq-lora", "ewc", "lwf", "replay", "a-gem", "slao". No adapter but all linear layers: "seq-ft"
        /// (`[lora]` is not used). Bounds:
        /// "per-task" (an adapter for each task alone), "multi-task" (all tasks at once).
        pub name: MethodName = MethodName::AsoLora,
        /// Weight of the orthogonality penalty O ("aso-lora", "o-lora").
        pub lambda1: f64 = 0.5,
        /// Weight of the norm penalty N, from the second task on ("aso-lora", "o-lora", "inc-lora").
        pub lambda2: f64 = 0.0,
        /// O: "abs-sum" (sum of |A_k A_t^T|), "squared-frobenius" (sum of squares) or
        /// "mean-abs-cosine" (mean |cos| between rows; its scale does not grow with tasks, rank or
        /// modules).
        pub penalty: PenaltyKind = PenaltyKind::AbsSum,
        /// "o-lora" and "aso-lora": what A_t is held orthogonal to: "subspaces" (A_k of earlier tasks, as published) or "inputs"
        /// (directions M_k of what earlier tasks feed the layer, M_k in the place of A_k in O; A_t starts outside of them).
        pub orthogonal_to: OrthogonalTo = OrthogonalTo::Subspaces,
        /// "n-lora": weight of the sum of |B_t A_t|.
        pub sparsity: f64 = 1e-3,
        /// "ewc": weight lambda of the importances.
        pub importance: f64 = 1e2,
        /// "ewc": what is left of earlier importances at the end of a task, 0 <= gamma <= 1.
        pub importance_decay: f64 = 1.0,
        /// "ewc", "inf-lora" and `orthogonal_to = "inputs"`: examples of a task that its importances, or its layers' inputs, are
        /// estimated from.
        pub probe_examples: usize = 200,
        /// "inf-lora" and `orthogonal_to = "inputs"`: share of the energy of earlier tasks' inputs that new subspaces avoid,
        /// 0 <= x <= 1.
        pub memory_threshold: f64 = 0.95,
        /// "lwf": weight of the distillation.
        pub distillation: f64 = 1.0,
        /// "lwf": temperature of the distillation.
        pub temperature: f64 = 2.0,
        /// "replay" and "a-gem": examples of every distinct answer of a task that are kept.
        pub memory_per_class: usize = 10,
        /// "replay" and "a-gem": share of a task's examples that is kept, 0 <= x <= 1, instead of
        /// `memory_per_class`.
        #[sample = "0.02"]
        pub memory_ratio: Option<f64> = None,
        /// "replay" and "a-gem": kept examples in each step. Unset: half the batch size.
        #[sample = "8"]
        pub replay_examples: Option<usize> = None,
    }
}

/// The continual-learning methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MethodName {
    /// Soft orthogonality: the penalty is weighted by the dissimilarity of the tasks.
    AsoLora,
    /// Full orthogonality, w = 1.
    OLora,
    /// One subspace a task, no orthogonality.
    IncLora,
    /// One subspace a task, sparse.
    NLora,
    /// One subspace a task, that inputs of earlier tasks do not reach.
    InfLora,
    /// One adapter, trained on one task after another.
    SeqLora,
    /// All linear layers, trained on one task after another.
    SeqFt,
    /// One adapter, whose important entries are held.
    Ewc,
    /// One adapter that imitates its predecessor.
    Lwf,
    /// One adapter and old examples.
    Replay,
    /// One adapter whose gradient never goes against that of old examples.
    AGem,
    /// One adapter, merged after each task.
    Slao,
    /// An adapter for each task alone.
    PerTask,
    /// One adapter for all tasks at once.
    MultiTask,
}

impl MethodName {
    /// The name as in a configuration file, e.g. `aso-lora`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AsoLora => "aso-lora",
            Self::OLora => "o-lora",
            Self::IncLora => "inc-lora",
            Self::NLora => "n-lora",
            Self::InfLora => "inf-lora",
            Self::SeqLora => "seq-lora",
            Self::SeqFt => "seq-ft",
            Self::Ewc => "ewc",
            Self::Lwf => "lwf",
            Self::Replay => "replay",
            Self::AGem => "a-gem",
            Self::Slao => "slao",
            Self::PerTask => "per-task",
            Self::MultiTask => "multi-task",
        }
    }

    /// Every method.
    pub const ALL: [Self; 14] = [
        Self::AsoLora,
        Self::OLora,
        Self::IncLora,
        Self::NLora,
        Self::InfLora,
        Self::SeqLora,
        Self::SeqFt,
        Self::Ewc,
        Self::Lwf,
        Self::Replay,
        Self::AGem,
        Self::Slao,
        Self::PerTask,
        Self::MultiTask,
    ];

    /// Whether both halves of an adapter train, unless `lora.freeze_a` is set; otherwise A is set and B trains alone.
    pub fn trains_a(self) -> bool {
        !matches!(self, Self::InfLora | Self::SeqFt)
    }

    /// Whether it is no method of continual learning but a bound for them: it has an adapter for each task, or sees all tasks at
    /// once.
    pub fn is_bound(self) -> bool {
        matches!(self.structure(), Structure::PerTask | Structure::Joint)
    }

    /// How its adapters hang together.
    pub fn structure(self) -> Structure {
        match self {
            Self::AsoLora | Self::OLora | Self::IncLora | Self::NLora | Self::InfLora => {
                Structure::Stack
            }
            Self::SeqLora
            | Self::SeqFt
            | Self::Ewc
            | Self::Lwf
            | Self::Replay
            | Self::AGem
            | Self::Slao => Structure::Single,
            Self::PerTask => Structure::PerTask,
            Self::MultiTask => Structure::Joint,
        }
    }
}

impl MethodSettings {
    /// How many examples of a task are kept.
    pub fn memory_size(&self) -> MemorySize {
        match self.memory_ratio {
            Some(ratio) => MemorySize::Ratio(ratio),
            None => MemorySize::PerClass(self.memory_per_class),
        }
    }
}

impl std::str::FromStr for MethodName {
    type Err = UnknownMethod;

    /// The method of that name, as in a configuration file.
    fn from_str(name: &str) -> Result<Self, UnknownMethod> {
        let mut known = Self::ALL.into_iter();
        known
            .find(|method| method.as_str() == name)
            .ok_or_else(|| UnknownMethod {
                found: name.to_owned(),
            })
    }
}

impl std::fmt::Display for MethodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// The orthogonality penalties O over the matrices `A_k A_t^T`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PenaltyKind {
    /// Sum of absolute entries, O-LoRA's penalty.
    AbsSum,
    /// Sum of squared entries.
    SquaredFrobenius,
    /// Mean absolute cosine between rows.
    MeanAbsCosine,
}

/// What a new subspace is held orthogonal to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrthogonalTo {
    /// The rows of A of earlier tasks.
    Subspaces,
    /// The leading directions of what earlier tasks feed the layer.
    Inputs,
}

settings! {
    /// Attribution scores and the soft weight, section `[attribution]` (method `aso-lora`).
    pub struct AttributionSettings {
        /// "aso" (gold-token attribution, midpoint rule, weight held between measurements) or
        /// "reference" (what the released code computes, step for step).
        pub preset: AttributionPreset = AttributionPreset::Aso,
        /// Points m of the integration path.
        pub steps: usize = 5,
        /// Optimizer steps between measurements. Unset: "aso" min(50, ceil(steps of the task / 5)),
        /// "reference" 50.
        #[sample = "50"]
        pub interval: Option<usize> = None,
        /// Rows of the batch that are measured, the first ones (preset "aso"; "reference" takes the
        /// first micro-batch).
        pub examples: usize = 4,
        /// The tapped blocks: "decoder", "encoder", or "encoder-readout" (one token of the prompt, read
        /// from the encoder with the LM head). Unset: "decoder" in preset "aso", "encoder-readout" in
        /// "reference", which knows no other.
        #[sample = "\"decoder\""]
        pub stack: Option<TapStack> = None,
        /// Whose probability is attributed: "gold", the first token of the right answer, or "predicted", the token that the current
        /// model finds most likely there (preset "aso", stacks "decoder" and "encoder").
        pub target: TargetKind = TargetKind::Gold,
        /// Start of the integration path, 0 <= alpha_min < 1 (preset "aso").
        pub alpha_min: f64 = 0.0,
        /// Whether a weight holds until the next measurement; otherwise it is 1 on all other steps. Unset: true in preset
        /// "aso", false in "reference".
        #[sample = "true"]
        pub hold: Option<bool> = None,
        /// Whether the weight is clamped to [0, 1]. Unset: true in preset "aso", false in "reference".
        #[sample = "true"]
        pub clamp: Option<bool> = None,
        /// One weight for each past task instead of one for all (preset "aso").
        pub per_task: bool = false,
        /// With `per_task`, what makes past task k similar: "without" (taking subspace k away changes nothing), "reliance" (taking it
        /// away changes much) or "alone" (k alone attributes as the active subspace alone does).
        pub compare: TaskComparisonKind = TaskComparisonKind::Without,
        /// One weight for each block, both stacks tapped, instead of one for all (preset "aso").
        pub per_block: bool = false,
    }
}

/// The two ways to compute attribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttributionPreset {
    /// The method as argued in the paper, done soundly.
    Aso,
    /// What the released code computes.
    Reference,
}

/// What is compared where each past task has a weight of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskComparisonKind {
    /// The similarity of every subspace and every one but that of the past task.
    Without,
    /// One minus that.
    Reliance,
    /// The similarity of the active subspace alone and that of the past task alone.
    Alone,
}

/// Whose probability is attributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// The first token of the gold answer.
    Gold,
    /// The most likely token of the current model in its place.
    Predicted,
}

/// The stack whose blocks are tapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TapStack {
    /// The decoder's blocks at the position that predicts the first target token.
    Decoder,
    /// The encoder's blocks at all positions, which the decoder reads.
    Encoder,
    /// The encoder's blocks at one position, read with the LM head, as released.
    EncoderReadout,
}

impl TapStack {
    /// The name in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decoder => "decoder",
            Self::Encoder => "encoder",
            Self::EncoderReadout => "encoder-readout",
        }
    }
}

/// The gradient that is clipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clip {
    /// Of the whole loss.
    Total,
    /// Of the loss without the penalties on adapters, which are added afterwards.
    Task,
}

settings! {
    /// The optimizer loop of one task, section `[train]`. AdamW; each task starts with fresh
    /// moments.
    pub struct TrainSettings {
        /// Learning rate, 0 < lr <= 1.
        pub lr: f64 = 1e-3,
        /// "constant" or "linear" (down to 0 at the end of the task).
        pub schedule: Schedule = Schedule::Constant,
        /// Optimizer steps over which the rate rises linearly from 0 at the start of each task.
        pub warmup_steps: usize = 0,
        /// Passes over each task's examples. Unset: 1, unless `steps` is set.
        #[sample = "1"]
        pub epochs: Option<usize> = None,
        /// Optimizer steps a task, instead of `epochs`.
        #[sample = "100"]
        pub steps: Option<usize> = None,
        /// Examples in one optimizer step.
        pub batch_size: usize = 64,
        /// Examples in one forward pass, a divisor of `batch_size`; gradients are accumulated over
        /// batch_size / micro_batch passes. Unset: `batch_size`.
        #[sample = "8"]
        pub micro_batch: Option<usize> = None,
        /// Longest global norm of the gradient; 0 switches clipping off.
        pub max_grad_norm: f64 = 1.0,
        /// The gradient whose norm that is: "total", of the whole loss, as released, or "task", before penalties are added. A
        /// penalty with a large gradient shrinks what is left of the task's in "total", and a soft weight that changes rescales
        /// it. Unset: "task" for method aso-lora with attribution preset "aso", otherwise "total".
        #[sample = "\"total\""]
        pub clip: Option<Clip> = None,
        /// AdamW's decoupled weight decay.
        pub weight_decay: f64 = 0.0,
        /// AdamW's decay of the first moment, 0 <= beta1 < 1.
        pub beta1: f64 = 0.9,
        /// AdamW's decay of the second moment, 0 <= beta2 < 1.
        pub beta2: f64 = 0.999,
        /// AdamW's term in the denominator.
        pub eps: f64 = 1e-8,
        /// Whether examples of similar length share a batch (less padding).
        pub length_grouping: bool = true,
        /// Whether a transposed copy of every weight is kept on the CPU: a faster backward pass for twice the
        /// memory of the weights. The last bits of the results depend on it.
        pub transposed_weights: bool = true,
        /// The adapter that a task keeps: "last" (behind its last step) or "best-on-dev" (the one with the highest score
        /// on the task's dev split, the first of equals).
        pub select: Select = Select::Last,
        /// With `select = "best-on-dev"`: optimizer steps between two looks at the dev split; the last step is
        /// looked at in any case.
        pub select_every: usize = 50,
        /// With `select = "best-on-dev"`: at most this many examples of the dev split, the first ones.
        pub select_examples: usize = 200,
        /// Optimizer steps between two checkpoints within a task; 0 saves at task ends only.
        pub checkpoint_every: usize = 100,
        /// Optimizer steps between two lines of the log.
        pub log_every: usize = 10,
    }
}

/// The adapter that a task keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    /// The one behind the last step.
    Last,
    /// The one with the highest score on the task's dev split.
    BestOnDev,
}

/// The learning-rate schedules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// The same rate after warm-up.
    Constant,
    /// Linear decay to 0 at the last step of the task.
    Linear,
}

settings! {
    /// Evaluation after each task, section `[eval]`.
    pub struct EvalSettings {
        /// The tasks evaluated after each task: "all", "seen" (learned so far) or "seen+next" (and
        /// the one that comes next, for forward transfer).
        pub tasks: EvalTasks = EvalTasks::All,
        /// How an answer is found: "generate" (greedily, token by token) or "score" (the most likely of the
        /// task's labels, so never anything else; for tasks with a list of labels).
        pub mode: EvalMode = EvalMode::Generate,
        /// Whether every task is answered once more after the last one, with the most likely of its labels, as by mode
        /// "score": tells a task that is forgotten from one whose answers have only lost their form. For mode "generate".
        /// Switched on for a finished run, it adds what is missing.
        pub choose_last: bool = false,
        /// Examples answered together.
        pub batch_size: usize = 32,
        /// Longest generated answer in tokens.
        pub max_new_tokens: usize = 50,
        /// Tasks that are not learned, on which the untouched backbone and the model behind the last task
        /// are evaluated: what training does to other abilities. Unset: none.
        #[sample = "[\"COPA\"]"]
        pub general_tasks: Option<Vec<String>> = None,
        /// Whether the untouched backbone is evaluated on all tasks first (forward transfer needs
        /// it).
        pub zero_shot: bool = true,
    }
}

/// How an answer is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvalMode {
    /// Greedy generation.
    Generate,
    /// The label with the highest log-likelihood, not divided by its length; the first one of several.
    Score,
}

/// The tasks that are evaluated after each task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvalTasks {
    /// Every task of the stream.
    All,
    /// The tasks learned so far.
    Seen,
    /// The tasks learned so far and the next one.
    #[serde(rename = "seen+next")]
    SeenNext,
}

impl EvalTasks {
    /// Whether task `task` is evaluated after task `after` (both from 0).
    pub fn includes(self, after: usize, task: usize) -> bool {
        match self {
            Self::All => true,
            Self::Seen => task <= after,
            Self::SeenNext => task <= after + 1,
        }
    }
}

plain!(
    FloatDtype,
    FrozenMode,
    DataFormat,
    EvalSplit,
    Select,
    MethodName,
    PenaltyKind,
    OrthogonalTo,
    AttributionPreset,
    TapStack,
    TargetKind,
    Clip,
    TaskComparisonKind,
    Schedule,
    EvalTasks,
    EvalMode,
);

/// The model that `model.path` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource<'a> {
    /// The model built into the crate under this name.
    Embedded(&'a str),
    /// A Hugging Face checkpoint folder.
    Folder(&'a Path),
    /// The model on the Hugging Face Hub with this id.
    Hub(&'a str),
}

/// How long a task is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainLength {
    /// Passes over the task's examples.
    Epochs(usize),
    /// Optimizer steps.
    Steps(usize),
}

impl TrainLength {
    /// The optimizer steps of a task with `examples` training examples: `epochs * ceil(examples /
    /// batch_size)`.
    pub fn optimizer_steps(self, examples: usize, batch_size: usize) -> usize {
        match self {
            Self::Epochs(epochs) => epochs * examples.div_ceil(batch_size.max(1)),
            Self::Steps(steps) => steps,
        }
    }
}

/// What holds for one task after its overrides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TaskSettings {
    /// Learning rate.
    pub lr: f64,
    /// Epochs or steps.
    pub length: TrainLength,
    /// Weight of the orthogonality penalty.
    pub lambda1: f64,
    /// Weight of the norm penalty.
    pub lambda2: f64,
}

impl RunConfig {
    /// The settings of one task: those of `[train]` and `[method]` unless `[stream.overrides.TASK]`
    /// says otherwise.
    pub fn task_settings(&self, task: &str) -> TaskSettings {
        let own = self.stream.overrides.get(task).cloned().unwrap_or_default();
        TaskSettings {
            lr: own.lr.unwrap_or(self.train.lr),
            length: own.epochs.map_or(self.train.length(), TrainLength::Epochs),
            lambda1: own.lambda1.unwrap_or(self.method.lambda1),
            lambda2: own.lambda2.unwrap_or(self.method.lambda2),
        }
    }

    /// The same configuration with the defaults that follow the method or the attribution preset written out: `train.clip` and
    /// `attribution.stack`, `hold` and `clamp`. Two configurations that differ only in spelling them out are equal then.
    pub fn resolved(&self) -> Self {
        let mut config = self.clone();
        config.train.clip = Some(self.clip());
        let attribution = &mut config.attribution;
        if !attribution.per_block {
            attribution.stack = Some(self.attribution.tapped_stack());
        }
        attribution.hold = Some(self.attribution.holds());
        attribution.clamp = Some(self.attribution.clamps());
        config
    }

    /// The gradient that is clipped.
    pub fn clip(&self) -> Clip {
        let measured = self.method.name == MethodName::AsoLora
            && self.attribution.preset == AttributionPreset::Aso;
        let default = if measured { Clip::Task } else { Clip::Total };
        self.train.clip.unwrap_or(default)
    }

    /// The tasks of the stream in order.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when neither or both of `stream.order` and `stream.tasks` are set,
    /// when the order is unknown, or when a task occurs twice.
    pub fn tasks(&self) -> Result<Vec<String>, ConfigError> {
        validate::tasks(self).map_err(|violation| violation.at(Origin::Code))
    }
}

impl ModelSettings {
    /// The built-in model that `path` names.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if it names none.
    pub fn embedded(&self) -> Result<&'static EmbeddedModel, ConfigError> {
        validate::embedded(self).map_err(|violation| violation.at(Origin::Code))
    }

    /// What `path` names. A loaded configuration says by itself whether that is a folder; of other paths in
    /// the form of an id, those that exist below the current directory are folders.
    pub fn source(&self) -> ModelSource<'_> {
        let path = self.path.as_str();
        if let Some(name) = path.strip_prefix("embedded:") {
            ModelSource::Embedded(name)
        } else if let Some(id) = path.strip_prefix(HUB) {
            ModelSource::Hub(id)
        } else if is_hub_id(Path::new(""), path) {
            ModelSource::Hub(path)
        } else {
            ModelSource::Folder(Path::new(path))
        }
    }
}

/// Whether `path` names a model on the Hub: it has the form of an id, and below `base` is no such folder. A
/// folder always wins, so that a local model never touches the network.
fn is_hub_id(base: &Path, path: &str) -> bool {
    path.parse::<ModelId>().is_ok() && !base.join(path).exists()
}

impl LoraSettings {
    /// Shape, scale and targets of a new subspace; `targets` are the model's own.
    pub fn to_lora_config(&self, targets: TargetModules) -> LoraConfig {
        LoraConfig {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            target_modules: self.target_modules.clone().unwrap_or(targets),
        }
    }
}

impl AttributionSettings {
    /// Optimizer steps between two measurements in a task of `task_steps` optimizer steps.
    pub fn interval_for(&self, task_steps: usize) -> usize {
        self.interval.unwrap_or(match self.preset {
            AttributionPreset::Aso => task_steps.div_ceil(5).clamp(1, 50),
            AttributionPreset::Reference => 50,
        })
    }

    /// The tapped stack.
    pub fn tapped_stack(&self) -> TapStack {
        self.stack.unwrap_or(match self.preset {
            AttributionPreset::Aso => TapStack::Decoder,
            AttributionPreset::Reference => TapStack::EncoderReadout,
        })
    }

    /// Whether a measured weight holds until the next measurement.
    pub fn holds(&self) -> bool {
        self.hold.unwrap_or(self.preset == AttributionPreset::Aso)
    }

    /// Whether the weight is clamped to `[0, 1]`.
    pub fn clamps(&self) -> bool {
        self.clamp.unwrap_or(self.preset == AttributionPreset::Aso)
    }
}

impl TrainSettings {
    /// Epochs or steps of a task without overrides.
    pub fn length(&self) -> TrainLength {
        match self.steps {
            Some(steps) => TrainLength::Steps(steps),
            None => TrainLength::Epochs(self.epochs.unwrap_or(1)),
        }
    }

    /// Examples in one forward pass.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch.unwrap_or(self.batch_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_method() {
        let config = RunConfig::default();
        config.validate().unwrap();
        let settings = config.task_settings("any");
        let expected = TaskSettings {
            lr: 1e-3,
            length: TrainLength::Epochs(1),
            lambda1: 0.5,
            lambda2: 0.0,
        };
        assert_eq!(settings, expected);
        let lora = config.lora.to_lora_config(TargetModules::default());
        assert_eq!((lora.rank, lora.alpha, lora.dropout), (8, 32.0, 0.1));
        assert_eq!(config.model.source(), ModelSource::Embedded("demo"));
        let train = &config.train;
        assert_eq!((train.batch_size, train.micro_batch()), (64, 64));
        assert_eq!((train.beta1, train.beta2, train.eps), (0.9, 0.999, 1e-8));
    }

    #[test]
    fn methods_are_found_by_their_names() {
        for method in MethodName::ALL {
            assert_eq!(method.as_str().parse(), Ok(method));
        }
        let error = "ASO-LoRA".parse::<MethodName>().unwrap_err().to_string();
        let expected = "method \"ASO-LoRA\": expected one of aso-lora, o-lora, inc-lora";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn overrides_apply_to_their_task_only() {
        let mut config = RunConfig::default();
        config.train.steps = Some(30);
        let own = TaskOverride {
            lr: Some(1e-4),
            epochs: Some(2),
            ..TaskOverride::default()
        };
        config.stream.overrides.insert("a".into(), own);
        let a = config.task_settings("a");
        assert_eq!(
            (a.lr, a.length, a.lambda1),
            (1e-4, TrainLength::Epochs(2), 0.5)
        );
        let b = config.task_settings("b");
        assert_eq!((b.lr, b.length), (1e-3, TrainLength::Steps(30)));
    }

    #[test]
    fn lengths_and_intervals() {
        assert_eq!(TrainLength::Epochs(2).optimizer_steps(130, 64), 6);
        assert_eq!(TrainLength::Steps(7).optimizer_steps(130, 64), 7);
        let mut attribution = AttributionSettings::default();
        let intervals = [1, 5, 6, 250, 251, 9000].map(|steps| attribution.interval_for(steps));
        assert_eq!(intervals, [1, 1, 2, 50, 50, 50]);
        assert_eq!(attribution.tapped_stack(), TapStack::Decoder);
        assert!(attribution.holds() && attribution.clamps());
        attribution.preset = AttributionPreset::Reference;
        assert_eq!(attribution.interval_for(10), 50);
        assert_eq!(attribution.tapped_stack(), TapStack::EncoderReadout);
        assert!(!attribution.holds() && !attribution.clamps());
        attribution.interval = Some(3);
        assert_eq!(attribution.interval_for(10), 3);
    }

    #[test]
    fn the_default_of_clip_follows_the_method() {
        let mut config = RunConfig::default();
        assert_eq!(config.method.name, MethodName::AsoLora);
        assert_eq!(config.clip(), Clip::Task);
        config.attribution.preset = AttributionPreset::Reference;
        assert_eq!(config.clip(), Clip::Total);
        config.attribution.preset = AttributionPreset::Aso;
        config.method.name = MethodName::OLora;
        assert_eq!(config.clip(), Clip::Total);
        config.train.clip = Some(Clip::Task);
        assert_eq!(config.clip(), Clip::Task);
    }

    #[test]
    fn evaluated_tasks() {
        let evaluated = |tasks: EvalTasks| [0, 1, 2, 3].map(|task| tasks.includes(1, task));
        assert_eq!(evaluated(EvalTasks::All), [true; 4]);
        assert_eq!(evaluated(EvalTasks::Seen), [true, true, false, false]);
        assert_eq!(evaluated(EvalTasks::SeenNext), [true, true, true, false]);
    }
}
