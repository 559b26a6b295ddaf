//! A server of natpunch's own rendezvous on simulated packets: the real one with both its ports and
//! its relay, and what makes a liar of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use natpunch_core::stun;
use natpunch_rendezvous::Server as Core;
use natpunch_rendezvous::relay::{Limits as RelayLimits, Own, Port, Verdict};
use natpunch_rendezvous::server::{Admission, Config, Limits, Via};
use natpunch_rendezvous::testing::reword;
use natpunch_rendezvous::wire::Tag;
use natpunch_types::{SecretKey, Time};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use crate::packet::{Packet, Payload};
use crate::random::Random;

/// Where clients reach it.
pub(crate) const PORT: u16 = 51_900;
/// Where they learn how their NAT maps.
const ALTERNATE_PORT: u16 = 51_901;
/// Its relay's.
const RELAY_PORTS: Range<u16> = 51_902..51_910;
/// Where a liar says that nodes are: somebody who takes part in nothing.
const NOBODY: [u8; 4] = [203, 0, 113, 200];

/// How a server deceives. What it says is authentic all the same: it has the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Nodes are told that they are seen at 203.0.113.200.
    WrongAddresses,
    /// Of each mailbox the first record is told that ever was there.
    OldRecords,
    /// Of each mailbox another one's record is told.
    SwappedRecords,
    /// Nodes are told all the time to fire, at any moment, and that they are wanted.
    Fires,
    /// The relay is offered at ports where nobody listens.
    WrongPorts,
    /// The relay's ports let both sides bind, and pass nothing on.
    DeadPorts,
    /// The relay's ports pass probes on, and nothing of WireGuard's.
    ProbesOnly,
}

/// A server's host.
pub(crate) struct Server {
    key: SecretKey,
    core: Core<ChaCha20Rng>,
    ports: Vec<Port>,
    tokens: stun::Tokens,
    random: Random,
    down: bool,
    liar: Liar,
    /// WireGuard's packets that its relay has passed on.
    pub(crate) carried: u64,
}

impl Server {
    pub(crate) fn new(key: SecretKey, mut random: Random) -> Self {
        let liar = Liar::new(Random::new(random.below(u64::MAX), 8));
        let (core, ports) = start(&key, &mut random);
        Self {
            key,
            core,
            ports,
            tokens: stun::Tokens::new(random.bytes32()),
            random,
            down: false,
            liar,
            carried: 0,
        }
    }

    /// Stops it, or starts it again without its memory.
    pub(crate) fn set_down(&mut self, down: bool) {
        (self.core, self.ports) = start(&self.key, &mut self.random);
        self.down = down;
    }

    /// Lets it deceive, or be honest again.
    pub(crate) fn set_lie(&mut self, lie: Option<Lie>) {
        self.liar.lie = lie;
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        let ports = self.ports.iter().filter_map(Port::poll_timeout);
        self.core
            .poll_timeout()
            .into_iter()
            .chain(ports)
            .min()
            .map(Time::since_origin)
            .filter(|_| !self.down)
    }

    /// Does what is due; what it sends.
    pub(crate) fn handle_timeout(&mut self, now: Duration) -> Vec<Packet> {
        self.core.handle_timeout(Time::from_origin(now));
        self.ports
            .iter_mut()
            .for_each(|port| port.handle_timeout(Time::from_origin(now)));
        self.drain(now)
    }

    /// Takes a packet; what it sends. `addresses`: all of its host's.
    pub(crate) fn handle(
        &mut self,
        packet: &Packet,
        addresses: &[IpAddr],
        now: Duration,
    ) -> Vec<Packet> {
        if self.down {
            return Vec::new();
        }
        let (source, here) = (packet.source, packet.destination);
        let bytes = packet.payload.to_bytes();
        let via = |socket| Via {
            socket,
            local: Some((here.ip(), 0)),
        };
        let mut out = Vec::new();
        if let Some(port) = here
            .port()
            .checked_sub(RELAY_PORTS.start)
            .and_then(|n| self.ports.get_mut(usize::from(n)))
        {
            match port.handle_datagram(via(0), source, &bytes, Time::from_origin(now)) {
                Verdict::Answer(answer) => {
                    out.push(Packet::new(here, source, Payload::Raw(answer.to_vec())))
                }
                Verdict::Forward { to, .. } if self.liar.passes(&packet.payload) => {
                    self.carried += u64::from(matches!(packet.payload, Payload::WireGuard(_)));
                    out.push(Packet {
                        origin: packet.origin,
                        ..Packet::new(here, to, packet.payload.clone())
                    });
                }
                // No pair of the simulator is as fast as a relay's rates.
                Verdict::Forward { .. } | Verdict::Queued | Verdict::Drop => {}
            }
        } else if let Some(socket) = [PORT, ALTERNATE_PORT]
            .iter()
            .position(|port| *port == here.port())
        {
            let (seen, time) = (self.liar.seen(source), Time::from_origin(now));
            let by_token = self.tokens.respond(&bytes, seen, time);
            let by_token = by_token.map(|(answer, to)| (answer, here, to));
            let plain = || {
                let (answer, from) = answer_stun(&bytes, seen, here, addresses)?;
                Some((answer, from, source))
            };
            match by_token.or_else(plain) {
                Some((answer, from, to)) => out.push(Packet::new(from, to, Payload::Raw(answer))),
                None => self.core.handle_datagram(via(socket), seen, &bytes, time),
            }
        }
        out.extend(self.drain(now));
        out
    }

    fn drain(&mut self, now: Duration) -> Vec<Packet> {
        for port in &mut self.ports {
            while let Some(event) = port.poll_event() {
                self.core.handle_relay_event(event, Time::from_origin(now));
            }
        }
        while let Some((port, command)) = self.core.poll_relay_command() {
            self.ports[port].handle_command(command, Time::from_origin(now));
        }
        let mut out = Vec::new();
        while let Some(mut message) = self.core.poll_unsealed() {
            reword(&mut message, |frames| self.liar.edit(frames));
            let Some(transmit) = message.seal() else {
                continue;
            };
            let Some((ip, _)) = transmit.via.local else {
                continue;
            };
            let source = SocketAddr::new(ip, [PORT, ALTERNATE_PORT][transmit.via.socket]);
            out.push(Packet::new(
                source,
                self.liar.truth(transmit.destination),
                Payload::Raw(transmit.payload),
            ));
        }
        out
    }
}

/// The answer to a STUN request, and from which address and port of the server's it leaves.
fn answer_stun(
    request: &[u8],
    source: SocketAddr,
    here: SocketAddr,
    addresses: &[IpAddr],
) -> Option<(Vec<u8>, SocketAddr)> {
    let port = match here.port() {
        PORT => ALTERNATE_PORT,
        _ => PORT,
    };
    let mut others = addresses.iter().filter(|ip| ip.is_ipv4() == here.is_ipv4());
    let ip = others.find(|ip| **ip != here.ip());
    let origins = stun::Origins {
        here,
        other_port: Some(SocketAddr::new(here.ip(), port)),
        other_ip: ip.map(|ip| SocketAddr::new(*ip, here.port())),
        other: ip.map(|ip| SocketAddr::new(*ip, port)),
    };
    let (answer, change) = stun::respond_from(request, source, &origins, request.len())?;
    let from = match (change.ip, change.port) {
        (false, false) => Some(here),
        (false, true) => origins.other_port,
        (true, false) => origins.other_ip,
        (true, true) => origins.other,
    };
    Some((answer, from?))
}

/// A process of the server, which knows nobody.
fn start(key: &SecretKey, random: &mut Random) -> (Core<ChaCha20Rng>, Vec<Port>) {
    let config = Config {
        keys: vec![key.clone()],
        admission: Admission::default(),
        limits: Limits::default(),
        alternate_port: Some(ALTERNATE_PORT),
    };
    let Ok(mut core) = Core::new(config, ChaCha20Rng::from_seed(random.bytes32())) else {
        panic!("the key of a server is all zeros");
    };
    core.set_relay_ports(RELAY_PORTS.collect());
    let own = Own {
        addresses: BTreeSet::new(),
        ports: (PORT..RELAY_PORTS.end).collect(),
    };
    let ports = RELAY_PORTS
        .map(|_| Port::new(RelayLimits::default(), own.clone(), random.bytes32()))
        .collect();
    (core, ports)
}

/// What stands between an honest server and the world.
struct Liar {
    lie: Option<Lie>,
    random: Random,
    /// By where the server believes that they are, where they are.
    misled: BTreeMap<SocketAddr, SocketAddr>,
    /// The first and the last record of each mailbox.
    records: BTreeMap<Tag, [Vec<u8>; 2]>,
    /// The tags of pairs, and of mailboxes that are watched.
    pairs: BTreeSet<Tag>,
    watched: BTreeSet<Tag>,
}

// Kinds of frames (docs/protocol.md).
const WATCHING: u8 = 4;
const RECORD: u8 = 5;
const RELAY_OFFER: u8 = 9;
const RELAY_STATE: u8 = 10;
const FIRE: u8 = 11;
const WANTED: u8 = 14;

impl Liar {
    fn new(random: Random) -> Self {
        let (misled, records) = (BTreeMap::new(), BTreeMap::new());
        Self {
            lie: None,
            random,
            misled,
            records,
            pairs: BTreeSet::new(),
            watched: BTreeSet::new(),
        }
    }

    /// Where the server believes that a datagram comes from.
    fn seen(&mut self, source: SocketAddr) -> SocketAddr {
        if self.lie != Some(Lie::WrongAddresses) {
            return source;
        }
        let known = self
            .misled
            .iter()
            .find(|(_, truth)| **truth == source)
            .map(|(seen, _)| *seen);
        known.unwrap_or_else(|| {
            let seen = SocketAddr::from((NOBODY, 1024 + self.misled.len() as u16));
            self.misled.insert(seen, source);
            seen
        })
    }

    fn truth(&self, seen: SocketAddr) -> SocketAddr {
        self.misled.get(&seen).copied().unwrap_or(seen)
    }

    /// Whether the relay passes on what it would.
    fn passes(&self, payload: &Payload) -> bool {
        match self.lie {
            Some(Lie::DeadPorts) => false,
            Some(Lie::ProbesOnly) => !matches!(payload, Payload::WireGuard(_)),
            _ => true,
        }
    }

    /// Changes what the server says, and learns from it.
    fn edit(&mut self, frames: &mut Vec<(u8, Vec<u8>)>) {
        for (kind, body) in frames.iter_mut() {
            let Some(tag) = body.first_chunk::<16>().copied() else {
                continue;
            };
            match *kind {
                WATCHING => _ = self.watched.insert(tag),
                RECORD => self.edit_record(tag, body),
                RELAY_OFFER if self.lie == Some(Lie::WrongPorts) => {
                    body[16..18].copy_from_slice(&self.random.port(20_000, 40_000).to_be_bytes());
                }
                RELAY_STATE => _ = self.pairs.insert(tag),
                _ => {}
            }
        }
        if self.lie == Some(Lie::Fires) {
            for tag in &self.pairs {
                let delay = self.random.below(8_000) as u16;
                frames.push((FIRE, [&tag[..], &delay.to_be_bytes()].concat()));
            }
            frames.extend(self.watched.iter().map(|tag| (WANTED, tag.to_vec())));
        }
    }

    fn edit_record(&mut self, tag: Tag, body: &mut Vec<u8>) {
        let blob = body.split_off(tag.len());
        let [first, last] = self
            .records
            .entry(tag)
            .or_insert_with(|| [blob.clone(), blob.clone()]);
        last.clone_from(&blob);
        let said = match self.lie {
            Some(Lie::OldRecords) => first.clone(),
            Some(Lie::SwappedRecords) => {
                let other = self.records.iter().find(|(other, _)| **other != tag);
                other.map_or(blob, |(_, [_, last])| last.clone())
            }
            _ => blob,
        };
        body.extend(said);
    }
}
