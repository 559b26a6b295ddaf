//! The hidden commands, as which natpunch starts processes of its own that outlive an agent.

use std::path::PathBuf;

use clap::Args;

/// Arguments of the hidden `device`.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Interface name.
    pub name: String,
    /// The control socket to listen on.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
}

/// Arguments of the hidden `forwarder`.
#[derive(Debug, Args)]
pub struct ForwarderArgs {
    /// The control socket to listen on.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
}

/// Arguments of the hidden `pin-forwarder`.
#[derive(Debug, Args)]
pub struct PinForwarderArgs {
    /// The control socket to listen on.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// The mark of WireGuard's packets; 0 is none.
    #[arg(long, value_name = "MARK")]
    pub fwmark: u32,
}

/// Arguments of the hidden `guard`.
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// Interface name.
    pub name: String,
    /// Where the agent's sockets are.
    #[arg(long, value_name = "PATH")]
    pub runtime_dir: PathBuf,
}
