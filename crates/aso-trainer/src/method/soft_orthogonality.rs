//! ASO-LoRA (Wang et al., ACL 2026): orthogonality weighted by the dissimilarity of tasks.

use aso_attribution::{
    Attributor, MAX_PATH_ROWS, Preset, Similarity, TapChoice, TargetToken, TaskComparison,
};
use aso_backbones::{Backbone, BackboneError, BlockTaps, TapPoint};
use aso_lora::LoraLinear;
use aso_losses::SoftWeight;
use serde::{Deserialize, Serialize};

use super::subspaces::{Isolation, norm};
use super::{Method, MethodState, Observation, Penalty, StepInfo, TaskContext, TaskInfo};
use crate::TrainerError;
use crate::config::{
    AttributionPreset, AttributionSettings, MethodName, TapStack, TargetKind, TaskComparisonKind,
};
use crate::results::{SimilarityPoint, WeightPoint};

/// `CE + lambda1 w O + lambda2 N` with `w = 1 - rho` measured during training.
///
/// Preset `aso` holds a measured weight until the next measurement and clamps it; preset `reference` uses it on the step
/// of its measurement only, as it is, as released (docs/method.md, Attribution and the soft weight).
#[derive(Debug, Clone)]
pub struct AsoLora {
    isolation: Isolation,
    settings: AttributionSettings,
    attributor: Attributor,
    weight: Weight,
}

/// The soft weight in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Weight {
    /// One for everything.
    One(f64),
    /// One per past task.
    Tasks(Vec<f64>),
    /// One per block of encoder and decoder (answer) stack.
    Blocks { encoder: Vec<f64>, answer: Vec<f64> },
}

impl AsoLora {
    /// ASO-LoRA with the given isolation and attribution settings.
    pub fn new(isolation: Isolation, settings: &AttributionSettings) -> Self {
        let preset = match settings.preset {
            AttributionPreset::Aso => Preset::Aso,
            AttributionPreset::Reference => Preset::Reference,
        };
        let mut attributor = Attributor::preset(preset, MAX_PATH_ROWS);
        attributor.gradients.steps = settings.steps;
        attributor.gradients.alpha_min = settings.alpha_min;
        attributor.target = match settings.target {
            TargetKind::Gold => TargetToken::Gold,
            TargetKind::Predicted => TargetToken::Predicted,
        };
        if preset == Preset::Aso {
            attributor.taps = if settings.per_block {
                TapChoice::Both
            } else {
                TapChoice::One(match settings.tapped_stack() {
                    TapStack::Decoder => TapPoint::Answer,
                    TapStack::Encoder => TapPoint::Encoder,
                    TapStack::EncoderReadout => TapPoint::EncoderReadout,
                })
            };
        }
        Self {
            isolation,
            settings: settings.clone(),
            attributor,
            weight: Weight::One(1.0),
        }
    }

    fn is_reference(&self) -> bool {
        self.settings.preset == AttributionPreset::Reference
    }

    /// Whether the weight is measured before the update of this step.
    fn measures(&self, task: &TaskInfo, step: usize) -> bool {
        let due = step.is_multiple_of(self.settings.interval_for(task.steps));
        task.index > 0 && due && (step > 0 || self.is_reference())
    }

    fn soft_weight(&self) -> SoftWeight {
        if self.settings.clamps() {
            SoftWeight::Clamped
        } else {
            SoftWeight::Unclamped
        }
    }

    fn measure<M: Backbone>(
        &self,
        step: &StepInfo<'_, M>,
    ) -> Result<Option<(Weight, Vec<SimilarityPoint>)>, BackboneError> {
        let rows = if self.is_reference() {
            step.micro_batch
        } else {
            self.settings.examples
        };
        let batch = step.batch(rows)?;
        let soft = self.soft_weight();
        if self.settings.per_task {
            let comparison = match self.settings.compare {
                TaskComparisonKind::Without => TaskComparison::Without,
                TaskComparisonKind::Reliance => TaskComparison::Reliance,
                TaskComparisonKind::Alone => TaskComparison::Alone,
            };
            let past = step.task.index;
            let measured = self
                .attributor
                .measure_tasks(step.model, &batch, past, comparison)?;
            return Ok(measured.map(|tasks| {
                let means: Vec<_> = tasks.tasks.iter().map(Similarity::mean).collect();
                warn_of_missing(step, "past tasks", &means);
                let weights = means.into_iter().map(|mean| soft.weight(mean)).collect();
                let points = tasks.tasks.iter().enumerate();
                let points = points
                    .map(|(task, s)| point(step.step, Some(task), s))
                    .collect();
                (Weight::Tasks(weights), points)
            }));
        }
        let Some(measured) = self.attributor.measure(step.model, &batch)? else {
            return Ok(None);
        };
        let similarity = measured.similarity;
        let points = vec![point(step.step, None, &similarity)];
        let weight = if self.settings.per_block {
            warn_of_missing(step, "blocks", &similarity.blocks);
            let mut weights: Vec<f64> = similarity
                .blocks
                .iter()
                .map(|rho| soft.weight(*rho))
                .collect();
            let answer = weights.split_off(step.model.tapped_blocks(TapPoint::Encoder));
            Weight::Blocks {
                encoder: weights,
                answer,
            }
        } else {
            let mean = similarity.mean();
            warn_of_missing(step, "everything", &[mean]);
            Weight::One(soft.weight(mean))
        };
        Ok(Some((weight, points)))
    }

    /// Weights of the past rows of one layer, where there is more than one weight.
    fn row_weights<M: BlockTaps>(
        &self,
        model: &M,
        layer: &LoraLinear,
        parts: &[(usize, usize)],
    ) -> Option<Vec<f32>> {
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        match &self.weight {
            Weight::One(_) => None,
            Weight::Tasks(weights) => {
                let of = |task: &usize| weights.get(*task).copied().unwrap_or(1.0) as f32;
                let rows = parts.iter();
                let rows = rows.flat_map(|(task, rows)| std::iter::repeat_n(of(task), *rows));
                Some(rows.collect())
            }
            Weight::Blocks { encoder, answer } => {
                let weight = match model.tapped_block_of(layer.name()) {
                    Some((TapPoint::Answer, block)) => answer.get(block),
                    Some((_, block)) => encoder.get(block),
                    None => None,
                };
                Some(vec![weight.copied().unwrap_or(1.0) as f32; rows])
            }
        }
    }
}

/// Says which of several similarities could not be measured, because attribution does not vary: there the weight is 1.
fn warn_of_missing<M>(step: &StepInfo<'_, M>, what: &str, similarities: &[Option<f64>]) {
    let missing = similarities.iter().enumerate();
    let missing = missing.filter_map(|(at, rho)| rho.is_none().then_some(at));
    let missing: Vec<usize> = missing.collect();
    if !missing.is_empty() {
        tracing::warn!(
            task = step.task.name,
            step = step.step,
            of = what,
            ?missing,
            "attribution does not vary: full isolation (w = 1)"
        );
    }
}

fn point(step: usize, past_task: Option<usize>, similarity: &Similarity) -> SimilarityPoint {
    SimilarityPoint {
        step,
        past_task,
        blocks: similarity.blocks.clone(),
    }
}

impl Weight {
    /// For logs and results.
    fn point(&self, step: usize) -> WeightPoint {
        let weights = match self {
            Self::One(weight) => {
                return WeightPoint {
                    step,
                    weight: *weight,
                    weights: Vec::new(),
                };
            }
            Self::Tasks(weights) => weights.clone(),
            Self::Blocks { encoder, answer } => [encoder.as_slice(), answer].concat(),
        };
        let weight = weights.iter().sum::<f64>() / weights.len().max(1) as f64;
        WeightPoint {
            step,
            weight,
            weights,
        }
    }
}

impl<M: Backbone> Method<M> for AsoLora {
    fn name(&self) -> &str {
        MethodName::AsoLora.as_str()
    }

    fn check(&self, model: &M) -> Result<(), BackboneError> {
        self.attributor.check(model)
    }

    fn drops_frozen_input(&self) -> bool {
        self.is_reference()
    }

    fn start_task(&mut self, model: &mut M, context: &TaskContext<'_>) -> Result<(), TrainerError> {
        self.weight = Weight::One(1.0);
        self.isolation.start_task(model);
        let task = context.task;
        if task.index > 0 && !(0..task.steps).any(|step| self.measures(task, step)) {
            tracing::warn!(
                task = task.name,
                steps = task.steps,
                interval = self.settings.interval_for(task.steps),
                "too few steps for a measurement: full isolation (w = 1), as with o-lora"
            );
        }
        Ok(())
    }

    fn start_step(&mut self, step: &StepInfo<'_, M>) -> Result<Option<Observation>, TrainerError> {
        if !self.settings.holds() {
            self.weight = Weight::One(1.0);
        }
        if !self.measures(step.task, step.step) {
            return Ok(None);
        }
        let Some((weight, similarity)) = self.measure(step)? else {
            tracing::warn!(
                task = step.task.name,
                step = step.step,
                "no row of the batch has a label: the soft weight is not measured"
            );
            return Ok(None);
        };
        self.weight = weight;
        Ok(Some(Observation {
            weight: self.weight.point(step.step),
            similarity,
        }))
    }

    fn penalties(&self, model: &M, task: &TaskInfo) -> Vec<Penalty> {
        let weight = match self.weight {
            Weight::One(weight) => weight,
            Weight::Tasks(_) | Weight::Blocks { .. } => 1.0,
        };
        let rows = |layer: &LoraLinear, parts: &[_]| self.row_weights(model, layer, parts);
        let isolation = self.isolation.penalty(model, task, weight, rows);
        isolation.into_iter().chain(norm(model, task)).collect()
    }

    fn end_task(&mut self, model: &mut M, context: &TaskContext<'_>) -> Result<(), TrainerError> {
        self.isolation.end_task(model, context)
    }

    fn state(&self) -> MethodState {
        MethodState {
            values: serde_json::json!(self.weight),
            ..self.isolation.state()
        }
    }

    fn restore(&mut self, state: MethodState) -> Result<(), serde_json::Error> {
        if !state.values.is_null() {
            self.weight = serde_json::from_value(state.values.clone())?;
        }
        self.isolation.restore(state)
    }
}
