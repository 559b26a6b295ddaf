//! What a WireGuard device says of its peers: the truth that the core reads and never argues with.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::{PeerKey, is_resting};

/// One peer, as the device has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePeer {
    /// Its public key.
    pub key: PeerKey,
    /// Where WireGuard sends to, canonical. WireGuard may have roamed there by itself.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake ended, as the device's clock has it (since the Unix epoch). The wall
    /// clock may step, so ages are counted from when a change of this value was seen; only at first
    /// sight [`DeviceSnapshot::read_at`] tells an old session from a running one.
    pub last_handshake: Option<Duration>,
    /// Bytes received from the peer, authenticated.
    pub rx_bytes: u64,
    /// Bytes sent to the peer.
    pub tx_bytes: u64,
    /// Interval of WireGuard's persistent keepalive; `None` is off.
    pub persistent_keepalive: Option<Duration>,
    /// Networks that the peer may use, sorted.
    pub allowed_ips: Vec<IpNet>,
    /// Whether a preshared key is set.
    pub has_preshared_key: bool,
}

impl DevicePeer {
    /// A peer of which the device knows the key alone.
    pub const fn new(key: PeerKey) -> Self {
        Self {
            key,
            endpoint: None,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            persistent_keepalive: None,
            allowed_ips: Vec::new(),
            has_preshared_key: false,
        }
    }
}

/// A device at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceSnapshot {
    /// The wall clock (since the Unix epoch) when it was read, if it was asked.
    pub read_at: Option<Duration>,
    /// The UDP port that it listens on.
    pub listen_port: u16,
    /// Its firewall mark; 0 is none.
    pub fwmark: u32,
    /// Its public key, if it has a private one.
    pub public_key: Option<PeerKey>,
    /// Its peers, sorted by key, each once.
    pub peers: Vec<DevicePeer>,
}

impl DeviceSnapshot {
    /// The same with no endpoint for peers that are at their resting endpoint.
    #[must_use]
    pub fn without_resting(mut self) -> Self {
        for peer in &mut self.peers {
            peer.endpoint.take_if(|endpoint| is_resting(*endpoint));
        }
        self
    }

    /// The peer with this key.
    pub fn peer(&self, key: &PeerKey) -> Option<&DevicePeer> {
        self.peers.iter().find(|peer| peer.key == *key)
    }
}
