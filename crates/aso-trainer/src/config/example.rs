//! Commented example configurations, written from the schema.

use std::fmt::Write;

use toml::{Table, Value};

use super::schema::{Key, Schema};
use super::{DataFormat, RunConfig};

/// The example configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExampleKind {
    /// The built-in model on the built-in suite; needs no files.
    Demo,
    /// Three tasks of the CL benchmark, whose folder is `data/cl-benchmark` beside the
    /// configuration file.
    ClBenchmark,
}

/// A TOML file with every key, its documentation and its default. It parses, and runs as it is.
///
/// Keys that are unset stand there as a comment with a possible value.
pub fn example(kind: ExampleKind) -> String {
    let mut text = String::new();
    for line in kind.introduction() {
        comment(&mut text, line);
    }
    text.push('\n');
    let chosen = to_table(&kind.config());
    let defaults = to_table(&RunConfig::default());
    // TOML wants the plain keys before the first section.
    for key in RunConfig::KEYS.iter().filter(|key| key.children.is_empty()) {
        entry(&mut text, key, &chosen, &defaults);
    }
    let empty = Table::new();
    for key in RunConfig::KEYS
        .iter()
        .filter(|key| !key.children.is_empty())
    {
        text.push('\n');
        documentation(&mut text, key);
        line(&mut text, format_args!("[{}]", key.name));
        section(
            &mut text,
            key.name,
            key.children,
            below(&chosen, key).unwrap_or(&empty),
            below(&defaults, key).unwrap_or(&empty),
        );
    }
    text
}

impl ExampleKind {
    fn introduction(self) -> &'static [&'static str] {
        match self {
            Self::Demo => &[
                "The built-in model learns the built-in suite. Run: aso run FILE --out DIR",
                "Relative paths are relative to the folder of this file.",
            ],
            Self::ClBenchmark => &[
                "Three tasks of the CL benchmark, order 1 without yahoo. Run: aso run FILE --out DIR",
                "Relative paths are relative to the folder of this file: the benchmark is expected in",
                "data/cl-benchmark beside it. Set model.path to the folder of a T5 checkpoint; the",
                "built-in model is too small to learn these tasks well.",
            ],
        }
    }

    /// The settings that the example shows.
    pub fn config(self) -> RunConfig {
        let mut config = RunConfig::default();
        if self == Self::ClBenchmark {
            config.data.format = DataFormat::ClBenchmark;
            config.data.path = Some("data/cl-benchmark".into());
            config.data.max_train = Some(1000);
            config.data.max_eval = Some(500);
            config.stream.tasks = Some(["dbpedia", "amazon", "agnews"].map(Into::into).into());
            config.train.micro_batch = Some(16);
        } else {
            // A small grid over steps, rate and the two weights; docs/results.md has the outcome.
            config.stream.tasks = Some(super::validate::embedded_tasks());
            config.method.lambda1 = 1.0;
            config.method.lambda2 = 0.01;
            config.train.steps = Some(60);
            config.train.batch_size = 16;
            config.train.lr = 2e-3;
            config.eval.batch_size = 64;
            config.eval.max_new_tokens = 6;
        }
        config
    }
}

fn to_table(config: &RunConfig) -> Table {
    // Defaults and examples are plain values; the tests serialise all of them.
    Table::try_from(config).unwrap_or_default()
}

fn below<'a>(table: &'a Table, key: &Key) -> Option<&'a Table> {
    table.get(key.name).and_then(Value::as_table)
}

fn section(text: &mut String, path: &str, keys: &[Key], chosen: &Table, defaults: &Table) {
    for key in keys {
        if key.keyed {
            documentation(text, key);
            line(text, format_args!("# [{path}.{}.TASK]", key.name));
            for child in key.children {
                let doc = child
                    .doc
                    .iter()
                    .map(|line| line.trim())
                    .collect::<Vec<_>>()
                    .join(" ");
                line(
                    text,
                    format_args!("# {} = {}  # {doc}", child.name, child.sample),
                );
            }
        } else {
            entry(text, key, chosen, defaults);
        }
    }
}

/// One key with its documentation; commented out where it is unset.
fn entry(text: &mut String, key: &Key, chosen: &Table, defaults: &Table) {
    documentation(text, key);
    match defaults.get(key.name) {
        Some(default) => line(text, format_args!("# Default: {}", inline(default))),
        None => line(text, format_args!("# Default: unset")),
    }
    match chosen.get(key.name) {
        Some(value) => line(text, format_args!("{} = {}", key.name, inline(value))),
        None => line(text, format_args!("# {} = {}", key.name, key.sample)),
    }
}

/// A value as one would write it by hand: `1e-8` rather than `0.00000001`.
fn inline(value: &Value) -> String {
    match value {
        Value::Float(number) if *number != 0.0 && number.abs() < 1e-3 => format!("{number:e}"),
        value => value.to_string(),
    }
}

fn documentation(text: &mut String, key: &Key) {
    for doc in key.doc {
        comment(text, doc.trim_start());
    }
}

fn comment(text: &mut String, words: &str) {
    line(text, format_args!("# {words}"));
}

fn line(text: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{words}");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const KINDS: [ExampleKind; 2] = [ExampleKind::Demo, ExampleKind::ClBenchmark];

    fn parse(text: &str) -> RunConfig {
        RunConfig::parse(text, Path::new("/configs/example.toml"), &[])
            .unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    #[test]
    fn examples_parse_to_the_settings_they_show() {
        for kind in KINDS {
            let mut expected = kind.config();
            if let Some(path) = &mut expected.data.path {
                *path = Path::new("/configs").join(&*path);
            }
            assert_eq!(parse(&example(kind)), expected);
        }
    }

    #[test]
    fn examples_show_every_key_with_documentation() {
        for kind in KINDS {
            let text = example(kind);
            crate::config::schema::walk(RunConfig::KEYS, "", &mut |path, key| {
                let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
                let header = format!("[{}]\n", section.replace('*', "TASK"));
                let body = match section {
                    "" => &*text,
                    _ => {
                        text.split_once(&header)
                            .unwrap_or_else(|| panic!("no {header}"))
                            .1
                    }
                };
                let shown = body.lines().any(|line| {
                    let line = line.strip_prefix("# ").unwrap_or(line);
                    line.starts_with(&format!("{name} = ")) || line.starts_with(&format!("[{path}"))
                });
                assert!(shown, "{path} is missing:\n{text}");
                assert!(!key.doc.is_empty(), "{path} has no documentation");
            });
        }
    }

    #[test]
    fn values_in_comments_are_valid() {
        let text = example(ExampleKind::ClBenchmark);
        for (number, line) in text.lines().enumerate() {
            let Some(setting) = line.strip_prefix("# ") else {
                continue;
            };
            let known = setting.split_once(" = ").is_some_and(|(name, _)| {
                name.chars()
                    .all(|letter| letter.is_ascii_lowercase() || "_12".contains(letter))
            });
            if !known {
                continue;
            }
            // Uncomment this line; its alternatives and its table header as needed.
            let lines: Vec<String> = text
                .lines()
                .enumerate()
                .map(|(other, line)| {
                    let setting_here = other == number;
                    let header = line.starts_with("# [") && line.contains("TASK");
                    match line.strip_prefix("# ") {
                        Some(setting) if setting_here => setting.to_owned(),
                        Some(header_text) if header => header_text.replace("TASK", "amazon"),
                        _ if setting.starts_with("order") && line.starts_with("tasks =") => {
                            String::new()
                        }
                        _ => line.to_owned(),
                    }
                })
                .collect();
            assert_ne!(parse(&lines.join("\n")), RunConfig::default());
        }
    }
}
