//! What a path between two nodes is, apart from what is known of it.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// The socket or transport that packets leave from.
///
/// A NAT maps each local socket apart, so two paths to one remote address may have nothing in
/// common but that address. A forwarder on this host or a stream to a relay is a variant of its
/// own; each `match` on this type then has to say how packets leave by it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum LocalSocket {
    /// The UDP port that WireGuard listens on.
    #[default]
    WireguardPort,
    /// Another source port of this host, one of [`SOURCE_PORTS`]. Probes leave from a socket of its
    /// own. WireGuard uses it by a *pin*: the host rewrites the port of WireGuard's packets on
    /// their way to the path's remote address and back.
    SourcePort(NonZeroU16),
}

/// The source ports beside WireGuard's that may be used: above the ephemeral range of common
/// systems (32768 to 60999), so that no other program gets one by chance.
pub const SOURCE_PORTS: RangeInclusive<u16> = 61_000..=65_535;
/// Most source ports beside WireGuard's that are open at one time.
pub const MAX_SOURCE_PORTS: usize = 256;

/// How far one datagram goes, and in how many pieces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Travel {
    /// With the system's time to live, and split where a link is too narrow for it.
    #[default]
    Usual,
    /// With this time to live (hop limit).
    Ttl(u8),
    /// Whole or not at all: with "don't fragment" in IPv4, and not split by this host in either
    /// family, whatever the kernel believes the path's MTU to be. One that is larger than the
    /// link's MTU is refused.
    Whole,
}

impl Travel {
    /// The time to live, if it is not the system's.
    pub const fn ttl(self) -> Option<u8> {
        match self {
            Self::Ttl(ttl) => Some(ttl),
            Self::Usual | Self::Whole => None,
        }
    }
}

/// A time to live, or the system's.
impl From<Option<u8>> for Travel {
    fn from(ttl: Option<u8>) -> Self {
        ttl.map_or(Self::Usual, Self::Ttl)
    }
}

/// One path to a peer: where its packets leave this host, and where they are sent.
///
/// A proof, a round trip and a choice hold for a path and not for the remote address alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

    /// The path from another source port than WireGuard's to `remote`.
    pub const fn from_port(port: NonZeroU16, remote: SocketAddr) -> Self {
        Self {
            local: LocalSocket::SourcePort(port),
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
            // A pin rewrites the port of this host, and nothing at the other end.
            LocalSocket::WireguardPort | LocalSocket::SourcePort(_) => self.remote,
        }
    }

    /// The source port that WireGuard's packets have to be given on this path, if it is not
    /// WireGuard's own.
    pub const fn pin(self) -> Option<NonZeroU16> {
        match self.local {
            LocalSocket::WireguardPort => None,
            LocalSocket::SourcePort(port) => Some(port),
        }
    }
}

impl fmt::Display for PathId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.local {
            // The usual one is not named: a log line then reads as an address.
            LocalSocket::WireguardPort => self.remote.fmt(f),
            LocalSocket::SourcePort(port) => write!(f, "{} from port {port}", self.remote),
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
        assert_eq!(path.pin(), None);
    }

    #[test]
    fn a_path_from_another_port_names_it_and_has_the_same_endpoint() {
        let remote: SocketAddr = "192.0.2.1:7".parse().unwrap();
        let port = NonZeroU16::new(61_234).unwrap();
        let path = PathId {
            local: LocalSocket::SourcePort(port),
            remote,
        };
        assert_eq!(path.to_string(), "192.0.2.1:7 from port 61234");
        assert_eq!((path.endpoint(), path.pin()), (remote, Some(port)));
        assert!(SOURCE_PORTS.contains(&port.get()));
    }
}
