//! A relay with its control channel, as natpunch's own rendezvous has one, and the client of it: both sides of a pair say
//! what they want, bind a port each, and are told when both have. The server also tells both to fire at one moment.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use natpunch_core::Interest;
use natpunch_types::{Mapping, Origin, PeerKey, RelayUse};

use crate::packet::Payload;
use crate::random::Random;
use crate::rendezvous::Message;

/// Names a pair.
pub(crate) type Tag = [u8; 16];
/// Relay ports begin here.
const FIRST_PORT: u16 = 40_000;
/// A request is repeated after this, doubling ...
const RESEND: Duration = Duration::from_millis(250);
/// ... up to this, until it is answered.
const SLOWEST_RESEND: Duration = Duration::from_secs(2);
/// What is settled is said again, which also finds a server that has restarted.
const REFRESH: Duration = Duration::from_secs(20);
/// For how long the relay's port is believed unless said again.
const LIFETIME: Duration = Duration::from_secs(60);
/// Added to the moment at which both sides fire.
const FIRE_MARGIN: Duration = Duration::from_millis(60);
/// How long one wish waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// The port of the control channel, and the other one, where a client asks how it is seen.
pub(crate) const CONTROL_PORT: u16 = 3478;
const ALTERNATE_PORT: u16 = 3479;

/// How a server deceives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Peers are said to be where nobody asked for them.
    WrongAddresses,
    /// Sides are told to fire all the time, at any moment.
    Fires,
    /// Ports are said to be bound that lead nowhere.
    DeadPorts,
    /// The relay lets probes through and never WireGuard.
    ProbesOnly,
}

#[derive(Debug, Clone)]
struct Side {
    control: SocketAddr,
    relay: RelayUse,
    rtt: Duration,
    port: u16,
    bound: Option<SocketAddr>,
    /// When it wished to meet the other.
    wish: Option<Duration>,
}

/// The server's part.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    pairs: BTreeMap<Tag, BTreeMap<PeerKey, Side>>,
    ports: u16,
    pub(crate) lie: Option<Lie>,
    /// WireGuard's packets that were forwarded.
    pub(crate) carried: u64,
}

impl Relay {
    pub(crate) fn restart(&mut self) {
        // Another run of the server has other ports free.
        *self = Self {
            lie: self.lie,
            ports: self.ports.wrapping_add(100) % 20_000,
            carried: self.carried,
            ..Self::default()
        };
    }

    /// Takes a message of a client; what is sent to whom.
    pub(crate) fn handle(
        &mut self,
        source: SocketAddr,
        port: u16,
        message: Message,
        now: Duration,
        random: &mut Random,
    ) -> Vec<(SocketAddr, Message)> {
        match message {
            Message::WhereAmI => vec![(source, Message::Seen { address: source, port })],
            Message::Pair { from, pair, relay, rtt, meet } => {
                let sides = self.pairs.entry(pair).or_default();
                if !sides.contains_key(&from) && sides.len() >= 2 {
                    return Vec::new();
                }
                let ports = &mut self.ports;
                let side = sides.entry(from).or_insert_with(|| {
                    *ports += 1;
                    Side { control: source, relay, rtt, port: FIRST_PORT + *ports, bound: None, wish: None }
                });
                (side.control, side.relay, side.rtt) = (source, relay, rtt);
                if meet {
                    side.wish = Some(now);
                }
                let both =
                    sides.len() == 2 && sides.values().all(|side| side.wish.is_some_and(|at| now < at + PATIENCE));
                if both {
                    sides.values_mut().for_each(|side| side.wish = None);
                }
                let mut out = self.states(&pair);
                if both || self.lie == Some(Lie::Fires) {
                    out.extend(self.fires(&pair, random));
                }
                out
            }
            Message::Bind { from, pair } => {
                let Some(side) = self.pairs.get_mut(&pair).and_then(|sides| sides.get_mut(&from)) else {
                    return Vec::new();
                };
                if side.port == port {
                    side.bound = Some(source);
                }
                self.states(&pair)
            }
            _ => Vec::new(),
        }
    }

    fn states(&self, pair: &Tag) -> Vec<(SocketAddr, Message)> {
        let Some(sides) = self.pairs.get(pair) else { return Vec::new() };
        let wanted = sides.len() == 2 && sides.values().all(|side| side.relay != RelayUse::Off);
        let bound = wanted && (self.lie == Some(Lie::DeadPorts) || sides.values().all(|side| side.bound.is_some()));
        let state = |side: &Side| {
            let port = wanted.then_some(side.port);
            (side.control, Message::State { pair: *pair, relay: side.relay, port, bound })
        };
        sides.values().map(state).collect()
    }

    fn fires(&self, pair: &Tag, random: &mut Random) -> Vec<(SocketAddr, Message)> {
        let Some(sides) = self.pairs.get(pair).filter(|sides| sides.len() == 2) else { return Vec::new() };
        let slowest = sides.values().map(|side| side.rtt).max().unwrap_or_default();
        let fire = |side: &Side, after| (side.control, Message::Fire { pair: *pair, after });
        if self.lie == Some(Lie::Fires) {
            return sides.values().map(|side| fire(side, random.duration(Duration::from_secs(8)))).collect();
        }
        sides.values().map(|side| fire(side, FIRE_MARGIN + (slowest - side.rtt) / 2)).collect()
    }

    /// Where a datagram to a relay port goes, and from which port: probes always, WireGuard only while wanted.
    pub(crate) fn forward(&mut self, source: SocketAddr, port: u16, payload: &Payload) -> Option<(u16, SocketAddr)> {
        let sides = self.pairs.values().find(|sides| sides.values().any(|side| side.port == port))?;
        let other = sides.values().find(|side| side.port != port)?;
        let bound = sides.values().any(|side| side.port == port && side.bound == Some(source));
        let carries = sides.values().any(|side| side.relay == RelayUse::Carry);
        let passes = match payload {
            Payload::Raw(_) => true,
            Payload::WireGuard(_) => carries && self.lie != Some(Lie::ProbesOnly),
            Payload::Rendezvous(_) => false,
        };
        if !bound || !passes || self.lie == Some(Lie::DeadPorts) {
            return None;
        }
        self.carried += u64::from(matches!(payload, Payload::WireGuard(_)));
        other.bound.map(|to| (other.port, to))
    }
}

/// The discovery instance of the relay at this address.
pub(crate) fn origin(server: IpAddr) -> Origin {
    Origin::new(&format!("relay-{server}"))
}

/// Something that the client wants.
#[derive(Debug)]
pub(crate) enum Effect {
    Send(SocketAddr, Message),
    Candidate { peer: PeerKey, address: SocketAddr, lifetime: Duration },
    Fire { peer: PeerKey, after: Duration },
    Mapping(Mapping),
}

/// The client of one host, of several servers.
#[derive(Debug, Clone)]
pub(crate) struct RelayClient {
    me: PeerKey,
    servers: Vec<SocketAddr>,
    pairs: BTreeMap<(Tag, SocketAddr), Pair>,
    /// How the first server sees us at its two ports, and when to ask again.
    seen: BTreeMap<u16, SocketAddr>,
    ask: Option<Duration>,
}

#[derive(Debug, Clone)]
struct Pair {
    peer: PeerKey,
    relay: RelayUse,
    settled: bool,
    meet: bool,
    next: Duration,
    interval: Duration,
    asked: Duration,
    rtt: Duration,
    port: Option<u16>,
    bound: bool,
    next_bind: Duration,
    /// The port that was told as a candidate.
    told: Option<u16>,
}

impl RelayClient {
    pub(crate) fn new(me: PeerKey, servers: Vec<SocketAddr>, now: Duration) -> Self {
        let ask = servers.first().map(|_| now);
        Self { me, servers, pairs: BTreeMap::new(), seen: BTreeMap::new(), ask }
    }

    pub(crate) fn set_interest(&mut self, interest: &[Interest], now: Duration) {
        let tags: BTreeMap<Tag, &Interest> = interest.iter().map(|interest| (interest.pair_tag, interest)).collect();
        self.pairs.retain(|(tag, _), _| tags.contains_key(tag));
        for (tag, interest) in tags {
            for server in &self.servers {
                let pair = self.pairs.entry((tag, *server)).or_insert_with(|| Pair {
                    peer: interest.peer,
                    relay: RelayUse::Off,
                    settled: true,
                    meet: false,
                    next: Duration::MAX,
                    interval: RESEND,
                    asked: now,
                    rtt: Duration::from_millis(50),
                    port: None,
                    bound: false,
                    next_bind: Duration::MAX,
                    told: None,
                });
                let relay = interest.relay_by(&origin(server.ip()));
                if pair.relay != relay {
                    (pair.relay, pair.settled) = (relay, false);
                    (pair.next, pair.interval) = (now, RESEND);
                }
            }
        }
    }

    pub(crate) fn meet(&mut self, peer: PeerKey, now: Duration) {
        for pair in self.pairs.values_mut().filter(|pair| pair.peer == peer && pair.relay != RelayUse::Off) {
            (pair.meet, pair.next) = (true, now);
        }
    }

    pub(crate) fn handle_network_change(&mut self, now: Duration) {
        self.seen.clear();
        self.ask = self.servers.first().map(|_| now);
        for pair in self.pairs.values_mut().filter(|pair| pair.relay != RelayUse::Off) {
            (pair.settled, pair.next, pair.interval) = (false, now, RESEND);
            pair.next_bind = if pair.port.is_some() { now } else { Duration::MAX };
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        let pairs = self.pairs.values().flat_map(|pair| [pair.next, pair.next_bind]);
        pairs.chain(self.ask).min().filter(|at| *at < Duration::MAX)
    }

    pub(crate) fn handle_timeout(&mut self, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Some((at, server)) = self.ask.as_mut().zip(self.servers.first()).filter(|(at, _)| **at <= now) {
            *at = now + RESEND;
            for port in [CONTROL_PORT, ALTERNATE_PORT] {
                effects.push(Effect::Send(SocketAddr::new(server.ip(), port), Message::WhereAmI));
            }
        }
        for ((tag, server), pair) in &mut self.pairs {
            if pair.next <= now {
                let meet = std::mem::take(&mut pair.meet);
                let message = Message::Pair { from: self.me, pair: *tag, relay: pair.relay, rtt: pair.rtt, meet };
                effects.push(Effect::Send(*server, message));
                pair.asked = now;
                pair.next = now + if pair.settled { REFRESH } else { pair.interval };
                pair.interval = (pair.interval * 2).min(SLOWEST_RESEND);
            }
            if let Some(port) = pair.port.filter(|_| pair.next_bind <= now) {
                let to = SocketAddr::new(server.ip(), port);
                effects.push(Effect::Send(to, Message::Bind { from: self.me, pair: *tag }));
                pair.next_bind = now + if pair.bound { REFRESH } else { RESEND };
                if pair.told.replace(port).is_none() {
                    effects.push(Effect::Candidate { peer: pair.peer, address: to, lifetime: LIFETIME });
                }
            }
        }
        effects
    }

    pub(crate) fn handle(&mut self, source: SocketAddr, message: Message, now: Duration) -> Vec<Effect> {
        let server = self.servers.iter().find(|server| server.ip() == source.ip()).copied();
        match message {
            Message::State { pair: tag, relay, port, bound } => {
                let Some(server) = server else { return Vec::new() };
                let Some(pair) = self.pairs.get_mut(&(tag, server)) else { return Vec::new() };
                if relay == pair.relay && !pair.settled {
                    (pair.settled, pair.interval) = (true, RESEND);
                    pair.rtt = now - pair.asked;
                    pair.next = if pair.meet { now } else { now + REFRESH };
                }
                let gone = pair.told.take_if(|told| Some(*told) != port);
                if port != pair.port {
                    (pair.port, pair.next_bind) = (port, if port.is_some() { now } else { Duration::MAX });
                }
                pair.bound = bound;
                let peer = pair.peer;
                let offer = |port, lifetime| {
                    let address = SocketAddr::new(server.ip(), port);
                    Effect::Candidate { peer, address, lifetime }
                };
                let offered = pair.told.filter(|_| bound);
                let gone = gone.map(|port| offer(port, Duration::ZERO));
                gone.into_iter().chain(offered.map(|port| offer(port, LIFETIME))).collect()
            }
            Message::Seen { address, port } => {
                self.seen.insert(port, address);
                let [Some(one), Some(other)] = [CONTROL_PORT, ALTERNATE_PORT].map(|port| self.seen.get(&port)) else {
                    return Vec::new();
                };
                self.ask = None;
                let mapping = if one == other { Mapping::EndpointIndependent } else { Mapping::EndpointDependent };
                vec![Effect::Mapping(mapping)]
            }
            Message::Fire { pair: tag, after } => {
                let known = server.and_then(|server| self.pairs.get(&(tag, server)));
                known.map(|pair| Effect::Fire { peer: pair.peer, after }).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }
}
