//! `natpunch device`: the embedded WireGuard device, started by `apply`.

use std::process::ExitCode;

use super::CliError;
use super::args::DeviceArgs;

pub(super) fn run(args: DeviceArgs) -> Result<ExitCode, CliError> {
    natpunch_wg::embedded::run_device(&args.name, &args.socket)
        .map_err(|error| CliError::new(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}
