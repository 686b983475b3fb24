//! Matrices of numbers.

use aso_trainer::metrics::rounded;
use plotters::prelude::Rectangle;
use plotters::style::text_anchor::{HPos, VPos};

use super::theme::Ink;
use super::{
    Area, Drawn, Figure, LABEL, cut, fill, outline, pixels, stroke, text, text_width, write,
    write_upwards,
};
use crate::ReportError;

/// Most room for names.
const MOST_NAMES: f64 = 120.0;

/// A matrix whose cells are coloured by their values. Values below 0 have another colour.
pub(super) struct HeatMap {
    pub(super) name: String,
    pub(super) title: String,
    /// A line above the matrix, in bold, with its ink's mark.
    pub(super) heading: Option<(String, Option<Ink>)>,
    pub(super) x_label: String,
    pub(super) y_label: String,
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<(String, Vec<Option<f64>>)>,
    /// The value with the full colour.
    pub(super) full: f64,
    pub(super) decimals: usize,
    /// Cells with an outline: row and column.
    pub(super) outlined: Vec<(usize, usize)>,
}

impl HeatMap {
    pub(super) fn figure(self) -> Result<Figure, ReportError> {
        let longest = |names: &mut dyn Iterator<Item = &String>| {
            names
                .map(|name| text_width(name, LABEL))
                .fold(0.0, f64::max)
                .min(MOST_NAMES)
        };
        let row_names = longest(&mut self.rows.iter().map(|(name, _)| name));
        let column_names = longest(&mut self.columns.iter());
        // Two matrices of fifteen tasks stand side by side on a wide page.
        let (cell, height, font): (f64, f64, f64) = match self.columns.len() {
            0..=8 => (46.0, 28.0, LABEL),
            9..=12 => (34.0, 25.0, LABEL - 0.5),
            _ => (27.0, 22.0, LABEL - 1.0),
        };
        let cell = if self.decimals > 1 {
            cell.max(34.0)
        } else {
            cell
        };
        // Names that are wider than their column stand upright.
        let upright = column_names > cell - 4.0;
        let heading = if self.heading.is_some() { 24.0 } else { 2.0 };
        let names = if upright { column_names + 8.0 } else { 18.0 };
        let layout = Layout {
            left: 20.0 + row_names + 8.0,
            top: heading + 18.0 + names,
            cell,
            height,
            font,
            upright,
        };
        let width = cell * self.columns.len() as f64;
        let label = (width + text_width(&self.x_label, LABEL)) / 2.0;
        let width = (layout.left + width.max(label) + 6.0).max(self.heading_width());
        let size = (width, layout.top + height * self.rows.len() as f64 + 6.0);
        Figure::draw(self.name.clone(), self.title.clone(), size, |area| {
            self.draw(area, &layout, heading)
        })
    }

    fn heading_width(&self) -> f64 {
        let words = self.heading.as_ref().map(|(words, _)| words);
        words.map_or(0.0, |words| {
            text_width(words, LABEL + 2.0).min(420.0) + 26.0
        })
    }

    fn draw(&self, area: &Area<'_>, layout: &Layout, heading: f64) -> Drawn {
        if let Some((words, ink)) = &self.heading {
            let style = text(Ink::Text, LABEL + 1.0, true, HPos::Left, VPos::Center);
            let mut left = 2.0;
            if let Some(ink) = ink {
                let corners = [(pixels(2.0), pixels(7.0)), (pixels(12.0), pixels(17.0))];
                area.draw(&Rectangle::new(corners, fill(*ink, 1.0)))?;
                left = 18.0;
            }
            write(area, &cut(words, LABEL + 1.0, 420.0), &style, (left, 12.0))?;
        }
        let width = layout.cell * self.columns.len() as f64;
        let height = layout.height * self.rows.len() as f64;
        let axis = text(Ink::Muted, LABEL, false, HPos::Center, VPos::Center);
        write(
            area,
            &self.x_label,
            &axis,
            (layout.left + width / 2.0, heading + 8.0),
        )?;
        // A label that is longer than its axis would be cut off; the page says the same in words.
        if text_width(&self.y_label, LABEL) <= height {
            write_upwards(area, &self.y_label, &axis, (9.0, layout.top + height / 2.0))?;
        }
        for (column, name) in self.columns.iter().enumerate() {
            let middle = layout.left + (column as f64 + 0.5) * layout.cell;
            let name = cut(name, LABEL, MOST_NAMES);
            if layout.upright {
                let style = text(Ink::Text, LABEL, false, HPos::Left, VPos::Center);
                write_upwards(area, &name, &style, (middle, layout.top - 6.0))?;
            } else {
                let style = text(Ink::Text, LABEL, false, HPos::Center, VPos::Center);
                write(area, &name, &style, (middle, layout.top - 9.0))?;
            }
        }
        for (row, (name, values)) in self.rows.iter().enumerate() {
            let middle = layout.top + (row as f64 + 0.5) * layout.height;
            let style = text(Ink::Text, LABEL, false, HPos::Right, VPos::Center);
            let name = cut(name, LABEL, MOST_NAMES);
            write(area, &name, &style, (layout.left - 7.0, middle))?;
            for (column, value) in values.iter().enumerate() {
                self.draw_cell(area, layout, (row, column), *value)?;
            }
        }
        for (row, column) in &self.outlined {
            let style = stroke(Ink::Text, 0.8, 1.2);
            area.draw(&outline(layout.corners(*row, *column), style))?;
        }
        Ok(())
    }

    fn draw_cell(
        &self,
        area: &Area<'_>,
        layout: &Layout,
        (row, column): (usize, usize),
        value: Option<f64>,
    ) -> Drawn {
        let corners = layout.corners(row, column);
        let middle = (
            layout.left + (column as f64 + 0.5) * layout.cell,
            layout.top + (row as f64 + 0.5) * layout.height,
        );
        let Some(value) = value else {
            return area.draw(&Rectangle::new(corners, fill(Ink::Empty, 1.0)));
        };
        let share = (value.abs() / self.full).clamp(0.0, 1.0);
        let opacity = 0.04 + 0.96 * share;
        let ink = if value < 0.0 { Ink::Cold } else { Ink::Heat };
        area.draw(&Rectangle::new(corners, fill(ink, opacity)))?;
        let words = format!("{:.*}", self.decimals, rounded(value, self.decimals));
        let words = words.replace('-', "\u{2212}");
        let ink = Ink::on_heat(opacity);
        let style = text(ink, layout.font, false, HPos::Center, VPos::Center);
        write(area, &words, &style, middle)
    }
}

struct Layout {
    left: f64,
    top: f64,
    /// Width of a cell.
    cell: f64,
    /// Height of a cell.
    height: f64,
    /// Font size in cells.
    font: f64,
    upright: bool,
}

impl Layout {
    /// The corners of a cell, which is a little smaller than its place.
    fn corners(&self, row: usize, column: usize) -> [(i32, i32); 2] {
        let (left, top) = (
            self.left + column as f64 * self.cell,
            self.top + row as f64 * self.height,
        );
        [
            (pixels(left + 0.75), pixels(top + 0.75)),
            (
                pixels(left + self.cell - 0.75),
                pixels(top + self.height - 0.75),
            ),
        ]
    }
}
