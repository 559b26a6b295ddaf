//! The `natpunch` binary: parse, run, print the error with its hint, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    natpunch::cli::main()
}
