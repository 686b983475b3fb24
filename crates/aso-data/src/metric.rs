//! Exact match as the CL benchmark counts it.

/// Lower-cases, removes ASCII punctuation and collapses white space; articles stay.
///
/// The semantics are Python's `" ".join(text.lower().translate(no_punctuation).split())`, where
/// the punctuation is the 32 characters of `string.punctuation` and `split` also takes the four
/// ASCII separators U+001C..U+001F for white space.
///
/// ```
/// assert_eq!(aso_data::normalize_answer("  The  \"Mean of Transportation\". "), "the mean of transportation");
/// ```
pub fn normalize_answer(text: &str) -> String {
    let kept: String = text
        .to_lowercase()
        .chars()
        .filter(|character| !character.is_ascii_punctuation())
        .collect();
    let is_space =
        |character: char| character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character);
    let words: Vec<&str> = kept
        .split(is_space)
        .filter(|word| !word.is_empty())
        .collect();
    words.join(" ")
}

/// Whether two answers are equal after [`normalize_answer`].
pub fn exact_match(prediction: &str, target: &str) -> bool {
    normalize_answer(prediction) == normalize_answer(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Python 3: `string.punctuation`.
    const PYTHON_PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

    #[test]
    fn punctuation_is_that_of_python() {
        let ours: String = ('\0'..='\u{7f}')
            .filter(char::is_ascii_punctuation)
            .collect();
        assert_eq!(ours, PYTHON_PUNCTUATION);
        assert_eq!(normalize_answer(PYTHON_PUNCTUATION), "");
        // Punctuation outside ASCII stays.
        assert_eq!(normalize_answer("a – b…"), "a – b…");
    }

    #[rstest::rstest]
    #[case("Good", "good.", true)]
    #[case(" Very\tNegative\n", "very negative", true)]
    #[case("very-negative", "very negative", false)]
    #[case("the World", "World", false)]
    #[case("a\u{1c}b\u{a0}c\u{3000}d", "a b c d", true)]
    #[case("", "?!", true)]
    #[case("STRASSE", "straße", false)]
    fn matches(#[case] prediction: &str, #[case] target: &str, #[case] expected: bool) {
        assert_eq!(exact_match(prediction, target), expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn normalisation_is_idempotent(text in "\\PC{0,40}") {
            let once = normalize_answer(&text);
            prop_assert_eq!(normalize_answer(&once), once.clone());
            prop_assert!(exact_match(&text, &text));
            prop_assert!(!once.contains("  "));
        }
    }
}
