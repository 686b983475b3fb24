//! Adapter directories as Hugging Face PEFT writes and reads them.
//!
//! A directory holds `adapter_config.json`, `adapter_model.safetensors` and, when this project wrote
//! it, the sidecar [`SIDECAR_FILE`] that says which task it belongs to. PEFT ignores the sidecar.
//! Tensor names are `base_model.model.<module>.lora_A.weight` `[r, d_in]` and `.lora_B.weight`
//! `[d_out, r]`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, View};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::floats::decode_floats;
use crate::{LoraConfig, LoraError, TargetModules};

/// PEFT's configuration file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// PEFT's weight file.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// This project's sidecar.
pub const SIDECAR_FILE: &str = "aso_subspace.json";
/// Layout version of the sidecar.
pub const SIDECAR_FORMAT: u32 = 1;

const PREFIX: &str = "base_model.model.";

/// Values of one low-rank pair on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraWeights {
    /// `A`, row-major `[rank, d_in]`.
    pub a: Vec<f32>,
    /// `B`, row-major `[d_out, rank]`.
    pub b: Vec<f32>,
    /// Rank r.
    pub rank: usize,
    /// Input features.
    pub d_in: usize,
    /// Output features.
    pub d_out: usize,
    /// Factor of `B A`.
    pub scaling: f64,
}

impl LoraWeights {
    /// Whether the fields belong together. Says nothing about single weights.
    ///
    /// # Errors
    /// [`LoraError::InvalidWeights`] if `A` or `B` has another length than its shape says, if the rank is 0 or if the scaling is
    /// not finite.
    pub fn check(&self) -> Result<(), LoraError> {
        let invalid = |field, expected: &dyn fmt::Display, found: &dyn fmt::Display| {
            Err(LoraError::InvalidWeights {
                field,
                expected: expected.to_string(),
                found: found.to_string(),
            })
        };
        if self.rank == 0 {
            return invalid("rank", &"at least 1", &self.rank);
        }
        if !self.scaling.is_finite() {
            return invalid("scaling", &"a finite number", &self.scaling);
        }
        for (field, values, [rows, columns]) in [
            ("a", &self.a, [self.rank, self.d_in]),
            ("b", &self.b, [self.d_out, self.rank]),
        ] {
            if rows.checked_mul(columns) != Some(values.len()) {
                let expected = format_args!("{rows} x {columns} values");
                return invalid(field, &expected, &format_args!("{} values", values.len()));
            }
        }
        Ok(())
    }
}

/// How the adapters of a run relate to one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterKind {
    /// One member of a sum: the model after task t is the base plus the subspaces of tasks 1..t.
    Subspace,
    /// The whole adaptation after a task: a later snapshot replaces an earlier one.
    Snapshot,
}

/// What this project adds to a PEFT directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sidecar {
    /// [`SIDECAR_FORMAT`].
    pub format: u32,
    /// Name of the task.
    pub task: String,
    /// 0-based position of the task in its stream.
    pub order: usize,
    /// Whether adapters add up or replace one another.
    pub kind: AdapterKind,
    /// Fingerprint of the base model's weights, `sha256:<hex>`.
    pub base_model_fingerprint: String,
}

/// Values by name pattern: a regular expression that must match the end of a module's name from a dot on. Of several that match,
/// the first one in the file counts, as in PEFT.
#[derive(Debug, Clone, PartialEq)]
pub struct Patterns<T>(pub Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Serialize> Serialize for Patterns<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(pattern, value)| (pattern, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Patterns<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a value for each pattern")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Patterns<T>, A::Error> {
                let mut patterns = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    patterns.push(entry);
                }
                Ok(Patterns(patterns))
            }
        }

        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

/// The part of `adapter_config.json` that decides the mathematics.
///
/// Unknown keys are ignored, as PEFT does, except those that would change the result
/// ([`LoraError::Unsupported`]). It is written with PEFT's long-standing keys only, sorted, and whole alphas without a point.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct PeftConfig {
    /// Alpha per module.
    pub alpha_pattern: Patterns<f64>,
    /// Id or path of the base model.
    pub base_model_name_or_path: Option<String>,
    /// `"none"` is supported.
    pub bias: String,
    /// Weight layout of GPT-2's Conv1D; false.
    pub fan_in_fan_out: bool,
    /// PEFT freezes adapters loaded with `true`.
    pub inference_mode: bool,
    /// How PEFT initialised A and B. Irrelevant once they are stored, except where it also changed the base weights: those are
    /// refused.
    pub init_lora_weights: serde_json::Value,
    /// Alpha.
    pub lora_alpha: f64,
    /// Dropout on the adapter's input.
    pub lora_dropout: f64,
    /// Modules saved whole; must be absent.
    pub modules_to_save: Option<serde_json::Value>,
    /// Always `"LORA"`.
    pub peft_type: String,
    /// Rank.
    pub r: usize,
    /// Rank per module.
    pub rank_pattern: Patterns<usize>,
    /// Revision of the base model.
    pub revision: Option<String>,
    /// Adapted modules.
    pub target_modules: Option<TargetModules>,
    /// `"SEQ_2_SEQ_LM"` for T5, `"CAUSAL_LM"` for LLaMA.
    pub task_type: Option<String>,
    /// Weight-decomposed LoRA; false.
    pub use_dora: bool,
    /// Scaling alpha / sqrt(r) instead of alpha / r.
    pub use_rslora: bool,
}

impl Default for PeftConfig {
    fn default() -> Self {
        Self {
            alpha_pattern: Patterns::default(),
            base_model_name_or_path: None,
            bias: "none".into(),
            fan_in_fan_out: false,
            inference_mode: true,
            init_lora_weights: true.into(),
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            modules_to_save: None,
            peft_type: "LORA".into(),
            r: 8,
            rank_pattern: Patterns::default(),
            revision: None,
            target_modules: None,
            task_type: None,
            use_dora: false,
            use_rslora: false,
        }
    }
}

impl PeftConfig {
    /// The configuration of a subspace made by this crate.
    pub fn new(config: &LoraConfig, task_type: &str, base_model: Option<String>) -> Self {
        Self {
            base_model_name_or_path: base_model,
            lora_alpha: config.alpha,
            lora_dropout: config.dropout,
            r: config.rank,
            target_modules: Some(config.target_modules.clone()),
            task_type: Some(task_type.to_owned()),
            ..Self::default()
        }
    }

    /// The same with one entry in `rank_pattern` and `alpha_pattern` for every module whose rank or scaling is another than
    /// that of `r` and `lora_alpha`, in place of those that are there.
    #[must_use]
    pub fn with_patterns(mut self, weights: &BTreeMap<String, LoraWeights>) -> Self {
        (self.rank_pattern, self.alpha_pattern) = Default::default();
        for (module, weights) in weights {
            // From its start, or the name would also stand for longer ones that end with it.
            let pattern = || format!("^{}", regex::escape(module));
            let divisor = self.divisor(weights.rank);
            if weights.rank != self.r {
                self.rank_pattern.0.push((pattern(), weights.rank));
            }
            if weights.scaling != self.lora_alpha / divisor {
                let alpha = weights.scaling * divisor;
                self.alpha_pattern.0.push((pattern(), alpha));
            }
        }
        self
    }

    /// What alpha is divided by.
    fn divisor(&self, rank: usize) -> f64 {
        let rank = rank as f64;
        if self.use_rslora { rank.sqrt() } else { rank }
    }
}

impl Serialize for PeftConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// The file: keys sorted, those that this crate does not use null.
        #[derive(Serialize)]
        struct File<'a> {
            alpha_pattern: &'a Patterns<f64>,
            auto_mapping: (),
            base_model_name_or_path: &'a Option<String>,
            bias: &'a str,
            fan_in_fan_out: bool,
            inference_mode: bool,
            init_lora_weights: &'a serde_json::Value,
            layers_pattern: (),
            layers_to_transform: (),
            lora_alpha: Alpha,
            lora_dropout: f64,
            modules_to_save: &'a Option<serde_json::Value>,
            peft_type: &'a str,
            r: usize,
            rank_pattern: &'a Patterns<usize>,
            revision: &'a Option<String>,
            target_modules: &'a Option<TargetModules>,
            task_type: &'a Option<String>,
            use_dora: bool,
            use_rslora: bool,
        }

        #[derive(Serialize)]
        #[serde(untagged)]
        enum Alpha {
            Whole(i64),
            Broken(f64),
        }

        /// Whole numbers up to this one are exact in both forms.
        const EXACT: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;

        let alpha = self.lora_alpha;
        let file = File {
            alpha_pattern: &self.alpha_pattern,
            auto_mapping: (),
            base_model_name_or_path: &self.base_model_name_or_path,
            bias: &self.bias,
            fan_in_fan_out: self.fan_in_fan_out,
            inference_mode: self.inference_mode,
            init_lora_weights: &self.init_lora_weights,
            layers_pattern: (),
            layers_to_transform: (),
            lora_alpha: match alpha.fract() == 0.0 && alpha.abs() <= EXACT {
                true => Alpha::Whole(alpha as i64),
                false => Alpha::Broken(alpha),
            },
            lora_dropout: self.lora_dropout,
            modules_to_save: &self.modules_to_save,
            peft_type: &self.peft_type,
            r: self.r,
            rank_pattern: &self.rank_pattern,
            revision: &self.revision,
            target_modules: &self.target_modules,
            task_type: &self.task_type,
            use_dora: self.use_dora,
            use_rslora: self.use_rslora,
        };
        file.serialize(serializer)
    }
}

/// Rank and scaling of single modules, with every pattern compiled once.
struct ModuleSettings<'a> {
    config: &'a PeftConfig,
    ranks: Vec<(regex::Regex, usize)>,
    alphas: Vec<(regex::Regex, f64)>,
}

impl<'a> ModuleSettings<'a> {
    /// `path` is for messages.
    fn new(path: &Path, config: &'a PeftConfig) -> Result<Self, LoraError> {
        Ok(Self {
            config,
            ranks: compiled(path, "rank_pattern", &config.rank_pattern)?,
            alphas: compiled(path, "alpha_pattern", &config.alpha_pattern)?,
        })
    }

    /// Rank of a module: the first `rank_pattern` entry that matches its end, else `r`.
    fn rank_of(&self, module: &str) -> usize {
        first_match(&self.ranks, module).unwrap_or(self.config.r)
    }

    /// Scaling of a module with rank `rank`.
    fn scaling_of(&self, module: &str, rank: usize) -> f64 {
        let alpha = first_match(&self.alphas, module).unwrap_or(self.config.lora_alpha);
        alpha / self.config.divisor(rank)
    }
}

fn compiled<T: Copy>(
    path: &Path,
    key: &'static str,
    patterns: &Patterns<T>,
) -> Result<Vec<(regex::Regex, T)>, LoraError> {
    let compile = |(pattern, value): &(String, T)| {
        let regex = regex::Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
        let regex = regex.map_err(|source| LoraError::Pattern {
            path: path.to_owned(),
            key,
            pattern: pattern.clone(),
            source: Box::new(source),
        })?;
        Ok((regex, *value))
    };
    patterns.0.iter().map(compile).collect()
}

fn first_match<T: Copy>(patterns: &[(regex::Regex, T)], module: &str) -> Option<T> {
    let mut patterns = patterns.iter();
    patterns.find_map(|(pattern, value)| pattern.is_match(module).then_some(*value))
}

/// One adapter: configuration, weights by module name, and what is known about its task.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// Where it came from, for messages.
    pub origin: String,
    /// PEFT's configuration.
    pub config: PeftConfig,
    /// Low-rank pairs by module name (no `base_model.model.` prefix).
    pub weights: BTreeMap<String, LoraWeights>,
    /// The sidecar, absent for adapters that PEFT wrote.
    pub sidecar: Option<Sidecar>,
}

impl Adapter {
    /// Reads an adapter directory. A missing sidecar is reported as a warning through `tracing`.
    ///
    /// # Errors
    /// Names the file, the key or tensor, what was expected and what was found.
    pub fn load(dir: &Path) -> Result<Self, LoraError> {
        let config_path = dir.join(CONFIG_FILE);
        // Twice from the same text: a value does not keep the order of patterns.
        let text = std::fs::read(&config_path).map_err(io(&config_path))?;
        refuse_unsupported(&config_path, &parse_json(&config_path, &text)?)?;
        let config: PeftConfig = parse_json(&config_path, &text)?;
        let settings = ModuleSettings::new(&config_path, &config)?;

        let sidecar_path = dir.join(SIDECAR_FILE);
        let sidecar = if sidecar_path.exists() {
            Some(read_sidecar(&sidecar_path)?)
        } else {
            tracing::warn!(
                adapter = %dir.display(),
                "no {SIDECAR_FILE}: taken as one subspace of a sum; its base model cannot be checked"
            );
            None
        };

        let weights_path = dir.join(WEIGHTS_FILE);
        let bytes = std::fs::read(&weights_path).map_err(io(&weights_path))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|source| LoraError::Safetensors {
            path: weights_path.clone(),
            source,
        })?;
        let adapter = Self {
            origin: dir.display().to_string(),
            weights: read_weights(&weights_path, &settings, &file)?,
            config,
            sidecar,
        };
        adapter.check()?;
        Ok(adapter)
    }

    /// Writes the adapter into the folder `dir` (created if need be), so that PEFT's
    /// `from_pretrained` reads it. Bytes are a function of the adapter alone. Each file appears
    /// whole or not at all; the caller decides where a folder becomes visible.
    ///
    /// # Errors
    /// [`LoraError::Module`] for a pair that fails [`LoraWeights::check`] and [`LoraError::NotFinite`], before anything is written;
    /// [`LoraError::Io`]; [`LoraError::Safetensors`] and [`LoraError::Json`] for values that those formats cannot hold.
    pub fn save(&self, dir: &Path) -> Result<(), LoraError> {
        self.check()?;
        let mut tensors = Vec::with_capacity(2 * self.weights.len());
        for (module, weights) in &self.weights {
            let halves = [
                ("lora_A", &weights.a, [weights.rank, weights.d_in]),
                ("lora_B", &weights.b, [weights.d_out, weights.rank]),
            ];
            for (half, values, shape) in halves {
                let name = format!("{PREFIX}{module}.{half}.weight");
                check_finite(&self.origin, &name, values)?;
                tensors.push((name, FloatView { values, shape }));
            }
        }
        std::fs::create_dir_all(dir).map_err(io(dir))?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let path = dir.join(WEIGHTS_FILE);
        let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(|source| {
            LoraError::Safetensors {
                path: path.clone(),
                source,
            }
        })?;
        write_file(&path, &bytes)?;
        write_json(&dir.join(CONFIG_FILE), &self.config)?;
        let path = dir.join(SIDECAR_FILE);
        match &self.sidecar {
            // By way of a value, whose keys are sorted.
            Some(sidecar) => write_json(&path, &serde_json::json!(sidecar)),
            // That of an adapter that was there before says nothing about this one.
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(io(&path)(error)),
                _ => Ok(()),
            },
        }
    }

    /// [`LoraWeights::check`] of every module.
    pub(crate) fn check(&self) -> Result<(), LoraError> {
        self.weights.iter().try_for_each(|(module, weights)| {
            weights.check().map_err(|source| LoraError::Module {
                origin: self.origin.clone(),
                module: module.clone(),
                source: Box::new(source),
            })
        })
    }
}

fn check_finite(origin: &dyn fmt::Display, tensor: &str, values: &[f32]) -> Result<(), LoraError> {
    if values.iter().all(|value| value.is_finite()) {
        Ok(())
    } else {
        Err(LoraError::NotFinite {
            origin: origin.to_string(),
            tensor: tensor.to_owned(),
        })
    }
}

/// Keys that change the mathematics when they are set: (key, the only accepted value in words).
const REFUSED_KEYS: &[(&str, &str)] = &[
    ("use_dora", "false"),
    ("lora_bias", "false"),
    ("fan_in_fan_out", "false"),
    ("modules_to_save", "null"),
    ("layer_replication", "null"),
    ("trainable_token_indices", "null"),
    ("target_parameters", "null"),
    ("use_qalora", "false"),
    ("use_bdlora", "null"),
    ("alora_invocation_tokens", "null"),
    ("arrow_config", "null"),
    ("velora_config", "null"),
    ("monteclora_config", "null"),
    ("kasa_config", "null"),
    ("corda_config", "null"),
    ("lora_ga_config", "null"),
    ("loftq_config", "{}"),
];

/// Initialisations after which the base weights are what they were.
const KEPT_BASE: [&str; 3] = ["gaussian", "eva", "orthogonal"];

fn refuse_unsupported(path: &Path, raw: &serde_json::Value) -> Result<(), LoraError> {
    let unsupported = |key: &str, expected: &str, found: &serde_json::Value| {
        Err(LoraError::Unsupported {
            path: path.to_owned(),
            key: key.to_owned(),
            expected: expected.to_owned(),
            found: found.to_string(),
        })
    };
    let get = |key: &str| raw.get(key).unwrap_or(&serde_json::Value::Null);
    if get("peft_type").as_str() != Some("LORA") {
        return unsupported("peft_type", "\"LORA\"", get("peft_type"));
    }
    if !matches!(get("bias").as_str(), None | Some("none")) {
        return unsupported("bias", "\"none\"", get("bias"));
    }
    let start = get("init_lora_weights");
    if start
        .as_str()
        .is_some_and(|name| !KEPT_BASE.contains(&name))
    {
        let expected = "true, false, \"gaussian\", \"eva\" or \"orthogonal\", \
                        since others change the base weights, too";
        return unsupported("init_lora_weights", expected, start);
    }
    for (key, expected) in REFUSED_KEYS {
        let value = get(key);
        let truthy = match value {
            serde_json::Value::Null => false,
            serde_json::Value::Bool(flag) => *flag,
            serde_json::Value::Array(items) => !items.is_empty(),
            serde_json::Value::Object(entries) => !entries.is_empty(),
            _ => true,
        };
        if truthy {
            return unsupported(key, expected, value);
        }
    }
    Ok(())
}

fn read_weights(
    path: &Path,
    settings: &ModuleSettings<'_>,
    file: &SafeTensors<'_>,
) -> Result<BTreeMap<String, LoraWeights>, LoraError> {
    let mut modules = Vec::new();
    for name in file.names() {
        let inner = name.strip_prefix(PREFIX);
        let module = inner.and_then(|inner| {
            inner
                .strip_suffix(".lora_A.weight")
                .or_else(|| inner.strip_suffix(".lora_B.weight"))
        });
        match module {
            Some(module) => modules.push(module.to_owned()),
            None => {
                return Err(LoraError::UnknownTensor {
                    path: path.to_owned(),
                    tensor: name.to_owned(),
                });
            }
        }
    }
    modules.sort_unstable();
    modules.dedup();
    if modules.is_empty() {
        return Err(LoraError::NoWeights {
            path: path.to_owned(),
        });
    }

    let mut weights = BTreeMap::new();
    for module in modules {
        let rank = settings.rank_of(&module);
        let half = |half: &str, rank_axis: usize| {
            let tensor = format!("{PREFIX}{module}.{half}.weight");
            let view = file.tensor(&tensor).map_err(|_| LoraError::MissingTensor {
                path: path.to_owned(),
                tensor: tensor.clone(),
            })?;
            let shape = view.shape().to_vec();
            if shape.len() != 2 || shape[rank_axis] != rank {
                let other = shape.get(1 - rank_axis).copied().unwrap_or_default();
                let expected = if rank_axis == 0 {
                    vec![rank, other]
                } else {
                    vec![other, rank]
                };
                let origin = path.display().to_string();
                return Err(LoraError::Shape {
                    origin,
                    tensor,
                    expected,
                    found: shape,
                });
            }
            let values =
                decode_floats(view.dtype(), view.data()).ok_or_else(|| LoraError::Dtype {
                    path: path.to_owned(),
                    tensor: tensor.clone(),
                    found: format!("{:?}", view.dtype()),
                })?;
            check_finite(&path.display(), &tensor, &values)?;
            Ok::<_, LoraError>((values, shape[1 - rank_axis]))
        };
        let (a, d_in) = half("lora_A", 0)?;
        let (b, d_out) = half("lora_B", 1)?;
        let scaling = settings.scaling_of(&module, rank);
        weights.insert(
            module,
            LoraWeights {
                a,
                b,
                rank,
                d_in,
                d_out,
                scaling,
            },
        );
    }
    Ok(weights)
}

struct FloatView<'a> {
    values: &'a [f32],
    shape: [usize; 2],
}

impl View for FloatView<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect::<Vec<_>>()
            .into()
    }

    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> LoraError {
    let path: PathBuf = path.to_owned();
    move |source| LoraError::Io { path, source }
}

fn read_sidecar(path: &Path) -> Result<Sidecar, LoraError> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }

    let text = std::fs::read(path).map_err(io(path))?;
    // First: another layout need not have the keys of this one.
    let Version { format: found } = parse_json(path, &text)?;
    if found != SIDECAR_FORMAT {
        return Err(LoraError::SidecarFormat {
            path: path.to_owned(),
            expected: SIDECAR_FORMAT,
            found,
        });
    }
    parse_json(path, &text)
}

fn parse_json<T: serde::de::DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, LoraError> {
    let json = |source| LoraError::Json {
        path: path.to_owned(),
        source,
    };
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let key = error.path().to_string();
        let source = error.into_inner();
        match source.is_data() && key != "." {
            true => LoraError::JsonValue {
                path: path.to_owned(),
                key,
                source,
            },
            false => json(source),
        }
    })?;
    deserializer.end().map_err(json)?;
    Ok(value)
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), LoraError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|source| LoraError::Json {
        path: path.to_owned(),
        source,
    })?;
    text.push(b'\n');
    write_file(path, &text)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), LoraError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    // `create_new` gives the usual permissions, where a temporary file would be private.
    let mut file = tempfile::Builder::new()
        .make_in(dir, |path| File::create_new(path))
        .map_err(io(dir))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(io(path))?;
    file.persist(path).map_err(|error| LoraError::Io {
        path: path.to_owned(),
        source: error.error,
    })?;
    Ok(())
}
