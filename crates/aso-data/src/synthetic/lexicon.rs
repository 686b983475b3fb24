//! The words of the generated language.

use std::collections::BTreeSet;

use super::{DemoConfig, ForumLabels, demo_specs, grammar, pretrain};

/// A subject matter: its name and the nouns that give it away (singular, plurals are regular).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topic {
    /// The name, which sentences of the topic never contain.
    pub name: &'static str,
    /// Its nouns; the first and the second half are the two [`Bank`](super::Bank)s.
    pub nouns: [&'static str; 16],
}

/// The topics. The demo suite asks for the first four, pre-training only for the others.
#[rustfmt::skip]
pub static TOPICS: [Topic; 10] = [
    Topic { name: "sports", nouns: [
        "ball", "team", "goal", "coach", "player", "match", "stadium", "race",
        "runner", "bat", "court", "referee", "helmet", "medal", "trophy", "champion"] },
    Topic { name: "food", nouns: [
        "soup", "cake", "pizza", "apple", "salad", "sandwich", "cook", "kitchen",
        "plate", "spoon", "lemon", "carrot", "cheese", "bakery", "sauce", "recipe"] },
    Topic { name: "weather", nouns: [
        "storm", "cloud", "breeze", "rainbow", "forecast", "raindrop", "blizzard", "puddle",
        "snowflake", "icicle", "hurricane", "drizzle", "gust", "flood", "thunderbolt", "frost"] },
    Topic { name: "music", nouns: [
        "song", "guitar", "piano", "drum", "singer", "band", "concert", "melody",
        "violin", "choir", "tune", "trumpet", "chorus", "album", "flute", "lyric"] },
    Topic { name: "travel", nouns: [
        "hotel", "airport", "ticket", "suitcase", "beach", "map", "passport", "flight",
        "tourist", "cruise", "island", "journey", "border", "harbor", "hostel", "souvenir"] },
    Topic { name: "health", nouns: [
        "doctor", "nurse", "hospital", "pill", "fever", "vaccine", "clinic", "patient",
        "bandage", "surgeon", "headache", "vitamin", "dentist", "symptom", "therapy", "cough"] },
    Topic { name: "money", nouns: [
        "bank", "loan", "coin", "wallet", "budget", "tax", "salary", "price",
        "market", "investor", "profit", "mortgage", "receipt", "dollar", "bill", "fund"] },
    Topic { name: "school", nouns: [
        "teacher", "student", "lesson", "exam", "classroom", "pencil", "essay", "library",
        "textbook", "campus", "pupil", "lecture", "notebook", "diploma", "seminar", "tutor"] },
    Topic { name: "animals", nouns: [
        "dog", "cat", "horse", "rabbit", "tiger", "elephant", "monkey", "lion",
        "bear", "eagle", "turtle", "dolphin", "zebra", "parrot", "spider", "squirrel"] },
    Topic { name: "machines", nouns: [
        "engine", "robot", "tractor", "motor", "pump", "gear", "crane", "drill",
        "printer", "computer", "battery", "turbine", "lever", "conveyor", "sensor", "keyboard"] },
];

/// Adjectives of praise; the halves are the two banks.
#[rustfmt::skip]
pub static POSITIVE: [&str; 20] = [
    "wonderful", "great", "lovely", "excellent", "amazing",
    "delightful", "superb", "brilliant", "perfect", "fantastic",
    "charming", "beautiful", "pleasant", "splendid", "impressive",
    "enjoyable", "marvelous", "terrific", "graceful", "cheerful",
];

/// Adjectives of blame; the halves are the two banks.
#[rustfmt::skip]
pub static NEGATIVE: [&str; 20] = [
    "terrible", "awful", "horrible", "dreadful", "boring",
    "ugly", "nasty", "poor", "disappointing", "miserable",
    "annoying", "gloomy", "rotten", "dull", "lousy",
    "unpleasant", "hopeless", "shabby", "dismal", "clumsy",
];

/// Neutral places.
#[rustfmt::skip]
pub(super) static PLACES: [&str; 12] = [
    "house", "street", "door", "table", "window", "corner",
    "river", "garden", "bridge", "road", "hill", "square",
];

/// The marks that follow a word without a blank.
pub static PUNCTUATION: [&str; 5] = [".", ",", ":", "?", "!"];

/// The regular plural of a noun.
pub fn plural(noun: &str) -> String {
    let vowel_before_y = |stem: &str| stem.ends_with(['a', 'e', 'i', 'o', 'u']);
    match noun.strip_suffix('y') {
        Some(stem) if !vowel_before_y(stem) => format!("{stem}ies"),
        _ if ["s", "x", "ch", "sh"]
            .iter()
            .any(|&end| noun.ends_with(end)) =>
        {
            format!("{noun}es")
        }
        _ => format!("{noun}s"),
    }
}

/// Every word that generated text can contain, sorted; with [`PUNCTUATION`] it is a complete
/// vocabulary.
///
/// Words are lower-case and stand at the start of a text or after one blank.
pub fn lexicon() -> Vec<String> {
    let mut words = BTreeSet::new();
    for topic in TOPICS {
        words.insert(topic.name.to_owned());
        for noun in topic.nouns {
            words.insert(noun.to_owned());
            words.insert(plural(noun));
        }
    }
    let adjectives = POSITIVE.iter().chain(&NEGATIVE).chain(&PLACES);
    words.extend(adjectives.map(|&word| word.to_owned()));
    let mut phrases: Vec<String> = grammar::phrases().map(str::to_owned).collect();
    phrases.extend(pretrain::PHRASES.iter().map(|&phrase| phrase.to_owned()));
    for forum_labels in [ForumLabels::Shared, ForumLabels::Own] {
        for spec in demo_specs(&DemoConfig {
            forum_labels,
            ..DemoConfig::default()
        }) {
            phrases.push(spec.prompt(true, ""));
            phrases.extend(spec.labels);
        }
    }
    for phrase in &phrases {
        words.extend(
            words_of(phrase)
                .filter(|word| !word.starts_with('{'))
                .map(str::to_owned),
        );
    }
    words.into_iter().collect()
}

/// The words of generated text, punctuation stripped.
pub(super) fn words_of(text: &str) -> impl Iterator<Item = &str> {
    let is_mark = |character: char| PUNCTUATION.iter().any(|mark| mark.starts_with(character));
    text.split_whitespace()
        .map(move |word| word.trim_end_matches(is_mark))
        .filter(|w| !w.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals_are_regular() {
        let cases = [
            ("ball", "balls"),
            ("match", "matches"),
            ("tax", "taxes"),
            ("chorus", "choruses"),
            ("bakery", "bakeries"),
            ("monkey", "monkeys"),
            ("cough", "coughs"),
            ("piano", "pianos"),
        ];
        for (noun, expected) in cases {
            assert_eq!(plural(noun), expected);
        }
    }

    #[test]
    fn meanings_do_not_overlap() {
        let mut content: Vec<String> = Vec::new();
        for topic in TOPICS {
            content.extend(topic.nouns.map(str::to_owned));
            content.extend(topic.nouns.map(plural));
        }
        content.extend(
            [POSITIVE, NEGATIVE]
                .concat()
                .iter()
                .map(|word| word.to_string()),
        );
        let distinct: BTreeSet<&str> = content.iter().map(String::as_str).collect();
        assert_eq!(
            distinct.len(),
            content.len(),
            "a content word has two meanings"
        );

        let phrases = grammar::phrases().chain(pretrain::PHRASES).chain(PLACES);
        let glue: BTreeSet<&str> = phrases.flat_map(words_of).collect();
        let answers = [ForumLabels::Shared, ForumLabels::Own]
            .into_iter()
            .flat_map(|forum_labels| {
                let config = DemoConfig {
                    forum_labels,
                    ..DemoConfig::default()
                };
                demo_specs(&config).into_iter().flat_map(|spec| spec.labels)
            });
        let topics = TOPICS.iter().map(|topic| topic.name.to_owned());
        let answers: BTreeSet<String> = answers.chain(topics).collect();
        // Neither glue nor answers carry a meaning that a task asks for, and no text says an answer.
        assert!(
            glue.is_disjoint(&distinct),
            "{:?}",
            glue.intersection(&distinct)
        );
        for answer in &answers {
            assert!(!distinct.contains(answer.as_str()), "{answer}");
            assert!(!glue.contains(answer.as_str()), "{answer}");
        }
    }

    #[test]
    fn the_lexicon_is_small() {
        let words = lexicon();
        assert!(words.len() + PUNCTUATION.len() <= 700, "{}", words.len());
        assert!(
            words
                .iter()
                .all(|word| word.bytes().all(|byte| byte.is_ascii_lowercase()))
        );
        assert!(words.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
