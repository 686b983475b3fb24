//! The two presets: what is tapped, and how scores become a similarity.

use std::borrow::Cow;

use aso_backbones::{BackboneError, BlockTaps, TapPoint, TokenBatch};
use aso_kernels::join;
use aso_lora::AdapterScope;

use crate::{AttributionScores, IntegratedGradients, PathRule, RowFactor, Similarity};

/// Named settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Preset {
    /// What the paper argues for, done soundly (docs/method.md, Attribution and the soft weight).
    #[default]
    Aso,
    /// What the released code computes, step for step (docs/method.md, Attribution and the soft weight).
    Reference,
}

/// Path rows (examples times points) that usually run at once: a bound on memory that large batches still fill.
pub const MAX_PATH_ROWS: usize = 64;

/// Positions that usually run at once where the paths of all blocks join: as many as a short batch has.
pub const MAX_JOINED_POSITIONS: usize = 2048;

/// Which blocks are tapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TapChoice {
    /// One tap point.
    One(TapPoint),
    /// Encoder blocks at all positions, then answer blocks: one weight per block of either stack.
    Both,
}

impl TapChoice {
    /// The points, in the order in which their blocks are reported.
    pub fn points(self) -> &'static [TapPoint] {
        match self {
            Self::One(TapPoint::Answer) => &[TapPoint::Answer],
            Self::One(TapPoint::Encoder) => &[TapPoint::Encoder],
            Self::One(TapPoint::EncoderReadout) => &[TapPoint::EncoderReadout],
            Self::Both => &[TapPoint::Encoder, TapPoint::Answer],
        }
    }
}

/// Whose probability is attributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum TargetToken {
    /// The first token of the gold answer: each row's first label.
    #[default]
    Gold,
    /// The token that the current model finds most likely in its place, right or wrong, for both models that are compared.
    Predicted,
}

/// Scores of current and previous model, and what follows from them.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Scores with every subspace, per tapped block.
    pub current: AttributionScores,
    /// Scores without the active subspace, per tapped block.
    pub previous: AttributionScores,
    /// rho_l per tapped block.
    pub similarity: Similarity,
}

/// What stands for the current task, and what for past task k, where they are compared task by task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum TaskComparison {
    /// Every subspace; every subspace but that of task k (docs/method.md, Attribution and the soft weight). High where subspace k does
    /// nothing to the current task's examples.
    #[default]
    Without,
    /// The active subspace alone; subspace k alone. High where both use the backbone's representations alike: the similarity of
    /// two tasks (docs/method.md, Attribution and the soft weight), on the examples of the current one.
    Alone,
    /// As [`Without`](Self::Without), but turned over: `1 - rho_k`. High where the current task relies on subspace k, which is
    /// where sharing with it makes sense.
    Reliance,
}

/// Similarity of the current task and each past task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskSimilarity {
    /// For every past task k the similarity per block; its mean is rho_k.
    pub tasks: Vec<Similarity>,
}

/// Measures how the active subspace changed the model's use of its representations.
///
/// The previous model is the same weights with the active subspace off; there is no second copy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attributor {
    /// What is tapped.
    pub taps: TapChoice,
    /// Whose probability is attributed where two models are compared. The encoder readout has a target of its own and takes no notice.
    pub target: TargetToken,
    /// The path integral.
    pub gradients: IntegratedGradients,
    /// Whether NaN and infinite scores count as 0, as released.
    pub zero_non_finite: bool,
}

impl Attributor {
    /// The settings of a preset. `max_rows` bounds memory: path rows that run at once where each block has a path of its own
    /// (taps of an encoder). Joined paths, as those of an answer, have [`MAX_JOINED_POSITIONS`].
    pub fn preset(preset: Preset, max_rows: usize) -> Self {
        let gradients = IntegratedGradients {
            steps: 5,
            rule: PathRule::Midpoint,
            factor: RowFactor::Own,
            alpha_min: 0.0,
            max_rows,
            max_joined_positions: MAX_JOINED_POSITIONS,
        };
        match preset {
            Preset::Aso => Self {
                taps: TapChoice::One(TapPoint::Answer),
                target: TargetToken::Gold,
                gradients,
                zero_non_finite: false,
            },
            Preset::Reference => Self {
                taps: TapChoice::One(TapPoint::EncoderReadout),
                target: TargetToken::Gold,
                gradients: IntegratedGradients {
                    rule: PathRule::Left,
                    factor: RowFactor::First,
                    ..gradients
                },
                zero_non_finite: true,
            },
        }
    }

    /// Whether the model has what is to be tapped.
    ///
    /// # Errors
    /// [`BackboneError::Tap`] for taps of an encoder, preset `reference` among them, on a model without
    /// one.
    pub fn check<M: BlockTaps>(&self, model: &M) -> Result<(), BackboneError> {
        let point = match self.taps {
            TapChoice::One(TapPoint::Encoder) => "encoder blocks",
            TapChoice::One(TapPoint::EncoderReadout) => "encoder readout",
            TapChoice::One(TapPoint::Answer) | TapChoice::Both => return Ok(()),
        };
        if self.tapped_blocks(model) > 0 {
            return Ok(());
        }
        Err(BackboneError::Tap {
            point,
            reason: "a causal model has no encoder; preset `aso` needs none unless told to tap one"
                .into(),
        })
    }

    /// Number of blocks that a measurement reports.
    pub fn tapped_blocks<M: BlockTaps>(&self, model: &M) -> usize {
        self.taps
            .points()
            .iter()
            .map(|point| model.tapped_blocks(*point))
            .sum()
    }

    /// The batch with [`target`](Self::target) in the place of its first labels, without rows that have none; `scope` is the
    /// current model. `None` if no row is left.
    fn targeted<'a, M: BlockTaps>(
        &self,
        model: &M,
        batch: &'a TokenBatch,
        scope: AdapterScope,
    ) -> Result<Option<Cow<'a, TokenBatch>>, BackboneError> {
        if self.target == TargetToken::Gold || self.taps == TapChoice::One(TapPoint::EncoderReadout)
        {
            return Ok(Some(Cow::Borrowed(batch)));
        }
        let labelled = labelled_rows(batch);
        if labelled.is_empty() {
            return Ok(None);
        }
        let batch = batch.select(&labelled);
        let tokens = model.predicted(&batch, scope)?;
        Ok(Some(Cow::Owned(batch.with_first_labels(&tokens))))
    }

    /// Scores of the model with the given subspaces, of the gold answer.
    ///
    /// Rows without a label are left out, except by the encoder readout, which needs none. `None` if no
    /// row is left.
    ///
    /// # Errors
    /// Those of [`BlockTaps::trace`].
    ///
    /// # Panics
    /// Those of [`IntegratedGradients::attribute`].
    pub fn scores<M: BlockTaps>(
        &self,
        model: &M,
        batch: &TokenBatch,
        scope: AdapterScope,
    ) -> Result<Option<AttributionScores>, BackboneError> {
        let labelled = labelled_rows(batch);
        let mut scores = Vec::new();
        for &point in self.taps.points() {
            let blocks = model.tapped_blocks(point);
            if blocks == 0 && self.taps == TapChoice::Both {
                // A causal model has no encoder; its one stack is what "both" comes to.
                continue;
            }
            let trace = if point == TapPoint::EncoderReadout || labelled.len() == batch.rows() {
                model.trace(batch, point, scope)?
            } else if labelled.is_empty() {
                return Ok(None);
            } else {
                model.trace(&batch.select(&labelled), point, scope)?
            };
            scores.extend(self.gradients.attribute(model, &trace, blocks));
        }
        if self.zero_non_finite {
            for score in scores
                .iter_mut()
                .flatten()
                .filter(|score| !score.is_finite())
            {
                *score = 0.0;
            }
        }
        Ok(Some(scores))
    }

    /// Compares the current model (all subspaces) with the previous one (all but the active one).
    ///
    /// `None` if no row of the batch has a label.
    ///
    /// # Errors
    /// Those of [`BlockTaps::trace`].
    ///
    /// # Panics
    /// Those of [`IntegratedGradients::attribute`].
    pub fn measure<M: BlockTaps>(
        &self,
        model: &M,
        batch: &TokenBatch,
    ) -> Result<Option<Measurement>, BackboneError> {
        let Some(batch) = self.targeted(model, batch, AdapterScope::All)? else {
            return Ok(None);
        };
        let (current, previous) = join(
            &model.device(),
            || self.scores(model, &batch, AdapterScope::All),
            || self.scores(model, &batch, AdapterScope::WithoutActive),
        );
        let (Some(current), Some(previous)) = (current?, previous?) else {
            return Ok(None);
        };
        let similarity = Similarity::between(&current, &previous);
        Ok(Some(Measurement {
            current,
            previous,
            similarity,
        }))
    }

    /// Compares the current task with each past task k:
    /// `rho_k = mean_l Pearson(attr_l of the current task, attr_l of task k)`, or 1 minus that.
    ///
    /// `None` if no row of the batch has a label.
    ///
    /// # Errors
    /// Those of [`BlockTaps::trace`].
    ///
    /// # Panics
    /// Those of [`IntegratedGradients::attribute`].
    pub fn measure_tasks<M: BlockTaps>(
        &self,
        model: &M,
        batch: &TokenBatch,
        past_tasks: usize,
        comparison: TaskComparison,
    ) -> Result<Option<TaskSimilarity>, BackboneError> {
        let (scope, past): (AdapterScope, fn(usize) -> AdapterScope) = match comparison {
            TaskComparison::Without | TaskComparison::Reliance => {
                (AdapterScope::All, AdapterScope::WithoutFrozen)
            }
            TaskComparison::Alone => (AdapterScope::OnlyActive, AdapterScope::OnlyFrozen),
        };
        let Some(batch) = self.targeted(model, batch, scope)? else {
            return Ok(None);
        };
        let Some(current) = self.scores(model, &batch, scope)? else {
            return Ok(None);
        };
        let mut tasks = Vec::with_capacity(past_tasks);
        for task in 0..past_tasks {
            let Some(past) = self.scores(model, &batch, past(task))? else {
                return Ok(None);
            };
            let similarity = Similarity::between(&current, &past);
            tasks.push(match comparison {
                TaskComparison::Without | TaskComparison::Alone => similarity,
                TaskComparison::Reliance => similarity.complement(),
            });
        }
        Ok(Some(TaskSimilarity { tasks }))
    }
}

fn labelled_rows(batch: &TokenBatch) -> Vec<usize> {
    (0..batch.rows())
        .filter(|row| batch.first_label(*row).is_some())
        .collect()
}
