//! What can go wrong with adapters and their files.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A JSON file does not parse, or a value has no JSON form.
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
    /// A safetensors file is damaged.
    #[error("{path}: not a valid safetensors file: {source}", path = path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: safetensors::SafeTensorError,
    },
    /// An adapter configuration asks for something this crate does not compute.
    #[error("{path}: `{key}` is {found}, which is not supported; expected {expected}", path = path.display())]
    Unsupported {
        /// `adapter_config.json`.
        path: PathBuf,
        /// The configuration key.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What the file says.
        found: String,
    },
    /// A name pattern is no regular expression that this crate understands.
    #[error("{path}: `{key}`: the pattern {pattern:?} cannot be used: {source}", path = path.display())]
    Pattern {
        /// `adapter_config.json`.
        path: PathBuf,
        /// `rank_pattern` or `alpha_pattern`.
        key: &'static str,
        /// The pattern.
        pattern: String,
        /// The reason.
        source: Box<regex::Error>,
    },
    /// The sidecar was written by another version.
    #[error("{path}: sidecar format {found}; expected {expected}", path = path.display())]
    SidecarFormat {
        /// `aso_subspace.json`.
        path: PathBuf,
        /// The format this version reads.
        expected: u32,
        /// The format found.
        found: u32,
    },
    /// A tensor name is not of the form `base_model.model.<module>.lora_{A,B}.weight`.
    #[error("{path}: tensor `{tensor}` is not a LoRA weight; expected `base_model.model.<module>.lora_A.weight` or `.lora_B.weight`", path = path.display())]
    UnknownTensor {
        /// The adapter file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// An adapter file without a single tensor.
    #[error("{path}: no tensors; expected at least one low-rank pair `base_model.model.<module>.lora_A.weight`, `.lora_B.weight`", path = path.display())]
    NoWeights {
        /// The adapter file.
        path: PathBuf,
    },
    /// One half of a low-rank pair is absent.
    #[error("{path}: tensor `{tensor}` is missing", path = path.display())]
    MissingTensor {
        /// The adapter file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has the wrong element type.
    #[error("{path}: tensor `{tensor}` has type {found}; expected F32, F16 or BF16", path = path.display())]
    Dtype {
        /// The adapter file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type found.
        found: String,
    },
    /// A tensor has the wrong shape.
    #[error("{origin}: tensor `{tensor}` has shape {found:?}; expected {expected:?}")]
    Shape {
        /// The file, or the adapter's name.
        origin: String,
        /// The tensor.
        tensor: String,
        /// The shape the model needs.
        expected: Vec<usize>,
        /// The shape found.
        found: Vec<usize>,
    },
    /// An adapter names a module that the model does not have.
    #[error(
        "{origin}: module `{module}` is not a linear layer of this model (nearest: `{nearest}`)"
    )]
    UnknownModule {
        /// The file, or the adapter's name.
        origin: String,
        /// The module of the adapter.
        module: String,
        /// The most similar module of the model.
        nearest: String,
    },
    /// No layer of the model matches the target modules.
    #[error(
        "no linear layer of the model matches the target modules {targets}; its layers end in: {available}"
    )]
    NoTarget {
        /// The configured targets.
        targets: String,
        /// The last name segments that the model has.
        available: String,
    },
    /// A configuration value is out of range.
    #[error("`{key}` is {found}; expected {expected}")]
    InvalidConfig {
        /// The key.
        key: &'static str,
        /// What is accepted.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// A weight is not finite.
    #[error("{origin}: tensor `{tensor}` holds a value that is not finite")]
    NotFinite {
        /// The file, or the adapter's name.
        origin: String,
        /// The tensor.
        tensor: String,
    },
    /// A low-rank pair that nothing can be computed with.
    #[error("`{field}` of a low-rank pair is {found}; expected {expected}")]
    InvalidWeights {
        /// The field of [`LoraWeights`](crate::LoraWeights).
        field: &'static str,
        /// What is accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// An adapter holds such a pair.
    #[error("{origin}: module `{module}`: {source}")]
    Module {
        /// The folder, or the adapter's name.
        origin: String,
        /// The module of the adapter.
        module: String,
        /// What is wrong with its pair.
        source: Box<LoraError>,
    },
}
