//! Sweeps: methods x orders x seeds over one base configuration, and settings chosen on dev.
//!
//! [`Sweep`] reads a sweep file and expands it into [`PlannedRun`]s, each with a whole, checked
//! configuration and a directory `ORDER/LABEL/seed-N` below that of the sweep. Who runs them is the
//! caller's affair; [`Ledger`] keeps what is known of each and writes `sweep.json`. [`choose`] picks the
//! best candidate of every method by its mean score on dev and writes a sweep file with the choice.
//!
//! Nothing here knows what was interrupted: the state of a sweep is that of its run directories.

mod error;
mod file;
mod ledger;
mod plan;
mod tune;

pub use self::error::SweepError;
pub use self::file::{EXAMPLE, MethodSpec, OrderSpec, SweepFile, TuneSpec};
pub use self::ledger::{Group, Ledger, SWEEP_FILE, SweepResults, SweptRun, SweptStatus};
pub use self::plan::{PlannedRun, Sweep, check_inputs, start_order};
pub use self::tune::{CHOSEN_FILE, Candidate, Choice, TUNE_FILE, TuneResults, choose};

/// The folder of a sweep that holds what its runs logged.
pub const LOG_FOLDER: &str = "logs";
