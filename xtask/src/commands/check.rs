//! `cargo xtask check`: everything that can be said about the sources without running them.

use clap::ValueEnum;

use crate::steps::{Steps, succeeds};
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these checks; all of them if none is named
    #[arg(value_name = "CHECK")]
    only: Vec<Check>,
}

/// Declared cheapest first, the order they run in.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Check {
    /// rustfmt changes nothing
    Format,
    /// Licences, bans and sources of the dependencies (needs cargo-deny)
    Deny,
    /// The book builds (needs mdbook)
    Book,
    /// clippy has nothing to say about any target
    Clippy,
    /// rustdoc has nothing to say about any crate
    Docs,
    /// The CLI type checks with CUDA, ROCm and Vulkan together
    Backends,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    let mut steps = Steps::default();
    for check in Check::value_variants() {
        if args.only.is_empty() || args.only.contains(check) {
            step(workspace, &mut steps, *check)?;
        }
    }
    eprintln!("check passed: {steps}");
    Ok(())
}

/// Runs all checks as steps of a longer command.
pub(crate) fn all(workspace: &Workspace, steps: &mut Steps) -> anyhow::Result<()> {
    Check::value_variants()
        .iter()
        .try_for_each(|check| step(workspace, steps, *check))
}

fn step(workspace: &Workspace, steps: &mut Steps, check: Check) -> anyhow::Result<()> {
    match check {
        Check::Format => steps.run(
            "format",
            workspace.cargo().args(["fmt", "--all", "--check"]),
        ),
        Check::Deny => {
            if !succeeds(workspace.cargo().args(["deny", "--version"])) {
                steps.skip(
                    "deny",
                    "cargo-deny is missing (cargo install cargo-deny --locked)",
                );
                return Ok(());
            }
            // Advisories need a database from the network, so they are no part of this check.
            let deny = [
                "deny",
                "--offline",
                "--locked",
                "check",
                "bans",
                "licenses",
                "sources",
            ];
            steps.run("deny", workspace.cargo().args(deny))
        }
        Check::Book => {
            if !succeeds(workspace.shell().cmd("mdbook").arg("--version")) {
                steps.skip("book", "mdbook is missing (cargo install mdbook --locked)");
                return Ok(());
            }
            let mdbook = workspace
                .shell()
                .cmd("mdbook")
                .args(["build", "docs", "--dest-dir"]);
            steps.run("book", mdbook.arg(workspace.target_dir().join("book")))
        }
        // Clippy, docs and tests all build in release, the profile the project is used in: dependencies are
        // then compiled and checked once.
        Check::Clippy => {
            let clippy = [
                "clippy",
                "--release",
                "--workspace",
                "--all-targets",
                "--locked",
            ];
            steps.run(
                "clippy",
                workspace
                    .cargo()
                    .args(clippy)
                    .args(["--", "-D", "warnings"]),
            )
        }
        Check::Docs => {
            let doc = ["doc", "--release", "--workspace", "--no-deps", "--locked"];
            steps.run(
                "docs",
                workspace
                    .cargo()
                    .args(doc)
                    .env("RUSTDOCFLAGS", "-D warnings"),
            )
        }
        Check::Backends => {
            let features = "flex,cuda,rocm,vulkan";
            let check = [
                "check",
                "--package",
                "aso-cli",
                "--locked",
                "--no-default-features",
            ];
            let cargo = workspace.cargo().args(check).args(["--features", features]);
            // CUDA and ROCm download LLVM in a build script, unless they believe docs.rs is building them; for
            // a type check that is enough. It is done in the dev profile, because a real GPU build in release
            // would otherwise be redone after every check.
            steps.run("backends", cargo.env("DOCS_RS", "1"))
        }
    }
}
