//! How far training moves A from its random start, as a share of its length, and how much of that (squared) lies in the span of
//! earlier rows (docs/results.md, Ablations).
//!
//! ```text
//! cargo run --release -p aso-tests --example moves -- runs/ablations/order1p-sst2 inc-lora-frozen-a inc-lora o-lora-2
//! ```
//!
//! The folder of an order in a sweep, the method whose A stayed as it was drawn, and methods to compare with it. Runs with the same
//! seed draw the same A for each task.

use std::path::Path;

use anyhow::{Context, ensure};
use aso_lora::{Adapter, LoraWeights};
use aso_trainer::RunConfig;
use aso_trainer::state::adapter_dir;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [order, start, methods @ ..] = &arguments[..] else {
        anyhow::bail!("usage: moves ORDER_DIR START_METHOD METHOD..");
    };
    println!(
        "| method | seed | task | move of A | in the span of earlier rows | outside of it | B |\n|---|---|---|---|---|---|---|"
    );
    let order = Path::new(order);
    for method in methods {
        for (seed, run) in seeds(&order.join(method))? {
            let start = adapters(&order.join(start).join(&seed))?;
            let trained = adapters(&run)?;
            ensure!(
                start.len() == trained.len(),
                "{}: other tasks",
                run.display()
            );
            for task in 1..trained.len() {
                let (task_name, adapter) = &trained[task];
                let moved = Moved::of(&start[task].1, adapter, &trained[..task])?;
                println!(
                    "| {method} | {seed} | {task_name} | {:.2} | {:.0} % | {:.2} | {:.1} |",
                    moved.relative,
                    100.0 * moved.in_span,
                    moved.relative * (1.0 - moved.in_span).sqrt(),
                    moved.b
                );
            }
        }
    }
    Ok(())
}

/// The runs of a method with their folders' names.
fn seeds(method: &Path) -> anyhow::Result<Vec<(String, std::path::PathBuf)>> {
    let entries = std::fs::read_dir(method).with_context(|| method.display().to_string())?;
    let mut runs = Vec::new();
    for entry in entries {
        let entry = entry?;
        runs.push((entry.file_name().display().to_string(), entry.path()));
    }
    runs.sort();
    Ok(runs)
}

/// The adapters of a run with the names of their tasks.
fn adapters(run: &Path) -> anyhow::Result<Vec<(String, Adapter)>> {
    let config = RunConfig::load(&run.join("config.toml"), &[])?;
    let tasks = config.tasks()?.into_iter().enumerate();
    let adapter = |(index, task): (usize, String)| {
        let adapter = Adapter::load(&adapter_dir(run, index, &task))?;
        Ok((task, adapter))
    };
    tasks.map(adapter).collect()
}

/// Over all layers of a task.
struct Moved {
    /// `|A - A0| / |A0|`.
    relative: f64,
    /// Share of `|A - A0|^2` in the span of the rows of earlier tasks.
    in_span: f64,
    /// `|B|`.
    b: f64,
}

impl Moved {
    fn of(
        start: &Adapter,
        adapter: &Adapter,
        earlier: &[(String, Adapter)],
    ) -> anyhow::Result<Self> {
        let (mut length, mut moved, mut inside, mut b) = (0.0, 0.0, 0.0, 0.0);
        for (
            layer,
            LoraWeights {
                a, b: of_b, d_in, ..
            },
        ) in &adapter.weights
        {
            let drawn = start.weights.get(layer).context("other layers")?;
            let past = earlier
                .iter()
                .filter_map(|(_, adapter)| adapter.weights.get(layer));
            let rows = past.flat_map(|weights| weights.a.chunks(*d_in)).map(wide);
            let basis = orthonormal(rows);
            for (row, drawn) in a.chunks(*d_in).zip(drawn.a.chunks(*d_in)) {
                let (row, drawn) = (wide(row), wide(drawn));
                let change: Vec<f64> = row.iter().zip(&drawn).map(|(new, old)| new - old).collect();
                length += dot(&drawn, &drawn);
                moved += dot(&change, &change);
                inside += basis.iter().map(|q| dot(q, &change).powi(2)).sum::<f64>();
            }
            b += dot(&wide(of_b), &wide(of_b));
        }
        Ok(Self {
            relative: (moved / length).sqrt(),
            in_span: inside / moved,
            b: b.sqrt(),
        })
    }
}

/// An orthonormal basis of what the rows span (modified Gram-Schmidt, twice).
fn orthonormal(rows: impl Iterator<Item = Vec<f64>>) -> Vec<Vec<f64>> {
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for mut row in rows {
        let before = dot(&row, &row);
        for q in basis.iter().chain(&basis) {
            let along = dot(q, &row);
            row.iter_mut()
                .zip(q)
                .for_each(|(value, q)| *value -= along * q);
        }
        let left = dot(&row, &row);
        if left > 1e-12 * before {
            row.iter_mut().for_each(|value| *value /= left.sqrt());
            basis.push(row);
        }
    }
    basis
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}
