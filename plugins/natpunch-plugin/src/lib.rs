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
//!
//! # A plugin, whole
//!
//! This one says of a single peer where it is. Its settings, their checks and their documentation
//! come from the first struct: `natpunch check`, `natpunch schema` and `docs/config.md` read them
//! there. The program gets to know it by a row in `src/plugins/registry.rs`.
//!
//! ```
//! use std::{net::SocketAddr, sync::Arc, time::Duration};
//!
//! use natpunch_plugin::*;
//!
//! /// `[discovery.NAME]` with `plugin = "beacon"`.
//! #[derive(Debug, Clone, PartialEq, serde::Deserialize, schemars::JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Beacon {
//!     /// The public key of the peer.
//!     #[schemars(with = "String")]
//!     peer: PeerKey,
//!     /// Where it is, `IP:PORT`.
//!     address: SocketAddr,
//! }
//!
//! impl Settings for Beacon {
//!     const PLUGIN: &'static str = "beacon";
//!     const ABOUT: &'static str = "one peer that never moves";
//!     const ABILITIES: Abilities = Abilities::NONE;
//!     type Instance = Self;
//!
//!     fn check(self) -> Result<Self, Vec<Flaw>> {
//!         match self.address.port() {
//!             0 => Err(vec![Flaw {
//!                 key: "address",
//!                 problem: "nothing listens on port 0".to_owned(),
//!                 expected: "expected IP:PORT",
//!                 help: "write the port that `natpunch status` shows there".to_owned(),
//!             }]),
//!             _ => Ok(self),
//!         }
//!     }
//! }
//!
//! impl Instance for Beacon {
//!     fn describe(&self) -> Description {
//!         Description { finds_peers: true, ..Description::default() }
//!     }
//! }
//!
//! impl Runs for Beacon {
//!     fn plugin(&self, _: &Secrets) -> Box<dyn Discovery> { Box::new(self.clone()) }
//! }
//!
//! impl Discovery for Beacon {
//!     fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
//!         Box::pin(async move {
//!             host.report(Health::Good("knows one address".to_owned()));
//!             loop {
//!                 match host.next().await {
//!                     Input::Ask(Ask::Peers(all)) if all.iter().any(|p| p.peer == self.peer) => {
//!                         let (address, kind) = (self.address, CandidateKind::Host);
//!                         let candidate = Candidate { address, kind, lifetime: Duration::MAX };
//!                         host.tell(News::Candidate { peer: self.peer, candidate });
//!                     }
//!                     Input::Shutdown => return Ok(()),
//!                     _ => {}
//!                 }
//!             }
//!         })
//!     }
//! }
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! # let address = "192.0.2.1:51820".parse().unwrap();
//! # let beacon = Beacon { peer: PeerKey::from_bytes([7; 32]), address }.check().unwrap();
//! # #[cfg(feature = "conformance")]
//! # let subject = conformance::Subject {
//! #     about: beacon.describe(),
//! #     plugin: &|| beacon.plugin(&Secrets::default()),
//! # };
//! # #[cfg(feature = "conformance")]
//! # let report = conformance::check(&subject).await;
//! # #[cfg(feature = "conformance")]
//! # assert!(report.is_good(), "{report}");
//! # }
//! ```
//!
//! It passes the conformance suite (the feature `conformance`), as every plugin has to.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod links;
mod lookup;
mod schedule;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use links::{FAMILIES, Happened, Link, Links, State};
pub use lookup::{LOOKUP_TIMEOUT, resolve};
pub use natpunch_plugin_description::{
    Description, Endpoint, EndpointError, Flaw, Instance, Secret, SecretFile, SecretForm, Secrets,
    Settings, Warning, check_seconds, check_server, check_server_key, check_stun, is_near,
};
pub use natpunch_types::{
    Abilities, Ask, Candidate, CandidateKind, Connect, HostNetwork, Interest, LinkRole, Mapping,
    News, OwnAddressKind, PEER_MESSAGE_MAX, PairTag, Password, PeerKey, RecordTag, RelayUse,
    SealedRecord, SecretKey, Time, Upstream,
};
pub use schedule::Schedule;

/// A boxed future, as the object-safe methods of this API return them.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An instance of which a running plugin can be made.
///
/// A plugin is one crate: its [`Settings`], the [`Instance`] that they are when they are right, and
/// this. One row in `src/plugins/registry.rs` makes it known to the program.
pub trait Runs: Instance {
    /// The plugin, with what this node's files hold of its secrets.
    fn plugin(&self, secrets: &Secrets) -> Box<dyn Discovery>;
}

/// A running discovery plugin.
pub trait Discovery: Send + 'static {
    /// Works until [`Input::Shutdown`]. An error is reported and the plugin is run again, after a
    /// back-off.
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>>;
}

/// What the host offers to a plugin. Cheap to clone by its `Arc`; every call returns at once except
/// [`Host::next`].
pub trait Host: Send + Sync + 'static {
    /// This node's public key.
    fn own_key(&self) -> PeerKey;

    /// This node's private key, if the [`Description`] asks for it.
    fn private_key(&self) -> Option<SecretKey>;

    /// WireGuard's listen port.
    fn listen_port(&self) -> u16;

    /// This host's addresses and routers, as they are now.
    fn network(&self) -> HostNetwork;

    /// The time since the machine was booted, sleep included. What has to be said to a server again
    /// counts by it.
    fn now(&self) -> Time;

    /// The silence that mappings of this node's NAT are known to outlive, if it was measured: how
    /// often a server has to hear from WireGuard's port so that it can go on to send there. Without
    /// it, 25 s are the rule.
    fn mapping_lifetime(&self) -> Option<Duration> {
        None
    }

    /// Waits for the next input. Inputs of one kind that were not fetched yet are merged, so a slow
    /// plugin sees the newest state, not a backlog.
    fn next<'a>(&'a self) -> BoxFuture<'a, Input>;

    /// Tells what was found out. What the description's abilities don't cover is dropped, as are
    /// impossible addresses; the core bounds the rest.
    fn tell(&self, news: News);

    /// Sends a datagram from WireGuard's own port, and lets datagrams of that address reach this
    /// plugin as [`Input::Datagram`] for the next minute (of natpunch's own protocol: for three),
    /// those for other instances with the same server among them. Dropped without the ability to use that port.
    fn send_from_wireguard_port(&self, destination: SocketAddr, payload: Vec<u8>);

    /// Sends a message, at most [`PEER_MESSAGE_MAX`] bytes, to the same plugin at a peer with
    /// [`Interest::is_direct`], sealed for that peer. It may be lost, and is if the peer has no such
    /// instance, or if more is sent than 8 a second (64 at once) to one peer or 64 (256 at once) to
    /// all. Dropped without the ability for it.
    fn send_to_peer(&self, peer: PeerKey, payload: Vec<u8>);

    /// A port of a server that takes datagrams in a stream of TLS (0: its own), as it is on this
    /// host: what is sent to that address from WireGuard's port comes out there. To be asked again
    /// at least every minute, as long as it is needed. The host adds the proxy on the way.
    fn open_stream<'a>(
        &'a self,
        server: &'a Upstream,
        port: u16,
    ) -> BoxFuture<'a, Result<StreamPort, String>>;

    /// Fills a buffer with secure random bytes.
    fn random(&self, buffer: &mut [u8]);

    /// States the health of this plugin, shown by `status`. A state equal to the one before changes
    /// nothing: say it as often as you like.
    fn report(&self, health: Health);
}

/// A port of a server, as it is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamPort {
    /// Where.
    pub address: SocketAddr,
    /// Whether there is a stream to the server now.
    pub is_connected: bool,
    /// Why there is none, after an attempt that failed.
    pub problem: Option<String>,
}

/// What the host tells a plugin.
#[derive(Debug, Clone)]
pub enum Input {
    /// A question of the core's. [`Ask::Peers`] comes first.
    Ask(Ask),
    /// A datagram that arrived on WireGuard's own port from an address that this plugin has sent
    /// to.
    Datagram {
        /// Where it came from.
        source: SocketAddr,
        /// Its payload.
        payload: Vec<u8>,
    },
    /// A message of the same plugin at a peer, once. That the peer sent it is certain; what it says
    /// is the peer's word.
    FromPeer {
        /// Who.
        peer: PeerKey,
        /// What, at most [`PEER_MESSAGE_MAX`] bytes.
        payload: Vec<u8>,
    },
    /// The network changed (link, address, route), is back after an outage that the kernel did not
    /// see, or the machine slept for more than 5 s: addresses may be new, registrations stale. What
    /// waits by tokio's timers has stood still in sleep; by [`Host::now`] it may be due.
    NetworkChanged,
    /// Stop, soon.
    Shutdown,
}

/// How a plugin is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Works; what it did last.
    Good(String),
    /// Does not; what is wrong and what would help.
    Bad(String),
}

/// Why a plugin stopped working.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PluginError {
    /// It failed while running.
    #[error("{0}")]
    Failed(String),
    /// Settings that `check` lets pass can't be used. The host says where they stand.
    #[error("{}", join(.0))]
    Settings(Vec<SettingFlaw>),
}

/// What is wrong with a setting, which only the running plugin can know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingFlaw {
    /// The key inside `[discovery.NAME]`, such as `settings.directory`.
    pub key: String,
    /// What is wrong, to follow the key.
    pub problem: String,
    /// What to write.
    pub help: String,
}

impl std::fmt::Display for SettingFlaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` {}; {}", self.key, self.problem, self.help)
    }
}

fn join(flaws: &[SettingFlaw]) -> String {
    let flaws: Vec<String> = flaws.iter().map(SettingFlaw::to_string).collect();
    flaws.join("; ")
}

impl From<String> for PluginError {
    fn from(problem: String) -> Self {
        Self::Failed(problem)
    }
}
