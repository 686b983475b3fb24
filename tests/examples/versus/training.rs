//! One optimizer step, as the trainer makes it for a first task.

use std::path::Path;

use aso_backbones::llama::LlamaForCausalLm;
use aso_backbones::t5::T5ForConditionalGeneration;
use aso_backbones::{Backbone, TokenBatch};
use aso_lora::{Adapter, DropoutStream, ForwardContext};
use aso_losses::SequenceCrossEntropy;
use aso_trainer::optimizer::{AdamWSettings, SubspaceGradients, SubspaceOptimizer};
use burn::tensor::{Device, Tensor};

use crate::{Outcome, Workload, read_batch};

pub(crate) struct TrainingStep<M> {
    model: M,
    batch: TokenBatch,
    optimizer: SubspaceOptimizer,
    step: u64,
}

pub(crate) fn t5(work: &Path) -> anyhow::Result<TrainingStep<T5ForConditionalGeneration>> {
    let model = T5ForConditionalGeneration::from_pretrained(&work.join("t5"), &Device::default())?;
    TrainingStep::new(model, &work.join("t5-active"), &work.join("train-t5.json"))
}

pub(crate) fn llama(work: &Path) -> anyhow::Result<TrainingStep<LlamaForCausalLm>> {
    let model = LlamaForCausalLm::from_pretrained(&work.join("llama"), &Device::default())?;
    let (adapter, batch) = (work.join("llama-active"), work.join("train-llama.json"));
    TrainingStep::new(model, &adapter, &batch)
}

impl<M: Backbone> TrainingStep<M> {
    fn new(mut model: M, adapter: &Path, batch: &Path) -> anyhow::Result<Self> {
        let adapter = Adapter::load(adapter)?;
        model.set_active(&adapter, adapter.config.lora_dropout)?;
        // The trainer's default.
        model.keep_transposed();
        Ok(Self {
            model,
            batch: read_batch(batch)?,
            optimizer: SubspaceOptimizer::new(AdamWSettings::default()),
            step: 0,
        })
    }

    fn loss(&self, context: &ForwardContext) -> (Tensor<1>, usize) {
        let (logits, labels) = self.model.answer_logits(&self.batch, context);
        let loss = SequenceCrossEntropy::default().forward(logits, &labels);
        (loss.sum, loss.tokens)
    }
}

impl<M: Backbone> Workload for TrainingStep<M> {
    fn warm_up(&mut self) -> anyhow::Result<Option<f64>> {
        // Without dropout both sides compute the same number.
        let (sum, tokens) = self.loss(&ForwardContext::inference());
        let check = value(sum) / tokens as f64;
        self.run()?;
        Ok(Some(check))
    }

    fn run(&mut self) -> anyhow::Result<Outcome> {
        let dropout = DropoutStream::new(1, 0, self.step, 0);
        let (sum, tokens) = self.loss(&ForwardContext::training(Some(dropout)));
        let loss = sum.clone();
        let mut gradients = SubspaceGradients::collect(&self.model, &mut sum.backward());
        gradients.scale(1.0 / tokens as f64);
        gradients.clip(1.0);
        self.optimizer.step(&mut self.model, &gradients, 1e-3);
        self.step += 1;
        Ok(Outcome::check(value(loss) / tokens as f64))
    }
}

fn value(tensor: Tensor<1>) -> f64 {
    let data = tensor.without_autodiff().into_data();
    data.iter::<f32>().map(f64::from).sum()
}
