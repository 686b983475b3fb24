//! Configuration of a new subspace.

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::LoraError;

/// Which linear layers get a subspace, as in PEFT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// Layers whose full name equals an entry or ends with `.entry`, e.g. `["q", "v"]`.
    Names(Vec<String>),
    /// `"all-linear"` (every linear layer but the output head), or a regular expression that matches the whole name of a layer.
    Pattern(String),
}

/// Tells targets from other layers ([`TargetModules::matcher`]).
#[derive(Debug, Clone)]
pub struct TargetMatcher<'a>(Matcher<'a>);

#[derive(Debug, Clone)]
enum Matcher<'a> {
    Names(&'a [String]),
    AllLinear,
    Pattern(Regex),
}

impl TargetModules {
    /// The name of the pattern that selects every linear layer.
    pub const ALL_LINEAR: &'static str = "all-linear";

    /// What decides for single layers: a pattern is compiled once for all of them.
    ///
    /// # Errors
    /// [`LoraError::InvalidConfig`] if the pattern is no regular expression that can be matched with a whole name.
    pub fn matcher(&self) -> Result<TargetMatcher<'_>, LoraError> {
        Ok(TargetMatcher(match self {
            Self::Names(names) => Matcher::Names(names),
            Self::Pattern(pattern) if pattern == Self::ALL_LINEAR => Matcher::AllLinear,
            Self::Pattern(pattern) => {
                let regex = compile(pattern).map_err(|error| LoraError::InvalidConfig {
                    key: "target_modules",
                    expected: "\"all-linear\" or a regular expression",
                    found: format!("{pattern:?} ({error})"),
                })?;
                Matcher::Pattern(regex)
            }
        }))
    }
}

impl TargetMatcher<'_> {
    /// Whether the layer called `module` is a target.
    pub fn matches(&self, module: &str) -> bool {
        match &self.0 {
            Matcher::Names(names) => names.iter().any(|name| {
                module == name
                    || module
                        .strip_suffix(name.as_str())
                        .is_some_and(|head| head.ends_with('.'))
            }),
            Matcher::AllLinear => true,
            Matcher::Pattern(pattern) => pattern.is_match(module),
        }
    }
}

/// The expression for whole names.
fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    // By itself first: parentheses that close the group around it would change what it means.
    Regex::new(pattern)?;
    Regex::new(&format!("^(?:{pattern})$"))
}

impl Default for TargetModules {
    fn default() -> Self {
        Self::Names(vec!["q".into(), "v".into()])
    }
}

impl std::fmt::Display for TargetModules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Names(names) => write!(f, "{names:?}"),
            Self::Pattern(pattern) => write!(f, "{pattern:?}"),
        }
    }
}

/// Shape and scale of one task's subspace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank r: rows of A, columns of B. Default: 8.
    pub rank: usize,
    /// The subspace is scaled by `alpha / rank`. Default: 32.
    pub alpha: f64,
    /// Probability of dropping an element of the adapter's input while training. Default: 0.1.
    pub dropout: f64,
    /// The adapted layers. Default: `["q", "v"]`.
    pub target_modules: TargetModules,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 32.0,
            dropout: 0.1,
            target_modules: TargetModules::default(),
        }
    }
}

impl LoraConfig {
    /// `s = alpha / r`.
    pub fn scaling(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`LoraError::InvalidConfig`] names the key, what is accepted and what was given.
    pub fn validate(&self) -> Result<(), LoraError> {
        let invalid = |key, expected, found: String| {
            Err(LoraError::InvalidConfig {
                key,
                expected,
                found,
            })
        };
        if self.rank == 0 {
            return invalid("rank", "at least 1", self.rank.to_string());
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return invalid("alpha", "a positive number", self.alpha.to_string());
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return invalid("dropout", "a number in [0, 1)", self.dropout.to_string());
        }
        self.target_modules.matcher().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("encoder.block.0.layer.0.SelfAttention.q", true)]
    #[case("decoder.block.1.layer.1.EncDecAttention.v", true)]
    #[case("q", true)]
    #[case("encoder.block.0.layer.0.SelfAttention.k", false)]
    #[case("encoder.block.0.layer.0.SelfAttention.seq", false)]
    fn names_match_whole_segments(#[case] module: &str, #[case] expected: bool) {
        assert_eq!(matches(&TargetModules::default(), module), expected);
    }

    fn matches(targets: &TargetModules, module: &str) -> bool {
        targets.matcher().unwrap().matches(module)
    }

    #[test]
    fn patterns_match_the_whole_name() {
        let decoder = TargetModules::Pattern(r"decoder\..*\.(q|v)".into());
        assert!(matches(&decoder, "decoder.block.0.layer.0.SelfAttention.q"));
        assert!(!matches(
            &decoder,
            "encoder.block.0.layer.0.SelfAttention.q"
        ));
        let all = TargetModules::Pattern("all-linear".into());
        assert!(matches(&all, "anything"));
    }

    #[test]
    fn out_of_range_values_are_named() {
        let config = LoraConfig {
            rank: 0,
            ..Default::default()
        };
        assert_eq!(
            config.validate().unwrap_err().to_string(),
            "`rank` is 0; expected at least 1"
        );
        assert!(
            LoraConfig {
                dropout: 1.0,
                ..Default::default()
            }
            .validate()
            .is_err()
        );
        assert!(
            LoraConfig {
                alpha: f64::NAN,
                ..Default::default()
            }
            .validate()
            .is_err()
        );
    }

    /// The second compiles by itself, but its comment swallows the end of the group; the third only in the group.
    #[rstest]
    #[case("q(")]
    #[case("(?x)q # note")]
    #[case("q)|(?:v")]
    fn unusable_patterns_are_refused(#[case] pattern: &str) {
        let config = LoraConfig {
            target_modules: TargetModules::Pattern(pattern.into()),
            ..Default::default()
        };
        let error = config.validate().unwrap_err().to_string();
        let expected = format!("`target_modules` is {pattern:?}");
        assert!(error.starts_with(&expected), "{error}");
    }
}
