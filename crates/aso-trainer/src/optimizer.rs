//! Gradients of the active subspaces, their global norm, and AdamW keyed by layer name.
//!
//! Burn's `ModuleOptimizer` keys its state by parameter ids and clips per parameter. Here the state is
//! keyed by `{layer}.lora_A` / `{layer}.lora_B`, so that it survives a restart, and the clip is over all
//! gradients together. The update itself is Burn's AdamW.

use std::collections::BTreeMap;

use aso_lora::AdapterHost;
use burn::module::Param;
use burn::optim::{AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, Optimizer};
use burn::tensor::{Device, Gradients, Tensor, TensorData};

/// The two trained matrices of a layer.
const HALVES: [&str; 2] = ["lora_A", "lora_B"];

/// The trained matrices of every active subspace with their names `{layer}.{lora_A | lora_B}`, in the graph.
pub(crate) fn parameters<H: AdapterHost + ?Sized>(host: &H) -> Vec<(String, Tensor<2>)> {
    let mut parameters = Vec::new();
    host.visit_linears(&mut |layer| {
        let Some(active) = layer.active() else { return };
        for (half, parameter) in HALVES.into_iter().zip([&active.a, &active.b]) {
            parameters.push((format!("{}.{half}", layer.name()), parameter.val()));
        }
    });
    parameters
}

/// Gradients by `{layer}.{lora_A | lora_B}`, outside autodiff.
#[derive(Debug, Clone, Default)]
pub struct SubspaceGradients {
    tensors: BTreeMap<String, Tensor<2>>,
}

impl SubspaceGradients {
    /// Takes the gradients of every active subspace out of a backward pass. A parameter that the loss
    /// does not depend on has none.
    pub fn collect<H: AdapterHost + ?Sized>(host: &H, gradients: &mut Gradients) -> Self {
        let mut tensors = BTreeMap::new();
        host.visit_linears(&mut |layer| {
            let Some(active) = layer.active() else { return };
            for (half, parameter) in HALVES.into_iter().zip([&active.a, &active.b]) {
                if let Some(gradient) = parameter.val().grad_remove(gradients) {
                    tensors.insert(format!("{}.{half}", layer.name()), gradient);
                }
            }
        });
        Self { tensors }
    }

    /// Adds other gradients to these.
    pub fn add(&mut self, other: Self) {
        for (name, gradient) in other.tensors {
            let sum = match self.tensors.remove(&name) {
                Some(own) => own + gradient,
                None => gradient,
            };
            self.tensors.insert(name, sum);
        }
    }

    /// Multiplies every gradient by `factor`.
    pub fn scale(&mut self, factor: f64) {
        for gradient in self.tensors.values_mut() {
            *gradient = gradient.clone().mul_scalar(factor);
        }
    }

    /// Drops the gradients whose names do not fit.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.tensors.retain(|name, _| keep(name));
    }

    /// `sum_i g_i h_i` over the matrices of both. Summed in f64 over the names in order.
    pub fn dot(&self, other: &Self) -> f64 {
        let products = self.tensors.iter().map(|(name, gradient)| {
            let Some(other) = other.tensors.get(name) else {
                return 0.0;
            };
            let rows = (gradient.clone() * other.clone()).sum_dim(1).into_data();
            rows.iter::<f32>().map(f64::from).sum::<f64>()
        });
        products.sum()
    }

    /// The gradient of one matrix, `{layer}.lora_A` or `{layer}.lora_B`.
    pub fn get(&self, name: &str) -> Option<&Tensor<2>> {
        self.tensors.get(name)
    }

    /// All gradients, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor<2>)> {
        self.tensors
            .iter()
            .map(|(name, gradient)| (name.as_str(), gradient))
    }

    /// `sqrt(sum of squares)` over all gradients. Summed in f64 over the names in order, so that it does
    /// not depend on threads.
    pub fn norm(&self) -> f64 {
        self.dot(self).sqrt()
    }

    /// Scales all gradients so that their norm is at most `max_norm` (as PyTorch's `clip_grad_norm_`:
    /// factor `max_norm / (norm + 1e-6)`, at most 1). Returns the norm before.
    pub fn clip(&mut self, max_norm: f64) -> f64 {
        let norm = self.norm();
        let factor = max_norm / (norm + 1e-6);
        if factor < 1.0 {
            self.scale(factor);
        }
        norm
    }
}

impl FromIterator<(String, Tensor<2>)> for SubspaceGradients {
    fn from_iter<I: IntoIterator<Item = (String, Tensor<2>)>>(gradients: I) -> Self {
        Self {
            tensors: gradients.into_iter().collect(),
        }
    }
}

/// AdamW settings (Loshchilov and Hutter 2019).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// AdamW over the active subspaces of a model.
pub struct SubspaceOptimizer {
    adamw: AdamW,
    state: BTreeMap<String, AdamWState<2>>,
}

/// One parameter's optimizer state on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct MomentState {
    /// Steps taken.
    pub time: usize,
    /// Shape of the parameter.
    pub shape: [usize; 2],
    /// First moment, row-major.
    pub moment_1: Vec<f32>,
    /// Second moment, row-major.
    pub moment_2: Vec<f32>,
}

impl SubspaceOptimizer {
    /// An optimizer without state: step count and moments start at zero.
    pub fn new(settings: AdamWSettings) -> Self {
        let adamw = AdamWConfig::new()
            .with_beta_1(settings.beta1 as f32)
            .with_beta_2(settings.beta2 as f32)
            .with_epsilon(settings.epsilon as f32)
            .with_weight_decay(settings.weight_decay as f32)
            .build();
        Self {
            adamw,
            state: BTreeMap::new(),
        }
    }

    /// Updates every active subspace that has a gradient.
    pub fn step<H: AdapterHost + ?Sized>(
        &mut self,
        host: &mut H,
        gradients: &SubspaceGradients,
        lr: f64,
    ) {
        host.visit_linears_mut(&mut |layer| {
            let name = layer.name().to_owned();
            let Some(active) = layer.active_mut() else {
                return;
            };
            for (half, parameter) in HALVES.into_iter().zip([&mut active.a, &mut active.b]) {
                let key = format!("{name}.{half}");
                let Some(gradient) = gradients.get(&key) else {
                    continue;
                };
                let value = parameter.val().without_autodiff();
                let state = self.state.remove(&key);
                let (value, state) = self.adamw.step(lr, value, gradient.clone(), state);
                if let Some(state) = state {
                    self.state.insert(key, state);
                }
                *parameter = Param::initialized(parameter.id, value.autodiff().require_grad());
            }
        });
    }

    /// Host copy of the state, by `{layer}.{lora_A | lora_B}`.
    pub fn export(&self) -> BTreeMap<String, MomentState> {
        let host = |tensor: &Tensor<2>| tensor.to_data().iter::<f32>().collect();
        self.state
            .iter()
            .map(|(name, AdamWState { momentum })| {
                let state = MomentState {
                    time: momentum.time,
                    shape: momentum.moment_1.dims(),
                    moment_1: host(&momentum.moment_1),
                    moment_2: host(&momentum.moment_2),
                };
                (name.clone(), state)
            })
            .collect()
    }

    /// Restores what [`export`](Self::export) gave.
    pub fn import(&mut self, state: BTreeMap<String, MomentState>, device: &Device) {
        let tensor = |values: Vec<f32>, shape: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(values, shape), device)
        };
        self.state = state
            .into_iter()
            .map(|(name, state)| {
                let mut momentum = AdaptiveMomentumState::new(
                    state.time,
                    tensor(state.moment_1, state.shape),
                    tensor(state.moment_2, state.shape),
                );
                momentum.time = state.time;
                (name, AdamWState { momentum })
            })
            .collect();
    }
}
