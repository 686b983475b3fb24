//! Scenes and the sentences that tell them.

use rand_chacha::ChaCha8Rng;

use super::lexicon::{NEGATIVE, PLACES, POSITIVE, TOPICS, plural};
use crate::random::{below, chance, pick};

/// What a sentence means: four independent factors, each of which a task may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scene {
    /// Index into [`TOPICS`].
    pub topic: usize,
    /// Whether the opinion is praise.
    pub positive: bool,
    /// Whether the sentence is about several things.
    pub plural: bool,
    /// 0 past, 1 present, 2 future.
    pub tense: usize,
}

/// A family of sentence templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Genre {
    /// Newspaper sentences, with three nouns of the topic.
    News,
    /// Questions and remarks, with three nouns of the topic.
    Forum,
    /// Reviews of a product.
    Review,
    /// Short messages.
    Post,
    /// Reminders.
    Note,
}

/// Which half of the nouns and adjectives a text mostly uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bank {
    /// The first half.
    First,
    /// The second half.
    Second,
    /// Both alike.
    Both,
}

/// How a sentence is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// The templates.
    pub genre: Genre,
    /// The words.
    pub bank: Bank,
    /// Probability in percent that the least important noun comes from another topic.
    pub noise_percent: usize,
}

// Slots: S subject, A and B further nouns of the topic (B may be noise), V verb, O and Q
// adjectives of the opinion, I intensifier, P place, T time.
const NEWS: [&str; 4] = [
    "{T} the paper said that {S} with {A} near {B} {V} {O}.",
    "news report: {S} from {A} {V} {I} {O} {T} beside {B}.",
    "our city wrote {T} that {S} {V} {O} after {A} and {B}.",
    "{S} in the story about {A} and {B} {V} {I} {O}.",
];
const FORUM: [&str; 4] = [
    "does anyone know why {S} with {A} {V} so {O} near {B}?",
    "my friend asked about {A} and {B} because {S} {V} {O} {T}.",
    "hello all, i think {S} for {A} {V} {I} {O} {T}, like {B}.",
    "help me please: {S} behind {A} and {B} {V} {I} {O}.",
];
const REVIEW: [&str; 4] = [
    "we tried {A} {P} and {S} {V} {I} {O}.",
    "in my opinion {S} {V} {O} and {Q} {T}.",
    "i paid for {A} but found that {S} {V} {I} {O}.",
    "our review: {S} {V} {I} {O} {P}, yes, {Q}.",
];
const POST: [&str; 4] = [
    "wow, {S} {P} {V} so {O} {T}!",
    "you all, {S} {V} {O} and {Q} {P}!",
    "everyone here says {S} {V} {I} {O} {T}.",
    "see {A}: {S} {V} {O} {P}!",
];
const NOTE: [&str; 4] = [
    "note: {S} {P} {V} {O} {T}.",
    "{T} {S} near {A} {V} {I} {O}.",
    "do not forget that {S} {V} {O} {P}.",
    "remember: {S} with {A} {V} {O} {T}.",
];
const SINGULAR_DETERMINERS: [&str; 3] = ["the", "this", "that"];
const PLURAL_DETERMINERS: [&str; 3] = ["the", "these", "those"];
const INTENSIFIERS: [&str; 5] = ["very", "really", "quite", "rather", "truly"];
const PREPOSITIONS: [&str; 4] = ["near", "beside", "behind", "by"];
/// By tense.
const TIMES: [[&str; 3]; 3] = [
    ["yesterday", "last week", "last night"],
    ["today", "right now", "this morning"],
    ["tomorrow", "next week", "next month"],
];
/// By tense: singular and plural forms.
const VERBS: [[[&str; 4]; 2]; 3] = [
    [
        ["was", "seemed", "looked", "felt"],
        ["were", "seemed", "looked", "felt"],
    ],
    [
        ["is", "seems", "looks", "feels"],
        ["are", "seem", "look", "feel"],
    ],
    [["will be", "will seem", "will look", "will feel"]; 2],
];

/// All templates and closed-class words.
pub(super) fn phrases() -> impl Iterator<Item = &'static str> {
    let templates = [NEWS, FORUM, REVIEW, POST, NOTE].into_iter().flatten();
    let determiners = SINGULAR_DETERMINERS.into_iter().chain(PLURAL_DETERMINERS);
    let verbs = VERBS.into_iter().flatten().flatten();
    templates
        .chain(determiners)
        .chain(INTENSIFIERS)
        .chain(PREPOSITIONS)
        .chain(TIMES.into_iter().flatten())
        .chain(verbs)
}

impl Genre {
    /// All genres.
    pub const ALL: [Self; 5] = [
        Self::News,
        Self::Forum,
        Self::Review,
        Self::Post,
        Self::Note,
    ];

    fn templates(self) -> &'static [&'static str; 4] {
        match self {
            Self::News => &NEWS,
            Self::Forum => &FORUM,
            Self::Review => &REVIEW,
            Self::Post => &POST,
            Self::Note => &NOTE,
        }
    }
}

impl Scene {
    /// A scene in which every factor is drawn uniformly, the topic from `topics`.
    pub(super) fn draw(rng: &mut ChaCha8Rng, topics: &[usize]) -> Self {
        Self {
            topic: topics[below(rng, topics.len())],
            positive: chance(rng, 50),
            plural: chance(rng, 50),
            tense: below(rng, 3),
        }
    }

    /// A sentence that tells the scene.
    pub(super) fn tell(&self, rng: &mut ChaCha8Rng, style: Style) -> String {
        let template = pick(rng, style.genre.templates());
        let mut used = Vec::new();
        let words: Vec<String> = template
            .split(' ')
            .map(|token| {
                match token
                    .strip_prefix('{')
                    .and_then(|rest| rest.split_once('}'))
                {
                    Some((slot, mark)) => self.fill(rng, slot, style, &mut used) + mark,
                    None => token.to_owned(),
                }
            })
            .collect();
        words.join(" ")
    }

    fn fill(
        &self,
        rng: &mut ChaCha8Rng,
        slot: &str,
        style: Style,
        used: &mut Vec<&'static str>,
    ) -> String {
        match slot {
            "S" => {
                let determiners = if self.plural {
                    PLURAL_DETERMINERS
                } else {
                    SINGULAR_DETERMINERS
                };
                let determiner = pick(rng, &determiners);
                format!(
                    "{determiner} {}",
                    self.noun(rng, self.topic, style.bank, used)
                )
            }
            "B" if chance(rng, style.noise_percent) => {
                let other = (self.topic + 1 + below(rng, TOPICS.len() - 1)) % TOPICS.len();
                format!("the {}", self.noun(rng, other, style.bank, used))
            }
            "A" | "B" => format!("the {}", self.noun(rng, self.topic, style.bank, used)),
            "V" => pick(rng, &VERBS[self.tense][usize::from(self.plural)]).to_owned(),
            "I" => pick(rng, &INTENSIFIERS).to_owned(),
            "P" => format!("{} the {}", pick(rng, &PREPOSITIONS), pick(rng, &PLACES)),
            "T" => pick(rng, &TIMES[self.tense]).to_owned(),
            // O and Q.
            _ => {
                let adjectives = if self.positive { &POSITIVE } else { &NEGATIVE };
                fresh(rng, adjectives, style.bank, used).to_owned()
            }
        }
    }

    fn noun(
        &self,
        rng: &mut ChaCha8Rng,
        topic: usize,
        bank: Bank,
        used: &mut Vec<&'static str>,
    ) -> String {
        let noun = fresh(rng, &TOPICS[topic].nouns, bank, used);
        if self.plural {
            plural(noun)
        } else {
            noun.to_owned()
        }
    }
}

/// A word of the bank, in one case out of eight of the other bank, that was not used before.
fn fresh(
    rng: &mut ChaCha8Rng,
    words: &'static [&'static str],
    bank: Bank,
    used: &mut Vec<&'static str>,
) -> &'static str {
    let (first, second) = words.split_at(words.len() / 2);
    let (main, other) = match bank {
        Bank::First => (first, second),
        Bank::Second => (second, first),
        Bank::Both => (words, words),
    };
    // A sentence has at most three words of a kind, far fewer than a bank: the loop ends.
    loop {
        let half = if below(rng, 8) == 0 { other } else { main };
        let word = pick(rng, half);
        if !used.contains(&word) {
            used.push(word);
            return word;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::keyed;
    use crate::synthetic::lexicon::words_of;

    #[test]
    fn sentences_tell_their_scene() {
        let mut rng = keyed(&[5]);
        let topics: Vec<usize> = (0..TOPICS.len()).collect();
        for round in 0..2000 {
            let genre = Genre::ALL[round % Genre::ALL.len()];
            let scene = Scene::draw(&mut rng, &topics);
            let style = Style {
                genre,
                bank: Bank::Both,
                noise_percent: 50,
            };
            let text = scene.tell(&mut rng, style);
            assert!(!text.contains(['{', '}']) && !text.contains("  "), "{text}");
            let words: Vec<&str> = words_of(&text).collect();
            let count_in = |list: &[&str]| words.iter().filter(|word| list.contains(word)).count();
            let (praise, blame) = (count_in(&POSITIVE), count_in(&NEGATIVE));
            assert_eq!(
                (praise > 0, blame > 0),
                (scene.positive, !scene.positive),
                "{text}"
            );
            let nouns = |topic: usize, number: bool| {
                let forms = TOPICS[topic]
                    .nouns
                    .map(|n| if number { plural(n) } else { n.to_owned() });
                words
                    .iter()
                    .filter(|word| forms.iter().any(|form| form == *word))
                    .count()
            };
            let own = nouns(scene.topic, scene.plural);
            let all: usize = topics
                .iter()
                .map(|&t| nouns(t, true) + nouns(t, false))
                .sum();
            // All nouns have the scene's number; at most one is of another topic, never most of them.
            assert!(own >= 1 && all - own <= 1 && own > all - own, "{text}");
        }
    }
}
