//! `natpunch device` and `natpunch forwarder`: the embedded WireGuard device, and what carries
//! WireGuard's packets where no UDP gets through. Both are started by `apply`.

use std::process::ExitCode;

use crate::cli::CliError;
use crate::cli::args::{DeviceArgs, ForwarderArgs};

pub(in crate::cli) fn run(args: DeviceArgs) -> Result<ExitCode, CliError> {
    natpunch_wg::embedded::run_device(&args.name, &args.socket)
        .map_err(|error| CliError::new(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

pub(in crate::cli) fn run_forwarder(args: &ForwarderArgs) -> Result<ExitCode, CliError> {
    natpunch_forwarder::run(&args.socket).map_err(|error| CliError::new(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}
