//! The client, without sockets: keeps one node registered at one address of one server, and asks it
//! for peers.
//!
//! The server keeps one session for each key and address family, and its answers name no peer. So
//! one question is open at a time, and `Session` counts questions and answers: as long as an answer
//! about one peer may still come, no other peer is asked for under the same keys. After a loss that
//! means a new handshake, one round trip, since an answer under old keys does not open.
//!
//! A handshake is not sent twice. Each try is a new one, because a server refuses copies; answers
//! to the last few tries are all good, so a round trip longer than the time between tries does no
//! harm.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_noise::HandshakeState;
use natpunch_plugin::Schedule;
use natpunch_types::{PeerKey, SecretKey, Time, spread};
use rand_core::{CryptoRng, RngCore};

use crate::noise::{Identity, Transport};
use crate::window::Window;
use crate::wire::{self, NOISE_RESPONSE, SEALED_ANSWER_MAX, ToClient};

/// How long keys are used, as natpunch-go does it.
const REKEY: Duration = Duration::from_secs(5 * 60);
/// The same while a peer is wanted. The address that a server publishes is that of the handshake,
/// so if a NAT forgot it, this is how long that can last.
const REKEY_WANTED: Duration = Duration::from_secs(15);
/// How long to be silent at most: NATs may forget a mapping after 30 s (RFC 4787, 4.3, in
/// practice).
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long to wait for an answer to a question, at least and at most; between, twice the last
/// round trip.
const MIN_WAIT: Duration = Duration::from_millis(250);
const MAX_WAIT: Duration = Duration::from_secs(2);
/// How often a question is sent before the session counts as lost. The last wait is twice as long.
const MAX_SENDS: u32 = 2;
/// The longest time between two tries of a handshake.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// How many tries of a handshake are remembered, and for how long.
const MAX_TRIES: usize = 4;
const TRY_LIFETIME: Duration = Duration::from_secs(10);
/// How many datagrams and events may wait to be polled. The oldest give way.
const MAX_QUEUE: usize = 64;
/// After how many unanswered tries the server counts as down.
const DOWN_AFTER: u32 = 3;

/// What a [`Client`] found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The server says that this peer was last seen there.
    Found {
        /// The peer.
        peer: PeerKey,
        /// Where.
        address: SocketAddr,
    },
    /// The server answers: this node is registered.
    Up {
        /// The time between question and answer.
        round_trip: Duration,
    },
    /// The server does not answer. Tries go on.
    Down,
}

struct Try {
    started: Time,
    handshake: HandshakeState,
}

struct Session {
    started: Time,
    index: u32,
    transport: Transport,
    /// How many questions were sealed: the nonce of the next.
    sent: u64,
    window: Window,
    /// The peer that the last question was about.
    subject: Option<PeerKey>,
    /// How many questions about it have no answer.
    unanswered: u32,
}

impl Session {
    /// Whether no answer about another peer can come any more.
    fn may_ask(&self, peer: &PeerKey) -> bool {
        self.unanswered == 0 || self.subject == Some(*peer)
    }
}

/// A question that waits for its answer.
struct Question {
    peer: PeerKey,
    sends: u32,
    asked: Time,
    deadline: Time,
}

/// A client of a natpunch-go server. See the [module](self) for how it works.
///
/// Feed it with `handle_*` and [`set_peers`](Self::set_peers), then drain
/// [`poll_transmit`](Self::poll_transmit) and [`poll_event`](Self::poll_event), and call
/// [`handle_timeout`](Self::handle_timeout) at the time of [`poll_timeout`](Self::poll_timeout).
/// All times count from one origin and never go back.
pub struct Client<R> {
    identity: Identity,
    server: PeerKey,
    rng: R,
    /// The Unix time of the origin of `now`.
    epoch: Duration,
    last_timestamp: u64,
    schedule: Schedule,
    session: Option<Session>,
    question: Option<Question>,
    tries: VecDeque<Try>,
    /// Tries since the last answer, and when the next may be made.
    failures: u32,
    retry_at: Time,
    /// The session must be replaced, but may be used until then.
    renew: bool,
    /// The server may have forgotten everything.
    lost: bool,
    up: Option<bool>,
    wait: Duration,
    last_sent: Time,
    transmits: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
}

impl<R: RngCore + CryptoRng> Client<R> {
    /// A client of the server with this public key. `unix_time` is the wall clock's at `now`; it is
    /// read once, so that the timestamps of the protocol rise whatever the wall clock does. `None`
    /// if the private key is all zeros.
    pub fn new(
        private_key: &SecretKey,
        server: PeerKey,
        rng: R,
        unix_time: Duration,
        now: Time,
    ) -> Option<Self> {
        Some(Self {
            identity: Identity::new(private_key)?,
            server,
            rng,
            epoch: unix_time.saturating_sub(now.since_origin()),
            last_timestamp: 0,
            schedule: Schedule::default(),
            session: None,
            question: None,
            tries: VecDeque::new(),
            failures: 0,
            retry_at: now,
            renew: false,
            lost: false,
            up: None,
            wait: MIN_WAIT,
            last_sent: now,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        })
    }

    /// Sets the peers to ask for, complete, and whether each is wanted. Without peers the client is
    /// silent.
    pub fn set_peers(&mut self, peers: impl IntoIterator<Item = (PeerKey, bool)>, now: Time) {
        let own = self.identity.public();
        let peers = peers
            .into_iter()
            .filter(|(peer, _)| *peer != own && peer.as_bytes() != &[0; 32]);
        if self.schedule.set_peers(peers, now) {
            // A path was lost. Perhaps because this side's NAT forgot it, and then the registration
            // is wrong as well.
            self.renew = true;
        }
        if self
            .question
            .as_ref()
            .is_some_and(|question| !self.schedule.contains(&question.peer))
        {
            self.question = None;
        }
        self.handle_timeout(now);
    }

    /// The network changed: registers anew and asks for everybody.
    pub fn handle_network_change(&mut self, now: Time) {
        self.schedule.restart(now);
        self.session = None;
        self.question = None;
        self.tries.clear();
        self.failures = 0;
        self.retry_at = now;
        self.handle_timeout(now);
    }

    /// Handles a datagram from the server's address. What is not authentic changes nothing.
    pub fn handle_datagram(&mut self, datagram: &[u8], now: Time) {
        match ToClient::parse(datagram) {
            Some(ToClient::Response { index, noise }) => self.response(index, noise, now),
            Some(ToClient::Answer { nonce, sealed }) => self.answer(nonce, sealed, now),
            None => return,
        }
        self.handle_timeout(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.schedule.is_empty() {
            self.session = None;
            self.question = None;
            self.tries.clear();
            self.transmits.clear();
            return;
        }
        while self
            .tries
            .front()
            .is_some_and(|oldest| now >= oldest.started + TRY_LIFETIME)
        {
            self.tries.pop_front();
        }
        self.give_up_or_repeat(now);
        self.ask_next(now);
        if self.needs_handshake(now) && now >= self.retry_at {
            self.send_handshake(now);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) next has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        let (peer, due) = self.schedule.next()?;
        let Some(session) = &self.session else {
            return Some(self.retry_at);
        };
        let next = match &self.question {
            Some(question) => question.deadline,
            None => due.min(self.last_sent + KEEPALIVE),
        };
        let renewal = if self.renew {
            Time::ZERO
        } else {
            session.started + self.session_life()
        };
        let handshake = renewal.max(self.retry_at);
        // A question that must wait for new keys waits for the handshake.
        let blocked = self.question.is_none() && self.renew && !session.may_ask(&peer);
        Some(if blocked {
            handshake
        } else {
            next.min(handshake)
        })
    }

    /// The next datagram to send to the server.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front()
    }

    /// The next thing found out.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn session_life(&self) -> Duration {
        if self.schedule.is_any_wanted() {
            REKEY_WANTED
        } else {
            REKEY
        }
    }

    fn needs_handshake(&self, now: Time) -> bool {
        let life = self.session_life();
        self.renew
            || self
                .session
                .as_ref()
                .is_none_or(|session| now >= session.started + life)
    }

    fn give_up_or_repeat(&mut self, now: Time) {
        let Some(question) = self
            .question
            .as_mut()
            .filter(|question| now >= question.deadline)
        else {
            return;
        };
        if question.sends >= MAX_SENDS || self.session.is_none() {
            self.question = None;
            self.session = None;
            self.lost = true;
        } else {
            question.sends += 1;
            question.deadline = now + self.wait * 2;
            let peer = question.peer;
            self.send_question(peer, now);
        }
    }

    fn ask_next(&mut self, now: Time) {
        if self.question.is_some() {
            return;
        }
        let Some((peer, due)) = self.schedule.next() else {
            return;
        };
        let Some(session) = &self.session else { return };
        // A server publishes this node's address with the first question under new keys, so that is
        // never put off.
        if now < due && now < self.last_sent + KEEPALIVE && session.sent > 0 {
            return;
        }
        if !session.may_ask(&peer) {
            self.renew = true;
            return;
        }
        self.schedule.asked(&peer, now);
        self.question = Some(Question {
            peer,
            sends: 1,
            asked: now,
            deadline: now + self.wait,
        });
        self.send_question(peer, now);
    }

    fn send_question(&mut self, peer: PeerKey, now: Time) {
        let Some(session) = &mut self.session else {
            return;
        };
        let mut inside = [0; 64];
        let (own, wanted) = inside.split_at_mut(32);
        own.copy_from_slice(self.identity.public().as_bytes());
        wanted.copy_from_slice(peer.as_bytes());
        let mut packet = wire::request(session.index, session.sent);
        let Some(length) = session.transport.seal(session.sent, &inside, packet.room()) else {
            return;
        };
        packet.grow(length);
        session.sent += 1;
        session.subject = Some(peer);
        session.unanswered += 1;
        self.last_sent = now;
        push(&mut self.transmits, packet.as_bytes().to_vec());
    }

    fn send_handshake(&mut self, now: Time) {
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now + self.backoff();
        if self.failures > DOWN_AFTER && self.session.is_none() && self.up != Some(false) {
            self.up = Some(false);
            push(&mut self.events, Event::Down);
        }
        let timestamp =
            u64::try_from((self.epoch + now.since_origin()).as_nanos()).unwrap_or(u64::MAX);
        self.last_timestamp = timestamp.max(self.last_timestamp.saturating_add(1));
        let Ok(mut handshake) = self.identity.initiate(&self.server, &mut self.rng) else {
            return;
        };
        let mut packet = wire::init(self.rng.next_u32());
        let Ok(length) = handshake.write_message(&self.last_timestamp.to_be_bytes(), packet.room())
        else {
            return;
        };
        packet.grow(length);
        if self.tries.len() >= MAX_TRIES {
            self.tries.pop_front();
        }
        self.tries.push_back(Try {
            started: now,
            handshake,
        });
        self.last_sent = now;
        push(&mut self.transmits, packet.as_bytes().to_vec());
    }

    /// The time to the next try: 250 ms, doubled each time, give or take a quarter, so that the
    /// clients of a server that comes back do not come all at once.
    fn backoff(&mut self) -> Duration {
        let doublings = (self.failures - 1).min(8);
        let base = (self.wait * (1 << doublings)).min(MAX_BACKOFF);
        spread(base, self.rng.next_u32())
    }

    fn response(&mut self, index: u32, noise: &[u8; NOISE_RESPONSE], now: Time) {
        let mut payload = [0; NOISE_RESPONSE];
        // A failed read leaves the handshake as it was (snow keeps a checkpoint), so a forgery
        // costs nothing but time.
        let Some(at) = self
            .tries
            .iter_mut()
            .rposition(|a_try| a_try.handshake.read_message(noise, &mut payload).is_ok())
        else {
            return;
        };
        // Older tries may still be answered, but a server that keeps one session for a key has
        // forgotten them.
        let mut answered = self.tries.split_off(at);
        self.tries = answered.split_off(1);
        let Some(Try { started, handshake }) = answered.pop_front() else {
            return;
        };
        let Some(transport) = Transport::new(handshake) else {
            return;
        };
        self.session = Some(Session {
            started: now,
            index,
            transport,
            sent: 0,
            window: Window::new(),
            subject: None,
            unanswered: 0,
        });
        self.failures = 0;
        self.retry_at = now;
        self.renew = false;
        self.note_round_trip(now.since(started));
        if std::mem::take(&mut self.lost) {
            self.schedule.restart(now);
            self.question = None;
        }
        // What was asked under the old keys may never be answered: ask again under the new ones.
        if let Some(Question { peer, .. }) = self.question.take() {
            self.question = Some(Question {
                peer,
                sends: 1,
                asked: now,
                deadline: now + self.wait,
            });
            self.send_question(peer, now);
        }
    }

    fn answer(&mut self, nonce: u64, sealed: &[u8], now: Time) {
        let Some(session) = &mut self.session else {
            return;
        };
        let mut inside = [0; SEALED_ANSWER_MAX];
        if !session.window.accepts(nonce) {
            return;
        }
        let Some(inside) = session
            .transport
            .open(nonce, sealed, &mut inside)
            .and_then(|length| inside.get(..length))
        else {
            return;
        };
        let newest = session.window.is_newest(nonce);
        session.window.mark(nonce);
        let (Some(peer), Some(unanswered)) = (session.subject, session.unanswered.checked_sub(1))
        else {
            return;
        };
        session.unanswered = unanswered;
        if let Some(question) = self.question.take() {
            // Only a question that was sent once tells the round trip (Karn's algorithm).
            if question.sends == 1 {
                self.note_round_trip(now.since(question.asked));
            }
        }
        if let Some(address) = wire::decode_address(inside)
            && newest
            && self.schedule.contains(&peer)
        {
            push(&mut self.events, Event::Found { peer, address });
        }
    }

    fn note_round_trip(&mut self, round_trip: Duration) {
        self.wait = (round_trip * 2).clamp(MIN_WAIT, MAX_WAIT);
        if self.up != Some(true) {
            self.up = Some(true);
            push(&mut self.events, Event::Up { round_trip });
        }
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() >= MAX_QUEUE {
        queue.pop_front();
    }
    queue.push_back(item);
}

#[cfg(test)]
mod tests;
