//! One module per command.

pub(crate) mod config;
pub(crate) mod demo;
pub(crate) mod eval;
pub(crate) mod orders;
pub(crate) mod predict;
pub(crate) mod probe;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod similarity;
mod source;
pub(crate) mod sweep;
pub(crate) mod tune;
