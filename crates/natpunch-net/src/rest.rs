//! What WireGuard sends to peers that have no path yet: a packet socket on the loopback interface,
//! behind a packet filter.
//!
//! The packets end nowhere else: no program has the port, and the kernel's "port unreachable" does
//! not concern WireGuard. A packet socket has them also where the host's firewall lets nothing in
//! from its own loopback interface. One socket hears all resting endpoints, which are too many to
//! bind each of them.

use std::net::SocketAddr;

use natpunch_types::{RESTING_NETWORK, RESTING_PORT, is_initiation, is_resting};

use crate::NetError;
use crate::ear::PacketEar;
use crate::filter::rested;
use crate::packet::parse_ipv4;

/// A handshake initiation that WireGuard sent to a resting endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rested {
    /// The resting endpoint.
    pub endpoint: SocketAddr,
    /// WireGuard's message, as it would have gone to the peer.
    pub initiation: Vec<u8>,
}

/// Hears the handshake initiations that a WireGuard device sends to resting endpoints.
#[derive(Debug)]
pub struct RestingPeers {
    ear: PacketEar,
    /// WireGuard's port.
    port: u16,
}

impl RestingPeers {
    /// Listens to the WireGuard device at this port. What it has sent before is not heard. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// This host has no loopback interface, or natpunch may not open the socket.
    pub fn open(port: u16) -> Result<Self, NetError> {
        let filter = rested(port, RESTING_NETWORK, RESTING_PORT);
        let words = (
            "listen to peers without a path on the loopback interface",
            "hear peers without a path",
        );
        let ear = PacketEar::open(&filter, libc::ETH_P_IP, Some("lo"), words)?;
        Ok(Self { ear, port })
    }

    /// The next initiation. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn recv(&self) -> Result<Rested, NetError> {
        self.ear.recv(|packet| self.parse(packet)).await
    }

    /// Judges a packet as the filter does.
    fn parse(&self, packet: &[u8]) -> Option<Rested> {
        let packet = parse_ipv4(packet)?;
        let endpoint = SocketAddr::new(packet.destination.into(), packet.udp.destination);
        let initiation = packet.udp.payload;
        let is_wireguards = packet.udp.source == self.port && packet.source.is_loopback();
        (is_wireguards && is_resting(endpoint) && is_initiation(initiation)).then(|| Rested {
            endpoint,
            initiation: initiation.to_vec(),
        })
    }
}
