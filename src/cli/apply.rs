//! `natpunch apply`.

use std::process::ExitCode;

use super::CliError;
use super::args::ApplyArgs;

pub(super) fn run(_: ApplyArgs) -> Result<ExitCode, CliError> {
    Err(CliError::new("`natpunch apply` is not part of this build"))
}
