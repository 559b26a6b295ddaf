//! `natpunch device`.

use std::process::ExitCode;

use super::CliError;
use super::args::DeviceArgs;

pub(super) fn run(_: DeviceArgs) -> Result<ExitCode, CliError> {
    Err(CliError::new("`natpunch device` is not part of this build"))
}
