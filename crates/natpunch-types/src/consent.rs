//! The words by which a person allows a change that is refused without them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A consent to a change that is refused without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consent {
    /// Removing more than 30 % of the peers.
    MassRemoval,
    /// Removing a critical peer, or the last way to find it.
    CriticalRemoval,
    /// Removing the peer through which somebody is logged in on this host, or the address of it
    /// that the login comes from.
    OperatorRemoval,
    /// Adding a default route, or half of one.
    DefaultRoute,
    /// Removing every peer.
    EmptyMesh,
}

impl Consent {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::MassRemoval,
        Self::CriticalRemoval,
        Self::OperatorRemoval,
        Self::DefaultRoute,
        Self::EmptyMesh,
    ];

    /// The word for it in the file and on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::MassRemoval => "mass-removal",
            Self::CriticalRemoval => "critical-removal",
            Self::OperatorRemoval => "operator-removal",
            Self::DefaultRoute => "default-route",
            Self::EmptyMesh => "empty-mesh",
        }
    }
}

impl fmt::Display for Consent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Consent {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut all = Self::ALL.into_iter();
        all.find(|consent| consent.word() == text).ok_or(())
    }
}
