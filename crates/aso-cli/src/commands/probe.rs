//! `aso probe`.

use std::process::ExitCode;

use anyhow::Context;
use aso_attribution::{Attributor, MAX_PATH_ROWS, Preset};
use aso_backbones::{Backbone, BackboneError, FloatDtype, NamedTensor, TokenBatch, checkpoint};
use aso_lora::{AdapterHost, ForwardContext};
use aso_losses::{
    OrthogonalityPenalty, SequenceCrossEntropy, SoftWeight, SubspacePair, norm_penalty,
};
use aso_trainer::config::ModelSettings;
use aso_trainer::files::atomic_write;
use aso_trainer::load::{load_adapters, load_backbone, model_folder};
use aso_trainer::optimizer::SubspaceGradients;
use burn::tensor::{Device, Tensor};

use crate::args::{AttributionArg, ProbeArgs};
use crate::progress::Terminal;

pub(crate) fn run(
    args: &ProbeArgs,
    device: &Device,
    terminal: &Terminal,
) -> anyhow::Result<ExitCode> {
    let text =
        std::fs::read_to_string(&args.batch).with_context(|| args.batch.display().to_string())?;
    let in_batch = || args.batch.display().to_string();
    let batch = match TokenBatch::from_json(&args.batch, &text) {
        // This one names the file itself.
        Err(error @ BackboneError::Json { .. }) => return Err(error.into()),
        parsed => parsed.with_context(in_batch)?,
    };
    let settings = ModelSettings {
        path: args.model.clone(),
        ..ModelSettings::default()
    };
    let folder = model_folder(&settings, &mut terminal.observer(1))?;
    let folder = folder.context("probe needs a model folder")?;
    let (mut model, fingerprint) = load_backbone(&folder, args.dtype.into(), device)?;
    batch.check_kind(model.kind()).with_context(in_batch)?;
    batch
        .check_vocabulary(model.vocabulary())
        .with_context(in_batch)?;
    load_adapters(&mut model, &args.adapter, &fingerprint, true)?;

    let mut tensors = Vec::new();
    // The graph is needed for gradients only.
    let context = if args.gradients && !args.adapter.is_empty() {
        ForwardContext::training(None)
    } else {
        ForwardContext::inference()
    };
    let logits = model.logits(&batch, &context);
    push(&mut tensors, "logits", logits.clone());
    let loss = SequenceCrossEntropy::default().forward(logits, &model.aligned_labels(&batch));
    let loss = loss.sum.div_scalar(loss.tokens.max(1) as f64);
    push(&mut tensors, "loss", loss.clone());
    if loss.is_tracked() {
        let gradients = SubspaceGradients::collect(&model, &mut loss.backward());
        for (name, gradient) in gradients.iter() {
            push(
                &mut tensors,
                &format!("grad.{name}.weight"),
                gradient.clone(),
            );
        }
    }
    penalties(&model, &mut tensors);
    attribution(args, &model, &batch, &mut tensors)?;
    let bytes = checkpoint::serialize(tensors, FloatDtype::F32)?;
    atomic_write(&args.out, &bytes)?;
    Ok(ExitCode::SUCCESS)
}

/// Raw O and N of the active subspace; 0 without one.
fn penalties<M: AdapterHost>(model: &M, tensors: &mut Vec<NamedTensor>) {
    let (mut pairs, mut norm) = (Vec::new(), 0.0);
    model.visit_linears(&mut |layer| {
        let Some(active) = layer.active() else { return };
        let a = active.a.val().without_autodiff();
        let b = active.b.val().without_autodiff();
        if let Some(frozen) = layer.frozen() {
            let pair = SubspacePair {
                previous: frozen.a(),
                active: a.clone(),
                row_weights: None,
            };
            pairs.push(pair);
        }
        norm += norm_penalty(a, b).into_scalar::<f32>();
    });
    let orthogonality = OrthogonalityPenalty::default().forward(pairs);
    let orthogonality = orthogonality.map_or(0.0, |value| value.into_scalar::<f32>());
    push_values(tensors, "penalty.orthogonality", vec![orthogonality]);
    push_values(tensors, "penalty.norm", vec![norm]);
}

fn attribution<M: Backbone>(
    args: &ProbeArgs,
    model: &M,
    batch: &TokenBatch,
    tensors: &mut Vec<NamedTensor>,
) -> anyhow::Result<()> {
    let (preset, soft) = match args.attribution {
        AttributionArg::Aso => (Preset::Aso, SoftWeight::Clamped),
        AttributionArg::Reference => (Preset::Reference, SoftWeight::Unclamped),
        AttributionArg::None => {
            push_values(tensors, "weight", vec![1.0]);
            return Ok(());
        }
    };
    let attributor = Attributor::preset(preset, MAX_PATH_ROWS);
    let Some(measured) = attributor.measure(model, batch)? else {
        tracing::warn!("no row of the batch has a label: nothing to attribute");
        push_values(
            tensors,
            "similarity",
            vec![f32::NAN; attributor.tapped_blocks(model)],
        );
        push_values(tensors, "weight", vec![1.0]);
        return Ok(());
    };
    for (which, scores) in [
        ("current", &measured.current),
        ("previous", &measured.previous),
    ] {
        for (block, scores) in scores.iter().enumerate() {
            let scores = scores.iter().map(|score| *score as f32).collect();
            push_values(tensors, &format!("attribution.{which}.{block}"), scores);
        }
    }
    let blocks = measured.similarity.blocks.iter();
    let similarity = blocks
        .map(|rho| rho.map_or(f32::NAN, |rho| rho as f32))
        .collect();
    push_values(tensors, "similarity", similarity);
    // Without adapters there is no active subspace whose task could be similar to anything.
    let weight = match args.adapter.is_empty() {
        true => 1.0,
        false => soft.weight(measured.similarity.mean()),
    };
    push_values(tensors, "weight", vec![weight as f32]);
    Ok(())
}

fn push<const D: usize>(tensors: &mut Vec<NamedTensor>, name: &str, tensor: Tensor<D>) {
    tensors.push(NamedTensor::new(name, tensor));
}

fn push_values(tensors: &mut Vec<NamedTensor>, name: &str, values: Vec<f32>) {
    let shape = vec![values.len()];
    tensors.push(NamedTensor {
        name: name.to_owned(),
        shape,
        values,
    });
}
