//! Endless text to pre-train a small backbone on, without any demo task's question and answer.

use rand_chacha::ChaCha8Rng;

use super::grammar::{Bank, Genre, Scene, Style};
use super::lexicon::{NEGATIVE, POSITIVE, TOPICS, lexicon, plural, words_of};
use super::{DEMO_TOPICS, prompt};
use crate::example::Example;
use crate::random::{below, chance, choose_sorted, keyed, shuffle};

/// The words of this module's prompts and answers, for the lexicon.
pub(super) const PHRASES: [&str; 14] = [
    "words: and",
    "occurs: which word occurs?",
    "topic: what is it about?",
    "sentiment: how does it feel?",
    "happy sad",
    "number: which number?",
    "single several",
    "time: when is it?",
    "before now later",
    "kind: which word fits?",
    "first: what is the first word?",
    "last: what is the last word?",
    "options: text:",
    "also",
];

/// Unlabelled text without end: sentences of every genre and topic, and lists of words that belong
/// together (or, now and then, of arbitrary words, so that label words are seen as words without
/// being tied to a meaning).
pub fn pretraining_text(seed: u64) -> impl Iterator<Item = String> {
    let lexicon = lexicon();
    let mut rng = keyed(&[seed, 0x7465_7874]);
    std::iter::repeat_with(move || {
        let rng = &mut rng;
        let scene = Scene::draw(rng, &all_topics());
        match below(rng, 100) {
            0..80 => tell(rng, scene),
            80..88 => word_list(rng, &TOPICS[scene.topic].nouns),
            88..94 => word_list(rng, if scene.positive { &POSITIVE } else { &NEGATIVE }),
            _ => word_list(rng, &lexicon.iter().map(String::as_str).collect::<Vec<_>>()),
        }
    })
}

/// Supervised items without end that teach the skills the demo tasks need, never their labels.
///
/// Topics are asked for only where the demo suite does not (travel, health, ..); opinion and
/// number have other label words; the other kinds (a word that occurs, the first or last word, a noun
/// that fits the text) teach to read the question and to choose among options. Label words of the
/// demo tasks occur as options of the copying kinds only, independent of the text's meaning.
/// Prompts have the form of the demo's: `kind: question options: a, b. text: ..`.
pub fn instruction_items(seed: u64) -> impl Iterator<Item = Example> {
    let lexicon = lexicon();
    let mut rng = keyed(&[seed, 0x6974_656d]);
    std::iter::repeat_with(move || {
        let rng = &mut rng;
        match below(rng, 10) {
            0..2 => occurs(rng, &lexicon),
            2 => edge_word(rng),
            3..5 => held_out_topic(rng),
            5..7 => kind(rng),
            7 => sentiment(rng),
            8 => number(rng),
            _ => time(rng),
        }
    })
}

fn all_topics() -> Vec<usize> {
    (0..TOPICS.len()).collect()
}

fn held_out_topics() -> Vec<usize> {
    (DEMO_TOPICS..TOPICS.len()).collect()
}

fn tell(rng: &mut ChaCha8Rng, scene: Scene) -> String {
    let genre = Genre::ALL[below(rng, Genre::ALL.len())];
    scene.tell(
        rng,
        Style {
            genre,
            bank: Bank::Both,
            noise_percent: 10,
        },
    )
}

fn word_list(rng: &mut ChaCha8Rng, words: &[&str]) -> String {
    let count = 3 + below(rng, 3);
    let mut chosen = choose_sorted(rng, words.len(), count);
    shuffle(rng, &mut chosen);
    let chosen: Vec<&str> = chosen.into_iter().map(|index| words[index]).collect();
    let (last, others) = chosen
        .split_last()
        .map_or(("", &[][..]), |(last, rest)| (*last, rest));
    format!("words: {} and {last}.", others.join(", "))
}

fn item(kind_and_question: &str, options: &[&str], text: &str, answer: &str) -> Example {
    Example::plain(prompt(kind_and_question, Some(options), text), answer)
}

/// Which of two arbitrary words was put before or behind the text.
fn occurs(rng: &mut ChaCha8Rng, lexicon: &[String]) -> Example {
    let scene = Scene::draw(rng, &all_topics());
    let text = tell(rng, scene);
    let present: Vec<&str> = words_of(&text).chain(["also"]).collect();
    let absent: Vec<&str> = lexicon
        .iter()
        .map(String::as_str)
        .filter(|word| !present.contains(word))
        .collect();
    let mut options: Vec<&str> = choose_sorted(rng, absent.len(), 2)
        .into_iter()
        .map(|index| absent[index])
        .collect();
    shuffle(rng, &mut options);
    let answer = options[below(rng, options.len())];
    let text = if chance(rng, 50) {
        format!("{text} also {answer}.")
    } else {
        format!("also {answer}. {text}")
    };
    item("occurs: which word occurs?", &options, &text, answer)
}

fn edge_word(rng: &mut ChaCha8Rng) -> Example {
    let nouns: Vec<&str> = TOPICS.iter().flat_map(|topic| topic.nouns).collect();
    let mut chosen = choose_sorted(rng, nouns.len(), 4);
    shuffle(rng, &mut chosen);
    let words: Vec<&str> = chosen.into_iter().map(|index| nouns[index]).collect();
    let text = words.join(" ");
    if chance(rng, 50) {
        Example::plain(
            prompt("first: what is the first word?", None, &text),
            words[0],
        )
    } else {
        Example::plain(
            prompt("last: what is the last word?", None, &text),
            words[3],
        )
    }
}

fn held_out_topic(rng: &mut ChaCha8Rng) -> Example {
    let count = 2 + below(rng, 3);
    let topics = held_out_topics();
    let mut chosen = choose_sorted(rng, topics.len(), count);
    shuffle(rng, &mut chosen);
    let options: Vec<&str> = chosen
        .iter()
        .map(|&index| TOPICS[topics[index]].name)
        .collect();
    let answer = below(rng, options.len());
    let scene = Scene::draw(rng, &[topics[chosen[answer]]]);
    let text = tell(rng, scene);
    item("topic: what is it about?", &options, &text, options[answer])
}

fn sentiment(rng: &mut ChaCha8Rng) -> Example {
    let scene = Scene::draw(rng, &all_topics());
    let answer = if scene.positive { "happy" } else { "sad" };
    let text = tell(rng, scene);
    item(
        "sentiment: how does it feel?",
        &shuffled(rng, ["happy", "sad"]),
        &text,
        answer,
    )
}

fn number(rng: &mut ChaCha8Rng) -> Example {
    let scene = Scene::draw(rng, &all_topics());
    let answer = if scene.plural { "several" } else { "single" };
    let text = tell(rng, scene);
    item(
        "number: which number?",
        &shuffled(rng, ["single", "several"]),
        &text,
        answer,
    )
}

fn time(rng: &mut ChaCha8Rng) -> Example {
    let scene = Scene::draw(rng, &all_topics());
    let names = ["before", "now", "later"];
    let text = tell(rng, scene);
    item(
        "time: when is it?",
        &shuffled(rng, names),
        &text,
        names[scene.tense],
    )
}

/// Which of some nouns is of the text's topic.
fn kind(rng: &mut ChaCha8Rng) -> Example {
    let count = 2 + below(rng, 3);
    let mut topics = all_topics();
    shuffle(rng, &mut topics);
    topics.truncate(count);
    let answer = below(rng, count);
    let scene = Scene::draw(rng, &[topics[answer]]);
    let text = tell(rng, scene);
    let inflect = |noun: &str| {
        if scene.plural {
            plural(noun)
        } else {
            noun.to_owned()
        }
    };
    let options: Vec<String> = topics
        .into_iter()
        .map(|topic| {
            // A word of the text would be found by its looks.
            let mut words = TOPICS[topic].nouns.map(inflect).to_vec();
            words.retain(|word| !words_of(&text).any(|other| other == word));
            let chosen = below(rng, words.len());
            words.swap_remove(chosen)
        })
        .collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    item("kind: which word fits?", &options, &text, options[answer])
}

fn shuffled<const N: usize>(
    rng: &mut ChaCha8Rng,
    mut words: [&'static str; N],
) -> [&'static str; N] {
    shuffle(rng, &mut words);
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{DemoConfig, demo_specs};
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn streams_depend_on_the_seed_alone() {
        let text = |seed| pretraining_text(seed).take(50).collect::<Vec<_>>();
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
        let items = |seed| instruction_items(seed).take(50).collect::<Vec<_>>();
        assert_eq!(items(1), items(1));
        assert_ne!(items(1), items(2));
    }

    #[test]
    fn the_lexicon_covers_everything() {
        let lexicon: BTreeSet<String> = lexicon().into_iter().collect();
        let items = instruction_items(3).take(5000);
        let texts = items.flat_map(|item| [item.prompt(), item.target]);
        for text in pretraining_text(3).take(5000).chain(texts) {
            for word in words_of(&text) {
                assert!(lexicon.contains(word), "`{word}` in `{text}`");
            }
        }
    }

    #[test]
    fn demo_labels_are_answers_of_copying_items_only() {
        let labels: BTreeSet<String> = demo_specs(&DemoConfig::default())
            .into_iter()
            .flat_map(|spec| spec.labels)
            .collect();
        let mut kinds = BTreeMap::new();
        for item in instruction_items(4).take(20_000) {
            let prompt = item.prompt();
            let kind = prompt.split_once(':').unwrap().0.to_owned();
            if labels.contains(&item.target) {
                assert_eq!(kind, "occurs", "{prompt} -> {}", item.target);
            }
            *kinds.entry(kind).or_insert(0) += 1;
        }
        assert_eq!(kinds.len(), 8, "{kinds:?}");
    }

    #[test]
    fn options_hold_the_answer_and_the_word_that_occurs() {
        for item in instruction_items(5).take(5000) {
            let prompt = item.prompt();
            let Some((_, rest)) = prompt.split_once("options: ") else {
                continue;
            };
            let (options, text) = rest.split_once(". text: ").unwrap();
            let options: Vec<&str> = options.split(", ").collect();
            assert!(
                options.contains(&item.target.as_str()),
                "{prompt} -> {}",
                item.target
            );
            if prompt.starts_with("occurs") {
                let occurring: Vec<_> = options
                    .iter()
                    .filter(|&&option| words_of(text).any(|word| word == option))
                    .collect();
                assert_eq!(occurring, [&item.target.as_str()], "{prompt}");
            }
        }
    }
}
