//! What agent and forwarder say to each other: one line of JSON each, on a Unix socket that only
//! their user can reach.

use std::net::SocketAddr;

use natpunch_types::Upstream;
use serde::{Deserialize, Serialize};

/// The version of what is said here. A forwarder of another version is replaced.
pub(crate) const VERSION: u32 = 1;
/// The longest line.
pub(crate) const LONGEST: usize = 16 << 10;

/// What the agent asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Which version it speaks.
    Hello,
    /// Carry the datagrams of a port, or go on.
    Open(Wanted),
    /// End.
    Stop,
}

/// Which port of which server is needed, for which WireGuard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Wanted {
    /// The server.
    pub upstream: Upstream,
    /// WireGuard's port on this host.
    pub wireguard_port: u16,
    /// The mark of packets that must not pass through the mesh, or 0.
    pub fwmark: u32,
    /// The server's port: 0 for its own, else one of its relay's.
    pub port: u16,
}

/// What the forwarder answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// The version, and the process.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// Where the port is on this host.
    Opened(Opened),
    /// It ends.
    Stopped,
    /// It can't.
    Refused(String),
}

/// A port of the server, as it is on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Send to it from WireGuard's port, by IPv4.
    pub address: SocketAddr,
    /// Whether there is a stream to the server now.
    pub is_connected: bool,
    /// Why there is none, after an attempt that failed.
    pub problem: Option<String>,
}
