//! The whole simulation: network, hosts, servers and time, and the assertions that hold in every
//! run.

mod faults;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use natpunch_core::{
    Command, EndpointReason, Event, MeshSpec, MeshStatus, PeerSpec, PunchSpec, Transmit, stun,
};
use natpunch_types::{
    Ask, Candidate, CandidateKind, IcmpError, InstanceName, News, PathId, PeerKey, Pins,
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

/// Most probes of one host in one second.
const PROBES_PER_SECOND: u64 = 250;
/// Most flows (source port and destination) of one host in ten minutes: the punch budget's 2,048,
/// and what ordinary probing needs.
const FLOWS_PER_TEN_MINUTES: usize = 2_048 + 200;
/// Most candidates that a core may keep of one peer.
const CANDIDATES_PER_PEER: usize = 64;
/// An answer proves a path for this long, as the core has it.
const PROOF_LIFETIME: Duration = Duration::from_secs(90);
/// So long before it the question may have left.
const ROUND_TRIP: Duration = Duration::from_secs(1);
/// A session that got something authentic within this is alive.
const LIVE: Duration = Duration::from_secs(20);
/// Steps without any progress of time: a busy loop is a failure, not a hang.
const MOST_STEPS_AT_ONCE: u64 = 10_000;
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

    /// Adds a segment behind a gateway.
    pub fn add_gateway(
        &mut self,
        name: &str,
        outside: SegmentId,
        config: GatewayConfig,
    ) -> (SegmentId, GatewayId) {
        self.network.add_gateway(name, outside, config)
    }

    /// Adds a model of a server for rendezvous and STUN, on the internet.
    pub fn add_model_server(
        &mut self,
        name: &str,
        addresses: &[IpAddr],
        link: LinkConfig,
    ) -> HostId {
        let id = self
            .network
            .add_host(name, Network::INTERNET, addresses, link);
        self.model_servers.insert(id, ModelServer::default());
        id
    }

    /// Adds a server of natpunch's own rendezvous, on the internet; what a mesh file says of it.
    pub fn add_server(
        &mut self,
        name: &str,
        ip: IpAddr,
        link: LinkConfig,
    ) -> (HostId, ServerAddress) {
        let id = self.network.add_host(name, Network::INTERNET, &[ip], link);
        let private_key = SecretKey::from_bytes(self.keys.bytes32());
        let spec = MeshSpec {
            private_key,
            listen_port: 0,
            mtu: MTU.into(),
            overlay: Vec::new(),
            peers: Vec::new(),
            punch: PunchSpec::default(),
        };
        let (key, address) = (
            spec.private_key.public_key(),
            SocketAddr::new(ip, server::PORT),
        );
        self.servers.insert(
            id,
            Server::new(
                spec.private_key,
                Random::new(self.seed, 10_000 + id.0 as u64),
            ),
        );
        let relays = true;
        (
            id,
            ServerAddress {
                address,
                key,
                relays,
            },
        )
    }

    /// Adds a host that takes part in nothing.
    pub fn add_bystander(
        &mut self,
        name: &str,
        segment: SegmentId,
        addresses: &[IpAddr],
        link: LinkConfig,
    ) -> HostId {
        self.network.add_host(name, segment, addresses, link)
    }

    /// Adds a host with a WireGuard device, still without peers and without an agent.
    pub fn add_node(
        &mut self,
        name: &str,
        segment: SegmentId,
        addresses: &[IpAddr],
        link: LinkConfig,
        discovery: DiscoveryConfig,
    ) -> HostId {
        let id = self.network.add_host(name, segment, addresses, link);
        let private_key = SecretKey::from_bytes(self.keys.bytes32());
        let mut spec = MeshSpec {
            private_key,
            listen_port: 0,
            mtu: MTU.into(),
            overlay: Vec::new(),
            peers: Vec::new(),
            punch: PunchSpec::default(),
        };
        let key = spec.private_key.public_key();
        spec.listen_port = derive_listen_port(&key);
        let random = Random::new(self.seed, 100 + id.0 as u64);
        self.nodes
            .insert(id, Node::new(key, spec, discovery, random, self.now));
        id
    }

    /// Gives a node bridges to containers, of lower index than its other links. To be called
    /// before its agent starts.
    pub fn set_bridges(&mut self, node: HostId, addresses: &[IpAddr]) {
        self.node_mut(node).bridges = addresses.to_vec();
    }

    /// Lets a node join other source ports to WireGuard's. To be called before its agent starts.
    pub fn enable_pins(&mut self, node: HostId) {
        self.node_mut(node).pins.get_or_insert_default();
    }

    /// Lets a node believe, and tell, that its NAT is another one than it is
    /// ([`Mesh::distort_profile`]). To be called before its agent starts.
    pub fn distort_profile(&mut self, node: HostId, bits: [u8; 3]) {
        self.node_mut(node).distortion = bits;
    }

    /// Lets a node use other servers. To be called before its agent starts.
    pub fn set_discovery(&mut self, node: HostId, discovery: DiscoveryConfig) {
        self.node_mut(node).discovery = discovery;
    }

    /// Gives a host another address in its segment.
    pub fn add_address(&mut self, host: HostId, address: IpAddr) {
        let mut addresses = self.network.addresses(host).to_vec();
        addresses.push(address);
        let segment = self.network.segment_of(host);
        self.network.move_host(host, segment, &addresses);
    }

    /// Lets a node hear what some router says of a packet.
    pub fn tell_icmp(&mut self, node: HostId, error: &IcmpError) {
        let now = self.now;
        let node = self.node_mut(node);
        let time = node.clock(now);
        if let Some(agent) = &mut node.agent {
            agent.mesh.handle_icmp(error, time);
        }
    }

    /// Sets a node's punch budget. To be called before its agent starts.
    pub fn set_punch(&mut self, node: HostId, punch: PunchSpec) {
        self.node_mut(node).spec.punch = punch;
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

    /// Makes two nodes peers of each other.
    pub fn peer(&mut self, a: HostId, b: HostId) {
        self.peer_one_way(a, b, true);
        self.peer_one_way(b, a, true);
    }

    /// Puts `peer` into the mesh file of `node`.
    pub fn peer_one_way(&mut self, node: HostId, peer: HostId, managed: bool) {
        let (key, listen_port) = (self.key(peer), self.listen_port(peer));
        let mut spec = self.nodes[&node].spec.clone();
        spec.peers.retain(|peer| peer.key != key);
        let persistent_keepalive = Some(Duration::from_secs(25));
        let named = PeerSpec::new(format!("peer-{}", peer.0), key);
        spec.peers.push(PeerSpec {
            managed,
            persistent_keepalive,
            adapts_keepalive: true,
            listen_port,
            ..named
        });
        self.reload(node, spec);
    }

    /// Takes `peer` out of the mesh file of `node`.
    pub fn unpeer(&mut self, node: HostId, peer: HostId) {
        let key = self.key(peer);
        let mut spec = self.nodes[&node].spec.clone();
        spec.peers.retain(|peer| peer.key != key);
        self.reload(node, spec);
    }

    fn reload(&mut self, node: HostId, spec: MeshSpec) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&node) else {
            return;
        };
        for peer in &node.spec.peers {
            if !spec.peers.iter().any(|kept| kept.key == peer.key) {
                node.device.remove_peer(&peer.key);
            }
        }
        node::add_peers(&mut node.device, &spec, now);
        node.spec = spec.clone();
        let time = node.clock(now);
        if let Some(agent) = &mut node.agent {
            agent.mesh.handle_spec(spec, time);
            agent.mesh.handle_device(&node.device.snapshot(), time);
        }
    }

    /// Lets the agent of a node start at this time.
    pub fn start_at(&mut self, node: HostId, at: Duration) {
        self.node_mut(node).start_at = Some(at);
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

    /// What to print when a run fails: the seed, what broke, and the packet flow.
    pub fn report(&self) -> String {
        let mut text = format!(
            "seed {}, {} events, trace hash {:016x}\n",
            self.seed,
            self.network.trace.total(),
            self.network.trace.hash()
        );
        for violation in &self.violations {
            text += &format!("VIOLATION: {violation}\n");
        }
        for (host, node) in &self.nodes {
            text += &format!(
                "--- host {} {} port {}\n",
                host.0,
                node.key.short(),
                node.spec.listen_port
            );
            for (at, event) in node.events.iter().rev().take(30).rev() {
                let peer = event.peer().map_or_else(String::new, |key| key.short());
                text += &format!("    {} {peer} {event}\n", crate::packet::clock(*at));
            }
            for peer in node
                .status(self.now)
                .iter()
                .flat_map(|status| &status.peers)
            {
                text += &format!(
                    "    {} {} endpoint {:?}\n",
                    peer.name, peer.state, peer.endpoint
                );
            }
        }
        text += &self.network.trace.text(400);
        text
    }

    fn node_mut(&mut self, node: HostId) -> &mut Node {
        match self.nodes.get_mut(&node) {
            Some(node) => node,
            None => panic!("host {} is not a node", node.0),
        }
    }

    fn run_while(&mut self, end: Duration, mut go_on: impl FnMut(&Self) -> bool) {
        self.drain();
        loop {
            let nodes = self.nodes.values().filter_map(Node::poll_timeout);
            let servers = self.servers.values().filter_map(Server::poll_timeout);
            let others = [self.network.poll_timeout(), self.records.poll_timeout()];
            let next = nodes
                .chain(servers)
                .chain(others.into_iter().flatten())
                .min();
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            self.steps_at_once = if next > self.now {
                0
            } else {
                self.steps_at_once + 1
            };
            assert!(
                self.steps_at_once < MOST_STEPS_AT_ONCE,
                "a busy loop:\n{}",
                self.report()
            );
            self.now = self.now.max(next);
            self.step();
            if !go_on(self) {
                return;
            }
        }
        self.now = self.now.max(end);
    }

    fn step(&mut self) {
        let now = self.now;
        self.network.handle_timeout(now);
        while let Some((host, packet)) = self.network.poll_delivery() {
            self.deliver(host, packet);
            self.drain();
        }
        for (host, record) in self.records.handle_timeout(now) {
            if let Some(node) = self.nodes.get_mut(&host) {
                let time = node.clock(now);
                if let Some(agent) = &mut node.agent {
                    let records = InstanceName::new(node::RECORDS);
                    agent.mesh.handle_news(&records, News::Record(record), time);
                }
            }
        }
        for (host, server) in &mut self.servers {
            if server.poll_timeout().is_some_and(|at| at <= now) {
                let packets = server.handle_timeout(now);
                packets
                    .into_iter()
                    .for_each(|packet| self.network.send(*host, packet, now));
            }
        }
        let hosts: Vec<_> = self.nodes.keys().copied().collect();
        for host in hosts {
            self.wake_or_start(host);
            let Some(node) = self.nodes.get_mut(&host) else {
                continue;
            };
            if !node.awake() || node.poll_timeout().is_none_or(|at| at > now) {
                continue;
            }
            let requests = node.handle_timeout(now);
            self.send_requests(host, requests);
        }
        self.drain();
    }

    fn wake_or_start(&mut self, host: HostId) {
        let now = self.now;
        let addresses = self.network.addresses(host).to_vec();
        let Some(node) = self.nodes.get_mut(&host) else {
            return;
        };
        if node.asleep_until.take_if(|until| *until <= now).is_some() {
            self.network.set_host_connected(host, true);
            let time = node.clock(now);
            if let Some(agent) = &mut node.agent {
                agent.mesh.handle_network_change(time);
                agent.register_anew(now);
            }
        }
        if node.awake() && node.start_at.is_some_and(|at| at <= now) {
            node.start_agent(&addresses, now);
        }
    }

    fn deliver(&mut self, host: HostId, packet: Packet) {
        let now = self.now;
        if let Some(server) = self.servers.get_mut(&host) {
            let addresses = self.network.addresses(host);
            let packets = server.handle(&packet, addresses, now);
            packets
                .into_iter()
                .for_each(|packet| self.network.send(host, packet, now));
            return;
        }
        if let Some(server) = self
            .model_servers
            .get_mut(&host)
            .filter(|server| !server.down)
        {
            let answer = match &packet.payload {
                Payload::Raw(bytes) => stun::respond(bytes, packet.source).map(Payload::Raw),
                Payload::Rendezvous(message) => server
                    .rendezvous
                    .handle(packet.source, *message, now)
                    .map(Payload::Rendezvous),
                Payload::WireGuard(_) => None,
            };
            if let Some(payload) = answer {
                self.network.send(
                    host,
                    Packet::new(packet.destination, packet.source, payload),
                    now,
                );
            }
            return;
        }
        let sender = packet
            .origin
            .and_then(|origin| self.nodes.get(&origin))
            .map(|node| node.key);
        let Some(node) = self.nodes.get_mut(&host) else {
            *self.received_by_bystanders.entry(host).or_default() += 1;
            self.check_third_party(host, &packet);
            return;
        };
        let port = packet.destination.port();
        let is_wireguards =
            port == node.device.listen_port() || port == node.port_towards(packet.source);
        if !node.awake() || !is_wireguards && !node.source_ports.contains(&port) {
            return;
        }
        let path = match is_wireguards {
            true => PathId::wireguard(packet.source),
            false => path_from(port, packet.source),
        };
        match packet.payload {
            Payload::WireGuard(_) if !is_wireguards => {}
            Payload::WireGuard(_) if node.device_back_at.is_some() || node.wireguard_blocked => {}
            Payload::WireGuard(message) => node.device.handle_message(packet.source, message, now),
            Payload::Raw(bytes) => {
                let time = node.clock(now);
                if let Some(sender) = sender {
                    node.heard.insert((sender, packet.source), now);
                }
                if let Some(agent) = &mut node.agent {
                    let destination = Some(packet.destination.ip()).filter(|ip| !is_multicast(*ip));
                    agent.clients.handle_datagram(packet.source, &bytes, now);
                    agent.mesh.handle_datagram(path, destination, &bytes, time);
                }
            }
            Payload::Rendezvous(message) => node.handle_answer(message, now),
        }
    }

    /// Executes all that devices and cores want, until nothing is left.
    fn drain(&mut self) {
        let hosts: Vec<_> = self.nodes.keys().copied().collect();
        for host in hosts {
            loop {
                let mut idle = true;
                while let Some(command) = self.nodes.get_mut(&host).and_then(Node::poll_command) {
                    idle = false;
                    self.execute(host, command);
                }
                let now = self.now;
                for (to, payload) in self.node_mut(host).drive_clients(now) {
                    idle = false;
                    self.send_from(host, None, to, DEFAULT_TTL, Payload::Raw(payload));
                }
                idle &= !self.node_mut(host).drive_gossip(now);
                while let Some(transmit) = self
                    .node_mut(host)
                    .agent
                    .as_mut()
                    .and_then(|agent| agent.mesh.poll_transmit())
                {
                    idle = false;
                    self.send_probe(host, transmit);
                }
                while let Some(out) = self.node_mut(host).device.poll_transmit() {
                    idle = false;
                    let now = self.now;
                    if is_resting(out.to) {
                        self.node_mut(host).handle_rested(out, now);
                        continue;
                    }
                    self.send_from(
                        host,
                        None,
                        out.to,
                        DEFAULT_TTL,
                        Payload::WireGuard(out.message),
                    );
                }
                let now = self.now;
                let node = self.node_mut(host);
                while let Some(event) = node
                    .agent
                    .as_mut()
                    .and_then(|agent| agent.mesh.poll_event())
                {
                    node.events.push((now, event));
                }
                if idle {
                    break;
                }
            }
        }
    }

    fn execute(&mut self, host: HostId, command: Command) {
        let now = self.now;
        match command {
            Command::FindRoute { peer, destination } => {
                let route = self.network.route(host, destination);
                let node = self.node_mut(host);
                let time = node.clock(now);
                if let Some(agent) = &mut node.agent {
                    agent.mesh.handle_route(peer, destination, route, time);
                }
            }
            Command::SourcePorts(ports) => {
                self.node_mut(host).source_ports = ports.iter().map(|port| port.get()).collect();
            }
            Command::Ask(ask) => {
                let node = self.node_mut(host);
                let has_store = node.discovery.records;
                if let Some(agent) = &mut node.agent {
                    agent.clients.ask(&ask, now);
                    if let Some(gossip) = &mut agent.gossip {
                        gossip.ask(&ask, now);
                    }
                    if let (Ask::Peers(peers), Some(client)) = (&ask, &mut agent.client) {
                        client.set_interest(peers, now);
                    }
                }
                match ask {
                    Ask::Peers(peers) if has_store => self.records.watch(host, &peers, now),
                    Ask::Records(records) if has_store => {
                        self.records.publish(host, records, now);
                    }
                    _ => {}
                }
            }
            Command::TakeMessage { peer, payload } => {
                let agent = self.node_mut(host).agent.as_mut();
                if let Some(gossip) = agent.and_then(|agent| agent.gossip.as_mut()) {
                    gossip.handle_message(peer, &payload, now);
                }
            }
            Command::SetKeepalive { peer, interval } => {
                let node = self.node_mut(host);
                if node.device.has_peer(&peer) {
                    node.device.set_peer(peer, Some(interval), now);
                }
            }
            Command::SetMtu { peer, mtu } => {
                self.node_mut(host).mtus.insert(peer, mtu);
            }
            Command::SetEndpoint {
                peer,
                path,
                kick,
                reason,
            } => {
                let endpoint = path.endpoint();
                self.check_endpoint(host, peer, endpoint, reason);
                let place = format!("host {}", host.0);
                self.network.note(
                    &place,
                    format!("endpoint of {} is {endpoint}: {reason}", peer.short()),
                    now,
                );
                let node = self.node_mut(host);
                let done = node.device_back_at.is_none()
                    && node.pin(peer, path)
                    && node.device.set_endpoint(peer, endpoint, kick, now);
                let time = node.clock(now);
                if let Some(agent) = &mut node.agent {
                    agent.watch_device(now);
                    agent.mesh.handle_endpoint_set(peer, path, done, time);
                    agent.mesh.handle_device(&node.device.snapshot(), time);
                }
            }
        }
    }

    fn send_requests(&mut self, host: HostId, requests: Vec<(SocketAddr, rendezvous::Message)>) {
        for (to, message) in requests {
            self.send_from(host, None, to, DEFAULT_TTL, Payload::Rendezvous(message));
        }
    }

    fn send_probe(&mut self, host: HostId, transmit: Transmit) {
        let now = self.now;
        let node = self.node_mut(host);
        if let Some(message) = node.wireguards(&transmit.payload) {
            let to = transmit.path.remote;
            self.send_from(host, None, to, DEFAULT_TTL, Payload::WireGuard(message));
            return;
        }
        node.count_probe(now);
        node.asked.insert(transmit.path.remote, now);
        let port = match transmit.path.pin() {
            Some(port) => port.get(),
            None => node.port_towards(transmit.path.remote),
        };
        let flows = node.count_flow(port, transmit.path.remote, now);
        let busiest = node.busiest_second;
        if busiest > PROBES_PER_SECOND {
            self.violate(format!("host {}: {busiest} probes in one second", host.0));
        }
        if flows > FLOWS_PER_TEN_MINUTES {
            self.violate(format!("host {}: {flows} flows in ten minutes", host.0));
        }
        let ttl = transmit.ttl.unwrap_or(DEFAULT_TTL);
        self.check_destination(host, transmit.path.remote);
        self.send_from_port(
            host,
            (transmit.source, port),
            transmit.path.remote,
            ttl,
            Payload::Raw(transmit.payload),
        );
    }

    /// Sends from WireGuard's port, or the one that is pinned to it on this way; the source address
    /// is that of the route unless given.
    fn send_from(
        &mut self,
        host: HostId,
        source: Option<IpAddr>,
        to: SocketAddr,
        ttl: u8,
        payload: Payload,
    ) {
        let port = self.nodes[&host].port_towards(to);
        self.send_from_port(host, (source, port), to, ttl, payload);
    }

    fn send_from_port(
        &mut self,
        host: HostId,
        (source, port): (Option<IpAddr>, u16),
        to: SocketAddr,
        ttl: u8,
        payload: Payload,
    ) {
        let routed = || {
            self.network
                .addresses(host)
                .iter()
                .find(|ip| ip.is_ipv4() == to.is_ipv4())
                .copied()
        };
        let Some(source) = source.or_else(routed) else {
            return;
        };
        let sent = &mut self.node_mut(host).sent;
        *sent.entry((payload.purpose(), to)).or_default() += 1;
        let packet = Packet {
            ttl,
            ..Packet::new(SocketAddr::new(source, port), to, payload)
        };
        self.network.send(host, packet, self.now);
    }

    fn violate(&mut self, text: String) {
        self.network.note("VIOLATION", text.clone(), self.now);
        self.violations.insert(text);
    }

    /// An endpoint of a managed peer is proven: a round trip of probes, truly with that peer. No
    /// endpoint of a live session is replaced by an unproven one. A peer that was removed gets
    /// none.
    fn check_endpoint(
        &mut self,
        host: HostId,
        peer: PeerKey,
        endpoint: SocketAddr,
        reason: EndpointReason,
    ) {
        let now = self.now;
        let node = &self.nodes[&host];
        let Some(spec) = node.spec.peers.iter().find(|spec| spec.key == peer) else {
            return self.violate(format!(
                "host {}: endpoint for a peer that was removed",
                host.0
            ));
        };
        if node.device.endpoint(&peer) == Some(endpoint) {
            return;
        }
        let within = |at: Option<&Duration>, lifetime| at.is_some_and(|at| now < *at + lifetime);
        let proven = within(node.heard.get(&(peer, endpoint)), PROOF_LIFETIME)
            && within(node.asked.get(&endpoint), PROOF_LIFETIME + ROUND_TRIP);
        let live = node
            .device
            .last_received(&peer)
            .is_some_and(|at| now < at + LIVE);
        if spec.managed && !proven {
            self.violate(format!(
                "host {}: endpoint {endpoint} is not proven ({reason})",
                host.0
            ));
        }
        if live && !proven {
            self.violate(format!(
                "host {}: live endpoint replaced by {endpoint}, not proven ({reason})",
                host.0
            ));
        }
    }

    /// Probes go to peers, servers and one's own link only.
    fn check_destination(&mut self, host: HostId, destination: SocketAddr) {
        if is_multicast(destination.ip())
            || self
                .network
                .is_address_of(destination.ip(), self.participants())
        {
            return;
        }
        self.learn_addresses();
        if !self
            .known_addresses
            .values()
            .any(|addresses| addresses.contains(&destination.ip()))
        {
            let node = self.node_mut(host);
            if node.strangers.insert(destination) {
                self.violate(format!(
                    "host {}: probe to {destination}, which is nobody's",
                    host.0
                ));
            }
        }
    }

    fn participants(&self) -> impl Iterator<Item = HostId> {
        let servers = self.servers.keys().chain(self.model_servers.keys());
        servers
            .chain(self.nodes.keys())
            .chain(&self.injectors)
            .copied()
    }

    fn learn_addresses(&mut self) {
        for host in self.nodes.keys() {
            let known = self.known_addresses.entry(*host).or_default();
            known.extend(self.network.addresses(*host));
            for gateway in self.network.gateways_above(self.network.segment_of(*host)) {
                known.extend(self.network.nat_v4(gateway).map(|nat| nat.outside()));
            }
            known.extend(&self.nodes[host].bridges);
        }
    }

    /// Nothing of ours reaches somebody else, but by a broadcast on his LAN or an address that he
    /// shares with a peer.
    fn check_third_party(&mut self, host: HostId, packet: &Packet) {
        let ours = packet
            .origin
            .is_some_and(|origin| self.nodes.contains_key(&origin));
        let shared = self
            .known_addresses
            .values()
            .any(|known| known.contains(&packet.destination.ip()));
        let expected = self.participants().any(|participant| participant == host);
        if ours && !expected && !is_multicast(packet.destination.ip()) && !shared {
            self.violate(format!(
                "a packet from {} reached the third party {}",
                packet.source, packet.destination
            ));
        }
    }

    /// Checks what can only be seen from time to time: that memory is bounded.
    pub fn check_memory(&mut self) {
        let hosts: Vec<_> = self.nodes.keys().copied().collect();
        for host in hosts {
            let peers = self
                .status(host)
                .map(|status| status.peers)
                .unwrap_or_default();
            for peer in peers
                .iter()
                .filter(|peer| peer.candidates.len() > CANDIDATES_PER_PEER)
            {
                self.violate(format!(
                    "host {}: {} candidates of one peer",
                    host.0,
                    peer.candidates.len()
                ));
            }
        }
    }
}
