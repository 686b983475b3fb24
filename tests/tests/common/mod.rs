//! Running the program.

#![allow(dead_code, reason = "every test binary uses a part of it")]

use std::path::Path;
use std::process::{Command, Output};

/// The program, without colours.
pub(crate) fn aso() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aso-under-test"));
    command.env("NO_COLOR", "1").env_remove("RUST_LOG");
    command.env("ASO_CACHE", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Runs the program with arguments.
pub(crate) fn run(arguments: &[&str]) -> Output {
    aso().args(arguments).output().expect("the program starts")
}

/// Runs the program, which must succeed, and returns its standard output.
pub(crate) fn succeed(arguments: &[&str]) -> String {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "aso {arguments:?}: {:?}\n{stderr}",
        output.status
    );
    String::from_utf8(output.stdout).expect("UTF-8 output")
}

/// Runs the program, which must end with exit code 2 and one error that holds all of `parts`.
pub(crate) fn fail(arguments: &[&str], parts: &[&str]) -> String {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "aso {arguments:?}\n{stderr}");
    assert!(!stderr.contains("panicked"), "aso {arguments:?}\n{stderr}");
    for part in parts {
        assert!(
            stderr.contains(part),
            "aso {arguments:?}: no `{part}` in\n{stderr}"
        );
    }
    stderr
}

/// `results.json` without its timings.
pub(crate) fn results(run: &Path) -> serde_json::Value {
    let path = run.join("results.json");
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut results: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    results
        .as_object_mut()
        .expect("an object")
        .remove("timings");
    results
}

/// Every file below `dir` with its bytes, by relative path.
pub(crate) fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    fn walk(dir: &Path, root: &Path, into: &mut Vec<(String, Vec<u8>)>) {
        for entry in std::fs::read_dir(dir).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, root, into);
            } else {
                let name = path
                    .strip_prefix(root)
                    .expect("below the root")
                    .display()
                    .to_string();
                into.push((name, std::fs::read(&path).expect("a file")));
            }
        }
    }
    let mut found = Vec::new();
    walk(dir, dir, &mut found);
    found.sort();
    found
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 paths in tests")
}
