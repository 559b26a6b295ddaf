//! A tiny world in virtual time: nodes with fake WireGuard devices on one wire with delay and a
//! firewall. NATs are the business of natpunch-sim.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use natpunch_core::{
    Command, Event, Mesh, MeshSpec, PeerSpec, PeerState, PeerStatus, PunchSpec, Time, Transmit,
    stun,
};
use natpunch_types::{
    Abilities, AddressClass, Ask, CandidateKind, DevicePeer, DeviceSnapshot, HostNetwork,
    InstanceName, Interest, News, OwnAddressKind, PathId, PeerKey, Route, Running, SealedRecord,
    SecretKey, classify, derive_listen_port, is_initiation, resting_endpoint, sign_handshake,
};

pub const DELAY: Duration = Duration::from_millis(10);
pub const STUN: &str = "198.51.100.53:3478";

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A host with these addresses.
pub fn host(addresses: &[&str]) -> HostNetwork {
    addresses.iter().map(|ip| ip.parse().unwrap()).collect()
}

pub fn private(number: u8) -> SecretKey {
    SecretKey::from_bytes([number; 32])
}

/// The public key of `private(number)`.
pub fn public(number: u8) -> PeerKey {
    let spec = MeshSpec {
        private_key: private(number),
        listen_port: 1,
        mtu: 1_420,
        overlay: vec![],
        peers: vec![],
        punch: PunchSpec::default(),
    };
    Mesh::new(spec, [0; 32], Time::ZERO)
        .status(Time::ZERO)
        .public_key
}

pub fn peer(number: u8) -> PeerSpec {
    PeerSpec {
        // With none at all, nothing would be held on public addresses. This one is too long to hold
        // a mapping, so pings do.
        persistent_keepalive: Some(Duration::from_secs(60)),
        ..PeerSpec::new(format!("n{number}"), public(number))
    }
}

pub fn spec(own: u8, peers: &[u8]) -> MeshSpec {
    MeshSpec {
        private_key: private(own),
        listen_port: derive_listen_port(&public(own)),
        mtu: 1_420,
        overlay: vec!["10.77.0.0/16".parse().unwrap()],
        peers: peers.iter().map(|number| peer(*number)).collect(),
        punch: PunchSpec::default(),
    }
}

/// A candidate, and which instance offers it.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub address: SocketAddr,
    pub kind: CandidateKind,
    pub origin: InstanceName,
    pub lifetime: Duration,
}

/// What instances of any name say, which can do everything.
pub trait Tell {
    fn handle_candidate(&mut self, peer: PeerKey, candidate: Candidate, now: Time);
    fn handle_record(&mut self, origin: &InstanceName, record: &SealedRecord, now: Time);
    fn handle_reflexive(
        &mut self,
        origin: &InstanceName,
        at: SocketAddr,
        for_: Duration,
        now: Time,
    );
    fn handle_fire(&mut self, origin: &InstanceName, peer: PeerKey, after: Duration, now: Time);
    fn handle_wanted(&mut self, peer: PeerKey, now: Time);
}

/// The instances that the tests name.
pub fn instances(meetings: bool) -> BTreeMap<InstanceName, Running> {
    let abilities = Abilities {
        wireguard_port: true,
        meetings,
        relays: true,
        records: true,
        mappings: true,
        peer_messages: false,
    };
    let names =
        "test honest http rv x eu us first second hub peer wireguard rendezvous liar other a b c d";
    names
        .split(' ')
        .map(|name| (InstanceName::new(name), Running { abilities, run: 1 }))
        .collect()
}

impl Tell for Mesh {
    /// Without a lifetime it is taken back.
    fn handle_candidate(&mut self, peer: PeerKey, candidate: Candidate, now: Time) {
        let Candidate {
            address,
            kind,
            origin,
            lifetime,
        } = candidate;
        let news = if lifetime.is_zero() {
            News::Withdrawn { peer, address }
        } else {
            let candidate = natpunch_types::Candidate {
                address,
                kind,
                lifetime,
            };
            News::Candidate { peer, candidate }
        };
        self.handle_instances(instances(false), now);
        self.handle_news(&origin, news, now);
    }

    fn handle_record(&mut self, origin: &InstanceName, record: &SealedRecord, now: Time) {
        self.handle_instances(instances(false), now);
        self.handle_news(origin, News::Record(record.clone()), now);
    }

    fn handle_reflexive(
        &mut self,
        origin: &InstanceName,
        at: SocketAddr,
        for_: Duration,
        now: Time,
    ) {
        self.handle_instances(instances(true), now);
        let news = News::OwnAddress {
            address: at,
            kind: OwnAddressKind::Reflexive,
            lifetime: for_,
        };
        self.handle_news(origin, news, now);
    }

    fn handle_fire(&mut self, origin: &InstanceName, peer: PeerKey, after: Duration, now: Time) {
        self.handle_instances(instances(true), now);
        self.handle_news(origin, News::Fire { peer, after }, now);
    }

    fn handle_wanted(&mut self, peer: PeerKey, now: Time) {
        self.handle_instances(instances(true), now);
        self.handle_news(&InstanceName::new("test"), News::Wanted { peer }, now);
    }
}

pub fn candidate(address: SocketAddr) -> Candidate {
    Candidate {
        address,
        kind: CandidateKind::Reflexive,
        origin: InstanceName::new("test"),
        lifetime: secs(86_400),
    }
}

/// One node and its device.
pub struct Node {
    pub number: u8,
    pub mesh: Mesh,
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    pub device: BTreeMap<PeerKey, DevicePeer>,
    pub initiated: BTreeMap<PeerKey, Time>,
    /// Whether its device and its mesh run.
    pub up: bool,
    pub mesh_up: bool,
    /// The endpoints that were set, and when.
    pub sets: Vec<(Time, PeerKey, SocketAddr, bool)>,
    pub events: Vec<(Time, Event)>,
    pub interest: Vec<Interest>,
    pub records: Vec<SealedRecord>,
    pub publications: usize,
    /// What plugins at peers said.
    pub messages: Vec<(PeerKey, Vec<u8>)>,
    pub sent: Vec<(Time, Transmit)>,
    pub fail_sets: bool,
}

impl Node {
    pub fn endpoint(&self, peer: u8) -> Option<SocketAddr> {
        self.device.get(&public(peer)).and_then(|row| row.endpoint)
    }

    pub fn handshakes(&self, peer: u8) -> Option<Duration> {
        self.device
            .get(&public(peer))
            .and_then(|row| row.last_handshake)
    }

    pub fn snapshot(&self) -> DeviceSnapshot {
        DeviceSnapshot {
            listen_port: self.port,
            peers: self.device.values().cloned().collect(),
            ..Default::default()
        }
    }

    pub fn wanted(&self, peer: u8) -> bool {
        self.interest
            .iter()
            .any(|interest| interest.peer == public(peer) && interest.wanted)
    }
}

#[derive(Debug, Clone)]
enum Packet {
    Probe(Vec<u8>),
    Stun(Vec<u8>),
    Initiation(PeerKey),
    Response(PeerKey),
    Keepalive(PeerKey),
}

/// Which datagrams pass: (source, destination, is WireGuard's).
pub type Firewall = Box<dyn FnMut(SocketAddr, SocketAddr, bool) -> bool>;

pub struct World {
    pub now: Time,
    pub nodes: Vec<Node>,
    wire: BTreeMap<(Time, u64), (SocketAddr, SocketAddr, Packet)>,
    serial: u64,
    pub passes: Firewall,
    pub delay: Box<dyn Fn(SocketAddr, SocketAddr) -> Duration>,
    /// Which way the kernel of a node sends to an address.
    pub route: Box<dyn Fn(usize, IpAddr) -> Route>,
    next_second: Time,
    /// Stateful firewalls in front of all nodes: the flows, and when a packet went out last. In
    /// comes only what answers something of the last 30 s, the shortest common timer.
    pub flows: Option<BTreeMap<(SocketAddr, SocketAddr), Time>>,
    /// What the wall clock shows whenever a device is read.
    pub read_at: Option<Duration>,
    /// How often devices are read.
    pub reads_every: Duration,
    /// WireGuard handshakes that were started.
    pub initiations: usize,
    /// Whether WireGuard repeats an initiation that is not answered, as it does for 90 s while
    /// something waits.
    pub repeats: bool,
}

impl World {
    /// Nodes that know each other's keys, each with its addresses; the devices have the peers and
    /// no endpoint.
    pub fn new(nodes: &[(u8, &[&str])]) -> Self {
        let numbers: Vec<u8> = nodes.iter().map(|(number, _)| *number).collect();
        let mut world = Self {
            now: Time::from_millis(1_000_000),
            nodes: vec![],
            wire: BTreeMap::new(),
            serial: 0,
            passes: Box::new(|_, _, _| true),
            delay: Box::new(|_, _| DELAY),
            route: Box::new(|_, to| match classify(to) {
                AddressClass::Global => Route::Routed,
                _ => Route::OnLink,
            }),
            next_second: Time::from_millis(1_001_000),
            flows: None,
            read_at: None,
            reads_every: secs(1),
            initiations: 0,
            repeats: false,
        };
        for (number, addresses) in nodes {
            let others: Vec<u8> = numbers
                .iter()
                .copied()
                .filter(|other| other != number)
                .collect();
            let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
            world.add(*number, &others, addresses);
        }
        world
    }

    /// Two nodes with public addresses: the first is the controlling one of the pair.
    pub fn pair() -> Self {
        let (low, high) = low_high();
        Self::new(&[(low, &["203.0.113.1"]), (high, &["203.0.113.2"])])
    }

    fn add(&mut self, number: u8, peers: &[u8], addresses: Vec<IpAddr>) {
        let device = peers
            .iter()
            .map(|peer| (public(*peer), row(public(*peer))))
            .collect();
        let spec = spec(number, peers);
        let port = spec.listen_port;
        let node = Node {
            number,
            mesh: Mesh::new(spec, [number; 32], self.now),
            addresses,
            port,
            device,
            initiated: BTreeMap::new(),
            up: true,
            mesh_up: true,
            sets: vec![],
            events: vec![],
            interest: vec![],
            records: vec![],
            publications: 0,
            messages: vec![],
            sent: vec![],
            fail_sets: false,
        };
        self.nodes.push(node);
        let index = self.nodes.len() - 1;
        self.boot(index);
    }

    /// Starts or restarts the agent of a node.
    pub fn restart_agent(&mut self, index: usize, seed: u8) {
        let number = self.nodes[index].number;
        let others: Vec<u8> = self
            .nodes
            .iter()
            .map(|node| node.number)
            .filter(|other| *other != number)
            .collect();
        let now = self.now;
        self.nodes[index].mesh = Mesh::new(spec(number, &others), [seed; 32], now);
        self.nodes[index].mesh_up = true;
        self.boot(index);
    }

    fn boot(&mut self, index: usize) {
        let now = self.now;
        let snapshot = self.snapshot(index);
        let node = &mut self.nodes[index];
        node.mesh.handle_device(&snapshot, now);
        let addresses = node.addresses.clone();
        let network = addresses.into_iter().collect();
        node.mesh.handle_local_addresses(&network, now);
        self.drain(index);
    }

    pub fn address(&self, index: usize) -> SocketAddr {
        SocketAddr::new(self.nodes[index].addresses[0], self.nodes[index].port)
    }

    /// Tells node `to` where node `of` is.
    pub fn tell(&mut self, to: usize, of: usize) {
        let address = self.address(of);
        self.tell_address(to, of, address);
    }

    pub fn tell_address(&mut self, to: usize, of: usize, address: SocketAddr) {
        let key = public(self.nodes[of].number);
        self.with(to, |mesh, now| {
            mesh.handle_candidate(key, candidate(address), now)
        });
    }

    pub fn tell_both(&mut self) {
        self.tell(0, 1);
        self.tell(1, 0);
    }

    /// Gives a mesh one input and executes what comes out.
    pub fn with(&mut self, index: usize, input: impl FnOnce(&mut Mesh, Time)) {
        let now = self.now;
        input(&mut self.nodes[index].mesh, now);
        self.drain(index);
    }

    fn snapshot(&self, index: usize) -> DeviceSnapshot {
        DeviceSnapshot {
            read_at: self.read_at,
            ..self.nodes[index].snapshot()
        }
    }

    pub fn feed_device(&mut self, index: usize) {
        let snapshot = self.snapshot(index);
        self.with(index, |mesh, now| mesh.handle_device(&snapshot, now));
    }

    fn drain(&mut self, index: usize) {
        let now = self.now;
        let mut kicks = vec![];
        loop {
            let node = &mut self.nodes[index];
            while let Some(event) = node.mesh.poll_event() {
                node.events.push((now, event));
            }
            let mut outgoing = vec![];
            while let Some(transmit) = node.mesh.poll_transmit() {
                node.sent.push((now, transmit.clone()));
                outgoing.push(transmit);
            }
            let (mut fed, mut routed) = (false, false);
            while let Some(command) = node.mesh.poll_command() {
                match command {
                    Command::SetEndpoint {
                        peer, path, kick, ..
                    } => {
                        let endpoint = path.endpoint();
                        node.sets.push((now, peer, endpoint, kick));
                        let ok = node.device.contains_key(&peer) && !node.fail_sets;
                        if ok {
                            node.device.get_mut(&peer).unwrap().endpoint = Some(endpoint);
                            if kick {
                                kicks.push(peer);
                            }
                        }
                        node.mesh.handle_endpoint_set(peer, path, ok, now);
                        fed = true;
                    }
                    Command::Rest { peer } => {
                        if let Some(device) = node.device.get_mut(&peer) {
                            device.endpoint = None;
                        }
                        fed = true;
                    }
                    Command::SetKeepalive { .. }
                    | Command::SetMtu { .. }
                    | Command::HearResponses(_)
                    | Command::TellReturn => {}
                    Command::Ask(Ask::Peers(interest)) => node.interest = interest.to_vec(),
                    Command::TakeMessage { peer, payload } => node.messages.push((peer, payload)),
                    Command::Ask(Ask::Meet(_)) | Command::SourcePorts(_) => {}
                    Command::FindRoute { peer, destination } => {
                        let route = (self.route)(index, destination);
                        node.mesh.handle_route(peer, destination, route, now);
                        routed = true;
                    }
                    Command::Ask(Ask::Records(records)) => {
                        node.records = records.to_vec();
                        node.publications += 1;
                    }
                }
            }
            if fed {
                let snapshot = node.snapshot();
                node.mesh.handle_device(&snapshot, now);
            }
            for transmit in outgoing {
                self.send_raw(index, transmit);
            }
            if !fed && !routed {
                break;
            }
        }
        for peer in kicks {
            self.kick(index, peer);
        }
    }

    fn send_raw(&mut self, index: usize, transmit: Transmit) {
        let node = &self.nodes[index];
        if !node.mesh_up {
            return;
        }
        let packet = if stun::is_stun(&transmit.payload) {
            Packet::Stun(transmit.payload)
        } else if is_initiation(&transmit.payload) {
            Packet::Initiation(public(node.number))
        } else {
            Packet::Probe(transmit.payload)
        };
        if transmit.path.remote.ip() == IpAddr::from([255, 255, 255, 255]) {
            let source = SocketAddr::new(transmit.source.unwrap(), node.port);
            let lan = |ip: &IpAddr| matches!(ip, IpAddr::V4(v4) if v4.is_private());
            let targets: Vec<SocketAddr> = (0..self.nodes.len())
                .filter(|other| {
                    *other != index && self.nodes[*other].port == transmit.path.remote.port()
                })
                .flat_map(|other| {
                    let port = self.nodes[other].port;
                    self.nodes[other]
                        .addresses
                        .iter()
                        .filter(|ip| lan(ip))
                        .map(move |ip| SocketAddr::new(*ip, port))
                })
                .collect();
            for target in targets {
                self.put(source, target, packet.clone());
            }
            return;
        }
        let Some(source) = self.source(index, transmit.path.remote, transmit.source) else {
            return;
        };
        self.put(source, transmit.path.remote, packet);
    }

    /// Private addresses reach private ones, public addresses reach all.
    fn source(
        &self,
        index: usize,
        destination: SocketAddr,
        source: Option<IpAddr>,
    ) -> Option<SocketAddr> {
        let node = &self.nodes[index];
        let private = |ip: &IpAddr| matches!(ip, IpAddr::V4(v4) if v4.is_private());
        let wanted = private(&destination.ip());
        let ip = source.or_else(|| {
            let same =
                |ip: &&IpAddr| ip.is_ipv4() == destination.is_ipv4() && private(ip) == wanted;
            node.addresses.iter().find(same).copied()
        })?;
        Some(SocketAddr::new(ip, node.port))
    }

    fn put(&mut self, source: SocketAddr, destination: SocketAddr, packet: Packet) {
        let wireguard = !matches!(packet, Packet::Probe(_) | Packet::Stun(_));
        let now = self.now;
        let open = self.flows.as_mut().is_none_or(|flows| {
            flows.insert((source, destination), now);
            flows
                .get(&(destination, source))
                .is_some_and(|last| now.since(*last) < secs(30))
        });
        if open && (self.passes)(source, destination, wireguard) {
            self.serial += 1;
            let at = self.now + (self.delay)(source, destination);
            self.wire
                .insert((at, self.serial), (source, destination, packet));
        }
    }

    /// What a kick does: a keepalive in a live session, else an initiation.
    pub fn kick(&mut self, index: usize, peer: PeerKey) {
        let now = self.now;
        let node = &mut self.nodes[index];
        let key = public(node.number);
        let row = node.device.get_mut(&peer).unwrap();
        let Some(endpoint) = row.endpoint else { return };
        let live = row
            .last_handshake
            .is_some_and(|at| now.since_origin() < at + secs(180));
        row.tx_bytes += 32;
        let packet = if live {
            Packet::Keepalive(key)
        } else {
            Packet::Initiation(key)
        };
        if !live {
            if node
                .initiated
                .get(&peer)
                .is_some_and(|at| now.since(*at) < secs(5))
            {
                return;
            }
            node.initiated.insert(peer, now);
            self.initiations += 1;
        }
        if let Some(source) = self.source(index, endpoint, None) {
            self.put(source, endpoint, packet);
        }
    }

    /// WireGuard repeats the initiations of a node that were not answered in its REKEY_TIMEOUT.
    fn repeat_initiations(&mut self, index: usize) {
        let (now, node) = (self.now, &mut self.nodes[index]);
        let key = public(node.number);
        let is_due = |at: &Time| now.since(*at) >= secs(5);
        let due = node.initiated.iter_mut().filter(|(_, at)| is_due(at));
        let peers: Vec<PeerKey> = due
            .map(|(peer, at)| {
                *at = now;
                *peer
            })
            .collect();
        for peer in peers {
            let endpoint = self.nodes[index].device[&peer].endpoint;
            let source = endpoint.and_then(|to| Some((self.source(index, to, None)?, to)));
            if let Some((source, to)) = source {
                self.put(source, to, Packet::Initiation(key));
            }
        }
    }

    /// WireGuard makes an initiation for a peer that rests, which the agent hears; its bytes.
    pub fn initiate_at_rest(&mut self, index: usize, peer: u8, mark: u8) -> Vec<u8> {
        let key = public(peer);
        let mut bytes = vec![mark; natpunch_types::INITIATION_LEN];
        bytes[..4].copy_from_slice(&[1, 0, 0, 0]);
        sign_handshake(&key, &mut bytes);
        let now = self.now;
        self.nodes[index].initiated.insert(key, now);
        self.with(index, |mesh, now| {
            mesh.handle_initiation(resting_endpoint(&key), &bytes, now);
        });
        bytes
    }

    /// Injects a datagram as if it came from `source`.
    pub fn inject(&mut self, index: usize, source: SocketAddr, payload: &[u8]) {
        let destination = self.nodes[index].addresses.first().copied();
        self.with(index, |mesh, now| {
            mesh.handle_datagram(PathId::wireguard(source), destination, payload, now)
        });
    }

    fn deliver(&mut self, source: SocketAddr, destination: SocketAddr, packet: Packet) {
        if destination == addr(STUN) {
            if let Packet::Stun(request) = packet {
                let answer = stun::respond(&request, source).unwrap();
                self.put(destination, source, Packet::Stun(answer));
            }
            return;
        }
        let Some(index) = (0..self.nodes.len()).find(|index| {
            let node = &self.nodes[*index];
            node.up && node.port == destination.port() && node.addresses.contains(&destination.ip())
        }) else {
            return;
        };
        let now = self.now;
        let node = &mut self.nodes[index];
        let key = public(node.number);
        match packet {
            Packet::Probe(payload) | Packet::Stun(payload) => {
                if node.mesh_up {
                    self.with(index, |mesh, now| {
                        mesh.handle_datagram(
                            PathId::wireguard(source),
                            Some(destination.ip()),
                            &payload,
                            now,
                        )
                    });
                }
            }
            Packet::Initiation(from) => {
                let Some(row) = node.device.get_mut(&from) else {
                    return;
                };
                // As in WireGuard: whoever answers forgets the initiation of its own.
                node.initiated.remove(&from);
                row.endpoint = Some(source);
                row.rx_bytes += 148;
                self.put(destination, source, Packet::Response(key));
            }
            Packet::Response(from) => {
                let Some(row) = node.device.get_mut(&from) else {
                    return;
                };
                if node.initiated.remove(&from).is_none() {
                    return;
                }
                row.endpoint = Some(source);
                row.rx_bytes += 92;
                row.last_handshake = Some(now.since_origin());
                self.put(destination, source, Packet::Keepalive(key));
            }
            Packet::Keepalive(from) => {
                let Some(row) = node.device.get_mut(&from) else {
                    return;
                };
                row.endpoint = Some(source);
                row.rx_bytes += 32;
                if row
                    .last_handshake
                    .is_none_or(|at| now.since_origin() > at + secs(180))
                {
                    row.last_handshake = Some(now.since_origin());
                }
            }
        }
    }

    /// Runs for a while.
    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.run_until(end, |_| false);
    }

    /// Runs until the condition holds; false if it does not before `end`.
    pub fn run_until(&mut self, end: Time, mut done: impl FnMut(&Self) -> bool) -> bool {
        let mut spins = 0;
        loop {
            if done(self) {
                return true;
            }
            let wire = self.wire.keys().next().map(|(at, _)| *at);
            let timers = self
                .nodes
                .iter()
                .filter(|node| node.up && node.mesh_up)
                .filter_map(|n| n.mesh.poll_timeout());
            let next = timers.chain(wire).chain([self.next_second]).min().unwrap();
            if next > end {
                self.now = end;
                return false;
            }
            if next > self.now {
                spins = 0;
            }
            spins += 1;
            assert!(spins < 10_000, "time stands still at {:?}", self.now);
            self.now = self.now.max(next);
            if wire.is_some_and(|at| at <= self.now) {
                let (_, (source, destination, packet)) = self.wire.pop_first().unwrap();
                self.deliver(source, destination, packet);
                continue;
            }
            let second = self.next_second <= self.now;
            if second {
                self.next_second += self.reads_every;
            }
            for index in 0..self.nodes.len() {
                if !self.nodes[index].up || !self.nodes[index].mesh_up {
                    continue;
                }
                if second && self.repeats {
                    self.repeat_initiations(index);
                }
                if second {
                    self.feed_device(index);
                }
                if self.nodes[index]
                    .mesh
                    .poll_timeout()
                    .is_some_and(|at| at <= self.now)
                {
                    self.with(index, |mesh, now| mesh.handle_timeout(now));
                }
            }
        }
    }

    /// Runs until both nodes' devices have a session and both agents say so.
    pub fn connect(&mut self) -> Duration {
        let start = self.now;
        let end = start + secs(5);
        let done = self.run_until(end, |world| {
            world
                .nodes
                .iter()
                .all(|node| node.device.values().all(|row| row.last_handshake.is_some()))
        });
        assert!(
            done,
            "no session: {:#?} {:#?}",
            self.nodes[0].events, self.nodes[1].events
        );
        let took = self.now.since(start);
        self.run(secs(3));
        for index in 0..self.nodes.len() {
            for status in self.nodes[index].mesh.status(self.now).peers {
                assert_eq!(
                    status.state,
                    PeerState::Connected,
                    "{:#?}",
                    self.nodes[index].events
                );
            }
        }
        took
    }

    /// Status of the only peer of a two-node world.
    pub fn status(&self, index: usize) -> PeerStatus {
        self.nodes[index]
            .mesh
            .status(self.now)
            .peers
            .into_iter()
            .next()
            .unwrap()
    }

    pub fn sent_since(&self, index: usize, since: Time) -> usize {
        self.nodes[index]
            .sent
            .iter()
            .filter(|(at, _)| *at >= since)
            .count()
    }
}

/// Two node numbers, the first with the lower public key.
pub fn low_high() -> (u8, u8) {
    if public(1) < public(2) {
        (1, 2)
    } else {
        (2, 1)
    }
}

pub fn row(key: PeerKey) -> DevicePeer {
    DevicePeer::new(key)
}
