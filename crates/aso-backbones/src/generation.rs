//! Settings of text generation.

/// How to generate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationConfig {
    /// Upper bound on new tokens per row. Default: 50.
    pub max_new_tokens: usize,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self { max_new_tokens: 50 }
    }
}
