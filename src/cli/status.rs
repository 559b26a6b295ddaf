//! `natpunch status`.

use std::process::ExitCode;

use super::CliError;
use super::args::StatusArgs;

pub(super) fn run(_: StatusArgs) -> Result<ExitCode, CliError> {
    Err(CliError::new("`natpunch status` is not part of this build"))
}
