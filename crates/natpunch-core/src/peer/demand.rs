//! Pairs on demand: when such a pair rests, and what wakes it.
//!
//! A pair at rest sends nothing, asks for nothing and keeps nothing. The peer's endpoint in WireGuard
//! is its [resting endpoint](natpunch_types::resting_endpoint), without keepalives. The first packet
//! for the peer makes WireGuard send an initiation there, which wakes the pair and is kept
//! ([`super::initiation`]). The other side is woken by what only this one can have made: a record in
//! its mailbox, or a probe that names its present run.
//!
//! What WireGuard sends to a resting endpoint is lost, except an initiation. So the pair rests when
//! WireGuard has no keys any more, and each packet begins with a handshake. Keepalives would make new
//! keys for ever: they end when nobody has talked for a while, and the keys end three minutes after
//! the last handshake. Meanwhile the path is watched as before.
//!
//! Each probe says whether its sender has something for the receiver. A side that was woken has not,
//! for that: otherwise two sides would keep each other awake without end.

use std::fmt;
use std::time::Duration;

use natpunch_types::{CandidateKind, Connect, Origin, PathId};

use crate::candidates::Offer;
use crate::env::Env;
use crate::path::Tier;
use crate::{Command, Event, Time};

use super::Peer;
use super::device::LIVE;

/// Nobody has talked for so long: longer than WireGuard repeats a handshake that is not answered (90
/// s), and than its keepalive follows what it has received (10 s).
const QUIET: Duration = Duration::from_secs(120);
/// A handshake may have been made so much later than it was seen here.
const SKEW: Duration = Duration::from_secs(2);
/// What WireGuard sent so long ago was answered, or was repeated since (its REKEY_TIMEOUT is 5 s).
const HANDSHAKE: Duration = Duration::from_secs(6);
/// WireGuard is told to put the peer to rest at most this often.
const ORDER_EVERY: Duration = Duration::from_secs(5);
/// For how long the path that was in use before a rest is tried first after it.
const REMEMBERED: Duration = Duration::from_secs(86_400);

/// What has woken a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waker {
    /// This host has a packet for the peer.
    Packet,
    /// A probe of the peer's.
    Peer,
    /// A new record of the peer's for this node.
    Record,
    /// WireGuard has heard the peer.
    WireGuard,
}

impl fmt::Display for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Packet => "there is a packet for it",
            Self::Peer => "it looks for this node",
            Self::Record => "it asks for this node",
            Self::WireGuard => "WireGuard heard it",
        })
    }
}

/// Who has wanted the pair awake, and when last.
#[derive(Debug)]
pub(super) struct Demand {
    rests: bool,
    woken: Time,
    /// There was data, or WireGuard began a handshake that had nowhere to go.
    own: Option<Time>,
    /// The peer has said that it has something for this node.
    peers: Option<Time>,
    ordered: Option<Time>,
    /// The path that was in use before the rest.
    last: Option<PathId>,
    /// The best of those that worked in earlier runs.
    remembered: Option<PathId>,
}

impl Demand {
    pub(super) fn new(now: Time) -> Self {
        Self {
            rests: false,
            woken: now,
            own: None,
            peers: None,
            ordered: None,
            last: None,
            remembered: None,
        }
    }

    /// Goes on where it was before a reload.
    pub(super) fn inherit(&mut self, predecessor: &Self) {
        (self.woken, self.own, self.peers) =
            (predecessor.woken, predecessor.own, predecessor.peers);
        (self.last, self.remembered) = (predecessor.last, predecessor.remembered);
    }

    /// When nobody will have wanted anything for long enough.
    fn ends_at(&self) -> Time {
        let last = [self.own, self.peers].into_iter().flatten().max();
        last.map_or(self.woken, |last| last.max(self.woken)) + QUIET
    }
}

impl Peer {
    /// The mesh file lets the pair rest, and both sides can wake it.
    pub(super) fn is_on_demand(&self) -> bool {
        self.spec.connect == Connect::OnDemand && self.probes()
    }

    /// The pair rests.
    pub(crate) fn rests(&self) -> bool {
        self.demand.rests && self.is_on_demand()
    }

    /// A new peer rests until it is seen that somebody talks.
    pub(super) fn begin_at_rest(&mut self) {
        self.demand.rests = self.is_on_demand();
    }

    /// This side has nothing for the peer, as far as is known.
    pub(super) fn is_at_ease(&self, now: Time) -> bool {
        let lately = |at: Time| now.since(at) < QUIET;
        self.is_on_demand() && !self.demand.own.is_some_and(lately)
    }

    /// The pair is awake, and nobody has wanted anything for a while.
    pub(super) fn is_drowsy(&self, now: Time) -> bool {
        self.is_on_demand() && now >= self.demand.ends_at()
    }

    /// This side has something for the peer.
    pub(super) fn on_demand_here(&mut self, now: Time) {
        self.demand.own = Some(now);
    }

    /// For how long the peer may have known what this node has published.
    pub(super) fn told_since(&self, published: Time) -> Time {
        match self.is_on_demand() {
            true => published.max(self.demand.woken),
            false => published,
        }
    }

    /// A fresh probe of the peer's says whether it has something for this node. A peer that never
    /// says that it has not, keeps the pair awake.
    pub(super) fn hear_ease(&mut self, at_ease: bool, now: Time) {
        self.demand.peers = (!at_ease).then_some(now);
    }

    /// What the device shows of who talks.
    pub(super) fn see_demand(
        &mut self,
        first_sight: bool,
        progress: bool,
        env: &mut Env,
        now: Time,
    ) {
        if !self.is_on_demand() {
            return;
        }
        if self.device.has_just_carried(now) {
            self.on_demand_here(now);
        }
        // A session that ran before us goes on as it is until its keys end.
        let runs = || self.device.endpoint.is_some() && self.device.session(now).has_keys();
        if progress || first_sight && runs() {
            self.rouse(Waker::WireGuard, env, now);
        }
    }

    /// The pair rests if nobody has wanted anything, and WireGuard has neither keys nor a handshake
    /// under way. Asked with each reading of the device: by an older one a handshake of this moment
    /// would not be known.
    ///
    /// A pair that is joined by a pin does not rest: the NATs would forget the pair of ports, which
    /// took a search to find.
    pub(super) fn rest_in_time(&mut self, env: &mut Env, now: Time) {
        if !self.is_drowsy(now) || self.device.pin.is_some() {
            return;
        }
        let is_over = |at: Option<Time>, after: Duration| at.is_none_or(|at| now.since(at) > after);
        let has_keys = !is_over(self.device.handshake_seen, LIVE + SKEW);
        let shakes_hands = !is_over(self.device.tx_seen, HANDSHAKE);
        if !has_keys && !shakes_hands {
            self.put_to_rest(env, now);
        }
    }

    /// Nobody has talked, and WireGuard has no keys: the pair rests.
    fn put_to_rest(&mut self, env: &mut Env, now: Time) {
        if let Some(path) = self.choice.selection.as_ref().map(|s| s.path)
            && !self.is_relay(path)
            && path.pin().is_none()
        {
            let offer = Offer {
                path,
                kind: CandidateKind::PeerReflexive,
                origin: &Origin::Peer,
                expires: now + REMEMBERED,
                recorded: false,
            };
            self.learn(offer, env, now);
            self.demand.last = Some(path);
        }
        self.demand.rests = true;
        let peer = self.spec.key;
        self.choice.rest();
        self.round.rest();
        self.meeting = Default::default();
        self.stop_punching(env);
        self.prober.forget_questions();
        self.initiation.forget();
        self.device.rest();
        for (_, entry) in self.table.iter_mut() {
            entry.forget_proof();
            entry.unblock();
            entry.next_ping = None;
            entry.keeps_hole = false;
        }
        env.out.forget_meet(&peer);
        env.out.event(Event::Rests { peer });
        self.order_rest(env, now);
    }

    /// The device is to have the peer at rest, too.
    pub(super) fn keep_at_rest(&mut self, env: &mut Env, now: Time) {
        let lately = |at: Time| now.since(at) < ORDER_EVERY;
        let is_done = self.device.endpoint.is_none() && self.device.keepalive.is_none();
        if !is_done && !self.demand.ordered.is_some_and(lately) {
            self.order_rest(env, now);
        }
    }

    fn order_rest(&mut self, env: &mut Env, now: Time) {
        if !env.rests.take(now) {
            // The next snapshot of the device comes.
            return;
        }
        self.demand.ordered = Some(now);
        self.device.endpoint = None;
        let peer = self.spec.key;
        env.out.set_endpoint(peer, Command::Rest { peer });
    }

    /// A path has worked in an earlier run.
    pub(super) fn remember_at_rest(&mut self, path: PathId) {
        if !self.rests() || path.pin().is_some() {
            return;
        }
        let Some(found) = self.tier(&path) else {
            return;
        };
        let before = self.demand.remembered.and_then(|path| self.tier(&path));
        if before.is_none_or(|before| found < before) {
            self.demand.remembered = Some(path);
        }
    }

    /// Where the peer most likely is, for a WireGuard that nobody helps: the path that was in use
    /// before the rest, else one that worked in an earlier run, else what the mesh file states.
    pub(crate) fn last_path(&self) -> Option<PathId> {
        let stated = || {
            let entries = self.table.iter();
            let stated = entries.filter(|(_, entry)| entry.says_the_mesh_file());
            let usable = stated.filter_map(|(path, _)| Some((self.tier(path)?, *path)));
            usable.min().map(|(_, path)| path)
        };
        let known = self.demand.last.or(self.demand.remembered);
        let is_of_use = |path: &PathId| {
            path.pin().is_none()
                && self.permits(*path, CandidateKind::PeerReflexive, &Origin::WireGuard)
        };
        known.or_else(stated).filter(is_of_use)
    }

    /// What a path is worth that WireGuard may send on; a relay binds its ports for one session only.
    fn tier(&self, path: &PathId) -> Option<Tier> {
        let entry = self.table.get(path)?;
        let is_of_use = !entry.is_relay() && !entry.is_barred();
        is_of_use.then(|| entry.tier(*path, self.table.same_site))
    }

    /// Ends the rest, if there is one: everything that is known of the peer is probed.
    pub(super) fn rouse(&mut self, by: Waker, env: &mut Env, now: Time) {
        if !self.rests() {
            return;
        }
        self.demand.rests = false;
        self.demand.woken = now;
        let peer = self.spec.key;
        env.out.forget_endpoint(&peer);
        env.out.event(Event::Woken { peer, by });
        self.table.forget_routes();
        if let Some(record) = self.record.take() {
            // What found no place in the table may be the best now.
            self.take_record(record, env, now);
        }
        self.round.start_over();
        self.start_round(env, now);
    }
}
