//! Two nodes, their network, and the server.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_core::{Command, Mesh, MeshSpec, PeerSpec, PunchSpec, Time};
use natpunch_rendezvous::client::{Client, Config, Event, To};
use natpunch_rendezvous::testing::{RawSession, welcome};
use natpunch_rendezvous::wire::Kind;
use natpunch_types::{
    Abilities, Ask, Candidate, CandidateKind, DevicePeer, DeviceSnapshot, InstanceName, News,
    OwnAddressKind, PathId, PeerKey, RecordTag, RelayUse, Route, Running, SealedRecord, SecretKey,
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

pub type Tag = [u8; 16];

/// The discovery instance of the server.
const SERVER: &str = "server";

const WAY: Duration = Duration::from_millis(10);

pub fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, n as u8 + 1], 51820))
}

/// Somebody who has nothing to do with it.
pub fn victim(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 88, 90, n], 53))
}

fn server_address() -> SocketAddr {
    SocketAddr::from(([198, 51, 101, 1], 9000))
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes([n; 32])
}

/// How the server behaves.
#[derive(Default, Clone, Copy)]
pub struct Conduct {
    /// Anything, by chance.
    pub harm: bool,
    /// It tells nothing of its own accord.
    pub withhold: bool,
}

struct Node {
    mesh: Mesh,
    client: Client<ChaCha20Rng>,
    peer: PeerKey,
    /// Of the pair, and of our mailbox for the peer.
    tags: [Tag; 2],
    endpoints: Vec<SocketAddr>,
    handshake: Option<Duration>,
    received: u64,
}

/// The server: what it was told, and its sessions.
#[derive(Default)]
pub struct Server {
    sessions: BTreeMap<usize, RawSession>,
    records: Vec<(usize, Tag, Vec<u8>)>,
    watches: BTreeSet<(usize, Tag)>,
    meets: BTreeMap<Tag, usize>,
    /// Where it says that nodes are, if not where they are.
    seen: BTreeMap<usize, SocketAddr>,
    pairs: BTreeSet<Tag>,
}

impl Server {
    /// What this node has put, in order.
    pub fn of(&self, node: usize) -> Vec<(Tag, Vec<u8>)> {
        self.records
            .iter()
            .filter(|(by, ..)| *by == node)
            .map(|(_, tag, blob)| (*tag, blob.clone()))
            .collect()
    }

    /// All tags that it knows.
    pub fn tags(&self) -> Vec<Tag> {
        self.watches
            .iter()
            .map(|(_, tag)| *tag)
            .chain(self.pairs.iter().copied())
            .collect()
    }
}

pub struct World {
    conduct: Conduct,
    nodes: [Node; 2],
    pub server: Server,
    now: Duration,
    next_second: Duration,
    rng: ChaCha20Rng,
    in_flight: VecDeque<(Duration, SocketAddr, SocketAddr, Vec<u8>)>,
    /// Datagrams and bytes to those who have nothing to do with it.
    pub to_victims: (u64, u64),
    /// Bytes that the server sent.
    pub from_server: u64,
    pub lies: u64,
    pub fired: u64,
}

fn frame(kind: u8, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    [&[kind][..], &(body.len() as u16).to_be_bytes(), &body].concat()
}

fn address_bytes(address: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(v4) = address else {
        panic!("IPv4 here")
    };
    [
        &v4.ip().to_ipv6_mapped().octets()[..],
        &v4.port().to_be_bytes(),
    ]
    .concat()
}

impl World {
    pub fn new(seed: u64, conduct: Conduct) -> Self {
        let mesh = |n: u8, peer: Option<PeerKey>| {
            let peer = peer.map(|key| PeerSpec::new("peer", key));
            let peers = peer.into_iter().collect();
            let spec = MeshSpec {
                private_key: key(n),
                listen_port: 51820,
                mtu: 1_420,
                overlay: vec![],
                peers,
                punch: PunchSpec::default(),
            };
            let mut mesh = Mesh::new(spec, [seed as u8 ^ n; 32], Time::ZERO);
            let abilities = Abilities {
                wireguard_port: true,
                meetings: true,
                relays: true,
                records: true,
                mappings: false,
                peer_messages: false,
            };
            let server = (InstanceName::new(SERVER), Running { abilities, run: 1 });
            mesh.handle_instances(BTreeMap::from([server]), Time::ZERO);
            mesh
        };
        let keys = [1, 2].map(|n| mesh(n, None).status(Time::ZERO).public_key);
        let server_key = mesh(200, None).status(Time::ZERO).public_key;
        let nodes = [0, 1].map(|n: usize| {
            let config = Config {
                identity: key(n as u8 + 50),
                servers: vec![server_key],
                admission: None,
            };
            let rng = ChaCha20Rng::seed_from_u64(seed * 10 + n as u64);
            Node {
                mesh: mesh(n as u8 + 1, Some(keys[1 - n])),
                client: Client::new(config, server_address(), rng, Time::ZERO).unwrap(),
                peer: keys[1 - n],
                tags: [[0; 16]; 2],
                endpoints: Vec::new(),
                handshake: None,
                received: 0,
            }
        });
        let mut world = Self {
            conduct,
            nodes,
            server: Server::default(),
            now: Duration::ZERO,
            next_second: Duration::ZERO,
            rng: ChaCha20Rng::seed_from_u64(seed),
            in_flight: VecDeque::new(),
            to_victims: (0, 0),
            from_server: 0,
            lies: 0,
            fired: 0,
        };
        for n in [0, 1] {
            world.nodes[n]
                .mesh
                .handle_local_addresses(&[address(n).ip()].into_iter().collect(), Time::ZERO);
        }
        world.read_devices();
        world
    }

    /// WireGuard has a session while both endpoints are right.
    fn read_devices(&mut self) {
        let right = [0, 1].map(|n| self.nodes[n].endpoints.last() == Some(&address(1 - n)));
        for node in &mut self.nodes {
            if right == [true; 2] {
                node.received += 100;
                if node
                    .handshake
                    .is_none_or(|at| self.now > at + Duration::from_secs(120))
                {
                    node.handshake = Some(self.now);
                }
            }
            let row = DevicePeer {
                endpoint: node.endpoints.last().copied(),
                last_handshake: node.handshake,
                rx_bytes: node.received,
                tx_bytes: node.received,
                ..DevicePeer::new(node.peer)
            };
            let snapshot = DeviceSnapshot {
                listen_port: 51820,
                peers: vec![row],
                ..DeviceSnapshot::default()
            };
            node.mesh.handle_device(&snapshot, Time::ZERO + self.now);
        }
    }

    pub fn endpoints(&self, n: usize) -> Vec<SocketAddr> {
        let mut endpoints = self.nodes[n].endpoints.clone();
        endpoints.dedup();
        endpoints
    }

    /// What this node thinks that its peer may be at.
    pub fn candidates(&self, n: usize) -> Vec<SocketAddr> {
        let status = self.nodes[n].mesh.status(self.time());
        status
            .peers
            .iter()
            .flat_map(|peer| peer.candidates.iter().map(|candidate| candidate.address))
            .collect()
    }

    fn time(&self) -> Time {
        Time::ZERO + self.now
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut lie_at = self.now;
        loop {
            self.drain();
            let timeouts = self
                .nodes
                .iter()
                .filter_map(|node| node.client.poll_timeout());
            let meshes = self
                .nodes
                .iter()
                .filter_map(|node| node.mesh.poll_timeout());
            let arrivals = self.in_flight.iter().map(|(at, ..)| *at);
            let lie = self
                .conduct
                .harm
                .then_some(lie_at)
                .into_iter()
                .chain([self.next_second]);
            let next = timeouts
                .chain(meshes)
                .map(Time::since_origin)
                .chain(arrivals)
                .chain(lie)
                .min();
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            self.now = self.now.max(next);
            if self.now >= self.next_second {
                self.next_second = self.now + Duration::from_secs(1);
                self.read_devices();
            }
            if self.conduct.harm && self.now >= lie_at {
                lie_at =
                    self.now + Duration::from_millis(u64::from(self.rng.next_u32() % 900) + 20);
                for n in [0, 1] {
                    self.lie(n);
                }
            }
            while let Some(at) = self.in_flight.iter().position(|(at, ..)| *at <= self.now) {
                let (_, from, to, payload) = self.in_flight.remove(at).unwrap();
                self.arrive(from, to, &payload);
            }
            let (now, time) = (self.now, self.time());
            for node in &mut self.nodes {
                node.client.handle_timeout(Time::from_origin(now));
                node.mesh.handle_timeout(time);
            }
        }
        self.now = end;
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, payload: Vec<u8>) {
        if to.ip() == server_address().ip() || (0..2).any(|n| address(n) == to) {
            self.in_flight
                .push_back((self.now + WAY, from, to, payload));
        } else if to.ip() == victim(0).ip() || (0..=255).any(|n| victim(n).ip() == to.ip()) {
            self.to_victims.0 += 1;
            self.to_victims.1 += payload.len() as u64;
        }
    }

    fn arrive(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        if to == server_address() {
            let n = (0..2).find(|n| address(*n) == from);
            n.into_iter().for_each(|n| self.handle_client(n, payload));
            return;
        }
        let Some(n) = (0..2).find(|n| address(*n) == to) else {
            return;
        };
        let (now, time) = (self.now, self.time());
        if from.ip() == server_address().ip() {
            self.nodes[n]
                .client
                .handle_datagram(from, payload, Time::from_origin(now));
        } else {
            self.nodes[n]
                .mesh
                .handle_datagram(PathId::wireguard(from), None, payload, time);
        }
    }

    /// Executes what the nodes want.
    fn drain(&mut self) {
        for n in [0, 1] {
            loop {
                let (now, time) = (self.now, self.time());
                let node = &mut self.nodes[n];
                let mut sends = Vec::new();
                let mut busy = false;
                while let Some(command) = node.mesh.poll_command() {
                    busy = true;
                    match command {
                        Command::SourcePorts(_)
                        | Command::TakeMessage { .. }
                        | Command::Rest { .. }
                        | Command::SetKeepalive { .. }
                        | Command::SetMtu { .. }
                        | Command::HearResponses(_) => {}
                        Command::TellReturn => {
                            node.client.handle_network_change(Time::from_origin(now));
                        }
                        Command::SetEndpoint { peer, path, .. } => {
                            node.endpoints.push(path.endpoint());
                            node.mesh.handle_endpoint_set(peer, path, true, time);
                        }
                        Command::Ask(Ask::Records(records)) => {
                            let records = records
                                .iter()
                                .map(|record| (record.tag.0, record.blob.clone()));
                            node.client.set_records(records, Time::from_origin(now));
                        }
                        Command::Ask(Ask::Peers(interest)) => {
                            node.client.set_watches(
                                interest.iter().map(|peer| peer.inbound_tag.0),
                                Time::from_origin(now),
                            );
                            let relays = interest.iter().filter(|peer| peer.relay != RelayUse::Off);
                            node.client.set_relays(
                                relays.map(|peer| (peer.pair_tag.0, peer.relay)),
                                Time::from_origin(now),
                            );
                            node.tags = interest.first().map_or([[0; 16]; 2], |peer| {
                                [peer.pair_tag.0, peer.outbound_tag.0]
                            });
                        }
                        Command::FindRoute { peer, destination } => {
                            node.mesh
                                .handle_route(peer, destination, Route::Routed, time);
                        }
                        Command::Ask(Ask::Meet(_)) => {
                            let [pair, outbound] = node.tags;
                            node.client.meet(pair, outbound, Time::from_origin(now));
                        }
                    }
                }
                node.client.handle_timeout(Time::from_origin(now));
                while let Some(event) = node.client.poll_event() {
                    busy = true;
                    let peer = node.peer;
                    let news = match event {
                        Event::Observed(address) => News::OwnAddress {
                            address,
                            kind: OwnAddressKind::Reflexive,
                            lifetime: Duration::from_secs(180),
                        },
                        Event::Record { tag, blob } => {
                            let tag = RecordTag(tag);
                            News::Record(SealedRecord { tag, blob })
                        }
                        Event::Fire { after, .. } => {
                            self.fired += 1;
                            News::Fire { peer, after }
                        }
                        Event::Wanted { .. } => News::Wanted { peer },
                        Event::Mapping(mapping) => News::Mapping(mapping),
                        Event::Relay {
                            address: Some(address),
                            ..
                        } => News::Candidate {
                            peer,
                            candidate: Candidate {
                                address,
                                kind: CandidateKind::Relay,
                                lifetime: Duration::from_secs(60),
                            },
                        },
                        Event::Relay { address: None, .. }
                        | Event::Up { .. }
                        | Event::Down
                        | Event::Refused { .. }
                        | Event::Full { .. } => continue,
                    };
                    node.mesh
                        .handle_news(&InstanceName::new(SERVER), news, time);
                }
                while let Some(outgoing) = node.client.poll_transmit() {
                    let to = match outgoing.to {
                        To::Server => server_address(),
                        To::Address(to) => to,
                    };
                    sends.push((to, outgoing.payload));
                }
                while let Some(transmit) = node.mesh.poll_transmit() {
                    sends.push((transmit.path.remote, transmit.payload));
                }
                while node.mesh.poll_event().is_some() {}
                for (to, payload) in sends {
                    self.send(address(n), to, payload);
                }
                if !busy {
                    break;
                }
            }
        }
    }

    /// Says this to a client, now.
    pub fn say(&mut self, n: usize, text: &[u8]) {
        let Some(session) = self.server.sessions.get_mut(&n) else {
            return;
        };
        let notice = session.say(text);
        self.from_server += notice.len() as u64;
        self.nodes[n].client.handle_datagram(
            server_address(),
            &notice,
            Time::from_origin(self.now),
        );
        self.drain();
    }

    /// Tells a client of a record.
    pub fn tell(&mut self, n: usize, tag: Tag, blob: &[u8]) {
        self.say(n, &frame(5, &[&tag, blob]));
    }

    /// Tells a client that it is seen there, from now on.
    pub fn observe(&mut self, n: usize, seen: SocketAddr) {
        self.run(Duration::from_millis(100));
        self.server.seen.insert(n, seen);
        self.say(n, &frame(2, &[&address_bytes(seen)]));
    }

    fn handle_client(&mut self, n: usize, payload: &[u8]) {
        match Kind::of(payload) {
            Some(Kind::Hello) => {
                let seen = if self.conduct.harm {
                    self.some_address()
                } else {
                    address(n)
                };
                let number = self.rng.next_u64();
                let Some((_, welcome, session)) =
                    welcome(&key(200), None, payload, number, seen, &mut self.rng)
                else {
                    return;
                };
                self.server.sessions.insert(n, session);
                self.from_server += welcome.len() as u64;
                self.in_flight
                    .push_back((self.now + WAY, server_address(), address(n), welcome));
            }
            Some(Kind::Confirm) => {
                // What it carries comes again: the session is not told what it has.
                let continued = if self.conduct.harm {
                    frame(13, &[])
                } else {
                    Vec::new()
                };
                self.answer(n, [frame(1, &[&[0, 25]]), continued].concat());
            }
            Some(Kind::Request) => {
                let text = self
                    .server
                    .sessions
                    .get(&n)
                    .and_then(|session| session.open(payload));
                text.into_iter()
                    .for_each(|text| self.handle_frames(n, &text));
            }
            _ => {}
        }
    }

    fn answer(&mut self, n: usize, text: Vec<u8>) {
        let Some(session) = self.server.sessions.get_mut(&n) else {
            return;
        };
        let notice = session.say(&text);
        self.from_server += notice.len() as u64;
        self.in_flight
            .push_back((self.now + WAY, server_address(), address(n), notice));
    }

    fn handle_frames(&mut self, n: usize, mut text: &[u8]) {
        let mut answers = Vec::new();
        while let [kind @ 1..=255, high, low, rest @ ..] = text {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let Some((body, rest)) = rest.split_at_checked(length) else {
                break;
            };
            text = rest;
            let tag: Tag = body
                .get(..16)
                .and_then(|tag| tag.try_into().ok())
                .unwrap_or_default();
            match kind {
                1 => {
                    let seen = self.server.seen.get(&n).copied().unwrap_or(address(n));
                    answers.extend(frame(2, &[&address_bytes(seen)]));
                }
                2 => {
                    let blob = body[24..].to_vec();
                    self.server.records.push((n, tag, blob.clone()));
                    if !self.conduct.withhold
                        && !self.conduct.harm
                        && self.server.watches.contains(&(1 - n, tag))
                    {
                        self.answer(1 - n, frame(5, &[&tag, &blob]));
                    }
                }
                3 => {
                    self.server.watches.insert((n, tag));
                    answers.extend(frame(4, &[&tag]));
                    let known = self
                        .server
                        .records
                        .iter()
                        .rfind(|(_, of, _)| *of == tag)
                        .cloned();
                    if let Some((_, _, blob)) =
                        known.filter(|_| !self.conduct.withhold && !self.conduct.harm)
                    {
                        answers.extend(frame(5, &[&tag, &blob]));
                    }
                }
                6 => drop(self.server.pairs.insert(tag)),
                7 => {
                    self.server.pairs.insert(tag);
                    let other = self.server.meets.insert(tag, n);
                    if other == Some(1 - n) && !self.conduct.harm && !self.conduct.withhold {
                        let fire = frame(11, &[&tag, &[0, 60]]);
                        self.answer(0, fire.clone());
                        self.answer(1, fire);
                        self.server.meets.clear();
                    }
                }
                _ => {}
            }
        }
        if !answers.is_empty() {
            self.answer(n, answers);
        }
    }

    fn some_address(&mut self) -> SocketAddr {
        match self.rng.next_u32() % 8 {
            0 => address((self.rng.next_u32() & 1) as usize),
            1 => SocketAddr::from(([127, 0, 0, 1], 22)),
            2 => SocketAddr::from(([10, 0, 0, 1], 80)),
            _ => victim(self.rng.next_u32() as u8),
        }
    }

    /// One lie, or what is worse.
    fn lie(&mut self, n: usize) {
        self.lies += 1;
        let choice = self.rng.next_u32();
        let tags = self.server.tags();
        let tag = tags
            .get(choice as usize % tags.len().max(1))
            .copied()
            .unwrap_or_default();
        let records = &self.server.records;
        let record = records
            .get(self.rng.next_u32() as usize % records.len().max(1))
            .cloned();
        let text = match choice >> 8 & 15 {
            // A record: the newest, any, of any mailbox, or altered.
            0..=5 => {
                let Some((_, of, mut blob)) = record else {
                    return;
                };
                if choice & 3 == 0 {
                    let at = self.rng.next_u32() as usize % blob.len();
                    blob[at] ^= 1 << (choice >> 16 & 7);
                }
                let under = if choice & 4 == 0 { of } else { tag };
                frame(5, &[&under, &blob])
            }
            6 | 7 => frame(2, &[&address_bytes(self.some_address())]),
            8 | 9 => frame(11, &[&tag, &((choice >> 12) as u16).to_be_bytes()]),
            10 => frame(
                9,
                &[
                    &tag,
                    &((choice >> 12) as u16).to_be_bytes(),
                    &[1; 8],
                    &[2; 32],
                ],
            ),
            11 => frame(10, &[&tag, &[2, 2]]),
            12 => frame(12, &[&((choice >> 12) as u16).to_be_bytes()]),
            13 => frame(8, &[&[0, 0]]),
            14 => frame(7, &[&tag, &[0, 0]]),
            _ if choice & 4 == 0 => frame(14, &[&tag]),
            _ => frame(6, &[&[9; 8]]),
        };
        self.answer(n, text);
    }
}
