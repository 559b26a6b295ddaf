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

/// Which discovery instance (the NAME of `[discovery.NAME]`), or which part of natpunch itself,
/// offered a datum. Stamped by the plugin host: a plugin cannot name its own origin.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(Arc<str>);

impl Origin {
    /// The origin with this name.
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name as written in the mesh file.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
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
    /// Who says so.
    pub origin: Origin,
    /// For how long it may be believed, counted from when it was received.
    pub lifetime: Duration,
}
