//! What the types of a configuration cannot say: ranges, and keys that depend on each other.

use std::collections::HashSet;
use std::fmt::Debug;
use std::ops::RangeBounds;

use aso_data::synthetic::{DemoConfig, demo_specs};
use aso_hub::ModelId;
use aso_lora::TargetModules;

use crate::embedded::{EmbeddedModel, MODELS};
use crate::method::Structure;
use crate::trainer::JOINT;

use super::{
    AttributionPreset, ConfigError, DataFormat, EvalMode, MethodName, ModelSettings, ModelSource,
    Origin, RunConfig, TapStack, TargetKind, TaskComparisonKind,
};

/// A value that makes no sense.
#[derive(Debug)]
pub(super) struct Violation {
    pub(super) key: String,
    expected: String,
    found: String,
}

impl Violation {
    fn new(key: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            expected: expected.into(),
            found: found.into(),
        }
    }

    pub(super) fn at(self, origin: Origin) -> ConfigError {
        ConfigError::Invalid {
            origin,
            key: self.key,
            expected: self.expected,
            found: self.found,
        }
    }
}

/// Checks every section.
pub(super) fn check(config: &RunConfig) -> Result<(), Violation> {
    // TOML integers are signed.
    within(
        "seed",
        config.seed,
        0..=i64::MAX as u64,
        "an integer from 0 to 2^63 - 1",
    )?;
    model(config)?;
    lora(config)?;
    data(config)?;
    stream(config)?;
    method(config)?;
    attribution(config)?;
    train(config)?;
    if config.eval.choose_last && config.eval.mode == EvalMode::Score {
        let expected = "false with mode = \"score\", which always chooses";
        return Err(Violation::new("eval.choose_last", expected, "true"));
    }
    positive("eval.batch_size", config.eval.batch_size)?;
    positive("eval.max_new_tokens", config.eval.max_new_tokens)
}

/// The tasks in order, from `stream.tasks` or `stream.order`.
pub(super) fn tasks(config: &RunConfig) -> Result<Vec<String>, Violation> {
    let tasks = match (&config.stream.order, &config.stream.tasks) {
        (Some(order), None) => preset(order)?,
        (None, Some(tasks)) => tasks.clone(),
        (None, None) if config.data.format == DataFormat::Embedded => embedded_tasks(),
        (None, None) => {
            return Err(Violation::new("stream", "`order` or `tasks`", "neither"));
        }
        (Some(order), Some(_)) => {
            let found = format!("order \"{order}\" beside `tasks`");
            return Err(Violation::new(
                "stream.order",
                "only one of `order` and `tasks`",
                found,
            ));
        }
    };
    if tasks.is_empty() {
        return Err(Violation::new(
            "stream.tasks",
            "at least one task",
            "an empty list",
        ));
    }
    let mut seen = HashSet::new();
    for task in &tasks {
        if task.trim().is_empty() {
            return Err(Violation::new(
                "stream.tasks",
                "the names of tasks",
                "an empty name",
            ));
        }
        // Tasks are found whatever their case.
        if !seen.insert(task.to_lowercase()) {
            let found = format!("\"{task}\" twice");
            return Err(Violation::new("stream.tasks", "each task once", found));
        }
    }
    Ok(tasks)
}

/// The tasks of the built-in suite in its own order.
pub(super) fn embedded_tasks() -> Vec<String> {
    let specs = demo_specs(&DemoConfig::default());
    specs.into_iter().map(|task| task.name).collect()
}

fn preset(order: &str) -> Result<Vec<String>, Violation> {
    match aso_data::OrderPreset::find(order) {
        Ok(preset) => Ok(preset.tasks.iter().map(|&task| task.to_owned()).collect()),
        Err(_) => {
            let known: Vec<_> = aso_data::order_presets()
                .iter()
                .map(|preset| preset.name)
                .collect();
            let expected = format!("one of {}", known.join(", "));
            Err(Violation::new(
                "stream.order",
                expected,
                format!("\"{order}\""),
            ))
        }
    }
}

/// The built-in model that a path names.
pub(super) fn embedded(model: &ModelSettings) -> Result<&'static EmbeddedModel, Violation> {
    let found = match model.source() {
        ModelSource::Embedded(name) => EmbeddedModel::find(name),
        ModelSource::Folder(_) | ModelSource::Hub(_) => None,
    };
    found.ok_or_else(|| {
        let names = MODELS
            .iter()
            .map(|model| format!("\"embedded:{}\"", model.name));
        let expected = format!(
            "a folder, organisation/name on the Hub or one of {}",
            names.collect::<Vec<_>>().join(", ")
        );
        Violation::new("model.path", expected, format!("\"{}\"", model.path))
    })
}

fn model(config: &RunConfig) -> Result<(), Violation> {
    let model = &config.model;
    match model.source() {
        ModelSource::Folder(folder) if !folder.as_os_str().is_empty() => {}
        ModelSource::Hub(id) if id.parse::<ModelId>().is_ok() => {}
        ModelSource::Embedded(_) | ModelSource::Folder(_) | ModelSource::Hub(_) => {
            embedded(model)?;
        }
    }
    match model.dropout {
        Some(dropout) => within("model.dropout", dropout, 0.0..1.0, PROBABILITY),
        None => Ok(()),
    }
}

fn lora(config: &RunConfig) -> Result<(), Violation> {
    let lora = &config.lora;
    positive("lora.rank", lora.rank)?;
    within(
        "lora.alpha",
        lora.alpha,
        f64::MIN_POSITIVE..f64::INFINITY,
        "a number above 0",
    )?;
    within("lora.dropout", lora.dropout, 0.0..1.0, PROBABILITY)?;
    let method = config.method.name;
    if lora.freeze_a && matches!(method, MethodName::AsoLora | MethodName::OLora) {
        let expected = format!("false with method \"{method}\", whose penalty acts on A");
        return Err(Violation::new("lora.freeze_a", expected, "true"));
    }
    match &lora.target_modules {
        Some(TargetModules::Names(names)) if names.is_empty() => Err(Violation::new(
            "lora.target_modules",
            "at least one name",
            "an empty list",
        )),
        Some(TargetModules::Names(names)) if names.iter().any(String::is_empty) => Err(
            Violation::new("lora.target_modules", "names of layers", "an empty name"),
        ),
        Some(TargetModules::Pattern(pattern)) if pattern != TargetModules::ALL_LINEAR => {
            let expected = format!("a list of names, or \"{}\"", TargetModules::ALL_LINEAR);
            Err(Violation::new(
                "lora.target_modules",
                expected,
                format!("\"{pattern}\""),
            ))
        }
        _ => Ok(()),
    }
}

fn data(config: &RunConfig) -> Result<(), Violation> {
    let data = &config.data;
    match (data.format, &data.path) {
        (DataFormat::Embedded, Some(path)) => {
            let expected = "no path with format \"embedded\" (set data.format to read a folder)";
            return Err(Violation::new(
                "data.path",
                expected,
                format!("\"{}\"", path.display()),
            ));
        }
        (format, None) if format != DataFormat::Embedded => {
            return Err(Violation::new(
                "data.path",
                "the folder of the data",
                "nothing",
            ));
        }
        (format, Some(path)) if format != DataFormat::Embedded && path.as_os_str().is_empty() => {
            return Err(Violation::new(
                "data.path",
                "the folder of the data",
                "\"\"",
            ));
        }
        _ => {}
    }
    for (key, limit) in [
        ("data.max_train", data.max_train),
        ("data.max_eval", data.max_eval),
    ] {
        if let Some(limit) = limit {
            positive(key, limit)?;
        }
    }
    positive("data.max_source", data.max_source)?;
    positive("data.max_target", data.max_target)
}

fn stream(config: &RunConfig) -> Result<(), Violation> {
    let tasks = tasks(config)?;
    for task in config.eval.general_tasks.iter().flatten() {
        if tasks.iter().any(|known| known.eq_ignore_ascii_case(task)) {
            let found = format!("\"{task}\", which is learned");
            let expected = "tasks that are not in the stream";
            return Err(Violation::new("eval.general_tasks", expected, found));
        }
    }
    for (task, own) in &config.stream.overrides {
        let section = format!("stream.overrides.{task}");
        let joint = config.method.name.structure() == Structure::Joint && task == JOINT;
        if !joint && !tasks.contains(task) {
            let expected = format!("a task of the stream ({})", tasks.join(", "));
            return Err(Violation::new(section, expected, format!("\"{task}\"")));
        }
        let key = |name: &str| format!("{section}.{name}");
        if let Some(lr) = own.lr {
            learning_rate(key("lr"), lr)?;
        }
        if let Some(epochs) = own.epochs {
            positive(key("epochs"), epochs)?;
        }
        for (name, lambda) in [("lambda1", own.lambda1), ("lambda2", own.lambda2)] {
            if let Some(lambda) = lambda {
                not_negative(key(name), lambda)?;
            }
        }
    }
    Ok(())
}

fn method(config: &RunConfig) -> Result<(), Violation> {
    let method = &config.method;
    not_negative("method.lambda1", method.lambda1)?;
    not_negative("method.lambda2", method.lambda2)?;
    not_negative("method.sparsity", method.sparsity)?;
    not_negative("method.importance", method.importance)?;
    not_negative("method.distillation", method.distillation)?;
    let share = "a number with 0 <= x <= 1";
    within(
        "method.importance_decay",
        method.importance_decay,
        0.0..=1.0,
        share,
    )?;
    if let Some(ratio) = method.memory_ratio {
        within("method.memory_ratio", ratio, 0.0..=1.0, share)?;
    }
    positive("method.probe_examples", method.probe_examples)?;
    within(
        "method.memory_threshold",
        method.memory_threshold,
        0.0..=1.0,
        share,
    )?;
    let above = f64::MIN_POSITIVE..f64::INFINITY;
    within(
        "method.temperature",
        method.temperature,
        above,
        "a number above 0",
    )
}

fn attribution(config: &RunConfig) -> Result<(), Violation> {
    let attribution = &config.attribution;
    positive("attribution.steps", attribution.steps)?;
    if let Some(interval) = attribution.interval {
        positive("attribution.interval", interval)?;
    }
    positive("attribution.examples", attribution.examples)?;
    within(
        "attribution.alpha_min",
        attribution.alpha_min,
        0.0..1.0,
        "a number with 0 <= x < 1",
    )?;
    if attribution.preset == AttributionPreset::Reference {
        let options = [
            (
                "stack",
                attribution.tapped_stack() != TapStack::EncoderReadout,
                format!("\"{}\"", attribution.tapped_stack().as_str()),
            ),
            (
                "alpha_min",
                attribution.alpha_min != 0.0,
                attribution.alpha_min.to_string(),
            ),
            ("per_task", attribution.per_task, "true".to_owned()),
            ("per_block", attribution.per_block, "true".to_owned()),
        ];
        for (name, used, found) in options {
            if used {
                let expected = "the default, the only value that preset \"reference\" knows";
                return Err(Violation::new(
                    format!("attribution.{name}"),
                    expected,
                    found,
                ));
            }
        }
    }
    if attribution.target == TargetKind::Predicted
        && !attribution.per_block
        && attribution.tapped_stack() == TapStack::EncoderReadout
    {
        return Err(Violation::new(
            "attribution.target",
            "\"gold\", the default, beside stack = \"encoder-readout\" (preset \"reference\"), which reads a token of the prompt",
            "\"predicted\"".to_owned(),
        ));
    }
    if attribution.compare != TaskComparisonKind::Without && !attribution.per_task {
        return Err(Violation::new(
            "attribution.compare",
            "\"without\", the default, unless per_task = true",
            "another one beside per_task = false",
        ));
    }
    if attribution.compare == TaskComparisonKind::Reliance && !attribution.clamps() {
        return Err(Violation::new(
            "attribution.clamp",
            "true beside compare = \"reliance\", whose weight is rho: a negative one would reward overlap",
            "false".to_owned(),
        ));
    }
    if attribution.per_block && attribution.per_task {
        return Err(Violation::new(
            "attribution.per_block",
            "one of per_task and per_block: a weight belongs to a task or to a block",
            "both",
        ));
    }
    if attribution.per_block && attribution.stack.is_some() {
        let expected = "no stack beside per_block = true, which taps both";
        let found = attribution.tapped_stack().as_str();
        return Err(Violation::new(
            "attribution.stack",
            expected,
            format!("\"{found}\""),
        ));
    }
    Ok(())
}

fn train(config: &RunConfig) -> Result<(), Violation> {
    let train = &config.train;
    learning_rate("train.lr", train.lr)?;
    if let (Some(epochs), Some(_)) = (train.epochs, train.steps) {
        let found = format!("epochs = {epochs} beside `steps`");
        return Err(Violation::new(
            "train.epochs",
            "only one of `epochs` and `steps`",
            found,
        ));
    }
    for (key, length) in [("train.epochs", train.epochs), ("train.steps", train.steps)] {
        if let Some(length) = length {
            positive(key, length)?;
        }
    }
    positive("train.select_every", train.select_every)?;
    positive("train.select_examples", train.select_examples)?;
    positive("train.batch_size", train.batch_size)?;
    let micro_batch = train.micro_batch();
    positive("train.micro_batch", micro_batch)?;
    if !train.batch_size.is_multiple_of(micro_batch) {
        let expected = format!("a divisor of train.batch_size = {}", train.batch_size);
        return Err(Violation::new(
            "train.micro_batch",
            expected,
            micro_batch.to_string(),
        ));
    }
    not_negative("train.max_grad_norm", train.max_grad_norm)?;
    not_negative("train.weight_decay", train.weight_decay)?;
    // The optimizer computes in f32, where 1 - 1e-9 is 1 and 1e-50 is 0: corrections would divide by zero.
    let below_one = 0.0..=f64::from(1.0_f32.next_down());
    let decay = "a number with 0 <= x < 1, in single precision";
    within("train.beta1", train.beta1, below_one.clone(), decay)?;
    within("train.beta2", train.beta2, below_one, decay)?;
    within(
        "train.eps",
        train.eps,
        f64::from(f32::MIN_POSITIVE)..f64::INFINITY,
        "a number above 0, in single precision (1.2e-38 or more)",
    )?;
    positive("train.log_every", train.log_every)
}

const PROBABILITY: &str = "a probability with 0 <= p < 1";

fn positive(key: impl Into<String>, value: usize) -> Result<(), Violation> {
    within(key, value, 1.., "an integer of at least 1")
}

fn not_negative(key: impl Into<String>, value: f64) -> Result<(), Violation> {
    within(key, value, 0.0..f64::INFINITY, "a number of at least 0")
}

/// Burn's schedulers refuse rates outside (0, 1].
fn learning_rate(key: impl Into<String>, value: f64) -> Result<(), Violation> {
    within(
        key,
        value,
        f64::MIN_POSITIVE..=1.0,
        "a learning rate with 0 < lr <= 1",
    )
}

/// NaN is in no range.
fn within<T: PartialOrd + Debug>(
    key: impl Into<String>,
    value: T,
    range: impl RangeBounds<T>,
    expected: &str,
) -> Result<(), Violation> {
    if range.contains(&value) {
        Ok(())
    } else {
        Err(Violation::new(key, expected, format!("{value:?}")))
    }
}
