//! The `aso` program, built as part of this package so that its tests always find a fresh one.

fn main() -> std::process::ExitCode {
    aso_cli::main()
}
