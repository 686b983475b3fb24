//! Figures as SVG.

mod bars;
mod figures;
mod heat_map;
mod lines;
pub(crate) mod theme;

use plotters::coord::Shift;
use plotters::prelude::{
    DrawingArea, DrawingAreaErrorKind, FontTransform, IntoDrawingArea, PathElement, Rectangle,
    SVGBackend, ShapeStyle, TextStyle,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontDesc, FontFamily, FontStyle};

use crate::ReportError;
pub(crate) use figures::{StreamFigures, stream_figures};
use theme::{Ink, Pattern};

/// The plotting library counts in whole pixels; drawing larger and showing smaller gives curves quarters of them.
const SCALE: f64 = 4.0;

/// Font size of labels.
const LABEL: f64 = 11.0;

/// Mean width of a character, as a share of the font size.
const CHARACTER: f64 = 0.56;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// A figure.
#[derive(Debug, Clone)]
pub struct Figure {
    /// A name for a file, without its ending.
    pub name: String,
    /// What the figure shows.
    pub title: String,
    width: f64,
    height: f64,
    svg: String,
}

impl Figure {
    /// Draws a figure of this size in pixels.
    fn draw(
        name: String,
        title: String,
        (width, height): (f64, f64),
        draw: impl FnOnce(&Area<'_>) -> Drawn,
    ) -> Result<Self, ReportError> {
        let mut svg = String::new();
        let size = (pixels(width) as u32, pixels(height) as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let drawn = draw(&area).and_then(|()| area.present());
        drop(area);
        drawn.map_err(|error| ReportError::Plot {
            figure: name.clone(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            name,
            title,
            width,
            height,
            svg,
        })
    }

    /// Width in pixels.
    pub fn width(&self) -> f64 {
        self.width
    }

    /// The figure as an SVG file of its own, in colours for white paper.
    pub fn file(&self) -> String {
        let background = "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>";
        let tag = format!("xmlns=\"http://www.w3.org/2000/svg\" {}", self.size());
        theme::with_colors(&self.tagged(&tag, background))
    }

    /// The figure as part of the page, in the page's colours and font.
    pub(crate) fn inline(&self) -> String {
        let tag = format!("role=\"img\" {}", self.size());
        let svg = self
            .tagged(&tag, "")
            .replace(" font-family=\"sans-serif\"", "");
        theme::with_variables(&svg)
    }

    fn size(&self) -> String {
        let Self { width, height, .. } = self;
        let (inner_width, inner_height) = (pixels(*width), pixels(*height));
        format!(
            "width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {inner_width} {inner_height}\""
        )
    }

    /// The drawing with another opening tag, and with what comes first in it.
    fn tagged(&self, attributes: &str, first: &str) -> String {
        let content = self.svg.split_once('>').map_or("", |(_, content)| content);
        let title = escape(&self.title);
        format!("<svg {attributes}><title>{title}</title>{first}{content}")
    }
}

/// Escapes text for XML and HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Pixels of the drawing.
fn pixels(length: f64) -> i32 {
    (length * SCALE).round() as i32
}

/// A style for lines.
fn stroke(ink: Ink, opacity: f64, width: f64) -> ShapeStyle {
    ink.placeholder()
        .mix(opacity)
        .stroke_width(pixels(width) as u32)
}

/// A style for filled shapes.
fn fill(ink: Ink, opacity: f64) -> ShapeStyle {
    ink.placeholder().mix(opacity).filled()
}

/// The outline of a rectangle. Plotters' own ignores the width of the stroke.
fn outline(
    [(left, top), (right, bottom)]: [(i32, i32); 2],
    style: ShapeStyle,
) -> PathElement<(i32, i32)> {
    let corners = [
        (left, top),
        (right, top),
        (right, bottom),
        (left, bottom),
        (left, top),
    ];
    PathElement::new(corners, style)
}

/// A style for text.
fn text(ink: Ink, size: f64, bold: bool, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    // The SVG backend divides sizes by 1.24.
    let size = size * SCALE * 1.24;
    let weight = if bold {
        FontStyle::Bold
    } else {
        FontStyle::Normal
    };
    FontDesc::new(FontFamily::SansSerif, size, weight)
        .color(&ink.placeholder())
        .pos(Pos::new(horizontal, vertical))
}

/// Writes text at a place in pixels.
fn write(area: &Area<'_>, words: &str, style: &TextStyle<'_>, (x, y): (f64, f64)) -> Drawn {
    if words.is_empty() {
        return Ok(());
    }
    area.draw_text(words, style, (pixels(x), pixels(y)))
}

/// Writes text from below to above.
fn write_upwards(area: &Area<'_>, words: &str, style: &TextStyle<'_>, place: (f64, f64)) -> Drawn {
    write(
        area,
        words,
        &style.transform(FontTransform::Rotate270),
        place,
    )
}

/// The width of text, about.
fn text_width(words: &str, size: f64) -> f64 {
    words.chars().count() as f64 * size * CHARACTER
}

/// The text, cut to a width.
fn cut(words: &str, size: f64, width: f64) -> String {
    if text_width(words, size) <= width {
        return words.to_owned();
    }
    let fits = (width / (size * CHARACTER)).floor() as usize;
    let kept: String = words.chars().take(fits.saturating_sub(1)).collect();
    format!("{kept}\u{2026}")
}

/// An entry of a legend.
#[derive(Debug, Clone)]
struct Key {
    label: String,
    ink: Ink,
    pattern: Pattern,
}

/// Height of a legend of these entries in a figure of this width.
fn legend_height(keys: &[Key], width: f64) -> f64 {
    let rows = legend_places(keys, width)
        .last()
        .map_or(0.0, |(_, y)| y + 18.0);
    if rows > 0.0 { rows + 4.0 } else { 0.0 }
}

/// The places of a legend's entries, row by row.
fn legend_places(keys: &[Key], width: f64) -> Vec<(f64, f64)> {
    let (mut x, mut y) = (0.0, 0.0);
    let place = |key: &Key| {
        let needed = 34.0 + text_width(&cut(&key.label, LABEL, width - 34.0), LABEL);
        if x > 0.0 && x + needed > width {
            (x, y) = (0.0, y + 18.0);
        }
        let place = (x, y);
        x += needed;
        place
    };
    keys.iter().map(place).collect()
}

/// Draws a legend whose upper left corner is `(left, top)`.
fn draw_legend(area: &Area<'_>, keys: &[Key], (left, top): (f64, f64), width: f64) -> Drawn {
    let style = text(Ink::Text, LABEL, false, HPos::Left, VPos::Center);
    for (key, (x, y)) in keys.iter().zip(legend_places(keys, width)) {
        let (x, middle) = (left + x, top + y + 9.0);
        let pieces: &[(f64, f64)] = match key.pattern {
            Pattern::Solid => &[(0.0, 16.0)],
            Pattern::Dashed => &[(0.0, 6.5), (9.5, 16.0)],
            Pattern::Dotted => &[(0.0, 3.0), (6.5, 9.5), (13.0, 16.0)],
        };
        for (from, to) in pieces {
            let corners = [
                (pixels(x + from), pixels(middle - 1.5)),
                (pixels(x + to), pixels(middle + 1.5)),
            ];
            area.draw(&Rectangle::new(corners, fill(key.ink, 1.0)))?;
        }
        let label = cut(&key.label, LABEL, width - 34.0);
        write(area, &label, &style, (x + 22.0, middle))?;
    }
    Ok(())
}

/// About `count` round numbers from `low` to `high`.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let span = high - low;
    if !(span > 0.0 && span.is_finite()) {
        return vec![low];
    }
    let raw = span / count.max(1) as f64;
    let power = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= raw * 0.999)
        .unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|at| at as f64 * step).collect()
}

/// A number of an axis, without digits that it does not need.
fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    match text {
        "-0" => "0".to_owned(),
        text => text.replace('-', "\u{2212}"),
    }
}

/// Text as part of a file name.
pub(crate) fn slug(text: &str) -> String {
    let safe = |c: char| {
        if c.is_alphanumeric() || c == '.' {
            c
        } else {
            '-'
        }
    };
    let text: String = text.to_lowercase().chars().map(safe).collect();
    // Nothing but dots would name another folder.
    let parts = text
        .split('-')
        .filter(|part| part.chars().any(|c| c != '.'));
    let slug = parts.collect::<Vec<_>>().join("-");
    slug.chars().take(LONGEST_SLUG).collect()
}

/// Characters of a slug at most: file systems take 255 bytes, and numbers that tell equal ones apart come behind it.
const LONGEST_SLUG: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_ticks() {
        assert_eq!(ticks(0.0, 100.0, 5), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(-7.3, 12.0, 4), [-5.0, 0.0, 5.0, 10.0]);
        assert_eq!(ticks(0.0, 1.0, 4), [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(ticks(2.0, 2.0, 4), [2.0]);
        assert_eq!(ticks(0.0, f64::NAN, 4), [0.0]);
    }

    #[test]
    fn words() {
        assert_eq!(number(0.25), "0.25");
        assert_eq!(number(-20.0), "\u{2212}20");
        assert_eq!(number(-0.0), "0");
        assert_eq!(slug("O-LoRA (lambda1=0.5, x)"), "o-lora-lambda1-0.5-x");
        assert_eq!(slug("../a..b/ ."), "a..b");
        assert_eq!(cut("dbpedia", 10.0, 100.0), "dbpedia");
        assert_eq!(cut("dbpedia", 10.0, 25.0), "dbp\u{2026}");
    }

    #[test]
    fn the_two_forms() {
        let figure = Figure::draw("x".into(), "a < b".into(), (100.0, 50.0), |area| {
            let style = text(Ink::Text, 10.0, false, HPos::Left, VPos::Top);
            write(area, "<script>", &style, (5.0, 5.0))
        })
        .unwrap();
        let (page, file) = (figure.inline(), figure.file());
        assert!(
            page.contains("width=\"100\" height=\"50\" viewBox=\"0 0 400 200\""),
            "{page}"
        );
        assert!(page.contains("fill=\"var(--text)\"") && !page.contains("font-family"));
        assert!(page.contains("<title>a &lt; b</title>") && page.contains("&lt;script&gt;"));
        assert!(
            file.contains("xmlns=") && file.contains("fill=\"#1c1f23\""),
            "{file}"
        );
        assert!(
            page.ends_with("</svg>\n") && file.ends_with("</svg>\n"),
            "{page}"
        );
    }

    #[test]
    fn legends_wrap() {
        let key = |label: &str| Key {
            label: label.to_owned(),
            ink: Ink::Text,
            pattern: Pattern::Solid,
        };
        let keys = ["aso-lora", "o-lora", "seq-lora"].map(key);
        assert_eq!(legend_height(&keys, 1000.0), 22.0);
        assert_eq!(legend_height(&keys, 100.0), 58.0);
        assert_eq!(legend_height(&[], 100.0), 0.0);
        // A label wider than the figure takes one line, and is cut there.
        let long = key(&"x".repeat(300));
        assert_eq!(legend_height(&[long], 100.0), 22.0);
    }

    #[test]
    fn slugs_of_long_names_are_cut() {
        assert_eq!(slug(&"x".repeat(300)).len(), LONGEST_SLUG);
    }
}
