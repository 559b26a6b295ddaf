//! The places where one peer may be: merged by address, each with who said so and what probing it
//! has shown.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{CandidateKind, Origin};

use crate::Time;
use crate::burst::{Burst, HOLE_TTL};
use crate::path::Rank;
use crate::peer::{FROM_PEER, FROM_WIREGUARD};

/// A peer has at most this many candidates ...
const MAX_CANDIDATES: usize = 16;
/// ... of which one discovery instance alone can fill no more than this, lest a lying one starve
/// the others.
const MAX_PER_ORIGIN: usize = 8;
/// For how long a path is left alone on which probes pass and WireGuard does not, the first time,
/// the second, and from then on: a device that is restarted or a key that is being replaced is soon
/// over, a firewall is not.
const BLOCKED: [Duration; 3] = [
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
];
/// How long an answer proves a path.
const PROOF: Duration = Duration::from_secs(90);

/// One origin's word for a candidate.
#[derive(Debug, Clone, Copy)]
struct Claim {
    expires: Time,
    /// It came in a sealed record and goes when a newer record does not repeat it.
    recorded: bool,
}

/// One place where the peer may be.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) kind: CandidateKind,
    claims: BTreeMap<Origin, Claim>,
    /// The peer itself says, sealed, that the address is its own, whatever others say.
    owned: bool,
    pub(crate) learned: Time,

    /// When the next ping is due, and which one of the burst it is.
    pub(crate) next_ping: Option<Time>,
    pub(crate) burst: Burst,
    pub(crate) burst_started: Time,
    pub(crate) step: usize,
    pub(crate) last_ping: Option<Time>,
    /// Pinged now and then between rounds, so that our NAT lets the peer in when it comes back.
    pub(crate) keeps_hole: bool,
    /// Pings since the last pong.
    pub(crate) unanswered: u32,
    /// When the first of them left.
    pub(crate) unanswered_since: Option<Time>,

    /// Our ping was answered.
    answered: Option<Time>,
    /// The peer said that its ping was.
    peer_heard: Option<Time>,
    pub(crate) rtt: Option<Duration>,
    /// Samples in a row that were worth leaving the path in use for.
    pub(crate) wins: u8,
    /// Probes pass but WireGuard's handshake does not: left alone until then.
    blocked_until: Option<Time>,
    /// How often in a row that was so.
    blocks: usize,
}

impl Entry {
    /// Our ping was answered lately.
    pub(crate) fn is_answered(&self, now: Time) -> bool {
        self.answered.is_some_and(|at| now.since(at) <= PROOF)
    }

    /// Both sides saw an answer lately.
    pub(crate) fn is_proven(&self, now: Time) -> bool {
        self.is_answered(now) && self.peer_heard.is_some_and(|at| now.since(at) <= PROOF)
    }

    /// WireGuard's handshake does not pass here, or `nowhere`; until when the path is left alone.
    pub(crate) fn block(&mut self, nowhere: bool, now: Time) -> Time {
        if nowhere {
            self.blocks = 0;
        }
        let silence = BLOCKED
            .get(self.blocks)
            .or(BLOCKED.last())
            .copied()
            .unwrap_or_default();
        self.blocks = self.blocks.saturating_add(1);
        *self.blocked_until.insert(now + silence)
    }

    /// WireGuard's handshake passed, or everything may be different.
    pub(crate) fn unblock(&mut self) {
        (self.blocked_until, self.blocks) = (None, 0);
    }

    pub(crate) fn is_blocked(&self, now: Time) -> bool {
        self.blocked_until.is_some_and(|until| now < until)
    }

    /// How far the next ping goes; `None` is all the way.
    pub(crate) fn ttl(&self, now: Time) -> Option<u8> {
        match self.burst {
            _ if self.is_answered(now) => None,
            // Between rounds the hole is all that matters.
            Burst::Opening if self.keeps_hole => Some(HOLE_TTL),
            burst => burst.ttl(self.step),
        }
    }

    /// Its worth; `relays` are those that may be used, best first.
    pub(crate) fn rank(&self, address: SocketAddr, relays: Option<&[Origin]>) -> Rank {
        let place = |relays: &[Origin]| {
            relays
                .iter()
                .position(|origin| self.claims.contains_key(origin))
                .unwrap_or(relays.len())
        };
        let place = relays.filter(|_| self.is_relay()).map_or(0, place);
        Rank::new(
            self.kind,
            address,
            place,
            self.rtt.unwrap_or(Duration::from_secs(1)),
        )
    }

    pub(crate) fn on_pong(&mut self, rtt: Duration, now: Time) {
        self.answered = Some(now);
        (self.unanswered, self.unanswered_since) = (0, None);
        // RFC 6298's smoothing.
        self.rtt = Some(self.rtt.map_or(rtt, |smooth| (smooth * 7 + rtt) / 8));
    }

    pub(crate) fn on_heard(&mut self, heard: bool, now: Time) {
        if heard {
            self.peer_heard = Some(now);
        }
    }

    /// A ping leaves.
    pub(crate) fn on_ping(&mut self, now: Time) {
        self.last_ping = Some(now);
        self.unanswered = self.unanswered.saturating_add(1);
        self.unanswered_since.get_or_insert(now);
    }

    /// It passes through a relay.
    pub(crate) fn is_relay(&self) -> bool {
        self.kind == CandidateKind::Relay
    }

    /// An answer of this moment or later.
    pub(crate) fn is_answered_since(&self, since: Time) -> bool {
        self.answered.is_some_and(|at| at >= since)
    }

    /// Takes over how an offer says that the address was found. A relay's port stays one, wherever
    /// else it is seen, unless the peer itself claims the address. False for an offer that says
    /// nothing new of a relay.
    fn is_of_kind(&mut self, offer: &Offer<'_>) -> bool {
        self.owned |= offer.is_of_peer();
        match (self.is_relay(), offer.kind == CandidateKind::Relay) {
            (true, false) if !self.owned => return false,
            (true, false) => self.kind = offer.kind,
            (false, true) if !self.owned => self.kind = CandidateKind::Relay,
            _ => self.kind = self.kind.min(offer.kind),
        }
        true
    }

    /// What was proven may no longer hold.
    pub(crate) fn forget_proof(&mut self) {
        self.answered = None;
        self.peer_heard = None;
        self.wins = 0;
    }

    /// The peer has restarted and has heard nothing yet.
    pub(crate) fn forget_heard(&mut self) {
        self.peer_heard = None;
        self.unblock();
    }

    pub(crate) fn origins(&self) -> impl Iterator<Item = &Origin> {
        self.claims.keys()
    }
}

/// All candidates of one peer.
#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: BTreeMap<SocketAddr, Entry>,
    /// Relays that were forgotten, the newest last: what still comes from there comes through a
    /// relay.
    former_relays: VecDeque<SocketAddr>,
}

/// What a table is told.
pub(crate) struct Offer<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) kind: CandidateKind,
    pub(crate) origin: &'a Origin,
    pub(crate) expires: Time,
    pub(crate) recorded: bool,
}

impl Offer<'_> {
    /// Whether the peer itself says, sealed, that it has this address.
    fn is_of_peer(&self) -> bool {
        let told = self.origin.as_str() == FROM_PEER && self.kind == CandidateKind::Host;
        self.kind != CandidateKind::Relay && (self.recorded || told)
    }
}

impl Table {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn get(&self, address: &SocketAddr) -> Option<&Entry> {
        self.entries.get(address)
    }

    pub(crate) fn get_mut(&mut self, address: &SocketAddr) -> Option<&mut Entry> {
        self.entries.get_mut(address)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&SocketAddr, &Entry)> {
        self.entries.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&SocketAddr, &mut Entry)> {
        self.entries.iter_mut()
    }

    /// Merges an (admitted, canonical) address; true if it is new. `keep` is never evicted for it.
    pub(crate) fn learn(&mut self, offer: Offer<'_>, keep: Option<SocketAddr>, now: Time) -> bool {
        let claim = Claim {
            expires: offer.expires,
            recorded: offer.recorded,
        };
        if let Some(entry) = self.entries.get_mut(&offer.address) {
            if !entry.is_of_kind(&offer) {
                return false;
            }
            if entry.claims.len() < MAX_CANDIDATES || entry.claims.contains_key(offer.origin) {
                entry.claims.insert(offer.origin.clone(), claim);
            }
            return false;
        }
        let of_origin = |entry: &Entry| entry.claims.contains_key(offer.origin);
        let crowded = self
            .entries
            .values()
            .filter(|entry| of_origin(entry))
            .count()
            >= MAX_PER_ORIGIN;
        if crowded || self.entries.len() >= MAX_CANDIDATES {
            // Only what was tried and proved nothing makes room, the oldest first.
            let victim = self
                .entries
                .iter()
                .filter(|(address, entry)| {
                    Some(**address) != keep
                        && !entry.is_proven(now)
                        && entry.last_ping.is_some()
                        && entry.next_ping.is_none()
                        && (!crowded || entry.claims.keys().all(|origin| origin == offer.origin))
                })
                .min_by_key(|(_, entry)| entry.learned)
                .map(|(address, _)| *address);
            let Some(victim) = victim else { return false };
            let forgotten = self.entries.remove_entry(&victim).into_iter().collect();
            self.note_former(forgotten);
        }
        let through_relay = !offer.is_of_peer() && self.is_former_relay(&offer.address);
        let entry = Entry {
            kind: if through_relay {
                CandidateKind::Relay
            } else {
                offer.kind
            },
            owned: offer.is_of_peer(),
            claims: BTreeMap::from([(offer.origin.clone(), claim)]),
            learned: now,
            next_ping: None,
            burst: Burst::Direct,
            burst_started: now,
            step: 0,
            last_ping: None,
            keeps_hole: false,
            unanswered: 0,
            unanswered_since: None,
            answered: None,
            peer_heard: None,
            rtt: None,
            wins: 0,
            blocked_until: None,
            blocks: 0,
        };
        self.entries.insert(offer.address, entry);
        true
    }

    /// An origin takes its word for an address back. True if it was all that spoke for a relay.
    pub(crate) fn withdraw(&mut self, address: &SocketAddr, origin: &Origin) -> bool {
        let Some(entry) = self.entries.get_mut(address) else {
            return false;
        };
        let gone = entry.claims.remove(origin).is_some() && entry.is_relay();
        let gone = gone
            && !entry
                .claims
                .keys()
                .any(|origin| ![FROM_PEER, FROM_WIREGUARD].contains(&origin.as_str()));
        if gone {
            entry.forget_proof();
        }
        gone
    }

    /// Withdraws what earlier records said; the newest record is offered anew right after.
    pub(crate) fn withdraw_recorded(&mut self) {
        for entry in self.entries.values_mut() {
            entry.claims.retain(|_, claim| !claim.recorded);
        }
    }

    /// Forgets what may no longer be used; the rest is probed as if nothing had been learned of how
    /// WireGuard does there.
    pub(crate) fn restrict(
        &mut self,
        permits: impl Fn(SocketAddr, CandidateKind, &Origin) -> bool,
    ) {
        let barred = self.entries.extract_if(.., |address, entry| {
            entry.unblock();
            entry
                .claims
                .retain(|origin, _| permits(*address, entry.kind, origin));
            entry.claims.is_empty()
        });
        let barred = barred.collect();
        self.note_former(barred);
    }

    /// Forgets what nobody claims any more, except `keep` and what is proven.
    pub(crate) fn expire(&mut self, keep: Option<SocketAddr>, now: Time) {
        let over = self.entries.extract_if(.., |address, entry| {
            entry.claims.retain(|_, claim| now < claim.expires);
            entry.claims.is_empty() && Some(*address) != keep && !entry.is_proven(now)
        });
        let over = over.collect();
        self.note_former(over);
    }

    /// It was a relay's, which was forgotten.
    pub(crate) fn is_former_relay(&self, address: &SocketAddr) -> bool {
        self.former_relays.contains(address)
    }

    /// Remembers the relays among those that were forgotten.
    fn note_former(&mut self, forgotten: Vec<(SocketAddr, Entry)>) {
        for (relay, _) in forgotten.into_iter().filter(|(_, entry)| entry.is_relay()) {
            self.former_relays.retain(|known| *known != relay);
            if self.former_relays.len() >= MAX_CANDIDATES {
                self.former_relays.pop_front();
            }
            self.former_relays.push_back(relay);
        }
    }

    /// When the next claim expires.
    pub(crate) fn next_expiry(&self) -> Option<Time> {
        self.entries
            .values()
            .flat_map(|entry| entry.claims.values())
            .map(|claim| claim.expires)
            .min()
    }
}

/// Pings that await their pong, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Pending(VecDeque<PendingPing>);

#[derive(Debug, Clone, Copy)]
pub(crate) struct PendingPing {
    pub(crate) transaction: crate::probe::Transaction,
    pub(crate) destination: SocketAddr,
    pub(crate) sent: Time,
}

impl Pending {
    const MAX: usize = 128;
    /// An answer later than this proves nothing of the present.
    const LIFETIME: Duration = Duration::from_secs(10);

    pub(crate) fn push(&mut self, ping: PendingPing) {
        if self.0.len() >= Self::MAX {
            self.0.pop_front();
        }
        self.0.push_back(ping);
    }

    /// The ping that a pong answers.
    pub(crate) fn take(
        &mut self,
        transaction: &crate::probe::Transaction,
        now: Time,
    ) -> Option<PendingPing> {
        while self
            .0
            .front()
            .is_some_and(|ping| now.since(ping.sent) > Self::LIFETIME)
        {
            self.0.pop_front();
        }
        let index = self
            .0
            .iter()
            .position(|ping| ping.transaction == *transaction)?;
        self.0.remove(index)
    }
}
