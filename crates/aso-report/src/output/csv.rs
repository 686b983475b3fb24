//! One row for each group, all numbers in full.

use aso_trainer::metrics::{Metric, Spread};

use crate::summary::ReportSummary;

/// Writes the metrics and costs of all groups. A metric has the columns `KEY_mean`, `KEY_sd` and `KEY_n`; empty
/// fields where there is no number.
pub(crate) fn csv(report: &ReportSummary) -> String {
    let costs = [
        "seconds_per_step",
        "train_seconds",
        "attribution_seconds",
        "evaluation_seconds",
    ];
    let keys = Metric::ALL.iter().map(|metric| metric.key()).chain(costs);
    let columns = keys.flat_map(|key| ["mean", "sd", "n"].map(|part| format!("{key}_{part}")));
    let fixed = ["stream", "label", "method", "seeds", "trainable_parameters"];
    let kept = [
        "kept_adapter_elements",
        "kept_method_elements",
        "kept_examples",
        "peak_bytes",
    ];
    let header = fixed.into_iter().map(str::to_owned).chain(columns);
    let header = header.chain(kept.map(str::to_owned));
    let mut lines = vec![header.collect::<Vec<_>>().join(",")];
    for stream in &report.streams {
        for group in &stream.groups {
            let mut fields = vec![
                quoted(&stream.tasks.join(" ")),
                quoted(&group.label),
                quoted(&group.method),
                group.runs.len().to_string(),
                count(group.cost.trainable_parameters),
            ];
            let metrics = Metric::ALL.map(|metric| group.metrics.get(&metric).copied().flatten());
            let costs = [
                group.cost.seconds_per_step,
                group.cost.train_seconds,
                group.cost.attribution_seconds,
                group.cost.evaluation_seconds,
            ];
            fields.extend(metrics.into_iter().chain(costs).flat_map(numbers));
            let kept = group.cost.footprint;
            fields.extend([
                count(kept.map(|kept| kept.adapter_elements)),
                count(kept.map(|kept| kept.method_elements)),
                count(kept.map(|kept| kept.examples)),
                count(group.cost.peak_bytes),
            ]);
            lines.push(fields.join(","));
        }
    }
    lines.join("\n") + "\n"
}

fn count(number: Option<u64>) -> String {
    number.map_or_else(String::new, |number| number.to_string())
}

fn numbers(summary: Option<Spread>) -> [String; 3] {
    let text = |number: Option<f64>| number.map_or_else(String::new, |number| number.to_string());
    [
        text(summary.map(|summary| summary.mean)),
        text(summary.and_then(|summary| summary.sd)),
        summary.map_or(0, |summary| summary.n).to_string(),
    ]
}

/// A field in quotes if it needs them (RFC 4180).
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_need_quotes() {
        assert_eq!(quoted("o-lora"), "o-lora");
        assert_eq!(quoted("a (x=1, y=\"2\")"), "\"a (x=1, y=\"\"2\"\")\"");
    }
}
