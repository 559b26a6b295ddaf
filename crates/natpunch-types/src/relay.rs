//! What a pair of peers wants of a relay, and what a server can tell of the NAT before it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a pair wants of a relay at this moment.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum RelayUse {
    /// Nothing: it is forbidden, or the peer can't use one.
    #[default]
    Off,
    /// Be ready, but let only probes through: both sides use a direct path, and a packet of
    /// WireGuard's that still came by the relay would make the receiver roam back to it.
    Standby,
    /// Carry WireGuard's packets.
    Carry,
}

/// Whether a peer may be reached through relays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelayPolicy {
    /// Through a relay until a direct path is proven, and again when it is lost.
    #[default]
    Auto,
    /// Through a relay only: the peer is never sent anything by another way.
    Only,
    /// Never through a relay.
    Never,
}

/// How a NAT chooses the outside port (RFC 4787, 4.1), as far as one server with two ports can
/// tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mapping {
    /// The same for every destination: peers can find this node at it.
    EndpointIndependent,
    /// Another for each destination ("symmetric"), be it for the address or for the port.
    EndpointDependent,
}

impl fmt::Display for RelayUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Standby => "standby",
            Self::Carry => "carry",
        })
    }
}

impl fmt::Display for RelayPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Only => "only",
            Self::Never => "never",
        })
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::EndpointDependent => "endpoint-dependent",
        })
    }
}
