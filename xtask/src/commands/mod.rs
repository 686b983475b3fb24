//! One module per command.

pub(crate) mod backbone;
pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod fixtures;
pub(crate) mod test;
pub(crate) mod validate;
