//! `cargo xtask validate`: everything a change must pass, cheapest first.

use crate::commands::{check, test};
use crate::steps::Steps;
use crate::workspace::Workspace;

pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let mut steps = Steps::default();
    check::all(workspace, &mut steps)?;
    test::all(workspace, &mut steps)?;
    eprintln!("validate passed: {steps}");
    Ok(())
}
