//! The command line: parse, dispatch to one file per command, map results to exit codes.
//!
//! Exit codes: 0 done, 1 error, 2 `plan` found changes (or wrong usage), 3 `apply --once` passed its deadline.

pub mod args;
pub mod serve;

use std::process::ExitCode;

use clap::Parser as _;

use args::Cli;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let _ = cli;
    ExitCode::SUCCESS
}
