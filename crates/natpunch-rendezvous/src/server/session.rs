//! Sessions: one for each identity and address family, found by the number that the server gave.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::time::Duration;

use natpunch_types::PeerKey;

use super::door::{SecretNumber, Ticket};
use super::seals::{Content, Unsealed};
use super::{Limits, SESSION_IDLE, Via};
use crate::crypto::Key;
use crate::frame::{Notice, pack};
use crate::window::Window;
use crate::wire::{Kind, MAC_LEN, SESSION_HEADER_LEN};

/// Sessions looked through in one sweep.
const SWEEP_SIZE: usize = 4_096;

/// Whose session, and of which family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    pub(super) identity: PeerKey,
    pub(super) v6: bool,
}

/// A registered client.
pub(super) struct Session {
    id: u64,
    /// The number of the ticket that it began with; only a later one replaces it.
    pub(super) ticket: u64,
    pub(super) secret: SecretNumber,
    pub(super) from_client: Key,
    from_server: Key,
    /// Where it proved to be, and over which way of ours.
    pub(super) address: SocketAddr,
    pub(super) via: Via,
    next_counter: u64,
    pub(super) window: Window,
    pub(super) heard: Duration,
    /// Messages in the current second.
    meter: (u64, u32),
}

impl Session {
    pub(super) fn new(ticket: Ticket, via: Via, address: SocketAddr, now: Duration) -> Self {
        let mut window = Window::default();
        window.mark(0); // the confirm
        Self {
            id: ticket.session,
            ticket: ticket.number,
            secret: ticket.secret,
            from_client: ticket.from_client,
            from_server: ticket.from_server,
            address,
            via,
            next_counter: 1, // 0 sealed the ticket
            window,
            heard: now,
            meter: (0, 0),
        }
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
    pub(super) fn say(&mut self, notices: &[Notice]) -> Vec<Unsealed> {
        let (via, destination) = (self.via, self.address);
        self.say_to(via, destination, notices)
    }

    /// The datagrams that say this, to another address.
    pub(super) fn say_to(&mut self, via: Via, destination: SocketAddr, notices: &[Notice]) -> Vec<Unsealed> {
        let texts = pack(notices, SESSION_HEADER_LEN + MAC_LEN, 0).into_iter();
        texts
            .map(|text| {
                let counter = self.next_counter;
                self.next_counter += 1;
                let header = Kind::Notice.session_header(self.id, counter);
                let key = self.from_server.clone();
                Unsealed { via, destination, content: Content::Message { key, counter, header, text } }
            })
            .collect()
    }
}

/// An IPv4 address, or the first 64 bits of an IPv6 one.
pub(super) fn network(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits() >> 64 << 64 | 1 << 63,
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Sessions {
    by_slot: BTreeMap<Slot, Box<Session>>,
    by_id: BTreeMap<u64, Slot>,
    by_network: BTreeMap<u128, usize>,
    sweep_after: Option<Slot>,
}

impl Sessions {
    pub(super) fn len(&self) -> usize {
        self.by_slot.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_slot.is_empty()
    }

    pub(super) fn get(&self, slot: &Slot) -> Option<&Session> {
        self.by_slot.get(slot).map(|session| &**session)
    }

    pub(super) fn get_mut(&mut self, slot: &Slot) -> Option<&mut Session> {
        self.by_slot.get_mut(slot).map(|session| &mut **session)
    }

    pub(super) fn slot_of(&self, id: u64) -> Option<Slot> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn has_room(&self, ip: IpAddr, limits: &Limits) -> bool {
        self.by_slot.len() < limits.sessions
            && self.by_network.get(&network(ip)).is_none_or(|count| *count < limits.sessions_per_network)
    }

    /// Adds a session, in place of the slot's earlier one.
    pub(super) fn insert(&mut self, slot: Slot, session: Session) {
        self.remove(&slot);
        self.by_id.insert(session.id, slot);
        *self.by_network.entry(network(session.address.ip())).or_default() += 1;
        self.by_slot.insert(slot, Box::new(session));
    }

    fn remove(&mut self, slot: &Slot) {
        let Some(session) = self.by_slot.remove(slot) else { return };
        self.by_id.remove(&session.id);
        self.leave(session.address.ip());
    }

    fn leave(&mut self, ip: IpAddr) {
        if let Some(count) = self.by_network.get_mut(&network(ip)) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_network.remove(&network(ip));
            }
        }
    }

    /// Moves a session to an address that its client has proven; false if it is there.
    pub(super) fn relocate(&mut self, slot: &Slot, address: SocketAddr, via: Via, now: Duration) -> bool {
        let Some(session) = self.by_slot.get_mut(slot) else { return false };
        session.heard = now;
        session.via = via;
        let before = std::mem::replace(&mut session.address, address);
        self.leave(before.ip());
        *self.by_network.entry(network(address.ip())).or_default() += 1;
        before != address
    }

    /// Forgets all of which this is true.
    pub(super) fn remove_if(&mut self, is_over: impl Fn(&Slot, &Session) -> bool) -> Vec<Slot> {
        let over: Vec<Slot> =
            self.by_slot.iter().filter(|(slot, session)| is_over(slot, session)).map(|(slot, _)| *slot).collect();
        over.iter().for_each(|slot| self.remove(slot));
        over
    }

    /// Forgets the silent ones among the next few; how many they were.
    pub(super) fn sweep(&mut self, now: Duration) -> u64 {
        let from = self.sweep_after.map_or(Bound::Unbounded, Bound::Excluded);
        let seen: Vec<(Slot, bool)> = self
            .by_slot
            .range((from, Bound::Unbounded))
            .take(SWEEP_SIZE)
            .map(|(slot, session)| (*slot, session.is_over(now)))
            .collect();
        self.sweep_after = (seen.len() == SWEEP_SIZE).then(|| seen.last().map(|(slot, _)| *slot)).flatten();
        let over: Vec<Slot> = seen.into_iter().filter(|(_, over)| *over).map(|(slot, _)| slot).collect();
        over.iter().for_each(|slot| self.remove(slot));
        over.len() as u64
    }
}
