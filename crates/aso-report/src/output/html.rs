//! One self-contained page.

use std::collections::BTreeSet;

use aso_trainer::metrics::Metric;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, Value};
use serde::Serialize;

use super::table::{Table, cost, differences, general, results, sentence, spread};
use crate::ReportError;
use crate::across::AcrossOrders;
use crate::group::{Group, Stream};
use crate::plot::{Figure, StreamFigures, stream_figures, theme};
use crate::summary::{Difference, ReportSummary, StreamSummary, rank};

const TEMPLATE: &str = include_str!("report.html");
const STYLE: &str = include_str!("report.css");

#[derive(Serialize)]
struct Page {
    style: Value,
    light: Value,
    dark: Value,
    version: &'static str,
    runs: usize,
    methods: usize,
    reference: String,
    /// Heading and meaning of each metric.
    metrics: Vec<[&'static str; 2]>,
    across: Vec<AcrossSection>,
    streams: Vec<Section>,
}

/// Several orders of the same tasks.
#[derive(Serialize)]
struct AcrossSection {
    id: String,
    tasks: String,
    orders: Vec<Vec<String>>,
    results: Table,
    differences: Option<Table>,
    all_differences: Option<Table>,
}

/// One sequence of tasks.
#[derive(Serialize)]
struct Section {
    id: String,
    tasks: Vec<String>,
    cards: Vec<Card>,
    legend: Vec<Entry>,
    results: Table,
    differences: Option<Table>,
    all_differences: Option<Table>,
    general: Option<Table>,
    cost: Table,
    figures: Figures,
    settings: Settings,
}

/// A number worth reading first.
#[derive(Serialize)]
struct Card {
    title: &'static str,
    label: String,
    value: String,
    unit: &'static str,
    color: String,
}

/// A group in the legend.
#[derive(Serialize)]
struct Entry {
    label: String,
    color: String,
    /// A class of the style sheet.
    pattern: &'static str,
}

/// A figure as SVG, ready to be put into the page.
#[derive(Serialize)]
struct Drawing {
    title: String,
    svg: Value,
}

/// The figures of one sequence of tasks.
#[derive(Serialize)]
struct Figures {
    differences: Option<Drawing>,
    matrices: Vec<Drawing>,
    over_time: Vec<Drawing>,
    forgetting: Option<Drawing>,
    weights: Vec<Drawing>,
    blocks: Vec<Drawing>,
    tasks: Vec<Drawing>,
    loss: Option<Drawing>,
}

/// The configurations.
#[derive(Serialize)]
struct Settings {
    labels: Vec<String>,
    /// Keys in which groups differ, with the value of each.
    differing: Vec<(String, Vec<String>)>,
    /// Each group's `config.toml`, that of its first run.
    texts: Vec<(String, String)>,
}

/// Writes the page.
pub(crate) fn html(streams: &[Stream], report: &ReportSummary) -> Result<String, ReportError> {
    let mut sections = Vec::new();
    for (at, (stream, summary)) in streams.iter().zip(&report.streams).enumerate() {
        sections.push(section(at, stream, summary, report)?);
    }
    let known = |metric| {
        let mut lines = report.streams.iter().flat_map(StreamSummary::lines);
        lines.any(|line| line.metric(metric).is_some())
    };
    let metrics = Metric::shown(known).into_iter();
    let metrics = metrics.map(|metric| [metric.heading(), metric.meaning()]);
    let across = report.across.iter().enumerate();
    let across = across.map(|(at, across)| across_section(at, across, &report.reference));
    let groups = || streams.iter().flat_map(|stream| &stream.groups);
    let labels: BTreeSet<&str> = groups().map(|group| group.label.as_str()).collect();
    let page = Page {
        style: Value::from_safe_string(STYLE.to_owned()),
        light: Value::from_safe_string(theme::declarations(false)),
        dark: Value::from_safe_string(theme::declarations(true)),
        version: report.version,
        runs: groups().map(|group| group.runs.len()).sum(),
        methods: labels.len(),
        reference: report.reference.clone(),
        metrics: metrics.collect(),
        across: across.collect(),
        streams: sections,
    };
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()?;
    environment.set_syntax(syntax);
    environment.add_filter("signs", minus_signs);
    environment.add_template("report.html", TEMPLATE)?;
    Ok(environment
        .get_template("report.html")?
        .render(Serde(page))?)
}

/// A minus sign for each hyphen that begins a number.
fn minus_signs(text: &str) -> String {
    let mut signed = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut before = None;
    while let Some(c) = chars.next() {
        let number = chars.peek().is_some_and(char::is_ascii_digit);
        let begins = before.is_none_or(|before: char| !before.is_alphanumeric());
        signed.push(if c == '-' && number && begins {
            '\u{2212}'
        } else {
            c
        });
        before = Some(c);
    }
    signed
}

/// The differences in AP, and those in all metrics; nothing without any.
fn both_differences(list: &[Difference], reference: &str) -> [Option<Table>; 2] {
    [&[Metric::Ap][..], &Metric::ALL].map(|metrics| differences(list, reference, metrics))
}

fn across_section(at: usize, across: &AcrossOrders, reference: &str) -> AcrossSection {
    let [differences, all_differences] = both_differences(&across.differences, reference);
    AcrossSection {
        id: format!("orders-{}", at + 1),
        tasks: sentence(&across.orders[0]),
        orders: across.orders.clone(),
        results: results(&across.lines()),
        differences,
        all_differences,
    }
}

fn section(
    at: usize,
    stream: &Stream,
    summary: &StreamSummary,
    report: &ReportSummary,
) -> Result<Section, ReportError> {
    let figures = stream_figures(stream, summary, report, "", false)?;
    let [differences, all_differences] = both_differences(&summary.differences, &report.reference);
    Ok(Section {
        id: format!("stream-{}", at + 1),
        tasks: stream.tasks.clone(),
        cards: cards(stream, summary),
        legend: stream.groups.iter().map(entry).collect(),
        results: results(&summary.lines()),
        differences,
        all_differences,
        general: general(summary),
        cost: cost(summary),
        figures: inline(figures),
        settings: settings(stream),
    })
}

fn color(group: &Group) -> String {
    theme::Ink::series(group.number).variable()
}

fn entry(group: &Group) -> Entry {
    Entry {
        label: group.label.clone(),
        color: color(group),
        pattern: theme::Pattern::series(group.number).class(),
    }
}

/// The best group by each of three metrics, or the one there is.
fn cards(stream: &Stream, summary: &StreamSummary) -> Vec<Card> {
    let lines = summary.lines();
    let single = lines.len() == 1;
    let wanted = [
        (
            Metric::Ap,
            "Average performance",
            "Highest average performance",
        ),
        (Metric::Forgetting, "Forgetting", "Least forgetting"),
        (
            Metric::LearningAccuracy,
            "Learning accuracy",
            "Highest learning accuracy",
        ),
    ];
    let card = |(metric, alone, best): (Metric, &'static str, &'static str)| {
        let at = (0..lines.len()).find(|at| rank(&lines, *at, metric) == Some(0))?;
        let value = spread(lines[at].metric(metric));
        Some(Card {
            title: if single { alone } else { best },
            label: lines[at].label.to_owned(),
            value,
            unit: match metric {
                Metric::Forgetting => "points",
                _ => "%",
            },
            color: color(stream.groups.get(at)?),
        })
    };
    wanted.into_iter().filter_map(card).collect()
}

fn inline(figures: StreamFigures) -> Figures {
    let one = |figure: Option<Figure>| figure.as_ref().map(drawing);
    let many = |figures: Vec<Figure>| figures.iter().map(drawing).collect();
    Figures {
        differences: one(figures.differences),
        matrices: many(figures.matrices),
        over_time: many(figures.over_time),
        forgetting: one(figures.forgetting),
        weights: many(figures.weights),
        blocks: many(figures.blocks),
        tasks: many(figures.tasks),
        loss: one(figures.loss),
    }
}

fn drawing(figure: &Figure) -> Drawing {
    Drawing {
        title: figure.title.clone(),
        svg: Value::from_safe_string(figure.inline()),
    }
}

fn settings(stream: &Stream) -> Settings {
    let first = |group: &Group| group.runs.first().cloned();
    let runs: Vec<_> = stream.groups.iter().filter_map(first).collect();
    let keys: BTreeSet<&String> = runs.iter().flat_map(|run| run.config.keys()).collect();
    let values = |key: &String| -> Vec<String> {
        let value = |run: &crate::RunRecord| run.config.get(key).cloned();
        runs.iter()
            .map(|run| value(run).unwrap_or_else(|| "unset".to_owned()))
            .collect()
    };
    let differing = keys.into_iter().filter_map(|key| {
        let values = values(key);
        let differs = key != "seed" && values.windows(2).any(|pair| pair[0] != pair[1]);
        differs.then(|| (key.clone(), values))
    });
    let texts = stream.groups.iter().zip(&runs);
    Settings {
        labels: stream
            .groups
            .iter()
            .map(|group| group.label.clone())
            .collect(),
        differing: differing.collect(),
        texts: texts
            .filter(|(_, run)| !run.config_text.is_empty())
            .map(|(group, run)| (group.label.clone(), run.config_text.clone()))
            .collect(),
    }
}
