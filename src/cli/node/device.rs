//! `natpunch device`, `natpunch forwarder` and `natpunch pin-forwarder`: the embedded WireGuard
//! device, what carries WireGuard's packets where no UDP gets through, and what carries them from
//! other source ports where nftables can't. All are started by `apply`.

use std::process::ExitCode;

use crate::cli::CliError;
use crate::cli::args::{DeviceArgs, ForwarderArgs, PinForwarderArgs};

pub(in crate::cli) fn run(args: DeviceArgs) -> Result<ExitCode, CliError> {
    natpunch_wg::embedded::run_device(&args.name, &args.socket)
        .map_err(|error| CliError::new(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

pub(in crate::cli) fn run_forwarder(args: &ForwarderArgs) -> Result<ExitCode, CliError> {
    natpunch_forwarder::run(&args.socket).map_err(|error| CliError::new(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

pub(in crate::cli) fn run_pin_forwarder(args: &PinForwarderArgs) -> Result<ExitCode, CliError> {
    natpunch_wg::run_forwarder(&args.socket, args.fwmark)
        .map_err(|error| CliError::new(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}
