//! Generated text classification with known relatedness.
//!
//! A small grammar tells *scenes*: a sentence has a topic, an opinion, a number and a tense, drawn
//! independently of each other ([`Scene`]). A task asks for one of these factors, in its own genre
//! of sentences and mostly its own half of the words. Two tasks that ask for the same factor are
//! related, others are not, so what a similarity score should say is known.
//!
//! Everything is a function of the seed. [`lexicon`] lists every word there is, so that a
//! tokenizer can be built from it; [`pretraining_text`] and [`instruction_items`] are what a small
//! backbone can be pre-trained on without seeing a demo task's answers.

mod grammar;
mod lexicon;
mod pretrain;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rand_chacha::ChaCha8Rng;

pub use grammar::{Bank, Genre, Scene, Style};
pub use lexicon::{NEGATIVE, POSITIVE, PUNCTUATION, TOPICS, Topic, lexicon, plural};
pub use pretrain::{instruction_items, pretraining_text};

use crate::error::{DataError, nearest};
use crate::example::{Example, Split};
use crate::jsonl::write_jsonl;
use crate::random::{keyed, shuffle, text_key};
use crate::task::{TaskLibrary, TaskSource};

/// How many of [`TOPICS`], from the first, the demo suite asks for.
const DEMO_TOPICS: usize = 4;

/// The factor of a scene that a task asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Factor {
    /// One of these topics (indices into [`TOPICS`], modulo its length); the task's scenes have
    /// no other.
    Topic(Vec<usize>),
    /// Praise or blame.
    Sentiment,
    /// One thing or several.
    Number,
    /// Past, present or future.
    Tense,
}

/// What a generated task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSpec {
    /// The task's name: words joined by hyphens, which open the prompt.
    pub name: String,
    /// The question that follows the name in the prompt.
    pub question: String,
    /// What is asked for.
    pub factor: Factor,
    /// The answers, one per value of the factor and in the order [`Factor`] lists them.
    pub labels: Vec<String>,
    /// How its sentences are told.
    pub style: Style,
}

/// Label words of the demo's second topic task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForumLabels {
    /// Those of the first: the tasks differ in wording only.
    #[default]
    Shared,
    /// Other words for the same topics.
    Own,
}

/// Size and difficulty of the demo suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoConfig {
    /// Train examples per task (400).
    pub train: usize,
    /// Dev examples per task (50).
    pub dev: usize,
    /// Test examples per task (200).
    pub test: usize,
    /// Probability in percent that the least important noun comes from another topic (10).
    pub noise_percent: usize,
    /// Whether prompts list the possible answers (true).
    pub options_in_prompt: bool,
    /// Label words of `topic-forum` (those of `topic-news`).
    pub forum_labels: ForumLabels,
}

/// A generated task in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntheticTask {
    /// The task's name.
    pub name: String,
    /// The factor it asks for (`topic`, `sentiment`, `number`, `tense`): tasks of one group are related.
    pub group: &'static str,
    /// The possible answers.
    pub labels: Vec<String>,
    /// Examples to learn from.
    pub train: Vec<Example>,
    /// Examples for choices made while developing.
    pub dev: Vec<Example>,
    /// Examples that scores are reported on.
    pub test: Vec<Example>,
}

/// Generated tasks, in the order in which they are meant to be learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntheticSuite {
    tasks: Vec<SyntheticTask>,
}

/// The tasks of the demo suite.
///
/// | task | group | asks for | genre | words |
/// |---|---|---|---|---|
/// | `topic-news` | topic | sports, food, weather, music | news | mostly the first half |
/// | `sentiment-reviews` | sentiment | good, bad | reviews | mostly the first half |
/// | `topic-forum` | topic | the same topics | forum | mostly the second half |
/// | `sentiment-posts` | sentiment | good, bad | posts | mostly the second half |
/// | `number-notes` | number | one, many | notes | all |
pub fn demo_specs(config: &DemoConfig) -> Vec<TaskSpec> {
    let spec = |name: &str, question: &str, factor, labels: &[&str], genre, bank| TaskSpec {
        name: name.to_owned(),
        question: question.to_owned(),
        factor,
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
        style: Style {
            genre,
            bank,
            noise_percent: config.noise_percent,
        },
    };
    let topics = || Factor::Topic((0..DEMO_TOPICS).collect());
    let names: Vec<&str> = TOPICS[..DEMO_TOPICS]
        .iter()
        .map(|topic| topic.name)
        .collect();
    let forum: &[&str] = match config.forum_labels {
        ForumLabels::Shared => &names,
        ForumLabels::Own => &["athletics", "cuisine", "climate", "audio"],
    };
    let (about, feel) = ("what is it about?", "how does it feel?");
    let opinions = ["good", "bad"];
    vec![
        spec(
            "topic-news",
            about,
            topics(),
            &names,
            Genre::News,
            Bank::First,
        ),
        spec(
            "sentiment-reviews",
            feel,
            Factor::Sentiment,
            &opinions,
            Genre::Review,
            Bank::First,
        ),
        spec(
            "topic-forum",
            about,
            topics(),
            forum,
            Genre::Forum,
            Bank::Second,
        ),
        spec(
            "sentiment-posts",
            feel,
            Factor::Sentiment,
            &opinions,
            Genre::Post,
            Bank::Second,
        ),
        spec(
            "number-notes",
            "which number?",
            Factor::Number,
            &["one", "many"],
            Genre::Note,
            Bank::Both,
        ),
    ]
}

impl Default for DemoConfig {
    fn default() -> Self {
        Self {
            train: 400,
            dev: 50,
            test: 200,
            noise_percent: 10,
            options_in_prompt: true,
            forum_labels: ForumLabels::default(),
        }
    }
}

impl Factor {
    /// The group of tasks that ask for this factor.
    pub fn group(&self) -> &'static str {
        match self {
            Self::Topic(_) => "topic",
            Self::Sentiment => "sentiment",
            Self::Number => "number",
            Self::Tense => "tense",
        }
    }

    /// How many values the factor has.
    pub fn values(&self) -> usize {
        match self {
            Self::Topic(topics) => topics.len(),
            Self::Sentiment | Self::Number => 2,
            Self::Tense => 3,
        }
    }

    /// A scene whose factor has that value; everything else is drawn uniformly.
    fn scene(&self, rng: &mut ChaCha8Rng, value: usize) -> Scene {
        let topics: Vec<usize> = match self {
            Self::Topic(topics) => vec![topics[value] % TOPICS.len()],
            _ => (0..TOPICS.len()).collect(),
        };
        let mut scene = Scene::draw(rng, &topics);
        match self {
            Self::Topic(_) => {}
            Self::Sentiment => scene.positive = value == 0,
            Self::Number => scene.plural = value == 1,
            Self::Tense => scene.tense = value,
        }
        scene
    }
}

impl TaskSpec {
    /// The prompt of a text: `topic news: what is it about? options: sports, food. text: ..`.
    pub fn prompt(&self, with_options: bool, text: &str) -> String {
        let labels: Vec<&str> = self.labels.iter().map(String::as_str).collect();
        let question = format!("{}: {}", self.name.replace('-', " "), self.question);
        prompt(&question, with_options.then_some(&labels), text)
    }

    /// Generates the task: `[train, dev, test]` examples, labels balanced in each split, no
    /// sentence twice as long as the grammar has more of them.
    pub fn generate(&self, sizes: [usize; 3], with_options: bool, seed: u64) -> SyntheticTask {
        let mut rng = keyed(&[seed, text_key(&self.name)]);
        let mut seen = BTreeSet::new();
        let values = self.factor.values().min(self.labels.len());
        let mut split = |size: usize| {
            let size = if values == 0 { 0 } else { size };
            let mut examples: Vec<Example> = (0..size)
                .map(|index| {
                    let value = index % values;
                    let text = self.fresh_text(&mut rng, value, &mut seen);
                    Example::plain(self.prompt(with_options, &text), self.labels[value].clone())
                })
                .collect();
            shuffle(&mut rng, &mut examples);
            examples
        };
        let [train, dev, test] = sizes.map(&mut split);
        SyntheticTask {
            name: self.name.clone(),
            group: self.factor.group(),
            labels: self.labels.clone(),
            train,
            dev,
            test,
        }
    }

    fn fresh_text(
        &self,
        rng: &mut ChaCha8Rng,
        value: usize,
        seen: &mut BTreeSet<String>,
    ) -> String {
        // Bounded, because a task may be asked for more sentences than there are.
        for _ in 0..100 {
            let text = self.factor.scene(rng, value).tell(rng, self.style);
            if seen.insert(text.clone()) {
                return text;
            }
        }
        self.factor.scene(rng, value).tell(rng, self.style)
    }
}

impl SyntheticSuite {
    /// The demo suite ([`demo_specs`]) in its default configuration.
    pub fn demo(seed: u64) -> Self {
        Self::with_config(seed, &DemoConfig::default())
    }

    /// The demo suite in another size or difficulty.
    pub fn with_config(seed: u64, config: &DemoConfig) -> Self {
        let sizes = [config.train, config.dev, config.test];
        Self::generate(seed, &demo_specs(config), sizes, config.options_in_prompt)
    }

    /// A suite of arbitrary tasks, each with `[train, dev, test]` examples.
    pub fn generate(seed: u64, specs: &[TaskSpec], sizes: [usize; 3], with_options: bool) -> Self {
        let tasks = specs
            .iter()
            .map(|spec| spec.generate(sizes, with_options, seed))
            .collect();
        Self { tasks }
    }

    /// The tasks in the order in which they are meant to be learned.
    pub fn tasks(&self) -> &[SyntheticTask] {
        &self.tasks
    }

    /// Writes every task as [`JsonlTask`](crate::JsonlTask) reads it:
    /// `DIR/NAME/{train,dev,test}.jsonl` and `labels.json`.
    ///
    /// # Errors
    /// If a directory or file cannot be written.
    pub fn write_jsonl(&self, dir: &Path) -> Result<(), DataError> {
        for task in &self.tasks {
            let dir = dir.join(&task.name);
            fs::create_dir_all(&dir).map_err(DataError::io(&dir))?;
            for split in Split::ALL {
                write_jsonl(&dir.join(format!("{split}.jsonl")), task.split(split))?;
            }
            let path = dir.join("labels.json");
            let labels = serde_json::Value::from(task.labels.clone());
            fs::write(&path, format!("{labels}\n")).map_err(DataError::io(&path))?;
        }
        Ok(())
    }
}

impl TaskLibrary for SyntheticSuite {
    fn names(&self) -> Vec<String> {
        self.tasks.iter().map(|task| task.name.clone()).collect()
    }

    fn task(&self, name: &str) -> Result<Box<dyn TaskSource>, DataError> {
        match self
            .tasks
            .iter()
            .find(|task| task.name.to_lowercase() == name.to_lowercase())
        {
            Some(task) => Ok(Box::new(task.clone())),
            None => Err(DataError::UnknownTask {
                name: name.to_owned(),
                nearest: nearest(name, self.tasks.iter().map(|task| task.name.as_str())),
                available: self.names(),
                root: "the generated suite".to_owned(),
            }),
        }
    }
}

impl SyntheticTask {
    /// The examples of one split.
    pub fn split(&self, split: Split) -> &[Example] {
        match split {
            Split::Train => &self.train,
            Split::Dev => &self.dev,
            Split::Test => &self.test,
        }
    }
}

impl TaskSource for SyntheticTask {
    fn name(&self) -> &str {
        &self.name
    }

    fn labels(&self) -> Option<&[String]> {
        Some(&self.labels)
    }

    fn load(&self, split: Split) -> Result<Vec<Example>, DataError> {
        Ok(self.split(split).to_vec())
    }
}

/// The form that all generated prompts share.
fn prompt(question: &str, options: Option<&[&str]>, text: &str) -> String {
    match options {
        Some(options) => format!("{question} options: {}. text: {text}", options.join(", ")),
        None => format!("{question} text: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::open_library;
    use crate::synthetic::lexicon::words_of;
    use crate::task::{ExampleCaps, TaskData};
    use proptest::prelude::*;

    #[test]
    fn the_demo_is_balanced_and_splits_are_disjoint() {
        let suite = SyntheticSuite::demo(1);
        let groups: Vec<_> = suite.tasks().iter().map(|task| task.group).collect();
        assert_eq!(
            groups,
            ["topic", "sentiment", "topic", "sentiment", "number"]
        );
        for task in suite.tasks() {
            assert_eq!(
                [task.train.len(), task.dev.len(), task.test.len()],
                [400, 50, 200]
            );
            for label in &task.labels {
                let count = task
                    .test
                    .iter()
                    .filter(|example| example.target == *label)
                    .count();
                assert_eq!(count, 200 / task.labels.len(), "{} {label}", task.name);
            }
            let all: BTreeSet<_> = Split::ALL
                .iter()
                .flat_map(|&s| task.split(s))
                .map(Example::prompt)
                .collect();
            assert_eq!(all.len(), 650, "{}", task.name);
            let start = format!("{}: ", task.name.replace('-', " "));
            assert!(all.iter().all(|prompt| prompt.starts_with(&start)));
        }
    }

    #[test]
    fn banks_keep_related_tasks_mostly_apart() {
        let suite = SyntheticSuite::demo(2);
        let first_half = |task: &SyntheticTask| {
            let nouns: Vec<&str> = TOPICS.iter().flat_map(|topic| topic.nouns).collect();
            let halves: Vec<bool> = task
                .train
                .iter()
                .flat_map(|example| {
                    let words: Vec<String> =
                        words_of(&example.sentence).map(str::to_owned).collect();
                    words
                })
                .filter_map(|word| nouns.iter().position(|&n| n == word || plural(n) == word))
                .map(|index| index % 16 < 8)
                .collect();
            halves.iter().filter(|&&first| first).count() as f64 / halves.len() as f64
        };
        assert!(first_half(&suite.tasks()[0]) > 0.8);
        assert!(first_half(&suite.tasks()[2]) < 0.2);
    }

    #[test]
    fn the_lexicon_covers_the_demo() {
        let lexicon: BTreeSet<String> = lexicon().into_iter().collect();
        for forum_labels in [ForumLabels::Shared, ForumLabels::Own] {
            let config = DemoConfig {
                forum_labels,
                ..DemoConfig::default()
            };
            for task in SyntheticSuite::with_config(3, &config).tasks() {
                for example in &task.train {
                    assert!(lexicon.contains(&example.target));
                    for word in words_of(&example.sentence) {
                        assert!(lexicon.contains(word), "`{word}`");
                    }
                }
            }
        }
    }

    #[test]
    fn written_suites_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let suite = SyntheticSuite::demo(4);
        suite.write_jsonl(dir.path()).unwrap();
        let library = open_library(dir.path()).unwrap();
        for task in suite.tasks() {
            let caps = ExampleCaps::default();
            let written =
                TaskData::load(library.task(&task.name).unwrap().as_ref(), &caps).unwrap();
            let memory = TaskData::load(suite.task(&task.name).unwrap().as_ref(), &caps).unwrap();
            assert_eq!(written, memory);
        }
        let message = suite.task("topic-new").unwrap_err().to_string();
        assert!(message.contains("did you mean `topic-news`?"), "{message}");
    }

    #[test]
    fn a_frozen_example() {
        // The embedded backbone and the documented demo results rest on this text.
        let suite = SyntheticSuite::demo(1);
        let first = &suite.tasks()[0].train[0];
        assert_eq!(
            first.prompt(),
            "topic news: what is it about? options: sports, food, weather, music. text: tomorrow \
             the paper said that this soup with the salad near the pizza will be miserable."
        );
        assert_eq!(first.target, "food");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn any_size_and_seed(seed: u64, train in 0_usize..30, test in 0_usize..9, options: bool, noise in 0_usize..=100) {
            let config = DemoConfig {
                train, dev: 0, test, noise_percent: noise, options_in_prompt: options, forum_labels: ForumLabels::Own,
            };
            let suite = SyntheticSuite::with_config(seed, &config);
            prop_assert_eq!(&suite, &SyntheticSuite::with_config(seed, &config));
            for task in suite.tasks() {
                prop_assert_eq!((task.train.len(), task.dev.len(), task.test.len()), (train, 0, test));
                prop_assert!(task.train.iter().all(|example| task.labels.contains(&example.target)));
            }
            let other = SyntheticSuite::with_config(seed.wrapping_add(1), &config);
            prop_assert!(train == 0 || suite != other);
        }
    }

    #[test]
    fn more_sentences_than_there_are_still_end() {
        let spec = TaskSpec {
            name: "tense-notes".into(),
            question: "when?".into(),
            factor: Factor::Tense,
            labels: vec!["past".into(), "present".into(), "future".into()],
            style: Style {
                genre: Genre::Note,
                bank: Bank::Both,
                noise_percent: 0,
            },
        };
        let task = spec.generate([30, 0, 0], false, 1);
        assert_eq!(
            task.train
                .iter()
                .filter(|example| example.target == "future")
                .count(),
            10
        );
        let none = TaskSpec {
            factor: Factor::Topic(vec![]),
            ..spec
        };
        assert_eq!(none.generate([5, 5, 5], true, 1).train, []);
    }
}
