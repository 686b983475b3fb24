//! What methods compute, against PyTorch or the formula written out.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod witness;

use std::collections::BTreeMap;

use aso_backbones::{AutoModel, Backbone, ModelKind};
use aso_data::EncodedExample;
use aso_lora::{Adapter, AdapterHost, ForwardContext, LoraWeights};
use aso_tests::{assert_close, fixture, read_tensors};
use aso_trainer::codec::TextCodec;
use aso_trainer::embedded::EmbeddedModel;
use aso_trainer::method::{Ewc, InfLora, Lwf, Method, NLora, Penalty, Slao, TaskContext, TaskInfo};
use aso_trainer::{RunConfig, TrainerError};

/// Base with two frozen subspaces and an active one.
fn model() -> AutoModel {
    witness::stack("t5/v1_0", "t5/v1_0/adapters", "active")
}

fn codec(model: &AutoModel) -> TextCodec {
    let tokenizer = EmbeddedModel::find("demo").unwrap().tokenizer();
    TextCodec::new(
        ModelKind::EncoderDecoder,
        &model.special_tokens(),
        tokenizer.unwrap(),
    )
}

fn task(index: usize) -> TaskInfo {
    TaskInfo {
        index,
        name: "fixture".to_owned(),
        steps: 1,
        settings: RunConfig::default().task_settings("fixture"),
    }
}

fn encoded(source: Vec<u32>, target: Vec<u32>) -> EncodedExample {
    EncodedExample {
        source,
        target,
        source_removed: 0,
        target_removed: 0,
    }
}

/// Calls a hook at the beginning or end of a task without examples.
fn with_context(
    model: &mut AutoModel,
    index: usize,
    hook: impl FnOnce(&mut AutoModel, &TaskContext<'_>),
) {
    let codec = codec(model);
    let context = TaskContext {
        task: &task(index),
        examples: &[],
        codec: &codec,
        seed: 1,
    };
    hook(model, &context);
}

/// EWC's importances are the mean over examples of the squared gradient of a whole answer's log-likelihood, as PyTorch
/// computes it.
#[test]
fn ewc_weighs_entries_by_their_fisher_information() {
    let mut model = model();
    let path = fixture("t5/v1_0/batch.json");
    let batch: BTreeMap<String, Vec<Vec<i64>>> =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let tokens = |row: &[i64]| -> Vec<u32> {
        // Padding is 0, and -100 in labels.
        let real = row.iter().filter(|id| **id > 0);
        real.map(|id| u32::try_from(*id).unwrap()).collect()
    };
    let rows = batch["input_ids"].iter().zip(&batch["labels"]);
    let examples: Vec<EncodedExample> = rows
        .map(|(source, target)| encoded(tokens(source), tokens(target)))
        .collect();
    assert_eq!(examples.len(), 3);
    let codec = codec(&model);
    let context = TaskContext {
        task: &task(0),
        examples: &examples.iter().collect::<Vec<_>>(),
        codec: &codec,
        seed: 1,
    };
    let mut ewc = Ewc::new(1.0, 1.0, examples.len());
    ewc.end_task(&mut model, &context).unwrap();
    let found = Method::<AutoModel>::state(&ewc).tensors;
    let expected = read_tensors(&fixture("t5/v1_0/fisher.safetensors"));
    assert_eq!(
        found.len(),
        2 * expected.len(),
        "an importance and an anchor for each"
    );
    for name in expected.keys() {
        let key = name
            .trim_start_matches("fisher.")
            .trim_end_matches(".weight");
        let importance = found[&format!("{key}.importance")].clone();
        witness::check(name, &witness::values(importance), &expected);
    }
}

/// `lambda / 2 sum F (theta - theta*)^2` for adapters that moved since, with the importances that the method keeps.
#[test]
fn ewc_penalises_moves_by_their_importance() {
    let mut model = model();
    let mut ewc = Ewc::new(3.0, 1.0, 1);
    let codec = codec(&model);
    let example = encoded(vec![7, 8, 1], vec![9, 1]);
    let context = TaskContext {
        task: &task(0),
        examples: &[&example],
        codec: &codec,
        seed: 1,
    };
    ewc.end_task(&mut model, &context).unwrap();
    let before = model.active_weights();
    move_b(&mut model, 1.5);
    let after = model.active_weights();
    let state = Method::<AutoModel>::state(&ewc).tensors;
    let mut expected = 0.0;
    for (layer, new) in &after {
        let old = &before[layer];
        for (half, old, new) in [("lora_A", &old.a, &new.a), ("lora_B", &old.b, &new.b)] {
            let importance = state[&format!("{layer}.{half}.importance")].clone();
            let importance = witness::values(importance);
            for ((f, old), new) in importance.iter().zip(old).zip(new) {
                expected += f64::from(*f) * f64::from(new - old).powi(2);
            }
        }
    }
    let penalty = only(ewc.penalties(&model, &task(1)));
    assert_eq!(penalty.weight, 1.5);
    assert!(expected > 0.0);
    let found = witness::values(penalty.value);
    assert_close("penalty", &found, &[expected as f32], witness::TOLERANCE);
}

/// `lambda sum |B A|`, without the scale alpha / r.
#[test]
fn n_lora_sums_the_entries_of_the_active_update() {
    let model = model();
    let mut expected = 0.0;
    for weights in model.active_weights().values() {
        let LoraWeights {
            a, b, rank, d_in, ..
        } = weights;
        for row in b.chunks(*rank) {
            for column in 0..*d_in {
                let entry: f64 = (0..*rank)
                    .map(|at| f64::from(row[at]) * f64::from(a[at * d_in + column]))
                    .sum();
                expected += entry.abs();
            }
        }
    }
    let penalty = only(NLora::new(0.3).penalties(&model, &task(0)));
    assert_eq!(penalty.weight, 0.3);
    let found = witness::values(penalty.value);
    assert_close("penalty", &found, &[expected as f32], witness::TOLERANCE);
}

/// `T^2 KL(softmax(z* / T) || softmax(z / T))` summed over target tokens: not over padding, in this direction, and 0 for the model
/// that is imitated.
#[test]
fn lwf_imitates_the_model_before_the_task_at_target_tokens() {
    let (lambda, temperature) = (0.5, 2.0);
    let mut model = model();
    let batch = witness::batch("t5/v1_0", "batch.json");
    let context = ForwardContext::inference();
    let mut lwf = Lwf::new(lambda, temperature);
    with_context(&mut model, 0, |model, context| {
        lwf.start_task(model, context).unwrap();
    });
    let (before, labels) = model.answer_logits(&batch, &context);
    assert!(labels.contains(&-100) && labels.iter().any(|label| *label >= 0));
    assert!(
        lwf.batch_term(&batch, &before, &labels).is_none(),
        "the first task imitates nothing"
    );

    with_context(&mut model, 1, |model, context| {
        lwf.start_task(model, context).unwrap();
    });
    let same = lwf.batch_term(&batch, &before, &labels).unwrap();
    assert_eq!(witness::values(same.value), [0.0]);

    move_b(&mut model, 2.0);
    let (after, labels) = model.answer_logits(&batch, &context);
    let [_, _, vocabulary] = after.dims();
    let term = lwf.batch_term(&batch, &after, &labels).unwrap();
    let [teacher, student] = [before, after].map(|logits| {
        let softmax = |row: &[f32]| -> Vec<f64> {
            let exp = row.iter().map(|z| (f64::from(*z) / temperature).exp());
            let exp: Vec<f64> = exp.collect();
            let sum: f64 = exp.iter().sum();
            exp.iter().map(|value| value / sum).collect()
        };
        let values = witness::values(logits);
        values.chunks(vocabulary).map(softmax).collect::<Vec<_>>()
    });
    let mut expected = 0.0;
    for (at, _) in labels.iter().enumerate().filter(|(_, label)| **label >= 0) {
        let pairs = teacher[at].iter().zip(&student[at]);
        expected += pairs.map(|(p, q)| p * (p / q).ln()).sum::<f64>();
    }
    assert!(expected > 0.0);
    assert_eq!(term.weight, lambda * temperature * temperature);
    let found = witness::values(term.value);
    assert_close("divergence", &found, &[expected as f32], witness::TOLERANCE);
}

/// Three tasks by hand. A task starts from what the last one trained, not from what was merged.
#[test]
fn slao_starts_from_the_last_task_and_keeps_the_merged_one() {
    let mut model = witness::load("t5/v1_0");
    // What training on each task leads to, all of one rank.
    let [first, second, mut third] = ["task0", "active", "task0"]
        .map(|name| witness::adapter(&format!("t5/v1_0/adapters/{name}")));
    for weights in third.weights.values_mut() {
        weights.b.reverse();
    }
    let trained = [first, second, third];
    let mut slao = Slao::default();
    let mut merged: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let mut kept = Vec::new();
    for (index, adapter) in trained.iter().enumerate() {
        // Whatever the trainer puts there.
        model.set_active(adapter, 0.0).unwrap();
        with_context(&mut model, index, |model, context| {
            slao.start_task(model, context).unwrap();
        });
        let start = model.active_weights();
        for (layer, start) in &start {
            let last = &trained[index.saturating_sub(1)].weights[layer];
            if index == 0 {
                assert_eq!(start.a, last.a);
                continue;
            }
            assert_eq!(start.b, last.b, "{layer}");
            // Orthonormal rows that span what A spanned.
            let rows: Vec<&[f32]> = start.a.chunks(start.d_in).collect();
            let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
            for (i, x) in rows.iter().enumerate() {
                for (j, y) in rows.iter().enumerate() {
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!((dot(x, y) - expected).abs() < 1e-5, "{layer}");
                }
            }
            let overlap = aso_attribution::subspace_overlap(&start.a, &last.a, start.d_in);
            assert!((overlap.unwrap() - 1.0).abs() < 1e-5, "{layer}");
        }
        model.set_active(adapter, 0.0).unwrap();
        with_context(&mut model, index, |model, context| {
            slao.end_task(model, context).unwrap();
        });
        for (layer, found) in model.active_weights() {
            let new = &adapter.weights[&layer];
            let rate = 1.0 / ((index + 1) as f32).sqrt();
            let expected = match merged.get(&layer) {
                Some(old) => old
                    .iter()
                    .zip(&new.b)
                    .map(|(old, new)| old + rate * (new - old))
                    .collect(),
                None => new.b.clone(),
            };
            assert_eq!(found.a, new.a, "{layer}");
            assert_close(&layer, &found.b, &expected, 1e-6);
            merged.insert(layer, expected);
        }
        // Through a restart, too.
        let state = Method::<AutoModel>::state(&slao);
        kept.push(
            state
                .tensors
                .values()
                .map(|t| t.dims().iter().product::<usize>())
                .sum::<usize>(),
        );
        slao = Slao::default();
        Method::<AutoModel>::restore(&mut slao, state).unwrap();
    }
    assert_eq!(kept, [kept[0]; 3], "memory does not grow");
}

/// Multiplies every B, so that the model differs from what it was.
fn move_b(model: &mut AutoModel, factor: f32) {
    let mut adapter: Adapter = witness::adapter("t5/v1_0/adapters/active");
    for weights in adapter.weights.values_mut() {
        weights.b.iter_mut().for_each(|value| *value *= factor);
    }
    model.set_active(&adapter, 0.0).unwrap();
}

fn only(penalties: Vec<Penalty>) -> Penalty {
    let [penalty] = <[Penalty; 1]>::try_from(penalties).unwrap();
    penalty
}

/// The decomposition of a matrix with NaN would never end.
#[test]
fn inputs_that_are_not_finite_are_an_error() {
    let mut model = model();
    move_b(&mut model, f32::INFINITY);
    let example = encoded(vec![7, 8, 1], vec![9, 1]);
    let codec = codec(&model);
    let context = TaskContext {
        task: &task(0),
        examples: &[&example],
        codec: &codec,
        seed: 1,
    };
    let error = InfLora::new(0.9, 1).start_task(&mut model, &context);
    let error = error.unwrap_err();
    assert!(
        matches!(error, TrainerError::InputsNotFinite { .. }),
        "{error}"
    );
}
