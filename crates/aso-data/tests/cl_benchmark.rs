//! The reader, the prompt and the encoder against a real benchmark and a real tokenizer.
//!
//! These lie in `shared/` beside the repository; without them the tests say so and pass.

// Helpers of tests are outside the functions that clippy takes for tests.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use aso_data::{
    ClBenchmark, Example, ExampleCaps, OrderPreset, Seq2SeqEncoder, Split, TaskData, TaskLibrary,
    TextTokenizer, collate_seq2seq, open_library,
};
use serde_json::Value;

/// A path under `shared/`, or `None` with a notice.
fn shared(path: &str) -> Option<PathBuf> {
    // Asked at run time: checkouts that share a build folder share this binary.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(PathBuf::new, PathBuf::from);
    let path = package.join("../../../shared").join(path);
    if !path.exists() {
        println!("skipped: {} is not at hand", path.display());
        return None;
    }
    Some(path)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<i64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| row.as_array().unwrap())
        .map(|x| x.as_i64().unwrap())
        .collect()
}

/// The five test examples whose prompts `expected.json` holds.
fn expected_examples(benchmark: &ClBenchmark, prompts: &[Value]) -> Vec<Example> {
    prompts
        .iter()
        .map(|prompt| {
            let prompt = prompt.as_str().unwrap();
            let dataset = prompt
                .lines()
                .nth(1)
                .unwrap()
                .strip_prefix("Dataset:")
                .unwrap();
            let test = benchmark.load(dataset, Split::Test).unwrap();
            let found = test.into_iter().find(|example| example.prompt() == prompt);
            found.unwrap_or_else(|| panic!("no example of {dataset} has the prompt {prompt:?}"))
        })
        .collect()
}

#[test]
fn prompts_and_tokens_are_those_of_the_reference() {
    let (Some(data), Some(model)) = (shared("data/cl-benchmark"), shared("models/t5-mini-clb"))
    else {
        return;
    };
    let expected = json(&model.join("expected.json"));
    let batch = json(&model.join("batch.json"));
    let benchmark = ClBenchmark::open(data).unwrap();
    let examples = expected_examples(&benchmark, expected["prompts"].as_array().unwrap());
    assert_eq!(examples.len(), 5);

    let tokenizer = TextTokenizer::from_file(model.join("tokenizer.json")).unwrap();
    assert_eq!(
        (tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id()),
        (Some(0), Some(1), Some(2))
    );
    assert_eq!(tokenizer.vocab_size(), 8100);
    let encoder = Seq2SeqEncoder::new(&tokenizer, 512, 50).unwrap();
    let encoded = encoder.encode_all("reference", &examples).unwrap();
    let ours = collate_seq2seq(&encoded.iter().collect::<Vec<_>>(), 0);
    assert_eq!(ours.input_ids, numbers(&batch["input_ids"]));
    assert_eq!(ours.attention_mask, numbers(&batch["attention_mask"]));
    assert_eq!(ours.labels, numbers(&batch["labels"]));
    // Answers decode to the labels.
    for (example, encoded) in examples.iter().zip(&encoded) {
        assert_eq!(tokenizer.decode(&encoded.target).unwrap(), example.target);
    }
}

#[test]
fn truncated_prompts_keep_instruction_and_answer() {
    let (Some(data), Some(model)) = (shared("data/cl-benchmark"), shared("models/t5-mini-clb"))
    else {
        return;
    };
    let tokenizer = TextTokenizer::from_file(model.join("tokenizer.json")).unwrap();
    let benchmark = ClBenchmark::open(data).unwrap();
    for name in benchmark.names() {
        let examples = benchmark.load(&name, Split::Dev).unwrap();
        let full = Seq2SeqEncoder::new(&tokenizer, 100_000, 50).unwrap();
        let full = full.encode_all(&name, &examples).unwrap();
        let encoder = Seq2SeqEncoder::new(&tokenizer, 128, 50).unwrap();
        let cut = encoder.encode_all(&name, &examples).unwrap();
        for ((example, full), cut) in examples.iter().zip(&full).zip(&cut) {
            assert!(!full.truncated());
            assert_eq!(cut.source.len(), full.source.len().min(128));
            // All of the prefix but its final white space, which begins the sentence's first token.
            let prefix = tokenizer.encode(example.prefix.trim_end()).unwrap();
            assert!(cut.source.starts_with(&prefix), "{name}");
            assert!(
                cut.source.ends_with(&full.source[full.source.len() - 3..]),
                "{name}"
            );
            let text = tokenizer.decode(&cut.source).unwrap();
            assert!(text.ends_with(" Answer:"), "{text}");
        }
    }
}

#[test]
fn every_data_set_loads() {
    let Some(data) = shared("data/cl-benchmark") else {
        return;
    };
    let library = open_library(&data).unwrap();
    let names = library.names();
    assert_eq!(names.len(), 11, "{names:?}");
    let caps = ExampleCaps {
        max_train: Some(300),
        max_eval: Some(20),
        seed: 1,
    };
    for name in names {
        let task =
            TaskData::load(library.task(&name.to_uppercase()).unwrap().as_ref(), &caps).unwrap();
        assert_eq!(task.name, name);
        assert!((225..=300).contains(&task.train.len()), "{name}");
        assert_eq!(task.test.len(), 20, "{name}");
        let labels = task.labels.unwrap();
        assert!(
            task.train
                .iter()
                .all(|example| labels.contains(&example.target))
        );
        let has_options = task.test[0].prefix.contains("\nOption: ");
        assert_eq!(has_options, name != "COPA");
    }
    for order in ["order1'", "order2'", "order3'"] {
        for &task in OrderPreset::find(order).unwrap().tasks {
            assert_eq!(library.task(task).unwrap().name(), task);
        }
    }
    let message = library.task("agnwes").unwrap_err().to_string();
    assert!(message.contains("did you mean `agnews`?"), "{message}");
}
