//! A report as text: a page, Markdown, CSV, JSON.

mod csv;
mod html;
mod markdown;
mod table;

pub(crate) use csv::csv;
pub(crate) use html::html;
pub(crate) use markdown::markdown;
