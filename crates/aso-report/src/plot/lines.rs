//! Line charts.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::{
    ChartBuilder, Circle, DashedLineSeries, LabelAreaPosition, PathElement, Polygon, TRANSPARENT,
};
use plotters::style::text_anchor::{HPos, VPos};

use super::theme::{Ink, Pattern};
use super::{
    Drawn, Figure, Key, LABEL, cut, draw_legend, fill, legend_height, number, pixels, stroke, text,
    write, write_upwards,
};
use crate::ReportError;

/// One of the two axes.
#[derive(Clone)]
pub(super) struct Axis {
    /// Quantity and unit.
    pub(super) label: String,
    /// Lower end.
    pub(super) low: f64,
    /// Upper end.
    pub(super) high: f64,
    /// Labelled values.
    pub(super) ticks: Vec<f64>,
}

/// The library's own choice of labelled values cannot be replaced for numbers with fractions.
impl Ranged for Axis {
    type ValueType = f64;
    type FormatOption = DefaultFormatting;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        from + (f64::from(to - from) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.ticks.clone(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

/// A curve in one or more pieces.
pub(super) struct Line {
    pub(super) ink: Ink,
    pub(super) pattern: Pattern,
    pub(super) width: f64,
    pub(super) opacity: f64,
    pub(super) dots: bool,
    pub(super) pieces: Vec<Vec<(f64, f64)>>,
}

/// An area between two curves: x, lower and upper end.
pub(super) struct Band {
    pub(super) ink: Ink,
    pub(super) points: Vec<(f64, f64, f64)>,
}

/// A labelled part of the x axis.
pub(super) struct Section {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) label: String,
}

pub(super) struct LineChart {
    pub(super) name: String,
    pub(super) title: String,
    /// A line above the chart, in bold.
    pub(super) heading: Option<String>,
    pub(super) size: (f64, f64),
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) bands: Vec<Band>,
    pub(super) lines: Vec<Line>,
    pub(super) sections: Vec<Section>,
    /// Upright lines, from the lower to the upper end.
    pub(super) marks: Vec<f64>,
    pub(super) keys: Vec<Key>,
}

/// Room left of the y axis for its label and its numbers.
const LEFT: f64 = 50.0;
const RIGHT: f64 = 14.0;
/// Room for the labels of sections.
const SECTIONS: f64 = 18.0;

impl LineChart {
    pub(super) fn figure(self) -> Result<Figure, ReportError> {
        let (name, title, size) = (self.name.clone(), self.title.clone(), self.size);
        let heading = if self.heading.is_some() { 22.0 } else { 4.0 };
        let legend = legend_height(&self.keys, size.0 - LEFT - RIGHT);
        let size = (size.0, size.1 + legend + heading);
        Figure::draw(name, title, size, |area| self.draw(area, heading, legend))
    }

    fn draw(&self, area: &super::Area<'_>, heading: f64, legend: f64) -> Drawn {
        if let Some(words) = &self.heading {
            let style = text(Ink::Text, LABEL + 1.0, true, HPos::Left, VPos::Center);
            let words = cut(words, LABEL + 2.0, self.size.0 - LEFT - RIGHT);
            write(area, &words, &style, (LEFT, 11.0))?;
        }
        draw_legend(
            area,
            &self.keys,
            (LEFT, heading),
            self.size.0 - LEFT - RIGHT,
        )?;
        let sections = if self.sections.is_empty() {
            4.0
        } else {
            SECTIONS
        };
        let (x, y) = (&self.x, &self.y);
        let mut chart = ChartBuilder::on(area)
            .margin_top(pixels(heading + legend + sections))
            .margin_right(pixels(RIGHT))
            .margin_bottom(pixels(2.0))
            .set_label_area_size(LabelAreaPosition::Left, pixels(LEFT))
            .set_label_area_size(LabelAreaPosition::Bottom, pixels(38.0))
            .build_cartesian_2d(x.clone(), y.clone())?;
        let label = text(Ink::Muted, LABEL, false, HPos::Left, VPos::Top);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_y_axis()
            .bold_line_style(stroke(Ink::Grid, 1.0, 1.0))
            .light_line_style(TRANSPARENT)
            .axis_style(stroke(Ink::Axis, 1.0, 1.0))
            .label_style(label.clone())
            .axis_desc_style(label)
            .set_all_tick_mark_size(pixels(3.0))
            .x_label_formatter(&|value| number(*value))
            .x_desc(x.label.as_str())
            .draw()?;

        // The library labels an axis only if it draws its line, too.
        let style = text(Ink::Muted, LABEL, false, HPos::Right, VPos::Center);
        for tick in &y.ticks {
            let (left, middle) = chart.backend_coord(&(x.low, *tick));
            area.draw_text(&number(*tick), &style, (left - pixels(7.0), middle))?;
        }
        let (_, top) = chart.backend_coord(&(x.low, y.high));
        let (_, bottom) = chart.backend_coord(&(x.low, y.low));
        let middle = f64::from(top + bottom) / 2.0 / super::SCALE;
        let style = text(Ink::Muted, LABEL, false, HPos::Center, VPos::Center);
        write_upwards(area, &y.label, &style, (9.0, middle))?;

        let upright = |at: f64, ink: Ink| {
            PathElement::new(vec![(at, y.low), (at, y.high)], stroke(ink, 1.0, 1.0))
        };
        let marks = self.marks.iter().map(|at| upright(*at, Ink::Axis));
        let starts = self.sections.iter().skip(1);
        let starts = starts.map(|section| upright(section.from, Ink::Grid));
        chart.draw_series(starts.chain(marks))?;
        let style = text(Ink::Muted, LABEL - 1.0, false, HPos::Left, VPos::Center);
        for section in &self.sections {
            let (left, top) = chart.backend_coord(&(section.from, y.high));
            let (right, _) = chart.backend_coord(&(section.to, y.high));
            let room = f64::from(right - left) / super::SCALE - 4.0;
            let words = cut(&section.label, LABEL - 1.0, room);
            area.draw_text(&words, &style, (left + pixels(2.0), top - pixels(8.0)))?;
        }
        for band in &self.bands {
            let upper = band.points.iter().map(|(x, _, high)| (*x, *high));
            let lower = band.points.iter().rev().map(|(x, low, _)| (*x, *low));
            let outline: Vec<_> = upper.chain(lower).collect();
            let polygon = Polygon::new(outline, fill(band.ink, 0.1));
            chart.draw_series(std::iter::once(polygon))?;
        }
        for line in &self.lines {
            let style = stroke(line.ink, line.opacity, line.width);
            for piece in &line.pieces {
                let points = piece.iter().copied();
                if let Some((dash, gap)) = line.pattern.dashes() {
                    let (dash, gap) = (pixels(dash), pixels(gap));
                    chart.draw_series(DashedLineSeries::new(points, dash, gap, style))?;
                } else {
                    chart.draw_series(std::iter::once(PathElement::new(piece.clone(), style)))?;
                }
                // A lone point is no line.
                if line.dots || piece.len() == 1 {
                    let dot = fill(line.ink, line.opacity);
                    let dots = piece.iter().map(|at| Circle::new(*at, pixels(2.2), dot));
                    chart.draw_series(dots)?;
                }
            }
        }
        Ok(())
    }
}

/// The pieces of a curve that is broken where there is no value.
pub(super) fn pieces(points: impl IntoIterator<Item = (f64, Option<f64>)>) -> Vec<Vec<(f64, f64)>> {
    let mut pieces = vec![Vec::new()];
    for (x, y) in points {
        match (y, pieces.last_mut()) {
            (Some(y), Some(piece)) => piece.push((x, y)),
            _ => pieces.push(Vec::new()),
        }
    }
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_break_where_a_value_is_missing() {
        let points = [Some(1.0), Some(2.0), None, None, Some(5.0)];
        let points = (0_i32..).map(f64::from).zip(points);
        let expected = [vec![(0.0, 1.0), (1.0, 2.0)], vec![(4.0, 5.0)]];
        assert_eq!(pieces(points), expected);
        assert!(pieces([(0.0, None)]).is_empty());
    }
}
