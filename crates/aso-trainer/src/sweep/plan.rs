//! From a sweep file to its runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aso_backbones::AutoConfig;
use aso_data::{OrderPreset, task_files_order};
use toml::{Table, Value};

use super::file::{MethodSpec, OrderSpec, SweepFile};
use super::{CHOSEN_FILE, LOG_FOLDER, SWEEP_FILE, SweepError, TUNE_FILE};
use crate::TrainerError;
use crate::config::load::{Overlay, Source, alternative, dotted};
use crate::config::{ConfigError, ModelSource, Origin, RunConfig, Select};
use crate::files::LOCK_FILE;
use crate::load::open_library;
use crate::run::{self, RunStatus};
use crate::task::{check_dev, check_distinct, check_task};

/// The name of the order where the file gives none.
const BASE_ORDER: &str = "stream";

/// Names that the folder of a sweep, or of a tuning, needs for itself.
const RESERVED: [&str; 5] = [LOG_FOLDER, SWEEP_FILE, TUNE_FILE, CHOSEN_FILE, LOCK_FILE];

/// A sweep file, read and checked.
#[derive(Debug, Clone)]
pub struct Sweep {
    path: PathBuf,
    text: String,
    file: SweepFile,
    /// Text and path of the base configuration.
    base: (String, PathBuf),
    /// The tasks of each order; empty where the file gives none.
    orders: BTreeMap<String, Vec<String>>,
    /// `[config]` and the arguments.
    config: Overlay,
    arguments: Vec<Overlay>,
}

/// One run of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedRun {
    /// The order's name.
    pub order: String,
    /// The method's label.
    pub label: String,
    /// The candidate of the method's grid, from 0, where settings are chosen.
    pub candidate: Option<usize>,
    /// The seed.
    pub seed: u64,
    /// The run directory, relative to that of the sweep, with `/` between its parts.
    pub directory: String,
    /// The whole configuration.
    pub config: RunConfig,
}

/// What belongs to a method and its candidates.
struct Variant<'a> {
    method: usize,
    spec: &'a MethodSpec,
    candidate: Option<usize>,
}

impl Sweep {
    /// Reads a sweep file. `set` holds `--set KEY=VALUE` arguments for every run.
    ///
    /// # Errors
    /// Names the file, the line and the key of what is wrong or unknown, or that of the base
    /// configuration.
    pub fn load(path: &Path, set: &[String]) -> Result<Self, SweepError> {
        let text = read(path)?;
        let source = Source { path, text: &text };
        let file: SweepFile = source.read()?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let base = match &file.base {
            Some(base) => {
                let base = folder.join(base);
                (read(&base)?, base)
            }
            None => (String::new(), path.to_owned()),
        };
        let arguments = set
            .iter()
            .map(|argument| Overlay::argument(argument))
            .collect::<Result<Vec<_>, _>>()?;
        let mut sweep = Self {
            path: path.to_owned(),
            file,
            base,
            orders: BTreeMap::new(),
            config: Overlay::new(folder),
            arguments,
            text: String::new(),
        };
        sweep.text.clone_from(&text);
        sweep.check_names()?;
        sweep.config = sweep.overlay(&sweep.file.config, &["config"])?;
        for argument in &sweep.arguments {
            sweep.refuse_reserved(argument)?;
        }
        Ok(sweep)
    }

    /// The file that was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content of the file.
    pub fn file(&self) -> &SweepFile {
        &self.file
    }

    /// The tasks of each order by its name; empty where runs have the stream of the base
    /// configuration.
    pub fn orders(&self) -> &BTreeMap<String, Vec<String>> {
        &self.orders
    }

    /// The runs, each with its whole configuration: orders by name, in them methods as in the file.
    ///
    /// # Errors
    /// [`SweepError::Run`] with the first configuration that makes no sense; a method that has a grid
    /// still to choose from.
    pub fn runs(&self) -> Result<Vec<PlannedRun>, SweepError> {
        for (at, method) in self.file.methods.iter().enumerate() {
            if !method.grid.is_empty() {
                return Err(self.invalid(
                    &["methods", &at.to_string(), "grid"],
                    "no grid: let `aso tune` choose, and sweep the file that it writes",
                    format!("{} configurations", method.grid.len()),
                ));
            }
        }
        let specs = self.specs();
        let variants = specs.iter().enumerate().map(|(method, spec)| Variant {
            method,
            spec,
            candidate: None,
        });
        self.expand(variants.collect(), false)
    }

    /// The runs that choose settings on dev: for each method with a grid, its candidates on the orders and
    /// seeds of `[tune]`.
    ///
    /// # Errors
    /// As [`runs`](Self::runs); also if a configuration asks for the test split, if something else sets a key of a grid,
    /// and where there is no grid.
    pub fn candidates(&self) -> Result<Vec<PlannedRun>, SweepError> {
        self.refuse_test()?;
        self.refuse_varied()?;
        let mut variants = Vec::new();
        for (method, spec) in self.file.methods.iter().enumerate() {
            variants.extend((0..spec.grid.len()).map(|candidate| Variant {
                method,
                spec,
                candidate: Some(candidate),
            }));
        }
        if variants.is_empty() {
            return Err(self.invalid(
                &["methods"],
                "a method with a `grid` to choose from",
                "none".to_owned(),
            ));
        }
        self.expand(variants, true)
    }

    /// The label of each method, in the order of the file.
    ///
    /// # Errors
    /// As [`runs`](Self::runs).
    pub fn labels(&self) -> Result<Vec<String>, SweepError> {
        let specs = self.specs();
        let mut labels = Vec::with_capacity(specs.len());
        for (method, spec) in specs.iter().enumerate() {
            let at = method.to_string();
            let label = match &spec.label {
                Some(label) => label.clone(),
                None => {
                    let mut overlays = vec![self.config.clone()];
                    overlays.push(self.overlay(&spec.set, &["methods", &at, "set"])?);
                    overlays.extend(self.arguments.iter().cloned());
                    let orders = spec.orders.iter().flatten().chain(self.orders.keys());
                    overlays.extend(orders.take(1).filter_map(|order| self.order(order)));
                    let config = RunConfig::layered(&self.base.0, &self.base.1, &overlays)?;
                    config.method.name.as_str().to_owned()
                }
            };
            if !is_folder_name(&label) {
                let expected = "letters, digits, `-`, `_` and `.`, for it names a folder";
                return Err(self.invalid(
                    &["methods", &at, "label"],
                    expected,
                    format!("\"{label}\""),
                ));
            }
            if labels.contains(&label) {
                return Err(self.invalid(
                    &["methods", &at, "label"],
                    "a label for each method, unlike the others",
                    format!("\"{label}\" twice"),
                ));
            }
            labels.push(label);
        }
        Ok(labels)
    }

    /// The methods, or the one of the base configuration.
    fn specs(&self) -> Vec<MethodSpec> {
        match self.file.methods.is_empty() {
            true => vec![MethodSpec::default()],
            false => self.file.methods.clone(),
        }
    }

    fn expand(
        &self,
        variants: Vec<Variant<'_>>,
        tune: bool,
    ) -> Result<Vec<PlannedRun>, SweepError> {
        let labels = self.labels()?;
        let names: Vec<&str> = match self.orders.is_empty() {
            true => vec![BASE_ORDER],
            false => self.orders.keys().map(String::as_str).collect(),
        };
        let tuning = self.overlay(&self.file.tune.set, &["tune", "set"])?;
        let mut runs = Vec::new();
        for order in names {
            for variant in &variants {
                let Variant {
                    method,
                    spec,
                    candidate,
                } = *variant;
                let chosen = (tune.then_some(self.file.tune.orders.as_ref()).flatten())
                    .or(spec.orders.as_ref());
                if chosen.is_some_and(|chosen| !chosen.iter().any(|name| name == order)) {
                    continue;
                }
                let at = method.to_string();
                let mut overlays = vec![self.config.clone()];
                overlays.push(self.overlay(&spec.set, &["methods", &at, "set"])?);
                if let Some(candidate) = candidate {
                    overlays.push(self.overlay(
                        &spec.grid[candidate],
                        &["methods", &at, "grid", &candidate.to_string()],
                    )?);
                }
                overlays.extend(self.arguments.iter().cloned());
                let folder = match candidate {
                    Some(candidate) => format!("{order}/{}/grid-{}", labels[method], candidate + 1),
                    None => format!("{order}/{}", labels[method]),
                };
                if tune {
                    overlays.push(tuning.clone());
                    overlays.push(self.dev());
                }
                let seeds = (tune.then_some(self.file.tune.seeds.as_ref()).flatten())
                    .or(spec.seeds.as_ref())
                    .unwrap_or(&self.file.seeds);
                for &seed in seeds {
                    let directory = format!("{folder}/seed-{seed}");
                    let mut overlays = overlays.clone();
                    overlays.extend(self.order(order));
                    overlays.push(self.seed(seed));
                    let config = RunConfig::layered(&self.base.0, &self.base.1, &overlays);
                    runs.push(PlannedRun {
                        order: order.to_owned(),
                        label: labels[method].clone(),
                        candidate,
                        seed,
                        config: config.map_err(|source| SweepError::Run {
                            run: directory.clone(),
                            source: Box::new(source),
                        })?,
                        directory,
                    });
                }
            }
        }
        if runs.is_empty() {
            return Err(self.invalid(
                &["methods"],
                "a method with an order and a seed",
                "no run at all".to_owned(),
            ));
        }
        Ok(runs)
    }

    /// The values of a table whose keys may be dotted; `at` is its place in the file.
    fn overlay(&self, table: &Table, at: &[&str]) -> Result<Overlay, SweepError> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let mut overlay = Overlay::new(folder);
        let mut place: Vec<String> = at.iter().map(|&part| part.to_owned()).collect();
        self.collect(table, &mut place, &[], &mut overlay)?;
        self.refuse_reserved(&overlay)?;
        Ok(overlay)
    }

    fn collect(
        &self,
        table: &Table,
        place: &mut Vec<String>,
        prefix: &[String],
        overlay: &mut Overlay,
    ) -> Result<(), SweepError> {
        for (name, value) in table {
            place.push(name.clone());
            // A quoted key may be dotted; below the first level a dot belongs to the name of a task.
            let parts = match prefix.is_empty() {
                true => dotted(name),
                false => Some(vec![name.clone()]),
            };
            let Some(parts) = parts else {
                let place: Vec<&str> = place.iter().map(String::as_str).collect();
                let expected = "a dotted key such as train.lr";
                return Err(self.invalid(&place, expected, format!("\"{name}\"")));
            };
            let key = [prefix, &parts].concat();
            match value {
                Value::Table(below) if !below.is_empty() => {
                    self.collect(below, place, &key, overlay)?;
                }
                value => {
                    let place: Vec<&str> = place.iter().map(String::as_str).collect();
                    overlay.push(key, value.clone(), self.source().origin_of(&place));
                }
            }
            place.pop();
        }
        Ok(())
    }

    /// Orders and seeds are the sweep's to set.
    fn refuse_reserved(&self, overlay: &Overlay) -> Result<(), SweepError> {
        for key in overlay.keys() {
            let key = key.join(".");
            let instead = match key.as_str() {
                "seed" => "`seeds`",
                "stream.order" | "stream.tasks" if !self.orders.is_empty() => "`[orders]`",
                _ => continue,
            };
            let origin = overlay.place(&key).cloned().unwrap_or(Origin::Code);
            return Err(ConfigError::Invalid {
                origin,
                key,
                expected: format!("this to be set by {instead}"),
                found: "a value".to_owned(),
            }
            .into());
        }
        Ok(())
    }

    /// Settings are never chosen on test.
    fn refuse_test(&self) -> Result<(), SweepError> {
        let expected = "\"dev\", the only split that settings are chosen on";
        let asks = |value: Option<&Value>| value.and_then(Value::as_str) == Some("test");
        let mut overlays = vec![self.config.clone()];
        for (at, spec) in self.file.methods.iter().enumerate() {
            let at = at.to_string();
            overlays.push(self.overlay(&spec.set, &["methods", &at, "set"])?);
        }
        overlays.extend(self.grids()?);
        overlays.push(self.overlay(&self.file.tune.set, &["tune", "set"])?);
        overlays.extend(self.arguments.iter().cloned());
        let key = "data.eval_split";
        let invalid = |origin| ConfigError::Invalid {
            origin,
            key: key.to_owned(),
            expected: expected.to_owned(),
            found: "\"test\"".to_owned(),
        };
        for overlay in &overlays {
            if asks(overlay.get("data", "eval_split")) {
                let origin = overlay.place(key).cloned().unwrap_or(Origin::Code);
                return Err(invalid(origin).into());
            }
        }
        let (text, path) = &self.base;
        let base = text.parse::<Table>().unwrap_or_default();
        let value = base.get("data").and_then(|data| data.get("eval_split"));
        match asks(value) {
            true => {
                let source = Source { path, text };
                Err(invalid(source.origin(key, None)).into())
            }
            false => Ok(()),
        }
    }

    /// What is set for all candidates over their grid would make them alike, and the choice a lie.
    fn refuse_varied(&self) -> Result<(), SweepError> {
        let tuning = self.overlay(&self.file.tune.set, &["tune", "set"])?;
        for grid in self.grids()? {
            for key in grid.keys().map(|key| key.join(".")) {
                let keys = [Some(key.clone()), alternative(&key)];
                let set = |overlay: &Overlay| {
                    let mut places = keys.iter().flatten().map(|key| overlay.place(key));
                    places.find_map(Option::<&Origin>::cloned)
                };
                let mut overlays = self.arguments.iter().chain([&tuning]);
                if let Some(origin) = overlays.find_map(set) {
                    return Err(ConfigError::Invalid {
                        origin,
                        key,
                        expected: "this to be left to the grid, which varies it".to_owned(),
                        found: "a value for all candidates".to_owned(),
                    }
                    .into());
                }
            }
        }
        Ok(())
    }

    /// The candidates of every method's grid.
    fn grids(&self) -> Result<Vec<Overlay>, SweepError> {
        let mut grids = Vec::new();
        for (at, spec) in self.file.methods.iter().enumerate() {
            for (candidate, grid) in spec.grid.iter().enumerate() {
                let place = ["methods", &at.to_string(), "grid", &candidate.to_string()];
                grids.push(self.overlay(grid, &place)?);
            }
        }
        Ok(grids)
    }

    fn order(&self, name: &str) -> Option<Overlay> {
        let tasks = self.orders.get(name)?;
        let tasks = tasks.iter().cloned().map(Value::String).collect();
        let mut overlay = Overlay::new(Path::new(""));
        let key = ["stream", "tasks"].map(str::to_owned).to_vec();
        let origin = self.source().origin_of(&["orders", name]);
        overlay.push(key, Value::Array(tasks), origin);
        Some(overlay)
    }

    fn seed(&self, seed: u64) -> Overlay {
        let mut overlay = Overlay::new(Path::new(""));
        // Read from TOML, so it is no larger.
        let value = Value::Integer(i64::try_from(seed).unwrap_or(i64::MAX));
        let origin = self.source().origin_of(&["seeds"]);
        overlay.push(vec!["seed".to_owned()], value, origin);
        overlay
    }

    fn dev(&self) -> Overlay {
        let mut overlay = Overlay::new(Path::new(""));
        let key = ["data", "eval_split"].map(str::to_owned).to_vec();
        overlay.push(key, Value::String("dev".to_owned()), Origin::Code);
        overlay
    }

    /// Names of orders, and lists of orders and seeds.
    fn check_names(&mut self) -> Result<(), SweepError> {
        let file = self.file.clone();
        for (name, order) in &file.orders {
            let place = ["orders", name.as_str()];
            // Some file systems do not tell `Logs` from `logs`.
            let reserved = RESERVED.iter().any(|own| own.eq_ignore_ascii_case(name));
            if reserved || !is_folder_name(name) {
                let expected = format!(
                    "a name of letters, digits, `-`, `_` and `.` (none of {}), for it names a folder",
                    RESERVED.join(", ")
                );
                return Err(self.invalid(&place, &expected, format!("\"{name}\"")));
            }
            let tasks = match order {
                OrderSpec::Tasks(tasks) => tasks.clone(),
                OrderSpec::Files { configs } => {
                    let folder = self.path.parent().unwrap_or(Path::new(""));
                    task_files_order(&folder.join(configs))?
                }
                OrderSpec::Preset(preset) => match OrderPreset::find(preset) {
                    Ok(preset) => preset.tasks.iter().map(|&task| task.to_owned()).collect(),
                    Err(_) => {
                        let known: Vec<_> = aso_data::order_presets()
                            .iter()
                            .map(|preset| preset.name)
                            .collect();
                        let expected = format!("a list of tasks, or one of {}", known.join(", "));
                        return Err(self.invalid(&place, &expected, format!("\"{preset}\"")));
                    }
                },
            };
            if let Some((twin, _)) = self.orders.iter().find(|(_, other)| **other == tasks) {
                let expected = format!(
                    "another sequence than that of order \"{twin}\", whose runs would be the same"
                );
                return Err(self.invalid(&place, &expected, tasks.join(", ")));
            }
            self.orders.insert(name.clone(), tasks);
        }
        let known: Vec<&str> = file.orders.keys().map(String::as_str).collect();
        let methods = file.methods.iter().enumerate().flat_map(|(at, method)| {
            let place = move |key: &str| vec!["methods".to_owned(), at.to_string(), key.to_owned()];
            [
                (place("seeds"), method.seeds.as_ref(), None),
                (place("orders"), None, method.orders.as_ref()),
            ]
        });
        let place = |key: &str| vec!["tune".to_owned(), key.to_owned()];
        let lists = methods.chain([
            (place("seeds"), file.tune.seeds.as_ref(), None),
            (place("orders"), None, file.tune.orders.as_ref()),
            (vec!["seeds".to_owned()], Some(&file.seeds), None),
        ]);
        for (place, seeds, orders) in lists {
            let place: Vec<&str> = place.iter().map(String::as_str).collect();
            if let Some(seeds) = seeds {
                check_list(seeds).map_err(|found| {
                    self.invalid(&place, "different seeds, at least one", found)
                })?;
            }
            if let Some(orders) = orders {
                check_list(orders).map_err(|found| {
                    self.invalid(&place, "different orders, at least one", found)
                })?;
                if let Some(order) = orders.iter().find(|order| !known.contains(&order.as_str())) {
                    let expected = match known.is_empty() {
                        true => "names from `[orders]`, which is empty".to_owned(),
                        false => format!("names from `[orders]` ({})", known.join(", ")),
                    };
                    return Err(self.invalid(&place, &expected, format!("\"{order}\"")));
                }
            }
        }
        Ok(())
    }

    fn source(&self) -> Source<'_> {
        Source {
            path: &self.path,
            text: &self.text,
        }
    }

    fn invalid(&self, place: &[&str], expected: &str, found: String) -> SweepError {
        SweepError::Config(ConfigError::Invalid {
            origin: self.source().origin_of(place),
            key: place.join("."),
            expected: expected.to_owned(),
            found,
        })
    }
}

impl PlannedRun {
    /// What is there in the sweep's directory `out`; nothing is written.
    ///
    /// # Errors
    /// [`SweepError::Unusable`] if the run's directory holds another configuration or something else
    /// than a run.
    pub fn status(&self, out: &Path) -> Result<RunStatus, SweepError> {
        run::status(&self.config, &out.join(&self.directory)).map_err(|error| self.unusable(error))
    }

    /// Why this run cannot be started or taken over.
    pub(super) fn unusable(&self, source: TrainerError) -> SweepError {
        SweepError::Unusable {
            run: self.directory.clone(),
            source: Box::new(source),
        }
    }
}

/// The positions of `runs` in the order in which they are to start: the first seed of everything, then the second, and so on.
/// A sweep that is looked at before its end then has about as many seeds of one method as of another.
pub fn start_order(runs: &[PlannedRun]) -> Vec<usize> {
    let mut earlier: BTreeMap<_, usize> = BTreeMap::new();
    let nth_seed: Vec<usize> = runs
        .iter()
        .map(|run| {
            let count = earlier
                .entry((&run.order, &run.label, run.candidate))
                .or_default();
            *count += 1;
            *count
        })
        .collect();
    let mut order: Vec<usize> = (0..runs.len()).collect();
    order.sort_by_key(|&run| nth_seed[run]);
    order
}

/// Checks, before anything starts, that the models and tasks of all runs are there, those among them that are evaluated
/// only included: that their files can be read, that there are examples to evaluate, and labels where answers are chosen among them. With `dev`, and where
/// adapters are chosen on dev, also that every task of the stream has a dev split that is not its test split.
///
/// # Errors
/// [`SweepError::Unusable`] names the first run that could not start.
pub fn check_inputs(runs: &[PlannedRun], dev: bool) -> Result<(), SweepError> {
    let mut models = Vec::new();
    let mut tasks = Vec::new();
    for run in runs {
        let unusable = |source: TrainerError| run.unusable(source);
        if let ModelSource::Folder(dir) = run.config.model.source()
            && !models.contains(&dir)
        {
            AutoConfig::from_dir(dir).map_err(|error| unusable(error.into()))?;
            models.push(dir);
        }
        let data = &run.config.data;
        let wanted_by = if dev { "`aso tune`" } else { "`train.select`" };
        let dev = dev || run.config.train.select == Select::BestOnDev;
        let stream = run.config.tasks()?.into_iter().map(|task| (task, true));
        let general = run.config.eval.general_tasks.iter().flatten();
        let general = general.map(|task| (task.clone(), false));
        // All that the checks of a task depend on.
        let eval = &run.config.eval;
        let wanted = |task: &str, trained: bool| {
            let files = (data.format, data.path.clone(), data.dev_from_train);
            let answers = (eval.mode, eval.choose_last);
            (
                files,
                task.to_owned(),
                data.eval_split,
                answers,
                trained,
                trained && dev,
            )
        };
        let fresh: Vec<(String, bool)> = stream
            .chain(general)
            .filter(|(task, trained)| !tasks.contains(&wanted(task, *trained)))
            .collect();
        if fresh.is_empty() {
            continue;
        }
        let library = open_library(data).map_err(unusable)?;
        check_distinct(library.as_ref(), &run.config).map_err(unusable)?;
        for (task, trained) in fresh {
            let source = library
                .task(&task)
                .map_err(|error| unusable(error.into()))?;
            if trained && dev {
                check_dev(source.as_ref(), &task, wanted_by).map_err(unusable)?;
            }
            check_task(source.as_ref(), &task, &run.config, trained).map_err(unusable)?;
            tasks.push(wanted(&task, trained));
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Whether every file system takes the name.
fn is_folder_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && !name.starts_with('.') && !name.ends_with('.') && name.chars().all(plain)
}

/// What is wrong with a list that must hold different values, at least one.
fn check_list<T: PartialEq + std::fmt::Debug>(list: &[T]) -> Result<(), String> {
    if list.is_empty() {
        return Err("an empty list".to_owned());
    }
    let twice = list
        .iter()
        .enumerate()
        .find(|(at, value)| list[..*at].contains(value));
    twice.map_or(Ok(()), |(_, value)| Err(format!("{value:?} twice")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DataFormat, MethodName};
    use crate::sweep::{EXAMPLE, Ledger, choose};

    const SWEEP: &str = r#"seeds = [1, 2]
[config]
train.steps = 3
"data.max_train" = 20
[orders]
short = ["topic-news", "sentiment-reviews"]
back = ["sentiment-reviews", "topic-news"]
[[methods]]
set = { "method.name" = "o-lora", "method.lambda1" = 2.0, train.lr = 1e-2 }
[[methods]]
label = "sequential"
set = { "method.name" = "seq-lora", "train.epochs" = 2 }
seeds = [7]
orders = ["short"]
"#;

    /// The files of a folder, and the sweep `sweep.toml` among them.
    fn write(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn load(text: &str) -> Result<Sweep, SweepError> {
        let dir = write(&[("sweep.toml", text)]);
        Sweep::load(&dir.path().join("sweep.toml"), &[])
    }

    /// The message, from the file's name on.
    fn message<T: std::fmt::Debug>(result: Result<T, SweepError>) -> String {
        let message = result.unwrap_err().to_string();
        let at = message.find("sweep.toml").unwrap_or(0);
        message[at..].to_owned()
    }

    #[test]
    fn an_order_has_one_name() {
        let back = r#"back = ["sentiment-reviews", "topic-news"]"#;
        let twice = SWEEP.replace(
            back,
            &back.replace(
                "sentiment-reviews\", \"topic-news",
                "topic-news\", \"sentiment-reviews",
            ),
        );
        let message = message(load(&twice));
        assert!(
            message.contains("another sequence than that of order \"back\""),
            "{message}"
        );
    }

    #[test]
    fn methods_orders_and_seeds_are_multiplied() {
        let runs = load(SWEEP).unwrap().runs().unwrap();
        let directories: Vec<&str> = runs.iter().map(|run| run.directory.as_str()).collect();
        assert_eq!(
            directories,
            [
                "back/o-lora/seed-1",
                "back/o-lora/seed-2",
                "short/o-lora/seed-1",
                "short/o-lora/seed-2",
                "short/sequential/seed-7",
            ]
        );
        let config = &runs[0].config;
        assert_eq!(config.tasks().unwrap(), ["sentiment-reviews", "topic-news"]);
        assert_eq!((config.seed, config.method.name), (1, MethodName::OLora));
        assert_eq!((config.method.lambda1, config.train.lr), (2.0, 0.01));
        assert_eq!(
            (config.train.steps, config.data.max_train),
            (Some(3), Some(20))
        );
        // One of two keys that exclude each other takes the other's place.
        let last = &runs[4].config.train;
        assert_eq!((last.steps, last.epochs), (None, Some(2)));
        for run in &runs {
            run.config.validate().unwrap();
        }
    }

    #[test]
    fn first_seeds_start_first() {
        let runs = load(SWEEP).unwrap().runs().unwrap();
        let started = start_order(&runs);
        let directories = started.iter().map(|&run| runs[run].directory.as_str());
        let expected = [
            "back/o-lora/seed-1",
            "short/o-lora/seed-1",
            "short/sequential/seed-7",
            "back/o-lora/seed-2",
            "short/o-lora/seed-2",
        ];
        assert_eq!(directories.collect::<Vec<_>>(), expected);
        // Candidates of a grid are settings of their own.
        let candidates = load(GRID).unwrap().candidates().unwrap();
        let unchanged: Vec<usize> = (0..candidates.len()).collect();
        assert_eq!(start_order(&candidates), unchanged);
    }

    #[test]
    fn an_empty_file_is_one_run_of_the_defaults() {
        let runs = load("").unwrap().runs().unwrap();
        assert_eq!(runs.len(), 1);
        assert_eq!(runs[0].directory, "stream/aso-lora/seed-1");
        assert_eq!(runs[0].config, RunConfig::default());
    }

    #[test]
    fn the_base_lies_beside_the_file() {
        let dir = write(&[
            (
                "base.toml",
                "seed = 5\n[data]\nformat = \"jsonl\"\npath = \"d\"\n[stream]\ntasks = [\"a\"]\n",
            ),
            ("sweep.toml", "base = \"base.toml\"\nseeds = [3]\n"),
        ]);
        let path = dir.path().join("sweep.toml");
        let runs = Sweep::load(&path, &["train.lr=0.5".to_owned()]).unwrap();
        let runs = runs.runs().unwrap();
        let config = &runs[0].config;
        assert_eq!((config.seed, config.train.lr), (3, 0.5));
        assert_eq!(config.data.format, DataFormat::Jsonl);
        assert_eq!(config.data.path, Some(dir.path().join("d")));
        // What is wrong in the base is the base's fault.
        std::fs::write(dir.path().join("base.toml"), "[train]\nlrate = 1\n").unwrap();
        let sweep = Sweep::load(&path, &[]).unwrap();
        let message = sweep.runs().unwrap_err().to_string();
        assert!(
            message.contains("base.toml:2: unknown key `train.lrate`"),
            "{message}"
        );
        std::fs::remove_file(dir.path().join("base.toml")).unwrap();
        let message = Sweep::load(&path, &[]).unwrap_err().to_string();
        assert!(message.contains("base.toml: "), "{message}");
    }

    #[test]
    fn an_order_may_lie_in_task_files() {
        let dir = write(&[("sweep.toml", "[orders]\na = { configs = \"steps\" }\n")]);
        for (step, test) in [("first", vec!["x"]), ("second", vec!["x", "y"])] {
            let folder = dir.path().join("steps").join(step);
            std::fs::create_dir_all(&folder).unwrap();
            let list = |sets: &[&str]| {
                let sets: Vec<_> = sets
                    .iter()
                    .map(|set| serde_json::json!({ "dataset name": set }))
                    .collect();
                serde_json::json!({ "TC": sets }).to_string()
            };
            std::fs::write(folder.join("test_tasks.json"), list(&test)).unwrap();
            let train = list(&test[test.len() - 1..]);
            std::fs::write(folder.join("train_tasks.json"), train).unwrap();
        }
        let path = dir.path().join("sweep.toml");
        let sweep = Sweep::load(&path, &[]).unwrap();
        assert_eq!(sweep.orders()["a"], ["x", "y"]);
        std::fs::remove_dir_all(dir.path().join("steps/first")).unwrap();
        let message = Sweep::load(&path, &[]).unwrap_err().to_string();
        assert!(
            message.contains("steps") && message.contains("learned so far"),
            "{message}"
        );
    }

    #[test]
    fn complaints_name_line_and_key() {
        for (text, complaint) in [
            (
                "seed = [1]",
                "sweep.toml:1: unknown key `seed`; did you mean `seeds`?",
            ),
            ("\nseeds = \"1\"", "sweep.toml:2: `seeds`: invalid type"),
            (
                "seeds = []",
                "sweep.toml:1: `seeds`: expected different seeds, at least one, found an empty list",
            ),
            ("seeds = [1, 2, 1]", "found 1 twice"),
            ("seeds = [-1]", "sweep.toml:1: `seeds"),
            (
                "[orders]\n\"a/b\" = [\"x\"]",
                "sweep.toml:2: `orders.a/b`: expected a name of letters",
            ),
            (
                "[orders]\nlogs = [\"x\"]",
                "sweep.toml:2: `orders.logs`: expected a name of letters, digits, `-`, `_` and `.` \
                 (none of logs, sweep.json, tune.json, chosen.toml, run.lock)",
            ),
            (
                "[orders]\n\"Sweep.json\" = [\"x\"]",
                "sweep.toml:2: `orders.Sweep.json`: expected a name",
            ),
            (
                "[orders]\na = \"order99\"",
                "sweep.toml:2: `orders.a`: expected a list of tasks, or one of order1",
            ),
            (
                "[orders]\na = 3",
                "sweep.toml:2: `orders.a`: invalid type: integer `3`, expected a list of tasks",
            ),
            (
                "[[methods]]\n[[methods]]\nlabl = \"x\"",
                "sweep.toml:3: unknown key `methods.1.labl`; did you mean `methods.1.label`?",
            ),
            (
                "[[methods]]\norders = [\"a\"]",
                "sweep.toml:2: `methods.0.orders`: expected names from `[orders]`, which is empty",
            ),
            (
                "[tune]\norders = [\"b\"]\n[orders]\na = [\"topic-news\"]",
                "sweep.toml:2: `tune.orders`: expected names from `[orders]` (a), found \"b\"",
            ),
            (
                "[config]\nseed = 3",
                "sweep.toml:2: `seed`: expected this to be set by `seeds`",
            ),
            (
                "[config]\nstream.tasks = [\"x\"]\n[orders]\na = [\"topic-news\"]",
                "sweep.toml:2: `stream.tasks`: expected this to be set by `[orders]`",
            ),
            (
                "[config]\n\"train..lr\" = 3",
                "sweep.toml:2: `config.train..lr`: expected a dotted key",
            ),
            ("x = = 3", "sweep.toml:1: not valid TOML"),
        ] {
            let found = message(load(text));
            assert!(found.contains(complaint), "{text}: {found}");
        }
        for (text, complaint) in [
            (
                "[config]\n\"train.lrate\" = 1",
                "sweep.toml:2: unknown key `train.lrate`; did you mean `train.lr`?",
            ),
            (
                "[config]\n[config.train]\nlr = \"x\"",
                "sweep.toml:3: `train.lr`: invalid type",
            ),
            (
                "[[methods]]\nset = { \"method.name\" = \"x\" }",
                "sweep.toml:2: `method.name",
            ),
            (
                "[[methods]]\nlabel = \"a\"\n[methods.set]\n\"train.lr\" = 7.0",
                "sweep.toml:4: `train.lr`: expected a learning rate",
            ),
            (
                "[[methods]]\n[[methods]]",
                "`methods.1.label`: expected a label for each method, unlike the others, found \"aso-lora\" twice",
            ),
            (
                "[[methods]]\nlabel = \"a b\"",
                "sweep.toml:2: `methods.0.label`: expected letters",
            ),
            (
                "[[methods]]\ngrid = [{ \"train.lr\" = 0.1 }]",
                "sweep.toml:2: `methods.0.grid`: expected no grid: let `aso tune` choose",
            ),
            (
                "[orders]\na = [\"x\", \"X\"]",
                "sweep.toml:2: `stream.tasks`: expected each task once",
            ),
        ] {
            let found = message(load(text).unwrap().runs());
            assert!(found.contains(complaint), "{text}: {found}");
        }
    }

    #[test]
    fn tasks_must_exist_before_anything_starts() {
        let runs = load("[orders]\na = [\"topic-nwes\"]").unwrap().runs();
        let found = check_inputs(&runs.unwrap(), false).unwrap_err().to_string();
        assert!(
            found.contains("run a/aso-lora/seed-1") && found.contains("`topic-news`"),
            "{found}"
        );
        let runs = load("[config]\n\"model.path\" = \"./no/such/model\"").unwrap();
        let found = check_inputs(&runs.runs().unwrap(), false).unwrap_err();
        assert!(found.to_string().contains("no/such/model"), "{found}");
    }

    #[test]
    fn the_example_runs_and_shows_every_key() {
        let sweep = load(EXAMPLE).unwrap();
        let runs = sweep.runs().unwrap();
        assert_eq!(runs.len(), 2 * 3 + 1);
        check_inputs(&runs, false).unwrap();
        let mut keys = Vec::new();
        crate::config::schema::walk(
            <SweepFile as crate::config::schema::Schema>::KEYS,
            "",
            &mut |path, key| keys.push((path.to_owned(), key.name)),
        );
        for (path, name) in keys {
            let header = format!("[{name}]");
            let shown = EXAMPLE.lines().any(|line| {
                let line = line.trim_start_matches("# ");
                line.starts_with(&format!("{name} =")) || line.contains(&header)
            });
            assert!(shown, "{path}");
        }
    }

    const GRID: &str = r#"seeds = [1, 2]
[config]
"train.steps" = 3
[orders]
a = ["topic-news"]
b = ["sentiment-reviews"]
[[methods]]
label = "tuned"
set = { "method.name" = "o-lora" }
grid = [{ "method.lambda1" = 1.0 }, { "method.lambda1" = 2.0, "train.epochs" = 1 }]
[[methods]]
label = "plain"
set = { "method.name" = "seq-lora" }
[tune]
orders = ["b"]
seeds = [9]
set = { "data.max_eval" = 5 }
"#;

    #[test]
    fn candidates_run_on_dev_and_the_best_is_written_down() {
        let dir = write(&[("sweep.toml", GRID)]);
        let path = dir.path().join("sweep.toml");
        let sweep = Sweep::load(&path, &[]).unwrap();
        let runs = sweep.candidates().unwrap();
        let directories: Vec<&str> = runs.iter().map(|run| run.directory.as_str()).collect();
        assert_eq!(
            directories,
            ["b/tuned/grid-1/seed-9", "b/tuned/grid-2/seed-9"]
        );
        for run in &runs {
            assert_eq!(run.config.data.eval_split, crate::config::EvalSplit::Dev);
            assert_eq!(run.config.data.max_eval, Some(5));
        }
        assert_eq!(runs[0].config.method.lambda1, 1.0);
        check_inputs(&runs, true).unwrap();

        // No run, no choice.
        let out = dir.path().join("out");
        let mut ledger = Ledger::open(&runs, &out).unwrap();
        let results = choose(&sweep, &ledger).unwrap();
        assert_eq!(results.choices[0].chosen, None);
        assert!(matches!(
            results.chosen(&sweep, dir.path()),
            Err(SweepError::NothingToChoose { label }) if label == "tuned"
        ));
        ledger.fail(0, "diverged".to_owned());
        let mut results = choose(&sweep, &ledger).unwrap();
        assert_eq!(results.choices[0].candidates[0].failed, 1);
        results.choices[0].chosen = Some(2);

        // The chosen file is the sweep of the test runs.
        let chosen = out.join("chosen.toml");
        std::fs::create_dir(&out).unwrap();
        results.write_chosen(&sweep, &chosen).unwrap();
        let runs = Sweep::load(&chosen, &[]).unwrap().runs().unwrap();
        let directories: Vec<&str> = runs.iter().map(|run| run.directory.as_str()).collect();
        assert_eq!(
            directories[..3],
            ["a/tuned/seed-1", "a/tuned/seed-2", "a/plain/seed-1"]
        );
        let tuned = &runs[0].config;
        assert_eq!(tuned.data.eval_split, crate::config::EvalSplit::Test);
        assert_eq!((tuned.method.lambda1, tuned.data.max_eval), (2.0, None));
        assert_eq!((tuned.train.epochs, tuned.train.steps), (Some(1), None));
        assert_eq!(runs[2].config.train.steps, Some(3));
    }

    /// The candidates of a file, and the runs of what is written when the first of each method is chosen.
    fn first_chosen(text: &str) -> (Vec<PlannedRun>, Vec<PlannedRun>) {
        let dir = write(&[("sweep.toml", text)]);
        let sweep = Sweep::load(&dir.path().join("sweep.toml"), &[]).unwrap();
        let candidates = sweep.candidates().unwrap();
        let ledger = Ledger::open(&candidates, dir.path()).unwrap();
        let mut results = choose(&sweep, &ledger).unwrap();
        for choice in &mut results.choices {
            choice.chosen = Some(1);
        }
        let path = dir.path().join("chosen.toml");
        results.write_chosen(&sweep, &path).unwrap();
        let runs = Sweep::load(&path, &[]).unwrap().runs().unwrap();
        (candidates, runs)
    }

    #[test]
    fn a_chosen_value_takes_the_place_of_its_alternative() {
        let text = r#"[[methods]]
label = "order"
set = { "train.steps" = 3, "stream.order" = "order1p" }
grid = [{ "train.epochs" = 2, "stream.tasks" = ["topic-news"] }]
[[methods]]
label = "tasks"
set = { train = { epochs = 3 }, stream = { tasks = ["topic-news"] } }
grid = [{ "train.steps" = 2, "stream.order" = "order1p" }]
"#;
        let (candidates, runs) = first_chosen(text);
        for (run, candidate) in runs.iter().zip(&candidates) {
            assert_eq!(run.config.train, candidate.config.train);
            assert_eq!(run.config.stream, candidate.config.stream);
        }
        assert_eq!(runs[0].config.tasks().unwrap(), ["topic-news"]);
        let order1p = ["dbpedia", "amazon", "agnews"];
        assert_eq!(runs[1].config.tasks().unwrap(), order1p);
    }

    #[test]
    fn a_chosen_value_replaces_another_spelling_of_its_key() {
        let text = r#"[config]
"stream.tasks" = ["topic-news"]
[[methods]]
label = "x"
set = { "stream.overrides.topic-news.lr" = 0.001 }
grid = [{ 'stream.overrides."topic-news".lr' = 0.003 }]
"#;
        let (candidates, runs) = first_chosen(text);
        assert_eq!(runs[0].config.stream, candidates[0].config.stream);
    }

    #[test]
    fn nothing_is_laid_over_a_grid() {
        let over = GRID.replace("\"data.max_eval\" = 5", "method = { lambda1 = 3.0 }");
        let found = message(load(&over).unwrap().candidates());
        let expected = "`method.lambda1`: expected this to be left to the grid";
        assert!(
            found.contains("sweep.toml:17") && found.contains(expected),
            "{found}"
        );
        // A key that replaces one of the grid, too.
        let dir = write(&[("sweep.toml", GRID)]);
        let path = dir.path().join("sweep.toml");
        let sweep = Sweep::load(&path, &["train.steps=2".to_owned()]).unwrap();
        let found = message(sweep.candidates());
        assert!(
            found.contains("--set train.steps=2: `train.epochs`"),
            "{found}"
        );
    }

    #[test]
    fn a_label_comes_from_an_order_that_the_method_has() {
        let text = r#"[orders]
a = ["topic-news"]
b = ["sentiment-reviews"]
[[methods]]
orders = ["b"]
set = { "stream.overrides.sentiment-reviews.lr" = 0.5 }
"#;
        let runs = load(text).unwrap().runs().unwrap();
        assert_eq!(runs[0].directory, "b/aso-lora/seed-1");
    }

    #[test]
    fn settings_are_never_chosen_on_test() {
        let test = "\"data.eval_split\" = \"test\"";
        for text in [
            GRID.replace("\"train.steps\" = 3", test),
            GRID.replace("\"train.epochs\" = 1", test),
            GRID.replace("\"data.max_eval\" = 5", test),
        ] {
            let found = message(load(&text).unwrap().candidates());
            assert!(
                found.contains("`data.eval_split`: expected \"dev\"") && found.contains("\"test\""),
                "{found}"
            );
        }
        let dir = write(&[
            ("base.toml", "[data]\neval_split = \"test\"\n"),
            ("sweep.toml", &format!("base = \"base.toml\"\n{GRID}")),
        ]);
        let sweep = Sweep::load(&dir.path().join("sweep.toml"), &[]).unwrap();
        let found = sweep.candidates().unwrap_err().to_string();
        assert!(found.contains("base.toml:2: `data.eval_split`"), "{found}");
        let found = message(load(SWEEP).unwrap().candidates());
        assert!(
            found.contains("`methods`: expected a method with a `grid`"),
            "{found}"
        );
    }

    #[test]
    fn directories_are_looked_at_and_left_alone() {
        let dir = write(&[("sweep.toml", SWEEP)]);
        let runs = Sweep::load(&dir.path().join("sweep.toml"), &[]).unwrap();
        let runs = runs.runs().unwrap();
        let out = dir.path().join("out");
        assert_eq!(runs[0].status(&out).unwrap(), RunStatus::Missing);
        assert!(!out.exists());
        let run = out.join(&runs[0].directory);
        std::fs::create_dir_all(&run).unwrap();
        std::fs::write(run.join("config.toml"), runs[0].config.to_toml().unwrap()).unwrap();
        assert_eq!(runs[0].status(&out).unwrap(), RunStatus::Incomplete);
        let mut other = runs[0].clone();
        other.config.train.lr = 0.5;
        let found = other.status(&out).unwrap_err().to_string();
        assert!(found.starts_with("run back/o-lora/seed-1: "), "{found}");
        assert!(
            found.contains("`train.lr`: expected 0.01, found 0.5"),
            "{found}"
        );
        std::fs::remove_file(run.join("config.toml")).unwrap();
        std::fs::write(run.join("thesis.tex"), "x").unwrap();
        let found = runs[0].status(&out).unwrap_err().to_string();
        assert!(found.contains("there is no run to resume"), "{found}");
    }
}
