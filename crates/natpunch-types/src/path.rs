//! What a path between two nodes is, apart from what is known of it.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The socket or transport that packets leave from.
///
/// A NAT maps each local socket apart, so two paths to one remote address may have nothing in
/// common but that address. Another source port, a forwarder on this host or a stream to a relay is
/// a variant of its own; whoever matches on this type then has to say how packets leave by it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum LocalSocket {
    /// The UDP port that WireGuard listens on.
    #[default]
    WireguardPort,
}

/// One path to a peer: where its packets leave this host, and where they are sent.
///
/// A proof, a round trip and a choice hold for a path and not for the remote address alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathId {
    /// The socket or transport on this host.
    pub local: LocalSocket,
    /// Where the other end is seen, in [canonical](crate::canonical) form: the peer itself, its
    /// NAT, or a relay's port.
    pub remote: SocketAddr,
}

impl PathId {
    /// The path from WireGuard's own port to `remote`.
    pub const fn wireguard(remote: SocketAddr) -> Self {
        Self {
            local: LocalSocket::WireguardPort,
            remote,
        }
    }

    /// The path from the same socket to another address.
    #[must_use]
    pub const fn with_remote(self, remote: SocketAddr) -> Self {
        Self {
            local: self.local,
            remote,
        }
    }

    /// The endpoint that WireGuard is given, so that its packets take this path.
    pub const fn endpoint(self) -> SocketAddr {
        match self.local {
            LocalSocket::WireguardPort => self.remote,
        }
    }
}

impl fmt::Display for PathId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.local {
            // The usual one is not named: a log line then reads as an address.
            LocalSocket::WireguardPort => self.remote.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_from_wireguards_port_is_written_as_its_remote_address() {
        let remote: SocketAddr = "[2001:db8::1]:7".parse().unwrap();
        let path = PathId::wireguard(remote);
        assert_eq!(
            (path.to_string(), path.endpoint()),
            (remote.to_string(), remote)
        );
    }
}
