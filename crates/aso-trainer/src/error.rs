//! What can stop a run.

use std::path::PathBuf;

use aso_backbones::BackboneError;
use aso_data::DataError;
use aso_lora::LoraError;

use crate::config::{ConfigError, MethodName};
use crate::files::FilesError;

/// Errors of a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainerError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model.
    #[error(transparent)]
    Backbone(#[from] BackboneError),
    /// What is behind `hub:` is no id.
    #[error(transparent)]
    ModelId(#[from] aso_hub::InvalidModelId),
    /// The Hugging Face Hub does not give the model. The message also serves those who meant a folder.
    #[error("`{model}`: no such folder here, and on the Hub: {source}")]
    Hub {
        /// The model.
        model: aso_hub::ModelId,
        /// The reason.
        source: Box<aso_hub::HubError>,
    },
    /// An adapter.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// A file of the run directory.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The tokenizer knows tokens that the model has no embedding for, and the data uses one.
    #[error(
        "task `{task}`, {split} example {example}: token id {id} is outside the model's vocabulary of {vocabulary}; the tokenizer does not belong to this model"
    )]
    Vocabulary {
        /// The task.
        task: String,
        /// `train`, `dev` or `test`, or `label`.
        split: &'static str,
        /// 0-based example or label.
        example: usize,
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// The split to evaluate on is empty.
    #[error("task `{task}`: no examples in split `{split}`, which {wanted_by} asks for")]
    NoEvaluation {
        /// The task.
        task: String,
        /// The split.
        split: &'static str,
        /// The key of the configuration, or the command, that needs it.
        wanted_by: &'static str,
    },
    /// What is chosen on dev would be chosen on test.
    #[error(
        "task `{task}`: {shared} of its {dev} dev examples are test examples, and {wanted_by} is to choose on dev, not on test; expected a dev split of its own, \
             such as one that data.dev_from_train = N sets aside from its training examples"
    )]
    DevIsTest {
        /// The task.
        task: String,
        /// Dev examples that are test examples, too.
        shared: usize,
        /// Dev examples.
        dev: usize,
        /// The key of the configuration, or the command, that needs it.
        wanted_by: &'static str,
    },
    /// Two names mean the same task.
    #[error("`{key}`: `{first}` and `{second}` are the same task; expected each task once")]
    SameTask {
        /// The key of the configuration that names the second.
        key: &'static str,
        /// The name that comes first.
        first: String,
        /// The other one.
        second: String,
    },
    /// There is nothing to choose an answer from.
    #[error(
        "task `{task}`: no list of labels (`labels.json`) to choose from, which `eval.mode` = \"score\" and `eval.choose_last` need; \"generate\" does without"
    )]
    NoLabels {
        /// The task.
        task: String,
    },
    /// A model that overflows has no likelihoods to compare.
    #[error(
        "task `{task}`, example {example}: expected the log-likelihood of every label, found NaN; the model may overflow in this precision (`model.dtype`)"
    )]
    NoLikelihood {
        /// The task.
        task: String,
        /// 0-based example of the evaluated split.
        example: usize,
    },
    /// A run is continued with other settings.
    #[error("{path}: the run was started with another `{key}`: expected {expected}, found {found}", path = path.display())]
    ConfigChanged {
        /// The stored configuration.
        path: PathBuf,
        /// The first key that differs.
        key: String,
        /// The stored value.
        expected: String,
        /// The value now.
        found: String,
    },
    /// A run or an adapter belongs to another base model.
    #[error("{path}: made for the base model {expected}, but the model is {found}", path = path.display())]
    OtherModel {
        /// The run's state or the adapter.
        path: PathBuf,
        /// The fingerprint stored.
        expected: String,
        /// The fingerprint of the model at hand.
        found: String,
    },
    /// A task has other examples than those that a run has worked with.
    #[error("{path}: task `{task}` has other examples than the run was started with ({found}, expected {expected}); its scores would not belong together", path = path.display())]
    OtherData {
        /// The run's state, or its directory.
        path: PathBuf,
        /// The task.
        task: String,
        /// The digest stored.
        expected: String,
        /// The digest of the examples at hand.
        found: String,
    },
    /// The state file was written by another version.
    #[error("{path}: state format {found}; expected {expected}", path = path.display())]
    StateFormat {
        /// The file.
        path: PathBuf,
        /// The format this version reads.
        expected: u32,
        /// The format found.
        found: u32,
    },
    /// The optimizer's state belongs to other matrices.
    #[error("{path}: moments of `{name}`: expected {expected}, found {found:?}", path = path.display(), expected = shape_or_none(*expected))]
    Moments {
        /// The file.
        path: PathBuf,
        /// `{layer}.{lora_A | lora_B}`.
        name: String,
        /// The shape of the model's matrix, if it has one of that name.
        expected: Option<[usize; 2]>,
        /// The shape of the moments.
        found: [usize; 2],
    },
    /// A stored part of the state does not parse.
    #[error("{path}: `{key}`: {source}", path = path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// The part.
        key: &'static str,
        /// The reason.
        source: serde_json::Error,
    },
    /// Only a finished run can be given more tasks.
    #[error("{path}: the run is not finished ({trained} of {tasks} tasks); finish it with --resume first", path = path.display())]
    Unfinished {
        /// The run directory.
        path: PathBuf,
        /// Tasks trained.
        trained: usize,
        /// Tasks of the stream.
        tasks: usize,
    },
    /// A method that learns all tasks at once has no next one.
    #[error("{path}: method `{method}` learns all tasks at once; start another run with all of them", path = path.display())]
    AllAtOnce {
        /// The run directory.
        path: PathBuf,
        /// The method.
        method: MethodName,
    },
    /// The loss or a gradient is not a finite number.
    #[error(
        "task `{task}`, step {step}: the {what} is {value}; training diverged (a lower `train.lr` may help)"
    )]
    Diverged {
        /// The task.
        task: String,
        /// 0-based optimizer step.
        step: usize,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// The value.
        value: f64,
    },
    /// What a layer is fed is not a finite number, so that its directions cannot be computed.
    #[error(
        "task `{task}`: the inputs of layer `{layer}` are not finite; with `model.dtype` = \"f16\" they may exceed its range, which \"bf16\" and \"f32\" do not"
    )]
    InputsNotFinite {
        /// The task.
        task: String,
        /// The adapted layer.
        layer: String,
    },
    /// A chat template is given for a model that reads prompts as they are.
    #[error(
        "`model.chat_template` is set, but the model is an encoder-decoder, which has no chat template"
    )]
    TemplateUnused,
    /// The model's own chat template is wanted and there is none.
    #[error("{dir}: no chat template in `chat_template.jinja` or `tokenizer_config.json`, which `model.chat_template` = \"checkpoint\" asks for", dir = dir.display())]
    NoTemplate {
        /// The model folder.
        dir: PathBuf,
    },
    /// Snapshots replace one another and cannot be summed.
    #[error("{path}: adapters of kind `snapshot` replace one another: give exactly one", path = path.display())]
    Snapshots {
        /// The offending adapter.
        path: PathBuf,
    },
}

fn shape_or_none(shape: Option<[usize; 2]>) -> String {
    shape.map_or(
        "none, for the model has no such matrix".to_owned(),
        |shape| format!("{shape:?}"),
    )
}
