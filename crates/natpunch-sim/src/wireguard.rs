//! A model of WireGuard, after its whitepaper and the Linux driver's timers: what it sends and
//! when, to which endpoint, and how it roams. Nothing is encrypted; instead, a message says
//! truthfully who made it and for whom, and the simulated network never forges one.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{
    DevicePeer, DeviceSnapshot, PeerKey, is_resting, resting_endpoint, sign_handshake,
};

use crate::random::Random;

/// An initiation is repeated after this, and never sent more often.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// The embedded device ends repeating after this.
const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// The kernel's ends after so many repetitions, which is some ten seconds later:
/// `MAX_TIMER_HANDSHAKES` of its messages.h, and one.
const MAX_TIMER_HANDSHAKES: u32 = 19;
/// The initiator of a session of this age makes a new one when it sends.
const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// A session of this age is dead.
const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// Who got data and had nothing to say for this long says so.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Up to this is added to a repetition.
const REKEY_TIMEOUT_JITTER: Duration = Duration::from_millis(333);
/// Packets of one peer that wait for a session; of more, the kernel keeps the last so many
/// (MAX_STAGED_PACKETS). The embedded device keeps the first 256.
const STAGED_PACKETS: usize = 128;

const INITIATION_SIZE: u64 = 148;
const RESPONSE_SIZE: u64 = 92;
const DATA_OVERHEAD: u64 = 32;

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// First message of a handshake; the time of the initiator's clock orders them.
    Initiation {
        /// The session to be, as the initiator names it.
        session: u64,
        /// When it was made.
        timestamp: Duration,
    },
    /// The answer to the initiation of this session.
    Response {
        /// The session.
        session: u64,
    },
    /// Data of a session.
    Data {
        /// The session.
        session: u64,
        /// Counter within the session.
        counter: u64,
        /// Bytes inside; 0 is a keepalive.
        length: u64,
    },
}

/// A message on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Who made it.
    pub from: PeerKey,
    /// For whom.
    pub to: PeerKey,
    /// What it is.
    pub content: Content,
}

impl Message {
    pub(crate) fn size(&self) -> u64 {
        match self.content {
            Content::Initiation { .. } => INITIATION_SIZE,
            Content::Response { .. } => RESPONSE_SIZE,
            Content::Data { length, .. } => DATA_OVERHEAD + length,
        }
    }

    /// What others than WireGuard can tell of it: its type, the indices by which its receiver and
    /// whoever answers find the session, its length, and whom an initiation is for.
    pub(crate) fn outline(&self) -> Vec<u8> {
        let (from, to) = (&self.from, &self.to);
        let (kind, indices) = match self.content {
            Content::Initiation { session, .. } => (1, vec![index(session, from)]),
            Content::Response { session } => (2, vec![index(session, from), index(session, to)]),
            Content::Data { session, .. } => (4, vec![index(session, to)]),
        };
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend(indices.into_iter().flat_map(u32::to_le_bytes));
        bytes.resize(self.size() as usize, 0);
        if let Content::Initiation { .. } | Content::Response { .. } = self.content {
            sign_handshake(to, &mut bytes);
        }
        bytes
    }

    #[cfg(test)]
    pub(crate) fn keepalive_for_test() -> Self {
        let key = PeerKey::from_bytes([0; 32]);
        Self {
            from: key,
            to: key,
            content: Content::Data {
                session: 0,
                counter: 0,
                length: 0,
            },
        }
    }
}

/// By which this side finds a session.
fn index(session: u64, side: &PeerKey) -> u32 {
    let [a, b, c, d, ..] = *side.as_bytes();
    session as u32 ^ u32::from_le_bytes([a, b, c, d])
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.content {
            Content::Initiation { session, .. } => write!(f, "initiation {session:x}"),
            Content::Response { session } => write!(f, "response {session:x}"),
            Content::Data {
                session,
                counter,
                length: 0,
            } => write!(f, "keepalive {session:x}/{counter}"),
            Content::Data {
                session,
                counter,
                length,
            } => write!(f, "data {session:x}/{counter} {length} B"),
        }
    }
}

#[derive(Debug, Clone)]
struct Session {
    id: u64,
    born: Duration,
    initiator: bool,
    sent: u64,
    /// The highest counter received and a window of those before it, as in RFC 6479.
    received: Option<u64>,
    window: u64,
}

impl Session {
    fn new(id: u64, born: Duration, initiator: bool) -> Self {
        Self {
            id,
            born,
            initiator,
            sent: 0,
            received: None,
            window: 0,
        }
    }

    fn usable(&self, now: Duration) -> bool {
        now < self.born + REJECT_AFTER_TIME
    }

    /// True if this counter was not seen before.
    fn accept(&mut self, counter: u64) -> bool {
        match self.received {
            None => {
                self.received = Some(counter);
                self.window = 1;
                true
            }
            Some(last) if counter > last => {
                self.window = self
                    .window
                    .checked_shl(u32::try_from(counter - last).unwrap_or(64))
                    .unwrap_or(0)
                    | 1;
                self.received = Some(counter);
                true
            }
            Some(last) if last - counter < 64 => {
                let bit = 1 << (last - counter);
                let new = self.window & bit == 0;
                self.window |= bit;
                new
            }
            Some(_) => false,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Peer {
    endpoint: Option<SocketAddr>,
    persistent_keepalive: Option<Duration>,
    current: Option<Session>,
    previous: Option<Session>,
    /// As responder: made, but not confirmed by data of the initiator.
    next: Option<Session>,
    /// As initiator: the session that was proposed last.
    proposed: Option<u64>,
    last_initiation: Option<Duration>,
    first_attempt: Option<Duration>,
    /// How often the initiation was repeated since `first_attempt`.
    repetitions: u32,
    newest_timestamp: Option<Duration>,
    last_handshake: Option<Duration>,
    last_received: Option<Duration>,
    rx_bytes: u64,
    tx_bytes: u64,
    received_data: u64,
    staged: VecDeque<u64>,
    // Timers, as in the driver.
    retransmit: Option<Duration>,
    send_keepalive: Option<Duration>,
    new_handshake: Option<Duration>,
    persistent: Option<Duration>,
}

impl Peer {
    /// Its endpoint, unless that is where it rests.
    fn path(&self) -> Option<SocketAddr> {
        self.endpoint.filter(|endpoint| !is_resting(*endpoint))
    }

    fn timers(&self) -> impl Iterator<Item = Duration> {
        [
            self.retransmit,
            self.send_keepalive,
            self.new_handshake,
            self.persistent,
        ]
        .into_iter()
        .flatten()
    }

    fn any_packet_authenticated(&mut self, now: Duration) {
        self.persistent = self.persistent_keepalive.map(|interval| now + interval);
    }
}

/// A datagram that the device wants to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    /// To where.
    pub to: SocketAddr,
    /// What.
    pub message: Message,
}

/// When a device ends the repetitions of an unanswered initiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivesUp {
    /// As the embedded device does: by the clock.
    ByTime,
    /// As the kernel does: by counting, which is later.
    ByCount,
}

/// A WireGuard device with its peers.
#[derive(Debug, Clone)]
pub struct Device {
    gives_up: GivesUp,
    key: PeerKey,
    listen_port: u16,
    peers: BTreeMap<PeerKey, Peer>,
    outgoing: VecDeque<Outgoing>,
    random: Random,
}

impl Device {
    /// A device without peers, which gives up as early as any real one.
    pub fn new(key: PeerKey, listen_port: u16, random: Random) -> Self {
        Self {
            gives_up: GivesUp::ByTime,
            key,
            listen_port,
            peers: BTreeMap::new(),
            outgoing: VecDeque::new(),
            random,
        }
    }

    /// The same device with another way to end its repetitions.
    #[must_use]
    pub fn giving_up(mut self, gives_up: GivesUp) -> Self {
        self.gives_up = gives_up;
        self
    }

    /// Adds a peer, or changes its keepalive. As in the driver, a keepalive that was off and is set
    /// sends one at once.
    pub fn set_peer(
        &mut self,
        key: PeerKey,
        persistent_keepalive: Option<Duration>,
        now: Duration,
    ) {
        let peer = self.peers.entry(key).or_default();
        let switched_on = peer.persistent_keepalive.is_none() && persistent_keepalive.is_some();
        peer.persistent_keepalive = persistent_keepalive;
        if switched_on {
            self.keepalive(key, now);
        }
    }

    /// Adds a peer at its resting endpoint, if it is not there yet.
    pub fn add_resting_peer(&mut self, key: PeerKey) {
        self.peers.entry(key).or_insert_with(|| Peer {
            endpoint: Some(resting_endpoint(&key)),
            ..Peer::default()
        });
    }

    /// Puts a peer to its resting endpoint, without keepalives.
    pub fn rest(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.endpoint = Some(resting_endpoint(&key));
            (peer.persistent_keepalive, peer.persistent) = (None, None);
        }
    }

    /// Removes a peer with all its state.
    pub fn remove_peer(&mut self, key: &PeerKey) {
        self.peers.remove(key);
    }

    /// True if the device has this peer.
    pub fn has_peer(&self, key: &PeerKey) -> bool {
        self.peers.contains_key(key)
    }

    /// Its port.
    pub fn listen_port(&self) -> u16 {
        self.listen_port
    }

    /// Sets where to send. With `kick`, the shell makes WireGuard send there at once, as
    /// `natpunch_wg::set_endpoint` does: a peer that never was heard of is made anew, which forgets
    /// when its last initiation was sent; of any other the keepalive is switched off and on, which
    /// sends one, or without a session an initiation, if the last is [`REKEY_TIMEOUT`] ago. False if
    /// there is no such peer.
    pub fn set_endpoint(
        &mut self,
        key: PeerKey,
        endpoint: SocketAddr,
        kick: bool,
        now: Duration,
    ) -> bool {
        let Some(peer) = self.peers.get_mut(&key) else {
            return false;
        };
        let was_heard = peer.last_handshake.is_some() || peer.rx_bytes > 0;
        if kick && !was_heard {
            *peer = Peer {
                persistent_keepalive: peer.persistent_keepalive,
                ..Peer::default()
            };
        }
        peer.endpoint = Some(endpoint);
        if kick {
            self.keepalive(key, now);
        }
        true
    }

    /// Sends this many bytes of data to a peer, now or as soon as there is a session.
    pub fn send_data(&mut self, key: PeerKey, length: u64, now: Duration) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        // The driver refuses at once what has nowhere to go.
        if peer.endpoint.is_none() {
            return;
        }
        if peer.staged.len() == STAGED_PACKETS {
            peer.staged.pop_front();
        }
        peer.staged.push_back(length);
        self.send_staged(key, now);
    }

    /// Data packets with content that were received from a peer, each once.
    pub fn received_data(&self, key: &PeerKey) -> u64 {
        self.peers.get(key).map_or(0, |peer| peer.received_data)
    }

    /// Where packets to a peer go; `None` while it rests, too.
    pub fn endpoint(&self, key: &PeerKey) -> Option<SocketAddr> {
        self.peers.get(key).and_then(Peer::path)
    }

    /// True if there is a session with this peer that both sides use.
    pub fn has_session(&self, key: &PeerKey, now: Duration) -> bool {
        self.peers
            .get(key)
            .and_then(|peer| peer.current.as_ref())
            .is_some_and(|session| session.usable(now))
    }

    /// When the last handshake with this peer ended.
    pub fn last_handshake(&self, key: &PeerKey) -> Option<Duration> {
        self.peers.get(key).and_then(|peer| peer.last_handshake)
    }

    /// When something authentic last came from this peer.
    pub fn last_received(&self, key: &PeerKey) -> Option<Duration> {
        self.peers.get(key).and_then(|peer| peer.last_received)
    }

    /// The device as an administrator sees it.
    pub fn snapshot(&self) -> DeviceSnapshot {
        let peers = self.peers.iter().map(|(key, peer)| DevicePeer {
            key: *key,
            endpoint: peer.path(),
            // The wall clock of the host: long after the epoch.
            last_handshake: peer
                .last_handshake
                .map(|at| at + Duration::from_secs(1_700_000_000)),
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
            persistent_keepalive: peer.persistent_keepalive,
            allowed_ips: Vec::new(),
            has_preshared_key: false,
        });
        DeviceSnapshot {
            listen_port: self.listen_port,
            public_key: Some(self.key),
            peers: peers.collect(),
            ..Default::default()
        }
    }

    /// A message arrived.
    pub fn handle_message(&mut self, source: SocketAddr, message: Message, now: Duration) {
        let key = message.from;
        if message.to != self.key {
            return;
        }
        let size = message.size();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        match message.content {
            Content::Initiation { session, timestamp } => {
                if peer
                    .newest_timestamp
                    .is_some_and(|newest| timestamp <= newest)
                {
                    return;
                }
                peer.newest_timestamp = Some(timestamp);
                peer.endpoint = Some(source);
                peer.rx_bytes += size;
                peer.last_received = Some(now);
                peer.next = Some(Session::new(session, now, false));
                peer.previous = None;
                // A peer has one handshake state in every implementation: the initiation of the
                // other side overwrites one's own, so that two which cross on the wire both come to
                // nothing.
                peer.proposed = None;
                peer.any_packet_authenticated(now);
                self.transmit(key, Content::Response { session }, now);
            }
            Content::Response { session } => {
                if peer.proposed != Some(session) {
                    return;
                }
                peer.proposed = None;
                peer.endpoint = Some(source);
                peer.rx_bytes += size;
                peer.last_received = Some(now);
                let current = peer.current.replace(Session::new(session, now, true));
                peer.previous = peer.next.take().or(current);
                peer.any_packet_authenticated(now);
                handshake_complete(peer, now);
                if peer.staged.is_empty() {
                    // Confirms the session to the responder.
                    peer.staged.push_back(0);
                }
                self.send_staged(key, now);
            }
            Content::Data {
                session,
                counter,
                length,
            } => {
                let matching = [&mut peer.current, &mut peer.next, &mut peer.previous];
                let known = matching
                    .into_iter()
                    .flatten()
                    .find(|candidate| candidate.id == session);
                let Some(known) = known.filter(|session| session.usable(now)) else {
                    return;
                };
                if !known.accept(counter) {
                    return;
                }
                peer.endpoint = Some(source);
                peer.rx_bytes += size;
                peer.last_received = Some(now);
                if peer.next.as_ref().is_some_and(|next| next.id == session) {
                    peer.previous = peer.current.take();
                    peer.current = peer.next.take();
                    handshake_complete(peer, now);
                }
                peer.new_handshake = None;
                peer.any_packet_authenticated(now);
                if length > 0 {
                    peer.received_data += 1;
                    peer.send_keepalive.get_or_insert(now + KEEPALIVE_TIMEOUT);
                }
                if !peer.staged.is_empty() {
                    self.send_staged(key, now);
                }
            }
        }
    }

    /// Fires what is due.
    pub fn handle_timeout(&mut self, now: Duration) {
        let keys: Vec<_> = self.peers.keys().copied().collect();
        for key in keys {
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            let due = |timer: &mut Option<Duration>| timer.take_if(|at| *at <= now).is_some();
            let retransmit = due(&mut peer.retransmit);
            let send_keepalive = due(&mut peer.send_keepalive);
            let new_handshake = due(&mut peer.new_handshake);
            let persistent = due(&mut peer.persistent);
            if retransmit {
                let is_enough = match self.gives_up {
                    GivesUp::ByTime => peer
                        .first_attempt
                        .is_some_and(|first| now >= first + REKEY_ATTEMPT_TIME),
                    GivesUp::ByCount => peer.repetitions >= MAX_TIMER_HANDSHAKES,
                };
                peer.repetitions += 1;
                if is_enough {
                    peer.first_attempt = None;
                    peer.proposed = None;
                    peer.staged.clear();
                } else {
                    self.initiate(key, false, now);
                }
            }
            if new_handshake {
                self.initiate(key, true, now);
            }
            if send_keepalive {
                self.keepalive(key, now);
            }
            if persistent {
                self.keepalive(key, now);
                // Also when it could not be sent.
                if let Some(peer) = self.peers.get_mut(&key) {
                    let next = peer.persistent_keepalive.map(|interval| now + interval);
                    peer.persistent = peer.persistent.or(next);
                }
            }
        }
    }

    /// When to call [`Device::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.peers.values().flat_map(Peer::timers).min()
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Outgoing> {
        self.outgoing.pop_front()
    }

    fn keepalive(&mut self, key: PeerKey, now: Duration) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if peer.staged.is_empty() {
            peer.staged.push_back(0);
        }
        self.send_staged(key, now);
    }

    fn send_staged(&mut self, key: PeerKey, now: Duration) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(session) = peer.current.as_mut().filter(|session| session.usable(now)) else {
            self.initiate(key, true, now);
            return;
        };
        let rekey = session.initiator && now >= session.born + REKEY_AFTER_TIME;
        let id = session.id;
        let mut to_send = Vec::new();
        while let Some(length) = peer.staged.pop_front() {
            to_send.push(Content::Data {
                session: id,
                counter: session.sent,
                length,
            });
            session.sent += 1;
            if length > 0 {
                peer.new_handshake
                    .get_or_insert(now + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT);
            }
            peer.send_keepalive = None;
        }
        for content in to_send {
            self.transmit(key, content, now);
        }
        if rekey {
            self.initiate(key, true, now);
        }
    }

    /// Sends an initiation, unless one was sent less than [`REKEY_TIMEOUT`] ago. `fresh` starts the
    /// count of attempts again.
    fn initiate(&mut self, key: PeerKey, fresh: bool, now: Duration) {
        let jitter = self.random.duration(REKEY_TIMEOUT_JITTER);
        let session = self.random.below(u64::MAX);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if fresh {
            peer.first_attempt = Some(now);
            peer.repetitions = 0;
        }
        if peer
            .last_initiation
            .is_some_and(|last| now < last + REKEY_TIMEOUT)
        {
            return;
        }
        // As in the driver, also an attempt without an endpoint counts as one.
        peer.last_initiation = Some(now);
        peer.first_attempt.get_or_insert(now);
        peer.proposed = Some(session);
        peer.retransmit = Some(now + REKEY_TIMEOUT + jitter);
        self.transmit(
            key,
            Content::Initiation {
                session,
                timestamp: now,
            },
            now,
        );
    }

    fn transmit(&mut self, key: PeerKey, content: Content, now: Duration) {
        let message = Message {
            from: self.key,
            to: key,
            content,
        };
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(to) = peer.endpoint else { return };
        peer.tx_bytes += message.size();
        peer.any_packet_authenticated(now);
        self.outgoing.push_back(Outgoing { to, message });
    }
}

fn handshake_complete(peer: &mut Peer, now: Duration) {
    peer.last_handshake = Some(now);
    peer.first_attempt = None;
    peer.repetitions = 0;
    peer.retransmit = None;
}

#[cfg(test)]
#[path = "wireguard_tests.rs"]
mod tests;
