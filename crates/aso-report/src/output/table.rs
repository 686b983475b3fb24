//! The tables that the page and Markdown share.

use aso_trainer::metrics::{Metric, Spread, rounded};
use serde::Serialize;

use crate::statistics::Interval;
use crate::summary::{Difference, GeneralSummary, GroupSummary, ResultLine, StreamSummary, rank};

/// What stands where there is no number.
pub(super) const NOTHING: &str = "-";

/// A table. The first column names the row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Table {
    pub(super) header: Vec<Heading>,
    pub(super) rows: Vec<Vec<Cell>>,
}

/// The head of a column.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Heading {
    pub(super) text: String,
    /// More about it.
    pub(super) title: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) mark: Mark,
}

/// The place of a number in its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mark {
    None,
    Best,
    Second,
}

fn heading(text: &str) -> Heading {
    Heading {
        text: text.to_owned(),
        title: None,
    }
}

fn plain(text: impl Into<String>) -> Cell {
    Cell {
        text: text.into(),
        mark: Mark::None,
    }
}

/// `mean ± sd` with two decimals, for metrics.
pub(super) fn spread(summary: Option<Spread>) -> String {
    spread_to(summary, 2)
}

fn spread_to(summary: Option<Spread>, decimals: usize) -> String {
    summary.map_or_else(|| NOTHING.to_owned(), |summary| summary.text(decimals))
}

/// [`spread_to`] over some of `runs` runs; says over how many where they are fewer.
fn spread_of(summary: Option<Spread>, runs: usize, decimals: usize) -> String {
    let text = spread_to(summary, decimals);
    match summary.filter(|summary| summary.n < runs) {
        Some(summary) => format!("{text} (n = {})", summary.n),
        None => text,
    }
}

/// A difference with its sign and two decimals; what rounds to 0 is +0.00.
fn signed(number: f64) -> String {
    format!("{:+.2}", rounded(number, 2))
}

fn interval(interval: Option<Interval>) -> String {
    interval.map_or_else(
        || NOTHING.to_owned(),
        |interval| format!("{} to {}", signed(interval.low), signed(interval.high)),
    )
}

/// Tasks by name, whatever their order: `a, b and c`.
pub(super) fn sentence(tasks: &[String]) -> String {
    let mut names: Vec<&str> = tasks.iter().map(String::as_str).collect();
    names.sort_unstable();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

/// The [shown](Metric::shown) metrics of all groups; best and second best of each column marked where there is something to compare ([`rank`]).
pub(super) fn results(lines: &[ResultLine<'_>]) -> Table {
    let shown = Metric::shown(|metric| lines.iter().any(|line| line.metric(metric).is_some()));
    let metrics = shown.iter().map(|metric| Heading {
        text: format!(
            "{} {}",
            metric.heading(),
            if metric.higher_is_better() {
                "\u{2191}"
            } else {
                "\u{2193}"
            }
        ),
        title: Some(metric.meaning()),
    });
    let fixed = [heading("method"), heading("seeds")];
    let row = |(at, line): (usize, &ResultLine<'_>)| {
        let metric = |metric: Metric| {
            let mark = match rank(lines, at, metric) {
                _ if lines.len() < 2 => Mark::None,
                Some(0) => Mark::Best,
                Some(1) => Mark::Second,
                _ => Mark::None,
            };
            let text = spread_of(line.metric(metric), line.seeds, 2);
            Cell { text, mark }
        };
        let fixed = [plain(line.label), plain(line.seeds.to_string())];
        let metrics = shown.iter().copied().map(metric);
        fixed.into_iter().chain(metrics).collect()
    };
    Table {
        header: fixed.into_iter().chain(metrics).collect(),
        rows: lines.iter().enumerate().map(row).collect(),
    }
}

/// The differences to the reference in some metrics, which have a column of their own if there are several; `None` where no
/// group has a seed in common with the reference.
pub(super) fn differences(
    differences: &[Difference],
    reference: &str,
    metrics: &[Metric],
) -> Option<Table> {
    let minus = format!("minus {reference}");
    let several = metrics.len() > 1;
    let metric = several.then(|| heading("metric"));
    let titled = |text: &str, title| Heading {
        text: text.to_owned(),
        title: Some(title),
    };
    let header = [
        heading(&minus),
        heading("seeds"),
        titled(
            "95 % over seeds",
            "Student's t over the differences of the seeds that both have",
        ),
        titled("p", "exact sign-flip test over seeds"),
    ];
    // There are none without predictions.
    let all = differences.iter().flat_map(|one| one.metrics.values());
    let known = all
        .flatten()
        .any(|paired| paired.examples_interval.is_some());
    let examples = known.then(|| {
        titled(
            "95 % over examples",
            "paired bootstrap over test examples, drawn within each task",
        )
    });
    let row = |difference: &Difference, metric: Metric| {
        let paired = difference.metrics.get(&metric)?.as_ref()?;
        let change = match paired.sd {
            Some(sd) => format!("{} \u{b1} {:.2}", signed(paired.mean), rounded(sd, 2)),
            None => signed(paired.mean),
        };
        // The smallest one of five seeds is 0.0625.
        let p = paired.sign_flip_p.map(|p| match p < 5e-5 {
            true => "< 0.0001".to_owned(),
            false => format!("{p:.4}"),
        });
        let name = several.then(|| metric.heading().to_owned());
        let first = std::iter::once(difference.label.clone()).chain(name);
        let numbers = [
            change,
            paired.n.to_string(),
            interval(paired.seeds_interval),
            p.unwrap_or_else(|| NOTHING.to_owned()),
        ];
        let examples = known.then(|| interval(paired.examples_interval));
        Some(first.chain(numbers).chain(examples).map(plain).collect())
    };
    let of = |difference| {
        metrics
            .iter()
            .filter_map(move |metric| row(difference, *metric))
    };
    let rows: Vec<Vec<Cell>> = differences.iter().flat_map(of).collect();
    (!rows.is_empty()).then(|| Table {
        header: std::iter::once(heading("method"))
            .chain(metric)
            .chain(header)
            .chain(examples)
            .collect(),
        rows,
    })
}

/// Scores on tasks that were not learned, before and after; `None` where no run has any.
pub(super) fn general(stream: &StreamSummary) -> Option<Table> {
    let header = [
        "method",
        "task",
        "untouched backbone",
        "after the last task",
    ]
    .map(heading);
    let row = |group: &GroupSummary, score: &GeneralSummary| {
        let scores = [score.before, score.after].map(|score| plain(spread(score)));
        [plain(&group.label), plain(&score.task)]
            .into_iter()
            .chain(scores)
            .collect()
    };
    let of = |group: &GroupSummary| -> Vec<Vec<Cell>> {
        group
            .general
            .iter()
            .map(|score| row(group, score))
            .collect()
    };
    let rows: Vec<Vec<Cell>> = stream.groups.iter().flat_map(of).collect();
    (!rows.is_empty()).then(|| Table {
        header: header.to_vec(),
        rows,
    })
}

/// What the groups cost.
pub(super) fn cost(stream: &StreamSummary) -> Table {
    let header = [
        heading("method"),
        Heading {
            text: "trainable parameters".to_owned(),
            title: Some("elements that one task trains"),
        },
        Heading {
            text: "kept elements".to_owned(),
            title: Some("elements of adapters and of the method's matrices after the last task"),
        },
        Heading {
            text: "kept examples".to_owned(),
            title: Some("training examples of earlier tasks that are kept"),
        },
        Heading {
            text: "peak memory in MiB".to_owned(),
            title: Some("of the whole process, data and evaluation included"),
        },
        Heading {
            text: "s per step".to_owned(),
            title: Some("median over the steps of a run"),
        },
        heading("training in s"),
        heading("of it attribution in s"),
        heading("evaluation in s"),
    ];
    let row = |group: &GroupSummary| {
        let cost = &group.cost;
        let count = |number: Option<u64>| plain(number.map_or_else(|| NOTHING.to_owned(), grouped));
        let kept = cost.footprint;
        let seconds = |summary, decimals| plain(spread_of(summary, group.runs.len(), decimals));
        [
            plain(&group.label),
            count(cost.trainable_parameters),
            count(kept.map(|kept| kept.adapter_elements + kept.method_elements)),
            count(kept.map(|kept| kept.examples)),
            count(cost.peak_bytes.map(|bytes| bytes >> 20)),
            seconds(cost.seconds_per_step, 3),
            seconds(cost.train_seconds, 1),
            seconds(cost.attribution_seconds, 1),
            seconds(cost.evaluation_seconds, 1),
        ]
        .to_vec()
    };
    Table {
        header: header.to_vec(),
        rows: stream.groups.iter().map(row).collect(),
    }
}

/// Digits in groups of three, with thin spaces.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let summary = |mean, sd| Some(Spread { mean, sd, n: 2 });
        assert_eq!(spread(summary(71.234, Some(0.5))), "71.23 \u{b1} 0.50");
        assert_eq!(spread(summary(71.236, None)), "71.24");
        assert_eq!(spread(summary(59.125, None)), "59.13");
        assert_eq!(spread(summary((55.85 + 61.6) / 2.0, None)), "58.73");
        assert_eq!(spread(summary(58.724_999_999_999_994, None)), "58.73");
        assert_eq!(spread(summary(58.724_99, None)), "58.72");
        assert_eq!(spread(summary(-0.001, None)), "0.00");
        assert_eq!(spread(None), "-");
        let range = Interval {
            low: -1.0,
            high: 2.5,
        };
        assert_eq!(interval(Some(range)), "-1.00 to +2.50");
        assert_eq!(
            (signed(-1e-14), signed(-0.006)),
            ("+0.00".into(), "-0.01".into())
        );
        assert_eq!(grouped(12), "12");
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
    }
}
