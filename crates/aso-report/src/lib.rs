//! Reports on runs: who forgets what, and how surely.
//!
//! [`record`] reads run directories, [`group`] puts the seeds of a configuration together, [`summary`] computes
//! means, paired differences and costs with [`statistics`], [`plot`] draws. [`Report`] is all of it, and writes it as
//! a self-contained page, Markdown, CSV or JSON, as SVG files and as TensorBoard event files.
//!
//! | module | holds |
//! |---|---|
//! | [`record`] | [`RunRecord`]: what a run directory tells |
//! | [`group`] | [`Stream`] and [`Group`]: runs of the same tasks and method |
//! | [`statistics`] | intervals over seeds and examples |
//! | [`across`] | [`AcrossOrders`]: several orders of the same tasks together |
//! | [`summary`] | [`ReportSummary`]: all numbers, and their JSON form |
//! | [`plot`] | [`Figure`]: a plot as SVG |
//! | [`tensorboard`] | event files |

pub mod across;
mod compare;
pub mod error;
pub mod group;
mod output;
pub mod plot;
mod predictions;
pub mod record;
pub mod statistics;
pub mod summary;
pub mod tensorboard;
mod terms;
#[cfg(test)]
mod testing;

use std::collections::BTreeSet;
use std::path::Path;

use aso_trainer::files::{atomic_write, create_dir_all};
pub use aso_trainer::metrics::Metric;

pub use across::AcrossOrders;
pub use error::ReportError;
pub use group::{Group, Stream};
pub use plot::Figure;
pub use record::{RunRecord, RunSource};
pub use summary::ReportSummary;

/// Runs and the numbers computed from them.
#[derive(Debug, Clone)]
pub struct Report {
    streams: Vec<Stream>,
    summary: ReportSummary,
}

impl Report {
    /// Reads runs and compares them. `reference` is the label or the method's name of the group that the others are
    /// compared with; left out, `aso-lora` or else the first group.
    ///
    /// # Errors
    /// [`ReportError`] names the file, argument or label that is wrong.
    pub fn read(sources: &[RunSource], reference: Option<&str>) -> Result<Self, ReportError> {
        let streams = group::read_streams(sources)?;
        let summary = ReportSummary::new(&streams, reference)?;
        Ok(Self { streams, summary })
    }

    /// The runs.
    pub fn streams(&self) -> &[Stream] {
        &self.streams
    }

    /// The numbers.
    pub fn summary(&self) -> &ReportSummary {
        &self.summary
    }

    /// A page that needs nothing else: no network, no script.
    ///
    /// # Errors
    /// [`ReportError::Plot`] and [`ReportError::Page`], which no input should cause.
    pub fn html(&self) -> Result<String, ReportError> {
        output::html(&self.streams, &self.summary)
    }

    /// The tables as Markdown.
    pub fn markdown(&self) -> String {
        output::markdown(&self.summary)
    }

    /// Metrics and costs as CSV, one row a group.
    pub fn csv(&self) -> String {
        output::csv(&self.summary)
    }

    /// [`ReportSummary`] as JSON.
    ///
    /// # Errors
    /// [`ReportError::Json`], which no input should cause.
    pub fn json(&self) -> Result<String, ReportError> {
        Ok(serde_json::to_string_pretty(&self.summary)? + "\n")
    }

    /// All figures, each with a name of its own. Where there are several sequences of tasks, names begin with
    /// `stream-N-`.
    ///
    /// # Errors
    /// [`ReportError::Plot`], which no input should cause.
    pub fn figures(&self) -> Result<Vec<Figure>, ReportError> {
        let mut figures = Vec::new();
        let streams = self.streams.iter().zip(&self.summary.streams);
        for (at, (stream, summary)) in streams.enumerate() {
            let prefix = match self.streams.len() {
                1 => String::new(),
                _ => format!("stream-{}-", at + 1),
            };
            let drawn = plot::stream_figures(stream, summary, &self.summary, &prefix, true)?;
            figures.extend(drawn.into_vec());
        }
        let mut names = Names::default();
        for figure in &mut figures {
            figure.name = names.unique(&figure.name);
        }
        Ok(figures)
    }

    /// Writes every figure to `dir/NAME.svg`.
    ///
    /// # Errors
    /// [`ReportError::Files`] names the file.
    pub fn write_figures(&self, dir: &Path) -> Result<(), ReportError> {
        create_dir_all(dir)?;
        for figure in self.figures()? {
            let path = dir.join(format!("{}.svg", figure.name));
            atomic_write(&path, figure.file().as_bytes())?;
        }
        Ok(())
    }

    /// Writes a TensorBoard event file for each run to `dir/LABEL/seed-N`, below `stream-N` where there are several
    /// sequences of tasks.
    ///
    /// # Errors
    /// [`ReportError::Files`] names the file.
    pub fn write_tensorboard(&self, dir: &Path) -> Result<(), ReportError> {
        for (at, stream) in self.streams.iter().enumerate() {
            let dir = match self.streams.len() {
                1 => dir.to_owned(),
                _ => dir.join(format!("stream-{}", at + 1)),
            };
            let mut names = Names::default();
            for group in &stream.groups {
                let dir = dir.join(names.unique(&plot::slug(&group.label)));
                for run in &group.runs {
                    let seed = format!("seed-{}", run.results.seed);
                    tensorboard::write_run(run, &dir.join(seed))?;
                }
            }
        }
        Ok(())
    }
}

/// Names of files made from labels, which may differ only in characters that file names do without.
#[derive(Default)]
struct Names {
    taken: BTreeSet<String>,
}

impl Names {
    /// The name, with a number behind it if it is taken.
    fn unique(&mut self, name: &str) -> String {
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        let mut names = std::iter::once(name.to_owned()).chain(numbered);
        let free = names
            .find(|name| !self.taken.contains(name))
            .unwrap_or_default();
        self.taken.insert(free.clone());
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{results, write_run};

    fn report(dir: &Path) -> Report {
        let runs = [
            ("o-lora", 1, [80.0, 25.0, 60.0, 90.0]),
            ("o-lora", 2, [70.0, 25.0, 65.5, 85.0]),
            ("aso-lora", 1, [80.0, 30.0, 70.0, 90.0]),
            ("aso-lora", 2, [72.0, 30.0, 71.0, 91.0]),
        ];
        for (method, seed, rows) in runs {
            let run = dir.join(format!("{method}-{seed}"));
            write_run(&run, &results(method, seed, &rows));
        }
        let source = dir.to_str().unwrap().parse().unwrap();
        Report::read(&[source], None).unwrap()
    }

    // import numpy as np; s = lambda *x: f"{np.mean(x):.2f} ± {np.std(x, ddof=1):.2f}"
    // AP   o-lora s(75, 75.25)    aso-lora s(80, 81)
    // BWT  o-lora s(-20, -4.5)    aso-lora s(-10, -1)
    // LA   o-lora s(85, 77.5)     aso-lora s(85, 81.5)
    // AP of o-lora minus aso-lora: s(-5, -5.75)
    #[test]
    fn all_forms_show_the_same_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let report = report(dir.path());
        let (page, markdown) = (report.html().unwrap(), report.markdown());
        let best = "**80.50 \u{b1} 0.71**";
        assert!(markdown.contains(best), "{markdown}");
        assert!(page.contains(
            "<td class=\"best\">80.50 \u{b1} 0.71<span class=\"spoken\"> best</span></td>"
        ));
        let shown = [
            // 75.125: halves are rounded away from 0, where NumPy takes the even digit.
            "75.13 \u{b1} 0.18",
            "-12.25 \u{b1} 10.96",
            "-5.50 \u{b1} 6.36",
            "81.25 \u{b1} 5.30",
            "83.25 \u{b1} 2.47",
            "-5.38 \u{b1} 0.53",
        ];
        for number in shown {
            assert!(markdown.contains(number), "{number} in\n{markdown}");
            assert!(page.contains(&number.replace('-', "\u{2212}")), "{number}");
        }
        // The untouched backbone and s(95 / 8, 90 / 8), of tasks that were not learned.
        let other = "o-lora | other | 31.25 \u{b1} 0.00 | ";
        assert!(markdown.contains(other), "{markdown}");
        assert!(page.contains("Tasks that were not learned"));
        let csv = report.csv();
        let row: Vec<&str> = csv.lines().nth(2).unwrap().split(',').collect();
        assert_eq!(row[..6], ["a b", "o-lora", "o-lora", "2", "", "75.125"]);
        let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        let stream = &json["streams"][0];
        assert_eq!(stream["groups"][1]["metrics"]["ap"]["mean"], 75.125);
        assert_eq!(stream["differences"][0]["metrics"]["ap"]["mean"], -5.375);
        assert_eq!(stream["groups"][1]["accuracy"][1][0]["mean"], 62.75);
    }

    #[test]
    fn several_orders_have_a_part_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        for (at, order) in [["a", "b"], ["b", "a"]].iter().enumerate() {
            for (method, seed, last) in [
                ("o-lora", 1, 90.0),
                ("o-lora", 2, 85.0),
                ("aso-lora", 1, 91.0),
            ] {
                let mut results =
                    results(method, seed, &[80.0, 25.0, 60.0, last + 2.0 * at as f64]);
                results.tasks = order.map(str::to_owned).into();
                write_run(&dir.path().join(format!("{at}-{method}-{seed}")), &results);
            }
        }
        let source = dir.path().to_str().unwrap().parse().unwrap();
        let report = Report::read(&[source], None).unwrap();
        // o-lora's AP: (75 + 76) / 2 and (72.5 + 73.5) / 2; aso-lora's: (75.5 + 76.5) / 2.
        let markdown = report.markdown();
        let (before, _) = markdown.split_once("## a \u{2192} b").unwrap();
        let title = "## 2 orders of a and b";
        for part in [
            title,
            // The single run of aso-lora takes no place.
            "| o-lora | 2 | **74.25 \u{b1} 1.77** |",
            "| o-lora | AP | -0.50 | 1 |",
        ] {
            assert!(before.contains(part), "{part} in\n{before}");
        }
        let page = report.html().unwrap();
        let (before, after) = page.split_once("id=\"stream-1\"").unwrap();
        for part in [
            "href=\"#orders-1\"",
            "id=\"orders-1\"",
            "2 orders of the same 2 tasks",
            "74.25",
        ] {
            assert!(before.contains(part), "{part} in\n{before}");
        }
        assert!(
            before.contains("What the columns mean") && after.contains("What the columns mean")
        );
        // One order alone has no such part.
        let one = dir
            .path()
            .join("0-o-lora-1")
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!(
            Report::read(&[one], None)
                .unwrap()
                .summary()
                .across
                .is_empty()
        );
    }

    #[test]
    fn differences_need_a_common_seed() {
        let dir = tempfile::tempdir().unwrap();
        for (method, seed) in [("o-lora", 1), ("aso-lora", 2)] {
            let run = dir.path().join(method);
            write_run(&run, &results(method, seed, &[80.0, 25.0, 60.0, 90.0]));
        }
        let source = dir.path().to_str().unwrap().parse().unwrap();
        let report = Report::read(&[source], Some("o-lora")).unwrap();
        // Half a sweep: a heading over nothing would look like a mistake.
        assert!(!report.markdown().contains("Differences"));
        assert!(!report.html().unwrap().contains("Differences to"));
    }

    #[test]
    fn labels_are_escaped() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        write_run(&runs, &results("o-lora", 1, &[80.0, 25.0, 60.0, 90.0]));
        let source = format!("<b>&|={}", runs.display()).parse().unwrap();
        let report = Report::read(&[source], None).unwrap();
        let page = report.html().unwrap();
        assert!(!page.contains("<b>") && page.contains("&lt;b&gt;&amp;|"));
        assert!(report.markdown().contains("&lt;b>&amp;\\|"));
    }

    #[test]
    fn names_are_unique() {
        let mut names = Names::default();
        assert_eq!(
            ["a", "b", "a", "a"].map(|name| names.unique(name)),
            ["a", "b", "a-2", "a-3"]
        );
    }

    #[test]
    fn figures_are_files() {
        let dir = tempfile::tempdir().unwrap();
        let report = report(dir.path());
        let out = dir.path().join("figures");
        report.write_figures(&out).unwrap();
        let names: Vec<String> = report
            .figures()
            .unwrap()
            .into_iter()
            .map(|f| f.name)
            .collect();
        assert!(
            names.contains(&"accuracy-matrix-o-lora".to_owned()),
            "{names:?}"
        );
        for name in names {
            let svg = std::fs::read_to_string(out.join(format!("{name}.svg"))).unwrap();
            assert!(svg.starts_with("<svg ") && !svg.contains("var("), "{name}");
            assert!(!svg.contains("#01FE"), "{name}: a placeholder is left");
        }
    }
}
