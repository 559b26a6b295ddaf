//! The paths on which one peer may answer, each with who offered it and what probing has shown.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU8;
use std::num::NonZeroU16;
use std::time::Duration;

use natpunch_types::{Abilities, CandidateKind, InstanceName, Origin, PathId, Route, is_mesh_lan};

use crate::Time;
use crate::burst::Burst;
use crate::messages::probe::Transaction;
use crate::nat::hops::opener_ttl;
use crate::path::{Rank, Tier};

/// Places of one class (kind and address family) of a peer's candidates: however many a peer has of
/// one class, the others keep theirs ...
const MAX_PER_CLASS: usize = 10;
/// ... of which one discovery instance alone can fill no more than this with what the peer has not
/// said itself, lest a lying one starve the others.
const MAX_UNSURE_PER_ORIGIN: usize = 8;
/// All candidates of one peer.
const MAX_CANDIDATES: usize = 64;
/// Origins that are remembered for one candidate, relays that were forgotten, candidates that found
/// no place.
const MAX_CLAIMS: usize = 16;
const MAX_FORMER_RELAYS: usize = 16;
const MAX_LEFT_OUT: usize = 64;
/// For how long a path is left alone on which probes pass and WireGuard does not, the first time,
/// the second, and from then on: a device that is restarted or a key that is being replaced is soon
/// over, a firewall is not.
const BLOCKED: [Duration; 3] = [
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
];
/// For how long the word of an instance is believed that was replaced: until then its successor
/// says it again.
pub(crate) const SUCCESSION: Duration = Duration::from_secs(10);
/// The same on the peer's word, unless it says so again.
const DEAF_THERE: Duration = Duration::from_secs(30);
/// How long an answer proves a path ...
const PROOF: Duration = Duration::from_secs(90);
/// ... and one through a relay, which an idle pair asks seldom, or the one in use while it rests.
const PROOF_AT_REST: Duration = Duration::from_secs(240);

/// A ping is lost if it was not answered by then ...
const ANSWERED_BY: Duration = Duration::from_secs(1);
/// ... and so many are enough to tell how many are.
const ENOUGH_PINGS: u32 = 5;

/// One origin's word for a candidate.
#[derive(Debug, Clone, Copy)]
struct Claim {
    expires: Time,
    /// It came in a sealed record and goes when a newer record does not repeat it.
    recorded: bool,
    /// Said by the predecessor of the instance, and not again by itself.
    inherited: bool,
}

/// One path on which the peer may answer.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) kind: CandidateKind,
    claims: BTreeMap<Origin, Claim>,
    /// The peer itself says, sealed, that the address is its own, whatever others say.
    owned: bool,
    /// This node's own mesh file says, or the peer's does, that the peer is there.
    stated: bool,
    pub(crate) learned: Time,
    /// Which way the kernel sends to it, as far as it was asked.
    pub(crate) route: Option<Route>,
    /// It was asked since the network changed last.
    pub(crate) route_asked: bool,

    /// When the next ping is due, and which one of the burst it is.
    pub(crate) next_ping: Option<Time>,
    pub(crate) burst: Burst,
    pub(crate) burst_started: Time,
    pub(crate) step: usize,
    /// The next ping waits for its turn in the node's budget.
    pub(crate) has_turn: bool,
    pub(crate) last_ping: Option<Time>,
    /// Pings that left, and pongs that came.
    pub(crate) counts: (u32, u32),
    /// Which of the last pings were answered, the last one in the lowest bit.
    answers: u32,
    /// Pinged now and then between rounds, so that our NAT lets the peer in when it comes back.
    pub(crate) keeps_hole: bool,
    /// Pings since the last pong.
    pub(crate) unanswered: u32,
    /// When the first of them left.
    pub(crate) unanswered_since: Option<Time>,

    /// Our ping was answered.
    answered: Option<Time>,
    /// The peer's ping was answered, which said that our answers reach it.
    exchanged: Option<Time>,
    /// When it was last, and the round trip of that, whatever has happened since.
    pub(crate) last_pong: Option<(Time, Duration)>,
    /// The peer said that its ping was.
    peer_heard: Option<Time>,
    pub(crate) rtt: Option<Duration>,
    /// Samples in a row that were worth leaving the path in use for.
    pub(crate) wins: u8,
    /// Probes pass but WireGuard's handshake does not: left alone until then.
    blocked_until: Option<Time>,
    /// The same on the peer's side, as it says.
    deaf_there_until: Option<Time>,
    /// How often in a row that was so.
    blocks: usize,
    /// The path is blocked because the peer's WireGuard hears nothing of ours. What comes in by it
    /// shows nothing of that direction.
    unheard: bool,
}

impl Entry {
    /// Our ping was answered lately, or has been before and the peer's was lately.
    pub(crate) fn is_answered(&self, now: Time) -> bool {
        let proof = if self.is_relay() {
            PROOF_AT_REST
        } else {
            PROOF
        };
        self.exchanged_at().is_some_and(|at| now.since(at) <= proof)
    }

    /// The same of the path in use, which is asked seldom while it rests.
    pub(crate) fn is_answered_at_rest(&self, now: Time) -> bool {
        let exchanged = self.exchanged_at();
        exchanged.is_some_and(|at| now.since(at) <= PROOF_AT_REST)
    }

    /// When something last passed both ways, as far as is known, if our own pings pass at all.
    pub(crate) fn exchanged_at(&self) -> Option<Time> {
        Some(self.answered?.max(self.exchanged.unwrap_or_default()))
    }

    /// The peer asks, and says that our answers reach it.
    pub(crate) fn on_exchange(&mut self, now: Time) {
        self.exchanged = Some(now);
    }

    /// Both sides saw an answer lately.
    pub(crate) fn is_proven(&self, now: Time) -> bool {
        // It says so with each of its own messages, which are seldom at rest.
        let heard = |at: Time| now.since(at) <= PROOF_AT_REST;
        self.is_answered(now) && self.peer_heard.is_some_and(heard)
    }

    /// Proven, and WireGuard may pass there.
    pub(crate) fn is_usable(&self, now: Time) -> bool {
        self.is_proven(now) && !self.is_blocked(now) && !self.is_barred()
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
        self.unheard = false;
        *self.blocked_until.insert(now + silence)
    }

    /// WireGuard's handshake passed, or everything may be different.
    pub(crate) fn unblock(&mut self) {
        (self.blocked_until, self.deaf_there_until, self.blocks) = (None, None, 0);
        self.unheard = false;
    }

    /// The path was blocked just now because the peer's WireGuard hears nothing of ours.
    pub(crate) fn on_unheard(&mut self) {
        self.unheard = true;
    }

    /// It is blocked for that.
    pub(crate) fn is_unheard(&self, now: Time) -> bool {
        self.unheard && self.is_deaf_here(now)
    }

    /// Our WireGuard was tried here, or used, and heard nothing.
    pub(crate) fn is_deaf_here(&self, now: Time) -> bool {
        self.blocked_until.is_some_and(|until| now < until)
    }

    /// The same on either side.
    pub(crate) fn is_blocked(&self, now: Time) -> bool {
        let there = self.deaf_there_until.is_some_and(|until| now < until);
        there || self.is_deaf_here(now)
    }

    /// How far the next ping goes; `None` is all the way. `hops`: to the first public router, if that
    /// is known.
    pub(crate) fn ttl(&self, hops: Option<NonZeroU8>, now: Time) -> Option<u8> {
        match self.burst {
            _ if self.is_answered_at_rest(now) => None,
            // Between rounds the hole is all that matters.
            Burst::Opening if self.keeps_hole => Some(opener_ttl(hops)),
            burst => burst.ttl(self.step, hops),
        }
    }

    /// This node's own mesh file says, or the peer's does, that the peer is there.
    pub(crate) fn says_the_mesh_file(&self) -> bool {
        self.stated
    }

    /// Never probed and never used: this host has no route there, or the route leads into another
    /// network's tunnel, and the mesh file does not name the address.
    pub(crate) fn is_barred(&self) -> bool {
        match self.route {
            Some(Route::Unusable) => true,
            Some(Route::Tunneled) => !self.stated && self.kind != CandidateKind::PeerReflexive,
            Some(Route::OnLink | Route::Routed) | None => false,
        }
    }

    /// A private address that this host has a default route to at best, as far as is known: it
    /// means something elsewhere.
    pub(crate) fn is_hopeless(&self, path: PathId, same_site: bool) -> bool {
        let told = self.kind == CandidateKind::Host && !self.stated;
        told && self.route == Some(Route::Routed) && !same_site && is_mesh_lan(path.remote.ip())
    }

    /// The least is to be probed first.
    fn order(&self, path: PathId, same_site: bool) -> (bool, CandidateKind, Time) {
        let hopeless = self.is_hopeless(path, same_site);
        (hopeless, self.kind, self.learned)
    }

    pub(crate) fn tier(&self, path: PathId, same_site: bool) -> Tier {
        Tier::new(self.kind, path.remote, self.route, same_site)
    }

    /// Its worth; `relays` are those that may be used, best first.
    pub(crate) fn rank(
        &self,
        path: PathId,
        same_site: bool,
        relays: Option<&[InstanceName]>,
    ) -> Rank {
        let offers = |instance: &InstanceName| {
            self.claims
                .keys()
                .any(|origin| origin.instance() == Some(instance))
        };
        let place =
            |relays: &[InstanceName]| relays.iter().position(offers).unwrap_or(relays.len());
        let place = relays.filter(|_| self.is_relay()).map_or(0, place);
        Rank::new(
            self.tier(path, same_site),
            path.remote,
            place,
            self.rtt.unwrap_or(Duration::from_secs(1)),
        )
    }

    pub(crate) fn on_pong(&mut self, rtt: Duration, now: Time) {
        self.answered = Some(now);
        self.last_pong = Some((now, rtt));
        self.counts.1 = self.counts.1.saturating_add(1);
        (self.unanswered, self.unanswered_since) = (0, None);
        // RFC 6298's smoothing.
        self.rtt = Some(self.rtt.map_or(rtt, |smooth| (smooth * 7 + rtt) / 8));
    }

    /// A sample was compared with the path in use.
    pub(crate) fn on_compared(&mut self, is_worth_a_change: bool) {
        self.wins = if is_worth_a_change {
            self.wins.saturating_add(1)
        } else {
            0
        };
    }

    pub(crate) fn on_heard(&mut self, heard: bool, now: Time) {
        if heard {
            self.peer_heard = Some(now);
        }
    }

    /// Takes what the peer says of its WireGuard here.
    pub(crate) fn on_deaf(&mut self, deaf: bool, now: Time) {
        self.deaf_there_until = deaf.then(|| now + DEAF_THERE);
    }

    /// A ping leaves.
    pub(crate) fn on_ping(&mut self, now: Time) {
        self.has_turn = false;
        self.last_ping = Some(now);
        self.counts.0 = self.counts.0.saturating_add(1);
        self.answers <<= 1;
        self.unanswered = self.unanswered.saturating_add(1);
        self.unanswered_since.get_or_insert(now);
    }

    /// The ping was answered after which so many others have left.
    pub(crate) fn note_answered(&mut self, later: u32) {
        self.answers |= 1_u32.checked_shl(later).unwrap_or(0);
    }

    /// How many of the last 32 pings were not answered, in percent, if that is not too few to tell. Those
    /// before the first answer do not count.
    pub(crate) fn loss_percent(&self, now: Time) -> Option<u8> {
        // The last ones may still be answered.
        let is_open = |since: Time| now.since(since) < ANSWERED_BY;
        let open = match self.unanswered_since.is_some_and(is_open) {
            true => self.unanswered,
            false => 0,
        };
        // What was sent before the first answer opened the NATs, and could not arrive.
        let sent = match self.counts.0 <= u32::BITS {
            true => u32::BITS - self.answers.leading_zeros(),
            false => u32::BITS,
        };
        let judged = sent.checked_sub(open)?;
        let lost = judged.saturating_sub(self.answers.checked_shr(open)?.count_ones());
        let percent = u8::try_from(lost * 100 / judged.max(1)).ok();
        percent.filter(|_| judged >= ENOUGH_PINGS)
    }

    /// The ping that is due now leaves later, and so do those of its burst that come after it.
    pub(crate) fn hold_back(&mut self, until: Time, now: Time) {
        self.next_ping = Some(until);
        self.has_turn = true;
        if self.burst.offset(self.step).is_some() {
            self.burst_started += until.since(now);
        }
    }

    /// When the last answer to its burst may be there.
    pub(crate) fn burst_ends(&self) -> Time {
        self.burst_started + self.burst.duration()
    }

    /// It passes through a relay.
    pub(crate) fn is_relay(&self) -> bool {
        self.kind == CandidateKind::Relay
    }

    /// The last answer.
    pub(crate) fn answered_at(&self) -> Option<Time> {
        self.answered
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
        self.stated |= offer.is_stated();
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
        (self.answered, self.exchanged) = (None, None);
        self.peer_heard = None;
        self.wins = 0;
    }

    /// The peer has restarted and has heard nothing yet.
    pub(crate) fn forget_heard(&mut self) {
        self.peer_heard = None;
        self.unblock();
    }

    /// Whether the peer itself has named it, or sent from it, in an authenticated message.
    pub(crate) fn is_sure(&self) -> bool {
        let mut claims = self.claims.iter();
        claims.any(|(origin, claim)| claim.recorded || *origin == Origin::Peer)
    }

    /// Whether a sealed record of the peer names it.
    pub(crate) fn is_recorded(&self) -> bool {
        self.claims.values().any(|claim| claim.recorded)
    }

    /// Some discovery instance speaks for it.
    fn is_offered_by_discovery(&self) -> bool {
        self.claims.keys().any(|origin| origin.instance().is_some())
    }

    pub(crate) fn origins(&self) -> impl Iterator<Item = &Origin> {
        self.claims.keys()
    }
}

/// All candidates of one peer.
#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: BTreeMap<PathId, Entry>,
    /// Relays that were forgotten, the newest last: what still comes from there comes through a
    /// relay.
    former_relays: VecDeque<FormerRelay>,
    /// Candidates that found no place.
    left_out: BTreeSet<PathId>,
    /// Both nodes are behind one NAT.
    pub(crate) same_site: bool,
}

/// A relay that was forgotten.
#[derive(Debug)]
struct FormerRelay {
    path: PathId,
    /// The instance that offered it ended, or may no longer relay. The path is not used, even if
    /// the peer names it, until an instance offers it again.
    barred: bool,
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learned {
    New,
    Known,
    /// All places of its class are taken by what is worth more.
    LeftOut,
}

/// Kind, and whether it is IPv4.
type Class = (CandidateKind, bool);

/// What a table is told.
pub(crate) struct Offer<'a> {
    pub(crate) path: PathId,
    pub(crate) kind: CandidateKind,
    pub(crate) origin: &'a Origin,
    pub(crate) expires: Time,
    pub(crate) recorded: bool,
}

impl Offer<'_> {
    /// Whether the peer itself says, sealed, that it has this address.
    fn is_of_peer(&self) -> bool {
        let told = *self.origin == Origin::Peer && self.kind == CandidateKind::Host;
        self.kind != CandidateKind::Relay && (self.recorded || told)
    }

    /// Whether it may be a port of this host's forwarder. Only this host knows where such a port
    /// leads, so another host's word does not count.
    pub(crate) fn may_be_forwarder(&self) -> bool {
        match self.origin {
            Origin::Discovery(_) => self.kind == CandidateKind::Relay && !self.recorded,
            Origin::Peer => self.kind == CandidateKind::PeerReflexive,
            Origin::WireGuard => true,
            Origin::Remembered => false,
        }
    }

    /// Whether this node's mesh file says so, or the router was asked for a mapping.
    pub(crate) fn is_stated(&self) -> bool {
        let says_so_now = !self.recorded && *self.origin != Origin::Remembered;
        self.kind == CandidateKind::Mapped && says_so_now
    }

    /// Whether it was authenticated: the peer said so, or a packet of the peer came from there.
    pub(crate) fn is_sure(&self) -> bool {
        self.recorded || *self.origin == Origin::Peer
    }

    fn class(&self) -> Class {
        (self.kind, self.path.remote.is_ipv4())
    }
}

impl Table {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn get(&self, path: &PathId) -> Option<&Entry> {
        self.entries.get(path)
    }

    pub(crate) fn get_mut(&mut self, path: &PathId) -> Option<&mut Entry> {
        self.entries.get_mut(path)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&PathId, &Entry)> {
        self.entries.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&PathId, &mut Entry)> {
        self.entries.iter_mut()
    }

    /// Merges an admitted path. `keep` is never evicted for it.
    pub(crate) fn learn(&mut self, offer: &Offer<'_>, keep: Option<PathId>, now: Time) -> Learned {
        let claim = Claim {
            expires: offer.expires,
            recorded: offer.recorded,
            inherited: false,
        };
        if let Some(entry) = self.entries.get_mut(&offer.path) {
            if !entry.is_of_kind(offer) {
                return Learned::Known;
            }
            if entry.claims.len() < MAX_CLAIMS || entry.claims.contains_key(offer.origin) {
                entry.claims.insert(offer.origin.clone(), claim);
            }
            return Learned::Known;
        }
        if !self.make_room(offer, keep, now) {
            if self.left_out.len() < MAX_LEFT_OUT {
                self.left_out.insert(offer.path);
            }
            return Learned::LeftOut;
        }
        self.left_out.remove(&offer.path);
        if offer.kind == CandidateKind::Relay && offer.origin.instance().is_some() {
            self.former_relays
                .retain(|former| !(former.barred && former.path == offer.path));
        }
        let through_relay = !offer.is_of_peer() && self.is_former_relay(&offer.path);
        let entry = Entry {
            kind: if through_relay {
                CandidateKind::Relay
            } else {
                offer.kind
            },
            owned: offer.is_of_peer(),
            stated: offer.is_stated(),
            claims: BTreeMap::from([(offer.origin.clone(), claim)]),
            learned: now,
            route: None,
            route_asked: false,
            next_ping: None,
            burst: Burst::Direct,
            burst_started: now,
            step: 0,
            has_turn: false,
            last_ping: None,
            counts: (0, 0),
            answers: 0,
            keeps_hole: false,
            unanswered: 0,
            unanswered_since: None,
            answered: None,
            exchanged: None,
            last_pong: None,
            peer_heard: None,
            rtt: None,
            wins: 0,
            blocked_until: None,
            deaf_there_until: None,
            blocks: 0,
            unheard: false,
        };
        self.entries.insert(offer.path, entry);
        Learned::New
    }

    /// Forgets the paths from source ports that are closed.
    pub(crate) fn forget_ports(&mut self, is_open: impl Fn(NonZeroU16) -> bool) {
        self.entries
            .retain(|path, _| path.pin().is_none_or(&is_open));
    }

    /// Whether there is a place in the offer's class, or one was made.
    fn make_room(&mut self, offer: &Offer<'_>, keep: Option<PathId>, now: Time) -> bool {
        let of_class =
            |path: &PathId, entry: &Entry| (entry.kind, path.remote.is_ipv4()) == offer.class();
        let class = || {
            self.entries
                .iter()
                .filter(|(path, entry)| of_class(path, entry))
        };
        let by_it_alone = |entry: &Entry| entry.claims.keys().all(|by| by == offer.origin);
        let of_origin = class().filter(|(_, entry)| !entry.is_sure() && by_it_alone(entry));
        let greedy = !offer.is_sure() && of_origin.count() >= MAX_UNSURE_PER_ORIGIN;
        let has_place = class().count() < MAX_PER_CLASS && self.entries.len() < MAX_CANDIDATES;
        if !greedy && has_place {
            return true;
        }
        // The peer's own word takes the place of what others only say, and anything that of what
        // was tried and proved nothing; the oldest first.
        let gives_way = |entry: &Entry| {
            let tried = entry.last_ping.is_some() && entry.next_ping.is_none();
            tried || entry.is_barred() || offer.is_sure() && !entry.is_sure()
        };
        let victim = class()
            .filter(|(path, _)| Some(**path) != keep)
            .filter(|(_, entry)| !entry.is_proven(now) && gives_way(entry))
            .filter(|(_, entry)| !greedy || by_it_alone(entry))
            .min_by_key(|(_, entry)| entry.learned)
            .map(|(path, _)| *path);
        let Some(victim) = victim else { return false };
        let forgotten = self.entries.remove_entry(&victim).into_iter().collect();
        self.note_former(forgotten, false);
        true
    }

    /// Whether both nodes are behind one NAT: this node is seen at an address of the peer's.
    pub(crate) fn note_site(&mut self, sees_us: impl Fn(&PathId) -> bool) {
        let shared = |(path, entry): (&PathId, &Entry)| !entry.is_relay() && sees_us(path);
        self.same_site = self.entries.iter().any(shared);
    }

    /// Candidates that found no place.
    pub(crate) fn left_out(&self) -> usize {
        self.left_out.len()
    }

    /// The network is another: the kernel is asked anew, and what found no place may find one.
    pub(crate) fn forget_routes(&mut self) {
        self.left_out.clear();
        for entry in self.entries.values_mut() {
            entry.route_asked = false;
        }
    }

    /// How many others are to be probed before this one.
    pub(crate) fn place(&self, path: PathId) -> usize {
        let order = |path: &PathId, entry: &Entry| entry.order(*path, self.same_site);
        let Some(own) = self.get(&path).map(|entry| order(&path, entry)) else {
            return 0;
        };
        let before = |(other, entry): &(&PathId, &Entry)| {
            !entry.is_barred() && (order(other, entry), **other) < (own, path)
        };
        self.iter().filter(before).count()
    }

    /// An origin takes its word for a path back. True if it was all that spoke for a relay.
    pub(crate) fn withdraw(&mut self, path: &PathId, origin: &Origin) -> bool {
        let Some(entry) = self.entries.get_mut(path) else {
            return false;
        };
        let gone = entry.claims.remove(origin).is_some()
            && entry.is_relay()
            && !entry.is_offered_by_discovery();
        if gone {
            entry.forget_proof();
        }
        gone
    }

    /// Withdraws what earlier records said; the newest record is offered anew right after.
    pub(crate) fn withdraw_recorded(&mut self) {
        self.left_out.clear();
        for entry in self.entries.values_mut() {
            entry.claims.retain(|_, claim| !claim.recorded);
        }
    }

    /// Forgets what may no longer be used; the rest is probed as if nothing had been learned of how
    /// WireGuard does there.
    pub(crate) fn restrict(&mut self, permits: impl Fn(PathId, CandidateKind, &Origin) -> bool) {
        let barred = self.entries.extract_if(.., |path, entry| {
            entry.unblock();
            entry
                .claims
                .retain(|origin, _| permits(*path, entry.kind, origin));
            entry.claims.is_empty()
        });
        let barred = barred.collect();
        self.note_former(barred, false);
    }

    /// The instance was replaced by one with these abilities, or by none. What it said that the
    /// successor can't say is withdrawn, the rest is to be said again within [`SUCCESSION`].
    pub(crate) fn succeed(&mut self, origin: &Origin, successor: Option<Abilities>, now: Time) {
        let barred = self.entries.extract_if(.., |_, entry| {
            let is_relay = entry.is_relay();
            let may_say = |claim: &Claim| {
                successor.is_some_and(|abilities| match (claim.recorded, is_relay) {
                    (true, _) => abilities.records,
                    (false, true) => abilities.relays,
                    (false, false) => true,
                })
            };
            let Some(claim) = entry.claims.get_mut(origin) else {
                return false;
            };
            if may_say(claim) {
                claim.inherited = true;
                claim.expires = claim.expires.min(now + SUCCESSION);
                return false;
            }
            entry.claims.remove(origin);
            is_relay && !entry.is_offered_by_discovery()
        });
        let barred = barred.collect();
        self.note_former(barred, true);
    }

    /// Forgets paths that no origin claims any more, except `keep` and proven ones.
    pub(crate) fn expire(&mut self, keep: Option<PathId>, now: Time) {
        // A relay that the successor of its instance did not offer again in time.
        let barred = self.entries.extract_if(.., |_, entry| {
            let is_over = |claim: &Claim| claim.inherited && claim.expires <= now;
            let ends = entry.is_relay() && entry.claims.values().any(is_over);
            entry.claims.retain(|_, claim| now < claim.expires);
            ends && !entry.is_offered_by_discovery()
        });
        let barred = barred.collect();
        self.note_former(barred, true);
        let over = self.entries.extract_if(.., |path, entry| {
            entry.claims.is_empty() && Some(*path) != keep && !entry.is_proven(now)
        });
        let over = over.collect();
        self.note_former(over, false);
    }

    /// It was a relay's, which was forgotten.
    pub(crate) fn is_former_relay(&self, path: &PathId) -> bool {
        let mut former = self.former_relays.iter();
        former.any(|former| former.path == *path)
    }

    /// It was a relay's that may no longer be used.
    pub(crate) fn is_barred_relay(&self, path: &PathId) -> bool {
        let mut former = self.former_relays.iter();
        former.any(|former| former.barred && former.path == *path)
    }

    /// Remembers the relays among those that were forgotten.
    fn note_former(&mut self, forgotten: Vec<(PathId, Entry)>, barred: bool) {
        for (path, _) in forgotten.into_iter().filter(|(_, entry)| entry.is_relay()) {
            self.former_relays.retain(|known| known.path != path);
            if self.former_relays.len() >= MAX_FORMER_RELAYS {
                self.former_relays.pop_front();
            }
            self.former_relays.push_back(FormerRelay { path, barred });
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

/// A ping that left on a path. Only a pong that comes back on the same one proves it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PendingPing {
    pub(crate) transaction: Transaction,
    pub(crate) path: PathId,
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

    /// Pings on the same path that left later, and await their pong.
    pub(crate) fn after(&self, ping: &PendingPing) -> u32 {
        let is_later = |other: &&PendingPing| other.path == ping.path && other.sent > ping.sent;
        self.0.iter().filter(is_later).count() as u32
    }

    /// The ping that a pong answers.
    pub(crate) fn take(&mut self, transaction: &Transaction, now: Time) -> Option<PendingPing> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::ZERO;

    fn instance(name: &str) -> Origin {
        Origin::Discovery(InstanceName::new(name))
    }

    fn learn(table: &mut Table, address: &str, kind: CandidateKind, by: &Origin) -> Learned {
        let offer = Offer {
            path: PathId::wireguard(address.parse().unwrap()),
            kind,
            origin: by,
            expires: NOW + Duration::from_secs(60),
            recorded: false,
        };
        table.learn(&offer, None, NOW)
    }

    #[test]
    fn candidates_of_one_class_take_no_place_of_another() {
        let mut table = Table::default();
        for n in 0..200 {
            learn(
                &mut table,
                &format!("10.0.{n}.1:1"),
                CandidateKind::Host,
                &Origin::Peer,
            );
            learn(
                &mut table,
                &format!("[fd00::{n:x}]:1"),
                CandidateKind::Host,
                &Origin::Peer,
            );
            learn(
                &mut table,
                &format!("198.51.100.{n}:1"),
                CandidateKind::Reflexive,
                &instance("liar"),
            );
        }
        assert!(table.left_out() > 0);
        for (address, kind) in [
            ("203.0.113.1:1", CandidateKind::Mapped),
            ("203.0.113.1:2", CandidateKind::PeerReflexive),
            ("203.0.113.1:3", CandidateKind::Reflexive),
            ("203.0.113.1:4", CandidateKind::Relay),
            ("[2001:db8::1]:3", CandidateKind::Reflexive),
            ("[2001:db8::1]:4", CandidateKind::Relay),
        ] {
            assert_eq!(
                learn(&mut table, address, kind, &instance("honest")),
                Learned::New,
                "{address}"
            );
        }
        assert!(table.iter().count() <= MAX_CANDIDATES);
    }

    #[test]
    fn the_peers_own_word_takes_the_place_of_what_others_say() {
        let mut table = Table::default();
        for origin in 0..3 {
            for n in 0..8 {
                let address = format!("198.51.{origin}.{n}:1");
                learn(
                    &mut table,
                    &address,
                    CandidateKind::Host,
                    &instance(&format!("liar{origin}")),
                );
            }
        }
        for n in 0..MAX_PER_CLASS {
            let address = format!("203.0.113.{n}:1");
            assert_eq!(
                learn(&mut table, &address, CandidateKind::Host, &Origin::Peer),
                Learned::New
            );
        }
        assert_eq!(
            learn(
                &mut table,
                "203.0.113.99:1",
                CandidateKind::Host,
                &Origin::Peer
            ),
            Learned::LeftOut
        );
    }

    #[test]
    fn pings_that_opened_the_nats_are_not_lost_ones() {
        let mut table = Table::default();
        let origin = &Origin::Peer;
        learn(&mut table, "203.0.113.1:1", CandidateKind::Host, origin);
        let path = PathId::wireguard("203.0.113.1:1".parse().unwrap());
        let entry = table.get_mut(&path).unwrap();
        let at = |seconds: u64| NOW + Duration::from_secs(seconds);
        for second in 0..10 {
            entry.on_ping(at(second));
        }
        assert_eq!(entry.loss_percent(at(20)), None, "it is not known to work");
        for second in 20..30 {
            entry.on_ping(at(second));
            entry.note_answered(0);
            entry.on_pong(Duration::from_millis(9), at(second));
        }
        assert_eq!(entry.loss_percent(at(31)), Some(0));
    }

    #[test]
    fn loss_is_counted_of_pings_that_had_time_to_be_answered() {
        let mut table = Table::default();
        learn(
            &mut table,
            "203.0.113.1:1",
            CandidateKind::Host,
            &Origin::Peer,
        );
        let path = PathId::wireguard("203.0.113.1:1".parse().unwrap());
        let entry = table.get_mut(&path).unwrap();
        let at = |seconds: u64| NOW + Duration::from_secs(seconds);
        for second in 0..4 {
            entry.on_ping(at(second));
            entry.note_answered(0);
            entry.on_pong(Duration::from_millis(9), at(second));
            assert_eq!(entry.loss_percent(at(second)), None, "too few");
        }
        entry.on_ping(at(4));
        assert_eq!(entry.loss_percent(at(4)), None, "it may be answered yet");
        assert_eq!(entry.loss_percent(at(5)), Some(20));
        for second in 5..40 {
            entry.on_ping(at(second));
            entry.on_ping(at(second));
            // The first of the two.
            entry.note_answered(1);
            entry.on_pong(Duration::from_millis(9), at(second));
        }
        assert_eq!(entry.loss_percent(at(50)), Some(50));
    }
}
