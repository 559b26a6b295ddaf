//! `natpunch demo`.

use std::process::ExitCode;

use super::CliError;
use super::args::DemoArgs;

pub(super) fn run(_: DemoArgs) -> Result<ExitCode, CliError> {
    Err(CliError::new("`natpunch demo` is not part of this build"))
}
