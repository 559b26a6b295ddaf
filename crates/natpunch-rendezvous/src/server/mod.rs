//! The server: a stateless responder in front, sessions of proven clients and their mailboxes
//! behind.
//!
//! One thread may use [`Server::handle_datagram`] for everything. Several share the [`Responder`],
//! which does what hellos and confirms cost without the server, and lock the server for the rest:
//! [`Server::opener`] finds the key of a request, [`Server::handle_opened`] does what it asks,
//! [`Server::poll_unsealed`] says what to send; the ciphers between these run without the lock.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use natpunch_noise::Identity;
use natpunch_types::{PeerKey, PresharedKey, SecretKey, Time, canonical};
use rand_core::CryptoRng;

use crate::crypto::{self, short_mac};
use crate::frame::{Frame as _, Notice, Request, pack};
use crate::relay;
use crate::wire::{Kind, Reader, SESSION_HEADER_LEN, Tag, session_message};

mod cluster;
mod clustered;
mod egress;
mod limits;
mod mailboxes;
mod meet;
mod relays;
mod responder;
mod seals;
mod session;
mod ticket;

use cluster::Cluster;
pub use cluster::Counters as ClusterCounters;
use egress::Departure;
pub use limits::Limits;
use mailboxes::Mailboxes;
use meet::Meetings;
use relays::Relays;
pub use responder::{Incoming, Responder};
use seals::{Content, Message};
pub use seals::{Opened, Opener, Unsealed};
pub(crate) use session::ClientId;
use session::{Pushes, Session, SessionRef, Sessions};
use ticket::{ELSEWHERE, Ticket};

/// How often a client should let itself be heard.
const PING_INTERVAL: Duration = Duration::from_secs(25);
/// How long a session lives without being heard: several pings.
const SESSION_IDLE: Duration = Duration::from_secs(150);
/// When a refused client may come again.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// How old a path challenge may be: this long, or twice.
const CHALLENGE_SLOT: Duration = Duration::from_secs(10);
/// How often a share of what is kept is looked through for what expired.
const SWEEP: Duration = Duration::from_secs(1);
/// The counter of *busy*, the answer to a refused client. No session ever uses it, and the text
/// under it is always the same.
const BUSY_COUNTER: u64 = u64::MAX - 1;
/// Datagrams that wait to be fetched; more are dropped.
const MAX_TRANSMITS: usize = 4_096;

/// The clients that may register.
#[derive(Debug, Clone, Default)]
pub struct Admission {
    /// Clients that know one of these secrets; if empty, all that know the server's public key.
    pub secrets: Vec<PresharedKey>,
    /// Only these [identities](crate::identity), if given.
    pub allowed: Option<BTreeSet<PeerKey>>,
}

/// What a server is.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its private keys: the current one, and the next while clients change over.
    pub keys: Vec<SecretKey>,
    /// The clients that may register.
    pub admission: Admission,
    /// What it may use.
    pub limits: Limits,
    /// A second port at which it is reached, if there is one: clients learn there how their NAT
    /// maps.
    pub alternate_port: Option<u16>,
}

/// A server can't be made: a key is all zeros, or there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server has no usable private key")]
pub struct NoKey;

/// The socket by which a datagram came, and the address of the socket. The answer must leave by the
/// same ones, or a NAT drops it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Via {
    /// The number of the socket.
    pub socket: usize,
    /// Our address, and the interface if it is link-local, where the socket is not bound to one
    /// address.
    pub local: Option<(IpAddr, u32)>,
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// The socket that it leaves by.
    pub via: Via,
    /// The address that it goes to.
    pub destination: SocketAddr,
    /// What.
    pub payload: Vec<u8>,
}

/// What was done and refused so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Hellos answered by a welcome.
    pub welcomed: u64,
    /// Hellos answered by a cookie.
    pub cookies: u64,
    /// Hellos dropped: more than can be worked on, or more than one network's share.
    pub shed: u64,
    /// Sessions begun.
    pub registered: u64,
    /// Clients refused: not on the list.
    pub not_allowed: u64,
    /// Clients and mailboxes refused: no room.
    pub full: u64,
    /// Sessions that fell silent.
    pub expired: u64,
    /// Sessions ended because their clients may not be here any more.
    pub revoked: u64,
    /// Records taken that were new.
    pub stored: u64,
    /// Records told, each time.
    pub pushed: u64,
    /// Pairs that were told a moment to fire at.
    pub met: u64,
    /// Clients that asked at another port how they are seen there.
    pub probed: u64,
    /// Clients that moved to another address and proved it.
    pub roamed: u64,
    /// Datagrams that no admitted client has sent.
    pub forged: u64,
    /// Datagrams that had been seen.
    pub replayed: u64,
    /// Messages of no session.
    pub no_session: u64,
    /// Messages beyond a session's share.
    pub limited: u64,
    /// Datagrams and records that were dropped or delayed: beyond the bytes that may go to a client
    /// or a network, or to a client that was not heard.
    pub held_back: u64,
    /// Datagrams not sent: too many were waiting.
    pub unsent: u64,
}

/// A rendezvous server.
///
/// Feed each datagram by [`handle_datagram`](Self::handle_datagram), then drain
/// [`poll_transmit`](Self::poll_transmit); call [`handle_timeout`](Self::handle_timeout) at
/// [`poll_timeout`](Self::poll_timeout). Times count from any origin.
pub struct Server<R> {
    rng: R,
    responder: Arc<Responder>,
    admission: Admission,
    limits: Limits,
    challenge_key: crypto::Key,
    alternate_port: Option<u16>,
    sessions: Sessions,
    mailboxes: Mailboxes,
    relays: Relays,
    meetings: Meetings,
    /// The store that this process shares with others, if there is one.
    cluster: Option<Box<Cluster>>,
    /// Tickets up to this number may be those of sessions that were ended.
    revoked_tickets: u64,
    next_sweep: Time,
    transmits: Transmits,
    counters: Counters,
}

impl<R: CryptoRng> Server<R> {
    /// A server without clients.
    ///
    /// # Errors
    /// If there is no usable key.
    pub fn new(config: Config, mut rng: R) -> Result<Self, NoKey> {
        let identities = identities(&config.keys)?;
        let challenge_key = crypto::random_key(&mut rng);
        Ok(Self {
            responder: Arc::new(Responder::new(
                identities,
                &config.admission.secrets,
                &config.limits,
                &mut rng,
            )),
            rng,
            admission: config.admission,
            limits: config.limits,
            challenge_key,
            alternate_port: config.alternate_port,
            sessions: Sessions::default(),
            mailboxes: Mailboxes::default(),
            relays: Relays::default(),
            meetings: Meetings::default(),
            cluster: None,
            revoked_tickets: 0,
            next_sweep: Time::ZERO + SWEEP,
            transmits: Transmits::default(),
            counters: Counters::default(),
        })
    }

    /// Offers a relay at these UDP ports, which its [ports](crate::relay::Port) serve in this
    /// order. Called once.
    pub fn set_relay_ports(&mut self, ports: Vec<u16>) {
        self.relays.set_ports(ports);
    }

    /// The part of the server that needs no state, for threads that share it.
    pub fn responder(&self) -> Arc<Responder> {
        self.responder.clone()
    }

    /// Takes other settings while it runs. Clients that are no longer admitted are forgotten at
    /// once, with all their state. Returns how many sessions ended. Entries beyond a lower limit
    /// stay until they expire.
    pub fn reconfigure(&mut self, admission: Admission, limits: Limits) -> usize {
        self.responder.set_secrets(&admission.secrets);
        self.responder.set_rate(&limits);
        let is_allowed = |who: &PeerKey| {
            admission
                .allowed
                .as_ref()
                .is_none_or(|allowed| allowed.contains(who))
        };
        let responder = &self.responder;
        let over = self.sessions.remove_if(|session| {
            !is_allowed(&session.client.identity) || !responder.admits(session.secret)
        });
        // Mailboxes and relays outlive their session. A client that registered by an old secret may
        // have registered by a new one since, or over the other address family.
        let may_stay = |who: &PeerKey, secret| {
            let admits = || secret == ELSEWHERE || self.responder.admits(secret);
            is_allowed(who) && (self.sessions.has(who) || admits())
        };
        self.mailboxes.retain(may_stay);
        self.relays.retain(may_stay);
        self.meetings.remove_if(|who| !self.sessions.has(who));
        if let Some(cluster) = self.cluster.as_mut().filter(|_| over > 0) {
            cluster.withdraw(|who| !self.sessions.has(&who.identity));
        }
        self.counters.revoked += over as u64;
        if over > 0 {
            // A client that is admitted again gets other keys: those of an earlier ticket have
            // sealed messages.
            self.revoked_tickets = self.responder.tickets();
        }
        (self.admission, self.limits) = (admission, limits);
        over
    }

    /// Takes other keys while it runs, the current one first. Sessions stay; each gets its next
    /// keys by one of these.
    ///
    /// # Errors
    /// If there is no usable key: nothing changes.
    pub fn set_keys(&mut self, keys: &[SecretKey]) -> Result<(), NoKey> {
        self.responder.set_identities(identities(keys)?);
        Ok(())
    }

    /// Takes a datagram.
    pub fn handle_datagram(&mut self, via: Via, source: SocketAddr, payload: &[u8], now: Time) {
        let source = canonical(source);
        if source.port() == 0 {
            return;
        }
        match Kind::of(payload) {
            Some(Kind::Hello) => {
                let answer = match self
                    .responder
                    .handle_hello(source, payload, &mut self.rng, now)
                {
                    Incoming::Ignore => None,
                    Incoming::Cookie(answer) => Some(answer),
                    Incoming::Welcome => {
                        self.responder.welcome(source, payload, &mut self.rng, now)
                    }
                };
                if let Some(payload) = answer {
                    self.transmits.push(
                        Transmit {
                            via,
                            destination: source,
                            payload,
                        }
                        .into(),
                    );
                }
            }
            Some(Kind::Confirm) => {
                if let Some(opened) = self.responder.open_confirm(source, payload, now) {
                    self.handle_opened(via, source, opened, now);
                }
            }
            Some(Kind::Request | Kind::Probe) => {
                if let Some(opener) = self.opener(payload) {
                    self.handle_opened(via, source, opener.open(payload), now);
                }
            }
            Some(
                Kind::Welcome
                | Kind::Cookie
                | Kind::Notice
                | Kind::Bind
                | Kind::Bound
                | Kind::ProbeAnswer,
            )
            | None => self.counters.forged += 1,
        }
    }

    /// The key that opens a request; `None` if its session is unknown, or it was seen.
    pub fn opener(&mut self, payload: &[u8]) -> Option<Opener> {
        let (id, counter, ..) = session_message(payload)?;
        let Some(inbound) = self
            .sessions
            .find(id)
            .and_then(|session_ref| self.sessions.get(session_ref)?.inbound(id))
        else {
            self.counters.no_session += 1;
            return None;
        };
        if !inbound.accepts(counter) {
            self.counters.replayed += 1;
            return None;
        }
        Some(Opener(inbound.from_client.clone()))
    }

    /// Does what a message asks that was opened by this server's [`Responder`] or [`Opener`].
    pub fn handle_opened(&mut self, via: Via, source: SocketAddr, opened: Opened, now: Time) {
        let source = canonical(source);
        match opened.0 {
            Message::Confirm { ticket, text } => {
                self.handle_confirm(via, source, *ticket, &text, now)
            }
            Message::Request {
                session,
                counter,
                text,
            } => {
                self.handle_request(via, source, session, counter, &text, now);
            }
            Message::Probe { session, counter } => {
                self.handle_probe(via, source, session, counter, now)
            }
            Message::Forged => self.counters.forged += 1,
        }
    }

    /// Sends again what was not acknowledged, and forgets what expired.
    pub fn handle_timeout(&mut self, now: Time) {
        let (sessions, limits) = (&mut self.sessions, &self.limits);
        let mut due = self.mailboxes.due(&mut Pacer {
            sessions,
            limits,
            now,
        });
        due.extend(self.relays.due(now));
        self.tell_all(due, now);
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP;
            self.mailboxes.sweep(now);
            self.relays.sweep(now);
            self.meetings.forget(now);
            if let Some(cluster) = &mut self.cluster {
                cluster.sweep(&self.mailboxes, now);
            }
            self.counters.expired += self.sessions.sweep(now);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        let empty = self.sessions.is_empty()
            && self.mailboxes.is_empty()
            && self.relays.len() == 0
            && self.meetings.is_empty();
        let sweep = (!empty).then_some(self.next_sweep);
        self.mailboxes
            .next_due()
            .into_iter()
            .chain(self.relays.next_due())
            .chain(sweep)
            .min()
    }

    /// A port of the relay has to tell something.
    pub fn handle_relay_event(&mut self, event: relay::Event, now: Time) {
        let told = self.relays.handle_event(event);
        self.tell_all(told, now);
    }

    /// The next thing that a port of the relay has to know, before anything is sent to clients:
    /// which of the ports, and what. To be drained as [`poll_transmit`](Self::poll_transmit).
    pub fn poll_relay_command(&mut self) -> Option<(usize, relay::Command)> {
        self.relays.poll_command()
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        std::iter::from_fn(|| self.poll_unsealed()).find_map(Unsealed::seal)
    }

    /// The next datagram to send, to be sealed by its sender.
    pub fn poll_unsealed(&mut self) -> Option<Unsealed> {
        self.transmits.waiting.pop_front()
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters {
            unsent: self.transmits.unsent,
            ..self.counters
        };
        self.responder.count(&mut counters);
        counters
    }

    /// What it may use.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// How many clients are registered.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// How many pairs want a relay, and how many of them have one.
    pub fn relays(&self) -> (usize, usize) {
        (self.relays.len(), self.relays.allocations())
    }

    /// How many meetings wait or have just been.
    pub fn meetings(&self) -> usize {
        self.meetings.len()
    }

    /// How many mailboxes there are.
    pub fn mailboxes(&self) -> usize {
        self.mailboxes.len()
    }

    fn handle_confirm(
        &mut self,
        via: Via,
        source: SocketAddr,
        ticket: Ticket,
        text: &[u8],
        now: Time,
    ) {
        // Key and address are proven. The secret may have been withdrawn, or the session ended,
        // since the ticket was issued.
        if !self.responder.admits(ticket.secret) || ticket.number <= self.revoked_tickets {
            self.counters.replayed += 1;
            return;
        }
        if self
            .admission
            .allowed
            .as_ref()
            .is_some_and(|allowed| !allowed.contains(&ticket.identity))
        {
            self.counters.not_allowed += 1;
            return;
        }
        let client = ClientId {
            identity: ticket.identity,
            v6: source.is_ipv6(),
        };
        if let Some(session_ref) = self.sessions.find_client(&client)
            && let Some(session) = self.sessions.get(session_ref)
            && session.ticket >= ticket.number
        {
            if session.ticket > ticket.number {
                // A replay, or a confirm that came late: the client has newer keys.
                self.counters.replayed += 1;
            } else if session.address == source {
                // The client repeats it, since our answer was lost. It is answered again, but
                // moves no session.
                self.tell(session_ref, [accepted()].iter(), now);
            }
            return;
        }
        if !self.sessions.has_room(&client, source, &self.limits) {
            self.counters.full += 1;
            self.refuse(via, source, &ticket);
            return;
        }
        self.counters.registered += 1;
        let (session_ref, continued) = self
            .sessions
            .insert(Session::new(client, ticket, via, source, now), now);
        let mut notices = vec![accepted(), Notice::Pong { observed: source }];
        notices.extend(continued.then_some(Notice::Continued));
        notices.extend(
            self.alternate_port
                .map(|port| Notice::AlternatePort { port }),
        );
        self.handle_frames(session_ref, Request::decode(text), notices, true, now);
    }

    fn refuse(&mut self, via: Via, destination: SocketAddr, ticket: &Ticket) {
        let busy = [Notice::Busy {
            retry_seconds: RETRY_AFTER.as_secs() as u16,
        }];
        for mut message in pack(&busy, SESSION_HEADER_LEN, 0) {
            Kind::Notice.put_session_header(ticket.session, BUSY_COUNTER, &mut message);
            let (key, counter) = (ticket.from_server.clone(), BUSY_COUNTER);
            self.transmits.push(Unsealed {
                via,
                destination,
                content: Content::Message {
                    key,
                    counter,
                    message,
                },
            });
        }
    }

    fn handle_request(
        &mut self,
        via: Via,
        source: SocketAddr,
        id: u64,
        counter: u64,
        text: &[u8],
        now: Time,
    ) {
        // It may be gone since the key was fetched, and a copy of this message may have come first.
        let Some(session_ref) = self.sessions.find(id) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(session_ref) else {
            return;
        };
        let Some(newest) = session.check(id, counter, now) else {
            self.counters.replayed += 1;
            return;
        };
        let client = session.client;
        let mut proven = session.address == source;
        // Only messages from the proven address count against the client's rate: otherwise copies
        // from another address could use it up.
        if proven && !session.admit(now, self.limits.messages_per_second) {
            self.counters.limited += 1;
            return;
        }
        let here = proven && session.via == via;
        if here {
            session.hear(now);
        } else if newest
            && source.is_ipv6() == client.v6
            && !proven
            && session.may_challenge(counter)
        {
            // The session does not move yet, and only the challenge goes there, which is as short
            // as the shortest request.
            let token = challenge(&self.challenge_key, id, source, now, 0);
            let said = [Notice::PathChallenge { token }];
            session
                .say_to(Kind::Notice, via, source, &said)
                .for_each(|datagram| self.transmits.push(datagram));
        }
        let mut notices = Vec::new();
        let frames = Request::decode(text);
        for frame in &frames {
            let Request::PathResponse { token } = frame else {
                continue;
            };
            let answered = [0, 1].iter().any(|age| {
                crypto::equal(
                    &challenge(&self.challenge_key, id, source, now, *age),
                    token,
                )
            });
            if !answered || !newest || source.is_ipv6() != client.v6 {
                continue;
            }
            if !self.sessions.has_room(&client, source, &self.limits) {
                self.counters.full += 1;
            } else if self.sessions.relocate(session_ref, source, via, now) {
                self.counters.roamed += 1;
                proven = true;
                notices.push(Notice::Pong { observed: source });
            }
        }
        // A message from another address is ignored: otherwise a client that has left its address
        // could have data sent there. The client repeats it once it has proven the new address. The
        // message does not count as seen either: it may be a copy that was faster than the
        // original.
        if proven {
            if let Some(session) = self.sessions.get_mut(session_ref) {
                session.mark(id, counter);
            }
            self.handle_frames(session_ref, frames, notices, here, now);
        }
    }

    /// Tells a client its address as seen here. An attacker that has copied the probe gets no more
    /// bytes than it sent, and can't read them.
    fn handle_probe(&mut self, via: Via, source: SocketAddr, id: u64, counter: u64, now: Time) {
        let Some(session) = self
            .sessions
            .find(id)
            .and_then(|session_ref| self.sessions.get_mut(session_ref))
        else {
            return;
        };
        if session.check(id, counter, now).is_none() {
            self.counters.replayed += 1;
            return;
        }
        session.mark(id, counter);
        if !session.admit(now, self.limits.messages_per_second) {
            self.counters.limited += 1;
            return;
        }
        self.counters.probed += 1;
        let said = [Notice::Pong { observed: source }];
        session
            .say_to(Kind::ProbeAnswer, via, source, &said)
            .for_each(|datagram| self.transmits.push(datagram));
    }

    /// Does what an authentic message asks for. `here`: it came from the proven address.
    fn handle_frames(
        &mut self,
        session_ref: SessionRef,
        frames: Vec<Request>,
        mut notices: Vec<Notice>,
        here: bool,
        now: Time,
    ) {
        let Some(sender) = self.sessions.get(session_ref).map(Session::sender) else {
            return;
        };
        let client = &sender.client;
        let mut told = Vec::new();
        for frame in frames {
            match frame {
                // One is enough for any number of pings.
                Request::Ping if here && !notices.iter().any(Notice::is_pong) => {
                    notices.push(Notice::Pong {
                        observed: sender.address,
                    });
                }
                // Another process has the relay of this pair, and answers.
                Request::Relay { tag, wants }
                    if self
                        .cluster
                        .as_mut()
                        .is_some_and(|it| it.wishes(&sender, tag, wants, now)) => {}
                Request::Relay { tag, wants } => {
                    told.extend(self.relays.ask(
                        &sender,
                        tag,
                        wants,
                        &self.limits,
                        &mut self.rng,
                        now,
                    ));
                    if let Some(cluster) = &mut self.cluster
                        && self.relays.waits(&tag)
                    {
                        cluster.claim(&sender, tag);
                    }
                }
                Request::Ping | Request::PathResponse { .. } => {}
                Request::Meet {
                    tag,
                    round_trip_ms,
                    mailbox,
                } => {
                    let fires = self.meetings.meet(
                        (*client, sender.network().site()),
                        tag,
                        round_trip_ms,
                        now,
                    );
                    self.counters.met += u64::from(fires.len() > 1);
                    if self.meetings.waits(&tag) {
                        let readers = self.mailboxes.readers(client, &mailbox, now);
                        told.extend(
                            readers.map(|reader| (reader, Notice::Wanted { tag: mailbox })),
                        );
                        if let Some(cluster) = &mut self.cluster {
                            let has_record = self.mailboxes.is_owner(client, &mailbox, now);
                            let mailbox = has_record.then_some(mailbox);
                            cluster.handle_meet(tag, &self.meetings, mailbox);
                        }
                    }
                    told.extend(fires);
                }
                Request::Put { tag, digest, blob } => {
                    let (sessions, limits) = (&mut self.sessions, &self.limits);
                    let mut pacer = Pacer {
                        sessions,
                        limits,
                        now,
                    };
                    let kept =
                        self.mailboxes
                            .put(&sender, tag, (digest, blob), &mut pacer, &mut told);
                    if let Some(is_new) = kept {
                        self.counters.stored += u64::from(is_new);
                        if let Some(cluster) = &mut self.cluster {
                            cluster.handle_put(tag, is_new, now);
                        }
                    }
                    let is_kept = kept.is_some();
                    notices.push(if is_kept {
                        Notice::Stored { tag, digest }
                    } else {
                        self.full(tag)
                    });
                }
                Request::Watch { tag, have } => {
                    let (sessions, limits) = (&mut self.sessions, &self.limits);
                    let mut pacer = Pacer {
                        sessions,
                        limits,
                        now,
                    };
                    let is_kept = self
                        .mailboxes
                        .watch(&sender, tag, have, &mut pacer, &mut told)
                        .is_some();
                    if let Some(cluster) = self.cluster.as_mut().filter(|_| is_kept) {
                        cluster.handle_watch(tag, now);
                    }
                    notices.push(if is_kept {
                        Notice::Watching { tag }
                    } else {
                        self.full(tag)
                    });
                }
                Request::Got { tag, digest } => self.mailboxes.got(client, &tag, &digest),
            }
        }
        notices.extend(
            told.extract_if(.., |(to, _)| to == client)
                .map(|(_, notice)| notice),
        );
        self.tell(session_ref, notices.iter(), now);
        self.tell_all(told, now);
    }

    /// There is no room for a mailbox.
    fn full(&mut self, tag: Tag) -> Notice {
        self.counters.full += 1;
        Notice::Full {
            tag,
            retry_seconds: RETRY_AFTER.as_secs() as u16,
        }
    }

    /// Sends to several clients, to each in as few datagrams as they fit.
    fn tell_all(&mut self, mut notices: Pushes, now: Time) {
        notices.sort_by_key(|(client, _)| *client);
        for of_one in notices.chunk_by(|(client, _), (next, _)| client == next) {
            let Some(session_ref) = of_one
                .first()
                .and_then(|(client, _)| self.sessions.find_client(client))
            else {
                if let (Some(cluster), Some((client, _))) = (&mut self.cluster, of_one.first()) {
                    cluster.tell_elsewhere(client, of_one.iter().map(|(_, notice)| notice));
                }
                continue;
            };
            self.tell(session_ref, of_one.iter().map(|(_, notice)| notice), now);
        }
    }

    /// Sends to a client's proven address.
    fn tell<'a>(
        &mut self,
        session_ref: SessionRef,
        notices: impl Iterator<Item = &'a Notice> + Clone,
        now: Time,
    ) {
        let Some(session) = self
            .sessions
            .get(session_ref)
            .filter(|session| !session.is_over(now))
        else {
            return;
        };
        let (client, limits) = (session.client, &self.limits);
        // Records have been given their time to leave; all else leaves now or not at all.
        let others = notices.clone().filter(|notice| !notice.is_record());
        let length: usize = others.clone().map(Notice::length).sum();
        let may_answer = length == 0
            || self.sessions.may_answer(
                &client,
                (SESSION_HEADER_LEN + length).max(96),
                limits,
                now,
            );
        if !may_answer {
            self.counters.held_back += others.count() as u64;
        }
        let said = notices.filter(|notice| may_answer || notice.is_record());
        self.counters.pushed += said.clone().filter(|notice| notice.is_record()).count() as u64;
        let Some(session) = self.sessions.get_mut(session_ref) else {
            return;
        };
        session
            .say(said)
            .for_each(|datagram| self.transmits.push(datagram));
    }
}

/// When records may leave: what mailboxes ask of the sessions.
struct Pacer<'a> {
    sessions: &'a mut Sessions,
    limits: &'a Limits,
    now: Time,
}

impl Pacer<'_> {
    fn depart(&mut self, client: &ClientId, length: usize) -> Departure {
        self.sessions.depart(client, length, self.limits, self.now)
    }

    fn depart_as_reserved(&mut self, client: &ClientId, length: usize) -> bool {
        self.sessions
            .depart_as_reserved(client, length, self.limits, self.now)
    }
}

/// What is to be sent.
#[derive(Default)]
struct Transmits {
    waiting: VecDeque<Unsealed>,
    /// How many there was no room for.
    unsent: u64,
}

impl Transmits {
    fn push(&mut self, datagram: Unsealed) {
        if self.waiting.len() < MAX_TRANSMITS {
            self.waiting.push_back(datagram);
        } else {
            self.unsent += 1;
        }
    }
}

fn identities(keys: &[SecretKey]) -> Result<Vec<Identity>, NoKey> {
    let identities: Option<Vec<Identity>> = keys.iter().map(Identity::new).collect();
    identities.filter(|keys| !keys.is_empty()).ok_or(NoKey)
}

fn accepted() -> Notice {
    Notice::Accepted {
        ping_seconds: PING_INTERVAL.as_secs() as u16,
    }
}

/// The token that only a client at `address` can have received in the current client of time, or
/// the one before it.
fn challenge(key: &crypto::Key, session: u64, address: SocketAddr, now: Time, age: u64) -> [u8; 8] {
    let mut place = Vec::with_capacity(18);
    crate::wire::put_address(&mut place, address);
    let time = (now.since_origin().as_secs() / CHALLENGE_SLOT.as_secs()).wrapping_sub(age);
    short_mac(key, &[&session.to_be_bytes(), &time.to_be_bytes(), &place])
}

/// Reads a secret of a ticket.
fn read_key(reader: &mut Reader<'_>) -> Option<crypto::Key> {
    reader.array().map(crypto::Key::new)
}
