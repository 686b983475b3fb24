//! Elastic weight consolidation.

use std::collections::BTreeMap;

use aso_backbones::Backbone;
use burn::tensor::Tensor;

use super::{Method, MethodState, Penalty, Structure, TaskContext, TaskInfo, plain_gradient};
use crate::TrainerError;
use crate::config::MethodName;
use crate::optimizer::parameters;

/// One adapter, in which changing what mattered to earlier tasks costs: elastic weight consolidation ([Kirkpatrick et al.
/// 2017](https://arxiv.org/abs/1612.00796)) in its online form ([Schwarz et al. 2018](https://arxiv.org/abs/1805.06370)), over the entries of A and B:
///
/// `CE + lambda / 2 sum_i F_i (theta_i - theta*_i)^2`, `F <- gamma F + F_t` at the end of task t,
///
/// where theta* are the values after the last task and F_t is the mean over examples of the squared gradient of the answer's
/// log-likelihood, the sum over its tokens (the empirical Fisher information), without dropout, one example at a time.
#[derive(Debug, Clone)]
pub struct Ewc {
    lambda: f64,
    gamma: f64,
    examples: usize,
    /// F and theta*, by `{layer}.{lora_A | lora_B}`.
    importance: BTreeMap<String, (Tensor<2>, Tensor<2>)>,
}

impl Ewc {
    /// Weight lambda, decay gamma of earlier importances, and examples of a task that its importance is estimated from.
    pub fn new(lambda: f64, gamma: f64, examples: usize) -> Self {
        Self {
            lambda,
            gamma,
            examples,
            importance: BTreeMap::new(),
        }
    }
}

const IMPORTANCE: &str = ".importance";
const ANCHOR: &str = ".anchor";

impl<M: Backbone> Method<M> for Ewc {
    fn name(&self) -> &str {
        MethodName::Ewc.as_str()
    }

    fn structure(&self) -> Structure {
        MethodName::Ewc.structure()
    }

    fn penalties(&self, model: &M, _task: &TaskInfo) -> Vec<Penalty> {
        if self.lambda == 0.0 {
            return Vec::new();
        }
        let mut total: Option<Tensor<1>> = None;
        for (name, value) in parameters(model) {
            let Some((importance, anchor)) = self.importance.get(&name) else {
                continue;
            };
            let moved = (value - anchor.clone()).square() * importance.clone();
            let term = moved.sum_dim(1).sum();
            total = Some(match total {
                Some(total) => total + term,
                None => term,
            });
        }
        let penalty = total.map(|value| Penalty {
            name: "consolidation",
            weight: self.lambda / 2.0,
            value,
        });
        penalty.into_iter().collect()
    }

    fn end_task(&mut self, model: &mut M, context: &TaskContext<'_>) -> Result<(), TrainerError> {
        if self.lambda == 0.0 {
            return Ok(());
        }
        let chosen = context.some(self.examples);
        let mut fisher: BTreeMap<String, Tensor<2>> = BTreeMap::new();
        for example in &chosen {
            // The likelihood of the whole answer: a mean over its tokens would make long answers count less.
            let (gradients, _) = plain_gradient(model, context.codec, &[*example])?;
            for (name, gradient) in gradients.iter() {
                let square = gradient.clone().square();
                let sum = match fisher.remove(name) {
                    Some(sum) => sum + square,
                    None => square,
                };
                fisher.insert(name.to_owned(), sum);
            }
        }
        for (name, value) in parameters(model) {
            let anchor = value.without_autodiff();
            let new = fisher.remove(&name);
            let new = new.map(|sum| sum.div_scalar(chosen.len().max(1) as f64));
            let old = self.importance.remove(&name);
            let old = old.map(|(importance, _)| importance.mul_scalar(self.gamma));
            let importance = match (old, new) {
                (Some(old), Some(new)) => old + new,
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => continue,
            };
            self.importance.insert(name, (importance, anchor));
        }
        Ok(())
    }

    fn state(&self) -> MethodState {
        let mut state = MethodState::default();
        for (name, (importance, anchor)) in &self.importance {
            let tensors = &mut state.tensors;
            tensors.insert(format!("{name}{IMPORTANCE}"), importance.clone());
            tensors.insert(format!("{name}{ANCHOR}"), anchor.clone());
        }
        state
    }

    fn restore(&mut self, mut state: MethodState) -> Result<(), serde_json::Error> {
        let names: Vec<String> = state
            .tensors
            .keys()
            .filter_map(|name| name.strip_suffix(IMPORTANCE).map(str::to_owned))
            .collect();
        self.importance.clear();
        for name in names {
            let importance = state.take(&format!("{name}{IMPORTANCE}"))?;
            let anchor = state.take(&format!("{name}{ANCHOR}"))?;
            self.importance.insert(name, (importance, anchor));
        }
        state.all_taken()
    }
}
