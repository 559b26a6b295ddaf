//! One peer: a small whole, wired from parts that have their own state.
//!
//! | part | what it knows |
//! |---|---|
//! | [`Table`] | the paths on which the peer may answer, and what probing each has shown |
//! | [`Prober`] | the conversation of pings and pongs: what awaits an answer, what was seen |
//! | [`Round`] | where the search for a path is: probing, silent, resting |
//! | [`Punching`] | which strategy is under way where one port on each side is not enough |
//! | [`Meeting`] | the moments at which discovery makes both sides probe |
//! | [`Choice`] | the path in use, what the peer says of its choice, and how the next is made |
//! | [`Health`](health::Health) | whether the path in use is alive |
//! | [`Retreat`] | how long no direct path takes the place of a relay |
//! | [`Sizing`] | how large packets may be on the path in use |
//! | [`DeviceView`] | what the WireGuard device says of the peer, and its [`Session`] |
//! | [`Demand`] | whether the pair rests, where it is on demand |
//! | [`Initiation`] | WireGuard's newest initiation that had nowhere to go, and its copies |
//! | [`Timeline`] | the last packets, for people |
//! | [`Response`] | WireGuard's newest answer to a handshake of the peer, and its copies |
//! | [`PlainTries`] | the candidates of a plain WireGuard peer that were tried |
//! | [`timers`] | the one table of what is due when |
//!
//! # Words
//!
//! - A path is *answered* when a pong came on it lately, and *proven* when the peer says that its
//!   own ping was answered, too.
//! - A path is *blocked* when probes pass and WireGuard's handshake does not; it is left alone for
//!   a while. A proven path that is not blocked is *usable*.
//! - The path *in use* is the one that WireGuard is told to use (the [`Selection`]). It is
//!   *checked* until WireGuard has shown that it works there.
//! - The path in use is in *doubt* from when something moved until it answers again. What follows
//!   from that, and from pings that are unanswered, is its [`Health`](health::Health): alive,
//!   suspect, unconfirmed, failing or lost.
//! - WireGuard *waits* when it has sent something and heard nothing since. It is *cut off* when
//!   that lasts though pings are answered.
//! - The pair is connected *by relay* while it looks for a direct path, and *settled* when nothing
//!   better is looked for (the [`Connection`]).
//! - A pair that is *on demand* is awake or *rests*: then nothing is sent, asked or kept for it.
//!
//! A path is chosen when it is proven. Of each pair, the node with the lower public key decides (it
//! is *controlling*, RFC 8445) and *nominates* a path. Then WireGuard's handshake is checked. Only
//! the controlling side starts a first handshake: two WireGuard nodes that initiate at the same
//! moment discard each other's answer and lose five seconds.

mod choice;
mod demand;
mod device;
mod health;
mod initiation;
mod meeting;
mod messages;
mod pinning;
mod plain;
mod probing;
mod punching;
mod receive;
mod relaying;
mod remembered;
mod report;
mod response;
mod round;
mod selection;
mod sizing;
mod succession;
mod timeline;
mod timers;
mod vigilance;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use natpunch_types::{
    Candidate, CandidateKind, InstanceName, Origin, PathId, PeerKey, RelayPolicy, Route,
    is_forwarder,
};

use crate::burst::Burst;
use crate::candidates::{Entry, Learned, Offer, Table};
use crate::env::Env;
use crate::keys::PairKeys;
use crate::messages::record::Contents;
use crate::nat::profile::NatProfile;
use crate::{Command, EndpointReason, Event, PeerSpec, Time};

use choice::{Choice, Scene};
use demand::Demand;
pub use demand::Waker;
use device::DeviceView;
use initiation::Initiation;
use meeting::Meeting;
use messages::Messages;
use plain::PlainTries;
use probing::Prober;
use punching::Punching;
use relaying::Retreat;
use response::Response;
use round::Round;
use selection::{Check, How, Selection};
use sizing::Sizing;
use timeline::Timeline;
use vigilance::Vigilance;

/// For how long a candidate of the peer's own or of WireGuard's is believed unless repeated.
const LEARNED_LIFETIME: Duration = Duration::from_secs(600);
/// How long WireGuard has to show a handshake or traffic after its endpoint was set.
const CHECK: Duration = Duration::from_secs(3);
/// Tries after which another proven path is preferred ...
const CHECK_TRIES: u32 = 2;
/// ... and after which even the only one is given up for a while: two of WireGuard's own retries (5
/// s) fit in.
const CHECK_TRIES_ALONE: u32 = 6;
/// The same where the path takes the place of a relay, which carries nothing meanwhile, and for a
/// relay, of which there may be another; but at least three round trips.
const CHECK_SOON: Duration = Duration::from_secs(1);
/// The controlled side first waits for the peer's handshake, which sets the endpoint too ...
const DEFER: Duration = Duration::from_millis(250);
/// ... and if none came some time after that, starts one: the peer's was lost.
const DEFER_KICK: Duration = Duration::from_millis(750);
/// A path in use whose pings go unanswered for this long, while WireGuard hears nothing either, is
/// lost.
const DEAD: Duration = Duration::from_secs(4);
/// A peer's natpunch that has answered before it fell silent counts as running for this long.
const PROBED: Duration = Duration::from_secs(15);
/// The same where the peer's natpunch is silent and WireGuard's own traffic is all there is to see.
const DEAD_UNPROBED: Duration = Duration::from_secs(180);

/// Whether the pair is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    /// WireGuard works on no path, as far as can be seen.
    Down,
    /// WireGuard works through a relay, and a direct path is looked for.
    ByRelay,
    /// WireGuard works, and nothing better is looked for.
    Settled,
}

/// How urgently discovery looks for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Search {
    /// Not at all: the pair is connected.
    Done,
    /// Discovery may take its time: a relay carries, and a direct path is unlikely.
    Patient,
    /// At once.
    Eager,
}

/// The newest sealed record, whether its candidates may be used or not.
struct Received {
    counter: u64,
    expires: Time,
    /// The instance that brought it last.
    origin: InstanceName,
    candidates: Vec<(CandidateKind, SocketAddr)>,
    profile: NatProfile,
}

/// One peer's state.
pub(crate) struct Peer {
    pub(crate) spec: PeerSpec,
    /// `None` if the peer's public key is unusable.
    pub(crate) keys: Option<PairKeys>,
    table: Table,
    prober: Prober,
    round: Round,
    meeting: Meeting,
    messages: Messages,
    punching: Punching,
    choice: Choice,
    retreat: Retreat,
    vigilance: Vigilance,
    sizing: Sizing,
    device: DeviceView,
    demand: Demand,
    initiation: Initiation,
    response: Response,
    plain: PlainTries,
    timeline: Timeline,
    record: Option<Received>,
    /// Some path without a relay has worked.
    had_direct: bool,
}

impl Peer {
    pub(crate) fn new(
        spec: PeerSpec,
        keys: Option<PairKeys>,
        own: &PeerKey,
        env: &mut Env,
        now: Time,
    ) -> Self {
        let mut peer = Self {
            choice: Choice::new(*own < spec.key, now),
            spec,
            keys,
            table: Table::default(),
            prober: Prober::going_on_from(env.sequence),
            round: Round::default(),
            meeting: Meeting::default(),
            messages: Messages::default(),
            punching: Punching::default(),
            retreat: Retreat::default(),
            vigilance: Vigilance::default(),
            sizing: Sizing::default(),
            device: DeviceView::default(),
            demand: Demand::new(now),
            initiation: Initiation::default(),
            response: Response::default(),
            plain: PlainTries::default(),
            timeline: Timeline::default(),
            record: None,
            had_direct: false,
        };
        peer.begin_at_rest();
        peer.start_round(env, now);
        peer
    }

    /// Takes over the state of the same peer from before a reload. With the same keys no other part
    /// would tell it again: discovery has delivered the record already, and the other side need not
    /// have changed.
    pub(crate) fn inherit(&mut self, predecessor: Self, env: &mut Env, now: Time) {
        let pair = |peer: &Self| peer.keys.as_ref().map(|keys| keys.pair_tag);
        if pair(self) == pair(&predecessor) {
            self.prober.resume(predecessor.prober);
            self.timeline = predecessor.timeline;
            self.initiation = predecessor.initiation;
            self.demand.inherit(&predecessor.demand);
            let mut table = predecessor.table;
            // WireGuard's endpoint is adopted again if it is alive.
            table.restrict(|path, kind, origin| {
                *origin != Origin::WireGuard && self.permits(path, kind, origin)
            });
            self.table = table;
            if let Some(record) = predecessor.record {
                self.take_record(record, env, now);
            }
            self.start_round(env, now);
        }
        self.inherit_device(predecessor.device, env, now);
        self.decide(env, now);
    }

    /// The peer answers probes, as far as the mesh file says.
    fn probes(&self) -> bool {
        self.spec.managed && self.keys.is_some()
    }

    /// The path in use, which is never forgotten.
    fn keep(&self) -> Option<PathId> {
        let selected = self.choice.selection.as_ref().map(|s| s.path);
        selected.or_else(|| self.device_path())
    }

    /// WireGuard works on some path, as far as can be seen.
    pub(crate) fn is_up(&self, now: Time) -> bool {
        !self.rests() && self.connection(now) != Connection::Down
    }

    /// Whether the pair is connected, as far as can be seen.
    fn connection(&self, now: Time) -> Connection {
        if !self.probes() {
            return match self.device.session(now).is_up() {
                true => Connection::Settled,
                false => Connection::Down,
            };
        }
        match &self.choice.selection {
            Some(s) if s.check != Check::Passed => Connection::Down,
            Some(s) if self.is_sought(s.path) => Connection::Settled,
            Some(_) => Connection::ByRelay,
            None => Connection::Down,
        }
    }

    /// What a choice of path is made from.
    fn scene(&self, now: Time) -> Scene<'_> {
        Scene {
            table: &self.table,
            spec: &self.spec,
            session: self.device.session(now),
            direct_after: self.retreat.ends_at(),
            direct_left_at: self.retreat.left_at(),
            can_repeat_handshake: self.initiation.is_current(now),
            now,
        }
    }

    /// A candidate from discovery.
    pub(crate) fn handle_candidate(
        &mut self,
        from: &InstanceName,
        candidate: &Candidate,
        env: &mut Env,
        now: Time,
    ) {
        // Only an authenticated packet makes a candidate peer-reflexive. The core sees such packets
        // itself; discovery does not.
        let kind = match candidate.kind {
            CandidateKind::PeerReflexive => CandidateKind::Reflexive,
            kind => kind,
        };
        let offer = Offer {
            path: PathId::wireguard(candidate.address),
            kind,
            origin: &Origin::Discovery(from.clone()),
            expires: now + candidate.lifetime,
            recorded: false,
        };
        self.learn(offer, env, now);
        self.decide(env, now);
    }

    /// An origin no longer offers a path.
    fn withdraw(&mut self, path: PathId, origin: &Origin, now: Time) {
        let path = path.with_remote(natpunch_types::canonical(path.remote));
        if self.table.withdraw(&path, origin) && self.choice.is_selected(path) {
            self.doubt(now);
        }
        self.table.expire(self.keep(), now);
    }

    /// A sealed record for which this peer's tag was found.
    pub(crate) fn handle_record(
        &mut self,
        origin: &InstanceName,
        blob: &[u8],
        env: &mut Env,
        now: Time,
    ) {
        let keys = self.keys.as_ref();
        let Some(contents) = keys.and_then(|keys| Contents::open(&keys.inbound, blob)) else {
            return;
        };
        let Contents {
            counter,
            lifetime,
            candidates,
            profile,
        } = contents;
        let newest = self.record.as_ref();
        let known = newest.filter(|known| counter <= known.counter);
        let expires = match known {
            // The same record through another store, or read again: its lifetime still counts from
            // its first receipt.
            Some(known) if counter == known.counter => known.expires,
            // An older record. A store may show it again at any time.
            Some(_) => return,
            None => now + lifetime,
        };
        let is_newer = known.is_none();
        let hosts = |candidates: &[(CandidateKind, SocketAddr)]| -> BTreeSet<SocketAddr> {
            let hosts = candidates.iter();
            let hosts = hosts.filter(|(kind, _)| *kind == CandidateKind::Host);
            hosts.map(|(_, address)| *address).collect()
        };
        // An address of its host is gone: it may be in another network.
        let has_moved = is_newer
            && self
                .record
                .as_ref()
                .is_some_and(|before| !hosts(&before.candidates).is_subset(&hosts(&candidates)));
        if is_newer {
            self.table.withdraw_recorded();
        }
        if expires <= now {
            return;
        }
        let record = Received {
            counter,
            expires,
            origin: origin.clone(),
            candidates,
            profile,
        };
        self.take_record(record, env, now);
        self.table.expire(self.keep(), now);
        if is_newer && self.rests() {
            // The peer made it for this node, just now, so it looks for this node.
            self.rouse(Waker::Record, env, now);
        } else if is_newer {
            self.meet(env, now);
        }
        if has_moved {
            self.doubt_peers_move(env, now);
        }
        self.decide(env, now);
    }

    /// The peer has moved, as it says. Where a NAT lets in only what it was shown, as on the way to
    /// a pinned port, nothing of the peer arrives by the path in use any more, and nobody but the
    /// peer knows: so the path has to answer again, and the relay that stands by is asked, which
    /// takes over if it alone answers.
    fn doubt_peers_move(&mut self, env: &mut Env, now: Time) {
        let standby = self.scene(now).standby(self.choice.selection.as_ref());
        let Some(standby) = standby.filter(|_| self.probes() && !self.rests()) else {
            return;
        };
        self.doubt(now);
        self.send_pings(env, now);
        self.ping_now(standby, env, now);
    }

    fn take_record(&mut self, record: Received, env: &mut Env, now: Time) {
        // A plain peer leaves no records. One from before it became plain is only kept, for the
        // case that it becomes managed again.
        if self.spec.managed {
            self.punching.on_peer_profile(record.profile);
            let origin = Origin::Discovery(record.origin.clone());
            for (kind, address) in &record.candidates {
                let offer = Offer {
                    path: PathId::wireguard(*address),
                    kind: *kind,
                    origin: &origin,
                    expires: record.expires,
                    recorded: true,
                };
                self.learn(offer, env, now);
            }
        }
        self.record = Some(record);
    }

    /// Takes in a path on which the peer may answer.
    fn learn(&mut self, offer: Offer<'_>, env: &mut Env, now: Time) {
        let Ok(remote) = env.admit(offer.path.remote) else {
            return;
        };
        if is_forwarder(remote.ip()) && !offer.may_be_forwarder() {
            return;
        }
        let path = offer.path.with_remote(remote);
        let kind = self.kind_seen(path, offer.kind, env);
        let offer = Offer {
            path,
            kind,
            ..offer
        };
        // The address of this host's own router counts only if the peer or this node's mesh file
        // names it: discovery's word alone is not enough.
        if env.local.is_router(remote.ip()) && !offer.is_sure() && !offer.is_stated() {
            return;
        }
        if !self.permits(path, offer.kind, offer.origin) {
            return;
        }
        if offer.kind == CandidateKind::Relay {
            env.note_relay(remote.ip());
        }
        let keep = self.keep();
        if self.table.learn(&offer, keep, now) != Learned::New {
            // A relay's port that is offered again has been bound by a side that was not bound when
            // the port was probed last: what failed then may pass now.
            let unproven = |entry: &Entry| entry.is_relay() && !entry.is_proven(now);
            let is_unproven_relay = self.table.get(&path).is_some_and(unproven);
            if self.probes() && offer.kind == CandidateKind::Relay && is_unproven_relay {
                self.start_burst(path, Burst::Direct, now);
            }
            return;
        }
        let kind = self.table.get(&path).map_or(offer.kind, |entry| entry.kind);
        env.out.event(Event::CandidateLearned {
            peer: self.spec.key,
            path,
            kind,
            origin: offer.origin.clone(),
        });
        if !self.probes() {
            self.plain.on_new_candidate();
            return;
        }
        if self.rests() {
            return;
        }
        self.start_burst(path, self.first_burst(path, env, now), now);
        if self.connection(now) != Connection::Settled {
            self.round.on_new_candidate(now);
        }
        self.ask_to_meet(env, now);
    }

    /// The kind of a path as this node sees it: a packet from a host of relays came through a
    /// relay, unless the peer says that the address is its own.
    fn kind_seen(&self, path: PathId, kind: CandidateKind, env: &Env) -> CandidateKind {
        let unknown = kind == CandidateKind::PeerReflexive && self.table.get(&path).is_none();
        let by_relay = env.is_host_of_relays(path.remote.ip());
        let by_relay = by_relay && self.spec.relay != RelayPolicy::Never;
        if unknown && (by_relay || is_forwarder(path.remote.ip())) {
            CandidateKind::Relay
        } else {
            kind
        }
    }

    /// The kernel's route to an address.
    pub(crate) fn handle_route(&mut self, ip: IpAddr, route: Route, env: &mut Env, now: Time) {
        let same_site = self.table.same_site;
        let mut opened = Vec::new();
        for (path, entry) in self.table.iter_mut().filter(|(p, _)| p.remote.ip() == ip) {
            let was_barred = entry.is_barred();
            entry.route = Some(route);
            entry.route_asked = true;
            if entry.is_barred() {
                entry.next_ping = None;
            } else if was_barred {
                opened.push(*path);
            } else if entry.last_ping.is_none() {
                entry.next_ping = entry.next_ping.map(|_| now);
            }
            if entry.is_hopeless(*path, same_site) && entry.burst == Burst::Direct {
                entry.burst = Burst::Sparse;
            }
        }
        for path in opened {
            self.start_burst(path, Burst::Direct, now);
        }
        if self.probes() {
            self.send_pings(env, now);
        }
        self.decide(env, now);
    }

    /// Addresses, routes or time have jumped: everything is probed anew, the path in use stays
    /// until replaced.
    pub(crate) fn handle_network_change(&mut self, env: &mut Env, now: Time) {
        for (_, entry) in self.table.iter_mut() {
            entry.forget_proof();
            entry.unblock();
        }
        self.table.forget_routes();
        // A candidate that found no place in the table, or was of a family that this host did not
        // have, may be the best now.
        if let Some(record) = self.record.take() {
            self.take_record(record, env, now);
        }
        self.doubt(now);
        self.punching.resume(now);
        self.round.start_over();
        self.plain.on_new_candidate();
        self.start_round(env, now);
    }

    /// The path in use has to answer again soon or make way for one that does.
    fn doubt(&mut self, now: Time) {
        let in_use = self.choice.selection.as_mut();
        if let Some(selection) = in_use.filter(|s| s.doubted.is_none()) {
            selection.doubted = Some(now);
            let path = selection.path;
            self.start_burst(path, Burst::Direct, now);
        }
    }

    /// How long WireGuard has to show that it works on a path.
    fn patience(&self, path: PathId, soon: bool, env: &Env) -> Duration {
        let shows = if soon {
            CHECK_SOON.max(self.rtt(path) * 3)
        } else {
            CHECK
        };
        shows + env.reading_delay
    }

    /// The round trip on a path as far as it is known, else zero.
    fn rtt(&self, path: PathId) -> Duration {
        let entry = self.table.get(&path);
        entry.and_then(|entry| entry.rtt).unwrap_or_default()
    }

    /// Chooses the path to use, now that something has changed.
    fn decide(&mut self, env: &mut Env, now: Time) {
        let sees_us = |path: &PathId| env.local.shares_public_ip(path.remote.ip());
        self.table.note_site(sees_us);
        if !env.device_seen || self.rests() {
            return;
        }
        if !self.probes() {
            self.decide_plain(env, now);
        } else if let Some((path, reason)) = self.choice.next(&self.scene(now)) {
            self.select(path, reason, env, now);
        }
        self.plan_punching(env, now);
        self.tend_sizes(env, now);
    }

    fn select(&mut self, path: PathId, reason: EndpointReason, env: &mut Env, now: Time) {
        let how = self.leave_for(path, now);
        let session = self.device.session(now);
        let in_use = self.choice.selection.as_ref();
        let was_lost = in_use.is_some_and(|s| s.check == Check::Lost);
        let already = self.device_path() == Some(path);
        // While the path was lost, WireGuard may have tried in vain to get new keys, and given up.
        // It tries again only when there is a packet to send, and the old keys may have expired by
        // then.
        let renews = was_lost && self.choice.controlling && self.device.is_rekey_due(now);
        self.device.mark();
        let check = if already && session.needs_no_handshake() && !renews {
            // WireGuard has worked on this path before and probes work again, so it is left alone.
            // A handshake now could cross the other side's, and of two that cross both fail.
            Check::Passed
        } else if self.choice.controlling || session.is_live() && !was_lost {
            // The controlling side begins the handshake. A live session is moved by either side.
            self.set_endpoint(path, true, reason, env, now);
            let soon = how == How::ChosenOverRelay || self.is_relay(path);
            Check::Running {
                tries: 1,
                deadline: now + self.patience(path, soon, env),
            }
        } else {
            // The controlling side begins it: two first handshakes would cross.
            Check::Deferred {
                until: now + DEFER.max(self.rtt(path) * 2 + DEFER / 5),
            }
        };
        let selection = Selection::chosen(path, how, check, now);
        self.choice.select(selection, now);
        for (_, entry) in self.table.iter_mut() {
            entry.wins = 0;
        }
        env.out.event(Event::PathSelected {
            peer: self.spec.key,
            path,
            reason,
        });
        if check == Check::Passed {
            self.on_connected(path, env);
        }
        self.ping_now(path, env, now);
    }

    fn on_connected(&mut self, path: PathId, env: &mut Env) {
        if self.is_sought(path) {
            self.round.rest();
            self.had_direct |= self.spec.relay != RelayPolicy::Only;
        }
        if let Some(entry) = self.table.get_mut(&path) {
            entry.unblock();
        }
        env.out.event(Event::Connected {
            peer: self.spec.key,
            path,
        });
    }

    fn set_endpoint(
        &mut self,
        path: PathId,
        kick: bool,
        reason: EndpointReason,
        env: &mut Env,
        now: Time,
    ) {
        let peer = self.spec.key;
        self.device.on_set(path, now);
        // WireGuard has made an initiation already. Its copy is better than a push, which would
        // begin a second handshake, and lose what waits for the first.
        let has_begun = kick && self.initiation.is_current(now);
        if has_begun {
            self.initiation.send_on(path);
        }
        let command = Command::SetEndpoint {
            peer,
            path,
            kick: kick && !has_begun,
            reason,
        };
        env.out.set_endpoint(peer, command);
    }

    /// When WireGuard's time on the path in use is over, or the path counts as lost.
    fn check_at(&self, now: Time) -> Option<Time> {
        let selection = self.choice.selection.as_ref()?;
        match selection.check {
            Check::Deferred { until } => Some(until),
            Check::Running { deadline, .. } => Some(deadline),
            Check::Passed => Some(self.dead_at(selection, now)),
            Check::Lost => None,
        }
    }

    /// The time of the check of the path in use is over: takes the next step.
    fn check_selection(&mut self, env: &mut Env, now: Time) {
        let Some(selection) = &self.choice.selection else {
            return;
        };
        let path = selection.path;
        match selection.check {
            // The peer's handshake has not come. WireGuard here is told the path, but does not
            // begin a handshake yet: it could still cross the peer's.
            Check::Deferred { .. } => {
                self.set_check(Check::Running {
                    tries: 0,
                    deadline: now + DEFER_KICK + env.reading_delay,
                });
                if self.device_path() != Some(path) {
                    self.set_endpoint(path, false, EndpointReason::Nominated, env, now);
                }
            }
            // Neither a handshake nor traffic: WireGuard tries again, or another path is taken.
            Check::Running { tries, .. } => {
                let alone = !self.has_other(path, now);
                let over_relay = selection.how == How::ChosenOverRelay;
                let limit = match alone {
                    true => CHECK_TRIES_ALONE,
                    false if over_relay => CHECK_TRIES + 1,
                    false => CHECK_TRIES,
                };
                if tries >= limit {
                    self.block(path, env, now);
                    return;
                }
                let soon = over_relay || !alone && self.is_relay(path);
                self.set_check(Check::Running {
                    tries: tries + 1,
                    deadline: now + self.patience(path, soon, env),
                });
                self.set_endpoint(path, true, EndpointReason::Retry, env, now);
            }
            // Neither pings nor WireGuard have shown life for too long.
            Check::Passed => self.lose(env, now),
            // Its endpoint stays until another path is proven.
            Check::Lost => {}
        }
    }

    fn set_check(&mut self, check: Check) {
        if let Some(selection) = &mut self.choice.selection {
            selection.check = check;
        }
    }

    /// Probes pass, WireGuard does not: on to the next path.
    fn block(&mut self, path: PathId, env: &mut Env, now: Time) {
        // If WireGuard fails on every path, the cause is not this path: it is blocked for less
        // long.
        let is_blocked = |other: &PathId, entry: &Entry| *other != path && entry.is_blocked(now);
        let nowhere = self.table.iter().any(|(other, e)| is_blocked(other, e));
        let entry = self.table.get_mut(&path);
        let until = entry.map_or(now, |entry| entry.block(nowhere, now));
        self.leave_deaf(path, env);
        // The other side may decide for the pair, and not have noticed. This ping tells it.
        self.ping_now(path, env, now);
        if !self.is_relay(path) {
            self.round.be_silent_until(until);
        }
    }

    /// Leaves the path in use because WireGuard does not pass there.
    fn leave_deaf(&mut self, path: PathId, env: &mut Env) {
        self.choice.selection = None;
        self.choice.forget_nomination();
        env.out.event(Event::WireGuardBlocked {
            peer: self.spec.key,
            path,
        });
    }

    /// The path in use no longer shows any sign of life.
    fn lose(&mut self, env: &mut Env, now: Time) {
        let Some(selection) = &mut self.choice.selection else {
            return;
        };
        selection.check = Check::Lost;
        let path = selection.path;
        env.out.event(Event::PathLost {
            peer: self.spec.key,
            path,
        });
        // What answered before this path fell silent may have fallen silent with it.
        let entry = self.table.get(&path);
        let silent_since = entry.and_then(|entry| entry.unanswered_since);
        let silent_since = silent_since.unwrap_or(now);
        for (_, entry) in self.table.iter_mut() {
            if !entry.is_answered_since(silent_since) {
                entry.forget_proof();
            }
        }
        self.choice.forget_nomination();
        self.round.start_over();
        self.start_round(env, now);
    }

    /// When the path in use counts as lost unless it shows a sign of life.
    fn dead_at(&self, selection: &Selection, now: Time) -> Time {
        let entry = self.table.get(&selection.path);
        let silent_since = entry.and_then(|entry| entry.unanswered_since);
        // This side decides when it pings, so the age of the last answer says nothing about the
        // path.
        let silence = silent_since.map_or(Duration::ZERO, |since| now.since(since));
        let probed = selection.answered.is_some() && silence < PROBED;
        let patience = if probed { DEAD } else { DEAD_UNPROBED };
        let heard = self.device.rx_seen;
        let traffic = heard.map_or(Time::ZERO, |at| at + patience);
        let pong = silent_since.map_or(now + DEAD_UNPROBED, |since| since + DEAD);
        traffic.max(pong).max(selection.since + DEAD)
    }
}
