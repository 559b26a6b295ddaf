//! What the journal holds: the version that works, and the change that is under way or was undone.
//! Written before the first change of the kernel and after the last, it is all that the next agent
//! knows. The form on the disk is serde's of these types; an older agent's files are read too.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{PeerKey, Time};
use serde::{Deserialize, Serialize};

use crate::facts::Hash;

/// A peer that a change touches and that was alive before it, so that it has to be alive
/// afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Its name.
    pub name: String,
    /// Its key in the new version. `None` in journals of versions of natpunch that watched removed
    /// peers, too: such a peer does not count.
    pub key: Option<PeerKey>,
    /// Its addresses in the new version.
    pub addresses: Vec<IpAddr>,
    /// Whether the change is undone if this peer alone is missing.
    pub must: bool,
    /// Whether it answered an ICMP echo before the change; then it must do so after it.
    pub echo: bool,
    /// Whether it answered one as large as the MTU.
    pub full: bool,
    /// Whether only a new handshake shows that it is alive, since a key changed.
    pub handshake: bool,
}

/// Where a change is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Change {
    /// Begun, not yet known to work.
    Open {
        /// The version that is tried.
        to: Hash,
        /// The boot that the times count from.
        boot: String,
        /// Until when it may be tried, in milliseconds since boot.
        deadline_ms: u64,
        /// From when on signs of life count, in milliseconds since boot.
        #[serde(default)]
        settled_ms: u64,
        /// Whether a person has to confirm it.
        by_person: bool,
        /// What has to be alive.
        watched: Vec<Watch>,
        /// Where the peers of the version before were.
        endpoints: BTreeMap<PeerKey, SocketAddr>,
    },
    /// Undone. It is not tried again.
    Held {
        /// The version that was tried.
        to: Hash,
        /// Why it was undone.
        reason: String,
    },
}

impl Change {
    /// The version that is or was tried.
    pub fn to(&self) -> Hash {
        match self {
            Self::Open { to, .. } | Self::Held { to, .. } => *to,
        }
    }

    /// Whether it waits for a sign that it works.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Self::Open { watched, by_person, .. } if *by_person || !watched.is_empty())
    }
}

/// An entry to write.
#[derive(Debug)]
pub struct Entry<V> {
    /// The version that works.
    pub good: Arc<V>,
    /// The change that is under way, or was undone.
    pub change: Option<Change>,
}

impl<V> Clone for Entry<V> {
    fn clone(&self) -> Self {
        Self {
            good: Arc::clone(&self.good),
            change: self.change.clone(),
        }
    }
}

/// An entry as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The hash of the version that works.
    pub good: Hash,
    /// The change that was under way, or undone.
    pub change: Option<Change>,
}

pub(crate) fn millis(time: Time) -> u64 {
    u64::try_from(time.since_origin().as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn time(millis: u64) -> Time {
    Time::from_origin(Duration::from_millis(millis))
}
