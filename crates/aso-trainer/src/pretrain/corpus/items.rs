//! Items made from texts: what a model must be able to do with a prompt, whatever the labels.

use std::ops::Range;

use aso_data::Example;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Corpus;
use super::terms::{Terms, Word};

/// Words of a text that an item shows at most.
const MAX_WORDS: usize = 40;
/// Words of a text that an item needs at least.
const MIN_WORDS: usize = 6;
/// Words of a text that are to be repeated.
const REPEATED: usize = 8;
/// Draws before a kind of item is given up.
const TRIES: usize = 20;

/// What an item asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ItemKind {
    /// All options once more, or a stretch of the text: copying is learned soonest where every token is to be copied.
    Repeat,
    /// Which of the options the text mentions.
    Mention,
    /// Which option belongs to the text, that is, was taken out of it.
    Belong,
    /// Which name fits the group of texts that the text belongs to.
    Group,
    /// Which of several words of similar meaning stands in the gap.
    Gap,
    /// Whether two passages stand next to each other.
    Pair,
}

/// Shares of the kinds, in percent.
const SHARES: [(ItemKind, u32); 6] = [
    (ItemKind::Repeat, 12),
    (ItemKind::Mention, 12),
    (ItemKind::Belong, 26),
    (ItemKind::Group, 22),
    (ItemKind::Gap, 20),
    (ItemKind::Pair, 8),
];

/// Makes items from a corpus. Item `n` is a function of the seed and n.
pub struct ItemMaker {
    texts: Vec<String>,
    terms: Terms,
    seed: u64,
    /// What stands in a gap.
    gap: &'static str,
}

impl ItemMaker {
    /// `vector_of` gives the vector of a word (those of its tokens, added); `gap` is what is written into a gap.
    pub fn new(
        corpus: &Corpus,
        seed: u64,
        gap: &'static str,
        vector_of: impl Fn(&str) -> Option<Vec<f32>> + Sync,
    ) -> Self {
        Self {
            terms: Terms::new(corpus.texts(), seed, vector_of),
            texts: corpus.texts().to_vec(),
            seed,
            gap,
        }
    }

    /// Item number `number`, with its kind. `None` if the corpus is too small for any.
    pub fn item(&self, number: u64) -> Option<(ItemKind, Example)> {
        let rng = &mut ChaCha8Rng::seed_from_u64(self.seed ^ 0x6974_656d);
        rng.set_stream(number);
        for _ in 0..TRIES {
            let kind = kind(rng);
            let item = match kind {
                ItemKind::Repeat => self.repeat(rng),
                ItemKind::Mention => self.mention(rng),
                ItemKind::Belong => self.belong(rng),
                ItemKind::Group => self.group(rng),
                ItemKind::Gap => self.gap(rng),
                ItemKind::Pair => self.pair(rng),
            };
            if let Some(item) = item {
                return Some((kind, item));
            }
        }
        None
    }

    /// A stretch of words of a random text.
    fn passage(&self, rng: &mut ChaCha8Rng) -> Option<Passage<'_>> {
        if self.texts.is_empty() {
            return None;
        }
        let text = rng.random_range(0..self.texts.len());
        let words = &self.terms.texts[text];
        if words.len() < MIN_WORDS {
            return None;
        }
        let length = words.len().min(rng.random_range(MAX_WORDS / 3..=MAX_WORDS));
        // Half of the passages are beginnings, which titles and openings stand in.
        let last = words.len() - length;
        let first = if rng.random_bool(0.5) {
            0
        } else {
            rng.random_range(0..=last)
        };
        Some(Passage {
            text,
            string: &self.texts[text],
            words: &words[first..first + length],
        })
    }

    /// Distinct terms of a passage, those that belong to it most first.
    fn topical(&self, passage: &Passage<'_>) -> (Vec<u32>, Vec<f32>) {
        let topic = self.terms.topic(passage.words);
        let mut terms: Vec<u32> = passage.terms().collect();
        terms.sort_unstable();
        terms.dedup();
        let mut scored: Vec<(u32, f32)> = terms
            .into_iter()
            .map(|term| (term, self.terms.belonging(term, &topic, true)))
            .collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        (scored.into_iter().map(|(term, _)| term).collect(), topic)
    }

    /// One of the terms that say most about a passage.
    fn topical_term(&self, rng: &mut ChaCha8Rng, passage: &Passage<'_>) -> Option<u32> {
        let (terms, _) = self.topical(passage);
        let top = terms.len().div_ceil(3);
        (top > 0).then(|| terms[rng.random_range(0..top)])
    }

    fn repeat(&self, rng: &mut ChaCha8Rng) -> Option<Example> {
        let passage = self.passage(rng)?;
        let mut options: Vec<String> = self
            .others(rng, |_| true)?
            .into_iter()
            .map(|term| self.name(term).to_owned())
            .collect();
        options.truncate(6);
        let text = passage.shown(self.gap, |_| Show::Word);
        let (question, answer) = match rng.random_bool(0.5) {
            true => ("Repeat the options.", options.join(", ")),
            false => {
                let beginning = Passage {
                    words: &passage.words[..REPEATED.min(passage.words.len())],
                    ..passage
                };
                let answer = beginning.shown(self.gap, |_| Show::Word);
                ("Repeat the beginning of the following text.", answer)
            }
        };
        Some(prompt(rng, question, &options, &text, &answer))
    }

    fn mention(&self, rng: &mut ChaCha8Rng) -> Option<Example> {
        let passage = self.passage(rng)?;
        let terms: Vec<u32> = passage.terms().collect();
        let answer = *terms.get(rng.random_range(0..terms.len().max(1)))?;
        let others = self.others(rng, |term| !terms.contains(&term))?;
        let question = pick(
            rng,
            &[
                "Which word occurs in the following text?",
                "Which option is mentioned?",
            ],
        );
        let text = passage.shown(self.gap, |_| Show::Word);
        Some(self.choice(rng, question, answer, others, &text))
    }

    fn belong(&self, rng: &mut ChaCha8Rng) -> Option<Example> {
        let passage = self.passage(rng)?;
        let (terms, topic) = self.topical(&passage);
        let top = terms.len().div_ceil(3);
        if terms.len() < 3 {
            return None;
        }
        let answer = terms[rng.random_range(0..top)];
        let fit = self.terms.belonging(answer, &topic, true);
        let others = self.others(rng, |term| {
            !terms.contains(&term) && self.terms.belonging(term, &topic, false) < fit
        })?;
        let question = pick(
            rng,
            &[
                "Which word belongs to the following text?",
                "What is the following paragraph about?",
            ],
        );
        let text = passage.shown(self.gap, |term| match term {
            Some(term) if term == answer => Show::Nothing,
            _ => Show::Word,
        });
        Some(self.choice(rng, question, answer, others, &text))
    }

    fn group(&self, rng: &mut ChaCha8Rng) -> Option<Example> {
        let passage = self.passage(rng)?;
        let group = self.terms.group_of[passage.text];
        let name = |rng: &mut ChaCha8Rng, group: u32| {
            let names = self.terms.group_names.get(group as usize)?;
            let first = *names.get(rng.random_range(0..names.len().max(1)))?;
            let second = names[rng.random_range(0..names.len())];
            let (first, second) = (self.name(first), self.name(second));
            let joined = if first != second && rng.random_bool(0.3) {
                format!("{first} {} {second}", pick(rng, &["or", "and"]))
            } else {
                first.to_owned()
            };
            Some(joined)
        };
        let answer = name(rng, group)?;
        let count = rng.random_range(1..=9);
        let mut options = vec![answer.clone()];
        for _ in 0..3 * count {
            let other = self.terms.group_of[rng.random_range(0..self.texts.len())];
            if other == group || options.len() > count {
                continue;
            }
            let other = name(rng, other)?;
            if !options.contains(&other) {
                options.push(other);
            }
        }
        let question = pick(
            rng,
            &[
                "What is the topic of the following text?",
                "Which subject does the text have?",
            ],
        );
        let text = passage.shown(self.gap, |_| Show::Word);
        options.shuffle(rng);
        Some(prompt(rng, question, &options, &text, &answer))
    }

    fn gap(&self, rng: &mut ChaCha8Rng) -> Option<Example> {
        let passage = self.passage(rng)?;
        let terms: Vec<u32> = passage.terms().collect();
        let answer = *terms.get(rng.random_range(0..terms.len().max(1)))?;
        let count = rng.random_range(1..=4);
        let mut others: Vec<u32> = self.terms.neighbours[answer as usize]
            .iter()
            .copied()
            .filter(|term| !terms.contains(term))
            .collect();
        others.shuffle(rng);
        others.truncate(count);
        if others.is_empty() {
            return None;
        }
        let question = pick(
            rng,
            &["Which word is missing?", "Which word fits into the gap?"],
        );
        let text = passage.shown(self.gap, |term| match term {
            Some(term) if term == answer => Show::Gap,
            _ => Show::Word,
        });
        Some(self.choice(rng, question, answer, others, &text))
    }

    fn pair(&self, rng: &mut ChaCha8Rng) -> Option<Example> {
        let passage = self.passage(rng)?;
        let other = self.passage(rng)?;
        let (first, second) = passage.halves();
        let together = rng.random_bool(0.5);
        if passage.words.len() < 2 * MIN_WORDS || other.text == passage.text {
            return None;
        }
        let second = if together { second } else { other.halves().1 };
        let (yes, no) = *[("yes", "no"), ("same", "different"), ("right", "wrong")]
            .get(rng.random_range(0..3))?;
        let text = format!("sentence 1: {first}\nsentence 2: {second}");
        let mut options = vec![yes.to_owned(), no.to_owned()];
        options.shuffle(rng);
        let question = "Do the two sentences belong together?";
        let answer = if together { yes } else { no };
        Some(prompt(rng, question, &options, &text, answer))
    }

    /// Up to 13 topical terms of other passages, distinct, that `fit`.
    fn others(&self, rng: &mut ChaCha8Rng, fit: impl Fn(u32) -> bool) -> Option<Vec<u32>> {
        // Few options are the rule, as in benchmarks.
        let count = if rng.random_bool(0.7) {
            rng.random_range(1..=4)
        } else {
            rng.random_range(5..=13)
        };
        let mut others = Vec::new();
        for _ in 0..4 * count {
            let Some(passage) = self.passage(rng) else {
                continue;
            };
            let Some(term) = self.topical_term(rng, &passage) else {
                continue;
            };
            if fit(term) && !others.contains(&term) {
                others.push(term);
            }
            if others.len() == count {
                break;
            }
        }
        (!others.is_empty()).then_some(others)
    }

    fn choice(
        &self,
        rng: &mut ChaCha8Rng,
        question: &str,
        answer: u32,
        others: Vec<u32>,
        text: &str,
    ) -> Example {
        let mut options: Vec<String> = std::iter::once(answer)
            .chain(others)
            .map(|term| self.name(term).to_owned())
            .collect();
        options.shuffle(rng);
        prompt(rng, question, &options, text, self.name(answer))
    }

    fn name(&self, term: u32) -> &str {
        &self.terms.names[term as usize]
    }
}

/// How a word of a passage appears.
enum Show {
    Word,
    Gap,
    Nothing,
}

struct Passage<'a> {
    text: usize,
    string: &'a str,
    words: &'a [Word],
}

impl Passage<'_> {
    fn terms(&self) -> impl Iterator<Item = u32> {
        self.words.iter().filter_map(|word| word.term)
    }

    /// Bytes from the first word's start to the last word's end, with a mark that ends a sentence.
    fn span(&self) -> Range<usize> {
        let start = self.words.first().map_or(0, |word| word.at.start);
        let end = self.words.last().map_or(0, |word| word.at.end);
        let rest = &self.string[end..];
        let mark = rest.chars().next().filter(|c| matches!(c, '.' | '!' | '?'));
        start..end + mark.map_or(0, char::len_utf8)
    }

    fn shown(&self, gap: &str, show: impl Fn(Option<u32>) -> Show) -> String {
        let span = self.span();
        let mut shown = String::with_capacity(span.len());
        let mut done = span.start;
        for word in self.words {
            shown.push_str(&self.string[done..word.at.start]);
            match show(word.term) {
                Show::Word => shown.push_str(&self.string[word.at.clone()]),
                Show::Gap => shown.push_str(gap),
                Show::Nothing => {}
            }
            done = word.at.end;
        }
        shown.push_str(&self.string[done..span.end]);
        shown
    }

    fn halves(&self) -> (&str, &str) {
        let span = self.span();
        let middle = self.words[self.words.len() / 2].at.start;
        (
            &self.string[span.start..middle],
            &self.string[middle..span.end],
        )
    }
}

fn kind(rng: &mut ChaCha8Rng) -> ItemKind {
    let mut draw = rng.random_range(0..100);
    for (kind, share) in SHARES {
        if draw < share {
            return kind;
        }
        draw -= share;
    }
    ItemKind::Belong
}

fn pick<'a>(rng: &mut ChaCha8Rng, choices: &[&'a str]) -> &'a str {
    choices[rng.random_range(0..choices.len())]
}

/// A prompt in the benchmark's form, or without its first two lines.
fn prompt(
    rng: &mut ChaCha8Rng,
    question: &str,
    options: &[String],
    text: &str,
    answer: &str,
) -> Example {
    let mut prefix = String::new();
    if rng.random_bool(0.7) {
        let task = pick(rng, &["TC", "SC", "NLI", "QQP", "text", "choice"]);
        let name = pick(
            rng,
            &["news", "reviews", "titles", "articles", "web", "mixed"],
        );
        prefix = format!("Task:{task}\nDataset:{name}\n");
    }
    let ending = pick(rng, &[" Choose one from the option.", ""]);
    prefix += &format!("{question}{ending}\nOption: {} \n", options.join(", "));
    Example {
        prefix,
        sentence: text.to_owned(),
        suffix: "\nAnswer:".to_owned(),
        target: answer.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maker() -> ItemMaker {
        // Two topics; the vector of a word is its topic, with a little of its own.
        let (a, b) = ("tree leaf root bark soil", "goal team ball coach match");
        let filler: Vec<String> = (0..200)
            .map(|n| {
                format!(
                    "w{}",
                    "abcdefghij"
                        .chars()
                        .nth(n % 10)
                        .unwrap_or('z')
                        .to_string()
                        .repeat(1 + n / 10)
                )
            })
            .collect();
        let texts = (0..80).map(|text| {
            let topic: Vec<&str> = if text % 2 == 0 { a } else { b }.split(' ').collect();
            let words: Vec<String> = (0..16)
                .map(|at| match at % 2 {
                    0 => topic[(text + at / 2) % 5].to_owned(),
                    _ => filler[(text * 7 + at * 3) % filler.len()].clone(),
                })
                .collect();
            words.join(" ") + "."
        });
        let corpus = Corpus::new(texts.collect());
        let vector_of = |word: &str| {
            let topic = if a.contains(word) {
                0
            } else if b.contains(word) {
                1
            } else {
                2
            };
            let mut vector = vec![0.0; 8];
            vector[topic] = 1.0;
            vector[3 + word.len() % 5] = 0.2;
            Some(vector)
        };
        ItemMaker::new(&corpus, 1, "<extra_id_0>", vector_of)
    }

    #[test]
    fn the_answer_is_an_option_and_follows_the_rule_of_its_kind() {
        let maker = maker();
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..400 {
            let Some((kind, item)) = maker.item(number) else {
                continue;
            };
            seen.insert(kind);
            let options = item.prefix.split("Option: ").nth(1).unwrap();
            let options: Vec<&str> = options.trim_end().split(", ").collect();
            if kind != ItemKind::Repeat {
                assert!(options.contains(&item.target.as_str()), "{item:?}");
                assert!(options.len() > 1, "{item:?}");
            }
            let words: Vec<&str> = item.sentence.split([' ', '.', '\n']).collect();
            match kind {
                ItemKind::Repeat => {
                    let repeated = options.join(", ");
                    let text = item.sentence.starts_with(&item.target);
                    assert!(item.target == repeated || text, "{item:?}");
                }
                ItemKind::Mention => {
                    let found = options.iter().filter(|o| words.contains(o)).count();
                    assert_eq!(found, 1, "{item:?}");
                    assert!(words.contains(&item.target.as_str()));
                }
                ItemKind::Belong => {
                    assert!(options.iter().all(|o| !words.contains(o)), "{item:?}");
                }
                ItemKind::Gap => {
                    assert!(item.sentence.contains("<extra_id_0>"));
                    assert!(!words.contains(&item.target.as_str()));
                }
                ItemKind::Group | ItemKind::Pair => {}
            }
            assert_eq!(maker.item(number).unwrap().1, item);
        }
        assert_eq!(seen.len(), 6, "{seen:?}");
    }
}
