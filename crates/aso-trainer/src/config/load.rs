//! From text to a checked [`RunConfig`], and back.

use std::fmt;
use std::path::{Path, PathBuf};

use aso_lora::TargetModules;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use toml::de::{DeArray, DeTable, DeValue};
use toml::{Table, Value};

use super::schema::{self, Schema};
use super::{ConfigError, HUB, Origin, RunConfig};

/// The keys that hold a path, as section and name.
const PATH_KEYS: [(&str, &str); 2] = [("model", "path"), ("data", "path")];

/// Pairs of keys of which only one may be set. One that is laid over a file's values removes the other from them.
const ALTERNATIVES: [(&str, &str, &str); 2] =
    [("stream", "order", "tasks"), ("train", "epochs", "steps")];

impl RunConfig {
    /// Reads and checks a configuration file, then applies the `--set KEY=VALUE` arguments in
    /// `set`.
    ///
    /// `KEY` is dotted (`train.lr`); `VALUE` is TOML, or a bare word that is taken as a string.
    /// Setting one of `train.epochs` and `train.steps`, or of `stream.order` and `stream.tasks`,
    /// replaces the other. Relative paths in the file are relative to its folder, those in `set` to
    /// the current directory; the result holds absolute paths, and `hub:` before the id of a model on the
    /// Hub.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and line, or the argument, and the key.
    pub fn load(path: &Path, set: &[String]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path, set)
    }

    /// [`RunConfig::load`] for text already read; `path` is used for messages and as the place that
    /// relative paths start from.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn parse(text: &str, path: &Path, set: &[String]) -> Result<Self, ConfigError> {
        let overlays: Vec<Overlay> = set
            .iter()
            .map(|argument| Overlay::argument(argument))
            .collect::<Result<_, _>>()?;
        Self::layered(text, path, &overlays)
    }

    /// The configuration of a file with other values laid over it, the last ones on top.
    pub(crate) fn layered(
        text: &str,
        path: &Path,
        overlays: &[Overlay],
    ) -> Result<Self, ConfigError> {
        let file = Source { path, text };
        // The file alone first, while its spans are at hand.
        file.read::<Self>()?;

        let mut table = text.parse::<Table>().map_err(|error| file.syntax(&error))?;
        absolute_paths(&mut table, path.parent().unwrap_or(Path::new("")));
        for overlay in overlays {
            let mut values = overlay.values.clone();
            absolute_paths(&mut values, &overlay.folder);
            drop_alternatives(&mut table, &values);
            merge(&mut table, values);
        }
        let origin = |key: &str, span| {
            // The last one wins, so it is the one to blame.
            let place = overlays.iter().rev().find_map(|overlay| overlay.place(key));
            place.cloned().unwrap_or_else(|| file.origin(key, span))
        };
        let config = deserialize::<Self, _>(Value::Table(table), origin)?;
        match super::validate::check(&config) {
            Ok(()) => Ok(config),
            Err(violation) => {
                let origin = origin(&violation.key, None);
                Err(violation.at(origin))
            }
        }
    }

    /// Checks a configuration built in code.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the key, what is accepted and what was found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        super::validate::check(self).map_err(|violation| violation.at(Origin::Code))
    }

    /// The configuration as TOML with every default written out; unset keys are absent. Parsing it
    /// gives `self` again.
    ///
    /// # Errors
    /// [`ConfigError::Write`] when a value has no TOML form (a path that is not UTF-8, a seed above
    /// `i64::MAX`).
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        Ok(toml::to_string_pretty(self)?)
    }
}

/// Reads `lora.target_modules` without losing the place of an error, which an untagged enum would.
pub(super) fn target_modules<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<TargetModules>, D::Error> {
    struct Names;

    impl<'de> Visitor<'de> for Names {
        type Value = TargetModules;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of names, or \"{}\"", TargetModules::ALL_LINEAR)
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<TargetModules, E> {
            if value == TargetModules::ALL_LINEAR {
                Ok(TargetModules::Pattern(value.to_owned()))
            } else {
                Err(E::invalid_value(de::Unexpected::Str(value), &self))
            }
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<TargetModules, A::Error> {
            let mut names = Vec::new();
            while let Some(name) = list.next_element()? {
                names.push(name);
            }
            Ok(TargetModules::Names(names))
        }
    }

    deserializer.deserialize_any(Names).map(Some)
}

/// Deserialises with the path of a wrong value and of unknown keys; `origin` finds the place of a
/// key.
fn deserialize<'de, T, D>(
    deserializer: D,
    origin: impl Fn(&str, Option<usize>) -> Origin,
) -> Result<T, ConfigError>
where
    T: Deserialize<'de> + Schema,
    D: Deserializer<'de, Error = toml::de::Error>,
{
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(deserializer, &mut track);
    let mut ignored = |path: serde_ignored::Path<'_>| unknown.push(path.to_string());
    let result = T::deserialize(serde_ignored::Deserializer::new(tracked, &mut ignored));
    let value = result.map_err(|error| {
        let key = track.path().to_string();
        let start = error.span().map(|span| span.start);
        let message = error.message().to_owned();
        ConfigError::Type {
            origin: origin(&key, start),
            key,
            message,
        }
    })?;
    match unknown.into_iter().next() {
        None => Ok(value),
        Some(key) => {
            let section = key.rsplit_once('.').map_or("", |(section, _)| section);
            Err(ConfigError::UnknownKey {
                origin: origin(&key, None),
                suggestion: schema::nearest(T::KEYS, &key),
                known: schema::names_in(T::KEYS, section),
                key,
            })
        }
    }
}

/// A TOML file's text, for finding places in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    /// The file, for messages.
    pub(crate) path: &'a Path,
    /// Its content.
    pub(crate) text: &'a str,
}

impl<'a> Source<'a> {
    /// The whole file as a `T`, with the place of what is wrong or unknown.
    pub(crate) fn read<T: Deserialize<'a> + Schema>(self) -> Result<T, ConfigError> {
        let document = toml::Deserializer::parse(self.text).map_err(|error| self.syntax(&error))?;
        deserialize(document, |key, offset| self.origin(key, offset))
    }

    fn at(self, offset: Option<usize>) -> Origin {
        let line = offset
            .and_then(|offset| self.text.as_bytes().get(..offset))
            .map(|before| 1 + before.iter().filter(|&&byte| byte == b'\n').count());
        Origin::File {
            path: self.path.to_owned(),
            line,
        }
    }

    fn syntax(self, error: &toml::de::Error) -> ConfigError {
        let origin = self.at(error.span().map(|span| span.start));
        ConfigError::Syntax {
            origin,
            message: error.message().to_owned(),
        }
    }

    /// The place of a dotted key; `offset` is used where the parser gave one. Elements of a list are
    /// numbers, as in `methods.0.label` or `methods[0].label`.
    pub(crate) fn origin(self, key: &str, offset: Option<usize>) -> Origin {
        let key = key.replace('[', ".").replace(']', "");
        let parts: Vec<&str> = key.split('.').collect();
        self.at(offset.or_else(|| self.find(&parts)))
    }

    /// The place of a key given as its parts, which may hold dots.
    pub(crate) fn origin_of(self, parts: &[&str]) -> Origin {
        self.at(self.find(parts))
    }

    /// The offset of the deepest part of a key that the file holds.
    fn find(self, parts: &[&str]) -> Option<usize> {
        enum Inside<'t, 'i> {
            Table(&'t DeTable<'i>),
            List(&'t DeArray<'i>),
        }
        let document = DeTable::parse(self.text).ok()?;
        let mut inside = Inside::Table(document.get_ref());
        let mut offset = None;
        for part in parts {
            let found = match inside {
                Inside::Table(table) => table
                    .iter()
                    .find(|(key, _)| key.get_ref() == part)
                    .map(|(key, value)| (key.span().start, value)),
                Inside::List(list) => part
                    .parse()
                    .ok()
                    .and_then(|index: usize| list.get(index))
                    .map(|value| (value.span().start, value)),
            };
            let Some((start, value)) = found else {
                break;
            };
            offset = Some(start);
            inside = match value.get_ref() {
                DeValue::Table(table) => Inside::Table(table),
                DeValue::Array(list) => Inside::List(list),
                _ => break,
            };
        }
        offset
    }
}

/// Values to lay over those of a configuration file.
#[derive(Debug, Clone)]
pub(crate) struct Overlay {
    values: Table,
    /// Where relative paths among the values start from.
    folder: PathBuf,
    /// The key of each value, and where it stands.
    places: Vec<(Vec<String>, Origin)>,
}

impl Overlay {
    /// A `--set KEY=VALUE` argument.
    pub(crate) fn argument(argument: &str) -> Result<Self, ConfigError> {
        let wrong = |message: String| ConfigError::Set {
            argument: argument.to_owned(),
            message,
        };
        let (key, value) = argument
            .split_once('=')
            .ok_or_else(|| wrong("expected KEY=VALUE, e.g. train.lr=1e-4".into()))?;
        let key = dotted(key)
            .ok_or_else(|| wrong(format!("`{key}` is not a dotted key such as train.lr")))?;
        let value = value.trim();
        let value = match value.parse::<Value>() {
            Ok(value) => value,
            // A bare word; something that begins as a TOML list, table or string was meant to be
            // one.
            Err(error) if value.starts_with(['[', '{', '"', '\'']) => {
                return Err(wrong(format!(
                    "the value is not valid TOML: {}",
                    error.message()
                )));
            }
            Err(_) => Value::String(value.to_owned()),
        };
        let origin = Origin::Set {
            argument: argument.to_owned(),
        };
        let mut overlay = Self::new(Path::new(""));
        overlay.push(key, value, origin);
        Ok(overlay)
    }

    /// No values; relative paths among those to come start from `folder`.
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            values: Table::new(),
            folder: folder.to_owned(),
            places: Vec::new(),
        }
    }

    /// Adds a value.
    pub(crate) fn push(&mut self, key: Vec<String>, value: Value, origin: Origin) {
        let Some((first, rest)) = key.split_first() else {
            return;
        };
        let nested = rest.iter().rev().fold(value, |value, name| {
            Value::Table(Table::from_iter([(name.clone(), value)]))
        });
        merge(
            &mut self.values,
            Table::from_iter([(first.clone(), nested)]),
        );
        self.places.push((key, origin));
    }

    /// The keys of the values.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &[String]> {
        self.places.iter().map(|(key, _)| key.as_slice())
    }

    /// The value of a key.
    pub(crate) fn get(&self, section: &str, name: &str) -> Option<&Value> {
        self.values.get(section)?.get(name)
    }

    /// Where the value at `key`, something below it or something above it was set.
    pub(crate) fn place(&self, key: &str) -> Option<&Origin> {
        let touches = |set: &[String]| {
            key.split('.').zip(set).all(|(part, set)| {
                // An element of a list belongs to the list.
                part.split('[').next() == Some(set.as_str())
            })
        };
        let mut places = self.places.iter().rev();
        places.find_map(|(set, origin)| touches(set).then_some(origin))
    }
}

/// The parts of a dotted key, by TOML's own rules for dotted and quoted keys.
pub(crate) fn dotted(key: &str) -> Option<Vec<String>> {
    single_path(&format!("{key} = 0").parse::<Table>().ok()?)
}

/// The values of a table and of all tables in it, by dotted key. Names are quoted where TOML wants it; those of the outermost
/// table may be dotted already, as in sweep files.
pub fn dotted_keys(table: &Table) -> Table {
    fn walk(prefix: &str, table: &Table, flat: &mut Table) {
        for (name, value) in table {
            let key = match prefix {
                "" => dotted(name).map_or_else(|| name.clone(), |parts| spelled(&parts)),
                prefix => format!("{prefix}.{}", spelled(std::slice::from_ref(name))),
            };
            match value {
                Value::Table(below) => walk(&key, below, flat),
                value => {
                    flat.insert(key, value.clone());
                }
            }
        }
    }
    let mut flat = Table::new();
    walk("", table, &mut flat);
    flat
}

/// The key of these parts, with quotes where TOML wants them only, so that a key has one spelling.
fn spelled(parts: &[String]) -> String {
    let part = |name: &String| match is_bare(name) {
        true => name.clone(),
        false => Value::String(name.clone()).to_string(),
    };
    parts.iter().map(part).collect::<Vec<_>>().join(".")
}

/// Whether TOML takes the name without quotes.
fn is_bare(name: &str) -> bool {
    let bare = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    !name.is_empty() && name.chars().all(bare)
}

/// The path to the only leaf of a table.
fn single_path(table: &Table) -> Option<Vec<String>> {
    let mut entries = table.iter();
    let (name, value) = entries.next()?;
    if entries.next().is_some() {
        return None;
    }
    let mut path = vec![name.clone()];
    if let Value::Table(below) = value {
        path.extend(single_path(below)?);
    }
    Some(path)
}

/// Makes the paths in `table` absolute, starting from `base`, and writes `hub:` before the ids of models on
/// the Hub, so that no folder below the current directory is taken for one of them later.
fn absolute_paths(table: &mut Table, base: &Path) {
    for (section, name) in PATH_KEYS {
        let value = table
            .get_mut(section)
            .and_then(|section| section.get_mut(name));
        if let Some(Value::String(path)) = value
            && is_file(path)
        {
            if section == "model" && super::is_hub_id(base, path) {
                path.insert_str(0, HUB);
            } else if let Ok(absolute) = std::path::absolute(base.join(&*path)) {
                *path = absolute.to_string_lossy().into_owned();
            }
        }
    }
}

/// Whether the value of a path key is no name of a built-in model or of one that is known to be on the Hub.
fn is_file(path: &str) -> bool {
    !path.is_empty() && !path.starts_with("embedded:") && !path.starts_with(HUB)
}

/// Whether a dotted key holds a relative path, which starts from `base`.
pub(crate) fn is_relative_path(key: &str, value: &str, base: &Path) -> bool {
    let mut keys = PATH_KEYS.iter();
    keys.any(|(section, name)| key.split_once('.') == Some((section, name)))
        && is_file(value)
        && Path::new(value).is_relative()
        && !(key.starts_with("model.") && super::is_hub_id(base, value))
}

/// [`ALTERNATIVES`] in both directions: section, key, and the key of which it takes the place.
fn alternatives() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let both = |(section, one, other)| [(section, one, other), (section, other, one)];
    ALTERNATIVES.into_iter().flat_map(both)
}

/// The dotted key that may not be set beside this one.
pub(crate) fn alternative(key: &str) -> Option<String> {
    let (section, name) = key.split_once('.')?;
    let (_, _, other) = alternatives().find(|(of, set, _)| (*of, *set) == (section, name))?;
    Some(format!("{section}.{other}"))
}

/// Removes from `table` the alternative of each key that `overlay` sets.
fn drop_alternatives(table: &mut Table, overlay: &Table) {
    for (section, set, replaced) in alternatives() {
        let chosen = overlay
            .get(section)
            .is_some_and(|section| section.get(set).is_some());
        if chosen && let Some(Value::Table(section)) = table.get_mut(section) {
            section.remove(replaced);
        }
    }
}

/// Writes the values of `overlay` into `table`; tables are merged.
fn merge(table: &mut Table, overlay: Table) {
    for (name, value) in overlay {
        match (table.get_mut(&name), value) {
            (Some(Value::Table(below)), Value::Table(overlay)) => merge(below, overlay),
            (_, value) => {
                table.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{
        AttributionPreset, DataFormat, EvalTasks, MethodName, ModelSource, PenaltyKind,
        TaskOverride, TrainLength,
    };

    fn parse(text: &str, set: &[&str]) -> Result<RunConfig, ConfigError> {
        let set: Vec<String> = set.iter().map(|&argument| argument.into()).collect();
        RunConfig::parse(text, Path::new("/configs/run.toml"), &set)
    }

    fn message(text: &str, set: &[&str]) -> String {
        parse(text, set).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse("", &[]).unwrap(), RunConfig::default());
    }

    #[test]
    fn every_section_is_read() {
        let config = parse(
            r#"
            seed = 7
            [model]
            path = "../t5"
            [lora]
            rank = 4
            alpha = 16
            target_modules = "all-linear"
            [data]
            format = "cl-benchmark"
            path = "/data"
            [stream]
            tasks = ["SST-2", "amazon"]
            overrides.SST-2.lr = 5e-4
            [method]
            name = "o-lora"
            penalty = "mean-abs-cosine"
            [attribution]
            preset = "reference"
            [train]
            steps = 12
            [eval]
            tasks = "seen+next"
            "#,
            &[],
        )
        .unwrap();
        assert_eq!(config.seed, 7);
        assert_eq!(config.model.path, "/configs/../t5");
        assert_eq!(config.lora.alpha, 16.0);
        assert_eq!(
            config.lora.target_modules,
            Some(TargetModules::Pattern("all-linear".into()))
        );
        assert_eq!(config.data.format, DataFormat::ClBenchmark);
        assert_eq!(config.data.path.as_deref(), Some(Path::new("/data")));
        assert_eq!(config.tasks().unwrap(), ["SST-2", "amazon"]);
        assert_eq!(config.task_settings("SST-2").lr, 5e-4);
        assert_eq!(config.method.name, MethodName::OLora);
        assert_eq!(config.method.penalty, PenaltyKind::MeanAbsCosine);
        assert_eq!(config.attribution.preset, AttributionPreset::Reference);
        assert_eq!(config.train.length(), TrainLength::Steps(12));
        assert_eq!(config.eval.tasks, EvalTasks::SeenNext);
    }

    #[test]
    fn unknown_keys_name_place_and_suggestion() {
        assert_eq!(
            message("seed = 1\n[train]\nlrate = 1e-4\n", &[]),
            "/configs/run.toml:3: unknown key `train.lrate`; did you mean `train.lr`?"
        );
        assert_eq!(
            message("seed = 1\n\n[trian]\nlr = 1e-4\n", &[]),
            "/configs/run.toml:3: unknown key `trian`; did you mean `train`?"
        );
        assert_eq!(
            message("[stream.overrides.a]\nepoch = 2\n", &[]),
            "/configs/run.toml:2: unknown key `stream.overrides.a.epoch`; \
             did you mean `stream.overrides.a.epochs`?"
        );
        // Not what a section of another kind calls so.
        let found = message("[stream.overrides.a]\nsteps = 2\n", &[]);
        assert!(
            found.contains("known keys there: ") && found.contains("epochs"),
            "{found}"
        );
        assert_eq!(
            message("[model]\nxyzzy = 2\n", &[]),
            "/configs/run.toml:2: unknown key `model.xyzzy`; known keys there: path, revision, dtype, chat_template, dropout"
        );
        assert_eq!(
            message("", &["train.lrate=1e-4"]),
            "--set train.lrate=1e-4: unknown key `train.lrate`; did you mean `train.lr`?"
        );
    }

    #[test]
    fn type_errors_name_place_and_key() {
        let text = "[train]\nbatch_size = 8\nlr = \"fast\"\n";
        let found = message(text, &[]);
        assert!(
            found.starts_with("/configs/run.toml:3: `train.lr`: invalid type: string"),
            "{found}"
        );
        let found = message("[method]\nname = \"aso\"\n", &[]);
        assert!(
            found.starts_with("/configs/run.toml:2: `method.name"),
            "{found}"
        );
        assert!(
            found.contains("unknown variant `aso`") && found.contains("`aso-lora`"),
            "{found}"
        );
        let found = message("[lora]\nrank = -1\n", &[]);
        assert!(
            found.starts_with("/configs/run.toml:2: `lora.rank`"),
            "{found}"
        );
        let found = message("[lora]\ntarget_modules = \"q\"\n", &[]);
        assert!(
            found.contains(":2: `lora.target_modules`") && found.contains("all-linear"),
            "{found}"
        );
        let found = message("[lora]\ntarget_modules = [\"q\", 3]\n", &[]);
        assert!(found.contains(":2: `lora.target_modules"), "{found}");
        let found = message("model = 3\n", &[]);
        assert!(found.starts_with("/configs/run.toml:1: `model`"), "{found}");
        let found = message("", &["train.lr=fast"]);
        assert!(
            found.starts_with("--set train.lr=fast: `train.lr`: invalid type"),
            "{found}"
        );
        let found = message("[train]\nlr = = 3", &[]);
        assert!(
            found.starts_with("/configs/run.toml:2: not valid TOML"),
            "{found}"
        );
        // The file is reported before a `--set` that hides its error.
        let found = message(text, &["train.lr=0.1"]);
        assert!(found.starts_with("/configs/run.toml:3"), "{found}");
    }

    #[test]
    fn senseless_values_name_key_expected_and_found() {
        assert_eq!(
            message("[train]\n\nlr = 2.0\n", &[]),
            "/configs/run.toml:3: `train.lr`: expected a learning rate with 0 < lr <= 1, found 2.0"
        );
        assert_eq!(
            message("[train]\nbatch_size = 8", &["train.micro_batch=3"]),
            "--set train.micro_batch=3: `train.micro_batch`: \
             expected a divisor of train.batch_size = 8, found 3"
        );
        assert_eq!(
            message(
                "[stream]\ntasks = [\"a\"]\n[stream.overrides.b]\nlr = 0.1\n",
                &[]
            ),
            "/configs/run.toml:3: `stream.overrides.b`: \
             expected a task of the stream (a), found \"b\""
        );
        for (text, key) in [
            ("seed = -1", "seed"),
            ("[model]\npath = \"\"", "model.path"),
            ("[model]\npath = \"embedded:large\"", "model.path"),
            ("[model]\npath = \"hub:t5-small\"", "model.path"),
            ("[model]\ndropout = 1.0", "model.dropout"),
            ("[lora]\nrank = 0", "lora.rank"),
            ("[lora]\nalpha = 0", "lora.alpha"),
            ("[lora]\ndropout = nan", "lora.dropout"),
            ("[lora]\nfreeze_a = true", "lora.freeze_a"),
            ("[lora]\ntarget_modules = []", "lora.target_modules"),
            ("[data]\npath = \"x\"", "data.path"),
            ("[data]\nformat = \"jsonl\"", "data.path"),
            ("[data]\nmax_eval = 0", "data.max_eval"),
            ("[stream]\norder = \"order99\"", "stream.order"),
            (
                "[stream]\norder = \"order1\"\ntasks = [\"a\"]",
                "stream.order",
            ),
            ("[stream]\ntasks = []", "stream.tasks"),
            ("[stream]\ntasks = [\"a\", \"A\"]", "stream.tasks"),
            ("[stream]\ntasks = [\"\"]", "stream.tasks"),
            ("[data]\nformat = \"jsonl\"\npath = \"x\"", "stream"),
            (
                "stream.tasks = [\"a\"]\nstream.overrides.a.lr = 0",
                "stream.overrides.a.lr",
            ),
            (
                "stream.tasks = [\"a\"]\nstream.overrides.a.epochs = 0",
                "stream.overrides.a.epochs",
            ),
            (
                "stream.tasks = [\"a\"]\nstream.overrides.a.lambda1 = -1",
                "stream.overrides.a.lambda1",
            ),
            ("[method]\nlambda1 = -0.5", "method.lambda1"),
            ("[method]\nlambda2 = inf", "method.lambda2"),
            ("[attribution]\nsteps = 0", "attribution.steps"),
            ("[attribution]\ninterval = 0", "attribution.interval"),
            ("[attribution]\nalpha_min = 1.0", "attribution.alpha_min"),
            (
                "[attribution]\npreset = \"reference\"\nper_task = true",
                "attribution.per_task",
            ),
            ("[attribution]\ncompare = \"alone\"", "attribution.compare"),
            (
                "[attribution]\nper_task = true\ncompare = \"reliance\"\nclamp = false",
                "attribution.clamp",
            ),
            (
                "[attribution]\nper_task = true\nper_block = true",
                "attribution.per_block",
            ),
            (
                "[attribution]\npreset = \"reference\"\nstack = \"decoder\"",
                "attribution.stack",
            ),
            (
                "[attribution]\nstack = \"encoder\"\nper_block = true",
                "attribution.stack",
            ),
            (
                "[attribution]\npreset = \"reference\"\ntarget = \"predicted\"",
                "attribution.target",
            ),
            (
                "[attribution]\nstack = \"encoder-readout\"\ntarget = \"predicted\"",
                "attribution.target",
            ),
            ("[train]\nepochs = 1\nsteps = 1", "train.epochs"),
            ("[train]\nsteps = 0", "train.steps"),
            ("[train]\nbatch_size = 0", "train.batch_size"),
            ("[train]\nmicro_batch = 0", "train.micro_batch"),
            ("[train]\nbeta2 = 1.0", "train.beta2"),
            ("[train]\neps = 0.0", "train.eps"),
            ("[eval]\nmax_new_tokens = 0", "eval.max_new_tokens"),
            (
                "[eval]\nmode = \"score\"\nchoose_last = true",
                "eval.choose_last",
            ),
        ] {
            let found = message(text, &[]);
            assert!(found.contains(&format!("`{key}`: ")), "{text}: {found}");
            assert!(
                found.contains("expected") || key == "seed",
                "{text}: {found}"
            );
        }
    }

    #[test]
    fn set_merges_after_the_file() {
        let text = "[train]\nepochs = 3\nlr = 0.1\n[stream]\norder = \"order1\"\n";
        let set = [
            "train.lr=1e-4",
            "train.steps=20",
            "method.name=inc-lora",
            "stream.tasks=[\"SST-2\", \"b\"]",
            "stream.overrides.SST-2.lr=0.2",
            "seed = 5",
            "lora={rank=2}",
            "seed=6",
        ];
        let config = parse(text, &set).unwrap();
        assert_eq!(config.train.lr, 1e-4);
        assert_eq!(config.train.length(), TrainLength::Steps(20));
        assert_eq!(config.method.name, MethodName::IncLora);
        assert_eq!(config.tasks().unwrap(), ["SST-2", "b"]);
        assert_eq!(config.task_settings("SST-2").lr, 0.2);
        assert_eq!((config.seed, config.lora.rank), (6, 2));
        assert!(
            message(
                "",
                &[
                    "train.steps=2",
                    "train.epochs=2",
                    "train={steps=2,epochs=1}"
                ]
            )
            .contains("only one")
        );
    }

    #[test]
    fn malformed_set_arguments() {
        for argument in [
            "train.lr",
            "=1",
            "train..lr=1",
            "a b=1",
            "a\n[b]\nc=1",
            "stream.tasks=[a]",
        ] {
            let error = parse("", &[argument]).unwrap_err();
            let wrong =
                matches!(&error, ConfigError::Set { argument: found, .. } if found == argument);
            assert!(wrong, "{argument}: {error}");
        }
    }

    #[test]
    fn paths_start_at_the_file_or_at_the_current_directory() {
        let here = std::env::current_dir().unwrap();
        let config = parse("[model]\npath = \"m\"\n", &[]).unwrap();
        assert_eq!(config.model.path, "/configs/m");
        let config = parse("[model]\npath = \"m\"\n", &["model.path=n"]).unwrap();
        assert_eq!(Path::new(&config.model.path), here.join("n"));
        let config = parse(
            "",
            &["data.format=jsonl", "data.path=d", "stream.tasks=['a']"],
        )
        .unwrap();
        assert_eq!(config.data.path, Some(here.join("d")));
    }

    /// The folder `src/config` is below the current directory of tests, and not below `/configs`.
    #[test]
    fn a_folder_elsewhere_does_not_hide_a_model_on_the_hub() {
        for path in ["src/config", "hub:src/config"] {
            let config = parse(&format!("[model]\npath = \"{path}\"\n"), &[]).unwrap();
            assert_eq!(config.model.path, "hub:src/config");
            assert_eq!(config.model.source(), ModelSource::Hub("src/config"));
            assert_eq!(parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
        }
        let config = parse("", &["model.path=src/config"]).unwrap();
        assert!(Path::new(&config.model.path).is_absolute());
        let config = parse("[model]\npath = \"./src/config\"\n", &[]).unwrap();
        assert!(matches!(config.model.source(), ModelSource::Folder(_)));
    }

    #[test]
    fn tables_become_dotted_keys() {
        let table: Table = r#"
            "train.lr" = 0.1
            [stream.overrides."a.b"]
            lr = 0.2
            [model]
            path = "t5"
        "#
        .parse()
        .unwrap();
        let flat = dotted_keys(&table);
        let keys: Vec<&String> = flat.keys().collect();
        let expected = ["model.path", "stream.overrides.\"a.b\".lr", "train.lr"];
        assert_eq!(keys, expected);
        assert_eq!(flat["model.path"].as_str(), Some("t5"));
    }

    #[test]
    fn missing_files_are_named() {
        let error = RunConfig::load(Path::new("/no/such.toml"), &[]).unwrap_err();
        assert!(error.to_string().starts_with("/no/such.toml: "), "{error}");
    }

    #[test]
    fn an_unusual_config_survives_toml() {
        let mut config = RunConfig {
            seed: i64::MAX as u64,
            ..RunConfig::default()
        };
        config.model.dropout = Some(0.0);
        config.data.format = DataFormat::Jsonl;
        config.data.path = Some("/a \"quoted\" folder".into());
        config.stream.tasks = Some(vec!["SST-2".into(), "a.b".into()]);
        let own = TaskOverride {
            lambda1: Some(5.0),
            ..TaskOverride::default()
        };
        config.stream.overrides.insert("a.b".into(), own);
        config.lora.target_modules = Some(TargetModules::Pattern("all-linear".into()));
        config.eval.tasks = EvalTasks::SeenNext;
        assert_eq!(parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_config_survives_toml(
            seed in 0..=i64::MAX as u64,
            lr in 1e-9..1.0_f64,
            eps in 1e-12..1e-3_f64,
            lambda1 in 0.0..100.0_f64,
            accumulation in 1_usize..5,
            micro_batch in 1_usize..40,
            steps in prop::option::of(1_usize..1000),
            max_train in prop::option::of(1_usize..1000),
            length_grouping: bool,
        ) {
            let mut config = RunConfig { seed, ..RunConfig::default() };
            config.train.lr = lr;
            config.train.eps = eps;
            config.train.batch_size = accumulation * micro_batch;
            config.train.micro_batch = Some(micro_batch);
            config.train.steps = steps;
            config.train.length_grouping = length_grouping;
            config.method.lambda1 = lambda1;
            config.data.max_train = max_train;
            prop_assert_eq!(parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}", argument in "\\PC{0,20}(=\\PC{0,20})?") {
            let _ = parse(&text, &[]);
            let _ = parse("", &[&argument]);
        }
    }
}
