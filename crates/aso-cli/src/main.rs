//! The `aso` binary; see the library.

fn main() -> std::process::ExitCode {
    aso_cli::main()
}
