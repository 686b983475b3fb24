//! Methods without a soft weight, and the penalties that the methods share.

use aso_backbones::Backbone;
use aso_lora::{AdapterHost, LoraLinear};
use aso_losses::{Orthogonality, OrthogonalityPenalty, SubspacePair, norm_penalty};
use burn::tensor::Tensor;

use super::{Method, Penalty, Structure, TaskInfo};
use crate::config::{MethodName, PenaltyKind};

impl From<PenaltyKind> for OrthogonalityPenalty {
    fn from(kind: PenaltyKind) -> Self {
        Self::new(match kind {
            PenaltyKind::AbsSum => Orthogonality::AbsoluteSum,
            PenaltyKind::SquaredFrobenius => Orthogonality::SquaredFrobenius,
            PenaltyKind::MeanAbsCosine => Orthogonality::MeanAbsoluteCosine,
        })
    }
}

/// One adapter trained on one task after another (SeqLoRA in the papers): nothing is protected.
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

/// One subspace per task without orthogonality (IncLoRA, Wang et al. 2023): `CE + lambda2 N`.
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

/// One subspace per task, all fully isolated (O-LoRA, Wang et al. 2023): `CE + lambda1 O + lambda2 N`.
#[derive(Debug, Clone, Copy)]
pub struct OLora {
    penalty: OrthogonalityPenalty,
}

impl OLora {
    /// O-LoRA with the given orthogonality penalty.
    pub fn new(penalty: OrthogonalityPenalty) -> Self {
        Self { penalty }
    }
}

impl<M: Backbone> Method<M> for OLora {
    fn name(&self) -> &str {
        MethodName::OLora.as_str()
    }

    fn penalties(&self, model: &M, task: &TaskInfo) -> Vec<Penalty> {
        let isolation = orthogonality(model, task, self.penalty, 1.0, |_, _| None);
        isolation.into_iter().chain(norm(model, task)).collect()
    }
}

/// `lambda1 * weight * O`, with optional weights per past row of a layer; none for the first task or where lambda1 is 0.
pub(super) fn orthogonality<M: AdapterHost>(
    model: &M,
    task: &TaskInfo,
    penalty: OrthogonalityPenalty,
    weight: f64,
    row_weights: impl Fn(&LoraLinear, &[usize]) -> Option<Vec<f32>>,
) -> Option<Penalty> {
    if task.settings.lambda1 == 0.0 {
        return None;
    }
    let mut pairs = Vec::new();
    model.visit_linears(&mut |layer| {
        let (Some(active), Some(frozen)) = (layer.active(), layer.frozen()) else {
            return;
        };
        pairs.push(SubspacePair {
            previous: frozen.a(),
            active: active.a.val(),
            row_weights: row_weights(layer, frozen.ranks()),
        });
    });
    let weight = task.settings.lambda1 * weight;
    penalty.forward(pairs).map(|value| Penalty {
        name: "orthogonality",
        weight,
        value,
    })
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
