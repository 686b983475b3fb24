//! Methods without a soft weight, and the penalties that the methods share.

use aso_backbones::Backbone;
use aso_lora::{AdapterHost, LoraLinear};
use aso_losses::{Orthogonality, OrthogonalityPenalty, SubspacePair, norm_penalty};
use burn::tensor::Tensor;

use super::inputs::{InputMemory, turn_away};
use super::{Method, MethodState, Penalty, Structure, TaskContext, TaskInfo};
use crate::TrainerError;
use crate::config::{MethodName, MethodSettings, OrthogonalTo, PenaltyKind};

impl From<PenaltyKind> for OrthogonalityPenalty {
    fn from(kind: PenaltyKind) -> Self {
        Self::new(match kind {
            PenaltyKind::AbsSum => Orthogonality::AbsoluteSum,
            PenaltyKind::SquaredFrobenius => Orthogonality::SquaredFrobenius,
            PenaltyKind::MeanAbsCosine => Orthogonality::MeanAbsoluteCosine,
        })
    }
}

/// One adapter trained on one task after another: nothing is protected (SeqLoRA among the baselines of
/// [Wang et al. 2023](https://arxiv.org/abs/2310.14152)).
#[derive(Debug, Clone, Copy)]
pub struct SeqLora;

impl<M: Backbone> Method<M> for SeqLora {
    fn name(&self) -> &str {
        MethodName::SeqLora.as_str()
    }

    fn structure(&self) -> Structure {
        MethodName::SeqLora.structure()
    }
}

/// One subspace per task without orthogonality (IncLoRA, [Wang et al. 2023](https://arxiv.org/abs/2310.14152)): `CE + lambda2 N`.
#[derive(Debug, Clone, Copy)]
pub struct IncLora;

impl<M: Backbone> Method<M> for IncLora {
    fn name(&self) -> &str {
        MethodName::IncLora.as_str()
    }

    fn penalties(&self, model: &M, task: &TaskInfo) -> Vec<Penalty> {
        norm(model, task).into_iter().collect()
    }
}

/// One subspace per task, all fully isolated (O-LoRA, [Wang et al. 2023](https://arxiv.org/abs/2310.14152)): `CE + lambda1 O + lambda2 N`.
#[derive(Debug, Clone)]
pub struct OLora {
    isolation: Isolation,
}

impl OLora {
    /// O-LoRA with the given isolation.
    pub fn new(isolation: Isolation) -> Self {
        Self { isolation }
    }
}

impl<M: Backbone> Method<M> for OLora {
    fn name(&self) -> &str {
        MethodName::OLora.as_str()
    }

    fn start_task(
        &mut self,
        model: &mut M,
        _context: &TaskContext<'_>,
    ) -> Result<(), TrainerError> {
        self.isolation.start_task(model);
        Ok(())
    }

    fn penalties(&self, model: &M, task: &TaskInfo) -> Vec<Penalty> {
        let isolation = self.isolation.penalty(model, task, 1.0, |_, _| None);
        isolation.into_iter().chain(norm(model, task)).collect()
    }

    fn end_task(&mut self, model: &mut M, context: &TaskContext<'_>) -> Result<(), TrainerError> {
        self.isolation.end_task(model, context)
    }

    fn state(&self) -> MethodState {
        self.isolation.state()
    }

    fn restore(&mut self, state: MethodState) -> Result<(), serde_json::Error> {
        self.isolation.restore(state)
    }
}

/// What new subspaces are held orthogonal to, and the penalty that does it.
#[derive(Debug, Clone)]
pub struct Isolation {
    penalty: OrthogonalityPenalty,
    /// What earlier tasks feed the layers, if that takes the place of their subspaces.
    inputs: Option<InputMemory>,
}

impl Isolation {
    /// As the settings say.
    pub fn new(settings: &MethodSettings) -> Self {
        let memory = || InputMemory::new(settings.memory_threshold, settings.probe_examples);
        Self {
            penalty: settings.penalty.into(),
            inputs: (settings.orthogonal_to == OrthogonalTo::Inputs).then(memory),
        }
    }

    /// Turns the fresh A away from the inputs of earlier tasks, row by row, without changing its rows' lengths.
    pub(super) fn start_task<M: AdapterHost>(&self, model: &mut M) {
        let Some(inputs) = &self.inputs else { return };
        model.visit_linears_mut(&mut |layer| {
            let Some(active) = layer.active() else { return };
            let Some(memory) = inputs.matrix(layer.name()) else {
                return;
            };
            let (mut weights, dropout) = (active.to_weights(), active.dropout);
            turn_away(&mut weights.a, &memory);
            layer.set_active(&weights, dropout);
        });
    }

    /// Remembers the inputs of a finished task.
    pub(super) fn end_task<M: Backbone>(
        &mut self,
        model: &M,
        context: &TaskContext<'_>,
    ) -> Result<(), TrainerError> {
        match &mut self.inputs {
            Some(inputs) => inputs.learn(model, context),
            None => Ok(()),
        }
    }

    pub(super) fn state(&self) -> MethodState {
        let inputs = self.inputs.as_ref();
        inputs.map_or_else(MethodState::default, InputMemory::state)
    }

    pub(super) fn restore(&mut self, state: MethodState) -> Result<(), serde_json::Error> {
        match &mut self.inputs {
            Some(inputs) => inputs.restore(state.tensors),
            None => Ok(()),
        }
    }

    /// `lambda1 * weight * O`, with optional weights per past row of a layer, of which there are as many as the pairs (task, number of
    /// rows) say; none for the first task or where lambda1 is 0.
    pub(super) fn penalty<M: AdapterHost>(
        &self,
        model: &M,
        task: &TaskInfo,
        weight: f64,
        row_weights: impl Fn(&LoraLinear, &[(usize, usize)]) -> Option<Vec<f32>>,
    ) -> Option<Penalty> {
        if task.settings.lambda1 == 0.0 {
            return None;
        }
        let mut pairs = Vec::new();
        model.visit_linears(&mut |layer| {
            let (Some(active), Some((previous, parts))) = (layer.active(), self.past(layer)) else {
                return;
            };
            pairs.push(SubspacePair {
                previous,
                active: active.a.val(),
                row_weights: row_weights(layer, &parts),
            });
        });
        let weight = task.settings.lambda1 * weight;
        self.penalty.forward(pairs).map(|value| Penalty {
            name: "orthogonality",
            weight,
            value,
        })
    }

    /// The past rows of a layer, and how many of them belong to each task.
    fn past(&self, layer: &LoraLinear) -> Option<(Tensor<2>, Vec<(usize, usize)>)> {
        match &self.inputs {
            Some(inputs) => {
                let past = inputs.past(layer.name())?;
                Some((past.rows.clone(), past.parts.clone()))
            }
            None => {
                let stack = layer.frozen()?;
                let parts = stack.tasks().iter().copied();
                let parts = parts.zip(stack.ranks().iter().copied());
                Some((stack.a(), parts.collect()))
            }
        }
    }
}

/// `lambda2 * N`; none for the first task or where lambda2 is 0.
pub(super) fn norm<M: AdapterHost>(model: &M, task: &TaskInfo) -> Option<Penalty> {
    if task.index == 0 || task.settings.lambda2 == 0.0 {
        return None;
    }
    let mut total: Option<Tensor<1>> = None;
    model.visit_linears(&mut |layer| {
        let Some(active) = layer.active() else { return };
        let term = norm_penalty(active.a.val(), active.b.val());
        total = Some(match total.take() {
            Some(total) => total + term,
            None => term,
        });
    });
    total.map(|value| Penalty {
        name: "norm",
        weight: task.settings.lambda2,
        value,
    })
}
