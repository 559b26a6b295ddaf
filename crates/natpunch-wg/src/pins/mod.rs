//! Pins: source ports beside WireGuard's that are joined to it, by nftables.
//!
//! A NAT that maps by destination gives every source port of this host a mapping of its own, and
//! the one that the peer can reach may belong to another port than WireGuard's. A *pin* gives
//! WireGuard's packets to one remote address that source port, and takes the answers to it back to
//! WireGuard's, by rewriting headers without any state. So WireGuard keeps its one port, in the
//! kernel as in the embedded device, and a pin outlives the agent.
//!
//! All pins of an interface are in one table of its own, `natpunch_INTERFACE`, which a change
//! replaces whole in one transaction: packets meet either the old or the new one, and both
//! directions of a pin come and go together. No other table is touched. What is in force is read
//! back, also at the next start; `down` removes the table.

mod nft;
mod table;
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use natpunch_os::failpoint;

use crate::error::WgError;
use crate::spec::InterfaceSpec;
use crate::state_file::{self, StateFile};
use nft::Nft;
use table::{Found, table_name};
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
    /// What is ours could not be written down.
    #[error(transparent)]
    Record(#[from] WgError),
}

/// The table of one interface.
#[derive(Debug)]
pub(crate) struct PinTable {
    nft: Nft,
    interface: String,
    runtime_dir: PathBuf,
    listen_port: u16,
    pins: PinSet,
    /// The table as the kernel showed it after the last change; `None`: it is yet to be written,
    /// or there is none because there is no pin.
    written: Option<Found>,
}

impl PinTable {
    /// The table of an interface, with the pins that are in force: those of an agent that was
    /// killed are taken over.
    pub(crate) fn find(spec: &InterfaceSpec) -> Self {
        let mut table = Self {
            nft: Nft::default(),
            interface: spec.name.clone(),
            runtime_dir: spec.runtime_dir.clone(),
            listen_port: spec.listen_port,
            pins: PinSet::new(),
            written: None,
        };
        // A host where no pin was ever made need not have the program. Without a file the table is
        // looked for all the same.
        let was_made = state_file::read(&spec.runtime_dir, &spec.name).is_none_or(|file| file.pins);
        if was_made {
            match table.nft.list(&table_name(&spec.name)) {
                Ok(found) => {
                    table.pins = found.map(|found| found.pins().clone()).unwrap_or_default()
                }
                Err(PinError::NoProgram | PinError::NoKernelSupport(_)) => {}
                Err(error) => {
                    tracing::warn!(%error, "can't read the pins that an earlier run has left");
                }
            }
        }
        table
    }

    /// The pins that shall be in force.
    pub(crate) fn pins(&self) -> &PinSet {
        &self.pins
    }

    /// Brings exactly these pins in force. After an error those of before may be.
    pub(crate) fn set(&mut self, pins: &PinSet) -> Result<(), PinError> {
        // nftables' addresses have no scope.
        let pins: PinSet = pins
            .iter()
            .map(|(remote, port)| (SocketAddr::new(remote.ip(), remote.port()), *port))
            .collect();
        if pins == self.pins && self.written.is_some() {
            return Ok(());
        }
        // Here, too, what is ours is written down before it is made, until after it is gone.
        if !pins.is_empty() {
            self.record(true)?;
            failpoint("pins: claimed");
        } else if !self.is_recorded() {
            self.pins.clear();
            return Ok(());
        }
        self.pins = pins;
        self.write()?;
        if self.pins.is_empty() {
            self.record(false)?;
        }
        Ok(())
    }

    /// Takes WireGuard's new port.
    pub(crate) fn set_listen_port(&mut self, listen_port: u16) -> Result<(), PinError> {
        if listen_port == self.listen_port {
            return Ok(());
        }
        self.listen_port = listen_port;
        if self.pins.is_empty() {
            return Ok(());
        }
        self.write()
    }

    /// Writes the table anew if somebody changed it; true if that was necessary.
    pub(crate) fn heal(&mut self) -> Result<bool, PinError> {
        if self.pins.is_empty() {
            return Ok(false);
        }
        let found = self.nft.list(&self.name())?;
        if found.is_some() && found == self.written {
            return Ok(false);
        }
        self.write()?;
        Ok(true)
    }

    fn name(&self) -> String {
        table_name(&self.interface)
    }

    fn write(&mut self) -> Result<(), PinError> {
        let name = self.name();
        self.written = None;
        if self.pins.is_empty() {
            return self.nft.load(&name, &table::removal(&name));
        }
        let text = table::definition(&name, self.listen_port, &self.pins);
        self.nft.load(&name, &text)?;
        failpoint("pins: loaded");
        let found = self.nft.list(&name)?;
        if found.as_ref().map(Found::pins) != Some(&self.pins) {
            return Err(PinError::ReadBack(name));
        }
        self.written = found;
        Ok(())
    }

    /// Whether a table may be there: without a file one may.
    fn is_recorded(&self) -> bool {
        state_file::read(&self.runtime_dir, &self.interface).is_none_or(|file| file.pins)
    }

    fn record(&self, pins: bool) -> Result<(), WgError> {
        match state_file::read(&self.runtime_dir, &self.interface) {
            Some(file) if file.pins != pins => state_file::write(
                &self.runtime_dir,
                &self.interface,
                &StateFile { pins, ..file },
            ),
            _ => Ok(()),
        }
    }
}

/// Whether this host can make pins: everything that one needs is tried, and nothing is changed.
///
/// # Errors
/// It can't, and why.
pub fn can_pin() -> Result<(), PinError> {
    let name = "natpunch_check";
    // An address for documentation of each family (RFC 5737, RFC 3849).
    let pins = [
        SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 1)),
        SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 1)),
    ]
    .map(|remote| (remote, NonZeroU16::MAX))
    .into();
    Nft::default().check(name, &table::definition(name, 1, &pins))
}

/// Removes the table of an interface, and gives how many pins it held.
pub(crate) fn remove(interface: &str, state: Option<&StateFile>) -> Result<usize, WgError> {
    if state.is_some_and(|file| !file.pins) {
        return Ok(0);
    }
    let (nft, name) = (Nft::default(), table_name(interface));
    let removed = nft.list(&name).and_then(|found| {
        let Some(found) = found else { return Ok(0) };
        nft.load(&name, &table::removal(&name))?;
        Ok(found.pins().len())
    });
    match removed {
        // Nothing says that there is one, and where it can't be looked for there is none.
        Err(_) if state.is_none() => Ok(0),
        removed => removed.map_err(|error| WgError::PinsLeft {
            name: interface.to_owned(),
            table: name,
            reason: error.to_string(),
        }),
    }
}
