//! The whole simulation: network, hosts, servers and time, and the assertions that hold in every
//! run.

mod build;
mod checks;
mod faults;
mod report;
mod steps;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use natpunch_core::{
    Command, EndpointReason, Event, MeshSpec, MeshStatus, PeerSpec, PunchSpec, Transmit, stun,
};
use natpunch_types::{
    Ask, Candidate, CandidateKind, Connect, IcmpError, InstanceName, News, PathId, PeerKey, Pins,
    RelayPolicy, SecretKey, derive_listen_port, is_resting,
};

use crate::client::{self, ServerAddress};
use crate::discovery::RecordStore;
use crate::link::LinkConfig;
use crate::network::{GatewayConfig, GatewayId, HostId, Network, SegmentId};
use crate::node::{self, DiscoveryConfig, Node, host_network, path_from};
use crate::packet::{DEFAULT_TTL, Packet, Payload, Purpose, is_multicast};
use crate::random::Random;
use crate::rendezvous;
use crate::server::{self, Lie, Server};
use crate::wireguard::Device;

/// The MTU of every WireGuard interface: WireGuard's own default.
const MTU: u16 = 1_420;

/// A model of a server: rendezvous and STUN on one port.
#[derive(Debug, Default)]
struct ModelServer {
    rendezvous: rendezvous::Server,
    down: bool,
}

/// The simulation.
pub struct World {
    /// The network, with its trace.
    pub network: Network,
    nodes: BTreeMap<HostId, Node>,
    model_servers: BTreeMap<HostId, ModelServer>,
    servers: BTreeMap<HostId, Server>,
    records: RecordStore,
    seed: u64,
    now: Duration,
    keys: Random,
    steps_at_once: u64,
    violations: BTreeSet<String>,
    received_by_bystanders: BTreeMap<HostId, u64>,
    /// Hosts that feed packets of others to nodes: an answer to them is counted, not forbidden.
    injectors: BTreeSet<HostId>,
    /// Outside addresses that ever led to a host, for the assertion on third parties.
    known_addresses: BTreeMap<HostId, BTreeSet<IpAddr>>,
}

impl World {
    /// An empty internet of this seed.
    pub fn new(seed: u64) -> Self {
        Self {
            network: Network::new(seed),
            nodes: BTreeMap::new(),
            model_servers: BTreeMap::new(),
            servers: BTreeMap::new(),
            records: RecordStore::default(),
            seed,
            now: Duration::ZERO,
            keys: Random::new(seed, 2),
            steps_at_once: 0,
            violations: BTreeSet::new(),
            received_by_bystanders: BTreeMap::new(),
            injectors: BTreeSet::new(),
            known_addresses: BTreeMap::new(),
        }
    }

    /// Virtual time.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// The source port that WireGuard's packets from `node` to `peer` leave from, if it is pinned.
    pub fn pin(&self, node: HostId, peer: HostId) -> Option<u16> {
        let key = self.key(peer);
        let mut pins = self.nodes[&node].pins.iter().flatten();
        let of_peer = pins.find(|(_, (of, _))| *of == key);
        of_peer.map(|(_, (_, port))| *port)
    }

    /// Public key of a node.
    pub fn key(&self, node: HostId) -> PeerKey {
        self.nodes[&node].key
    }

    /// Port of a node's WireGuard device.
    pub fn listen_port(&self, node: HostId) -> u16 {
        self.nodes[&node].spec.listen_port
    }

    /// Packets that a bystander got.
    pub fn packets_to(&self, bystander: HostId) -> u64 {
        self.received_by_bystanders
            .get(&bystander)
            .copied()
            .unwrap_or_default()
    }

    /// Feeds a datagram to the network as if this host, whoever it is, had sent it.
    pub fn inject(&mut self, host: HostId, packet: Packet) {
        self.injectors.insert(host);
        self.network.send(host, packet, self.now);
    }

    /// The WireGuard device of a node.
    pub fn device(&self, node: HostId) -> &Device {
        &self.nodes[&node].device
    }

    /// Sets an endpoint as an administrator does with `wg set`.
    pub fn configure_endpoint(&mut self, node: HostId, peer: HostId, endpoint: SocketAddr) {
        let (key, now) = (self.key(peer), self.now);
        self.node_mut(node)
            .device
            .set_endpoint(key, endpoint, false, now);
    }

    /// Offers an address of `peer` to the agent of `node`, as a static endpoint of the mesh file
    /// is.
    pub fn offer_candidate(&mut self, node: HostId, peer: HostId, address: SocketAddr) {
        let (key, now) = (self.key(peer), self.now);
        let node = self.node_mut(node);
        let time = node.clock(now);
        let candidate = Candidate {
            address,
            kind: CandidateKind::Mapped,
            lifetime: Duration::from_secs(3600),
        };
        let news = News::Candidate {
            peer: key,
            candidate,
        };
        if let Some(agent) = &mut node.agent {
            agent
                .mesh
                .handle_news(&InstanceName::new(node::STATIC), news, time);
        }
        self.drain();
    }

    /// What `status` of a node shows; `None` if its agent does not run.
    pub fn status(&self, node: HostId) -> Option<MeshStatus> {
        self.nodes[&node].status(self.now)
    }

    /// What the agent of a node has logged.
    pub fn events(&self, node: HostId) -> &[(Duration, Event)] {
        &self.nodes[&node].events
    }

    /// Raw datagrams that a node's agent has sent.
    pub fn probes_sent(&self, node: HostId) -> u64 {
        self.nodes[&node].probes_sent
    }

    /// All datagrams that a node has sent, WireGuard's among them, by their purpose and destination.
    pub fn sent(&self, node: HostId) -> &BTreeMap<(Purpose, SocketAddr), u64> {
        &self.nodes[&node].sent
    }

    /// Most raw datagrams that a node's agent has sent in one second.
    pub fn busiest_second(&self, node: HostId) -> u64 {
        self.nodes[&node].busiest_second
    }

    /// What broke in this run.
    pub fn violations(&self) -> &BTreeSet<String> {
        &self.violations
    }

    /// Runs up to this time.
    pub fn run_until(&mut self, end: Duration) {
        self.run_while(end, |_| true);
    }

    /// Runs until `done`, and at most up to this time. The time when it was done, if it was.
    pub fn run_until_done(
        &mut self,
        end: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        if done(self) {
            return Some(self.now);
        }
        let mut at = None;
        self.run_while(end, |world| {
            if done(world) {
                at = Some(world.now);
            }
            at.is_none()
        });
        at
    }

    /// True if both devices have a session with each other.
    pub fn has_sessions(&self, a: HostId, b: HostId) -> bool {
        let (key_a, key_b) = (self.key(a), self.key(b));
        self.device(a).has_session(&key_b, self.now) && self.device(b).has_session(&key_a, self.now)
    }

    fn node_mut(&mut self, node: HostId) -> &mut Node {
        match self.nodes.get_mut(&node) {
            Some(node) => node,
            None => panic!("host {} is not a node", node.0),
        }
    }
}
