//! `aso orders`.

use std::process::ExitCode;

use aso_data::{OrderPreset, order_presets};

use crate::args::OrdersArgs;
use crate::output::{print_json, write_stdout};

/// An order to print.
#[derive(serde::Serialize)]
struct Order {
    name: String,
    tasks: Vec<String>,
    source: String,
}

impl From<&OrderPreset> for Order {
    fn from(preset: &OrderPreset) -> Self {
        Self {
            name: preset.name.to_owned(),
            tasks: preset.tasks.iter().map(|&task| task.to_owned()).collect(),
            source: preset.source.to_owned(),
        }
    }
}

pub(crate) fn run(args: &OrdersArgs) -> anyhow::Result<ExitCode> {
    let orders: Vec<Order> = match (&args.configs, &args.order) {
        (Some(dir), _) => vec![Order {
            tasks: aso_data::task_files_order(dir)?,
            // `.` has no name of its own.
            name: std::fs::canonicalize(dir)?
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            source: dir.display().to_string(),
        }],
        (None, Some(name)) => vec![OrderPreset::find(name)?.into()],
        (None, None) => order_presets().iter().map(Order::from).collect(),
    };
    if args.json {
        print_json(&orders)?;
    } else {
        let lines = orders.iter().map(|order| {
            let tasks = order.tasks.join(" > ");
            format!("{}: {tasks}\n    ({})", order.name, order.source)
        });
        write_stdout(&lines.collect::<Vec<_>>().join("\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
