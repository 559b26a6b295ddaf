//! Pins of the embedded device: its process has a socket on each pinned port.

use std::io;
use std::path::Path;

use super::holding::{Holder, Holding};
use super::{PinError, PinSet, Pinner};
use crate::state_file::control_socket;

/// The pins that a device process holds.
#[derive(Debug)]
pub(super) struct DevicePins {
    holder: Holder,
    pins: PinSet,
}

impl DevicePins {
    /// Those of an interface, as they are held now; none where there is no device process.
    pub(super) fn find(runtime_dir: &Path, interface: &str) -> Self {
        let holder = Holder::at(&control_socket(runtime_dir, interface));
        let pins = holder.holding().map(|held| held.set()).unwrap_or_default();
        Self { holder, pins }
    }

    /// Whether an interface has a device process, of a version that can hold pins.
    pub(super) fn are_possible(runtime_dir: &Path, interface: &str) -> bool {
        let holder = Holder::at(&control_socket(runtime_dir, interface));
        holder.holding().is_ok()
    }

    fn error(source: io::Error) -> PinError {
        PinError::Process {
            what: "the WireGuard device",
            source,
        }
    }
}

impl Pinner for DevicePins {
    fn pins(&self) -> &PinSet {
        &self.pins
    }

    fn set(&mut self, pins: &PinSet) -> Result<(), PinError> {
        if *pins == self.pins {
            return Ok(());
        }
        // Its own port is known to the device.
        let held = self.holder.hold(&Holding::of(0, pins));
        self.pins = held.map_err(Self::error)?.set();
        Ok(())
    }

    fn heal(&mut self) -> Result<bool, PinError> {
        if self.holder.holding().map_err(Self::error)?.set() == self.pins {
            return Ok(false);
        }
        let held = self.holder.hold(&Holding::of(0, &self.pins));
        self.pins = held.map_err(Self::error)?.set();
        Ok(true)
    }
}
