//! Adapters written here are read by PEFT: `tests/fixtures/ours` holds what `write-adapters` wrote and
//! the logits that PEFT computed with them (`xtask/fixtures/verify_peft.py --write-expected`).

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use aso_backbones::t5::T5ForConditionalGeneration;
use aso_backbones::{Backbone, TokenBatch};
use aso_lora::{Adapter, AdapterHost, ForwardContext};
use aso_tests::{assert_close, fixture, read_tensors, write_adapters};
use burn::tensor::Device;

const TASKS: [&str; 3] = ["task0", "task1", "task2"];
const FILES: [&str; 3] = [
    "adapter_model.safetensors",
    "adapter_config.json",
    "aso_subspace.json",
];

#[test]
fn what_peft_read_is_what_this_version_writes() {
    let dir = tempfile::tempdir().unwrap();
    write_adapters(dir.path());
    for task in TASKS {
        for file in FILES {
            let committed = std::fs::read(fixture("ours").join(task).join(file)).unwrap();
            let written = std::fs::read(dir.path().join(task).join(file)).unwrap();
            assert_eq!(written, committed, "{task}/{file}");
        }
    }
}

#[test]
fn pefts_logits_with_our_adapters() {
    let expected = read_tensors(&fixture("ours/peft.safetensors"));
    let path = fixture("t5/v1_0/batch.json");
    let batch = TokenBatch::from_json(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
    let mut model =
        T5ForConditionalGeneration::from_pretrained(&fixture("t5/v1_0"), &Device::flex()).unwrap();
    for task in TASKS {
        model
            .push_frozen(&Adapter::load(&fixture("ours").join(task)).unwrap())
            .unwrap();
    }
    for _ in 0..2 {
        let logits = model.logits(&batch, &ForwardContext::inference());
        let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        assert_close("logits", &logits, &expected["logits"].1, 1e-4);
        model.fold();
    }
}
