//! A method of one's own: one type, no edit of the loop. Every hook is called, in order.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use aso_backbones::Backbone;
use aso_trainer::config::ExampleKind;
use aso_trainer::events::Silent;
use aso_trainer::load::load_model;
use aso_trainer::method::{Method, Observation, Penalty, StepInfo, TaskContext, TaskInfo};
use aso_trainer::optimizer::SubspaceGradients;
use aso_trainer::results::WeightPoint;
use aso_trainer::{Outcome, Run, TrainerError};
use burn::tensor::Device;

static CALLS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn log(call: String) {
    CALLS.lock().unwrap().push(call);
}

/// Pulls every A towards 0 and writes down what the loop asks of it.
struct Shrink;

impl<M: Backbone> Method<M> for Shrink {
    fn name(&self) -> &str {
        "shrink"
    }

    fn start_task(&mut self, _: &mut M, context: &TaskContext<'_>) -> Result<(), TrainerError> {
        log(format!("start {}", context.task.index));
        Ok(())
    }

    fn start_step(&mut self, step: &StepInfo<'_, M>) -> Result<Option<Observation>, TrainerError> {
        assert_eq!(step.batch(3)?.rows(), 3);
        log(format!("step {}.{}", step.task.index, step.step));
        let weight = WeightPoint {
            step: step.step,
            weight: 0.5,
            weights: Vec::new(),
        };
        Ok(Some(Observation {
            weight,
            similarity: Vec::new(),
        }))
    }

    fn penalties(&self, model: &M, task: &TaskInfo) -> Vec<Penalty> {
        log(format!("penalties {}", task.index));
        let mut penalties = Vec::new();
        model.visit_linears(&mut |layer| {
            if let Some(active) = layer.active() {
                let value = active.a.val().square().sum_dim(1).sum();
                penalties.push(Penalty {
                    name: "shrink",
                    weight: 0.1,
                    value,
                });
            }
        });
        penalties
    }

    fn adjust(
        &mut self,
        step: &StepInfo<'_, M>,
        gradients: &mut SubspaceGradients,
    ) -> Result<(), TrainerError> {
        assert!(gradients.norm() > 0.0);
        log(format!("adjust {}", step.task.index));
        Ok(())
    }

    fn end_task(&mut self, _: &mut M, context: &TaskContext<'_>) -> Result<(), TrainerError> {
        assert_eq!(context.examples.len(), 16);
        log(format!("end {}", context.task.index));
        Ok(())
    }
}

#[test]
fn every_hook_is_called_in_order() {
    let mut config = ExampleKind::Demo.config();
    let tasks: Vec<String> = config.tasks().unwrap().into_iter().take(2).collect();
    config.stream.tasks = Some(tasks);
    config.data.max_train = Some(16);
    config.data.max_eval = Some(2);
    config.eval.max_new_tokens = 2;
    config.train.batch_size = 8;
    config.train.micro_batch = Some(4);
    config.train.epochs = None;
    config.train.steps = Some(2);
    config.stream.overrides.clear();
    let loaded = load_model(&config.model, &Device::flex(), &mut Silent).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let run = Run::open(config, &dir.path().join("run"), false).unwrap();
    let stop = AtomicBool::new(false);
    let (outcome, results) = run
        .execute_with(loaded, Box::new(Shrink), &mut Silent, &stop)
        .unwrap();
    assert_eq!(outcome, Outcome::Finished);
    assert_eq!(results.method, "shrink");
    assert_eq!(results.soft_weights[1].len(), 2);
    let task = |index: usize| {
        [
            "start I",
            "step I.0",
            "penalties I",
            "adjust I",
            "step I.1",
            "penalties I",
            "adjust I",
            "end I",
        ]
        .map(|call| call.replace('I', &index.to_string()))
    };
    assert_eq!(*CALLS.lock().unwrap(), [task(0), task(1)].concat());
}
