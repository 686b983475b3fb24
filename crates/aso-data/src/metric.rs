//! Scores of answers: exact match as the CL benchmark counts it, and measures for generated text.

use std::collections::HashMap;
use std::fmt;

/// How the answers to a task are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Metric {
    /// [`exact_match`]: equal but for case, punctuation and white space.
    #[default]
    ExactMatch,
    /// Equal but for white space around them; for numbers and code.
    Verbatim,
    /// The same first character: the letter of a multiple-choice answer, whatever reasons follow it.
    FirstLetter,
    /// [`rouge_l`].
    RougeL,
    /// [`sari`]; the only one that looks at the source.
    Sari,
    /// [`edit_similarity`] of code, without the placeholders of literals.
    EditSimilarity,
}

impl Metric {
    /// The name in documentation and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ExactMatch => "exact-match",
            Self::Verbatim => "verbatim",
            Self::FirstLetter => "first-letter",
            Self::RougeL => "rouge-l",
            Self::Sari => "sari",
            Self::EditSimilarity => "edit-similarity",
        }
    }

    /// Whether an answer is right or wrong, and nothing in between.
    pub fn is_accuracy(self) -> bool {
        matches!(self, Self::ExactMatch | Self::Verbatim | Self::FirstLetter)
    }

    /// The score of an answer, from 0 to 1. `source` is the text that the task is about.
    ///
    /// ```
    /// use aso_data::Metric;
    /// assert_eq!(Metric::ExactMatch.score("Sports.", "sports", ""), 1.0);
    /// assert_eq!(Metric::RougeL.score("the cat", "the dog", ""), 0.5);
    /// ```
    pub fn score(self, answer: &str, expected: &str, source: &str) -> f64 {
        let hit = |hit: bool| f64::from(u8::from(hit));
        match self {
            Self::ExactMatch => hit(exact_match(answer, expected)),
            Self::Verbatim => hit(answer.trim() == expected.trim()),
            Self::FirstLetter => {
                let first = |text: &str| text.trim_start().chars().next();
                hit(first(answer).is_some() && first(answer) == first(expected))
            }
            Self::RougeL => rouge_l(answer, expected),
            Self::Sari => sari(source, answer, &[expected]),
            Self::EditSimilarity => edit_similarity(
                &without_placeholders(answer),
                &without_placeholders(expected),
            ),
        }
    }

    /// The [`score`](Self::score) against the one of several right answers that the answer comes closest to; 0 without any.
    /// Super-NaturalInstructions scores so (Wang et al. 2022, `compute_metrics.py`).
    ///
    /// ```
    /// use aso_data::Metric;
    /// assert_eq!(Metric::RougeL.best_score("the cat", &["a dog", "the cat"], ""), 1.0);
    /// ```
    pub fn best_score(self, answer: &str, expected: &[impl AsRef<str>], source: &str) -> f64 {
        expected
            .iter()
            .map(|expected| self.score(answer, expected.as_ref(), source))
            .fold(0.0, f64::max)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

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

/// Whether two answers are equal after [`normalize_answer`]; a target of which that leaves nothing, such as `-`, is compared as it is, so
/// that an empty answer is not right.
pub fn exact_match(prediction: &str, target: &str) -> bool {
    match normalize_answer(target) {
        target_words if target_words.is_empty() => prediction.trim() == target.trim(),
        target_words => normalize_answer(prediction) == target_words,
    }
}

/// ROUGE-L: the F measure of the longest common subsequence of words.
///
/// As Google's `rouge_score` without its stemmer: text is lower-cased, words are runs of ASCII letters and
/// digits, `F = 2 P R / (P + R)` with `P = LCS / words of the answer` and `R = LCS / words expected`; 0
/// where either has no word (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004).
pub fn rouge_l(answer: &str, expected: &str) -> f64 {
    let words = |text: &str| -> Vec<String> {
        text.to_lowercase()
            .split(|character: char| !character.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let (answer, expected) = (words(answer), words(expected));
    let common = common_subsequence(&answer, &expected) as f64;
    if common == 0.0 {
        return 0.0;
    }
    let precision = common / answer.len() as f64;
    let recall = common / expected.len() as f64;
    2.0 * precision * recall / (precision + recall)
}

/// The similarity of two texts, `2 LCS / (characters of both)`; 1 for two empty ones.
///
/// This is the ratio of `fuzzywuzzy` and `rapidfuzz` (an edit distance in which replacing costs 2), not
/// rounded to percent.
pub fn edit_similarity(answer: &str, expected: &str) -> f64 {
    let (answer, expected): (Vec<char>, Vec<char>) =
        (answer.chars().collect(), expected.chars().collect());
    let total = answer.len() + expected.len();
    if total == 0 {
        return 1.0;
    }
    2.0 * common_subsequence(&answer, &expected) as f64 / total as f64
}

/// Code with the literals behind their placeholders, as CodeXGLUE and TRACE compare it: `<STR_LIT:x>` is `x`,
/// `<NUM_LIT>` is 0, `<STR_LIT>` and `<CHAR_LIT>` are nothing.
fn without_placeholders(code: &str) -> String {
    let mut plain = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find('<') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let literal = ["NUM", "STR", "CHAR"].into_iter().find_map(|kind| {
            let behind = rest.strip_prefix('<')?.strip_prefix(kind)?;
            let behind = behind.strip_prefix("_LIT")?;
            if let Some(behind) = behind.strip_prefix('>') {
                return Some((if kind == "NUM" { "0" } else { "" }, behind));
            }
            behind.strip_prefix(':')?.split_once('>')
        });
        match literal {
            Some((literal, behind)) => {
                plain.push_str(literal);
                rest = behind;
            }
            None => {
                plain.push('<');
                rest = &rest[1..];
            }
        }
    }
    plain.push_str(rest);
    plain
}

/// The length of the longest common subsequence.
fn common_subsequence<T: PartialEq>(one: &[T], other: &[T]) -> usize {
    let mut row = vec![0; other.len() + 1];
    for a in one {
        let mut diagonal = 0;
        for (at, b) in other.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if a == b {
                diagonal + 1
            } else {
                above.max(row[at])
            };
            diagonal = above;
        }
    }
    row[other.len()]
}

/// SARI: the mean of the F measure of kept and of added n-grams and of the precision of deleted ones, each a
/// mean over n = 1..4; every reference counts as one.
///
/// As the metric `sari` of Hugging Face's `evaluate`, which TRACE uses, from 0 to 1: text is lower-cased and
/// cut into tokens by mteval's rules (13a), and what has nothing to count is 1 (Xu et al., "Optimizing
/// Statistical Machine Translation for Text Simplification", TACL 2016).
pub fn sari(source: &str, answer: &str, references: &[&str]) -> f64 {
    // Python's `"".split(" ")` is one empty token, which counts.
    let tokens = |text: &str| match tokens_13a(&text.to_lowercase()) {
        none if none.is_empty() => vec![String::new()],
        tokens => tokens,
    };
    let (source, answer) = (tokens(source), tokens(answer));
    let references: Vec<_> = references.iter().map(|text| tokens(text)).collect();
    let mut sum = 0.0;
    for n in 1..=4 {
        let mut expected = Counts::new();
        for reference in &references {
            for (gram, count) in grams(reference, n) {
                *expected.entry(gram).or_default() += count;
            }
        }
        let scores = sari_of(
            &grams(&source, n),
            &grams(&answer, n),
            &expected,
            references.len(),
        );
        sum += scores.into_iter().sum::<f64>();
    }
    sum / 12.0
}

type Counts<'t> = HashMap<&'t [String], usize>;

fn grams(tokens: &[String], n: usize) -> Counts<'_> {
    let mut counts = Counts::new();
    for gram in tokens.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

/// Keep, delete and add score of the n-grams of one length. Counts of source and answer are taken times the
/// number of references, whose n-grams are all counted together.
fn sari_of(source: &Counts, answer: &Counts, expected: &Counts, references: usize) -> [f64; 3] {
    let times = |counts: &Counts, gram: &[String]| counts.get(gram).map_or(0, |c| c * references);
    let wanted = |gram: &[String]| expected.get(gram).copied().unwrap_or(0);
    // Sums are over sets, of which the order must not matter: fractions are added up in integers where that is
    // possible, and sorted where it is not.
    let total = |mut fractions: Vec<f64>| {
        fractions.sort_by(f64::total_cmp);
        fractions.into_iter().sum::<f64>()
    };
    let ratio = |part: f64, whole: usize| match whole {
        0 => 1.0,
        whole => part / whole as f64,
    };

    // Kept: in source and answer; rightly, if in a reference.
    let (mut kept, mut kept_well, mut keepable, mut good) = (0, Vec::new(), 0, 0);
    // Deleted: in the source more often than in the answer.
    let (mut deleted, mut deleted_well) = (0, Vec::new());
    for gram in source.keys().copied() {
        let (before, after) = (times(source, gram), times(answer, gram));
        let keep = before.min(after);
        keepable += before.min(wanted(gram));
        if keep > 0 {
            kept += 1;
            let well = keep.min(wanted(gram));
            good += well;
            kept_well.push(well as f64 / keep as f64);
        }
        let delete = before.saturating_sub(after);
        if delete > 0 {
            deleted += 1;
            deleted_well.push(delete.saturating_sub(wanted(gram)) as f64 / delete as f64);
        }
    }
    let keep = harmonic(ratio(total(kept_well), kept), ratio(good as f64, keepable));
    let delete = ratio(total(deleted_well), deleted);

    // Added: in the answer and not in the source; how often does not count.
    let new = |counts: &Counts| {
        let new = counts.keys().filter(|gram| !source.contains_key(*gram));
        new.count()
    };
    let added_well = answer
        .keys()
        .filter(|gram| !source.contains_key(*gram) && expected.contains_key(*gram))
        .count() as f64;
    let add = harmonic(
        ratio(added_well, new(answer)),
        ratio(added_well, new(expected)),
    );
    [keep, delete, add]
}

fn harmonic(precision: f64, recall: f64) -> f64 {
    if precision > 0.0 || recall > 0.0 {
        2.0 * precision * recall / (precision + recall)
    } else {
        0.0
    }
}

/// The tokens of mteval-v13a, as sacrebleu cuts them.
fn tokens_13a(text: &str) -> Vec<String> {
    let mut text = text
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ");
    for (entity, character) in [
        ("&quot;", "\""),
        ("&amp;", "&"),
        ("&lt;", "<"),
        ("&gt;", ">"),
    ] {
        text = text.replace(entity, character);
    }
    // Punctuation other than . , - ' stands alone.
    let alone =
        |c: char| matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/');
    let mut spaced = vec![' '];
    for character in text.chars() {
        if alone(character) {
            spaced.extend([' ', character, ' ']);
        } else {
            spaced.push(character);
        }
    }
    spaced.push(' ');
    let digit = |c: char| c.is_ascii_digit();
    let point = |c: char| matches!(c, '.' | ',');
    // Points and commas unless a digit stands before, then unless one follows; dashes behind a digit.
    let spaced = pairs(
        &spaced,
        |a, b| !digit(a) && point(b),
        |a, b| [a, ' ', b, ' '],
    );
    let spaced = pairs(
        &spaced,
        |a, b| point(a) && !digit(b),
        |a, b| [' ', a, ' ', b],
    );
    let spaced = pairs(
        &spaced,
        |a, b| digit(a) && b == '-',
        |a, b| [a, ' ', b, ' '],
    );
    let text: String = spaced.into_iter().collect();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Replaces pairs of neighbours from left to right, none of which overlap.
fn pairs(
    text: &[char],
    matches: impl Fn(char, char) -> bool,
    replace: impl Fn(char, char) -> [char; 4],
) -> Vec<char> {
    let mut replaced = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        match text.get(at + 1) {
            Some(&next) if matches(text[at], next) => {
                replaced.extend(replace(text[at], next));
                at += 2;
            }
            _ => {
                replaced.push(text[at]);
                at += 1;
            }
        }
    }
    replaced
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
    #[case("", "?!", false)]
    #[case(" -", "-", true)]
    #[case("neutral", "-", false)]
    #[case("", "", true)]
    #[case("STRASSE", "straße", false)]
    fn matches(#[case] prediction: &str, #[case] target: &str, #[case] expected: bool) {
        assert_eq!(exact_match(prediction, target), expected);
    }

    // Python with rouge-score 0.1.2, rapidfuzz and sacrebleu 2:
    //   from rouge_score.rouge_scorer import RougeScorer
    //   RougeScorer(["rougeL"], use_stemmer=False).score(expected, answer)["rougeL"].fmeasure
    //   rapidfuzz.fuzz.ratio(answer, expected) / 100
    //   sacrebleu.tokenizers.tokenizer_13a.Tokenizer13a()(text).split()

    fn assert_near(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < 1e-12,
            "{found} is not {expected}"
        );
    }

    #[rstest::rstest]
    #[case("the cat sat on the mat", "The cat lay on a mat.", 0.6666666666666666)]
    #[case(
        "Item 17: approve the $2.5 million contract",
        "Recommendation to approve contract, item 17",
        0.28571428571428575
    )]
    #[case("a b c d", "d c b a", 0.25)]
    #[case("", "x", 0.0)]
    #[case("résumé naïve 3-2", "resume naïve 3 2", 0.7272727272727272)]
    #[case("same", "Same!", 1.0)]
    fn rouge_l_is_that_of_python(#[case] answer: &str, #[case] target: &str, #[case] score: f64) {
        assert_near(rouge_l(answer, target), score);
    }

    #[rstest::rstest]
    #[case("self . x = 3", "self . y = 33", 0.88)]
    #[case("kitten", "sitting", 0.6153846153846154)]
    #[case("", "", 1.0)]
    #[case("", "abc", 0.0)]
    #[case("import os", "import os", 1.0)]
    #[case("größe = 1", "groesse = 1", 0.7)]
    fn similarity_is_that_of_python(
        #[case] answer: &str,
        #[case] target: &str,
        #[case] score: f64,
    ) {
        assert_near(edit_similarity(answer, target), score);
    }

    #[rstest::rstest]
    #[case(
        "Hello, world. It's 3.14-ish (about); 1,000 & more/less...",
        "Hello|,|world|.|It's|3.14|-|ish|(|about|)|;|1,000|&|more|/|less|.|.|."
    )]
    #[case(
        "a.b.,c 5-6 -7 «x» <b> &quot;q&quot; end-\nof\nline",
        "a|.|b|.|,|c|5|-|6|-7|«x»|<|b|>|\"|q|\"|endof|line"
    )]
    #[case("Wert: 3.5% , 12.Mai.", "Wert|:|3.5|%|,|12|.|Mai|.")]
    #[case("", "")]
    fn tokens_are_those_of_sacrebleu(#[case] text: &str, #[case] tokens: &str) {
        assert_eq!(tokens_13a(text).join("|"), tokens);
    }

    /// The first value is the example of Hugging Face's metric card, 26.953601953601954 percent; the others come
    /// from these formulas in Python, which return it too (`grams` counts n-grams of lower-cased 13a tokens):
    ///
    /// ```python
    /// s, a, r = (Counter times k) of source and answer, sum of the k references
    /// keep, wanted, gone = s & a, s & r, s - a
    /// p = sum((keep & r)[g] / keep[g] for g in keep) / len(keep) if keep else 1
    /// q = sum((keep & r).values()) / sum(wanted.values()) if wanted else 1
    /// d = sum((gone - r)[g] / gone[g] for g in gone) / len(gone) if gone else 1
    /// new, missing = set(a) - set(s), set(r) - set(s)
    /// ap = len(new & set(r)) / len(new) if new else 1
    /// ar = len(new & set(r)) / len(missing) if missing else 1
    /// total += f(p, q) + d + f(ap, ar)  # for n = 1..4; the score is total / 12
    /// ```
    #[rstest::rstest]
    #[case(
        "About 95 species are currently accepted .",
        "About 95 you now get in .",
        &[
            "About 95 species are currently known .",
            "About 95 species are now accepted .",
            "95 species are now accepted .",
        ],
        0.2695360195360195
    )]
    #[case(
        "Der Bundesrat hat am Mittwoch beschlossen, die Regeln zu lockern.",
        "Der Bundesrat lockert die Regeln.",
        &["Der Bundesrat will die Regeln lockern."],
        0.6212602212602213
    )]
    #[case("a b c", "a b c", &["a b c"], 1.0)]
    #[case("a b c", "", &["a"], 0.8055555555555555)]
    #[case("one two two two", "two two one", &["two one three"], 0.626984126984127)]
    fn sari_is_that_of_python(
        #[case] source: &str,
        #[case] answer: &str,
        #[case] references: &[&str],
        #[case] score: f64,
    ) {
        assert_near(sari(source, answer, references), score);
    }

    #[test]
    fn metrics_are_what_their_names_say() {
        assert_eq!(Metric::default(), Metric::ExactMatch);
        // A number without its point is another one.
        assert_eq!(Metric::ExactMatch.score("12.5", "125", ""), 1.0);
        assert_eq!(Metric::Verbatim.score("12.5", "125", ""), 0.0);
        assert_eq!(Metric::Verbatim.score(" 支持\n", "支持", ""), 1.0);
        let reasons = "A\nBecause an experiment answers questions.";
        assert_eq!(Metric::FirstLetter.score(" A", reasons, ""), 1.0);
        assert_eq!(Metric::FirstLetter.score("B\nBecause", reasons, ""), 0.0);
        assert_eq!(Metric::FirstLetter.score("", "", ""), 0.0);
        assert_eq!(Metric::Sari.score("a b c", "a b c", "a b c"), 1.0);
        let code = "x = <STR_LIT:abc> + <NUM_LIT:1> < <STR_LIT> <CHAR_LIT> <NUM_LIT> <STR_LI>";
        assert_eq!(without_placeholders(code), "x = abc + 1 <   0 <STR_LI>");
        assert_eq!(
            Metric::EditSimilarity.score("x = <NUM_LIT:1>", "x = 1", ""),
            1.0
        );
        for metric in [Metric::Verbatim, Metric::RougeL, Metric::Sari] {
            assert_eq!(metric.to_string(), metric.as_str());
        }
        assert!(Metric::FirstLetter.is_accuracy() && !Metric::Sari.is_accuracy());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn scores_lie_between_0_and_1(answer in "[a-c .<]{0,12}", target in "[a-c .<]{0,12}", source in "[a-c .<]{0,12}") {
            let all = [
                Metric::ExactMatch, Metric::Verbatim, Metric::FirstLetter, Metric::RougeL, Metric::Sari,
                Metric::EditSimilarity,
            ];
            for metric in all {
                let score = metric.score(&answer, &target, &source);
                prop_assert!((0.0..=1.0 + 1e-12).contains(&score), "{metric}: {score}");
            }
        }

        #[test]
        fn normalisation_is_idempotent(text in "\\PC{0,40}") {
            let once = normalize_answer(&text);
            prop_assert_eq!(normalize_answer(&once), once.clone());
            prop_assert!(exact_match(&text, &text));
            prop_assert!(!once.contains("  "));
        }
    }
}
