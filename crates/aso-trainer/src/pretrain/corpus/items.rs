//! Items made from texts: what a model must be able to do with a prompt, whatever the labels.

use std::ops::Range;

use aso_data::Example;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Corpus;
use super::terms::{Terms, Word};

/// Words of a text that an item shows at most.
const MAX_WORDS: usize = 48;
/// Words of a text that an item needs at least.
const MIN_WORDS: usize = 6;
/// Words of a heading that is an option, at most.
const MAX_HEADING: usize = 8;
/// Words of a phrase at most.
const MAX_PHRASE: usize = 3;
/// Draws before a kind of item is given up.
const TRIES: usize = 20;

/// What an item asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ItemKind {
    /// Which of several phrases of one to three words the text mentions.
    Mention,
    /// Which option belongs to the text, that is, was taken out of it.
    Belong,
    /// Which first line fits the rest of the text: in a review it says what is thought of the thing.
    Heading,
    /// Which name fits the group of texts that the text belongs to.
    Group,
    /// Which of several words of similar meaning stands in the gap.
    Gap,
    /// Whether two passages stand next to each other.
    Pair,
}

/// Shares of the kinds, in percent.
const SHARES: [(ItemKind, u32); 6] = [
    (ItemKind::Mention, 10),
    (ItemKind::Belong, 18),
    (ItemKind::Heading, 24),
    (ItemKind::Group, 22),
    (ItemKind::Gap, 20),
    (ItemKind::Pair, 6),
];

/// Makes items from a corpus. Item `n` is a function of the seed and n.
pub struct ItemMaker {
    texts: Vec<String>,
    terms: Terms,
    /// By text, where there is one.
    headings: Vec<Option<Range<usize>>>,
    /// The texts with a heading by group.
    headed: Vec<Vec<usize>>,
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
        let terms = Terms::new(corpus.texts(), seed, vector_of);
        let headings: Vec<_> = corpus.texts().iter().map(|text| heading(text)).collect();
        let groups = terms.group_of.iter().map(|group| *group as usize);
        let mut headed = vec![Vec::new(); groups.clone().max().map_or(0, |last| last + 1)];
        for (text, group) in groups.enumerate() {
            if headings[text].is_some() {
                headed[group].push(text);
            }
        }
        Self {
            terms,
            headings,
            headed,
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
                ItemKind::Mention => self.mention(rng),
                ItemKind::Belong => self.belong(rng),
                ItemKind::Heading => self.heading(rng),
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
        self.passage_of(rng, text, &self.terms.texts[text])
    }

    /// A stretch of some words of a text.
    fn passage_of<'a>(
        &'a self,
        rng: &mut ChaCha8Rng,
        text: usize,
        words: &'a [Word],
    ) -> Option<Passage<'a>> {
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

    fn mention(&self, rng: &mut ChaCha8Rng) -> Option<Example> {
        let passage = self.passage(rng)?;
        let text = passage.shown(self.gap, |_| Show::Word);
        let mut options = vec![passage.phrase(rng)?.to_owned()];
        let count = option_count(rng);
        for _ in 0..4 * count {
            let other = self.passage(rng);
            if let Some(other) = other.and_then(|passage| passage.phrase(rng))
                && !text.to_lowercase().contains(&other.to_lowercase())
                && !options.iter().any(|option| option == other)
                && options.len() <= count
            {
                options.push(other.to_owned());
            }
        }
        if options.len() == 1 {
            return None;
        }
        let answer = options[0].clone();
        options.shuffle(rng);
        let question = pick(
            rng,
            &[
                "Which phrase occurs in the following text?",
                "Which option is mentioned?",
            ],
        );
        Some(prompt(rng, question, &options, &text, &answer))
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

    fn heading(&self, rng: &mut ChaCha8Rng) -> Option<Example> {
        if self.texts.is_empty() {
            return None;
        }
        let text = rng.random_range(0..self.texts.len());
        let range = self.headings[text].clone()?;
        let words = &self.terms.texts[text];
        let rest = words.partition_point(|word| word.at.start < range.end);
        let passage = self.passage_of(rng, text, &words[rest..])?;
        let answer = &self.texts[text][range];
        // Texts about the same thing: what the heading says, not what it is about, tells them apart.
        let group = match rng.random_bool(0.7) {
            true => self.terms.group_of[text],
            false => self.terms.group_of[rng.random_range(0..self.texts.len())],
        };
        let headed = &self.headed[group as usize];
        let count = rng.random_range(1..=5);
        let mut options = vec![answer.to_owned()];
        for _ in 0..2 * count {
            let Some(&other) = headed.get(rng.random_range(0..headed.len().max(1))) else {
                continue;
            };
            if let Some(range) = self.headings[other].clone() {
                let other = &self.texts[other][range];
                if options.len() <= count && !options.iter().any(|option| option == other) {
                    options.push(other.to_owned());
                }
            }
        }
        if options.len() == 1 {
            return None;
        }
        let question = pick(
            rng,
            &[
                "Which title does the following text have?",
                "What does the following paragraph say?",
            ],
        );
        let shown = passage.shown(self.gap, |_| Show::Word);
        options.shuffle(rng);
        Some(prompt(rng, question, &options, &shown, answer))
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
        let count = option_count(rng);
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

impl<'a> Passage<'a> {
    /// One to [`MAX_PHRASE`] words that follow each other, from a term on, with nothing but a space between them.
    fn phrase(&self, rng: &mut ChaCha8Rng) -> Option<&'a str> {
        let starts: Vec<usize> = (0..self.words.len())
            .filter(|at| self.words[*at].term.is_some())
            .collect();
        let first = *starts.get(rng.random_range(0..starts.len().max(1)))?;
        let longest = if rng.random_bool(0.5) { 1 } else { MAX_PHRASE };
        let mut last = first;
        while last + 1 < self.words.len()
            && last + 1 - first < longest
            && &self.string[self.words[last].at.end..self.words[last + 1].at.start] == " "
        {
            last += 1;
        }
        Some(&self.string[self.words[first].at.start..self.words[last].at.end])
    }

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

/// The first of several lines without a label such as `Title:` in front, if it is short and no enumeration.
fn heading(text: &str) -> Option<Range<usize>> {
    let (line, rest) = text.split_once('\n')?;
    let label = line.find(": ").filter(|at| {
        let label = &line[..*at];
        label.split(' ').count() <= 2 && label.chars().all(|c| c.is_alphanumeric() || c == ' ')
    });
    let start = label.map_or(0, |at| at + 2);
    let heading = line[start..].trim();
    let words = heading.split_whitespace().count();
    if rest.trim().is_empty() || heading.contains(',') || !(1..=MAX_HEADING).contains(&words) {
        return None;
    }
    let start = start + line[start..].len() - line[start..].trim_start().len();
    Some(start..start + heading.len())
}

/// Options beside the answer. Few are the rule, as in benchmarks.
fn option_count(rng: &mut ChaCha8Rng) -> usize {
    if rng.random_bool(0.7) {
        rng.random_range(1..=4)
    } else {
        rng.random_range(5..=13)
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
        ..Example::default()
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
            let number = "abcdefghij".repeat(2)[text % 10..][..1 + text / 8].to_owned();
            format!("Title: about {number}\nText: {}.", words.join(" "))
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
    fn headings_are_short_first_lines() {
        let of = |text: &str| heading(text).map(|range| text[range].to_owned());
        assert_eq!(
            of("Title:  Great fun \nText: x y"),
            Some("Great fun".into())
        );
        assert_eq!(of("sentence 1: No.\nsentence 2: Yes."), Some("No.".into()));
        assert_eq!(of("Just this\nand that"), Some("Just this".into()));
        for none in [
            "Text: one line only",
            "Title: alone\n ",
            "Title: \nText: x",
            "Title: one, two\nText: x",
            "Title: a b c d e f g h i\nText: x",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
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
            assert!(options.contains(&item.target.as_str()), "{item:?}");
            assert!(options.len() > 1, "{item:?}");
            let words: Vec<&str> = item.sentence.split([' ', '.', '\n']).collect();
            match kind {
                ItemKind::Mention => {
                    let found = options.iter().filter(|o| item.sentence.contains(**o));
                    assert_eq!(found.count(), 1, "{item:?}");
                    assert!(item.sentence.contains(&item.target));
                }
                ItemKind::Belong => {
                    assert!(options.iter().all(|o| !words.contains(o)), "{item:?}");
                }
                ItemKind::Gap => {
                    assert!(item.sentence.contains("<extra_id_0>"));
                    assert!(!words.contains(&item.target.as_str()));
                }
                ItemKind::Heading => assert!(!item.sentence.contains("about"), "{item:?}"),
                ItemKind::Group | ItemKind::Pair => {}
            }
            assert_eq!(maker.item(number).unwrap().1, item);
        }
        assert_eq!(seen.len(), 6, "{seen:?}");
    }
}
