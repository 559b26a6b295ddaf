//! Pins by nftables: headers are rewritten without any state, at full speed, for every WireGuard.
//!
//! All pins of an interface are in one table of its own, `natpunch_INTERFACE`, which a change
//! replaces whole in one transaction: packets meet either the old or the new one, and both
//! directions of a pin come and go together. No other table is touched. What is in force is read
//! back, also at the next start; `down` removes the table.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;

use natpunch_os::failpoint;

use super::nft::Nft;
use super::table::{self, Found, table_name};
use super::{PinError, PinSet, Pinner};
use crate::error::WgError;
use crate::spec::InterfaceSpec;
use crate::state_file::{self, StateFile};

/// The table of one interface.
#[derive(Debug)]
pub(super) struct PinTable {
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
    pub(super) fn find(spec: &InterfaceSpec) -> Self {
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

    /// Takes WireGuard's new port.
    pub(super) fn set_listen_port(&mut self, listen_port: u16) -> Result<(), PinError> {
        if listen_port == self.listen_port {
            return Ok(());
        }
        self.listen_port = listen_port;
        if self.pins.is_empty() {
            return Ok(());
        }
        self.write()
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

impl Pinner for PinTable {
    fn pins(&self) -> &PinSet {
        &self.pins
    }

    fn set(&mut self, pins: &PinSet) -> Result<(), PinError> {
        if *pins == self.pins && self.written.is_some() {
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
        self.pins.clone_from(pins);
        self.write()?;
        if self.pins.is_empty() {
            self.record(false)?;
        }
        Ok(())
    }

    fn heal(&mut self) -> Result<bool, PinError> {
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
}

/// Whether this host can make pins by nftables: everything that one needs is tried, and nothing is
/// changed.
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
pub(super) fn remove(interface: &str, state: Option<&StateFile>) -> Result<usize, WgError> {
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
