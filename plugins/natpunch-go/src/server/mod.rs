//! The server, without sockets: one datagram in, at most one out, never longer than what it
//! answers.
//!
//! # The life of a registration
//! 1. A client's handshake arrives. It costs the source a token (`limits`), and if the key is
//!    allowed, makes a *pending* session: an index chosen here at random, keys, and the source
//!    address. Nothing of another session changes, not even of the same key. Pending sessions are
//!    few, short-lived, and the oldest gives way.
//! 2. The response goes to the source address, so only who receives there learns the index and the
//!    server's ephemeral key. The first request under those keys *from that address* proves key and
//!    address at once: the session is confirmed, takes the place of the key's older one of this
//!    address family, and its address is published.
//! 3. Requests keep it alive. One from elsewhere is answered there, but moves nothing: a client
//!    that moved makes a new handshake.
//! 4. A registration that was silent for [`Config::lifetime`] is forgotten.
//!
//! So a replayed handshake moves nothing, before or after a restart, and no clock is believed: the
//! timestamp in the handshake, by which natpunch-go fends off replays, is ignored.

mod limits;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Deref;
use std::time::Duration;

use natpunch_types::{PeerKey, SecretKey, Time};
use rand_core::{CryptoRng, RngCore};

use crate::noise::{Identity, Transport};
use crate::window::Window;
use crate::wire::{
    self, NOISE_INIT, Packet, REPLY_MAX, SEALED_ANSWER_MAX, SEALED_REQUEST, ToServer,
};
use limits::Limits;

/// How a [`Server`] is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// The server's key.
    pub private_key: SecretKey,
    /// Which keys may register. `None`: any, up to [`max_keys`](Self::max_keys).
    pub allowed: Option<BTreeSet<PeerKey>>,
    /// How many keys may be registered at once. Further ones are refused, and those of one IPv4 /24 or
    /// IPv6 /48 never have more than they leave to all others.
    pub max_keys: usize,
    /// How many handshakes may wait for their first request. The oldest gives way to the newest.
    pub max_pending: usize,
    /// How long a silent registration lives. Clients handshake every 5 minutes, so more than that.
    pub lifetime: Duration,
    /// How many handshakes a second, and at once, are worked on for one IPv4 address or IPv6 /64.
    pub handshakes_per_source: u32,
    /// How many handshakes a second are worked on for all sources together at which nobody is
    /// registered.
    pub handshakes_of_strangers: u32,
}

impl Config {
    /// The default set-up with this key: open to any client.
    pub fn new(private_key: SecretKey) -> Self {
        Self {
            private_key,
            allowed: None,
            max_keys: 65_536,
            max_pending: 4096,
            lifetime: Duration::from_secs(15 * 60),
            handshakes_per_source: 20,
            handshakes_of_strangers: 4000,
        }
    }
}

/// The private key of the configuration is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the private key is all zeros")]
pub struct InvalidKey;

/// A datagram to send back to the source.
#[derive(Debug, Clone, Copy)]
pub struct Reply(Packet<REPLY_MAX>);

impl Deref for Reply {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// What happened since the start, for metrics and the rate-limited log of the shell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Handshakes that were answered.
    pub handshakes: u64,
    /// Handshakes that a rate limit refused.
    pub limited: u64,
    /// Handshakes that are not authentic.
    pub forged: u64,
    /// Handshakes and requests that were seen before.
    pub replayed: u64,
    /// Handshakes of keys that are not allowed.
    pub not_allowed: u64,
    /// Handshakes and first requests of new keys when the table was full.
    pub full: u64,
    /// Registrations proved by a first request.
    pub registered: u64,
    /// Registrations that ended by silence.
    pub expired: u64,
    /// Requests answered with an address.
    pub found: u64,
    /// Requests answered with "not known".
    pub not_known: u64,
    /// Datagrams of no known form.
    pub malformed: u64,
    /// Requests of no session, not authentic, or from another address before the first proof.
    pub no_session: u64,
}

/// How long a handshake may wait for its first request: the receive timeout of natpunch-go's
/// client.
const PENDING_LIFETIME: Duration = Duration::from_secs(10);
/// How many peers one key can have asked for, and how many each key has on average at most.
const MAX_ASKED: usize = 1024;
const MEAN_ASKED: usize = 32;
/// How many handshakes of a key are remembered, so that a copy costs no answer.
const REMEMBERED: usize = 4;

struct Session {
    key: PeerKey,
    transport: Transport,
    window: Window,
    /// How many answers were sealed: the nonce of the next.
    sent: u64,
    /// Where the handshake came from, and its response went to.
    source: SocketAddr,
    /// Which handshake made it.
    handshake: u128,
    confirmed: bool,
    /// When the last request came from `source`.
    seen: Time,
    /// When the last request came from anywhere.
    used: Time,
}

/// A key with at least one confirmed session.
#[derive(Default)]
struct Client {
    /// By address family: the session whose address is published.
    sessions: [Option<u32>; 2],
    /// Peers that it asked for, oldest first: only they are told where it is.
    asked: Vec<u128>,
    /// The handshakes of its last sessions.
    handshakes: [u128; REMEMBERED],
}

fn family(address: SocketAddr) -> usize {
    address.is_ipv6().into()
}

/// The first half of a key or ephemeral key. To find two that share it is as hard as to break one.
fn half(key: &[u8; 32]) -> u128 {
    key.first_chunk()
        .map_or(0, |half| u128::from_be_bytes(*half))
}

/// A rendezvous server for natpunch-go's clients. See the [module](self) for how it works.
///
/// Memory, measured: 1.6 KiB for each pending handshake, 2 KiB for each registered address, and at
/// most 0.5 KiB on average for what each key asked for; all bounded by [`Config`]. The rate limits
/// take 256 KiB.
pub struct Server<R> {
    identity: Identity,
    rng: R,
    allowed: Option<BTreeSet<PeerKey>>,
    max_keys: usize,
    max_pending: usize,
    lifetime: Duration,
    limits: Limits,
    sessions: HashMap<u32, Box<Session>>,
    clients: HashMap<PeerKey, Client>,
    /// Unconfirmed sessions by end of life, which is the order of their making. Some were confirmed
    /// since.
    pending: VecDeque<(Time, u32)>,
    /// Confirmed sessions by the earliest time at which they may have been silent for too long.
    expiry: BTreeSet<(Time, u32)>,
    /// How many peers were asked for by all clients together.
    asked: usize,
    counters: Counters,
}

impl<R: RngCore + CryptoRng> Server<R> {
    /// A server without registrations. `rng` gives ephemeral keys and session indexes: seed it from
    /// the system's.
    pub fn new(config: Config, mut rng: R) -> Result<Self, InvalidKey> {
        Ok(Self {
            identity: Identity::new(&config.private_key).ok_or(InvalidKey)?,
            limits: Limits::new(
                config.handshakes_per_source,
                config.handshakes_of_strangers,
                &mut rng,
            ),
            rng,
            allowed: config.allowed,
            max_keys: config.max_keys,
            max_pending: config.max_pending.max(1),
            lifetime: config.lifetime,
            sessions: HashMap::new(),
            clients: HashMap::new(),
            pending: VecDeque::new(),
            expiry: BTreeSet::new(),
            asked: 0,
            counters: Counters::default(),
        })
    }

    /// The key that clients need.
    pub fn public_key(&self) -> PeerKey {
        self.identity.public()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How many keys are registered.
    pub fn registered(&self) -> usize {
        self.clients.len()
    }

    /// Changes which keys may register. Registrations of others end at once.
    pub fn set_allowed(&mut self, allowed: Option<BTreeSet<PeerKey>>) {
        self.allowed = allowed;
        if let Some(allowed) = &self.allowed {
            let ended: Vec<u32> = self
                .sessions
                .iter()
                .filter(|(_, session)| !allowed.contains(&session.key))
                .map(|(index, _)| *index)
                .collect();
            for index in ended {
                self.remove(index);
            }
        }
    }

    /// Handles one datagram. `now` counts from any origin and never goes back. The reply, if any,
    /// goes to `source`.
    pub fn handle_datagram(
        &mut self,
        source: SocketAddr,
        datagram: &[u8],
        now: Time,
    ) -> Option<Reply> {
        let source = natpunch_types::canonical(source);
        self.handle_timeout(now);
        match ToServer::parse(datagram) {
            Some(ToServer::Init { noise }) => self.handshake(source, noise, now),
            Some(ToServer::Request {
                index,
                nonce,
                sealed,
            }) => self.request(source, index, nonce, sealed, now),
            None => {
                self.counters.malformed += 1;
                None
            }
        }
    }

    /// Forgets what was silent for too long.
    pub fn handle_timeout(&mut self, now: Time) {
        while self.pending.front().is_some_and(|(end, _)| *end <= now) {
            self.drop_oldest_pending();
        }
        while let Some((_, index)) = self.expiry.first().copied().filter(|(end, _)| *end <= now) {
            self.expiry.pop_first();
            let Some(session) = self.sessions.get(&index) else {
                continue;
            };
            let end = session.used + self.lifetime;
            if end > now {
                self.expiry.insert((end, index));
            } else {
                self.counters.expired += 1;
                self.remove(index);
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) next has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        let pending = self.pending.front().map(|(end, _)| *end);
        let expiry = self.expiry.first().map(|(end, _)| *end);
        pending.into_iter().chain(expiry).min()
    }

    fn handshake(
        &mut self,
        source: SocketAddr,
        noise: &[u8; NOISE_INIT],
        now: Time,
    ) -> Option<Reply> {
        if !self.limits.admit(source, now) {
            self.counters.limited += 1;
            return None;
        }
        let mut handshake = self.identity.respond(&mut self.rng).ok()?;
        let mut timestamp = [0; 8 + wire::TAG];
        if handshake.read_message(noise, &mut timestamp).is_err() {
            self.counters.forged += 1;
            return None;
        }
        let key = PeerKey::from_bytes(handshake.get_remote_static()?.try_into().ok()?);
        if self
            .allowed
            .as_ref()
            .is_some_and(|allowed| !allowed.contains(&key))
        {
            self.counters.not_allowed += 1;
            return None;
        }
        let id = half(noise.first_chunk()?);
        match self.clients.get(&key) {
            Some(client) if client.handshakes.contains(&id) => {
                self.counters.replayed += 1;
                return None;
            }
            None if !self.has_room(source) => {
                self.counters.full += 1;
                return None;
            }
            _ => {}
        }

        let index = self.free_index()?;
        let mut reply = wire::response(index);
        let length = handshake.write_message(&[], reply.room()).ok()?;
        reply.grow(length);
        let session = Session {
            key,
            transport: Transport::new(handshake)?,
            window: Window::new(),
            sent: 0,
            source,
            handshake: id,
            confirmed: false,
            seen: now,
            used: now,
        };
        while self.pending.len() >= self.max_pending {
            self.drop_oldest_pending();
        }
        self.sessions.insert(index, Box::new(session));
        self.pending.push_back((now + PENDING_LIFETIME, index));
        self.counters.handshakes += 1;
        Some(Reply(reply))
    }

    fn request(
        &mut self,
        source: SocketAddr,
        index: u32,
        nonce: u64,
        sealed: &[u8; SEALED_REQUEST],
        now: Time,
    ) -> Option<Reply> {
        let Some(session) = self.sessions.get_mut(&index) else {
            self.counters.no_session += 1;
            return None;
        };
        if !session.window.accepts(nonce) {
            self.counters.replayed += 1;
            return None;
        }
        let mut inside = [0; SEALED_REQUEST];
        let at_home = source == session.source;
        let opened = session.transport.open(nonce, sealed, &mut inside).is_some();
        let (asking, rest) = inside.split_first_chunk::<32>()?;
        let wanted = PeerKey::from_bytes(*rest.first_chunk()?);
        if !opened || asking != session.key.as_bytes() || !(at_home || session.confirmed) {
            self.counters.no_session += 1;
            return None;
        }
        session.window.mark(nonce);
        session.used = now;
        if at_home {
            session.seen = now;
        }
        let asking = session.key;
        if !session.confirmed {
            self.confirm(index, now)?;
        }
        self.note_asked(asking, wanted);

        let address = self.find(asking, wanted, family(source), now);
        match address {
            Some(_) => self.counters.found += 1,
            None => self.counters.not_known += 1,
        }
        let session = self.sessions.get_mut(&index)?;
        let mut reply = wire::answer(session.sent);
        let inside = wire::encode_address(address);
        debug_assert!(inside.as_bytes().len() + wire::TAG <= SEALED_ANSWER_MAX);
        let length = session
            .transport
            .seal(session.sent, inside.as_bytes(), reply.room())?;
        session.sent += 1;
        reply.grow(length);
        Some(Reply(reply))
    }

    /// Whether one more key may register from there.
    fn has_room(&self, source: SocketAddr) -> bool {
        let left = self.max_keys.saturating_sub(self.clients.len());
        self.limits.leaves_room(source, left)
    }

    /// Key and address of this session are proven: publish it.
    fn confirm(&mut self, index: u32, now: Time) -> Option<()> {
        let session = self.sessions.get(&index)?;
        let (key, source, handshake) = (session.key, session.source, session.handshake);
        if !self.clients.contains_key(&key) && !self.has_room(source) {
            self.counters.full += 1;
            self.sessions.remove(&index);
            return None;
        }
        self.sessions.get_mut(&index)?.confirmed = true;
        let client = self.clients.entry(key).or_default();
        client.handshakes.rotate_right(1);
        if let Some(newest) = client.handshakes.first_mut() {
            *newest = handshake;
        }
        let older = client.sessions.get_mut(family(source))?.replace(index);
        if let Some(older) = older {
            self.remove(older);
        }
        self.limits.add_known(source);
        self.expiry.insert((now + self.lifetime, index));
        self.counters.registered += 1;
        Some(())
    }

    /// The published address of `wanted`, if it has asked for `asking` too: who is not asked for is
    /// not told.
    fn find(
        &self,
        asking: PeerKey,
        wanted: PeerKey,
        family: usize,
        now: Time,
    ) -> Option<SocketAddr> {
        let client = self.clients.get(&wanted)?;
        if asking != wanted && !client.asked.contains(&half(asking.as_bytes())) {
            return None;
        }
        let session = self.sessions.get(&(*client.sessions.get(family)?)?)?;
        (now.since(session.seen) < self.lifetime).then_some(session.source)
    }

    fn note_asked(&mut self, asking: PeerKey, wanted: PeerKey) {
        let Some(client) = self.clients.get_mut(&asking) else {
            return;
        };
        let id = half(wanted.as_bytes());
        if client.asked.contains(&id) {
            return;
        }
        let full = self.asked >= self.max_keys.saturating_mul(MEAN_ASKED);
        let room = if full { MEAN_ASKED } else { MAX_ASKED };
        if client.asked.len() >= room {
            client.asked.remove(0);
        } else {
            self.asked += 1;
        }
        client.asked.push(id);
    }

    fn free_index(&mut self) -> Option<u32> {
        (0..64)
            .map(|_| self.rng.next_u32())
            .find(|index| *index != 0 && !self.sessions.contains_key(index))
    }

    fn drop_oldest_pending(&mut self) {
        if let Some((_, index)) = self.pending.pop_front()
            && self
                .sessions
                .get(&index)
                .is_some_and(|session| !session.confirmed)
        {
            self.sessions.remove(&index);
        }
    }

    /// Ends a session, and with the last of its key, all that is known of the key.
    fn remove(&mut self, index: u32) {
        let Some(session) = self.sessions.remove(&index) else {
            return;
        };
        if !session.confirmed {
            return;
        }
        self.limits.remove_known(session.source);
        let Some(client) = self.clients.get_mut(&session.key) else {
            return;
        };
        for slot in &mut client.sessions {
            if *slot == Some(index) {
                *slot = None;
            }
        }
        if client.sessions == [None, None] {
            self.asked -= client.asked.len();
            self.clients.remove(&session.key);
        }
    }
}

#[cfg(test)]
mod tests;
