//! `natpunch device`: the embedded WireGuard device, started by `apply`.

use std::process::ExitCode;

use crate::cli::CliError;
use crate::cli::args::DeviceArgs;

pub(in crate::cli) fn run(args: DeviceArgs) -> Result<ExitCode, CliError> {
    natpunch_wg::embedded::run_device(&args.name, &args.socket)
        .map_err(|error| CliError::new(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}
