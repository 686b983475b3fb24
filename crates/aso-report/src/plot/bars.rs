//! Horizontal bars, and intervals of differences.

use plotters::prelude::{Circle, PathElement, Rectangle};
use plotters::style::text_anchor::{HPos, VPos};

use super::theme::{Ink, Pattern};
use super::{
    Area, Drawn, Figure, Key, LABEL, cut, draw_legend, fill, legend_height, number, outline,
    pixels, stroke, text, text_width, ticks, write,
};
use crate::ReportError;
use crate::statistics::Interval;

/// Width of a figure.
const WIDTH: f64 = 420.0;
/// Room right of the last number of the axis.
const RIGHT: f64 = 18.0;
/// Room for the axis.
const BOTTOM: f64 = 38.0;
/// Most room for names.
const MOST_NAMES: f64 = 200.0;

/// The layout that both kinds of figure share: names on the left, a number axis below.
struct Layout {
    left: f64,
    top: f64,
    bottom: f64,
    low: f64,
    high: f64,
}

impl Layout {
    fn new(names: &[String], top: f64, height: f64, values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values.fold((0.0_f64, 0.0_f64), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let pad = (high - low).max(1.0) * 0.06;
        let widths = names.iter().map(|name| text_width(name, LABEL));
        Self {
            left: widths.fold(30.0, f64::max).min(MOST_NAMES) + 10.0,
            top,
            bottom: top + height,
            low: if low < 0.0 { low - pad } else { 0.0 },
            high: high + pad,
        }
    }

    fn x(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        self.left + share * (WIDTH - self.left - RIGHT)
    }

    fn draw_axis(&self, area: &Area<'_>, label: &str) -> Drawn {
        let style = text(Ink::Muted, LABEL, false, HPos::Center, VPos::Top);
        for tick in ticks(self.low, self.high, 5) {
            let ink = if tick == 0.0 { Ink::Axis } else { Ink::Grid };
            let at = pixels(self.x(tick));
            let line = vec![(at, pixels(self.top)), (at, pixels(self.bottom))];
            area.draw(&PathElement::new(line, stroke(ink, 1.0, 1.0)))?;
            write(
                area,
                &number(tick),
                &style,
                (self.x(tick), self.bottom + 5.0),
            )?;
        }
        let middle = (self.left + WIDTH - RIGHT) / 2.0;
        write(area, label, &style, (middle, self.bottom + 21.0))
    }

    fn write_name(&self, area: &Area<'_>, name: &str, y: f64) -> Drawn {
        let style = text(Ink::Text, LABEL, false, HPos::Right, VPos::Center);
        write(
            area,
            &cut(name, LABEL, MOST_NAMES),
            &style,
            (self.left - 8.0, y),
        )
    }
}

/// One bar of a row.
pub(super) struct Bar {
    pub(super) ink: Ink,
    pub(super) pattern: Pattern,
    pub(super) value: f64,
    /// Half the length of the whisker.
    pub(super) spread: Option<f64>,
}

/// Rows of bars.
pub(super) struct BarChart {
    pub(super) name: String,
    pub(super) title: String,
    pub(super) axis: String,
    pub(super) rows: Vec<(String, Vec<Bar>)>,
    pub(super) keys: Vec<Key>,
}

impl BarChart {
    pub(super) fn figure(self) -> Result<Figure, ReportError> {
        const BAR: f64 = 9.0;
        const GAP: f64 = 12.0;
        let top = 6.0 + legend_height(&self.keys, WIDTH - 20.0);
        let row_height = |bars: &[Bar]| bars.len().max(1) as f64 * BAR + GAP;
        let height = self.rows.iter().map(|(_, bars)| row_height(bars)).sum();
        let names: Vec<String> = self.rows.iter().map(|(name, _)| name.clone()).collect();
        let bars = || self.rows.iter().flat_map(|(_, bars)| bars);
        let ends = bars().flat_map(|bar| {
            let spread = bar.spread.unwrap_or(0.0);
            [bar.value - spread, bar.value + spread, bar.value]
        });
        let layout = Layout::new(&names, top, height, ends);
        let size = (WIDTH, layout.bottom + BOTTOM);
        Figure::draw(self.name.clone(), self.title.clone(), size, |area| {
            draw_legend(area, &self.keys, (10.0, 4.0), WIDTH - 20.0)?;
            layout.draw_axis(area, &self.axis)?;
            let mut y = top;
            for (name, bars) in &self.rows {
                layout.write_name(area, name, y + row_height(bars) / 2.0)?;
                for (at, bar) in bars.iter().enumerate() {
                    let upper = y + GAP / 2.0 + at as f64 * BAR;
                    let (from, to) = (layout.x(bar.value.min(0.0)), layout.x(bar.value.max(0.0)));
                    let corners = [
                        (pixels(from), pixels(upper + 0.5)),
                        (pixels(to.max(from + 1.0)), pixels(upper + BAR - 0.5)),
                    ];
                    let opacity = bar.pattern.opacity();
                    area.draw(&Rectangle::new(corners, fill(bar.ink, opacity)))?;
                    if bar.pattern != Pattern::Solid {
                        area.draw(&outline(corners, stroke(bar.ink, 1.0, 1.0)))?;
                    }
                    if let Some(spread) = bar.spread {
                        let middle = pixels(upper + BAR / 2.0);
                        let from = pixels(layout.x(bar.value - spread));
                        let to = pixels(layout.x(bar.value + spread));
                        let line = vec![(from, middle), (to, middle)];
                        area.draw(&PathElement::new(line, stroke(Ink::Text, 0.75, 1.0)))?;
                    }
                }
                y += row_height(bars);
            }
            Ok(())
        })
    }
}

/// A difference with its intervals.
pub(super) struct IntervalRow {
    pub(super) label: String,
    pub(super) ink: Ink,
    pub(super) value: f64,
    /// Drawn as a thin line.
    pub(super) wide: Option<Interval>,
    /// Drawn as a thick line.
    pub(super) narrow: Option<Interval>,
}

/// Differences around 0.
pub(super) struct IntervalChart {
    pub(super) name: String,
    pub(super) title: String,
    pub(super) axis: String,
    pub(super) rows: Vec<IntervalRow>,
}

impl IntervalChart {
    pub(super) fn figure(self) -> Result<Figure, ReportError> {
        const ROW: f64 = 28.0;
        let names: Vec<String> = self.rows.iter().map(|row| row.label.clone()).collect();
        let ends = self.rows.iter().flat_map(|row| {
            let ends = |interval: &Option<Interval>| interval.map(|i| [i.low, i.high]);
            let intervals = ends(&row.wide).into_iter().chain(ends(&row.narrow));
            intervals.flatten().chain([row.value])
        });
        let layout = Layout::new(&names, 6.0, ROW * self.rows.len() as f64, ends);
        let size = (WIDTH, layout.bottom + BOTTOM);
        Figure::draw(self.name.clone(), self.title.clone(), size, |area| {
            layout.draw_axis(area, &self.axis)?;
            for (at, row) in self.rows.iter().enumerate() {
                let y = layout.top + (at as f64 + 0.5) * ROW;
                layout.write_name(area, &row.label, y)?;
                for (interval, width) in [(row.wide, 1.5), (row.narrow, 5.0)] {
                    if let Some(interval) = interval {
                        let line = [interval.low, interval.high];
                        let line = line.map(|end| (pixels(layout.x(end)), pixels(y)));
                        let style = stroke(row.ink, 1.0, width);
                        area.draw(&PathElement::new(line.to_vec(), style))?;
                    }
                }
                let middle = (pixels(layout.x(row.value)), pixels(y));
                area.draw(&Circle::new(middle, pixels(4.5), fill(row.ink, 1.0)))?;
            }
            Ok(())
        })
    }
}
