//! One source for a section's fields, defaults, documentation and key names.
//!
//! [`settings!`] turns a struct whose fields carry a doc comment and a default into the serde
//! struct, its `Default` and its list of [`Key`]s. Suggestions for misspelt keys and the commented
//! example configs walk that list, so none of them can forget a key.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// One key of the configuration.
#[derive(Debug)]
pub(crate) struct Key {
    /// Its name within the section.
    pub(crate) name: &'static str,
    /// The lines of its doc comment.
    pub(crate) doc: &'static [&'static str],
    /// A TOML value to show where the default is "unset"; empty for the others.
    pub(crate) sample: &'static str,
    /// The keys of a section; empty for a plain value.
    pub(crate) children: &'static [Key],
    /// Whether the section is a map from names of the user's choice to `children`.
    pub(crate) keyed: bool,
}

/// A type that may stand behind a key.
pub(crate) trait Schema {
    /// The keys below it; none for a plain value.
    const KEYS: &'static [Key] = &[];
    /// Whether names of the user's choice lie between it and [`Self::KEYS`].
    const KEYED: bool = false;
}

macro_rules! plain {
    ($($ty:ty),* $(,)?) => { $(impl $crate::config::schema::Schema for $ty {})* };
}
pub(crate) use plain;

plain!(
    bool,
    f64,
    u64,
    usize,
    String,
    PathBuf,
    toml::Table,
    aso_lora::TargetModules
);

impl<T> Schema for Option<T> {}

/// The names between a list of tables and their keys are numbers.
impl<T: Schema> Schema for Vec<T> {
    const KEYS: &'static [Key] = T::KEYS;
    const KEYED: bool = !T::KEYS.is_empty();
}

impl<T: Schema> Schema for BTreeMap<String, T> {
    const KEYS: &'static [Key] = T::KEYS;
    const KEYED: bool = true;
}

/// Declares a configuration section: `/// doc`, optional `#[sample = "TOML value"]`, optional
/// `#[serde(..)]`, then `pub key: Type = default,`.
macro_rules! settings {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident {
            $(
                $(#[doc = $doc:literal])+
                $(#[sample = $sample:literal])?
                $(#[serde($serde:meta)])?
                pub $field:ident: $ty:ty = $default:expr,
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct $name {
            $(
                $(#[doc = $doc])+
                #[doc = concat!("\n\nDefault: `", stringify!($default), "`.")]
                $(#[serde($serde)])?
                pub $field: $ty,
            )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $crate::config::schema::Schema for $name {
            const KEYS: &'static [$crate::config::schema::Key] = &[$(
                $crate::config::schema::Key {
                    name: stringify!($field),
                    doc: &[$($doc),+],
                    sample: concat!("" $(, $sample)?),
                    children: <$ty as $crate::config::schema::Schema>::KEYS,
                    keyed: <$ty as $crate::config::schema::Schema>::KEYED,
                },
            )+];
        }
    };
}
pub(crate) use settings;

/// Calls `visit` with the dotted path of every key below `keys`; a name of the user's choice is
/// `*`.
pub(crate) fn walk(keys: &'static [Key], prefix: &str, visit: &mut impl FnMut(&str, &'static Key)) {
    for key in keys {
        let path = join(prefix, key.name);
        visit(&path, key);
        let below = if key.keyed { join(&path, "*") } else { path };
        walk(key.children, &below, visit);
    }
}

/// `prefix.name`, or `name` at the top.
pub(crate) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}

/// The known key that `unknown` (a dotted path) most likely means: a similar name in the same
/// section, else the same or a very similar name elsewhere, but not for a section of a name of its own: `[stream.overrides.a]`
/// means what it says.
pub(crate) fn nearest(keys: &'static [Key], unknown: &str) -> Option<String> {
    let (section, name) = unknown.rsplit_once('.').unwrap_or(("", unknown));
    let mut best: Option<(f64, String)> = None;
    let mut named = false;
    walk(keys, "", &mut |path, _| {
        let (known_section, _) = path.rsplit_once('.').unwrap_or(("", path));
        named |= known_section.ends_with('*') && same_section(known_section, section);
    });
    walk(keys, "", &mut |path, key| {
        let (known_section, _) = path.rsplit_once('.').unwrap_or(("", path));
        let similarity = strsim::jaro_winkler(name, key.name);
        let (score, enough) = if same_section(known_section, section) {
            (
                similarity + 1.0,
                similarity > 0.8 || strsim::damerau_levenshtein(name, key.name) <= 2,
            )
        } else {
            let enough = similarity > 0.9 && !path.contains('*') && !named;
            (similarity, enough)
        };
        if enough && best.as_ref().is_none_or(|(top, _)| score > *top) {
            // The user's own name stands where the pattern has `*`.
            let same = same_section(known_section, section);
            best = Some((
                score,
                if same {
                    join(section, key.name)
                } else {
                    path.to_owned()
                },
            ));
        }
    });
    best.map(|(_, path)| path)
}

/// Whether a section's pattern (`stream.overrides.*`) covers a section (`stream.overrides.amazon`).
fn same_section(pattern: &str, section: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => section.starts_with(prefix),
        None => pattern == section,
    }
}

/// The names of the keys directly in `section`; empty when there is no such section.
pub(crate) fn names_in(keys: &'static [Key], section: &str) -> Vec<&'static str> {
    let mut names = Vec::new();
    walk(keys, "", &mut |path, key| {
        let (known_section, _) = path.rsplit_once('.').unwrap_or(("", path));
        if same_section(known_section, section) {
            names.push(key.name);
        }
    });
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;
    use proptest::prelude::*;

    fn paths() -> Vec<String> {
        let mut paths = Vec::new();
        walk(RunConfig::KEYS, "", &mut |path, _| {
            paths.push(path.to_owned())
        });
        paths
    }

    #[test]
    fn the_keys_are_those_of_serde() {
        let defaults = toml::Table::try_from(RunConfig::default()).unwrap();
        for key in RunConfig::KEYS {
            let Some(toml::Value::Table(section)) = defaults.get(key.name) else {
                assert!(defaults.contains_key(key.name));
                continue;
            };
            for name in section.keys() {
                assert!(
                    key.children.iter().any(|child| child.name == name),
                    "{name}"
                );
            }
            for child in key.children.iter().filter(|child| !child.keyed) {
                // A key that is absent from the defaults needs a value to show.
                assert_ne!(
                    section.contains_key(child.name),
                    !child.sample.is_empty(),
                    "{child:?}"
                );
            }
        }
        assert_eq!(defaults.len(), RunConfig::KEYS.len());
    }

    #[test]
    fn suggestions() {
        let nearest = |key| nearest(RunConfig::KEYS, key);
        assert_eq!(nearest("train.lrate").as_deref(), Some("train.lr"));
        assert_eq!(
            nearest("train.batchsize").as_deref(),
            Some("train.batch_size")
        );
        assert_eq!(nearest("trian").as_deref(), Some("train"));
        assert_eq!(nearest("batch_sise").as_deref(), Some("train.batch_size"));
        assert_eq!(nearest("lora.lambda1").as_deref(), Some("method.lambda1"));
        assert_eq!(
            nearest("stream.overrides.SST-2.epoch").as_deref(),
            Some("stream.overrides.SST-2.epochs")
        );
        assert_eq!(nearest("train.xyzzy_quux"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn one_wrong_letter_finds_the_key(
            path in prop::sample::select(paths()),
            letter in prop::char::range('a', 'z'),
            at: prop::sample::Index,
        ) {
            prop_assume!(!path.contains('*'));
            let (section, name) = path.rsplit_once('.').unwrap_or(("", &path));
            prop_assume!(name.len() > 3);
            let mut letters: Vec<char> = name.chars().collect();
            letters.insert(at.index(name.len() + 1), letter);
            let wrong: String = letters.into_iter().collect();
            prop_assume!(!paths().contains(&join(section, &wrong)));
            prop_assert_eq!(nearest(RunConfig::KEYS, &join(section, &wrong)), Some(path.clone()));
        }
    }
}
