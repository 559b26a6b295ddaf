//! `natpunch device`, `natpunch forwarder`, `natpunch pin-forwarder` and `natpunch guard`: the
//! embedded WireGuard device, what carries WireGuard's packets where no UDP gets through, what carries
//! them from other source ports where nftables can't, and what has WireGuard reach peers at rest when
//! the agent was killed. All are started by `apply`.

use std::process::ExitCode;

use crate::cli::CliError;
use crate::cli::args::{DeviceArgs, ForwarderArgs, GuardArgs, PinForwarderArgs};

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

pub(in crate::cli) fn run_guard(args: &GuardArgs) -> Result<ExitCode, CliError> {
    crate::agent::guard::run(&args.name, &args.runtime_dir)
        .map_err(|error| CliError::new(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}
