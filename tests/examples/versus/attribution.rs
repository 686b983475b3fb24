//! One measurement of the similarity of the current and the previous model.

use std::path::Path;

use anyhow::Context;
use aso_attribution::{Attributor, MAX_PATH_ROWS, Preset};
use aso_backbones::TokenBatch;
use aso_backbones::t5::T5ForConditionalGeneration;
use aso_lora::{Adapter, AdapterHost};
use burn::tensor::Device;

use crate::{Outcome, Workload, read_batch};

pub(crate) struct Attribution {
    model: T5ForConditionalGeneration,
    batch: TokenBatch,
    attributor: Attributor,
}

impl Attribution {
    pub(crate) fn aso(work: &Path) -> anyhow::Result<Self> {
        Self::new(work, Preset::Aso)
    }

    pub(crate) fn reference(work: &Path) -> anyhow::Result<Self> {
        Self::new(work, Preset::Reference)
    }

    fn new(work: &Path, preset: Preset) -> anyhow::Result<Self> {
        let dir = work.join("t5");
        let mut model = T5ForConditionalGeneration::from_pretrained(&dir, &Device::default())?;
        model.push_frozen(&Adapter::load(&work.join("t5-frozen"))?)?;
        let active = Adapter::load(&work.join("t5-active"))?;
        model.set_active(&active, active.config.lora_dropout)?;
        model.fold();
        // The trainer's default.
        model.keep_transposed();
        Ok(Self {
            model,
            batch: read_batch(&work.join("attribution.json"))?,
            attributor: Attributor::preset(preset, MAX_PATH_ROWS),
        })
    }
}

impl Workload for Attribution {
    fn run(&mut self) -> anyhow::Result<Outcome> {
        let measured = self.attributor.measure(&self.model, &self.batch)?;
        let rho = measured.and_then(|measured| measured.similarity.mean());
        Ok(Outcome::check(rho.context("no block varies")?))
    }
}
