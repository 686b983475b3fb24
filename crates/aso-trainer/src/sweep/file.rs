//! The sweep file: its keys, and how it is read.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::config::schema::{plain, settings};

settings! {
    /// A sweep file: methods x orders x seeds over one base configuration.
    pub struct SweepFile {
        /// The run configuration that every run starts from. Unset: the defaults.
        #[sample = "\"base.toml\""]
        pub base: Option<PathBuf> = None,
        /// Keys of a run configuration, laid over those of `base`.
        pub config: Table = Table::new(),
        /// The seeds of every method that has none of its own.
        pub seeds: Vec<u64> = vec![1],
        /// The task orders: a name, and the list of tasks, the name of a published order, or
        /// `{ configs = "FOLDER" }` for one of O-LoRA's task files. None: the stream of the base
        /// configuration.
        pub orders: BTreeMap<String, OrderSpec> = BTreeMap::new(),
        /// The methods. None: the method of the base configuration.
        pub methods: Vec<MethodSpec> = Vec::new(),
        /// What `aso tune` runs.
        pub tune: TuneSpec = TuneSpec::default(),
    }
}

settings! {
    /// A method of a sweep, `[[methods]]`.
    pub struct MethodSpec {
        /// The name of its rows and folders, unlike any other. Unset: `method.name`.
        #[sample = "\"aso-lora\""]
        pub label: Option<String> = None,
        /// Keys of a run configuration, laid over the base.
        pub set: Table = Table::new(),
        /// Its seeds, instead of the sweep's.
        #[sample = "[1, 2, 3]"]
        pub seeds: Option<Vec<u64>> = None,
        /// Its orders by name. Unset: all.
        #[sample = "[\"order1p\"]"]
        pub orders: Option<Vec<String>> = None,
        /// What `aso tune` chooses from: tables like `set`, laid over it.
        pub grid: Vec<Table> = Vec::new(),
    }
}

settings! {
    /// What `aso tune` runs, `[tune]`.
    pub struct TuneSpec {
        /// The orders, by name, of every candidate. Unset: all of the method.
        #[sample = "[\"order1p\"]"]
        pub orders: Option<Vec<String>> = None,
        /// The seeds of every candidate. Unset: the method's.
        #[sample = "[1]"]
        pub seeds: Option<Vec<u64>> = None,
        /// Keys of a run configuration for tuning only, laid over everything.
        pub set: Table = Table::new(),
    }
}

/// The tasks of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum OrderSpec {
    /// A published order.
    Preset(String),
    /// The tasks.
    Tasks(Vec<String>),
    /// O-LoRA's task files.
    Files {
        /// The folder of steps, such as `configs/order1_configs`.
        configs: PathBuf,
    },
}

plain!(OrderSpec);

/// Unlike an untagged enum, this keeps the place of an error.
impl<'de> Deserialize<'de> for OrderSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Order;

        impl<'de> Visitor<'de> for Order {
            type Value = OrderSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a list of tasks, the name of a published order, or { configs = \"FOLDER\" }",
                )
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<OrderSpec, E> {
                Ok(OrderSpec::Preset(name.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OrderSpec, A::Error> {
                let mut tasks = Vec::new();
                while let Some(task) = list.next_element()? {
                    tasks.push(task);
                }
                Ok(OrderSpec::Tasks(tasks))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OrderSpec, A::Error> {
                let Some((key, configs)) = map.next_entry::<String, PathBuf>()? else {
                    return Err(de::Error::missing_field("configs"));
                };
                let other = map.next_key::<String>()?;
                match other.or((key != "configs").then_some(key)) {
                    Some(key) => Err(de::Error::unknown_field(&key, &["configs"])),
                    None => Ok(OrderSpec::Files { configs }),
                }
            }
        }

        deserializer.deserialize_any(Order)
    }
}

/// A sweep file to start from, with every key.
pub const EXAMPLE: &str = r#"# Methods x orders x seeds over one configuration. Run: aso sweep FILE --out DIR

# The run configuration that every run starts from, relative to the folder of this file.
# Unset: the defaults.
# base = "base.toml"

# The seeds of every method that has none of its own.
seeds = [1, 2, 3]

# Keys of a run configuration, laid over those of `base`.
[config]
"data.max_train" = 200
"train.batch_size" = 16
"train.lr" = 2e-3

# The task orders: a name, and the list of tasks or the name of a published order (aso orders).
# None: the stream of the base configuration.
[orders]
news-first = ["topic-news", "sentiment-reviews", "topic-forum"]
reviews-first = ["sentiment-reviews", "topic-news", "topic-forum"]

# The methods. `label` names rows and folders (unset: method.name); `set` holds keys of a run
# configuration, laid over the base.
[[methods]]
label = "aso-lora"
set = { "method.name" = "aso-lora", "method.lambda1" = 1.0 }

[[methods]]
set = { "method.name" = "inc-lora" }
# Its seeds, instead of the sweep's, and its orders by name.
seeds = [1]
orders = ["news-first"]

# For `aso tune`: what to choose from on dev, as tables laid over `set`, and what to run.
# [[methods]]
# grid = [{ "method.lambda1" = 0.5 }, { "method.lambda1" = 5.0 }]
# [tune]
# orders = ["news-first"]
# seeds = [1]
# set = { "eval.zero_shot" = false }
"#;
