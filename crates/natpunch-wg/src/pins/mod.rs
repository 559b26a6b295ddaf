//! Pins: source ports beside WireGuard's that are joined to it.
//!
//! A NAT that maps by destination gives every source port of this host a mapping of its own, and
//! the one that the peer can reach may belong to another port than WireGuard's. A *pin* gives
//! WireGuard's packets to one remote address that source port, and takes the answers to it back to
//! WireGuard's. WireGuard keeps its one port, in the kernel as in the embedded device, and a pin
//! outlives the agent.
//!
//! There are three ways to make one ([`PinMethod`]), of which a host takes the first that works
//! there ([`choose`]). All pins of an interface are made in the same way.

mod device;
mod forwarder;
mod holding;
mod nft;
mod nftables;
mod table;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::WgError;
use crate::spec::InterfaceSpec;
use crate::state_file::StateFile;
use device::DevicePins;
use forwarder::ForwarderPins;
use nftables::PinTable;

pub use forwarder::run_forwarder;
pub(crate) use holding::Holding;
pub use nftables::can_pin;
pub use watch::PinWatch;

/// Pins: by the remote address, the source port that WireGuard's packets to it are given.
pub type PinSet = BTreeMap<SocketAddr, NonZeroU16>;

/// Why pins could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// There is no program to speak to nftables with.
    #[error("the program `nft` is not installed; help: install it (package nftables)")]
    NoProgram,
    /// The process lacks the privilege.
    #[error("nftables: not permitted; help: run as root or give the program CAP_NET_ADMIN")]
    NotPermitted,
    /// The kernel can't do what a pin needs.
    #[error("this kernel has no usable nftables ({0}); help: load the module `nf_tables`")]
    NoKernelSupport(String),
    /// The program refused the table.
    #[error("nft refused the table {table}: {said}")]
    Refused {
        /// The table.
        table: String,
        /// What it said, on one line.
        said: String,
    },
    /// The program did not end in time.
    #[error("nft did not end within {} s; its rule set may be large or locked", .0.as_secs())]
    TooSlow(Duration),
    /// The table does not hold what was written.
    #[error("the table {0} does not hold the pins that were written to it; something rewrites it")]
    ReadBack(String),
    /// The program could not be run.
    #[error("can't run nft: {0}")]
    Run(#[source] io::Error),
    /// A process that is to hold pins can't.
    #[error("{what} can't hold the pins: {source}")]
    Process {
        /// Which process.
        what: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// What is ours could not be written down.
    #[error(transparent)]
    Record(#[from] WgError),
}

/// How a pin is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PinMethod {
    /// nftables rewrites the ports.
    Nftables,
    /// The embedded device has a socket on the pinned port.
    Device,
    /// A process between WireGuard and the pinned port.
    Forwarder,
}

impl PinMethod {
    /// Whether another process than the agent has a socket on each pinned port. nftables leaves the
    /// ports alone.
    pub const fn binds_ports(self) -> bool {
        match self {
            Self::Nftables => false,
            Self::Device | Self::Forwarder => true,
        }
    }
}

impl fmt::Display for PinMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Device => "the WireGuard device",
            Self::Forwarder => "a forwarder",
        })
    }
}

/// How this host makes pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinChoice {
    /// The way.
    pub method: PinMethod,
    /// Why it is not nftables, which costs the least.
    pub reason: Option<String>,
}

/// Tries how this host can make pins for an interface, and changes nothing.
///
/// # Errors
/// It can't in any way; why not by nftables.
pub fn choose(interface: &str, runtime_dir: &Path) -> Result<PinChoice, PinError> {
    let problem = match can_pin() {
        Ok(()) => {
            return Ok(PinChoice {
                method: PinMethod::Nftables,
                reason: None,
            });
        }
        Err(problem) => problem,
    };
    let method = if DevicePins::are_possible(runtime_dir, interface) {
        PinMethod::Device
    } else if forwarder::is_possible() {
        PinMethod::Forwarder
    } else {
        return Err(problem);
    };
    Ok(PinChoice {
        method,
        reason: Some(problem.to_string()),
    })
}

/// One way to make pins.
trait Pinner {
    /// The pins that shall be in force.
    fn pins(&self) -> &PinSet;

    /// Brings exactly these pins in force. After an error those of before may be.
    fn set(&mut self, pins: &PinSet) -> Result<(), PinError>;

    /// Makes the pins anew if somebody took them away; true if that was necessary.
    fn heal(&mut self) -> Result<bool, PinError>;
}

/// The pins of one interface.
#[derive(Debug)]
pub(crate) struct Pins {
    method: PinMethod,
    table: PinTable,
    device: DevicePins,
    forwarder: ForwarderPins,
}

impl Pins {
    /// The pins that are in force: those of an agent that was killed are taken over, however they
    /// were made.
    pub(crate) fn find(spec: &InterfaceSpec) -> Self {
        let mut pins = Self {
            method: PinMethod::Nftables,
            table: PinTable::find(spec),
            device: DevicePins::find(&spec.runtime_dir, &spec.name),
            forwarder: ForwarderPins::find(spec),
        };
        let used = [PinMethod::Device, PinMethod::Forwarder]
            .into_iter()
            .find(|method| !pins.by(*method).pins().is_empty());
        if pins.table.pins().is_empty()
            && let Some(method) = used
        {
            pins.method = method;
        }
        pins
    }

    /// How they are made.
    pub(crate) fn method(&self) -> PinMethod {
        self.method
    }

    /// The pins that shall be in force.
    pub(crate) fn pins(&self) -> &PinSet {
        match self.method {
            PinMethod::Nftables => self.table.pins(),
            PinMethod::Device => self.device.pins(),
            PinMethod::Forwarder => self.forwarder.pins(),
        }
    }

    /// Brings exactly these pins in force in this way, and none in another.
    pub(crate) fn set(&mut self, method: PinMethod, pins: &PinSet) -> Result<(), PinError> {
        // The addresses of a pin have no scope.
        let pins: PinSet = pins
            .iter()
            .map(|(remote, port)| (SocketAddr::new(remote.ip(), remote.port()), *port))
            .collect();
        for other in [PinMethod::Nftables, PinMethod::Device, PinMethod::Forwarder] {
            // First, since two can't have one port.
            if other != method
                && !self.by(other).pins().is_empty()
                && let Err(error) = self.by(other).set(&PinSet::new())
            {
                tracing::warn!(%error, "pins of before are left");
            }
        }
        self.method = method;
        self.by(method).set(&pins)
    }

    /// Follows WireGuard to another port or mark.
    pub(crate) fn follow(&mut self, listen_port: u16, fwmark: u32) -> Result<(), PinError> {
        self.table.set_listen_port(listen_port)?;
        self.forwarder.follow(listen_port, fwmark)
    }

    /// Makes the pins anew if somebody took them away; true if that was necessary.
    pub(crate) fn heal(&mut self) -> Result<bool, PinError> {
        self.by(self.method).heal()
    }

    /// Where WireGuard has to send for what is to go to an address.
    pub(crate) fn endpoint(&self, remote: SocketAddr) -> SocketAddr {
        let unscoped = SocketAddr::new(remote.ip(), remote.port());
        self.forwarder.local(unscoped).unwrap_or(remote)
    }

    /// Where what WireGuard sends to an endpoint goes; `None`: nowhere any more.
    pub(crate) fn remote(&self, endpoint: SocketAddr) -> Option<SocketAddr> {
        self.forwarder.remote(endpoint)
    }

    fn by(&mut self, method: PinMethod) -> &mut dyn Pinner {
        match method {
            PinMethod::Nftables => &mut self.table,
            PinMethod::Device => &mut self.device,
            PinMethod::Forwarder => &mut self.forwarder,
        }
    }
}

/// Removes the pins of an interface, however they were made, but those that go with its device;
/// gives how many there were.
pub(crate) fn remove(
    interface: &str,
    runtime_dir: &Path,
    state: Option<&StateFile>,
) -> Result<usize, WgError> {
    let forwarded = forwarder::stop(runtime_dir, interface)
        .map_err(|error| WgError::io(format!("stop the forwarder of {interface}"), error))?;
    Ok(forwarded + nftables::remove(interface, state)?)
}
