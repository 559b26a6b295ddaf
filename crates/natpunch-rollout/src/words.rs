//! What goes into the machine and comes out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{Consent, PeerKey, Time};

use crate::caps::Refusal;
use crate::facts::Hash;
use crate::journal::Entry;
use crate::login::Login;

/// A question to peers by ICMP echo. A peer of both lists is asked for a full packet only if it
/// answers a small one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Names the answer.
    pub id: u64,
    /// Addresses to ask by a small packet, which passes everywhere.
    pub small: Vec<IpAddr>,
    /// Addresses to ask by a packet of `mtu` bytes.
    pub full: Vec<IpAddr>,
    /// The length of a full packet, in bytes.
    pub mtu: u32,
}

/// The addresses that answered an [`Ask`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    /// A small packet.
    pub small: BTreeSet<IpAddr>,
    /// A full one.
    pub full: BTreeSet<IpAddr>,
}

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// What changes may do beyond what the mesh file allows.
    pub allow: Vec<Consent>,
    /// How long a person has to confirm each change; `None`: no person has to, the peers' signs of
    /// life do.
    pub confirm: Option<Duration>,
    /// The name of this boot. Two boots never have the same.
    pub boot: String,
}

/// What is true at the moment when a version comes.
#[derive(Debug, Clone, Default)]
pub struct Moment {
    /// The peers, by name, that are connected.
    pub alive: BTreeSet<String>,
    /// The logins from other hosts.
    pub logins: Vec<Login>,
}

/// What the shell has to do. In this order, each before the next.
#[derive(Debug)]
pub enum Output<V> {
    /// Ask peers whether they answer, and hand in
    /// [`Rollout::handle_answers`](crate::Rollout::handle_answers).
    Ask(Ask),
    /// Write the journal, and hand in [`Rollout::handle_written`](crate::Rollout::handle_written).
    Write {
        /// Names the answer.
        id: u64,
        /// What to write.
        entry: Entry<V>,
    },
    /// Bring the device to a version, after what was to be written before, and hand in
    /// [`Rollout::handle_applied`](crate::Rollout::handle_applied).
    Apply {
        /// Names the answer.
        id: u64,
        /// The version.
        version: Arc<V>,
        /// On the way back: where peers that have to be added anew were.
        endpoints: BTreeMap<PeerKey, SocketAddr>,
    },
    /// The device has this version: the rest of the node follows.
    Follow(Arc<V>),
    /// Read the mesh file again, and hand in
    /// [`Rollout::handle_version`](crate::Rollout::handle_version).
    Reload,
    /// Tell people.
    Tell(Notice),
}

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A change was made.
    Changed,
    /// A change waits for these peers or for a person, for this long.
    Waiting {
        /// Whether a person has to confirm it.
        by_person: bool,
        /// The peers.
        peers: Vec<String>,
        /// How long.
        left: Duration,
    },
    /// This version is known to work.
    Good {
        /// The version.
        version: Hash,
        /// Whether it was watched until now.
        was_watched: bool,
        /// Peers that did not come back and are not needed.
        missing: Vec<String>,
    },
    /// A change is undone.
    Undone {
        /// The version.
        version: Hash,
        /// Why.
        reason: String,
    },
    /// The device has the version before again.
    Back,
    /// The way back failed, and is tried again.
    CantGoBack(String),
    /// A change was not begun, since the journal can't be written.
    NotBegun(String),
    /// A version that came while another was under way is not begun.
    Refused(Refused),
    /// The journal can't be written, and why; told when the reason is another.
    JournalFails(String),
    /// It can be written again.
    JournalWorks,
}

/// Why a version is not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It was tried and undone.
    #[error(
        "this version was rolled back, and is not tried again until the mesh file changes: {0}"
    )]
    Held(String),
    /// It changes what a running mesh can't change.
    #[error(
        "{0} can't change while the mesh is up; help: run `natpunch down`, then `natpunch apply` \
         again"
    )]
    Fixed(&'static str),
    /// It needs a person's consent.
    #[error("the change is refused: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Caps(Vec<Refusal>),
}

/// Why a person can't confirm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfirmError {
    /// The change is not made yet.
    #[error("a change is being applied; help: confirm it afterwards")]
    Busy,
    /// There is none.
    #[error("no change waits for a confirmation")]
    Nothing,
    /// The connection is older than the change.
    #[error("this connection is from before the change; help: confirm over a new one")]
    OldConnection,
}

/// Where the machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The version that runs is known to work.
    Steady,
    /// The peers that a change touches are asked whether they answer now.
    Asking,
    /// The journal gets the change.
    Noting,
    /// The device gets the change.
    Applying,
    /// The change is made; signs of life or a person's word are awaited.
    Watching,
    /// The device gets the version before.
    GoingBack,
}

/// A change that is not yet known to work.
#[derive(Debug, Clone)]
pub struct Open {
    /// Its version.
    pub version: Hash,
    /// When it will be undone.
    pub deadline: Time,
    /// Whether a person has to confirm it.
    pub by_person: bool,
    /// The names of the peers whose sign of life is awaited.
    pub waiting_for: Vec<String>,
}
