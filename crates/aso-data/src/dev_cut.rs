//! A dev split of training examples, for data whose own cannot be used.

use crate::error::DataError;
use crate::example::{Example, Split};
use crate::metric::Metric;
use crate::random::{choose_sorted, keyed, text_key};
use crate::task::{TaskLibrary, TaskSource};

/// First key of the choice, so that no other draw of this crate is the same.
const KEY: u64 = 0x6465_765f_6375_7421;

/// A library in which the dev split of every task is a fixed number of its training examples, which are not among the
/// training examples any more. The dev files are not read.
///
/// Which ones depends on the task's name and on how many there are: not on a seed, so that all seeds of all methods
/// are compared on the same examples. Both parts keep the order of the file.
#[derive(Debug)]
pub struct DevFromTrain {
    library: Box<dyn TaskLibrary>,
    examples: usize,
}

#[derive(Debug)]
struct CutTask {
    task: Box<dyn TaskSource>,
    examples: usize,
}

impl DevFromTrain {
    /// Takes `examples` training examples of each task of `library` for its dev split.
    pub fn new(library: Box<dyn TaskLibrary>, examples: usize) -> Self {
        Self { library, examples }
    }
}

impl TaskLibrary for DevFromTrain {
    fn names(&self) -> Vec<String> {
        self.library.names()
    }

    fn task(&self, name: &str) -> Result<Box<dyn TaskSource>, DataError> {
        Ok(Box::new(CutTask {
            task: self.library.task(name)?,
            examples: self.examples,
        }))
    }
}

impl TaskSource for CutTask {
    fn name(&self) -> &str {
        self.task.name()
    }

    fn id(&self) -> String {
        self.task.id()
    }

    fn labels(&self) -> Option<&[String]> {
        self.task.labels()
    }

    fn metric(&self) -> Metric {
        self.task.metric()
    }

    fn load(&self, split: Split) -> Result<Vec<Example>, DataError> {
        if split == Split::Test {
            return self.task.load(split);
        }
        let examples = self.task.load(Split::Train)?;
        if examples.len() <= self.examples {
            return Err(DataError::TooFewForDev {
                task: self.name().to_owned(),
                wanted: self.examples,
                found: examples.len(),
            });
        }
        let mut rng = keyed(&[KEY, text_key(self.name())]);
        let mut in_dev = vec![false; examples.len()];
        for index in choose_sorted(&mut rng, examples.len(), self.examples) {
            in_dev[index] = true;
        }
        let wanted = split == Split::Dev;
        let kept = examples.into_iter().zip(in_dev);
        Ok(kept
            .filter(|(_, dev)| *dev == wanted)
            .map(|(example, _)| example)
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::SyntheticSuite;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_training_example_is_in_one_of_the_two(examples in 1_usize..30) {
            let suite = || Box::new(SyntheticSuite::demo(1));
            let whole = suite();
            let cut = DevFromTrain::new(suite(), examples);
            for name in whole.names() {
                let (whole, cut) = (whole.task(&name).unwrap(), cut.task(&name).unwrap());
                let [train, dev, test] = Split::ALL.map(|split| cut.load(split).unwrap());
                prop_assert_eq!(dev.len(), examples);
                prop_assert_eq!(&test, &whole.load(Split::Test).unwrap());
                // A merge of the two in file order.
                let (mut train, mut dev) = (train.iter().peekable(), dev.iter().peekable());
                for example in whole.load(Split::Train).unwrap() {
                    let from = if train.peek() == Some(&&example) { &mut train } else { &mut dev };
                    prop_assert_eq!(from.next(), Some(&example));
                }
                prop_assert!(train.next().is_none() && dev.next().is_none());
                prop_assert_eq!((cut.name(), cut.id(), cut.labels()), (whole.name(), whole.id(), whole.labels()));
            }
        }
    }

    #[test]
    fn something_must_be_left_to_train_on() {
        let suite = SyntheticSuite::demo(1);
        let name = suite.names().remove(0);
        let examples = suite.task(&name).unwrap().load(Split::Train).unwrap().len();
        let load = |count| {
            let cut = DevFromTrain::new(Box::new(SyntheticSuite::demo(1)), count);
            cut.task(&name).unwrap().load(Split::Train)
        };
        assert_eq!(load(examples - 1).unwrap().len(), 1);
        let message = load(examples).unwrap_err().to_string();
        assert!(
            message.contains(&name) && message.contains(&examples.to_string()),
            "{message}"
        );
    }
}
