//! The mesh: owns the peers and routes every input to the one that it concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{
    Ask, CandidateKind, DevicePeer, DeviceSnapshot, HostNetwork, InstanceName, Interest, PathId,
    PeerKey, Pins, ProbeTag, Rate, RateBudget, RecordTag, RelayUse, Route, Running, SealedRecord,
    canonical, is_initiation_for, is_response_for, resting_endpoint,
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use crate::env::{Env, Outbox, PingBudget};
use crate::gather::{Haste, Local};
use crate::keys::PairKeys;
use crate::messages::{peer_message, probe, size};
use crate::nat::profile::NatProfile;
use crate::nat::sampling::Sampler;
use crate::pacer::Pacer;
use crate::peer::{Peer, Search};
use crate::ports::{Pinning, SourcePorts};
use crate::status::ProbeStatus;
use crate::{
    Command, Event, LocalStatus, MeshSpec, MeshStatus, PacketStatus, PeerSpec, Time, Transmit, stun,
};

mod nat;
mod news;
mod records;

/// Pings per second of the whole node.
const PINGS_PER_SECOND: u64 = 250;
/// Pongs per second of the whole node: more is a replay flood.
const PONGS_PER_SECOND: u64 = 1000;
/// Messages to peers per second of the whole node, and so many at once.
const MESSAGES: Rate = Rate::per_second(64, 256);
/// Peers that WireGuard is told to put to rest, of the whole node: it has to keep up.
const RESTS: Rate = Rate::per_second(50, 100);
/// A device is usually read this often, which the time that it is given takes into account ...
const USUAL_READING: Duration = Duration::from_secs(1);
/// ... and more is not waited for, however seldom it is read.
const LONGEST_READING_DELAY: Duration = Duration::from_secs(30);
/// Link events come in clusters: after one, others are taken together for this long.
const DEBOUNCE: Duration = Duration::from_millis(300);
/// The same for what is told to discovery, except that the first goes out at once.
const SETTLE: Duration = Duration::from_millis(50);

/// Something that is told to discovery when it changed, at once at first and then not more often
/// than [`SETTLE`].
#[derive(Debug, Default)]
struct Notice<T> {
    last: Option<T>,
    due: Option<Time>,
    sent: Option<Time>,
}

impl<T> Notice<T> {
    fn touch(&mut self, now: Time) {
        let earliest = self.sent.map_or(now, |sent| (sent + SETTLE).max(now));
        self.due = Some(self.due.map_or(earliest, |due| due.min(earliest)));
    }

    fn take_due(&mut self, now: Time) -> bool {
        let due = self.due.is_some_and(|due| due <= now);
        if due {
            self.due = None;
        }
        due
    }
}

/// One node's view of its mesh.
///
/// Feed one input by a `handle_*` method, then drain `poll_transmit`, `poll_command` and
/// `poll_event`, then call `handle_timeout` at `poll_timeout`. The first snapshot of the device
/// should come first of all: until then no endpoint is set, since a device that ran before us may
/// have live sessions.
pub struct Mesh {
    spec: MeshSpec,
    public_key: PeerKey,
    peers: BTreeMap<PeerKey, Peer>,
    by_probe_tag: BTreeMap<ProbeTag, PeerKey>,
    by_record_tag: BTreeMap<RecordTag, PeerKey>,
    /// The discovery instances that run.
    instances: BTreeMap<InstanceName, Running>,
    env: Env,
    /// Rows of the last snapshot that belong to nobody: a peer that a reload adds may have a live
    /// session already.
    strangers: BTreeMap<PeerKey, DevicePeer>,
    /// When each peer wants to be called, both ways round.
    timers: BTreeSet<(Time, PeerKey)>,
    timer_of: BTreeMap<PeerKey, Time>,
    /// The peers that are connected, by whatever path.
    connected: BTreeSet<PeerKey>,
    /// The peers that are looked for: those without a connection, or with one by a relay only.
    wanted: BTreeMap<PeerKey, Search>,
    /// What each peer wants of a relay, unless that is nothing.
    relays: BTreeMap<PeerKey, RelayUse>,
    /// The peers that messages reach, as far as an instance sends any.
    direct: BTreeSet<PeerKey>,
    /// The peers at rest.
    resting: BTreeSet<PeerKey>,
    /// The peers of which a handshake may come now, and whether the shell was told to hear what
    /// WireGuard answers.
    answered: BTreeSet<PeerKey>,
    hears_responses: bool,
    interest: Notice<Arc<[Interest]>>,
    records: Notice<Vec<(CandidateKind, SocketAddr)>>,
    record_counter: u64,
    /// What each peer was last told of where this node is, and when all were.
    renewed: Option<Time>,
    sealed: BTreeMap<PeerKey, SealedRecord>,
    /// Samples of the NAT may be wanted then.
    sample_due: Option<Time>,
    /// The next step of measuring how long it holds a mapping, and whose packets it lets in.
    measure_due: Option<Time>,
    /// Bits of the profile that a test has the other way round.
    distortion: [u8; 3],
    last_change: Option<Time>,
    pending_change: Option<Time>,
}

impl Mesh {
    /// A mesh that knows nothing but its spec. `seed` must be random in production and is the run
    /// in a simulation.
    pub fn new(spec: MeshSpec, seed: [u8; 32], now: Time) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let session = rng.next_u64().max(1);
        let mut mesh = Self {
            public_key: spec.private_key.public_key(),
            peers: BTreeMap::new(),
            by_probe_tag: BTreeMap::new(),
            by_record_tag: BTreeMap::new(),
            instances: BTreeMap::new(),
            env: Env {
                rng,
                session,
                overlay: Vec::new(),
                mtu: spec.mtu,
                local: Local::default(),
                pings: PingBudget::per_second(PINGS_PER_SECOND),
                pongs: RateBudget::new(Rate::per_second(PONGS_PER_SECOND, PONGS_PER_SECOND)),
                rests: RateBudget::new(RESTS),
                messages: RateBudget::new(MESSAGES),
                probes: ProbeStatus::default(),
                ports: SourcePorts::default(),
                sampler: Sampler::default(),
                lifetimes: nat::lifetimes(),
                filters: nat::filters(),
                hops: nat::hops(),
                pacer: Pacer::new(spec.punch),
                profile: NatProfile::default(),
                out: Outbox::default(),
                arranges: false,
                has_messages: false,
                relay_hosts: BTreeSet::new(),
                sequence: 0,
                published: None,
                device_seen: false,
                reading_delay: Duration::ZERO,
                read_at: None,
            },
            strangers: BTreeMap::new(),
            timers: BTreeSet::new(),
            timer_of: BTreeMap::new(),
            connected: BTreeSet::new(),
            wanted: BTreeMap::new(),
            relays: BTreeMap::new(),
            direct: BTreeSet::new(),
            resting: BTreeSet::new(),
            answered: BTreeSet::new(),
            hears_responses: false,
            interest: Notice::default(),
            records: Notice::default(),
            record_counter: 0,
            renewed: None,
            sealed: BTreeMap::new(),
            sample_due: None,
            measure_due: None,
            distortion: [0; 3],
            last_change: None,
            pending_change: None,
            spec: MeshSpec {
                peers: Vec::new(),
                ..spec.clone()
            },
        };
        mesh.handle_spec(spec, now);
        mesh
    }

    /// Reload: peers that are in both keep all state; removed ones are forgotten; nothing is
    /// re-punched.
    ///
    /// A peer of which more changed than [`PeerSpec::is_same_peer`] allows is a new peer, and all are
    /// if our private key changed. It inherits the session of the device, and what is known of
    /// its addresses if the keys of the pair are the same.
    pub fn handle_spec(&mut self, spec: MeshSpec, now: Time) {
        let same_identity = spec.private_key == self.spec.private_key;
        self.public_key = spec.private_key.public_key();
        self.env.overlay.clone_from(&spec.overlay);
        self.env.mtu = spec.mtu;
        let port_changed = spec.listen_port != self.spec.listen_port;
        self.env.local.set_listen_port(spec.listen_port);
        self.env.pacer.set(spec.punch);
        let listed: BTreeMap<PeerKey, &PeerSpec> = spec
            .peers
            .iter()
            .filter(|peer| peer.key != self.public_key)
            .map(|peer| (peer.key, peer))
            .collect();

        let gone: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(key, peer)| {
                !listed
                    .get(key)
                    .is_some_and(|new| same_identity && new.is_same_peer(&peer.spec))
            })
            .map(|(key, _)| *key)
            .collect();
        let mut changed = !gone.is_empty();
        let mut replaced: BTreeMap<PeerKey, Peer> = gone
            .iter()
            .filter_map(|key| Some((*key, self.remove(key)?)))
            .collect();
        for (key, listed) in listed {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.spec = listed.clone();
                continue;
            }
            let keys = PairKeys::derive(&spec.private_key, &key, listed.preshared_key.as_ref());
            if let Some(keys) = &keys {
                self.by_probe_tag.insert(keys.inbound.probe_tag, key);
                self.by_record_tag.insert(keys.inbound.record_tag, key);
            }
            let mut peer = Peer::new(listed.clone(), keys, &self.public_key, &mut self.env, now);
            if let Some(predecessor) = replaced.remove(&key) {
                peer.inherit(predecessor, &mut self.env, now);
            } else if let Some(row) = self.strangers.remove(&key) {
                peer.handle_device(Some(&row), &mut self.env, now);
            }
            self.peers.insert(key, peer);
            self.settle(&key, now);
            changed = true;
        }
        self.spec = MeshSpec {
            peers: Vec::new(),
            ..spec
        };
        // Endpoints may differ; the same interest is not told twice.
        self.interest.touch(now);
        if changed {
            self.records.last = None;
        }
        self.records.touch(now);
        if port_changed {
            self.change_network(now);
        }
        self.flush(now);
    }

    fn remove(&mut self, key: &PeerKey) -> Option<Peer> {
        let peer = self.peers.remove(key)?;
        self.env.sequence = self.env.sequence.max(peer.last_sequence());
        if let Some(keys) = &peer.keys {
            self.by_probe_tag.remove(&keys.inbound.probe_tag);
            self.by_record_tag.remove(&keys.inbound.record_tag);
        }
        if let Some(time) = self.timer_of.remove(key) {
            self.timers.remove(&(time, *key));
        }
        self.wanted.remove(key);
        self.connected.remove(key);
        self.relays.remove(key);
        self.direct.remove(key);
        self.resting.remove(key);
        self.sealed.remove(key);
        self.answered.remove(key);
        self.env.local.sightings.forget(key);
        self.env.out.forget_endpoint(key);
        self.env.out.forget_meet(key);
        self.env.ports.close(key, |_| false);
        Some(peer)
    }

    /// This host's interface addresses, complete, best first. A change starts a new round.
    pub fn handle_local_addresses(&mut self, network: &HostNetwork, now: Time) {
        if self.env.local.set_hosts(network, &self.spec.overlay) {
            self.records.touch(now);
            self.handle_network_change(now);
        }
    }

    /// The kernel's answer to a [`Command::FindRoute`].
    pub fn handle_route(&mut self, peer: PeerKey, ip: IpAddr, route: Route, now: Time) {
        self.with_peer(&peer, now, |peer, env| {
            peer.handle_route(ip, route, env, now)
        });
        self.flush(now);
    }

    /// Route or link change, or a suspend gap: everything may be different, so there is a new round
    /// for all peers; old paths are kept until replaced.
    pub fn handle_network_change(&mut self, now: Time) {
        match self
            .last_change
            .map(|last| last + DEBOUNCE)
            .filter(|until| now < *until)
        {
            Some(until) => self.pending_change = Some(until),
            None => self.change_network(now),
        }
        self.flush(now);
    }

    fn change_network(&mut self, now: Time) {
        self.last_change = Some(now);
        self.pending_change = None;
        self.env.local.restart(&mut self.env.rng, now);
        let Env {
            sampler,
            lifetimes,
            filters,
            hops,
            ports,
            ..
        } = &mut self.env;
        hops.restart(ports);
        sampler.restart(ports, &self.public_key);
        for lifetimes in lifetimes.iter_mut() {
            lifetimes.restart(ports, now);
        }
        for filters in filters.iter_mut() {
            filters.restart(ports);
        }
        self.ask_stun(now);
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys {
            self.with_peer(&key, now, |peer, env| peer.handle_network_change(env, now));
        }
    }

    /// STUN servers to learn reflexive addresses from, complete.
    pub fn handle_stun_servers(&mut self, servers: &[SocketAddr], now: Time) {
        self.env.local.set_servers(servers, &mut self.env.rng, now);
        self.ask_stun(now);
        self.flush(now);
    }

    /// A datagram that arrived: by which path an answer to it would leave, which names the port of
    /// this host that it came to, and the address on this host that it was sent to. What a pin has
    /// led to WireGuard's port may be named either way. Anything but probes, messages
    /// of peers and answers to our STUN requests is ignored.
    pub fn handle_datagram(
        &mut self,
        path: PathId,
        destination: Option<IpAddr>,
        payload: &[u8],
        now: Time,
    ) {
        let path = path.with_remote(canonical(path.remote));
        if let Some(tag) = probe::tag(payload) {
            let Some(key) = self.by_probe_tag.get(&tag).copied() else {
                return;
            };
            self.with_peer(&key, now, |peer, env| {
                peer.handle_probe(path, destination, payload, env, now)
            });
        } else if let Some(tag) = peer_message::tag(payload) {
            self.handle_message(tag, payload, now);
        } else if let Some(tag) = size::tag(payload) {
            let Some(key) = self.by_probe_tag.get(&tag).copied() else {
                return;
            };
            self.with_peer(&key, now, |peer, env| {
                peer.handle_size_probe(path, destination, payload, env, now)
            });
        } else if stun::is_stun(payload) && path.pin().is_some() {
            self.handle_sample(path, payload, now);
        } else if stun::is_stun(payload) {
            let haste = self.haste();
            let was_known = self.env.local.has_reflexive();
            let learned =
                self.env
                    .local
                    .handle_answer(path.remote, payload, haste, &mut self.env.rng, now);
            let is_learned = learned.is_some();
            if let Some(event) = learned {
                self.env.out.event(event);
                self.records.touch(now);
            }
            if self.env.local.take_return() {
                // Whoever waits ever longer for a server need not wait any more, and the NAT may have
                // other ports for us.
                self.env.out.is_back();
                self.for_wanted(now, Peer::search_again);
            } else if is_learned && !was_known {
                // We are back on the internet, and so may be the peers that were given up.
                self.for_wanted(now, Peer::start_anew);
            }
        }
        self.flush(now);
    }

    fn handle_message(&mut self, tag: ProbeTag, datagram: &[u8], now: Time) {
        let Some(key) = self.by_probe_tag.get(&tag).copied() else {
            return;
        };
        // Nobody here has use for it.
        if !self.env.has_messages {
            return;
        }
        self.with_peer(&key, now, |peer, env| {
            if let Some(payload) = peer.handle_message(datagram, env, now) {
                let command = Command::TakeMessage { peer: key, payload };
                env.out.commands.push_back(command);
            }
        });
    }

    /// Sends what a discovery instance says to the same plugin at a peer, if there is a direct path
    /// to the peer and the budget allows it.
    pub fn send_message(&mut self, peer: &PeerKey, payload: &[u8], now: Time) {
        self.with_peer(peer, now, |peer, env| peer.send_message(payload, env, now));
        self.flush(now);
    }

    /// From now on the device is read this often. What it has done shows that much later, so it is
    /// given the time: a device of ten thousand peers takes long to read, and is read seldom.
    pub fn set_reading_interval(&mut self, interval: Duration) {
        let unusual = interval.saturating_sub(USUAL_READING);
        self.env.reading_delay = unusual.min(LONGEST_READING_DELAY);
    }

    /// The device's truth: to be fed every second, and right after each command was executed.
    pub fn handle_device(&mut self, snapshot: &DeviceSnapshot, now: Time) {
        self.env.device_seen = true;
        self.env.read_at = snapshot.read_at;
        let rows: BTreeMap<PeerKey, _> = snapshot.peers.iter().map(|row| (row.key, row)).collect();
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys {
            let row = rows.get(&key).copied();
            self.with_peer(&key, now, |peer, env| peer.handle_device(row, env, now));
        }
        let strangers = snapshot
            .peers
            .iter()
            .filter(|row| !self.peers.contains_key(&row.key));
        self.strangers = strangers.map(|row| (row.key, row.clone())).collect();
        self.flush(now);
    }

    /// A handshake initiation that WireGuard has sent to a [resting endpoint](resting_endpoint). It
    /// goes by the path that is found, if the peer is in the mesh.
    pub fn handle_initiation(&mut self, endpoint: SocketAddr, datagram: &[u8], now: Time) {
        let is_meant =
            |key: &PeerKey| resting_endpoint(key) == endpoint && is_initiation_for(key, datagram);
        let Some(key) = self.peers.keys().copied().find(is_meant) else {
            return;
        };
        self.with_peer(&key, now, |peer, env| {
            peer.handle_initiation(datagram, env, now)
        });
        self.flush(now);
    }

    /// A handshake response that WireGuard has sent by this path. Whom it answers gets copies, as far
    /// as its handshake was expected.
    pub fn handle_response(&mut self, path: PathId, datagram: &[u8], now: Time) {
        let path = path.with_remote(canonical(path.remote));
        let is_meant = |key: &PeerKey| is_response_for(key, datagram);
        let Some(key) = self.answered.iter().copied().find(is_meant) else {
            return;
        };
        self.with_peer(&key, now, |peer, _| {
            peer.handle_response(path, datagram, now);
        });
        self.flush(now);
    }

    /// The result of a `SetEndpoint`.
    pub fn handle_endpoint_set(&mut self, peer: PeerKey, path: PathId, ok: bool, now: Time) {
        self.with_peer(&peer, now, |peer, env| {
            peer.handle_endpoint_set(path, ok, env, now)
        });
        self.flush(now);
    }

    /// What the shell says of pins. Until it has said that it can make them, WireGuard's is the
    /// only port.
    pub fn handle_pins(&mut self, pins: Pins, now: Time) {
        match pins {
            Pins::Available => self.env.ports.pinning = Pinning::Possible,
            Pins::Unavailable { reason } => {
                self.env.ports.pinning = Pinning::Impossible(reason);
            }
            Pins::Found { peer, path } => {
                self.with_peer(&peer, now, |peer, env| peer.handle_pin_found(path, env));
            }
            Pins::Lost { peer, path } => {
                self.with_peer(&peer, now, |peer, env| peer.handle_pin_lost(path, env, now));
            }
        }
        self.flush(now);
    }

    /// The shell can't use a port of [`Command::SourcePorts`]: something else of this host has it.
    pub fn handle_source_port_refused(&mut self, port: NonZeroU16, now: Time) {
        if let Some(peer) = self.env.ports.refuse(port) {
            self.with_peer(&peer, now, |peer, env| {
                peer.handle_port_refused(port, env, now)
            });
        }
        self.flush(now);
    }

    /// To be called at `poll_timeout`; earlier or later does no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.pending_change.is_some_and(|due| due <= now) {
            self.change_network(now);
        }
        self.ask_stun(now);
        let due: Vec<PeerKey> = self
            .timers
            .iter()
            .take_while(|(time, _)| *time <= now)
            .map(|(_, key)| *key)
            .collect();
        for key in due {
            self.with_peer(&key, now, |peer, env| peer.handle_timeout(env, now));
        }
        self.flush(now);
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.env.out.transmits.pop_front()
    }

    /// The next thing to do.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.env.out.commands.pop_front()
    }

    /// The next thing to log.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.env.out.events.pop_front()
    }

    /// When `handle_timeout` wants to be called; it may already be past.
    pub fn poll_timeout(&self) -> Option<Time> {
        let peers = self.timers.first().map(|(time, _)| *time);
        let local = [
            self.env.local.next_timeout(),
            self.env.sampler.next_timeout(),
            self.sample_due,
            self.measure_due,
            self.pending_change,
            self.interest.due,
            self.records.due,
        ];
        local.into_iter().chain([peers]).flatten().min()
    }

    /// Everything that is to be seen.
    pub fn status(&self, now: Time) -> MeshStatus {
        let mut peers: Vec<_> = self
            .peers
            .values()
            .map(|peer| peer.status(&self.env, now))
            .collect();
        peers.sort_by(|a, b| (&a.name, a.key).cmp(&(&b.name, b.key)));
        let said = |(kind, address)| LocalStatus { address, kind };
        MeshStatus {
            public_key: self.public_key,
            listen_port: self.spec.listen_port,
            mapping: self.env.local.mapping(),
            nat: self.env.profile.status(),
            punch: self.punch_status(now),
            probes: self.env.probes,
            local: self.env.local.candidates().into_iter().map(said).collect(),
            refuted: self.env.local.refuted().into_iter().map(said).collect(),
            peers,
        }
    }

    /// Pings a peer on the path in use, within the budget, because somebody asks whether it answers.
    pub fn ping(&mut self, peer: &PeerKey, now: Time) {
        self.with_peer(peer, now, |peer, env| peer.ping_in_use(env, now));
        self.flush(now);
    }

    /// When a ping on the path in use was last answered, and its round trip.
    pub fn last_answer(&self, peer: &PeerKey) -> Option<(Time, Duration)> {
        self.peers.get(peer)?.last_answer()
    }

    /// The last packets to and from a peer beside WireGuard's own, the newest first.
    pub fn packets(&self, peer: &PeerKey, now: Time) -> Vec<PacketStatus> {
        let peer = self.peers.get(peer);
        peer.map_or_else(Vec::new, |peer| peer.packets(now))
    }

    /// The peers at rest of which it is known where they were, each with the path to there: for a
    /// WireGuard that nobody helps any more. None is by a relay or a pin.
    pub fn last_paths(&self) -> impl Iterator<Item = (PeerKey, PathId)> {
        let resting = self.resting.iter();
        resting.filter_map(|key| Some((*key, self.peers.get(key)?.last_path()?)))
    }

    /// What WireGuard has counted of each peer, both ways, and whether its path passes through a
    /// relay.
    pub fn traffic(&self) -> impl Iterator<Item = (&PeerKey, bool, u64)> {
        let peers = self.peers.iter();
        peers.map(|(key, peer)| (key, peer.is_relayed(), peer.bytes()))
    }

    /// How the other end of a peer's path was found, if the path is known.
    pub fn kind_of(&self, peer: &PeerKey, path: &PathId) -> Option<CandidateKind> {
        self.peers.get(peer)?.kind_of(path)
    }

    /// The last counter used in a sealed record; the shell stores it and gives it back at start.
    pub fn record_counter(&self) -> u64 {
        self.record_counter
    }

    /// Takes over on which hosts there are relays: what a session runs through that was made by
    /// this node under its earlier key.
    pub fn inherit_relay_hosts(&mut self, predecessor: &Self) {
        self.env
            .relay_hosts
            .clone_from(&predecessor.env.relay_hosts);
    }

    /// Records of this run use counters above this one.
    pub fn set_record_counter_floor(&mut self, floor: u64) {
        self.record_counter = self.record_counter.max(floor);
    }

    /// How urgently servers are asked where this node is.
    fn haste(&self) -> Haste {
        let mut wanted = self.wanted.values();
        match wanted.any(|search| *search == Search::Eager) {
            true if self.connected.is_empty() => Haste::Alone,
            true => Haste::Eager,
            false => Haste::Relaxed,
        }
    }

    fn believe_stated(&mut self, now: Time) {
        for (origin, address) in self.env.local.believe(now) {
            self.env.out.event(Event::ReflexiveLearned {
                server: origin.to_string(),
                address,
            });
            self.records.touch(now);
        }
    }

    fn ask_stun(&mut self, now: Time) {
        self.believe_stated(now);
        let haste = self.haste();
        let Env {
            local, rng, out, ..
        } = &mut self.env;
        let before = local.candidates();
        local.handle_timeout(haste, rng, now, |transmit| out.transmit(transmit, now));
        if local.candidates() != before {
            self.records.touch(now);
        }
    }

    /// Lets all peers without a connection work.
    fn for_wanted(&mut self, now: Time, work: impl Fn(&mut Peer, &mut Env, Time)) {
        let keys: Vec<PeerKey> = self.wanted.keys().copied().collect();
        for key in keys {
            self.with_peer(&key, now, |peer, env| work(peer, env, now));
        }
    }

    /// Lets a peer work and keeps its timer.
    fn with_peer(&mut self, key: &PeerKey, now: Time, work: impl FnOnce(&mut Peer, &mut Env)) {
        if let Some(peer) = self.peers.get_mut(key) {
            work(peer, &mut self.env);
            self.settle(key, now);
        }
    }

    fn settle(&mut self, key: &PeerKey, now: Time) {
        let Some(peer) = self.peers.get(key) else {
            return;
        };
        let next = peer.next_timeout(&self.env, now);
        let before = match next {
            Some(next) => self.timer_of.insert(*key, next),
            None => self.timer_of.remove(key),
        };
        if before != next {
            if let Some(before) = before {
                self.timers.remove(&(before, *key));
            }
            self.timers.extend(next.map(|next| (next, *key)));
        }
        put(&mut self.answered, key, peer.expects_response(now));
        let relay = peer.relay_use(now);
        let before = match relay {
            RelayUse::Off => self.relays.remove(key),
            _ => self.relays.insert(*key, relay),
        };
        if before.unwrap_or_default() != relay {
            self.interest.touch(now);
        }
        let is_direct = self.env.has_messages && peer.takes_messages(now);
        let has_changed = put(&mut self.direct, key, is_direct);
        if has_changed {
            self.interest.touch(now);
        }
        let rests = peer.rests();
        let has_changed = put(&mut self.resting, key, rests);
        if has_changed {
            self.interest.touch(now);
            // It is told where this node is, or no longer.
            self.sealed.remove(key);
            if !rests {
                self.records.touch(now);
            }
        }
        let (search, is_up) = (peer.search(now), peer.is_up(now));
        let has_changed = put(&mut self.connected, key, is_up);
        if has_changed && is_up {
            self.env.local.on_company(&mut self.env.rng, now);
        } else if has_changed {
            // Also where a relay was all there was, so that the peer was looked for before.
            self.env.local.hurry(now);
        }
        let before = match search {
            Search::Done => self.wanted.remove(key),
            Search::Patient | Search::Eager => self.wanted.insert(*key, search),
        };
        let before = before.unwrap_or(Search::Done);
        if before != search {
            self.interest.touch(now);
        }
        if before == Search::Done && search != Search::Done {
            self.env.local.sightings.forget(key);
            self.env.local.hurry(now);
        }
    }

    /// Tells discovery, and the shell, what changed.
    fn flush(&mut self, now: Time) {
        self.sample(now);
        self.measure(now);
        self.note_profile(now);
        if let Some(ports) = self.env.ports.take_changed() {
            self.env.out.source_ports(ports);
        }
        let hears = !self.answered.is_empty();
        if std::mem::replace(&mut self.hears_responses, hears) != hears {
            self.env.out.hear_responses(hears);
        }
        if self.interest.take_due(now) {
            let interest: Arc<[Interest]> = self
                .peers
                .iter()
                .map(|(key, peer)| self.interest_in(key, peer))
                .collect();
            if self.interest.last.as_ref() != Some(&interest) {
                self.interest.sent = Some(now);
                self.env.out.ask(Ask::Peers(interest.clone()));
                self.interest.last = Some(interest);
            }
        }
        if self.env.local.sightings.take_changed() {
            self.records.touch(now);
        }
        if self.records.take_due(now) {
            self.env.local.sightings.expire(now);
            self.publish(now);
        }
    }

    fn interest_in(&self, key: &PeerKey, peer: &Peer) -> Interest {
        let interest = Interest {
            wanted: self.wanted.get(key) == Some(&Search::Eager),
            connect: peer.spec.connect,
            rests: peer.rests(),
            endpoint: peer.spec.endpoint.clone(),
            relay: self.relays.get(key).copied().unwrap_or_default(),
            relays: peer.spec.relays.clone(),
            is_direct: self.direct.contains(key),
            ..Interest::new(*key)
        };
        match &peer.keys {
            Some(keys) => Interest {
                inbound_tag: keys.inbound.record_tag,
                outbound_tag: keys.outbound.record_tag,
                pair_tag: keys.pair_tag,
                ..interest
            },
            None => interest,
        }
    }
}

/// Has the peer in this set, or not; true if that is news.
fn put(set: &mut BTreeSet<PeerKey>, peer: &PeerKey, is_in: bool) -> bool {
    match is_in {
        true => set.insert(*peer),
        false => set.remove(peer),
    }
}
