//! `aso similarity`.

use std::process::ExitCode;

use anyhow::{Context, bail};
use aso_attribution::{Attributor, MAX_PATH_ROWS, Preset};
use aso_backbones::Backbone;
use aso_lora::Adapter;
use aso_trainer::Task;
use aso_trainer::load::{check_base, load_model, open_library};
use aso_trainer::similarity::{SIMILARITY_FILE, TaskSimilarities, TrainedTask};
use burn::tensor::Device;

use super::source::Source;
use crate::args::{AttributionArg, SimilarityArgs};
use crate::output;
use crate::progress::Terminal;

pub(crate) fn run(
    args: &SimilarityArgs,
    device: &Device,
    terminal: &Terminal,
) -> anyhow::Result<ExitCode> {
    let Source {
        mut config,
        adapters: dirs,
        ..
    } = Source::of_tasks(&args.source)?;
    let run = args.source.model.run.as_ref();
    let of_run = run.map(|run| run.join(SIMILARITY_FILE));
    let out = args.out.clone().or(of_run);
    // Enough to draw the batches from; test examples stay unseen.
    config.data.max_eval = Some(1);
    if dirs.is_empty() {
        bail!(
            "expected a trained adapter of each task to compare (--run or --adapter), found none"
        );
    }
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
    let mut tasks = Vec::new();
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
        let mut task = Task::load(library.as_ref(), &name, &config, &loaded.codec, vocabulary)?;
        task.train.truncate(args.examples);
        tasks.push(TrainedTask {
            name,
            adapter,
            examples: task.train,
        });
    }
    let measured =
        TaskSimilarities::measure(&mut loaded.model, &loaded.codec, &tasks, &attributor)?;
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
            (
                "response of A (row) to inputs of (column)",
                &measured.response,
            ),
        ];
        let tables = tables.map(|(title, matrix)| output::square(title, names, matrix));
        output::write_stdout(&tables.join("\n\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
