//! Sessions: one for each identity and address family, found by the number that the server gave.

use std::collections::BTreeMap;
use std::iter;
use std::net::SocketAddr;
use std::ops::Bound;
use std::time::Duration;

use natpunch_types::PeerKey;
use slab::Slab;

use super::door::{SecretNumber, Ticket};
use super::seals::{Content, Unsealed};
use super::shares::{Network, Shares};
use super::{Limits, SESSION_IDLE, Via};
use crate::crypto::Key;
use crate::frame::{Notice, pack};
use crate::window::Window;
use crate::wire::{Kind, SESSION_HEADER_LEN};

/// Sessions looked through in one sweep.
const SWEEP_SIZE: usize = 4_096;

/// Whose session, and of which family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    pub(super) identity: PeerKey,
    pub(super) v6: bool,
}

/// Who says something: whose session, where it has proven to be, and by which secret it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Speaker {
    pub(super) slot: Slot,
    pub(super) address: SocketAddr,
    pub(super) secret: SecretNumber,
}

/// Who is told what.
pub(super) type Told = Vec<(Slot, Notice)>;

impl Speaker {
    pub(super) fn network(&self) -> Network {
        Network::of(self.address.ip())
    }
}

/// How long messages under the keys before the current ones are taken: those that were on their
/// way, and those of a client that has not heard of the change yet.
const PREVIOUS_LIFETIME: Duration = Duration::from_secs(15);

/// What opens the messages of a client, each once.
pub(super) struct Track {
    id: u64,
    pub(super) from_client: Key,
    pub(super) window: Window,
}

/// A registered client.
pub(super) struct Session {
    pub(super) slot: Slot,
    track: Track,
    /// That of the session that this one took over, and until when it is good.
    previous: Option<Box<(Track, Duration)>>,
    /// The number of the ticket that it began with; only a later one replaces it.
    pub(super) ticket: u64,
    pub(super) secret: SecretNumber,
    from_server: Key,
    /// Where it proved to be, and over which way of ours.
    pub(super) address: SocketAddr,
    pub(super) via: Via,
    next_counter: u64,
    pub(super) heard: Duration,
    /// Messages in the current second.
    meter: (u64, u32),
}

impl Session {
    pub(super) fn new(
        slot: Slot,
        ticket: Ticket,
        via: Via,
        address: SocketAddr,
        now: Duration,
    ) -> Self {
        let mut window = Window::default();
        window.mark(0); // the confirm
        Self {
            slot,
            track: Track {
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
            meter: (0, 0),
        }
    }

    /// Whose session this is, and where it is.
    pub(super) fn speaker(&self) -> Speaker {
        Speaker {
            slot: self.slot,
            address: self.address,
            secret: self.secret,
        }
    }

    /// The numbers under which its messages come.
    fn ids(&self) -> impl Iterator<Item = u64> + use<> {
        iter::once(self.track.id).chain(self.previous.as_ref().map(|previous| previous.0.id))
    }

    /// What opens messages under this number.
    pub(super) fn track(&self, id: u64) -> Option<&Track> {
        let previous = self.previous.as_ref().map(|previous| &previous.0);
        [Some(&self.track), previous]
            .into_iter()
            .flatten()
            .find(|track| track.id == id)
    }

    /// Marks an authentic message; whether it is the newest of the session. `None` if it was seen,
    /// or its keys are not good any more.
    pub(super) fn mark(&mut self, id: u64, counter: u64, now: Duration) -> Option<bool> {
        let is_current = self.track.id == id;
        let track = match &mut self.previous {
            _ if is_current => &mut self.track,
            Some(previous) if previous.0.id == id && now < previous.1 => &mut previous.0,
            _ => return None,
        };
        track.window.accepts(counter).then_some(())?;
        let newest = is_current && track.window.is_newest(counter);
        track.window.mark(counter);
        Some(newest)
    }

    /// Counts a message; false if there were too many.
    pub(super) fn admit(&mut self, now: Duration, most: u32) -> bool {
        if self.meter.0 != now.as_secs() {
            self.meter = (now.as_secs(), 0);
        }
        self.meter.1 = self.meter.1.saturating_add(1);
        self.meter.1 <= most
    }

    pub(super) fn is_over(&self, now: Duration) -> bool {
        now.saturating_sub(self.heard) >= SESSION_IDLE
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
            kind.put_session_header(self.track.id, counter, &mut message);
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
pub(super) struct Seat(usize);

/// All of them.
#[derive(Default)]
pub(super) struct Sessions {
    seats: Slab<Box<Session>>,
    by_slot: BTreeMap<Slot, Seat>,
    by_id: BTreeMap<u64, Seat>,
    by_network: Shares<Network>,
    sweep_after: Option<Slot>,
}

impl Sessions {
    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// Where the session of this number is.
    pub(super) fn find(&self, id: u64) -> Option<Seat> {
        self.by_id.get(&id).copied()
    }

    /// Where the session of this client is.
    pub(super) fn seat(&self, slot: &Slot) -> Option<Seat> {
        self.by_slot.get(slot).copied()
    }

    pub(super) fn get(&self, seat: Seat) -> Option<&Session> {
        self.seats.get(seat.0).map(|session| &**session)
    }

    pub(super) fn get_mut(&mut self, seat: Seat) -> Option<&mut Session> {
        self.seats.get_mut(seat.0).map(|session| &mut **session)
    }

    /// Whether somebody is registered, over either family.
    pub(super) fn has(&self, identity: &PeerKey) -> bool {
        [false, true].iter().any(|v6| {
            self.by_slot.contains_key(&Slot {
                identity: *identity,
                v6: *v6,
            })
        })
    }

    /// Whether this slot may have its session there: a new one, or one that was elsewhere.
    pub(super) fn has_room(&self, slot: &Slot, address: SocketAddr, limits: &Limits) -> bool {
        let network = Network::of(address.ip());
        let before = self.seat(slot).and_then(|seat| self.get(seat));
        match before.map(|session| Network::of(session.address.ip())) {
            Some(before) if before == network => return true,
            Some(_) => {}
            None if self.len() >= limits.sessions => return false,
            None => {}
        }
        self.by_network.of(&network) < limits.sessions_per_network
    }

    /// Adds a session: where it is. The client's earlier one, if it lives, goes over into it: true.
    pub(super) fn insert(&mut self, mut session: Session, now: Duration) -> (Seat, bool) {
        let slot = session.slot;
        let before = self.take(&slot).filter(|before| !before.is_over(now));
        let continued = before.is_some();
        session.previous = before.map(|before| Box::new((before.track, now + PREVIOUS_LIFETIME)));
        let (ids, network) = (session.ids(), Network::of(session.address.ip()));
        let seat = Seat(self.seats.insert(Box::new(session)));
        self.by_id.extend(ids.map(|id| (id, seat)));
        self.by_network.take(network);
        self.by_slot.insert(slot, seat);
        (seat, continued)
    }

    fn take(&mut self, slot: &Slot) -> Option<Session> {
        let session = *self.seats.try_remove(self.by_slot.remove(slot)?.0)?;
        session.ids().for_each(|id| _ = self.by_id.remove(&id));
        self.by_network
            .give_back(&Network::of(session.address.ip()));
        Some(session)
    }

    /// Moves a session to an address that its client has proven; false if it is there.
    pub(super) fn relocate(
        &mut self,
        seat: Seat,
        address: SocketAddr,
        via: Via,
        now: Duration,
    ) -> bool {
        let Some(session) = self.seats.get_mut(seat.0) else {
            return false;
        };
        session.heard = now;
        session.via = via;
        let before = std::mem::replace(&mut session.address, address);
        self.by_network.give_back(&Network::of(before.ip()));
        self.by_network.take(Network::of(address.ip()));
        before != address
    }

    /// Forgets all of which this is true.
    pub(super) fn remove_if(&mut self, is_over: impl Fn(&Session) -> bool) -> usize {
        let over = self.seats.iter().filter(|(_, session)| is_over(session));
        let over: Vec<Slot> = over.map(|(_, session)| session.slot).collect();
        for slot in &over {
            self.take(slot);
        }
        over.len()
    }

    /// Forgets the silent ones among the next few; how many they were.
    pub(super) fn sweep(&mut self, now: Duration) -> u64 {
        let from = self.sweep_after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut seen: Vec<(Slot, bool)> = Vec::new();
        for (slot, seat) in self
            .by_slot
            .range((from, Bound::Unbounded))
            .take(SWEEP_SIZE)
        {
            let Some(session) = self.seats.get_mut(seat.0) else {
                continue;
            };
            seen.push((*slot, session.is_over(now)));
            if let Some(previous) = session.previous.take_if(|previous| now >= previous.1) {
                self.by_id.remove(&previous.0.id);
            }
        }
        self.sweep_after = (seen.len() == SWEEP_SIZE)
            .then(|| seen.last().map(|(slot, _)| *slot))
            .flatten();
        let over: Vec<Slot> = seen
            .into_iter()
            .filter(|(_, over)| *over)
            .map(|(slot, _)| slot)
            .collect();
        for slot in &over {
            self.take(slot);
        }
        over.len() as u64
    }
}
