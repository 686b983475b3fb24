//! Colours of figures: variables of the page's style sheet, or fixed ones in separate files.

use std::fmt::Write;

use plotters::style::RGBColor;

/// Colours of groups before the [pattern](Pattern) tells further ones apart.
const SERIES: usize = 8;

/// Levels of a heat map's colour at which the colour of the text on it is chosen.
const LEVELS: usize = 10;

/// What a mark is drawn with. Figures are drawn in placeholder colours that are replaced by the real ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ink {
    /// Text.
    Text,
    /// Less important text.
    Muted,
    /// Axes.
    Axis,
    /// Lines of the grid.
    Grid,
    /// The colour of a group, by its number.
    Series(usize),
    /// A heat map's colour, at some opacity; values above 0.
    Heat,
    /// Values below 0.
    Cold,
    /// Text on a heat map's colour at this opacity in tenths.
    OnHeat(usize),
    /// Cells without a value.
    Empty,
}

/// How a group is drawn besides its colour, for there are more groups than colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Lines without gaps, full bars.
    Solid,
    /// Dashed lines, pale bars.
    Dashed,
    /// Dotted lines, hollow bars.
    Dotted,
}

impl Pattern {
    /// The pattern of a group.
    pub(crate) fn series(number: usize) -> Self {
        match number / SERIES % 3 {
            0 => Self::Solid,
            1 => Self::Dashed,
            _ => Self::Dotted,
        }
    }

    /// The class of the page's style sheet.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Solid => "solid",
            Self::Dashed => "dashed",
            Self::Dotted => "dotted",
        }
    }

    /// Lengths of a line's dashes and of the gaps between them, in pixels.
    pub(crate) fn dashes(self) -> Option<(f64, f64)> {
        match self {
            Self::Solid => None,
            Self::Dashed => Some((5.0, 3.0)),
            Self::Dotted => Some((1.5, 2.5)),
        }
    }

    /// Opacity of a bar's inside.
    pub(crate) fn opacity(self) -> f64 {
        match self {
            Self::Solid => 1.0,
            Self::Dashed => 0.4,
            Self::Dotted => 0.0,
        }
    }
}

/// A colour in light and dark surroundings.
struct Shade {
    name: String,
    light: &'static str,
    dark: &'static str,
}

// Each contrasts at least 4.5 to 1 (WCAG 2, AA) with the page, and every two differ by at least 20 in CIE 1976 L*a*b*, also for
// the two common kinds of colour blindness. More than this many do not.
const SERIES_SHADES: [(&str, &str); SERIES] = [
    ("#3068b0", "#70a0e8"),
    ("#583800", "#f8c058"),
    ("#308048", "#b8e8c0"),
    ("#681030", "#e06878"),
    ("#807808", "#908830"),
    ("#502860", "#a870a0"),
    ("#288080", "#20f0f0"),
    ("#1838a8", "#5880f8"),
];

// Opacities, in tenths, from which white (light page) or black (dark page) is the better text colour on a cell.
const WHITE_FROM: usize = 8;
const BLACK_FROM: usize = 6;

impl Ink {
    /// The ink of a group.
    pub(crate) fn series(number: usize) -> Self {
        Self::Series(number % SERIES)
    }

    /// Text on a heat map's colour at an opacity.
    pub(crate) fn on_heat(opacity: f64) -> Self {
        Self::OnHeat(((opacity * LEVELS as f64).round() as usize).min(LEVELS))
    }

    fn all() -> Vec<Self> {
        let fixed = [
            Self::Text,
            Self::Muted,
            Self::Axis,
            Self::Grid,
            Self::Heat,
            Self::Cold,
            Self::Empty,
        ];
        let series = (0..SERIES).map(Self::Series);
        let levels = (0..=LEVELS).map(Self::OnHeat);
        fixed.into_iter().chain(series).chain(levels).collect()
    }

    fn shade(self) -> Shade {
        let (name, light, dark) = match self {
            Self::Text => ("text".to_owned(), "#1c1f23", "#e6e8eb"),
            Self::Muted => ("muted".to_owned(), "#5a6069", "#a3abb5"),
            Self::Axis => ("axis".to_owned(), "#8b929b", "#6d7580"),
            Self::Grid => ("grid".to_owned(), "#e4e6e9", "#2c3139"),
            Self::Heat => ("heat".to_owned(), "#0b4f8a", "#8cc4ff"),
            Self::Cold => ("cold".to_owned(), "#863500", "#ffb27a"),
            Self::Empty => ("empty".to_owned(), "#f1f2f4", "#20242b"),
            Self::Series(number) => {
                let (light, dark) = SERIES_SHADES[number % SERIES];
                (format!("series-{number}"), light, dark)
            }
            Self::OnHeat(level) => {
                let light = if level < WHITE_FROM {
                    "#000000"
                } else {
                    "#ffffff"
                };
                let dark = if level < BLACK_FROM {
                    "#ffffff"
                } else {
                    "#000000"
                };
                (format!("on-heat-{level}"), light, dark)
            }
        };
        Shade { name, light, dark }
    }

    /// The colour that stands for this ink while a figure is drawn.
    pub(crate) fn placeholder(self) -> RGBColor {
        let code = match self {
            Self::Text => 0,
            Self::Muted => 1,
            Self::Axis => 2,
            Self::Grid => 3,
            Self::Heat => 4,
            Self::Cold => 5,
            Self::Empty => 6,
            Self::Series(number) => 32 + (number % SERIES) as u8,
            Self::OnHeat(level) => 64 + level.min(LEVELS) as u8,
        };
        RGBColor(1, 254, code)
    }

    /// The placeholder as the SVG backend writes it.
    fn written(self) -> String {
        let RGBColor(red, green, blue) = self.placeholder();
        format!("\"#{red:02X}{green:02X}{blue:02X}\"")
    }

    /// The variable of the style sheet, as a CSS value.
    pub(crate) fn variable(self) -> String {
        format!("var(--{})", self.shade().name)
    }
}

/// Replaces placeholders by variables of the page's style sheet.
pub(crate) fn with_variables(svg: &str) -> String {
    replace(svg, |ink| ink.variable())
}

/// Replaces placeholders by the colours for light surroundings.
pub(crate) fn with_colors(svg: &str) -> String {
    replace(svg, |ink| ink.shade().light.to_owned())
}

fn replace(svg: &str, value: impl Fn(Ink) -> String) -> String {
    Ink::all().into_iter().fold(svg.to_owned(), |svg, ink| {
        svg.replace(&ink.written(), &format!("\"{}\"", value(ink)))
    })
}

/// The variables for light or dark surroundings, as CSS declarations.
pub(crate) fn declarations(dark: bool) -> String {
    Ink::all().into_iter().fold(String::new(), |mut css, ink| {
        let shade = ink.shade();
        let color = if dark { shade.dark } else { shade.light };
        // Writing to a string cannot fail.
        let _ = write!(css, "--{}:{color};", shade.name);
        css
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red, green and blue, from 0 to 255.
    fn rgb(hex: &str) -> [f64; 3] {
        [1, 3, 5].map(|at| f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()))
    }

    /// The linear intensity of an sRGB channel.
    fn linear(value: f64) -> f64 {
        let value = value / 255.0;
        if value <= 0.04045 {
            value / 12.92
        } else {
            ((value + 0.055) / 1.055).powf(2.4)
        }
    }

    type Matrix = [[f64; 3]; 3];

    fn apply(matrix: &Matrix, vector: [f64; 3]) -> [f64; 3] {
        matrix.map(|row| row.iter().zip(vector).map(|(a, b)| a * b).sum())
    }

    /// CIE 1976 L*a*b* of linear intensities, white D65.
    fn lab(linear: [f64; 3]) -> [f64; 3] {
        const XYZ: Matrix = [
            [0.4124, 0.3576, 0.1805],
            [0.2126, 0.7152, 0.0722],
            [0.0193, 0.1192, 0.9505],
        ];
        let [x, y, z] = apply(&XYZ, linear.map(|value| value.clamp(0.0, 1.0)));
        let root = |value: f64| {
            let knee = 6.0 / 29.0_f64;
            if value > knee.powi(3) {
                value.cbrt()
            } else {
                value / (3.0 * knee * knee) + 4.0 / 29.0
            }
        };
        let (x, y, z) = (root(x / 0.95047), root(y), root(z / 1.08883));
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    }

    // What is seen without one kind of cone: Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of
    // Color Vision Deficiency", IEEE TVCG 2009, severity 1.
    const SIGHTS: [(&str, Matrix); 3] = [
        (
            "all cones",
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        ),
        (
            "protanopia",
            [
                [0.152286, 1.052583, -0.204868],
                [0.114503, 0.786281, 0.099216],
                [-0.003882, -0.048116, 1.051998],
            ],
        ),
        (
            "deuteranopia",
            [
                [0.367322, 0.860646, -0.227968],
                [0.280085, 0.672501, 0.047413],
                [-0.011820, 0.042940, 0.968881],
            ],
        ),
    ];

    #[test]
    fn groups_differ_for_the_colour_blind() {
        for (dark, (sight, matrix)) in [false, true]
            .into_iter()
            .flat_map(|dark| SIGHTS.map(|sight| (dark, sight)))
        {
            let seen = SERIES_SHADES.map(|(light, other)| {
                let shade = if dark { other } else { light };
                lab(apply(&matrix, rgb(shade).map(linear)))
            });
            for (one, other) in (0..SERIES).flat_map(|one| (0..one).map(move |other| (one, other)))
            {
                let squares = seen[one]
                    .iter()
                    .zip(seen[other])
                    .map(|(a, b)| (a - b).powi(2));
                let distance = squares.sum::<f64>().sqrt();
                assert!(
                    distance >= 20.0,
                    "{one} and {other} differ by {distance:.1}, {sight}, dark {dark}"
                );
            }
        }
    }

    #[test]
    fn three_times_the_colours_are_told_apart() {
        let looks: Vec<_> = (0..3 * SERIES)
            .map(|number| (Ink::series(number), Pattern::series(number)))
            .collect();
        for (at, look) in looks.iter().enumerate() {
            assert!(!looks[..at].contains(look), "{at}: {look:?}");
        }
    }

    #[test]
    fn every_ink_has_its_own_placeholder_and_variable() {
        let inks = Ink::all();
        let mut placeholders: Vec<String> = inks.iter().map(|ink| ink.written()).collect();
        let mut names: Vec<String> = inks.iter().map(|ink| ink.variable()).collect();
        for list in [&mut placeholders, &mut names] {
            list.sort();
            list.dedup();
            assert_eq!(list.len(), inks.len());
        }
    }

    #[test]
    fn placeholders_are_replaced() {
        let svg = format!("<rect fill={} stroke=\"none\"/>", Ink::Series(1).written());
        let page = with_variables(&svg);
        assert_eq!(page, "<rect fill=\"var(--series-1)\" stroke=\"none\"/>");
        assert_eq!(
            with_colors(&svg),
            "<rect fill=\"#583800\" stroke=\"none\"/>"
        );
        assert!(declarations(true).contains("--series-1:#f8c058;"));
    }

    /// WCAG 2: text on every cell, and every group's colour on the page, in both surroundings.
    #[test]
    fn contrast() {
        let luminance =
            |[r, g, b]: [f64; 3]| 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
        let ratio = |a: [f64; 3], b: [f64; 3]| {
            let (a, b) = (luminance(a) + 0.05, luminance(b) + 0.05);
            if a > b { a / b } else { b / a }
        };
        for dark in [false, true] {
            let color = |ink: Ink| {
                rgb(if dark {
                    ink.shade().dark
                } else {
                    ink.shade().light
                })
            };
            let page = rgb(if dark { "#15181d" } else { "#ffffff" });
            for ink in (0..SERIES).map(Ink::Series).chain([Ink::Text, Ink::Muted]) {
                assert!(ratio(color(ink), page) >= 4.5, "{ink:?}, dark {dark}");
            }
            for (heat, percent) in [Ink::Heat, Ink::Cold]
                .into_iter()
                .flat_map(|heat| (0..=100).map(move |percent| (heat, percent)))
            {
                let opacity = f64::from(percent) / 100.0;
                let (heat, mut cell) = (color(heat), page);
                (0..3).for_each(|at| cell[at] += (heat[at] - page[at]) * opacity);
                let found = ratio(color(Ink::on_heat(opacity)), cell);
                assert!(found >= 4.4, "{found} at {percent} %, dark {dark}");
            }
        }
    }
}
