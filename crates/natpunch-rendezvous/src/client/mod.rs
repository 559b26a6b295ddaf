//! The client: one per server and address family. It registers, keeps its mailboxes and its wishes
//! at the server, and says what it hears.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use natpunch_noise::{HandshakeState, Identity};
use natpunch_types::{PeerKey, RelayUse, ReplayWindow, Time, backoff, canonical, keepalive_for};
use rand_core::CryptoRng;

use crate::crypto::{self, HelloKeys, digest, open_message, seal_in_place, split};
use crate::frame::{Frame as _, Notice, Request, pack};
use crate::wire::{
    ADDRESS_LEN, CONFIRM_HEADER_LEN, Digest, HEADER_LEN, HELLO_PAYLOAD_LEN, Kind, MAC_LEN, MAC1_AT,
    MAC2_AT, MAX_BLOB, MIN_CONFIRM, NONCE_LEN, PROBE_LEN, Reader, SESSION_HEADER_LEN, Tag,
    WELCOME_NOISE_LEN,
};

mod alternate;
mod items;
mod meet;
mod reachability;
mod relays;
mod session;
mod types;

use alternate::Alternates;
use items::{Items, Name};
use meet::Wishes;
use reachability::Reachability;
use relays::Relays;
use session::{REKEY_EARLY, Session};
pub use types::{Config, Event, Outgoing, To};

/// When a hello or a confirm is sent again. After the last the attempt has failed.
const RESEND: [Duration; 4] = [
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1500),
    Duration::from_millis(2000),
];
/// At which of them the server is asked by STUN, too.
const ASK_STUN_AT: usize = 2;
/// And after these when there is a session that works meanwhile.
const RESEND_BESIDE: [Duration; 2] = [Duration::from_secs(2); 2];
/// How long messages under the keys before the current ones are taken.
const PREVIOUS_LIFETIME: Duration = Duration::from_secs(15);
/// The first and the longest wait between attempts, each times one half to three halves.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(40));
/// A session without an answer for this long is dead.
const DEAD_AFTER: Duration = Duration::from_secs(7);
/// When a request is sent again.
const REQUEST_RESEND: (Duration, Duration) = (Duration::from_millis(400), Duration::from_secs(4));
/// When a kept record or wish is said again; less by up to a quarter, so that they don't come
/// together.
const REFRESH: Duration = Duration::from_secs(300);
/// How long a server may ask us to be silent, and how long we are where our NAT allows that.
const PING: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(120));
/// What is to be said again within this time, and has room in the same datagram, is said with what
/// is due: so much at once.
const TOGETHER: (Duration, usize) = (Duration::from_secs(75), 8);
/// Requests sent at once, and the pause after so many: a thousand peers are registered in some
/// seconds.
const BURST: usize = 8;
const PACE: Duration = Duration::from_millis(60);
/// Wishes for a relay among them.
const RELAYS_AT_ONCE: usize = 24;
/// Mailboxes that one client uses at most.
const MAX_ITEMS: usize = 4_096;
/// Events that wait to be fetched; the oldest are dropped.
const MAX_EVENTS: usize = 4_096;

/// One server's client. Feed, then drain, as the [server](crate::Server).
pub struct Client<R> {
    rng: R,
    /// The server's.
    address: SocketAddr,
    identity: Identity,
    servers: Vec<(PeerKey, HelloKeys)>,
    /// Which of them is tried.
    server: usize,
    attempt: Attempt,
    failures: u32,
    session: Option<Session>,
    /// The session before it, for what is on its way, and until when.
    previous: Option<(Session, Time)>,
    items: Items,
    relays: Relays,
    wishes: Wishes,
    alternates: Alternates,
    reachability: Reachability,
    /// The silence that our NAT's mappings are known to outlive.
    lifetime: Option<Duration>,
    transmits: VecDeque<Outgoing>,
    events: VecDeque<Event>,
}

/// How far a registration is.
enum Attempt {
    /// None is needed before then.
    Wait(Time),
    /// A hello is out.
    Hello {
        handshake: Box<HandshakeState>,
        /// What a welcome said whose ticket did not open: another copy may be whole.
        welcome: Option<Welcome>,
        datagram: Vec<u8>,
        sent: Time,
        tries: usize,
        due: Time,
    },
    /// A confirm is out.
    Confirm {
        session: Box<Session>,
        datagram: Vec<u8>,
        tries: usize,
        due: Time,
    },
}

/// What the server's half of the handshake says.
struct Welcome {
    id: u64,
    observed: SocketAddr,
    from_client: crypto::Key,
    from_server: crypto::Key,
}

impl Welcome {
    /// Reads the header of a welcome. One that fails leaves the handshake as it was; after one that
    /// does not it is over.
    fn read(handshake: &mut HandshakeState, header: &[u8]) -> Option<Self> {
        let mut inner = [0; 8 + ADDRESS_LEN];
        handshake
            .read_message(header.get(HEADER_LEN..)?, &mut inner)
            .ok()?;
        let mut reader = Reader(&inner);
        let (id, observed) = (reader.u64()?, reader.address()?);
        let [from_client, from_server] = split(handshake)?;
        Some(Self {
            id,
            observed,
            from_client,
            from_server,
        })
    }
}

impl<R: CryptoRng> Client<R> {
    /// A client that registers at once with the server at `address`. `None` if its key is all zeros
    /// or there is no server key.
    pub fn new(config: Config, address: SocketAddr, rng: R, now: Time) -> Option<Self> {
        let servers: Vec<_> = config
            .servers
            .iter()
            .map(|key| (*key, HelloKeys::new(key, config.admission.as_ref())))
            .collect();
        (!servers.is_empty()).then_some(())?;
        Some(Self {
            rng,
            address: canonical(address),
            identity: Identity::new(&config.identity)?,
            servers,
            server: 0,
            attempt: Attempt::Wait(now),
            failures: 0,
            session: None,
            previous: None,
            items: Items::default(),
            relays: Relays::default(),
            wishes: Wishes::default(),
            alternates: Alternates::default(),
            reachability: Reachability::default(),
            lifetime: None,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        })
    }

    /// This client's public identity, as an allow-list names it.
    pub fn identity(&self) -> PeerKey {
        self.identity.public()
    }

    /// Sets the mailboxes to watch, complete.
    pub fn set_watches(&mut self, tags: impl IntoIterator<Item = Tag>, now: Time) {
        let wanted: BTreeSet<Name> = tags.into_iter().map(Name::Watch).collect();
        let known: Vec<Name> = self.names(|name| matches!(name, Name::Watch(_)));
        known
            .iter()
            .filter(|name| !wanted.contains(name))
            .for_each(|name| self.items.remove(name));
        for name in wanted {
            if !self.items.by_name.contains_key(&name) {
                self.items.insert(name, None, [0; 8], now);
            }
        }
    }

    /// Sets the records to keep at the server, complete. Those of more than [`MAX_BLOB`] bytes are
    /// left out.
    pub fn set_records(&mut self, records: impl IntoIterator<Item = (Tag, Arc<[u8]>)>, now: Time) {
        let records: BTreeMap<Name, Arc<[u8]>> = records
            .into_iter()
            .filter(|(_, blob)| blob.len() <= MAX_BLOB)
            .map(|(tag, blob)| (Name::Put(tag), blob))
            .collect();
        let known: Vec<Name> = self.names(|name| matches!(name, Name::Put(_)));
        known
            .iter()
            .filter(|name| !records.contains_key(name))
            .for_each(|name| self.items.remove(name));
        for (name, blob) in records {
            let digest = digest(&blob);
            if self
                .items
                .by_name
                .get(&name)
                .is_none_or(|item| item.digest != digest)
            {
                self.items.insert(name, Some(blob), digest, now);
            }
        }
    }

    /// Says a record that is kept at the server again: somebody else may have put another in its
    /// place.
    pub fn repeat_record(&mut self, tag: Tag, now: Time) {
        self.items.schedule(Name::Put(tag), now, 0);
    }

    /// Sets what pairs want of the server's relay, complete. Both sides of a pair name it by the
    /// same tag. Of a pair that is named with [`RelayUse::Off`] the server is told so, in case that
    /// an earlier client of this identity wanted something else.
    pub fn set_relays(&mut self, wanted: impl IntoIterator<Item = (Tag, RelayUse)>, now: Time) {
        self.relays
            .set(wanted, now)
            .into_iter()
            .for_each(|event| self.emit(event));
    }

    /// Asks the server to let us and the other client that names this tag fire at the same moment
    /// ([`Event::Fire`]). Good for the next five seconds. If the other does not ask for it, it is
    /// told ([`Event::Wanted`]), if it watches `mailbox` and the record there is ours.
    pub fn meet(&mut self, tag: Tag, mailbox: Tag, now: Time) {
        self.wishes.add(tag, mailbox, now);
        self.relays.rebind_pair(&tag, now);
    }

    /// The silence that the mappings of our NAT are known to outlive, if it was measured: then that
    /// alone says how often we are heard at the server and at its relay. It ends a session after
    /// 150 s only.
    pub fn set_mapping_lifetime(&mut self, lifetime: Option<Duration>, now: Time) {
        if self.lifetime == lifetime {
            return;
        }
        self.lifetime = lifetime;
        // What was put off for longer than is good now is not.
        if let Some(session) = &mut self.session {
            let interval = quiet(lifetime, session.ping_interval);
            session.ping_due = session.ping_due.min(now + interval);
        }
        self.relays.set_mapping_lifetime(lifetime, now);
    }

    /// Another address of the same server, if its name has one: asked how it sees us, it shows
    /// whether our NAT maps by address. One that is no server's, or another's, does not answer.
    pub fn set_other_address(&mut self, address: Option<SocketAddr>, now: Time) {
        let address = address
            .map(canonical)
            .filter(|other| other.is_ipv4() == self.address.is_ipv4());
        self.alternates
            .set_address(address.filter(|other| *other != self.address), now);
    }

    /// Whether the server's host answered STUN when the last hello got no answer: then UDP reaches
    /// it, and it does not speak with us. Its key is another one, or we are not admitted.
    pub fn answers_stun(&self) -> bool {
        self.reachability.answers()
    }

    /// Since when an answer is awaited in a session that works, if one is.
    pub fn unanswered_since(&self) -> Option<Time> {
        self.session.as_ref()?.asked
    }

    /// Ports of the server that it has named and that answer nothing: its second one, and those of
    /// its relay.
    pub fn silent_ports(&self) -> BTreeSet<SocketAddr> {
        let second = self.alternates.silent_port().into_iter();
        second.chain(self.relays.silent_ports()).collect()
    }

    fn names(&self, filter: impl Fn(&Name) -> bool) -> Vec<Name> {
        self.items.by_name.keys().copied().filter(filter).collect()
    }

    /// The network changed: says where we are, and tries at once what waits.
    pub fn handle_network_change(&mut self, now: Time) {
        self.relays.restart(now);
        self.relays.rebind(now);
        self.alternates.forget();
        if let Some(session) = &mut self.session {
            session.ping_due = now;
            // The round trip of a message that is still on its way is unknown.
            session.pinged = None;
            return;
        }
        self.failures = 0;
        match self.attempt {
            // It was sent just now, and will be again soon.
            Attempt::Hello { tries: 0, .. } | Attempt::Confirm { tries: 0, .. } => {}
            // What was lost meanwhile says nothing of the server.
            Attempt::Wait(_) | Attempt::Hello { .. } | Attempt::Confirm { .. } => {
                self.attempt = Attempt::Wait(now);
            }
        }
    }

    /// Takes a datagram that arrived from any port of the server.
    pub fn handle_datagram(&mut self, source: SocketAddr, payload: &[u8], now: Time) {
        let source = canonical(source);
        let from_server = source == self.address;
        if from_server {
            self.reachability.handle(payload);
        }
        if source.ip() == self.address.ip() && Kind::of(payload) == Some(Kind::Bound) {
            let event = self
                .relays
                .handle_bound(source, payload, &mut self.rng, now);
            event.into_iter().for_each(|event| self.emit(event));
        }
        let _ = match Kind::of(payload) {
            Some(Kind::Welcome) if from_server => self.handle_welcome(payload, now),
            Some(Kind::Cookie) if from_server => self.handle_cookie(payload, now),
            Some(Kind::Notice) if from_server => self.handle_notice(payload, now),
            Some(Kind::ProbeAnswer) if self.alternates.is(source) => {
                self.handle_probe_answer(source, payload)
            }
            _ => None,
        };
    }

    /// Sends what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        if self
            .session
            .as_ref()
            .and_then(|session| session.asked)
            .is_some_and(|asked| now >= asked + DEAD_AFTER)
        {
            (self.session, self.previous) = (None, None);
            self.alternates.end();
            self.items.restart(now);
            self.relays.restart(now);
            self.emit(Event::Down);
            if matches!(self.attempt, Attempt::Wait(_)) {
                self.attempt = Attempt::Wait(now);
            }
        }
        self.previous.take_if(|(_, until)| now >= *until);
        self.drive_attempt(now);
        self.drive_session(now);
        let (binds, events) = self
            .relays
            .drive(self.session.is_some(), &mut self.rng, now);
        self.transmits.extend(binds);
        events.into_iter().for_each(|event| self.emit(event));
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        let attempt = match &self.attempt {
            Attempt::Wait(until) => self.session.is_none().then_some(*until),
            Attempt::Hello { due, .. } | Attempt::Confirm { due, .. } => Some(*due),
        };
        let session = self.session.as_ref().map(|session| {
            let wishes = self
                .items
                .queue
                .first()
                .map(|(due, _)| *due)
                .into_iter()
                .chain(self.relays.wish_due())
                .min();
            let wishes = wishes.map(|due| due.max(self.items.paced_until));
            let rekey = match self.attempt {
                Attempt::Wait(until) => Some(until.max(session.rekey_at())),
                _ => None,
            };
            let dead = session.asked.map(|asked| asked + DEAD_AFTER);
            [
                wishes,
                dead,
                rekey,
                self.wishes.next_due(),
                self.alternates.next_due(),
            ]
            .into_iter()
            .flatten()
            .fold(session.ping_due, Time::min)
        });
        attempt
            .into_iter()
            .chain(session)
            .chain(self.relays.bind_due())
            .min()
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Outgoing> {
        self.transmits.pop_front()
    }

    /// The next thing to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn emit(&mut self, event: Event) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn drive_attempt(&mut self, now: Time) {
        match &mut self.attempt {
            Attempt::Wait(until) => {
                let needed = self
                    .session
                    .as_ref()
                    .is_none_or(|session| now >= session.rekey_at());
                if needed && now >= *until {
                    self.say_hello(now);
                }
            }
            Attempt::Hello {
                datagram,
                tries,
                due,
                ..
            }
            | Attempt::Confirm {
                datagram,
                tries,
                due,
                ..
            } if now >= *due => {
                *tries += 1;
                let beside = RESEND_BESIDE.iter().filter(|_| self.session.is_some());
                match RESEND.iter().chain(beside).nth(*tries) {
                    Some(wait) => {
                        *due = now + *wait;
                        let asks = *tries == ASK_STUN_AT && self.session.is_none();
                        self.transmits
                            .push_back(Outgoing::to_server(datagram.clone()));
                        if asks {
                            let request = self.reachability.ask(&mut self.rng);
                            self.transmits.push_back(Outgoing::to_server(request));
                        }
                    }
                    None => self.fail(Duration::ZERO, now),
                }
            }
            Attempt::Hello { .. } | Attempt::Confirm { .. } => {}
        }
    }

    /// Gives an attempt up, for a while that grows and is not the same for any two clients.
    fn fail(&mut self, at_least: Duration, now: Time) {
        let wait = backoff(BACKOFF, self.failures);
        self.failures = self.failures.saturating_add(1);
        self.server = (self.server + 1) % self.servers.len().max(1);
        let wait = wait / 2 + self.jitter(wait);
        let floor = if at_least.is_zero() {
            at_least
        } else {
            at_least + self.jitter(at_least / 2)
        };
        self.attempt = Attempt::Wait(now + wait.max(floor));
        if self.session.is_none() && at_least.is_zero() {
            self.emit(Event::Down);
        }
    }

    /// A random part of this time.
    fn jitter(&mut self, most: Duration) -> Duration {
        most.mul_f64(random_part(&mut self.rng))
    }

    fn say_hello(&mut self, now: Time) {
        let Some((handshake, datagram)) = self.hello() else {
            // The server key is not a valid key.
            self.fail(Duration::ZERO, now);
            return;
        };
        self.transmits
            .push_back(Outgoing::to_server(datagram.clone()));
        let [wait, ..] = RESEND;
        self.attempt = Attempt::Hello {
            handshake,
            welcome: None,
            datagram,
            sent: now,
            tries: 0,
            due: now + wait,
        };
    }

    fn hello(&mut self) -> Option<(Box<HandshakeState>, Vec<u8>)> {
        let (key, hello_keys) = self.servers.get(self.server)?;
        let mut handshake = self
            .identity
            .initiate(key, &hello_keys.prologue, &mut self.rng)
            .ok()?;
        let mut datagram = Kind::Hello.header().to_vec();
        let mut noise = [0; MAC1_AT];
        let length = handshake
            .write_message(&[0; HELLO_PAYLOAD_LEN], &mut noise)
            .ok()?;
        datagram.extend(noise.get(..length)?);
        let mac1 = hello_keys.mac1(&datagram);
        datagram.extend(mac1);
        datagram.extend([0; MAC_LEN]);
        Some((Box::new(handshake), datagram))
    }

    fn handle_cookie(&mut self, payload: &[u8], now: Time) -> Option<()> {
        let (_, hello_keys) = self.servers.get(self.server)?;
        let Attempt::Hello {
            datagram,
            due,
            sent,
            ..
        } = &mut self.attempt
        else {
            return None;
        };
        let mut reader = Reader(payload.get(HEADER_LEN..)?);
        let nonce = reader.array::<NONCE_LEN>()?;
        let mut text = reader.0.to_vec();
        hello_keys.open_cookie(&nonce, datagram.get(MAC1_AT..MAC2_AT)?, &mut text)?;
        let mac2 = crypto::mac2(&text.try_into().ok()?, datagram.get(..MAC2_AT)?);
        if datagram.get(MAC2_AT..)? == mac2 {
            return None; // a copy: we have answered
        }
        datagram.truncate(MAC2_AT);
        datagram.extend(mac2);
        let [wait, ..] = RESEND;
        (*sent, *due) = (now, now + wait);
        self.transmits
            .push_back(Outgoing::to_server(datagram.clone()));
        Some(())
    }

    fn handle_welcome(&mut self, payload: &[u8], now: Time) -> Option<()> {
        let Attempt::Hello {
            handshake,
            welcome,
            sent,
            ..
        } = &mut self.attempt
        else {
            return None;
        };
        let (header, sealed) = payload.split_at_checked(HEADER_LEN + WELCOME_NOISE_LEN)?;
        if welcome.is_none() {
            *welcome = Welcome::read(handshake, header);
        }
        // The header is authenticated with the ticket, so this is the welcome that was read, and
        // whole.
        let ticket = open_message(&welcome.as_ref()?.from_server, 0, header, sealed)?;
        let Welcome {
            id,
            observed,
            from_client,
            from_server,
        } = welcome.take()?;
        let round_trip = now.since(*sent);
        let mut window = ReplayWindow::default();
        window.mark(0); // the ticket
        let mut session = Session {
            id,
            from_client,
            from_server,
            next_counter: 1, // 0 seals the confirm
            window,
            since: now,
            used: None,
            early: self.jitter(REKEY_EARLY),
            ping_interval: PING.0,
            ping_due: now + PING.0,
            round_trip,
            pinged: Some(now),
            asked: Some(now),
        };
        if self.session.is_none() {
            self.items.restart(now);
            self.relays.restart(now);
        }
        let mut requests = self.relays.take_due(RELAYS_AT_ONCE, now);
        let overhead = CONFIRM_HEADER_LEN
            + MAC_LEN
            + requests
                .iter()
                .map(|request| request.encode().len())
                .sum::<usize>();
        requests.extend(self.items.take_due(1, overhead, now));
        if requests.is_empty() {
            requests.push(Request::Ping);
        }
        let mut message = pack(&requests, CONFIRM_HEADER_LEN, MIN_CONFIRM).next()?;
        let header = Kind::Confirm.header();
        message
            .iter_mut()
            .zip(header.iter().chain(&ticket))
            .for_each(|(to, from)| *to = *from);
        let datagram = seal_in_place(&session.from_client, 0, CONFIRM_HEADER_LEN, message)?;
        self.transmits
            .push_back(Outgoing::to_server(datagram.clone()));
        let [wait, ..] = RESEND;
        session.used = requests.iter().any(Request::is_use).then_some(now);
        self.attempt = Attempt::Confirm {
            session: Box::new(session),
            datagram,
            tries: 0,
            due: now + wait,
        };
        self.emit(Event::Observed(observed));
        Some(())
    }

    fn handle_notice(&mut self, payload: &[u8], now: Time) -> Option<()> {
        let confirming = match &mut self.attempt {
            Attempt::Confirm { session, .. } => session.open(payload),
            _ => None,
        };
        let notices = match confirming {
            Some(text) => {
                let notices = Notice::decode(&text);
                if let Some(Notice::Busy { retry_seconds }) = notices.first() {
                    let retry_after = Duration::from_secs((*retry_seconds).into());
                    self.fail(retry_after.max(Duration::from_secs(1)), now);
                    self.emit(Event::Refused { retry_after });
                    return None;
                }
                // Whatever the server says in the new session, the session is accepted.
                self.accept(notices.contains(&Notice::Continued), now);
                notices
            }
            None => {
                let current = self
                    .session
                    .as_mut()
                    .and_then(|session| session.open(payload));
                let text = current.or_else(|| self.previous.as_mut()?.0.open(payload))?;
                Notice::decode(&text)
            }
        };
        if let Some(session) = self
            .session
            .as_mut()
            .filter(|_| notices.iter().any(Notice::is_use))
        {
            session.used.get_or_insert(now);
        }
        let mut answers = Vec::new();
        for notice in notices {
            self.handle_frame(notice, &mut answers, now);
        }
        if self.session.as_mut()?.asked.take().is_some() {
            let interval = quiet(self.lifetime, self.session.as_ref()?.ping_interval);
            let due = now + interval - self.jitter(interval / 5);
            self.session.as_mut()?.ping_due = due;
        }
        if self.items.refused > 0 {
            let mailboxes = std::mem::take(&mut self.items.refused);
            self.emit(Event::Full { mailboxes });
        }
        self.request(&answers);
        Some(())
    }

    /// The new session takes over. `continued`: the server still has what was said in the one
    /// before.
    fn accept(&mut self, continued: bool, now: Time) {
        let taken = std::mem::replace(&mut self.attempt, Attempt::Wait(now));
        let Attempt::Confirm {
            mut session, tries, ..
        } = taken
        else {
            return;
        };
        session.since = now;
        if tries > 0 {
            session.pinged = None; // nobody knows which of them is answered
        }
        self.failures = 0;
        let round_trip = session.round_trip;
        let before = self.session.replace(*session);
        if before.is_some() && !continued {
            self.items.restart(now);
            self.relays.restart(now);
        }
        self.previous = before.map(|before| (before, now + PREVIOUS_LIFETIME));
        self.emit(Event::Up { round_trip });
    }

    /// Another place of the server has answered.
    fn handle_probe_answer(&mut self, source: SocketAddr, payload: &[u8]) -> Option<()> {
        let current = self
            .session
            .as_mut()
            .and_then(|session| session.open(payload));
        let text = current.or_else(|| self.previous.as_mut()?.0.open(payload))?;
        let Some(Notice::Pong { observed }) = Notice::decode(&text).into_iter().next() else {
            return None;
        };
        let mapping = self.alternates.answer(source, observed)?;
        self.emit(Event::Mapping(mapping));
        Some(())
    }

    fn handle_frame(&mut self, notice: Notice, answers: &mut Vec<Request>, now: Time) {
        match notice {
            Notice::Accepted { ping_seconds } => {
                let (least, most) = PING;
                if let Some(session) = &mut self.session {
                    session.ping_interval =
                        Duration::from_secs(ping_seconds.into()).clamp(least, most);
                }
            }
            Notice::Pong { observed } => {
                if let Some(session) = &mut self.session {
                    session.measure(now);
                }
                self.alternates.observe(observed, now);
                self.emit(Event::Observed(observed));
            }
            Notice::Stored { tag, digest } => self.kept(Name::Put(tag), Some(digest), now),
            Notice::Watching { tag } => self.kept(Name::Watch(tag), None, now),
            Notice::Record { tag, blob } => {
                let name = Name::Watch(tag);
                let Some(item) = self.items.by_name.get_mut(&name) else {
                    return;
                };
                let digest = digest(&blob);
                let is_new = item.digest != digest;
                item.digest = digest;
                answers.push(Request::Got { tag, digest });
                if is_new {
                    self.emit(Event::Record {
                        tag,
                        blob: blob.into(),
                    });
                }
            }
            Notice::PathChallenge { token } => answers.push(Request::PathResponse { token }),
            Notice::Full { tag, retry_seconds } => {
                let wait = Duration::from_secs(retry_seconds.into()).max(REQUEST_RESEND.1);
                for name in [Name::Put(tag), Name::Watch(tag)] {
                    if self
                        .items
                        .by_name
                        .get(&name)
                        .is_some_and(|item| item.tries > 0)
                    {
                        self.items.schedule(name, now + wait, 0);
                        self.items.refused += 1;
                    }
                }
            }
            Notice::RelayOffer {
                tag,
                port,
                allocation,
                key,
            } => {
                let to = SocketAddr::new(self.address.ip(), port);
                let event = self.relays.handle_offer(&tag, to, allocation, key, now);
                event.into_iter().for_each(|event| self.emit(event));
            }
            Notice::RelayState { tag, wants, state } => {
                let event = self
                    .relays
                    .handle_state(&tag, wants, state, &mut self.rng, now);
                event.into_iter().for_each(|event| self.emit(event));
            }
            Notice::Fire { tag, delay_ms } => {
                if let Some(after) = self.wishes.fire(&tag, delay_ms, now) {
                    self.emit(Event::Fire { tag, after });
                }
            }
            Notice::AlternatePort { port } => self.alternates.offer(self.address, port, now),
            Notice::Wanted { tag } if self.items.by_name.contains_key(&Name::Watch(tag)) => {
                self.emit(Event::Wanted { tag });
            }
            Notice::Busy { .. } | Notice::Continued | Notice::Wanted { .. } => {}
        }
    }

    /// The server has an item; it is said again long before the server forgets it.
    fn kept(&mut self, name: Name, digest: Option<Digest>, now: Time) {
        let Some(item) = self.items.by_name.get(&name) else {
            return;
        };
        let (is_current, is_awaited) = (
            digest.is_none_or(|digest| digest == item.digest),
            item.tries > 0,
        );
        if is_current && is_awaited {
            let due = now + REFRESH - self.jitter(REFRESH / 4);
            self.items.schedule(name, due, 0);
        } else if !is_current && !is_awaited {
            // What we said before came late, and is what the server has now.
            self.items.schedule(name, now, 0);
        }
    }

    fn has_wishes_due(&self, now: Time) -> bool {
        self.items.queue.first().is_some_and(|(due, _)| *due <= now)
            || self.relays.wish_due().is_some_and(|due| due <= now)
    }

    fn drive_session(&mut self, now: Time) {
        if self.session.is_none() {
            return;
        }
        let mut requests = Vec::new();
        if now >= self.items.paced_until {
            if self.has_wishes_due(now) {
                let (ahead, most) = TOGETHER;
                self.items.bring_forward(now + ahead, most, now);
                self.relays.bring_forward(now + ahead, most, now);
            }
            requests = self.relays.take_due(RELAYS_AT_ONCE, now);
            requests.extend(
                self.items
                    .take_due(BURST, SESSION_HEADER_LEN + MAC_LEN, now),
            );
            if self.has_wishes_due(now) {
                self.items.paced_until = now + PACE;
            }
        }
        let wishes = self.wishes.take_due(now);
        let Some(session) = self.session.as_mut() else {
            return;
        };
        let round_trip_ms = session
            .round_trip
            .as_millis()
            .try_into()
            .unwrap_or(u16::MAX);
        requests.extend(wishes.into_iter().map(|(tag, mailbox)| Request::Meet {
            tag,
            round_trip_ms,
            mailbox,
        }));
        if now >= session.ping_due {
            session.ping_due = now + Duration::from_secs(1);
            // A second ping while the first is out: its pong would measure nothing.
            session.pinged = session.asked.is_none().then_some(now);
            requests.push(Request::Ping);
        }
        if !requests.is_empty() && session.asked.is_none() {
            session.asked = Some(now);
            session.ping_due = now + Duration::from_secs(1);
        }
        if requests.iter().any(Request::is_use) {
            session.used.get_or_insert(now);
        }
        while let Some(address) = self.alternates.take_due(now) {
            let probe = session.seal(Kind::Probe, vec![0; PROBE_LEN - MAC_LEN]);
            self.transmits.extend(probe.map(|payload| Outgoing {
                to: To::Address(address),
                payload,
            }));
        }
        self.request(&requests);
    }

    fn request(&mut self, requests: &[Request]) {
        let Some(session) = &mut self.session else {
            return;
        };
        for message in pack(requests, SESSION_HEADER_LEN, 0) {
            self.transmits.extend(
                session
                    .seal(Kind::Request, message)
                    .map(Outgoing::to_server),
            );
        }
    }
}

/// How long a mapping is left alone: as long as the NAT allows, or else by the rule of thumb.
fn quiet(lifetime: Option<Duration>, rule: Duration) -> Duration {
    lifetime.map_or(rule, |lifetime| {
        keepalive_for(lifetime).clamp(PING.0, PING.1)
    })
}

/// A random part of 1.
fn random_part(rng: &mut impl CryptoRng) -> f64 {
    f64::from(rng.next_u32()) / f64::from(u32::MAX)
}
