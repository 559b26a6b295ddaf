//! Sessions: one for each identity and address family, found by the number that the server gave.

use std::collections::BTreeMap;
use std::iter;
use std::net::SocketAddr;
use std::ops::Bound;
use std::time::Duration;

use natpunch_types::{Bucket, Network, PeerKey, Rate, ReplayWindow, Site, Time, Usage};
use slab::Slab;

use super::egress::{Departure, Egress, cost, pace};
use super::seals::{Content, Unsealed};
use super::ticket::{SecretNumber, Ticket};
use super::{BUSY_COUNTER, Limits, SESSION_IDLE, Via};
use crate::crypto::Key;
use crate::frame::{Notice, pack};
use crate::wire::{Kind, SESSION_HEADER_LEN};

/// Sessions looked through in one sweep.
const SWEEP_SIZE: usize = 4_096;

/// The owner of a session: one for each identity and address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClientId {
    pub(crate) identity: PeerKey,
    pub(crate) v6: bool,
}

/// The sender of a message: its client, its proven address, and the ticket and secret by which it
/// registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sender {
    pub(super) client: ClientId,
    pub(super) address: SocketAddr,
    pub(super) secret: SecretNumber,
    pub(super) ticket: u64,
}

/// Notices, and the clients that get them.
pub(super) type Pushes = Vec<(ClientId, Notice)>;

impl Sender {
    pub(super) fn network(&self) -> Network {
        Network::of(self.address.ip())
    }
}

/// How long messages under the keys before the current ones are taken: those that were on their
/// way, and those of a client that has not heard of the change yet.
const PREVIOUS_LIFETIME: Duration = Duration::from_secs(15);

/// What opens the messages of a client, each once.
pub(super) struct Inbound {
    id: u64,
    pub(super) from_client: Key,
    pub(super) window: ReplayWindow,
}

impl Inbound {
    /// Whether a message of this number may be a new one. The counter of *busy* belongs to no
    /// session.
    pub(super) fn accepts(&self, counter: u64) -> bool {
        counter < BUSY_COUNTER && self.window.accepts(counter)
    }
}

/// A registered client.
pub(super) struct Session {
    pub(super) client: ClientId,
    inbound: Inbound,
    /// That of the session that this one took over, and until when it is good.
    previous: Option<Box<(Inbound, Time)>>,
    /// The number of the ticket that it began with; only a later one replaces it.
    pub(super) ticket: u64,
    pub(super) secret: SecretNumber,
    from_server: Key,
    /// Where it proved to be, and over which way of ours.
    pub(super) address: SocketAddr,
    pub(super) via: Via,
    next_counter: u64,
    heard: Time,
    pub(super) egress: Egress,
    /// One more than the counter of the last message that a path challenge answered.
    challenged: u64,
    messages: Bucket,
}

impl Session {
    pub(super) fn new(
        client: ClientId,
        ticket: Ticket,
        via: Via,
        address: SocketAddr,
        now: Time,
    ) -> Self {
        let mut window = ReplayWindow::default();
        window.mark(0); // the confirm
        Self {
            client,
            inbound: Inbound {
                id: ticket.session,
                from_client: ticket.from_client,
                window,
            },
            previous: None,
            ticket: ticket.number,
            secret: ticket.secret,
            from_server: ticket.from_server,
            address,
            via,
            next_counter: 1, // 0 sealed the ticket
            heard: now,
            egress: Egress::default(),
            challenged: 0,
            messages: Bucket::default(),
        }
    }

    /// Whose session this is, and where it is.
    pub(super) fn sender(&self) -> Sender {
        Sender {
            client: self.client,
            address: self.address,
            secret: self.secret,
            ticket: self.ticket,
        }
    }

    /// Whether a message from elsewhere is worth a path challenge: each is once, so that copies get
    /// nothing.
    pub(super) fn may_challenge(&mut self, counter: u64) -> bool {
        let is_new = counter >= self.challenged;
        self.challenged = self.challenged.max(counter.saturating_add(1));
        is_new
    }

    /// It was heard from where it has proven to be.
    pub(super) fn hear(&mut self, now: Time) {
        self.heard = now;
        self.egress.heard();
    }

    /// The numbers under which its messages come.
    fn ids(&self) -> impl Iterator<Item = u64> + use<> {
        iter::once(self.inbound.id).chain(self.previous.as_ref().map(|previous| previous.0.id))
    }

    /// What opens messages under this number.
    pub(super) fn inbound(&self, id: u64) -> Option<&Inbound> {
        let previous = self.previous.as_ref().map(|previous| &previous.0);
        [Some(&self.inbound), previous]
            .into_iter()
            .flatten()
            .find(|inbound| inbound.id == id)
    }

    /// What is known of an authentic message that was not seen: whether it is the newest of the
    /// session. `None` if it was seen, or its keys are not good any more.
    pub(super) fn check(&self, id: u64, counter: u64, now: Time) -> Option<bool> {
        let is_current = self.inbound.id == id;
        let inbound = match &self.previous {
            _ if is_current => &self.inbound,
            Some(previous) if previous.0.id == id && now < previous.1 => &previous.0,
            _ => return None,
        };
        inbound.accepts(counter).then_some(())?;
        Some(is_current && inbound.window.is_newest(counter))
    }

    /// Marks an authentic message that was [checked](Self::check): it is seen.
    pub(super) fn mark(&mut self, id: u64, counter: u64) {
        match &mut self.previous {
            _ if self.inbound.id == id => self.inbound.window.mark(counter),
            Some(previous) if previous.0.id == id => previous.0.window.mark(counter),
            _ => {}
        }
    }

    /// Counts a message; false if there were too many.
    pub(super) fn admit(&mut self, now: Time, most: u32) -> bool {
        let rate = Rate::per_second(most.into(), most.into());
        self.messages.take(rate, 1, now)
    }

    pub(super) fn is_over(&self, now: Time) -> bool {
        now.since(self.heard) >= SESSION_IDLE
    }

    /// The datagrams that say this, to its proven address.
    pub(super) fn say<'a>(
        &mut self,
        notices: impl IntoIterator<Item = &'a Notice>,
    ) -> impl Iterator<Item = Unsealed> {
        let (via, destination) = (self.via, self.address);
        self.say_to(Kind::Notice, via, destination, notices)
    }

    /// The datagrams that say this, to another address.
    pub(super) fn say_to<'a>(
        &mut self,
        kind: Kind,
        via: Via,
        destination: SocketAddr,
        notices: impl IntoIterator<Item = &'a Notice>,
    ) -> impl Iterator<Item = Unsealed> {
        pack(notices, SESSION_HEADER_LEN, 0).map(move |mut message| {
            let counter = self.next_counter;
            self.next_counter += 1;
            kind.put_session_header(self.inbound.id, counter, &mut message);
            let key = self.from_server.clone();
            Unsealed {
                via,
                destination,
                content: Content::Message {
                    key,
                    counter,
                    message,
                },
            }
        })
    }
}

/// Where a session is kept. Good until one is inserted or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SessionRef(usize);

/// All of them.
#[derive(Default)]
pub(super) struct Sessions {
    sessions: Slab<Box<Session>>,
    by_client: BTreeMap<ClientId, SessionRef>,
    by_id: BTreeMap<u64, SessionRef>,
    by_network: Usage<Network>,
    by_site: Usage<Site>,
    /// What goes to the clients of each site.
    paces: BTreeMap<Site, Bucket>,
    sweep_after: Option<ClientId>,
}

impl Sessions {
    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Where the session of this number is.
    pub(super) fn find(&self, id: u64) -> Option<SessionRef> {
        self.by_id.get(&id).copied()
    }

    /// Where the session of this client is.
    pub(super) fn find_client(&self, client: &ClientId) -> Option<SessionRef> {
        self.by_client.get(client).copied()
    }

    pub(super) fn get(&self, session_ref: SessionRef) -> Option<&Session> {
        self.sessions.get(session_ref.0).map(|session| &**session)
    }

    pub(super) fn get_mut(&mut self, session_ref: SessionRef) -> Option<&mut Session> {
        self.sessions
            .get_mut(session_ref.0)
            .map(|session| &mut **session)
    }

    /// Whether the identity is registered, over either family.
    pub(super) fn has(&self, identity: &PeerKey) -> bool {
        [false, true].iter().any(|v6| {
            self.by_client.contains_key(&ClientId {
                identity: *identity,
                v6: *v6,
            })
        })
    }

    /// Whether this client may have its session there: a new one, or one that was elsewhere.
    pub(super) fn has_room(&self, client: &ClientId, address: SocketAddr, limits: &Limits) -> bool {
        let network = Network::of(address.ip());
        let before = self
            .find_client(client)
            .and_then(|session_ref| self.get(session_ref));
        let before = before.map(|session| Network::of(session.address.ip()));
        if before == Some(network) {
            return true;
        }
        // One that moves within its site takes nothing of what is left for others.
        let left = limits.sessions.saturating_sub(self.len());
        let site = network.site();
        let near = before.is_some_and(|before| before.site() == site);
        (near || self.by_site.leaves_room(&site, left))
            && self.by_network.of(&network) < limits.sessions_per_network
    }

    /// When a record of this length may leave for a client.
    pub(super) fn depart(
        &mut self,
        client: &ClientId,
        length: usize,
        limits: &Limits,
        now: Time,
    ) -> Departure {
        let Some((session, of_network)) = self.reachable(client, now) else {
            return Departure::Refused;
        };
        let departure = session.egress.depart(length, limits, now);
        let rate = pace(limits.network_bytes_per_second);
        match departure {
            Departure::Now if !of_network.take(rate, cost(length), now) => Departure::Refused,
            departure => departure,
        }
    }

    /// Whether a record may leave for a client at the time that it was given.
    pub(super) fn depart_as_reserved(
        &mut self,
        client: &ClientId,
        length: usize,
        limits: &Limits,
        now: Time,
    ) -> bool {
        let rate = pace(limits.network_bytes_per_second);
        self.reachable(client, now)
            .is_some_and(|(session, bucket)| {
                session.egress.depart_as_reserved(length, now)
                    && bucket.take(rate, cost(length), now)
            })
    }

    /// Whether a datagram that holds no record may leave for a client.
    pub(super) fn may_answer(
        &mut self,
        client: &ClientId,
        length: usize,
        limits: &Limits,
        now: Time,
    ) -> bool {
        let rate = pace(limits.network_bytes_per_second);
        self.reachable(client, now)
            .is_some_and(|(session, bucket)| {
                session.egress.answer(length, limits, now) && bucket.take(rate, cost(length), now)
            })
    }

    /// A client that is where it has proven to be, and what goes to its site.
    ///
    /// One that sleeps is heard when it wakes, and its records must be waiting: it counts until its
    /// session is over. What leaves until then is bounded by [`Egress`]: few bytes, and none after
    /// 5 s without an answer.
    fn reachable(&mut self, client: &ClientId, now: Time) -> Option<(&mut Session, &mut Bucket)> {
        let session_ref = self.by_client.get(client)?;
        let session = self.sessions.get_mut(session_ref.0)?;
        let site = Network::of(session.address.ip()).site();
        if session.is_over(now) {
            return None;
        }
        Some((session, self.paces.entry(site).or_default()))
    }

    fn count(&mut self, address: SocketAddr) {
        let network = Network::of(address.ip());
        self.by_network.take(network);
        self.by_site.take(network.site());
    }

    fn discount(&mut self, address: SocketAddr) {
        let network = Network::of(address.ip());
        self.by_network.give_back(&network);
        self.by_site.give_back(&network.site());
        if self.by_site.of(&network.site()) == 0 {
            self.paces.remove(&network.site());
        }
    }

    /// Adds a session: where it is. The client's earlier one, if it lives, goes over into it: true.
    pub(super) fn insert(&mut self, mut session: Session, now: Time) -> (SessionRef, bool) {
        let client = session.client;
        let before = self.take(&client).filter(|before| !before.is_over(now));
        let continued = before.is_some();
        session.previous = before.map(|before| Box::new((before.inbound, now + PREVIOUS_LIFETIME)));
        let (ids, address) = (session.ids(), session.address);
        let session_ref = SessionRef(self.sessions.insert(Box::new(session)));
        self.by_id.extend(ids.map(|id| (id, session_ref)));
        self.count(address);
        self.by_client.insert(client, session_ref);
        (session_ref, continued)
    }

    fn take(&mut self, client: &ClientId) -> Option<Session> {
        let session = *self.sessions.try_remove(self.by_client.remove(client)?.0)?;
        session.ids().for_each(|id| _ = self.by_id.remove(&id));
        self.discount(session.address);
        Some(session)
    }

    /// Moves a session to an address that its client has proven; false if it is there.
    pub(super) fn relocate(
        &mut self,
        session_ref: SessionRef,
        address: SocketAddr,
        via: Via,
        now: Time,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(session_ref.0) else {
            return false;
        };
        session.hear(now);
        session.via = via;
        // What it said from here before it had proven to be here was not done. It says that again;
        // a copy of it is not done now.
        session.inbound.window.close_gaps();
        session.challenged = 0;
        let before = std::mem::replace(&mut session.address, address);
        self.count(address);
        self.discount(before);
        before != address
    }

    /// Forgets all of which this is true.
    pub(super) fn remove_if(&mut self, is_over: impl Fn(&Session) -> bool) -> usize {
        let over = self.sessions.iter().filter(|(_, session)| is_over(session));
        let over: Vec<ClientId> = over.map(|(_, session)| session.client).collect();
        for client in &over {
            self.take(client);
        }
        over.len()
    }

    /// Forgets the silent ones among the next few; how many they were.
    pub(super) fn sweep(&mut self, now: Time) -> u64 {
        let from = self.sweep_after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut seen: Vec<(ClientId, bool)> = Vec::new();
        for (client, session_ref) in self
            .by_client
            .range((from, Bound::Unbounded))
            .take(SWEEP_SIZE)
        {
            let Some(session) = self.sessions.get_mut(session_ref.0) else {
                continue;
            };
            seen.push((*client, session.is_over(now)));
            if let Some(previous) = session.previous.take_if(|previous| now >= previous.1) {
                self.by_id.remove(&previous.0.id);
            }
        }
        self.sweep_after = (seen.len() == SWEEP_SIZE)
            .then(|| seen.last().map(|(client, _)| *client))
            .flatten();
        let over: Vec<ClientId> = seen
            .into_iter()
            .filter(|(_, over)| *over)
            .map(|(client, _)| client)
            .collect();
        for client in &over {
            self.take(client);
        }
        over.len() as u64
    }
}
