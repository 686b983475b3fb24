//! The figures of a report.

use std::collections::BTreeMap;

use aso_trainer::metrics::{Metric, Spread};

use super::bars::{Bar, BarChart, IntervalChart, IntervalRow};
use super::heat_map::HeatMap;
use super::lines::{Axis, Band, Line, LineChart, Section, pieces};
use super::theme::{Ink, Pattern};
use super::{Figure, Key, slug, ticks};
use crate::ReportError;
use crate::group::{Group, Stream};
use crate::record::RunRecord;
use crate::statistics::mean;
use crate::summary::{GroupSummary, ReportSummary, StreamSummary};

/// Points of a loss curve, about.
const LOSS_POINTS: usize = 240;

/// Groups whose bands do not hide one another yet.
const MOST_BANDS: usize = 5;

/// The figures of one sequence of tasks.
#[derive(Debug, Default)]
pub(crate) struct StreamFigures {
    /// Differences of AP to the reference.
    pub(crate) differences: Option<Figure>,
    /// Accuracy matrices.
    pub(crate) matrices: Vec<Figure>,
    /// Accuracy of each task over time, and that of all tasks learned so far.
    pub(crate) over_time: Vec<Figure>,
    /// Forgetting of each task.
    pub(crate) forgetting: Option<Figure>,
    /// Soft weight and similarity over steps.
    pub(crate) weights: Vec<Figure>,
    /// Similarity by block and task.
    pub(crate) blocks: Vec<Figure>,
    /// Similarities between tasks.
    pub(crate) tasks: Vec<Figure>,
    /// Cross entropy over steps.
    pub(crate) loss: Option<Figure>,
}

impl StreamFigures {
    /// All of them.
    pub(crate) fn into_vec(self) -> Vec<Figure> {
        let one = [self.differences, self.forgetting, self.loss];
        let many = [
            self.matrices,
            self.over_time,
            self.weights,
            self.blocks,
            self.tasks,
        ];
        one.into_iter()
            .flatten()
            .chain(many.into_iter().flatten())
            .collect()
    }
}

/// Draws the figures of a stream. Names begin with `prefix`. `legend` puts a legend of the groups into the figures
/// that need one to stand alone.
pub(crate) fn stream_figures(
    stream: &Stream,
    summary: &StreamSummary,
    report: &ReportSummary,
    prefix: &str,
    legend: bool,
) -> Result<StreamFigures, ReportError> {
    let plot = Plot {
        stream,
        summary,
        reference: &report.reference,
        prefix,
        legend,
    };
    let mut figures = StreamFigures {
        differences: plot.differences()?,
        over_time: plot.over_time()?,
        forgetting: plot.forgetting()?,
        loss: plot.loss()?,
        ..StreamFigures::default()
    };
    for (group, summary) in stream.groups.iter().zip(&summary.groups) {
        figures.matrices.push(plot.matrix(group, summary)?);
        figures.weights.extend(plot.weights(group)?);
        figures.blocks.extend(plot.blocks(group)?);
        figures.tasks.extend(plot.task_similarity(group)?);
    }
    Ok(figures)
}

struct Plot<'a> {
    stream: &'a Stream,
    summary: &'a StreamSummary,
    reference: &'a str,
    prefix: &'a str,
    legend: bool,
}

/// The colour and the pattern of a group.
fn look(group: &Group) -> (Ink, Pattern) {
    (Ink::series(group.number), Pattern::series(group.number))
}

impl Plot<'_> {
    fn name(&self, parts: &[&str]) -> String {
        let parts = parts.iter().map(|part| slug(part)).collect::<Vec<_>>();
        format!("{}{}", self.prefix, parts.join("-"))
    }

    /// The groups with their numbers.
    fn groups(&self) -> impl Iterator<Item = (&Group, &GroupSummary)> {
        self.stream.groups.iter().zip(&self.summary.groups)
    }

    fn keys(&self) -> Vec<Key> {
        let key = |group: &Group| {
            let (ink, pattern) = look(group);
            let label = group.label.clone();
            Key {
                label,
                ink,
                pattern,
            }
        };
        let groups = self.stream.groups.iter().filter(|_| self.legend);
        groups.map(key).collect()
    }

    fn matrix(&self, group: &Group, summary: &GroupSummary) -> Result<Figure, ReportError> {
        let tasks = &self.stream.tasks;
        let means = |row: &[Option<Spread>]| -> Vec<Option<f64>> {
            row.iter()
                .map(|entry| entry.map(|entry| entry.mean))
                .collect()
        };
        let untouched = summary.zero_shot.iter().any(Option::is_some);
        let first = ("(backbone)".to_owned(), means(&summary.zero_shot));
        let trained = tasks.iter().cloned();
        let trained = trained.zip(summary.accuracy.iter().map(|row| means(row)));
        let chosen = (!summary.chosen.is_empty())
            .then(|| ("(last, chosen)".to_owned(), means(&summary.chosen)));
        let rows: Vec<_> = Some(first)
            .filter(|_| untouched)
            .into_iter()
            .chain(trained)
            .chain(chosen)
            .collect();
        let skipped = usize::from(untouched);
        HeatMap {
            name: self.name(&["accuracy-matrix", &group.label]),
            title: format!(
                "{}: score in percent on each task after each task",
                group.label
            ),
            heading: Some((group.label.clone(), Some(look(group).0))),
            x_label: "score in % on".to_owned(),
            y_label: "after training".to_owned(),
            columns: tasks.clone(),
            rows,
            full: 100.0,
            decimals: usize::from(tasks.len() <= 8),
            // One that learns all tasks at once has one row only.
            outlined: (0..tasks.len())
                .filter(|task| summary.accuracy[*task][*task].is_some())
                .map(|task| (task + skipped, task))
                .collect(),
        }
        .figure()
    }

    fn over_time(&self) -> Result<Vec<Figure>, ReportError> {
        let tasks = &self.stream.tasks;
        let mut figures = Vec::new();
        let seen = |summary: &GroupSummary, after: usize| {
            let scores = (0..=after).map(|task| summary.accuracy[after][task]);
            let scores = scores
                .map(|score| Some(score?.mean))
                .collect::<Option<Vec<_>>>();
            scores.and_then(|scores| mean(&scores))
        };
        let lines = self.groups().map(|(group, summary)| {
            let points = (0..tasks.len()).map(|after| (after as f64 + 1.0, seen(summary, after)));
            self.line(group, pieces(points))
        });
        let lines = lines.collect();
        figures.extend(self.panel("all tasks so far, mean", None, lines, Vec::new())?);
        for (task, name) in tasks.iter().enumerate() {
            let mut lines = Vec::new();
            let mut bands = Vec::new();
            for (group, summary) in self.groups() {
                let trained = summary.accuracy.iter().map(|row| row[task]);
                let scores = std::iter::once(summary.zero_shot[task]).chain(trained);
                let points = (0_i32..).map(f64::from).zip(scores);
                let points: Vec<(f64, Option<Spread>)> = points.collect();
                let spread = points.iter().filter_map(|(x, score)| {
                    let (mean, sd) = (score.as_ref()?.mean, score.as_ref()?.sd?);
                    Some((*x, (mean - sd).max(0.0), (mean + sd).min(100.0)))
                });
                let ink = look(group).0;
                let points = points
                    .iter()
                    .map(|(x, score)| (*x, score.map(|score| score.mean)));
                lines.push(self.line(group, pieces(points)));
                bands.push(Band {
                    ink,
                    points: spread.collect(),
                });
            }
            bands.retain(|band| band.points.len() > 1 && self.stream.groups.len() <= MOST_BANDS);
            figures.extend(self.panel(name, Some(task), lines, bands)?);
        }
        Ok(figures)
    }

    fn line(&self, group: &Group, pieces: Vec<Vec<(f64, f64)>>) -> Line {
        let (ink, pattern) = look(group);
        Line {
            ink,
            pattern,
            width: 2.0,
            opacity: 1.0,
            dots: self.stream.tasks.len() <= 8,
            pieces,
        }
    }

    /// One of the small charts of accuracy over time; none where nothing was evaluated.
    fn panel(
        &self,
        heading: &str,
        task: Option<usize>,
        lines: Vec<Line>,
        bands: Vec<Band>,
    ) -> Result<Option<Figure>, ReportError> {
        if lines.iter().all(|line| line.pieces.is_empty()) {
            return Ok(None);
        }
        let tasks = self.stream.tasks.len() as f64;
        let whole = |ticks: Vec<f64>| {
            ticks
                .into_iter()
                .filter(|tick| tick.fract() == 0.0)
                .collect()
        };
        let chart = LineChart {
            name: match task {
                Some(task) => self.name(&["accuracy-over-time", &format!("{task:02}"), heading]),
                None => self.name(&["accuracy-over-time-mean"]),
            },
            title: format!("Score on {heading} over the tasks trained"),
            heading: Some(heading.to_owned()),
            size: (330.0, 190.0),
            x: Axis {
                label: "tasks trained".to_owned(),
                low: 0.0,
                high: tasks.max(1.0) * 1.02,
                ticks: whole(ticks(0.0, tasks.max(1.0), 6)),
            },
            y: Axis {
                label: "score in %".to_owned(),
                low: 0.0,
                high: 100.0,
                ticks: ticks(0.0, 100.0, 4),
            },
            bands,
            lines,
            sections: Vec::new(),
            marks: task.map(|task| task as f64 + 1.0).into_iter().collect(),
            keys: self.keys(),
        };
        chart.figure().map(Some)
    }

    fn forgetting(&self) -> Result<Option<Figure>, ReportError> {
        let bar = |(group, summary): (&Group, &GroupSummary), task: usize| {
            let value = summary.forgetting_by_task[task]?;
            let (ink, pattern) = look(group);
            Some(Bar {
                ink,
                pattern,
                value: value.mean,
                spread: value.sd,
            })
        };
        let past = self.stream.tasks.iter().enumerate();
        let past = past.take(self.stream.tasks.len().saturating_sub(1));
        let rows: Vec<(String, Vec<Bar>)> = past
            .map(|(task, name)| {
                let bars = self.groups().filter_map(|group| bar(group, task)).collect();
                (name.clone(), bars)
            })
            .collect();
        if rows.iter().all(|(_, bars)| bars.is_empty()) {
            return Ok(None);
        }
        let chart = BarChart {
            name: self.name(&["forgetting"]),
            title: "Forgetting of each task".to_owned(),
            axis: "forgetting in percentage points".to_owned(),
            rows,
            keys: self.keys(),
        };
        chart.figure().map(Some)
    }

    fn differences(&self) -> Result<Option<Figure>, ReportError> {
        let row = |difference: &crate::summary::Difference| {
            let ap = difference.metrics.get(&Metric::Ap)?.as_ref()?;
            let groups = &self.stream.groups;
            let group = groups
                .iter()
                .find(|group| group.label == difference.label)?;
            Some(IntervalRow {
                label: difference.label.clone(),
                ink: look(group).0,
                value: ap.mean,
                wide: ap.seeds_interval,
                narrow: ap.examples_interval,
            })
        };
        let rows: Vec<_> = self.summary.differences.iter().filter_map(row).collect();
        if rows.is_empty() {
            return Ok(None);
        }
        let chart = IntervalChart {
            name: self.name(&["differences"]),
            title: format!("Average performance minus that of {}", self.reference),
            axis: format!("AP minus {}, in percentage points", self.reference),
            rows,
        };
        chart.figure().map(Some)
    }

    /// Tasks as parts of an axis of steps; none without steps.
    fn sections(&self, steps: &[usize]) -> Vec<Section> {
        let mut from = 0;
        let mut sections = Vec::new();
        for (task, steps) in self.stream.tasks.iter().zip(steps) {
            let to = from + steps;
            sections.push(Section {
                from: from as f64,
                to: to as f64,
                label: task.clone(),
            });
            from = to;
        }
        sections.retain(|section| section.to > section.from);
        sections
    }

    fn weights(&self, group: &Group) -> Result<Option<Figure>, ReportError> {
        let steps = most_steps(group);
        let total: usize = steps.iter().sum();
        let measured =
            |run: &RunRecord| run.results.soft_weights.iter().any(|task| !task.is_empty());
        if total == 0 || !group.runs.iter().any(measured) {
            return Ok(None);
        }
        let weight = |run: &RunRecord, task: usize| {
            let points = run.results.soft_weights[task].iter();
            points.map(|point| (point.step, point.weight)).collect()
        };
        let similarity = |run: &RunRecord, task: usize| {
            let points = run.results.similarity[task].iter();
            by_step(points.filter_map(|point| Some((point.step, point.mean()?))))
        };
        let mut lines = Vec::new();
        let look = look(group).0;
        lines.extend(traces(
            group,
            &steps,
            Ink::Muted,
            Pattern::Dashed,
            similarity,
        ));
        lines.extend(traces(group, &steps, look, Pattern::Solid, weight));
        let ends = lines.iter().flat_map(|line| line.pieces.iter().flatten());
        let (low, high) = ends.fold((0.0_f64, 1.0_f64), |(low, high), (_, y)| {
            (low.min(y - 0.02), high.max(*y))
        });
        let low = if low < -0.02 { low } else { 0.0 };
        let key = |label: &str, ink, pattern| Key {
            label: label.to_owned(),
            ink,
            pattern,
        };
        let chart = LineChart {
            name: self.name(&["soft-weight", &group.label]),
            title: format!("{}: soft weight and similarity over steps", group.label),
            heading: Some(group.label.clone()),
            size: (960.0, 220.0),
            x: step_axis(total),
            y: Axis {
                label: "w, \u{3c1}".to_owned(),
                low,
                high,
                ticks: ticks(low, high, 4),
            },
            bands: Vec::new(),
            lines,
            sections: self.sections(&steps),
            marks: Vec::new(),
            keys: vec![
                key("soft weight w", look, Pattern::Solid),
                key(
                    "similarity \u{3c1}, mean over blocks",
                    Ink::Muted,
                    Pattern::Dashed,
                ),
            ],
        };
        chart.figure().map(Some)
    }

    fn blocks(&self, group: &Group) -> Result<Option<Figure>, ReportError> {
        // For each task and block, all measurements of all seeds.
        let mut values: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
        for run in &group.runs {
            for (task, points) in run.results.similarity.iter().enumerate() {
                for point in points {
                    for (block, rho) in point.blocks.iter().enumerate() {
                        let list = values.entry((block, task)).or_default();
                        list.extend(rho);
                    }
                }
            }
        }
        let mut tasks: Vec<usize> = values.keys().map(|(_, task)| *task).collect();
        tasks.sort_unstable();
        tasks.dedup();
        let Some(last) = values.keys().map(|(block, _)| *block).max() else {
            return Ok(None);
        };
        let rows = (0..=last).map(|block| {
            let value = |task: &usize| values.get(&(block, *task)).and_then(|list| mean(list));
            (format!("block {block}"), tasks.iter().map(value).collect())
        });
        let map = HeatMap {
            name: self.name(&["block-similarity", &group.label]),
            title: format!("{}: similarity to the past by block and task", group.label),
            heading: Some((group.label.clone(), Some(look(group).0))),
            x_label: "while training".to_owned(),
            y_label: "\u{3c1} of".to_owned(),
            columns: tasks
                .iter()
                .map(|task| self.stream.tasks[*task].clone())
                .collect(),
            rows: rows.collect(),
            full: 1.0,
            decimals: 2,
            outlined: Vec::new(),
        };
        map.figure().map(Some)
    }

    fn task_similarity(&self, group: &Group) -> Result<Vec<Figure>, ReportError> {
        let mut figures = Vec::new();
        for run in &group.runs {
            let Some(similarity) = &run.similarity else {
                continue;
            };
            let matrices = [
                (
                    "attribution",
                    "similarity of attributions",
                    &similarity.attribution,
                ),
                ("overlap", "overlap of subspaces", &similarity.overlap),
                (
                    "response",
                    "response to inputs, chance is 1",
                    &similarity.response,
                ),
            ];
            // Files of earlier versions lack the last one.
            for (key, words, matrix) in matrices.into_iter().filter(|(.., m)| !m.is_empty()) {
                let directed = key == "response";
                let label = |words: &str| {
                    if directed {
                        words.to_owned()
                    } else {
                        String::new()
                    }
                };
                let largest = matrix
                    .iter()
                    .flatten()
                    .flatten()
                    .copied()
                    .fold(1.0, f64::max);
                let seed = run.results.seed;
                let rows = similarity.tasks.iter().cloned().zip(matrix.iter().cloned());
                let map = HeatMap {
                    name: self.name(&["task", key, &group.label, &seed.to_string()]),
                    title: format!("{}, seed {seed}: {words} between tasks", group.label),
                    heading: Some((
                        format!("{}, seed {seed}: {words}", group.label),
                        Some(look(group).0),
                    )),
                    x_label: label("to inputs of"),
                    y_label: label("A of"),
                    columns: similarity.tasks.clone(),
                    rows: rows.collect(),
                    full: largest,
                    decimals: 2,
                    outlined: Vec::new(),
                };
                figures.push(map.figure()?);
            }
        }
        Ok(figures)
    }

    fn loss(&self) -> Result<Option<Figure>, ReportError> {
        let groups = self.stream.groups.iter();
        let groups: Vec<&Group> = groups
            .filter(|group| group.runs.iter().any(|run| !run.steps.is_empty()))
            .collect();
        let steps: Vec<Vec<usize>> = groups.iter().map(|group| most_steps(group)).collect();
        let total = steps.iter().map(|steps| steps.iter().sum::<usize>()).max();
        let Some(total) = total.filter(|total| *total > 0) else {
            return Ok(None);
        };
        let bin = total.div_ceil(LOSS_POINTS);
        let lines: Vec<Line> = groups
            .iter()
            .zip(&steps)
            .map(|(group, steps)| {
                let (ink, pattern) = look(group);
                Line {
                    ink,
                    pattern,
                    width: 1.5,
                    opacity: 0.9,
                    dots: false,
                    pieces: loss_curve(group, steps, bin),
                }
            })
            .collect();
        let points = lines.iter().flat_map(|line| line.pieces.iter().flatten());
        let high = points.map(|(_, y)| *y).fold(0.0, f64::max).max(1e-3) * 1.04;
        // One that learns all tasks at once has no parts.
        let mut parted = steps
            .iter()
            .filter(|steps| steps.iter().all(|steps| *steps > 0));
        let sections = match parted.next() {
            Some(first) if parted.all(|steps| steps == first) => self.sections(first),
            _ => Vec::new(),
        };
        let chart = LineChart {
            name: self.name(&["loss"]),
            title: "Cross entropy over steps".to_owned(),
            heading: None,
            size: (960.0, 270.0),
            x: step_axis(total),
            y: Axis {
                label: "cross entropy in nats".to_owned(),
                low: 0.0,
                high,
                ticks: ticks(0.0, high, 5),
            },
            bands: Vec::new(),
            lines,
            sections,
            marks: Vec::new(),
            keys: self.keys(),
        };
        chart.figure().map(Some)
    }
}

fn step_axis(total: usize) -> Axis {
    let high = total as f64;
    Axis {
        label: "optimizer steps, over all tasks".to_owned(),
        low: 0.0,
        high,
        ticks: ticks(0.0, high, 8)
            .into_iter()
            .filter(|tick| tick.fract() == 0.0)
            .collect(),
    }
}

/// Steps of each task, the most that any seed made.
fn most_steps(group: &Group) -> Vec<usize> {
    let runs = group.runs.iter().map(RunRecord::steps_per_task);
    runs.reduce(|most, steps| most.into_iter().zip(steps).map(|(a, b)| a.max(b)).collect())
        .unwrap_or_default()
}

/// Points with the same step as one, their mean: several past tasks are measured at one step.
fn by_step(points: impl Iterator<Item = (usize, f64)>) -> Vec<(usize, f64)> {
    let mut steps: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (step, value) in points {
        steps.entry(step).or_default().push(value);
    }
    let means = steps
        .into_iter()
        .filter_map(|(step, values)| Some((step, mean(&values)?)));
    means.collect()
}

/// A pale line for each seed where there are several, and their mean.
fn traces(
    group: &Group,
    steps: &[usize],
    ink: Ink,
    pattern: Pattern,
    points: impl Fn(&RunRecord, usize) -> Vec<(usize, f64)>,
) -> Vec<Line> {
    let piece = |points: Vec<(usize, f64)>, offset: usize| -> Vec<(f64, f64)> {
        let points = points.into_iter();
        points
            .map(|(step, value)| ((offset + step) as f64, value))
            .collect()
    };
    let curve = |of: &dyn Fn(usize) -> Vec<(usize, f64)>| {
        let mut offset = 0;
        let mut pieces = Vec::new();
        for (task, steps) in steps.iter().enumerate() {
            pieces.push(piece(of(task), offset));
            offset += steps;
        }
        pieces.retain(|piece| !piece.is_empty());
        pieces
    };
    let line = |pieces, width, opacity, dots| Line {
        ink,
        pattern,
        width,
        opacity,
        dots,
        pieces,
    };
    let several = group.runs.len() > 1;
    let seeds = group.runs.iter().filter(|_| several);
    let seeds = seeds.map(|run| line(curve(&|task| points(run, task)), 1.0, 0.3, false));
    let all = curve(&|task| {
        let runs = group.runs.iter();
        by_step(runs.flat_map(|run| points(run, task)))
    });
    seeds.chain([line(all, 2.0, 1.0, true)]).collect()
}

/// Cross entropy, averaged over seeds and over `bin` steps at a time; a piece for each task.
fn loss_curve(group: &Group, steps: &[usize], bin: usize) -> Vec<Vec<(f64, f64)>> {
    let mut bins: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    for line in group.runs.iter().flat_map(|run| &run.steps) {
        let at = (line.task, line.step / bin);
        bins.entry(at).or_default().push(line.cross_entropy);
    }
    let mut pieces = vec![Vec::new(); steps.len()];
    for ((task, at), values) in bins {
        let offset: usize = steps[..task].iter().sum();
        let x = offset as f64 + (at as f64 + 0.5) * bin as f64;
        pieces[task].extend(mean(&values).map(|mean| (x, mean)));
    }
    pieces.retain(|piece| !piece.is_empty());
    pieces
}
