//! What can be wrong with a sweep.

use crate::TrainerError;
use crate::config::ConfigError;
use crate::files::FilesError;

/// What can be wrong with a sweep.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SweepError {
    /// The sweep file, or a configuration that it makes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An order in task files.
    #[error(transparent)]
    Data(#[from] aso_data::DataError),
    /// A run's configuration makes no sense.
    #[error("run {run}: {source}")]
    Run {
        /// The run's directory within the sweep.
        run: String,
        /// The reason.
        source: Box<ConfigError>,
    },
    /// A run's directory, model or data is not usable.
    #[error("run {run}: {source}")]
    Unusable {
        /// The run's directory within the sweep.
        run: String,
        /// The reason.
        source: Box<TrainerError>,
    },
    /// A file of the sweep.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// No candidate of a method was run to its end.
    #[error("method `{label}`: no candidate has a score on dev, so there is nothing to choose")]
    NothingToChoose {
        /// The method.
        label: String,
    },
}
