//! The discovery plugin API.
//!
//! A discovery plugin finds candidates of peers and may carry this node's sealed records to them.
//! It is one task: [`Discovery::run`] gets a [`Host`] and works until it sees [`Input::Shutdown`]
//! or returns an error, upon which the host starts it again with back-off. Everything a plugin
//! offers is a hint: the host stamps the origin, drops impossible addresses and bounds rate and
//! count, and an authenticated probe decides.
//!
//! A plugin never sees the mesh, the core or the WireGuard device. What it can touch is what
//! [`Host`] offers, and its own sockets.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

mod endpoint;
mod links;
mod schedule;
pub mod testing;

pub use endpoint::{Endpoint, EndpointError};
pub use links::{FAMILIES, Happened, Link, Links, State};
pub use natpunch_types::{
    CandidateKind, Mapping, PairTag, PeerKey, RecordTag, RelayUse, SecretKey,
};
pub use schedule::Schedule;

/// A boxed future, as the object-safe methods of this API return them.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a plugin is and needs, stated before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// The value of `plugin = "…"` in the mesh file.
    pub id: &'static str,
    /// It authenticates with the WireGuard private key (only the ancestors' protocols do).
    pub needs_private_key: bool,
    /// It sends and receives datagrams on WireGuard's own port.
    pub needs_wireguard_port: bool,
    /// It carries sealed records ([`Input::Records`]).
    pub carries_records: bool,
}

/// A discovery plugin: one instance of `[discovery.NAME]`.
pub trait Discovery: Send + 'static {
    /// What it is and needs.
    fn descriptor(&self) -> Descriptor;

    /// Works until [`Input::Shutdown`]. An error is reported and the plugin is run again, after a
    /// back-off.
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>>;
}

/// What the host offers to a plugin. Cheap to clone by its `Arc`; every call returns at once except
/// [`Host::next`].
pub trait Host: Send + Sync + 'static {
    /// This node's public key.
    fn own_key(&self) -> PeerKey;

    /// This node's private key, if the descriptor asks for it.
    fn private_key(&self) -> Option<SecretKey>;

    /// WireGuard's listen port.
    fn listen_port(&self) -> u16;

    /// The time since the machine was booted, sleep included. What has to be said to a server again
    /// counts by it.
    fn now(&self) -> Duration;

    /// Waits for the next input. Inputs of one kind that were not fetched yet are merged, so a slow
    /// plugin sees the newest state, not a backlog.
    fn next<'a>(&'a self) -> BoxFuture<'a, Input>;

    /// Offers an address of a peer. Impossible ones are dropped by the host.
    fn observe(&self, observation: Observation);

    /// States an address at which a server sees this node's own WireGuard port, good for
    /// `lifetime`. The host publishes it to the peers as a hint; a newer one of the same family
    /// replaces it.
    fn observed_self(&self, address: SocketAddr, lifetime: Duration);

    /// Hands over a sealed record that was found. The host opens it, or drops it.
    fn deliver(&self, record: SealedRecord);

    /// Sends a datagram from WireGuard's own port, and lets datagrams of that address reach this
    /// plugin as [`Input::Datagram`] for the next minute, those for other instances with the same
    /// server among them. Dropped without the descriptor's `needs_wireguard_port`.
    fn send_from_wireguard_port(&self, destination: SocketAddr, payload: Vec<u8>);

    /// Says that this node should probe the peer after this time, when the peer probes it too.
    /// Dropped without the descriptor's `needs_wireguard_port`; the core bounds the rate.
    fn fire(&self, peer: PeerKey, after: Duration);

    /// Says that the peer wants to be probed now. Dropped without the descriptor's
    /// `needs_wireguard_port`; the core bounds the rate.
    fn wanted(&self, peer: PeerKey);

    /// States how this node's NAT maps WireGuard's port, as servers see it. Dropped without the
    /// descriptor's `needs_wireguard_port`.
    fn mapping(&self, mapping: Mapping);

    /// Fills a buffer with secure random bytes.
    fn random(&self, buffer: &mut [u8]);

    /// States the health of this plugin, shown by `status`. What is the same as before is no news:
    /// say it as often as you like.
    fn report(&self, health: Health);
}

/// What the host tells a plugin.
#[derive(Debug, Clone)]
pub enum Input {
    /// The peers of interest, complete. Sent first, and whenever it changes.
    Peers(Arc<[PeerInterest]>),
    /// Records to make available to peers, complete. Sent whenever one changes.
    Records(Arc<[SealedRecord]>),
    /// A datagram that arrived on WireGuard's own port from an address that this plugin has sent
    /// to.
    Datagram {
        /// Where it came from.
        source: SocketAddr,
        /// Its payload.
        payload: Vec<u8>,
    },
    /// The network changed (link, address, route) or the machine slept for more than 5 s: addresses
    /// may be new, registrations stale. What waits by tokio's timers has stood still in sleep; by
    /// [`Host::now`] it may be due.
    NetworkChanged,
    /// A round of probing this peer begins: make both sides fire at the same moment, if the server
    /// can ([`Host::fire`]).
    Meet(PeerKey),
    /// Stop, soon.
    Shutdown,
}

/// A peer, as a plugin sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInterest {
    /// Its public key.
    pub key: PeerKey,
    /// True while the peer has no proven path: look it up eagerly.
    pub wanted: bool,
    /// The `endpoint` of the mesh file, `HOST:PORT`, if any.
    pub endpoint: Option<String>,
    /// The tag under which the peer leaves records for this node.
    pub inbound_tag: RecordTag,
    /// The tag under which this node leaves records for the peer.
    pub outbound_tag: RecordTag,
    /// Names the pair, the same on both sides; zeros for a peer without a key in common with this
    /// node.
    pub pair_tag: PairTag,
    /// What the pair wants of a relay.
    pub relay: RelayUse,
}

/// A record sealed end to end by the host for one peer. Opaque to plugins and servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRecord {
    /// The mailbox.
    pub tag: RecordTag,
    /// The ciphertext, at most [`SealedRecord::MAX`] bytes.
    pub blob: Arc<[u8]>,
}

impl SealedRecord {
    /// The longest blob, in bytes.
    pub const MAX: usize = 2048;
}

/// An address at which a peer was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The peer.
    pub peer: PeerKey,
    /// Where it may answer.
    pub address: SocketAddr,
    /// How that was found.
    pub kind: CandidateKind,
    /// How long it may be believed.
    pub lifetime: Duration,
}

/// How a plugin is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Works; what it did last.
    Good(String),
    /// Does not; what is wrong and what would help.
    Bad(String),
}

/// Why a plugin instance can't be made or stopped working.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PluginError {
    /// A setting of its section is wrong.
    #[error("{key}: {problem}")]
    Setting {
        /// The key inside `[discovery.NAME]`.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// It failed while running.
    #[error("{0}")]
    Failed(String),
}
