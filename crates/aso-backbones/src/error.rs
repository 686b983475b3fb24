//! What can go wrong with checkpoints and batches.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackboneError {
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A model folder holds no weights.
    #[error("{dir}: no weights; expected `model.safetensors` or `model.safetensors.index.json`", dir = dir.display())]
    NoWeights {
        /// The model folder.
        dir: PathBuf,
    },
    /// A JSON file does not parse.
    #[error("{path}: not a valid JSON file: {source}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// A value of a JSON file has the wrong type.
    #[error("{path}: `{key}`: {source}", path = path.display())]
    JsonValue {
        /// The file.
        path: PathBuf,
        /// The key, from the outermost.
        key: String,
        /// What was found, what was expected, line and column.
        source: serde_json::Error,
    },
    /// A safetensors header is damaged.
    #[error("{path}: not a valid safetensors file: {reason}", path = path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A safetensors file is shorter or longer than its header says.
    #[error("{path}: the header describes a file of {expected} bytes, found {found}: truncated or damaged", path = path.display())]
    FileLength {
        /// The file.
        path: PathBuf,
        /// Bytes that the header asks for.
        expected: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// The index names a tensor that its shard does not hold.
    #[error("{index}: tensor `{tensor}` should be in `{shard}`, which does not hold it", index = index.display())]
    IndexMismatch {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// A parameter of the model is in no file.
    #[error("{origin}: tensor `{tensor}` of shape {expected:?} is missing")]
    MissingTensor {
        /// The checkpoint.
        origin: String,
        /// The tensor.
        tensor: String,
        /// The shape the model needs.
        expected: Vec<usize>,
    },
    /// A tensor has the wrong shape.
    #[error("{origin}: tensor `{tensor}` has shape {found:?}; expected {expected:?}")]
    Shape {
        /// The checkpoint file.
        origin: String,
        /// The tensor.
        tensor: String,
        /// The shape the model needs.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor has an element type that is not floating point.
    #[error("{origin}: tensor `{tensor}` has type {found}; expected F32, F16 or BF16")]
    Dtype {
        /// The checkpoint file.
        origin: String,
        /// The tensor.
        tensor: String,
        /// The type in the file.
        found: String,
    },
    /// The checkpoint holds tensors that the model does not use.
    #[error("{origin}: {count} tensors are not part of this model, the first is `{tensor}`")]
    UnusedTensor {
        /// The checkpoint.
        origin: String,
        /// The first such tensor, by name.
        tensor: String,
        /// How many there are.
        count: usize,
    },
    /// `config.json` describes something this crate does not compute.
    #[error("{path}: `{key}` is {found}; expected {expected}", path = path.display())]
    UnsupportedConfig {
        /// The configuration file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is supported.
        expected: String,
        /// What the file says.
        found: String,
    },
    /// A setting of generation makes no sense.
    #[error("generation: `{key}` is {found}; expected {expected}")]
    Generation {
        /// The setting.
        key: &'static str,
        /// What is accepted.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// The device cannot compute in the wanted element type.
    #[error("the device does not support {dtype}; expected `dtype` f32")]
    Precision {
        /// The element type.
        dtype: &'static str,
    },
    /// A batch's arrays do not have the same shape.
    #[error("batch: `{field}` has {found}; expected {expected}")]
    BatchShape {
        /// The array.
        field: &'static str,
        /// What is needed.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A token id is outside the model's vocabulary.
    #[error(
        "batch: `{field}` row {row}, position {position}: token id {id} is outside the vocabulary of {vocabulary}"
    )]
    TokenId {
        /// The array.
        field: &'static str,
        /// 0-based row.
        row: usize,
        /// 0-based position.
        position: usize,
        /// The id.
        id: i64,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// A tap needs something that the batch does not have.
    #[error("attribution at {point}: {reason}")]
    Tap {
        /// The tap point.
        point: &'static str,
        /// What is missing.
        reason: String,
    },
}
