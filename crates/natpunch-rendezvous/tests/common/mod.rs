//! A server and clients on a network in memory.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    unreachable_pub
)]

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use natpunch_rendezvous::client::{self, Client, Event, Outgoing, To};
use natpunch_rendezvous::relay::{self, Own, Port, Verdict};
use natpunch_rendezvous::server::{Admission, Config, Limits, Server, Via};
use natpunch_rendezvous::testing::{RawHello, RawSession};
use natpunch_types::{PeerKey, PresharedKey, SecretKey, Time};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

pub type Tag = [u8; 16];
/// A datagram that was sent: by whom (none: the server), from or to where.
pub type Sent = (Option<u16>, SocketAddr, Vec<u8>);

pub fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

pub fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes([n; 32])
}

pub fn public(key: &SecretKey) -> PeerKey {
    natpunch_noise::Identity::new(key).unwrap().public()
}

pub fn address(n: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, (n >> 8) as u8, n as u8], 1000))
}

/// The server's second port.
pub const ALTERNATE_PORT: u16 = 9001;
/// The first port of its relay, if it has one.
const FIRST_RELAY_PORT: u16 = 9100;

/// Where the server is.
pub fn server_address() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], 9000))
}

/// And where its second port is.
pub fn alternate_address() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], ALTERNATE_PORT))
}

/// And where this port of its relay is.
pub fn relay_address(index: usize) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], FIRST_RELAY_PORT + index as u16))
}

/// The server's other address, and the number of its socket there.
pub fn other_address() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 2], 9000))
}
const OTHER_SOCKET: usize = usize::MAX;

pub fn blob(n: u8) -> Arc<[u8]> {
    Arc::from([n; 150])
}

thread_local! {
    /// Servers that this test has started: each process has randomness of its own.
    static STARTED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Lets the servers that are started from now on have the randomness of the first ones again.
pub fn same_randomness_again() {
    STARTED.set(0);
}

/// A server of this key.
pub fn server_with(key: SecretKey, admission: Admission, limits: Limits) -> Server<ChaCha20Rng> {
    let seed = STARTED.get();
    STARTED.set(seed + 1);
    Server::new(
        Config {
            keys: vec![key],
            admission,
            limits,
            alternate_port: Some(ALTERNATE_PORT),
        },
        rng(seed),
    )
    .unwrap()
}

/// How long a datagram takes, unless something else was said.
const USUAL_DISTANCE: Duration = Duration::from_millis(10);

struct InFlight {
    arrives: Time,
    /// None: the server.
    to: Option<u16>,
    /// The server's: 0, the second one, and then the relay's.
    socket: usize,
    source: SocketAddr,
    payload: Vec<u8>,
}

/// A network with one server, whose key is `key(200)`, and clients of numbers.
pub struct Net {
    pub now: Time,
    pub server: Server<ChaCha20Rng>,
    /// The ports of its relay.
    pub ports: Vec<Port>,
    pub clients: BTreeMap<u16, Client<ChaCha20Rng>>,
    /// Where each client is; elsewhere, once it moved.
    pub places: BTreeMap<u16, SocketAddr>,
    /// Where its second port sees each client that is behind a NAT of endpoint-dependent mapping.
    pub seen_elsewhere: BTreeMap<u16, SocketAddr>,
    /// Where its other address sees each client whose NAT maps by address.
    pub seen_by_other: BTreeMap<u16, SocketAddr>,
    /// How long a datagram takes from and to each client, if not 10 ms.
    pub distance: BTreeMap<u16, Duration>,
    pub events: BTreeMap<u16, Vec<Event>>,
    /// When each event came.
    pub times: BTreeMap<u16, Vec<Time>>,
    /// Drops these datagrams, counted from the first, both ways.
    pub lose: Box<dyn FnMut(usize) -> bool>,
    /// Everything that was sent.
    pub wire: Vec<Sent>,
    sent: usize,
    in_flight: VecDeque<InFlight>,
}

impl Net {
    pub fn new(admission: Admission, limits: Limits) -> Self {
        Self {
            now: Time::from_millis(1_000_000),
            server: server_with(key(200), admission, limits),
            ports: Vec::new(),
            clients: BTreeMap::new(),
            places: BTreeMap::new(),
            seen_elsewhere: BTreeMap::new(),
            seen_by_other: BTreeMap::new(),
            distance: BTreeMap::new(),
            events: BTreeMap::new(),
            times: BTreeMap::new(),
            lose: Box::new(|_| false),
            wire: Vec::new(),
            sent: 0,
            in_flight: VecDeque::new(),
        }
    }

    pub fn open() -> Self {
        Self::new(Admission::default(), Limits::default())
    }

    /// Gives the server a relay of so many ports.
    pub fn add_relay(&mut self, ports: usize) {
        let addresses: Vec<SocketAddr> = (0..ports).map(relay_address).collect();
        let numbers: Vec<u16> = addresses.iter().map(SocketAddr::port).collect();
        let own = Own {
            addresses: [server_address().ip()].into(),
            ports: numbers.iter().copied().collect(),
        };
        self.ports = numbers
            .iter()
            .map(|n| Port::new(relay::Limits::default(), own.clone(), [*n as u8; 32]))
            .collect();
        self.server.set_relay_ports(numbers);
    }

    pub fn join(&mut self, n: u16, admission: Option<PresharedKey>) -> &mut Client<ChaCha20Rng> {
        self.join_as(n, SecretKey::from_bytes([(n + 1) as u8; 32]), admission)
    }

    pub fn join_as(
        &mut self,
        n: u16,
        identity: SecretKey,
        admission: Option<PresharedKey>,
    ) -> &mut Client<ChaCha20Rng> {
        let config = client::Config {
            identity,
            servers: vec![public(&key(200))],
            admission,
        };
        let client = Client::new(
            config,
            server_address(),
            rng(1_000 + u64::from(n)),
            self.now,
        )
        .unwrap();
        self.places.insert(n, address(n));
        self.clients.insert(n, client);
        self.clients.get_mut(&n).unwrap()
    }

    /// Lets everything happen that is due, until `end`.
    pub fn run_until(&mut self, end: Time) {
        loop {
            self.collect();
            let timeouts = self
                .clients
                .values()
                .filter_map(Client::poll_timeout)
                .chain(self.server.poll_timeout());
            let timeouts = timeouts.chain(self.ports.iter().filter_map(Port::poll_timeout));
            let next = timeouts
                .chain(self.in_flight.iter().map(|datagram| datagram.arrives).min())
                .min();
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            self.now = self.now.max(next);
            let now = self.now;
            while let Some(at) = self
                .in_flight
                .iter()
                .position(|datagram| datagram.arrives <= now)
            {
                let InFlight {
                    to,
                    socket,
                    source,
                    payload,
                    ..
                } = self.in_flight.remove(at).unwrap();
                match to {
                    None if socket > 1 && socket != OTHER_SOCKET => {
                        self.arrive_at_relay(socket, source, &payload)
                    }
                    None => self.server.handle_datagram(
                        Via {
                            socket,
                            local: None,
                        },
                        source,
                        &payload,
                        now,
                    ),
                    Some(n) => {
                        if let Some(client) = self.clients.get_mut(&n) {
                            client.handle_datagram(source, &payload, now);
                        }
                    }
                }
            }
            self.server.handle_timeout(now);
            self.clients
                .values_mut()
                .for_each(|client| client.handle_timeout(now));
            for port in &mut self.ports {
                port.handle_timeout(now);
                std::iter::from_fn(|| port.poll_event())
                    .for_each(|event| self.server.handle_relay_event(event, now));
            }
        }
        self.now = end;
    }

    fn arrive_at_relay(&mut self, socket: usize, source: SocketAddr, payload: &[u8]) {
        let via = Via {
            socket,
            local: None,
        };
        match self.ports[socket - 2].handle_datagram(via, source, payload, self.now) {
            Verdict::Answer(answer) => self.send_to_client(socket, source, answer.to_vec()),
            Verdict::Forward { to, .. } => self.send_to_client(socket, to, payload.to_vec()),
            Verdict::Queued | Verdict::Drop => {}
        }
    }

    /// Sends from one of the server's sockets.
    fn send_to_client(&mut self, socket: usize, destination: SocketAddr, payload: Vec<u8>) {
        self.sent += 1;
        self.wire.push((None, destination, payload.clone()));
        let mut places = self
            .places
            .iter()
            .chain(&self.seen_elsewhere)
            .chain(&self.seen_by_other);
        let to = places
            .find(|(_, place)| **place == destination)
            .map(|(n, _)| *n);
        if let Some(n) = to.filter(|_| !(self.lose)(self.sent)) {
            let arrives = self.now + self.distance.get(&n).copied().unwrap_or(USUAL_DISTANCE);
            let source = match socket {
                0 => server_address(),
                1 => alternate_address(),
                OTHER_SOCKET => other_address(),
                _ => relay_address(socket - 2),
            };
            self.in_flight.push_back(InFlight {
                arrives,
                to: Some(n),
                socket,
                source,
                payload,
            });
        }
    }

    pub fn run(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    fn collect(&mut self) {
        for (n, client) in &mut self.clients {
            while let Some(event) = client.poll_event() {
                self.events.entry(*n).or_default().push(event);
                self.times.entry(*n).or_default().push(self.now);
            }
            while let Some(Outgoing { to, payload }) = client.poll_transmit() {
                let here = self.places[n];
                let (socket, source) = match to {
                    To::Server => (0, here),
                    To::Address(to) if to == alternate_address() => {
                        (1, self.seen_elsewhere.get(n).copied().unwrap_or(here))
                    }
                    To::Address(to) if to == other_address() => (
                        OTHER_SOCKET,
                        self.seen_by_other.get(n).copied().unwrap_or(here),
                    ),
                    To::Address(to) => (
                        2 + (0..self.ports.len())
                            .find(|index| relay_address(*index) == to)
                            .unwrap(),
                        here,
                    ),
                };
                self.sent += 1;
                self.wire.push((Some(*n), source, payload.clone()));
                if !(self.lose)(self.sent) {
                    let arrives =
                        self.now + self.distance.get(n).copied().unwrap_or(USUAL_DISTANCE);
                    self.in_flight.push_back(InFlight {
                        arrives,
                        to: None,
                        socket,
                        source,
                        payload,
                    });
                }
            }
        }
        while let Some((port, command)) = self.server.poll_relay_command() {
            self.ports[port].handle_command(command, self.now);
        }
        while let Some(transmit) = self.server.poll_transmit() {
            self.send_to_client(transmit.via.socket, transmit.destination, transmit.payload);
        }
    }

    pub fn is_up(&self, n: u16) -> bool {
        let mut events = self.events.get(&n).into_iter().flatten();
        events
            .rfind(|event| matches!(event, Event::Up { .. } | Event::Down))
            .is_some_and(|last| *last != Event::Down)
    }

    pub fn records(&self, n: u16) -> Vec<(Tag, Arc<[u8]>)> {
        let events = self.events.get(&n).into_iter().flatten();
        events
            .filter_map(|event| match event {
                Event::Record { tag, blob } => Some((*tag, blob.clone())),
                _ => None,
            })
            .collect()
    }

    pub fn observed(&self, n: u16) -> Option<SocketAddr> {
        let events = self.events.get(&n).into_iter().flatten();
        events
            .filter_map(|event| match event {
                Event::Observed(address) => Some(*address),
                _ => None,
            })
            .next_back()
    }

    /// What the server sends to whom when this arrives.
    pub fn answers(&mut self, source: SocketAddr, payload: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
        self.server
            .handle_datagram(Via::default(), source, payload, self.now);
        std::iter::from_fn(|| self.server.poll_transmit())
            .map(|t| (t.destination, t.payload))
            .collect()
    }
}

/// A registered client that says what it is told to.
pub struct Raw {
    pub session: RawSession,
    pub place: SocketAddr,
}

/// A frame: its kind and its body.
pub type Frame = (u8, Vec<u8>);

/// The frame that puts a blob, with a digest that is another for each.
pub fn put(tag: Tag, blob: &[u8]) -> Vec<u8> {
    let mut digest = [0_u8; 8];
    for (at, byte) in blob.iter().enumerate() {
        digest[at % 8] = digest[at % 8].wrapping_mul(31).wrapping_add(byte ^ 0x55);
    }
    frame(2, &[&tag, &digest, blob])
}

pub fn frame(kind: u8, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    [&[kind][..], &(body.len() as u16).to_be_bytes(), &body].concat()
}

impl Raw {
    /// Registers; `None` if it was refused.
    pub fn register(
        net: &mut Net,
        n: u32,
        place: SocketAddr,
        admission: Option<&PresharedKey>,
    ) -> Option<Self> {
        let mut identity = [7; 32];
        identity[..4].copy_from_slice(&n.to_be_bytes());
        Self::register_as(net, &SecretKey::from_bytes(identity), place, admission)
    }

    /// The same, by this identity.
    pub fn register_as(
        net: &mut Net,
        identity: &SecretKey,
        place: SocketAddr,
        admission: Option<&PresharedKey>,
    ) -> Option<Self> {
        let seed = u64::from(identity.expose()[0]) << 16 | u64::from(place.port());
        let hello = RawHello::new(identity, &public(&key(200)), admission, &mut rng(seed)).unwrap();
        let welcome = net.answers(place, &hello.datagram).pop()?.1;
        let (confirm, session) = hello.confirm(&welcome, &[]).unwrap();
        let before = net.server.counters().registered;
        net.answers(place, &confirm);
        (net.server.counters().registered > before).then_some(Self { session, place })
    }

    /// Says this, and hears what the server says to that.
    pub fn say(&mut self, net: &mut Net, frames: &[u8]) -> Vec<Frame> {
        let datagram = self.session.say(frames);
        let answers = net.answers(self.place, &datagram);
        answers
            .iter()
            .filter(|(to, _)| *to == self.place)
            .flat_map(|(_, answer)| self.hear(answer))
            .collect()
    }

    /// The frames of a notice for this client.
    pub fn hear(&self, notice: &[u8]) -> Vec<Frame> {
        let text = self.session.open(notice).unwrap_or_default();
        let (mut rest, mut frames) = (&text[..], Vec::new());
        // Kind 0 is padding.
        while let [kind @ 1..=255, high, low, body @ ..] = rest {
            let (body, after) = body.split_at(usize::from(u16::from_be_bytes([*high, *low])));
            frames.push((*kind, body.to_vec()));
            rest = after;
        }
        frames
    }

    /// Leaves a record; whether there was room.
    pub fn put(&mut self, net: &mut Net, tag: Tag, blob: &[u8]) -> bool {
        let answers = self.say(net, &put(tag, blob));
        answers
            .iter()
            .any(|(kind, body)| *kind == 3 && body.starts_with(&tag))
    }

    /// Watches a mailbox; whether there was room, and what is in it.
    pub fn watch(&mut self, net: &mut Net, tag: Tag) -> (bool, Option<Vec<u8>>) {
        let answers = self.say(net, &frame(3, &[&tag, &[0; 8]]));
        let record = answers
            .iter()
            .find(|(kind, body)| *kind == 5 && body.starts_with(&tag));
        (
            answers.iter().any(|(kind, _)| *kind == 4),
            record.map(|(_, body)| body[tag.len()..].to_vec()),
        )
    }
}
