//! Where tasks come from, and a task in memory.

use std::fmt::Debug;

use crate::error::DataError;
use crate::example::{Example, Split};
use crate::metric::Metric;
use crate::random::{choose_sorted, keyed, text_key};

/// One task whose splits can be read, each on demand.
pub trait TaskSource: Debug + Send + Sync {
    /// The task's name as it is spelled in its source.
    fn name(&self) -> &str;

    /// What tells it from all other tasks of its library, however it was asked for.
    fn id(&self) -> String {
        self.name().to_owned()
    }

    /// The answers that are possible; `None` if the task is not a classification.
    fn labels(&self) -> Option<&[String]>;

    /// How answers are scored.
    fn metric(&self) -> Metric {
        Metric::ExactMatch
    }

    /// Reads one split, in file order. A task without a dev split has an empty one.
    ///
    /// # Errors
    /// If a train or test split is missing or empty, or any record is malformed.
    fn load(&self, split: Split) -> Result<Vec<Example>, DataError>;
}

/// A collection of tasks that are known by name.
pub trait TaskLibrary: Debug + Send + Sync {
    /// The names of all tasks.
    fn names(&self) -> Vec<String>;

    /// The task of that name, whatever its case.
    ///
    /// # Errors
    /// [`DataError::UnknownTask`] with the nearest name, or whatever makes the task unreadable.
    fn task(&self, name: &str) -> Result<Box<dyn TaskSource>, DataError>;
}

/// Limits on the number of examples of each task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExampleCaps {
    /// Train examples at most: a seeded choice without replacement, kept in file order.
    pub max_train: Option<usize>,
    /// Dev and test examples at most, each: the first ones.
    pub max_eval: Option<usize>,
    /// Seed of the choice; the task's name goes into it too.
    pub seed: u64,
}

/// A task in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskData {
    /// The task's name.
    pub name: String,
    /// The possible answers of a classification task.
    pub labels: Option<Vec<String>>,
    /// How answers are scored.
    pub metric: Metric,
    /// Examples to learn from.
    pub train: Vec<Example>,
    /// Examples for choices made while developing; may be empty.
    pub dev: Vec<Example>,
    /// Examples that scores are reported on.
    pub test: Vec<Example>,
}

impl ExampleCaps {
    /// Applies the limit of `split` to the examples of the task `task`.
    ///
    /// The choice of train examples depends on `seed`, the task's name, the number of examples and
    /// the limit, and on nothing else.
    pub fn apply(&self, task: &str, split: Split, mut examples: Vec<Example>) -> Vec<Example> {
        match split {
            Split::Train => {
                let limit = self.max_train.unwrap_or(usize::MAX);
                if limit >= examples.len() {
                    return examples;
                }
                let mut rng = keyed(&[self.seed, text_key(task)]);
                let chosen = choose_sorted(&mut rng, examples.len(), limit);
                chosen
                    .into_iter()
                    .map(|index| examples[index].clone())
                    .collect()
            }
            Split::Dev | Split::Test => {
                examples.truncate(self.max_eval.unwrap_or(usize::MAX));
                examples
            }
        }
    }
}

impl TaskData {
    /// Reads all splits of a task and caps them.
    ///
    /// # Errors
    /// Those of [`TaskSource::load`].
    pub fn load(source: &dyn TaskSource, caps: &ExampleCaps) -> Result<Self, DataError> {
        Self::load_splits(source, caps, &Split::ALL)
    }

    /// Reads some splits of a task and caps them; the others are empty and need not be there.
    ///
    /// # Errors
    /// Those of [`TaskSource::load`].
    pub fn load_splits(
        source: &dyn TaskSource,
        caps: &ExampleCaps,
        splits: &[Split],
    ) -> Result<Self, DataError> {
        let read = |split| match splits.contains(&split) {
            true => Ok(caps.apply(source.name(), split, source.load(split)?)),
            false => Ok(Vec::new()),
        };
        let data = Self {
            name: source.name().to_owned(),
            labels: source.labels().map(<[String]>::to_vec),
            metric: source.metric(),
            train: read(Split::Train)?,
            dev: read(Split::Dev)?,
            test: read(Split::Test)?,
        };
        tracing::debug!(
            task = data.name,
            train = data.train.len(),
            dev = data.dev.len(),
            test = data.test.len(),
            "task read"
        );
        Ok(data)
    }

    /// The examples of one split.
    pub fn split(&self, split: Split) -> &[Example] {
        match split {
            Split::Train => &self.train,
            Split::Dev => &self.dev,
            Split::Test => &self.test,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbered(count: usize) -> Vec<Example> {
        (0..count)
            .map(|index| Example::plain(index.to_string(), "x"))
            .collect()
    }

    fn inputs(examples: &[Example]) -> Vec<usize> {
        examples
            .iter()
            .map(|example| example.sentence.parse().unwrap())
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_train_choice_is_sorted_distinct_and_seeded(total in 0_usize..200, limit in 0_usize..200, seed: u64) {
            let caps = ExampleCaps { max_train: Some(limit), max_eval: None, seed };
            let chosen = inputs(&caps.apply("a", Split::Train, numbered(total)));
            prop_assert_eq!(chosen.len(), limit.min(total));
            prop_assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!(&chosen, &inputs(&caps.apply("a", Split::Train, numbered(total))));
        }
    }

    #[test]
    fn seed_and_task_change_the_choice_and_evaluation_takes_the_first() {
        let choose = |seed, task| {
            let caps = ExampleCaps {
                max_train: Some(20),
                max_eval: Some(3),
                seed,
            };
            assert_eq!(
                inputs(&caps.apply(task, Split::Test, numbered(9))),
                [0, 1, 2]
            );
            assert_eq!(inputs(&caps.apply(task, Split::Dev, numbered(2))), [0, 1]);
            inputs(&caps.apply(task, Split::Train, numbered(100)))
        };
        assert_ne!(choose(1, "a"), choose(2, "a"));
        assert_ne!(choose(1, "a"), choose(1, "b"));
    }

    #[test]
    fn without_limits_everything_stays() {
        let all = ExampleCaps::default().apply("a", Split::Train, numbered(10));
        assert_eq!(all, numbered(10));
    }
}
