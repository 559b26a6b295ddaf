//! `natpunch down`.

use std::process::ExitCode;

use super::CliError;
use super::args::DownArgs;

pub(super) fn run(_: DownArgs) -> Result<ExitCode, CliError> {
    Err(CliError::new("`natpunch down` is not part of this build"))
}
