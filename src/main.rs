//! The `natpunch` binary: parse, run, print the error with its help, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    natpunch::cli::main()
}
