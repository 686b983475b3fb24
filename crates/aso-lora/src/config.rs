//! Configuration of a new subspace.

use serde::{Deserialize, Serialize};

use crate::LoraError;

/// Which linear layers get a subspace, as in PEFT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// Layers whose full name equals an entry or ends with `.entry`, e.g. `["q", "v"]`.
    Names(Vec<String>),
    /// `"all-linear"` (every linear layer but the output head), or a regular expression that matches the whole name of a layer;
    /// one that does not compile matches none.
    Pattern(String),
}

impl TargetModules {
    /// The name of the pattern that selects every linear layer.
    pub const ALL_LINEAR: &'static str = "all-linear";

    /// Whether the layer called `module` is a target.
    pub fn matches(&self, module: &str) -> bool {
        match self {
            Self::Names(names) => names.iter().any(|name| {
                module == name
                    || module
                        .strip_suffix(name.as_str())
                        .is_some_and(|head| head.ends_with('.'))
            }),
            Self::Pattern(pattern) if pattern == Self::ALL_LINEAR => true,
            Self::Pattern(pattern) => regex::Regex::new(&format!("^(?:{pattern})$"))
                .is_ok_and(|pattern| pattern.is_match(module)),
        }
    }
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
        if let TargetModules::Pattern(pattern) = &self.target_modules
            && let Err(error) = regex::Regex::new(pattern)
        {
            let expected = "\"all-linear\" or a regular expression";
            return invalid("target_modules", expected, format!("{pattern:?} ({error})"));
        }
        Ok(())
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
        assert_eq!(TargetModules::default().matches(module), expected);
    }

    #[test]
    fn patterns_match_the_whole_name() {
        let decoder = TargetModules::Pattern(r"decoder\..*\.(q|v)".into());
        assert!(decoder.matches("decoder.block.0.layer.0.SelfAttention.q"));
        assert!(!decoder.matches("encoder.block.0.layer.0.SelfAttention.q"));
        assert!(TargetModules::Pattern("all-linear".into()).matches("anything"));
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
        let unusable = LoraConfig {
            target_modules: TargetModules::Pattern("q(".into()),
            ..Default::default()
        };
        let error = unusable.validate().unwrap_err().to_string();
        assert!(error.starts_with("`target_modules` is \"q(\""), "{error}");
    }
}
