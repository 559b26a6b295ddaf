//! `natpunch demo`.

use std::process::ExitCode;

use super::CliError;
use super::args::DemoArgs;

pub(super) fn run(args: DemoArgs) -> Result<ExitCode, CliError> {
    crate::demo::run(&args).map_err(|error| CliError::new(error.to_string()))
}
