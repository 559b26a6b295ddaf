//! What the shell says of pins: source ports beside WireGuard's that are joined to it.

use crate::{PathId, PeerKey};

/// News of the pins of this host.
///
/// A *pin* gives WireGuard's packets to one remote address another source port than WireGuard's,
/// and takes the answers to that port back to WireGuard's, by rewriting headers in the host. A path
/// from [`LocalSocket::SourcePort`](crate::LocalSocket::SourcePort) is of use to WireGuard only
/// with its pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pins {
    /// This host can make pins.
    Available,
    /// This host can't, so no other port than WireGuard's is of any use.
    Unavailable {
        /// Why, for `status`.
        reason: String,
    },
    /// A pin is in force that an earlier run of the agent has made. To be told before the first
    /// snapshot of the device, which shows the endpoint and not the pin.
    Found {
        /// The peer that is reached by it.
        peer: PeerKey,
        /// Its path.
        path: PathId,
    },
    /// A pin is gone and could not be made again.
    Lost {
        /// The peer that was reached by it.
        peer: PeerKey,
        /// Its path.
        path: PathId,
    },
}
