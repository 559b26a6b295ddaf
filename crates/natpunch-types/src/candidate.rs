//! Candidates: places where a peer may answer.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How an address came to be a candidate, in the words of ICE (RFC 8445, 4), best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CandidateKind {
    /// An address of one of the peer's own interfaces.
    Host,
    /// A port mapping that the peer's router granted (PCP, NAT-PMP, UPnP) or that the file states.
    Mapped,
    /// The source address of an authenticated packet from the peer.
    PeerReflexive,
    /// The address that a server outside the peer's NAT saw.
    Reflexive,
    /// A port of a relay.
    Relay,
}

impl fmt::Display for CandidateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Mapped => "mapped",
            Self::PeerReflexive => "peer-reflexive",
            Self::Reflexive => "reflexive",
            Self::Relay => "relay",
        })
    }
}

/// The NAME of `[discovery.NAME]`, or of the peer that serves: names one discovery instance.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceName(Arc<str>);

impl InstanceName {
    /// The instance of this name.
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name as written in the mesh file.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who offered a datum. A plugin can't name its own origin: the plugin host stamps it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A discovery instance.
    Discovery(InstanceName),
    /// The peer itself, by an authenticated packet.
    Peer,
    /// WireGuard on this node, which roams to where authentic packets come from.
    WireGuard,
    /// An earlier run of this node, or this one when it was in the network before.
    Remembered,
}

impl Origin {
    /// How the origins that are no discovery instance are written in `status`.
    const WORDS: [&str; 3] = ["peer", "wireguard", "remembered"];

    /// The discovery instance, if it is one.
    pub fn instance(&self) -> Option<&InstanceName> {
        match self {
            Self::Discovery(name) => Some(name),
            Self::Peer | Self::WireGuard | Self::Remembered => None,
        }
    }
}

impl From<InstanceName> for Origin {
    fn from(name: InstanceName) -> Self {
        Self::Discovery(name)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [peer, wireguard, remembered] = Self::WORDS;
        match self {
            // An instance may have any name. One that reads like another origin's word is written
            // with its section, which no name can be mistaken for: names have no dot.
            Self::Discovery(name) if Self::WORDS.contains(&name.as_str()) => {
                write!(f, "discovery.{name}")
            }
            Self::Discovery(name) => name.fmt(f),
            Self::Peer => f.write_str(peer),
            Self::WireGuard => f.write_str(wireguard),
            Self::Remembered => f.write_str(remembered),
        }
    }
}

/// A place where a peer may answer. A hint, never a fact: only an authenticated probe makes it a
/// path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Where, in [canonical](crate::canonical) form.
    pub address: SocketAddr,
    /// How it was found.
    pub kind: CandidateKind,
    /// For how long it may be believed, counted from when it was received.
    pub lifetime: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_named_like_another_origin_is_not_written_like_it() {
        let instance = |name| Origin::from(InstanceName::new(name));
        let origins = ["web", "peer", "wireguard", "remembered"].map(instance);
        let others = [Origin::Peer, Origin::WireGuard, Origin::Remembered];
        let origins = origins.into_iter().chain(others);
        let written: Vec<_> = origins.map(|origin| origin.to_string()).collect();
        let expected = [
            "web",
            "discovery.peer",
            "discovery.wireguard",
            "discovery.remembered",
            "peer",
            "wireguard",
            "remembered",
        ];
        assert_eq!(written, expected);
    }
}
