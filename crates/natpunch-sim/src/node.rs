//! A host of the mesh: a WireGuard device, and an agent that runs the real core beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use natpunch_core::{Command, Event, Memory, Mesh, MeshSpec, MeshStatus, Time};
use natpunch_types::{
    Abilities, Candidate, CandidateKind, Connect, HostAddress, HostNetwork, InstanceName, LinkRole,
    LocalSocket, News, PathId, PeerKey, Pins, Running, resting_endpoint,
};

use crate::client::{self, Clients, ServerAddress};
use crate::discovery::Client;
use crate::gossip::{self, GOSSIP, Gossiper};
use crate::packet::Purpose;
use crate::random::Random;
use crate::rendezvous::Message;
use crate::wireguard::{self, Device, Outgoing};

/// How often the agent reads the device ...
const DEVICE_POLL: Duration = Duration::from_secs(1);
/// ... and how often, and for how long, after it has set an endpoint.
const EAGER_DEVICE_POLL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// For how long what the rendezvous server says is believed.
const ANSWER_LIFETIME: Duration = Duration::from_secs(60);

/// The discovery instances of the models, and of endpoints that a mesh file would name.
pub(crate) const RENDEZVOUS: &str = "rendezvous";
pub(crate) const RECORDS: &str = "records";
pub(crate) const STATIC: &str = "static";

/// Which discovery a host uses.
#[derive(Debug, Clone, Default)]
pub struct DiscoveryConfig {
    /// The rendezvous server of the model.
    pub rendezvous: Option<SocketAddr>,
    /// STUN servers.
    pub stun: Vec<SocketAddr>,
    /// Whether sealed records are published and watched in the store of the model.
    pub records: bool,
    /// Servers of natpunch's own rendezvous, with relays.
    pub servers: Vec<ServerAddress>,
    /// Whether peers carry records for each other.
    pub gossip: bool,
}

impl DiscoveryConfig {
    /// The instances that the core is told of; `run` grows with each reload that changes them.
    pub(crate) fn instances(&self, run: u64) -> BTreeMap<InstanceName, Running> {
        let port = Abilities {
            wireguard_port: true,
            ..Abilities::default()
        };
        let records = Abilities {
            records: true,
            ..Abilities::default()
        };
        let models = [
            (RENDEZVOUS, port),
            (RECORDS, records),
            (STATIC, Abilities::default()),
        ];
        let models = models.map(|(name, abilities)| (InstanceName::new(name), abilities));
        let servers = self.servers.iter().map(|server| {
            let abilities = Abilities {
                relays: server.relays,
                ..client::ABILITIES
            };
            (client::origin(server.address.ip()), abilities)
        });
        let gossip = self
            .gossip
            .then(|| (InstanceName::new(GOSSIP), gossip::ABILITIES));
        let running = |(name, abilities)| (name, Running { abilities, run });
        models
            .into_iter()
            .chain(servers)
            .chain(gossip)
            .map(running)
            .collect()
    }
}

/// The agent process: dies and restarts without the device.
pub(crate) struct Agent {
    pub(crate) mesh: Mesh,
    pub(crate) client: Option<Client>,
    pub(crate) clients: Clients,
    pub(crate) gossip: Option<Gossiper>,
    next_device_poll: Duration,
    eager_until: Duration,
}

impl Agent {
    /// An endpoint was set: what comes of it is looked at more often.
    pub(crate) fn watch_device(&mut self, now: Duration) {
        self.eager_until = now + EAGER_DEVICE_POLL.1;
        self.next_device_poll = self.next_device_poll.min(now + EAGER_DEVICE_POLL.0);
    }

    /// The network changed, so that the server must see the new mapping.
    pub(crate) fn register_anew(&mut self, now: Duration) {
        if let Some(client) = &mut self.client {
            client.register_anew(now);
        }
        self.clients.handle_network_change(now);
        if let Some(gossip) = &mut self.gossip {
            gossip.handle_network_change(now);
        }
    }
}

/// A host of the mesh.
pub(crate) struct Node {
    pub(crate) key: PeerKey,
    pub(crate) spec: MeshSpec,
    pub(crate) discovery: DiscoveryConfig,
    pub(crate) device: Device,
    /// Addresses of bridges to containers.
    pub(crate) bridges: Vec<IpAddr>,
    pub(crate) agent: Option<Agent>,
    /// The agent starts then, if it has not yet.
    pub(crate) start_at: Option<Duration>,
    /// The device is down until then.
    pub(crate) device_back_at: Option<Duration>,
    /// The firewall drops what WireGuard receives.
    pub(crate) wireguard_blocked: bool,
    /// The host sleeps until then.
    pub(crate) asleep_until: Option<Duration>,
    /// The ports beside WireGuard's on which the agent receives.
    pub(crate) source_ports: BTreeSet<u16>,
    /// Which of them WireGuard's packets to these addresses get; `None`: the host can't do that.
    pub(crate) pins: Option<BTreeMap<SocketAddr, (PeerKey, u16)>>,
    /// The MTU of the routes to a peer, as the agent has ordered it.
    pub(crate) mtus: BTreeMap<PeerKey, Option<u16>>,
    /// When a raw packet first left from this port to this address, of the last ten minutes.
    pub(crate) flows: BTreeMap<(u16, SocketAddr), Duration>,
    /// An agent has run.
    has_run: bool,
    /// What the device last sent to each peer that rests: the bytes that the agent has, and the
    /// message that they stand for.
    pub(crate) rested: BTreeMap<PeerKey, (Vec<u8>, wireguard::Message)>,
    /// Whether the agent listens for what WireGuard answers, and what it has heard last.
    pub(crate) hears_responses: bool,
    responses: BTreeMap<PeerKey, (Vec<u8>, wireguard::Message)>,
    /// What its agents have found to work, by the addresses that the host had.
    memory: Memory,
    /// What its agent measures of the NAT has these bits the other way round.
    pub(crate) distortion: [u8; 3],
    pub(crate) record_counter: u64,
    pub(crate) events: Vec<(Duration, Event)>,
    /// When a raw packet that this peer truly sent last came from this address: the base of
    /// assertions.
    pub(crate) heard: BTreeMap<(PeerKey, SocketAddr), Duration>,
    /// When a raw packet was last sent to this address.
    pub(crate) asked: BTreeMap<SocketAddr, Duration>,
    pub(crate) probes_sent: u64,
    /// All datagrams that left, the device's among them.
    pub(crate) sent: BTreeMap<(Purpose, SocketAddr), u64>,
    pub(crate) probes_this_second: (u64, u64),
    pub(crate) busiest_second: u64,
    pub(crate) strangers: BTreeSet<SocketAddr>,
    /// This host's clock shows this more than the simulation's.
    clock_offset: Duration,
    random: Random,
}

/// What the kernel says of a host: the link with these addresses is the way out.
pub(crate) fn host_network(addresses: &[IpAddr], bridges: &[IpAddr]) -> HostNetwork {
    let of_role = |ips: &[IpAddr], role| {
        let of = |ip: &IpAddr| HostAddress { ip: *ip, role };
        ips.iter().map(of).collect::<Vec<_>>()
    };
    let ways_out = of_role(addresses, LinkRole::DefaultRoute);
    HostNetwork {
        addresses: [ways_out, of_role(bridges, LinkRole::Virtual)].concat(),
        routers: Vec::new(),
        nat64: None,
    }
}

/// The network that a host is in, as far as it matters to its memory.
fn place(addresses: &[IpAddr]) -> String {
    format!("{addresses:?}")
}

/// Seconds since 1970: the simulation begins in 2027.
fn wall_clock(now: Duration) -> u64 {
    1_800_000_000 + now.as_secs()
}

/// Brings a device to the peers of a spec; those that are new and run natpunch rest at first.
pub(crate) fn add_peers(device: &mut Device, spec: &MeshSpec, now: Duration) {
    for peer in &spec.peers {
        if peer.managed {
            device.add_resting_peer(peer.key);
        }
        // A keepalive would wake a peer at rest.
        let keepalive = peer.persistent_keepalive;
        let keepalive = keepalive.filter(|_| peer.connect == Connect::Always);
        device.set_peer(peer.key, keepalive, now);
    }
}

/// The path from a source port of this host.
pub(crate) fn path_from(port: u16, remote: SocketAddr) -> PathId {
    let local = NonZeroU16::new(port).map_or(LocalSocket::WireguardPort, LocalSocket::SourcePort);
    PathId { local, remote }
}

impl Node {
    pub(crate) fn new(
        key: PeerKey,
        spec: MeshSpec,
        discovery: DiscoveryConfig,
        mut random: Random,
        now: Duration,
    ) -> Self {
        let device_random = Random::new(random.below(u64::MAX), 7);
        let mut device = Device::new(key, spec.listen_port, device_random);
        add_peers(&mut device, &spec, now);
        Self {
            key,
            spec,
            discovery,
            device,
            bridges: Vec::new(),
            agent: None,
            start_at: None,
            device_back_at: None,
            wireguard_blocked: false,
            asleep_until: None,
            source_ports: BTreeSet::new(),
            pins: None,
            mtus: BTreeMap::new(),
            flows: BTreeMap::new(),
            has_run: false,
            rested: BTreeMap::new(),
            hears_responses: false,
            responses: BTreeMap::new(),
            memory: Memory::default(),
            distortion: [0; 3],
            record_counter: 0,
            events: Vec::new(),
            heard: BTreeMap::new(),
            asked: BTreeMap::new(),
            probes_sent: 0,
            sent: BTreeMap::new(),
            probes_this_second: (0, 0),
            busiest_second: 0,
            strangers: BTreeSet::new(),
            clock_offset: Duration::from_secs(random.below(1_000_000)),
            random,
        }
    }

    /// Makes a device without sessions in place of the old one.
    pub(crate) fn make_device(&mut self, now: Duration) {
        let random = Random::new(self.random.below(u64::MAX), 7);
        self.device = Device::new(self.key, self.spec.listen_port, random);
        if self.device_back_at.is_none() {
            add_peers(&mut self.device, &self.spec, now);
        }
    }

    /// This host's own clock.
    pub(crate) fn clock(&self, now: Duration) -> Time {
        Time::from_origin(now + self.clock_offset)
    }

    /// Ends the agent, which has written down what works.
    pub(crate) fn stop_agent(&mut self, addresses: &[IpAddr], now: Duration) {
        let time = self.clock(now);
        if let Some(agent) = self.agent.take() {
            let works = agent.mesh.working_paths(time);
            self.memory.note(&place(addresses), works, wall_clock(now));
        }
    }

    /// Starts the agent beside the running device.
    pub(crate) fn start_agent(&mut self, addresses: &[IpAddr], now: Duration) {
        // Rate and punch budget are those of one run of the agent.
        self.flows.clear();
        self.probes_this_second = (0, 0);
        let time = self.clock(now);
        let mut mesh = Mesh::new(self.spec.clone(), self.random.bytes32(), time);
        mesh.set_record_counter_floor(self.record_counter);
        mesh.distort_profile(self.distortion, time);
        mesh.handle_instances(self.discovery.instances(1), time);
        if let Some(pins) = &self.pins {
            mesh.handle_pins(Pins::Available, time);
            for (remote, (peer, port)) in pins {
                let path = path_from(*port, *remote);
                mesh.handle_pins(Pins::Found { peer: *peer, path }, time);
            }
        }
        // Before anything else is heard, the device: it may have live sessions.
        mesh.handle_device(&self.device.snapshot(), time);
        mesh.handle_local_addresses(&host_network(addresses, &self.bridges), time);
        mesh.handle_stun_servers(&self.discovery.stun, time);
        let remembered = self.memory.paths(&place(addresses), wall_clock(now));
        mesh.handle_remembered(&remembered, time);
        // The first agent listens before it makes the device.
        if !std::mem::replace(&mut self.has_run, true) {
            for (peer, (bytes, _)) in &self.rested {
                mesh.handle_initiation(resting_endpoint(peer), bytes, time);
            }
        }
        let client = self
            .discovery
            .rendezvous
            .map(|server| Client::new(self.key, server, now));
        let clients = Clients::new(
            &self.spec.private_key,
            &self.discovery.servers,
            &mut self.random,
            now,
        );
        let gossip = self.discovery.gossip.then(|| Gossiper::new(self.key));
        let next_device_poll = now + DEVICE_POLL;
        self.agent = Some(Agent {
            mesh,
            client,
            clients,
            gossip,
            next_device_poll,
            eager_until: now,
        });
        self.agent
            .iter_mut()
            .for_each(|agent| agent.watch_device(now));
        self.start_at = None;
    }

    pub(crate) fn awake(&self) -> bool {
        self.asleep_until.is_none()
    }

    /// When the host wants to run next.
    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        if self.asleep_until.is_some() {
            return self.asleep_until;
        }
        let agent = self.agent.as_ref().map(|agent| {
            let mesh = agent
                .mesh
                .poll_timeout()
                .map(|at| at.since_origin().saturating_sub(self.clock_offset));
            let client = agent.client.as_ref().map(Client::poll_timeout);
            let gossip = agent.gossip.as_ref().and_then(Gossiper::poll_timeout);
            [mesh, client, agent.clients.poll_timeout(), gossip]
                .into_iter()
                .flatten()
                .fold(agent.next_device_poll, Duration::min)
        });
        [
            agent,
            self.device.poll_timeout(),
            self.device_back_at,
            self.start_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Runs what is due, except the start.
    pub(crate) fn handle_timeout(&mut self, now: Duration) -> Vec<(SocketAddr, Message)> {
        if self.device_back_at.take_if(|at| *at <= now).is_some() {
            self.make_device(now);
        }
        self.device.handle_timeout(now);
        let time = self.clock(now);
        let Some(agent) = &mut self.agent else {
            return Vec::new();
        };
        if agent.next_device_poll <= now {
            let eager = now < agent.eager_until;
            agent.next_device_poll = now
                + if eager {
                    EAGER_DEVICE_POLL.0
                } else {
                    DEVICE_POLL
                };
            agent.mesh.handle_device(&self.device.snapshot(), time);
        }
        if agent.mesh.poll_timeout().is_some_and(|at| at <= time) {
            agent.mesh.handle_timeout(time);
        }
        let Some(client) = &mut agent.client else {
            return Vec::new();
        };
        let server = client.server();
        client
            .handle_timeout(now)
            .into_iter()
            .map(|message| (server, message))
            .collect()
    }

    /// The device has sent something to a peer that rests: this host's agent hears it, if it runs.
    pub(crate) fn handle_rested(&mut self, out: Outgoing, now: Duration) {
        let bytes = out.message.outline();
        let time = self.clock(now);
        if let Some(agent) = &mut self.agent {
            agent.mesh.handle_initiation(out.to, &bytes, time);
        }
        self.rested.insert(out.message.to, (bytes, out.message));
    }

    /// The device sends something: this host's agent hears it if that is an answer that it listens
    /// for.
    pub(crate) fn hear_response(&mut self, out: Outgoing, now: Duration) {
        let is_response = matches!(out.message.content, wireguard::Content::Response { .. });
        if !is_response || !self.hears_responses {
            return;
        }
        let bytes = out.message.outline();
        let (time, port) = (self.clock(now), self.port_towards(out.to));
        let path = match port == self.device.listen_port() {
            true => PathId::wireguard(out.to),
            false => path_from(port, out.to),
        };
        if let Some(agent) = &mut self.agent {
            agent.mesh.handle_response(path, &bytes, time);
        }
        self.responses.insert(out.message.to, (bytes, out.message));
    }

    /// The message of WireGuard's that these bytes are a copy of.
    pub(crate) fn wireguards(&self, bytes: &[u8]) -> Option<wireguard::Message> {
        let mut heard = self.rested.values().chain(self.responses.values());
        heard.find_map(|(copied, message)| (copied == bytes).then_some(*message))
    }

    /// The rendezvous server answered.
    pub(crate) fn handle_answer(&mut self, message: Message, now: Duration) {
        let time = self.clock(now);
        let (
            Some(agent),
            Message::Answer {
                wanted,
                address: Some(address),
            },
        ) = (&mut self.agent, message)
        else {
            return;
        };
        let candidate = Candidate {
            address,
            kind: CandidateKind::Reflexive,
            lifetime: ANSWER_LIFETIME,
        };
        let news = News::Candidate {
            peer: wanted,
            candidate,
        };
        agent
            .mesh
            .handle_news(&InstanceName::new(RENDEZVOUS), news, time);
    }

    /// Lets the clients of natpunch's own rendezvous do what is due; what they send.
    pub(crate) fn drive_clients(&mut self, now: Duration) -> Vec<(SocketAddr, Vec<u8>)> {
        let time = self.clock(now);
        let Some(Agent { mesh, clients, .. }) =
            self.agent.as_mut().filter(|_| self.asleep_until.is_none())
        else {
            return Vec::new();
        };
        clients.drive(mesh, time, now)
    }

    /// Lets the gossip do what is due; false if that was nothing.
    pub(crate) fn drive_gossip(&mut self, now: Duration) -> bool {
        let time = self.clock(now);
        let agent = self.agent.as_mut().filter(|_| self.asleep_until.is_none());
        let Some(Agent { mesh, gossip, .. }) = agent else {
            return false;
        };
        let mut gossip = gossip.iter_mut();
        gossip.any(|gossip| gossip.drive(mesh, time, now))
    }

    /// What the core wants done next.
    pub(crate) fn poll_command(&mut self) -> Option<Command> {
        let command = self.agent.as_mut()?.mesh.poll_command();
        if let Some(agent) = &self.agent {
            self.record_counter = agent.mesh.record_counter();
        }
        command
    }

    pub(crate) fn status(&self, now: Duration) -> Option<MeshStatus> {
        self.agent
            .as_ref()
            .map(|agent| agent.mesh.status(self.clock(now)))
    }

    /// The port that WireGuard's packets to an address leave from.
    pub(crate) fn port_towards(&self, to: SocketAddr) -> u16 {
        let pins = self.pins.as_ref();
        let pinned = pins.and_then(|pins| pins.get(&to)).map(|(_, port)| *port);
        pinned.unwrap_or(self.device.listen_port())
    }

    /// Joins the path's port to WireGuard's, and no other for this peer. False if the host can't.
    pub(crate) fn pin(&mut self, peer: PeerKey, path: PathId) -> bool {
        let Some(pins) = &mut self.pins else {
            return path.pin().is_none();
        };
        pins.retain(|_, (of, _)| *of != peer);
        if let Some(port) = path.pin() {
            pins.insert(path.remote, (peer, port.get()));
        }
        true
    }

    /// Counts what may be an entry of its own in a NAT; how many there are of the last ten minutes.
    pub(crate) fn count_flow(&mut self, port: u16, to: SocketAddr, now: Duration) -> usize {
        let lately = |at: &Duration| now.saturating_sub(*at) < Duration::from_secs(600);
        if !self.flows.contains_key(&(port, to)) {
            self.flows.retain(|_, at| lately(at));
            self.flows.insert((port, to), now);
        }
        self.flows.len()
    }

    /// Counts a probe against the budget. What goes where something has just come from is an answer,
    /// which the budget does not bound.
    pub(crate) fn count_probe(&mut self, to: SocketAddr, now: Duration) {
        self.probes_sent += 1;
        let lately = |at: &Duration| now < *at + Duration::from_secs(1);
        let mut heard = self.heard.iter();
        if heard.any(|((_, source), at)| *source == to && lately(at)) {
            return;
        }
        let (second, count) = &mut self.probes_this_second;
        if *second == now.as_secs() {
            *count += 1;
        } else {
            (*second, *count) = (now.as_secs(), 1);
        }
        self.busiest_second = self.busiest_second.max(*count);
    }
}
