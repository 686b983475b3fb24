//! `aso similarity`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use aso_attribution::{Attributor, MAX_PATH_ROWS, Preset};
use aso_backbones::Backbone;
use aso_lora::Adapter;
use aso_trainer::files::CONFIG_FILE;
use aso_trainer::load::{check_base, load_model, open_library};
use aso_trainer::similarity::{SIMILARITY_FILE, TaskSimilarities};
use aso_trainer::state::{RunState, adapter_dir};
use aso_trainer::{RunConfig, Task};
use burn::tensor::Device;

use super::eval::config_of;
use crate::args::{AttributionArg, SimilarityArgs};
use crate::output;
use crate::progress::Terminal;

pub(crate) fn run(
    args: &SimilarityArgs,
    device: &Device,
    terminal: &Terminal,
) -> anyhow::Result<ExitCode> {
    let (mut config, dirs, out) = match &args.run {
        Some(run) => {
            let config = RunConfig::load(&run.join(CONFIG_FILE), &args.set)?;
            let state = RunState::read(run)?.with_context(|| {
                format!("{}: the run has not trained a task yet", run.display())
            })?;
            let tasks = config.tasks()?;
            let dirs = (0..state.trained).map(|at| adapter_dir(run, at, &tasks[at]));
            let out = args
                .out
                .clone()
                .unwrap_or_else(|| run.join(SIMILARITY_FILE));
            (config.clone(), dirs.collect::<Vec<PathBuf>>(), Some(out))
        }
        None => {
            let config = config_of(args.model.as_deref(), args.data.as_deref(), &args.set)?;
            (config, args.adapter.clone(), args.out.clone())
        }
    };
    // Enough to draw the batches from; test examples stay unseen.
    config.data.max_eval = Some(1);
    let preset = match args.attribution {
        AttributionArg::Aso => Preset::Aso,
        AttributionArg::Reference => Preset::Reference,
        AttributionArg::None => bail!("--attribution none: there would be nothing to compare"),
    };
    let attributor = Attributor::preset(preset, MAX_PATH_ROWS);
    let mut loaded = load_model(&config.model, device, &mut terminal.observer(1))?;
    attributor.check(&loaded.model)?;
    let library = open_library(&config.data)?;
    let vocabulary = loaded.model.vocabulary();
    let (mut adapters, mut batches) = (Vec::new(), Vec::new());
    for dir in &dirs {
        let adapter = Adapter::load(dir)?;
        check_base(&adapter, dir, &loaded.fingerprint)?;
        let sidecar = adapter.sidecar.as_ref();
        let name = sidecar
            .map(|sidecar| sidecar.task.clone())
            .with_context(|| {
                format!(
                    "{}: no aso_subspace.json, which says what task the adapter was trained on",
                    dir.display()
                )
            })?;
        let task = Task::load(library.as_ref(), &name, &config, &loaded.codec, vocabulary)?;
        let rows: Vec<_> = task.train.iter().take(args.examples).collect();
        batches.push(loaded.codec.batch(&rows)?);
        adapters.push((name, adapter));
    }
    let measured = TaskSimilarities::measure(&mut loaded.model, &adapters, &batches, &attributor)?;
    if let Some(out) = out {
        measured.write(&out)?;
    }
    if args.json {
        output::print_json(&measured)?;
    } else {
        let names = &measured.tasks;
        let tables = [
            ("attribution similarity", &measured.attribution),
            ("subspace overlap", &measured.overlap),
        ];
        let tables = tables.map(|(title, matrix)| output::square(title, names, matrix));
        output::write_stdout(&tables.join("\n\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
