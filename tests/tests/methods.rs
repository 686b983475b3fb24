//! The methods beside each other: what equals what bit for bit, and that each goes on where it was stopped.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;
mod witness;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use aso_backbones::t5::T5ForConditionalGeneration;
use aso_lora::{AdapterHost, ForwardContext};
use aso_tests::{assert_close, fixture};
use aso_trainer::config::{Clip, ExampleKind, MethodName, OrthogonalTo, TaskOverride};
use aso_trainer::events::{Event, Observer, Silent};
use aso_trainer::method::{SeqFt, Structure};
use aso_trainer::optimizer::SubspaceGradients;
use aso_trainer::predictions::predictions_file;
use aso_trainer::results::Timings;
use aso_trainer::trainer::JOINT;
use aso_trainer::{Outcome, Run, RunConfig, RunResults};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor};
use common::files;
use tempfile::tempdir;

/// Three tasks of the built-in suite, four steps each, in batches of eight with accumulation.
fn config(method: MethodName, change: impl FnOnce(&mut RunConfig)) -> RunConfig {
    let mut config = ExampleKind::Demo.config();
    let tasks: Vec<String> = config.tasks().unwrap().into_iter().take(3).collect();
    config.stream.tasks = Some(tasks);
    config.stream.overrides.clear();
    config.data.max_train = Some(32);
    config.data.max_eval = Some(8);
    config.eval.max_new_tokens = 4;
    config.train.batch_size = 8;
    config.train.micro_batch = Some(4);
    config.train.epochs = Some(1);
    config.train.steps = None;
    config.method.name = method;
    config.method.lambda2 = 0.0;
    config.method.probe_examples = 8;
    config.method.memory_per_class = 2;
    change(&mut config);
    config
}

/// Sets the stop flag before a step.
struct StopAt<'a> {
    task: usize,
    step: usize,
    tasks: usize,
    stop: &'a AtomicBool,
}

impl Observer for StopAt<'_> {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::TaskStarted { .. } => self.tasks += 1,
            Event::Step { step, .. } if (self.tasks, step) == (self.task + 1, self.step) => {
                self.stop.store(true, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

/// Files with their bytes.
type Files = Vec<(String, Vec<u8>)>;

/// The adapters and the results without times.
type Left = (Files, RunResults);

fn left(dir: &Path, mut results: RunResults) -> Left {
    results.timings = Timings::default();
    results.method = String::new();
    let mut adapters = files(&dir.join("adapters"));
    // The sidecar names the kind of the adapter.
    adapters.retain(|(name, _)| name.ends_with(".safetensors"));
    assert!(!adapters.is_empty());
    (adapters, results)
}

fn finish(config: &RunConfig, dir: &Path, resume: bool) -> Left {
    let run = Run::open(config.clone(), dir, resume).unwrap();
    let never = AtomicBool::new(false);
    let (outcome, results) = run.execute(&Device::flex(), &mut Silent, &never).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    left(dir, results)
}

fn learn(method: MethodName, change: impl FnOnce(&mut RunConfig)) -> Left {
    let dir = tempdir().unwrap();
    finish(&config(method, change), &dir.path().join("run"), false)
}

#[test]
fn terms_of_weight_zero_leave_no_trace() {
    let seq = learn(MethodName::SeqLora, |_| {});
    let ewc = learn(MethodName::Ewc, |c| c.method.importance = 0.0);
    let lwf = learn(MethodName::Lwf, |c| c.method.distillation = 0.0);
    let replay = learn(MethodName::Replay, |c| c.method.memory_per_class = 0);
    let a_gem = learn(MethodName::AGem, |c| c.method.memory_per_class = 0);
    for (name, found) in [
        ("ewc", ewc),
        ("lwf", lwf),
        ("replay", replay),
        ("a-gem", a_gem),
    ] {
        assert!(found == seq, "{name} differs from seq-lora");
    }
    let inc = learn(MethodName::IncLora, |_| {});
    assert!(inc.0 != seq.0);
    let o_lora = learn(MethodName::OLora, |c| c.method.lambda1 = 0.0);
    let n_lora = learn(MethodName::NLora, |c| c.method.sparsity = 0.0);
    for (name, found) in [("o-lora", o_lora), ("n-lora", n_lora)] {
        assert!(found == inc, "{name} differs from inc-lora");
    }
}

/// With a frozen A only B leaves where it started, and B is learned. The gradients that a method adds do not bring A back.
#[test]
fn a_frozen_a_stays_as_it_was_drawn() {
    for method in MethodName::ALL {
        let accepted = config(method, |c| c.lora.freeze_a = true)
            .validate()
            .is_ok();
        // The penalty of these acts on A.
        let acts = matches!(method, MethodName::AsoLora | MethodName::OLora);
        assert_eq!(accepted, !acts, "{method}");
        // The others design A.
        if acts || !method.trains_a() {
            continue;
        }
        let start = learn(method, |c| c.train.lr = 1e-12);
        let frozen = learn(method, |c| c.lora.freeze_a = true);
        let both = learn(method, |_| {});
        let last = start.0.len() - 1;
        let a = |left| half(left, last, "lora_A");
        assert!(a(&frozen) == a(&start), "{method}");
        assert!(a(&both) != a(&start), "{method}");
        let b = |left| half(left, last, "lora_B");
        assert!(b(&frozen) != b(&start), "{method}");
    }
}

/// One half of the adapter of a task, as bytes.
fn half(left: &Left, task: usize, name: &str) -> BTreeMap<String, Vec<u8>> {
    let (_, bytes) = &left.0[task];
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let tensors = file.tensors().into_iter();
    let wanted = tensors.filter(|(key, _)| key.contains(name));
    wanted
        .map(|(key, tensor)| (key, tensor.data().to_vec()))
        .collect()
}

/// A penalty on A alone leaves what B learns from as it is if the task's gradient is clipped without it. Clipped together, a
/// large one shrinks it to where AdamW's epsilon counts.
#[test]
fn penalties_can_stay_out_of_the_clip() {
    let one_step = |method, lambda1, clip| {
        learn(method, |c| {
            (c.train.epochs, c.train.steps) = (None, Some(1));
            c.train.max_grad_norm = 0.1;
            (c.method.lambda1, c.train.clip) = (lambda1, Some(clip));
        })
    };
    let b = |left: &Left| half(left, 1, "lora_B");
    let [weak, strong] = [0.5, 1e8].map(|l| one_step(MethodName::OLora, l, Clip::Task));
    assert!(b(&weak) == b(&strong));
    let [weak, strong] = [0.5, 1e8].map(|l| one_step(MethodName::OLora, l, Clip::Total));
    assert!(b(&weak) != b(&strong));
    // Without penalties it is the same.
    let [task, total] = [Clip::Task, Clip::Total].map(|c| one_step(MethodName::IncLora, 0.5, c));
    assert!(task == total);
}

/// The first task is as without, and the second one starts with another A: one that hardly sees the first one's inputs.
#[test]
fn subspaces_can_be_held_orthogonal_to_inputs() {
    let start = |to, lr| {
        learn(MethodName::OLora, |c| {
            (c.method.orthogonal_to, c.train.lr) = (to, lr);
        })
    };
    let [inputs, subspaces] =
        [OrthogonalTo::Inputs, OrthogonalTo::Subspaces].map(|to| start(to, 1e-12));
    let a = |left: &Left, task| half(left, task, "lora_A");
    assert_eq!(a(&inputs, 0), a(&subspaces, 0));
    assert_ne!(a(&inputs, 1), a(&subspaces, 1));
    let length = |a: BTreeMap<String, Vec<u8>>| -> f32 {
        let bytes = a.into_values().flatten().collect::<Vec<u8>>();
        let values = bytes
            .chunks(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        values.map(|value| value * value).sum()
    };
    let [turned, drawn] = [&inputs, &subspaces].map(|left| length(a(left, 1)));
    assert!((turned / drawn - 1.0).abs() < 1e-3, "{turned} {drawn}");
    assert!(start(OrthogonalTo::Inputs, 1e-2) != start(OrthogonalTo::Subspaces, 1e-2));
}

/// As many steps as the stream makes, from all tasks, with settings of its own.
#[test]
fn all_tasks_at_once_learn_as_long_as_one_after_another() {
    let dir = tempdir().unwrap();
    let joint = config(MethodName::MultiTask, |c| {
        (c.train.epochs, c.train.steps) = (None, Some(2));
        let own = TaskOverride {
            lr: Some(0.0123),
            ..TaskOverride::default()
        };
        c.stream.overrides.insert(JOINT.to_owned(), own);
    });
    joint.validate().unwrap();
    let run = dir.path().join("run");
    finish(&joint, &run, false);
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rates: Vec<f64> = metrics
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| line["lr"].as_f64().unwrap())
        .collect();
    assert_eq!(rates, [0.0123; 6]);
    // Batches of similar length would be batches of one task.
    let grouped = learn(MethodName::MultiTask, |c| c.train.length_grouping = true);
    let mixed = learn(MethodName::MultiTask, |c| c.train.length_grouping = false);
    assert!(grouped == mixed);
}

/// Answers lie beside every score, also where a task's own adapter has not changed since.
#[test]
fn every_score_of_separate_adapters_has_its_answers() {
    let dir = tempdir().unwrap();
    let run = dir.path().join("run");
    let separate = config(MethodName::PerTask, |_| {});
    let tasks = separate.tasks().unwrap();
    finish(&separate, &run, false);
    let answers = |after, task: usize| {
        let path = predictions_file(&run, after, (task, &tasks[task]));
        std::fs::read(path).unwrap()
    };
    let after = |task: usize| Some((task, tasks[task].as_str()));
    assert_eq!(answers(after(2), 0), answers(after(0), 0));
    assert_eq!(answers(after(0), 2), answers(None, 2));
}

#[test]
fn every_method_leaves_a_trace_of_its_own() {
    let mut seen: Vec<(MethodName, Files)> = Vec::new();
    for method in MethodName::ALL {
        let (adapters, results) = learn(method, |_| {});
        for (other, same) in &seen {
            assert!(*same != adapters, "{method} and {other} are the same");
        }
        let last = results.accuracy.last().unwrap();
        assert!(last.iter().all(Option::is_some), "{method}: {last:?}");
        match method {
            MethodName::PerTask => assert_eq!(results.forgetting, Some(0.0)),
            MethodName::MultiTask => assert_eq!(results.forgetting, None),
            _ => assert!(results.forgetting.is_some()),
        }
        seen.push((method, adapters));
    }
}

/// What answering takes grows with the tasks only where each has an adapter.
#[test]
fn adapters_that_answer_are_counted() {
    for method in MethodName::ALL {
        let (adapters, results) = learn(method, |_| {});
        let elements = |(_, bytes): &(String, Vec<u8>)| -> usize {
            let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
            let tensors = file.tensors().into_iter();
            tensors
                .map(|(_, t)| t.shape().iter().product::<usize>())
                .sum()
        };
        let answering = match method.structure() {
            Structure::Stack | Structure::PerTask => &adapters[..],
            Structure::Single | Structure::Joint => &adapters[adapters.len() - 1..],
        };
        let expected: usize = answering.iter().map(elements).sum();
        let kept = results.footprint.unwrap().adapter_elements;
        assert_eq!(kept, expected as u64, "{method}");
    }
}

#[test]
fn every_method_goes_on_where_it_was_stopped() {
    let plain = MethodName::ALL.map(|method| config(method, |_| {}));
    // These keep what earlier tasks fed the layers.
    let kept = [MethodName::AsoLora, MethodName::OLora].map(|method| {
        config(method, |c| {
            c.method.orthogonal_to = OrthogonalTo::Inputs;
            c.attribution.per_task = true;
        })
    });
    for config in plain.into_iter().chain(kept) {
        let method = config.method.name;
        let dir = tempdir().unwrap();
        let whole = finish(&config, &dir.path().join("whole"), false);
        let stops = match method {
            MethodName::MultiTask => vec![(0, 5)],
            // Within the second task; at the end of one, where only what is kept from task to task is left.
            _ => vec![(1, 1), (1, 3)],
        };
        for (task, step) in stops {
            let run = dir.path().join(format!("{task}-{step}"));
            let stop = AtomicBool::new(false);
            let mut observer = StopAt {
                task,
                step,
                tasks: 0,
                stop: &stop,
            };
            let opened = Run::open(config.clone(), &run, false).unwrap();
            let (outcome, _) = opened
                .execute(&Device::flex(), &mut observer, &stop)
                .unwrap();
            assert_eq!(outcome, Outcome::Stopped, "{method}");
            let resumed = finish(&config, &run, true);
            assert!(resumed == whole, "{method}, stopped at step {task}.{step}");
        }
    }
}

/// Stopped again before its first step, a resumed run leaves its checkpoint alone: replacing the folder that the state names could
/// lose it to a kill in between.
#[test]
fn a_checkpoint_is_not_written_twice() {
    let dir = tempdir().unwrap();
    let run = dir.path().join("run");
    let config = config(MethodName::AsoLora, |_| {});
    let stop = AtomicBool::new(false);
    let mut observer = StopAt {
        task: 1,
        step: 1,
        tasks: 0,
        stop: &stop,
    };
    let mut stopped = |resume| {
        let run = Run::open(config.clone(), &run, resume).unwrap();
        let (outcome, _) = run.execute(&Device::flex(), &mut observer, &stop).unwrap();
        assert_eq!(outcome, Outcome::Stopped);
    };
    stopped(false);
    let folder = fs::read_dir(run.join("checkpoints")).unwrap().next();
    let folder = folder.unwrap().unwrap().path();
    // A folder that is written anew would not have it.
    fs::write(folder.join("mark"), "").unwrap();
    stopped(true);
    assert!(folder.join("mark").exists());
    fs::remove_file(folder.join("mark")).unwrap();
    let whole = finish(&config, &dir.path().join("whole"), false);
    assert!(finish(&config, &run, true) == whole);
}

/// Makes every parameter a leaf of the autodiff graph.
struct Trainable;

impl ModuleMapper for Trainable {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        Param::initialized(param.id, param.val().autodiff().require_grad())
    }
}

/// `W + B I` has, for B, the gradient of W, and starts as W.
#[test]
fn seq_ft_trains_the_weights_themselves() {
    let dir = fixture("t5/v1_0");
    let model = T5ForConditionalGeneration::from_pretrained(&dir, &Device::flex()).unwrap();
    let batch = witness::batch("t5/v1_0", "batch.json");
    let context = ForwardContext::training(None);

    let mut adapted = model.clone();
    SeqFt::start(&mut adapted);
    let loss = witness::mean_cross_entropy(&adapted, &batch, &context);
    let found_loss = witness::values(loss.clone());
    let found = SubspaceGradients::collect(&adapted, &mut loss.backward());

    let direct = model.map(&mut Trainable);
    let loss = witness::mean_cross_entropy(&direct, &batch, &context);
    let expected_loss = witness::values(loss.clone());
    let gradients = loss.backward();
    assert_close("loss", &found_loss, &expected_loss, witness::TOLERANCE);
    let mut layers = 0;
    direct.visit_linears(&mut |layer| {
        let name = format!("{}.lora_B", layer.name());
        // Weights are kept as `[d_in, d_out]`.
        let expected = layer.weight.val().grad(&gradients).unwrap().transpose();
        let found = found.get(&name).unwrap().clone();
        let (found, expected) = (witness::values(found), witness::values(expected));
        assert_close(&name, &found, &expected, witness::TOLERANCE);
        layers += 1;
    });
    assert!(layers > 10);
}
