//! `natpunch plan`.

use std::process::ExitCode;

use super::CliError;
use super::args::PlanArgs;

pub(super) fn run(_: PlanArgs) -> Result<ExitCode, CliError> {
    Err(CliError::new("`natpunch plan` is not part of this build"))
}
