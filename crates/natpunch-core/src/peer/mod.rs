//! One peer: its candidates, the rounds of probing, the path in use.
//!
//! A path is *proven* when our ping was answered and the peer says that its own was. Of each pair,
//! the node with the lower public key decides (it is *controlling*, RFC 8445): it nominates a
//! proven path, and the other follows once that path is proven on its side too, so both always aim
//! at each other and neither flaps. Then WireGuard's handshake is checked. Only the controlling
//! side starts a first handshake: two WireGuard nodes that initiate at the same moment discard each
//! other's answer and lose five seconds.

mod device;
mod meeting;
mod plain;
mod probing;
mod relaying;
mod report;
mod round;
mod succession;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use natpunch_types::{
    Candidate, CandidateKind, InstanceName, Origin, PeerKey, Rate, RateBudget, RelayPolicy, Route,
};

use crate::burst::Burst;
use crate::candidates::{Entry, Learned, Offer, Pending, Table};
use crate::env::Env;
use crate::keys::PairKeys;
use crate::path;
use crate::record::Contents;
use crate::{Command, EndpointReason, Event, PeerSpec, Time};

use device::DeviceView;
use meeting::Meeting;
use plain::PlainTries;
use probing::Remote;
use relaying::Retreat;
use round::Round;

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
/// The controlled side first waits for WireGuard's handshake to arrive by itself, which sets the
/// endpoint too ...
const DEFER: Duration = Duration::from_millis(250);
/// ... and if none came some time after that, starts one: the first was lost.
const DEFER_KICK: Duration = Duration::from_millis(750);
/// A path in use whose pings go unanswered for this long, while WireGuard hears nothing either, is
/// lost.
const DEAD: Duration = Duration::from_secs(4);
/// For this long after its last answer, a silent peer's natpunch is not taken to be off.
const PROBED: Duration = Duration::from_secs(20);
/// The same where the peer's natpunch is silent and WireGuard's own traffic is all there is to see.
const DEAD_UNPROBED: Duration = Duration::from_secs(180);
/// A path that WireGuard roamed to by itself is kept at least this long.
const ROAM_DWELL: Duration = Duration::from_secs(15);
/// Nominations sent before the peer noticed that we roamed are ignored.
const ROAM_DEAF: Duration = Duration::from_secs(2);
/// A doubted path has this long (or three round trips) to answer.
const DOUBT: Duration = Duration::from_millis(300);

/// Pings to one peer's unproven places: at most this many at once, and this many per second in the
/// long run.
const MAX_CHECKS: u64 = 100;
const CHECKS_PER_SECOND: u64 = 10;
/// The same for answers to pings that may be replays: enough for a peer that has restarted and
/// pings all our addresses.
const MAX_UNSURE: u64 = 32;
const UNSURE_PER_SECOND: u64 = 8;

/// The path that WireGuard is told to use.
#[derive(Debug)]
struct Selection {
    address: SocketAddr,
    since: Time,
    check: Check,
    /// Last pong on it.
    answered: Option<Time>,
    /// Since when it has to prove itself anew, because something moved.
    doubted: Option<Time>,
    lost: bool,
    /// WireGuard chose it by itself.
    roamed: bool,
    /// It was in use before we started.
    adopted: bool,
    /// It took the place of a path through a relay.
    from_relay: bool,
    /// How often WireGuard had to be brought back to it.
    restored: u32,
}

/// Whether WireGuard itself works on the path in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    /// Its handshake should arrive from the peer by itself.
    Deferred {
        until: Time,
    },
    /// Its endpoint was set.
    Running {
        tries: u32,
        deadline: Time,
    },
    Passed,
}

/// The newest sealed record, whether its candidates may be used or not.
struct Received {
    counter: u64,
    expires: Time,
    /// Who brought it last.
    origin: InstanceName,
    candidates: Vec<(CandidateKind, SocketAddr)>,
}

/// One peer's state.
pub(crate) struct Peer {
    pub(crate) spec: PeerSpec,
    /// `None` if the peer's public key is unusable.
    pub(crate) keys: Option<PairKeys>,
    controlling: bool,
    table: Table,
    pending: Pending,
    remote: Option<Remote>,
    sequence: u64,
    round: Round,
    /// Pings to places that are not in use.
    checks: RateBudget,
    /// Answers to what may be a replay.
    unsure: RateBudget,
    device: DeviceView,
    selection: Option<Selection>,
    nominated: Option<SocketAddr>,
    /// The path that the peer has chosen, as it last said.
    peer_uses: Option<SocketAddr>,
    retreat: Retreat,
    /// Some path without a relay has worked.
    had_direct: bool,
    deaf_until: Time,
    sign_of_life_after: Time,
    seen_as: Option<SocketAddr>,
    record: Option<Received>,
    plain: PlainTries,
    meeting: Meeting,
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
            controlling: *own < spec.key,
            spec,
            keys,
            table: Table::default(),
            pending: Pending::default(),
            remote: None,
            sequence: 0,
            round: Round::default(),
            checks: RateBudget::new(Rate::per_second(CHECKS_PER_SECOND, MAX_CHECKS)),
            unsure: RateBudget::new(Rate::per_second(UNSURE_PER_SECOND, MAX_UNSURE)),
            device: DeviceView::default(),
            selection: None,
            nominated: None,
            peer_uses: None,
            retreat: Retreat::default(),
            had_direct: false,
            deaf_until: now,
            sign_of_life_after: now,
            seen_as: None,
            record: None,
            plain: PlainTries::default(),
            meeting: Meeting::default(),
        };
        peer.start_round(env, now);
        peer
    }

    /// Takes over what a reload leaves of the peer that was here before. Where the keys are the
    /// same, nobody else tells it again: discovery has handed the record over, and the other side
    /// may have changed nothing.
    pub(crate) fn inherit(&mut self, predecessor: Self, env: &mut Env, now: Time) {
        let pair = |peer: &Self| peer.keys.as_ref().map(|keys| keys.pair_tag);
        if pair(self) == pair(&predecessor) {
            // Else the peer would take our probes for replays of this run, and we replays of its
            // for new.
            (self.sequence, self.remote) = (predecessor.sequence, predecessor.remote);
            let mut table = predecessor.table;
            // What WireGuard uses is adopted again if it is alive.
            table.restrict(|address, kind, origin| {
                *origin != Origin::WireGuard && self.permits(address, kind, origin)
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

    fn probes(&self) -> bool {
        self.spec.managed && self.keys.is_some()
    }

    /// The address in use, which is never forgotten.
    fn keep(&self) -> Option<SocketAddr> {
        self.selection
            .as_ref()
            .map(|selection| selection.address)
            .or(self.device.endpoint)
    }

    fn is_selected(&self, address: SocketAddr) -> bool {
        self.selection
            .as_ref()
            .is_some_and(|selection| selection.address == address)
    }

    /// WireGuard works, as far as can be seen.
    pub(crate) fn is_connected(&self, now: Time) -> bool {
        if self.probes() {
            self.selection
                .as_ref()
                .is_some_and(|selection| selection.check == Check::Passed && !selection.lost)
        } else {
            self.device.is_live(now) || self.device.is_idle(now)
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
        // Only an authenticated packet makes a candidate peer-reflexive, and that is seen here, not
        // by discovery.
        let kind = match candidate.kind {
            CandidateKind::PeerReflexive => CandidateKind::Reflexive,
            kind => kind,
        };
        let (origin, expires) = (from.clone().into(), now + candidate.lifetime);
        self.learn(candidate.address, kind, &origin, expires, false, env, now);
        self.decide(env, now);
    }

    /// A sealed record for which this peer's tag was found.
    pub(crate) fn handle_record(
        &mut self,
        origin: &InstanceName,
        blob: &[u8],
        env: &mut Env,
        now: Time,
    ) {
        let Some(contents) = self
            .keys
            .as_ref()
            .and_then(|keys| Contents::open(&keys.inbound, blob))
        else {
            return;
        };
        let Contents {
            counter,
            lifetime,
            candidates,
        } = contents;
        let known = self
            .record
            .as_ref()
            .filter(|known| counter <= known.counter);
        let expires = match known {
            // The same record through another store, or read again: its lifetime still counts from
            // its first receipt.
            Some(known) if counter == known.counter => known.expires,
            Some(_) => return,
            None => now + lifetime,
        };
        let is_news = known.is_none();
        if is_news {
            self.table.withdraw_recorded();
        }
        if expires <= now {
            return;
        }
        self.take_record(
            Received {
                counter,
                expires,
                origin: origin.clone(),
                candidates,
            },
            env,
            now,
        );
        self.table.expire(self.keep(), now);
        if is_news {
            self.meet(env, now);
        }
        self.decide(env, now);
    }

    fn take_record(&mut self, record: Received, env: &mut Env, now: Time) {
        // A plain peer has none; what was left before it became one is for its successor.
        if self.spec.managed {
            let origin = Origin::Discovery(record.origin.clone());
            for (kind, address) in &record.candidates {
                self.learn(*address, *kind, &origin, record.expires, true, env, now);
            }
        }
        self.record = Some(record);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one candidate")]
    fn learn(
        &mut self,
        address: SocketAddr,
        kind: CandidateKind,
        origin: &Origin,
        expires: Time,
        recorded: bool,
        env: &mut Env,
        now: Time,
    ) {
        let Ok(address) = env.admit(address) else {
            return;
        };
        let offer = Offer {
            address,
            kind: self.kind_seen(address, kind, env),
            origin,
            expires,
            recorded,
        };
        let kind = offer.kind;
        // A router is a peer only if the peer says so.
        if env.local.is_router(address.ip()) && !offer.is_sure() && !offer.is_stated() {
            return;
        }
        if !self.permits(address, kind, origin) {
            return;
        }
        if kind == CandidateKind::Relay {
            env.note_relay(address.ip());
        }
        let keep = self.keep();
        if self.table.learn(offer, keep, now) != Learned::New {
            // Said anew of a relay: a side is bound that was not when it was probed last.
            let unproven = |entry: &Entry| entry.is_relay() && !entry.is_proven(now);
            if self.probes()
                && kind == CandidateKind::Relay
                && self.table.get(&address).is_some_and(unproven)
            {
                self.start_burst(address, Burst::Direct, now);
            }
            return;
        }
        let kind = self.table.get(&address).map_or(kind, |entry| entry.kind);
        env.out.event(Event::CandidateLearned {
            peer: self.spec.key,
            address,
            kind,
            origin: origin.clone(),
        });
        if self.probes() {
            self.start_burst(address, self.first_burst(address, env, now), now);
            self.on_new_candidate(now);
            self.ask_to_meet(env, now);
        } else {
            self.plain.on_new_candidate();
        }
    }

    /// How a place was found, in truth: what comes from a host of relays comes through a relay,
    /// unless the peer says that the address is its own.
    fn kind_seen(&self, address: SocketAddr, kind: CandidateKind, env: &Env) -> CandidateKind {
        let unknown = kind == CandidateKind::PeerReflexive && self.table.get(&address).is_none();
        let relayed =
            unknown && env.is_host_of_relays(address.ip()) && self.spec.relay != RelayPolicy::Never;
        if relayed { CandidateKind::Relay } else { kind }
    }

    /// The kernel's word on the way to an address.
    pub(crate) fn handle_route(&mut self, ip: IpAddr, route: Route, env: &mut Env, now: Time) {
        let same_site = self.table.same_site;
        let mut opened = Vec::new();
        for (address, entry) in self.table.iter_mut().filter(|(a, _)| a.ip() == ip) {
            let was_barred = entry.is_barred();
            entry.route = Some(route);
            entry.route_asked = true;
            if entry.is_barred() {
                entry.next_ping = None;
            } else if was_barred {
                opened.push(*address);
            } else if entry.last_ping.is_none() {
                entry.next_ping = entry.next_ping.map(|_| now);
            }
            if entry.is_hopeless(*address, same_site) && entry.burst == Burst::Direct {
                entry.burst = Burst::Sparse;
            }
        }
        for address in opened {
            self.start_burst(address, Burst::Direct, now);
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
        // What found no place before, or was of a family that this host did not have, may be the
        // best now.
        if let Some(record) = self.record.take() {
            self.take_record(record, env, now);
        }
        self.doubt(now);
        self.round.attempt = 0;
        self.plain.on_new_candidate();
        self.start_round(env, now);
    }

    /// The path in use has to answer again soon or make way for one that does.
    fn doubt(&mut self, now: Time) {
        let Some(selection) = self
            .selection
            .as_mut()
            .filter(|selection| selection.doubted.is_none())
        else {
            return;
        };
        selection.doubted = Some(now);
        let address = selection.address;
        self.start_burst(address, Burst::Direct, now);
    }

    /// When a doubted path that has not answered loses its privilege.
    fn doubt_ends(&self) -> Option<Time> {
        let selection = self.selection.as_ref()?;
        let rtt = self.rtt(&selection.address);
        selection.doubted.map(|since| since + DOUBT.max(rtt * 3))
    }

    /// How long WireGuard has to show that it works at an address.
    fn patience(&self, address: SocketAddr, soon: bool) -> Duration {
        if soon {
            CHECK_SOON.max(self.rtt(&address) * 3)
        } else {
            CHECK
        }
    }

    /// The round trip to an address as far as it is known, else zero.
    fn rtt(&self, address: &SocketAddr) -> Duration {
        self.table
            .get(address)
            .and_then(|entry| entry.rtt)
            .unwrap_or_default()
    }

    /// Everything that is due.
    pub(crate) fn handle_timeout(&mut self, env: &mut Env, now: Time) {
        self.table.expire(self.keep(), now);
        self.leave_barred(env, now);
        if self.probes() {
            self.fire(now);
            self.ask_others(env, now);
            self.check_selection(env, now);
            self.advance_round(env, now);
            self.send_beacons(env, now);
            self.send_pings(env, now);
        }
        self.decide(env, now);
    }

    /// When something is due next.
    pub(crate) fn next_timeout(&self, now: Time) -> Option<Time> {
        let mut next = self.table.next_expiry();
        let mut at = |time: Option<Time>| next = [next, time].into_iter().flatten().min();
        if !self.probes() {
            at(self.plain_timeout(now));
            return next;
        }
        at(self
            .table
            .iter()
            .filter_map(|(_, entry)| entry.next_ping)
            .min());
        at(self.round.next_timeout());
        at(self.meeting.fires_at());
        at(self.relaying_timeout(now));
        at(self.doubt_ends().filter(|ends| *ends > now));
        if let Some(selection) = &self.selection {
            at(match selection.check {
                Check::Deferred { until } => Some(until),
                Check::Running { deadline, .. } => Some(deadline),
                Check::Passed => (!selection.lost).then(|| self.dead_at(selection, now)),
            });
        }
        next
    }

    /// Chooses the path to use, now that something has changed.
    fn decide(&mut self, env: &mut Env, now: Time) {
        self.table
            .note_site(|address| env.local.shares_public_ip(address.ip()));
        if !env.device_seen {
            return;
        }
        if !self.probes() {
            self.decide_plain(env, now);
        } else if let Some((address, reason)) = if self.controlling {
            self.choose(now)
        } else {
            self.follow(now)
        } {
            self.select(address, reason, env, now);
        }
    }

    /// The controlling side's choice, if it differs from the path in use.
    fn choose(&self, now: Time) -> Option<(SocketAddr, EndpointReason)> {
        let proven = || self.table.iter().filter(|(_, entry)| entry.is_usable(now));
        let Some(selection) = &self.selection else {
            // Where there is nothing to lose, a relay's pong is enough, unless a direct path is as
            // far.
            let direct = self
                .table
                .iter()
                .any(|(_, entry)| !entry.is_relay() && entry.is_answered(now));
            let early = !direct && !self.device.is_live(now);
            let usable = self.table.iter().filter(|(_, entry)| {
                !entry.is_blocked(now)
                    && !entry.is_barred()
                    && (entry.is_proven(now) || early && entry.is_relay() && entry.is_answered(now))
            });
            return Some((self.best(usable)?, EndpointReason::FirstPath));
        };
        let silent = self.silent_since(now);
        let doubt_over = self.doubt_ends().is_some_and(|ends| ends <= now);
        let barred = self
            .table
            .get(&selection.address)
            .is_some_and(Entry::is_barred);
        if selection.lost || doubt_over || silent.is_some() || barred {
            let since = selection.doubted.or(silent).unwrap_or(Time::ZERO);
            let fresh = proven().filter(|(_, entry)| entry.is_answered_since(since));
            let best = self.best(fresh)?;
            return (selection.lost || best != selection.address)
                .then_some((best, EndpointReason::PathLost));
        }
        let on_relay = self.is_relay(&selection.address) && self.spec.relay != RelayPolicy::Only;
        if on_relay {
            // Anything else is better, as soon as it may be tried.
            let may_leave =
                now.since(selection.since) >= relaying::STAY && now >= self.retreat.until;
            let direct = proven().filter(|(_, entry)| !entry.is_relay() && may_leave);
            if let Some(best) = self.best(direct) {
                return Some((best, EndpointReason::BetterPath));
            }
        }
        let dwell = match selection.roamed {
            true => ROAM_DWELL,
            false if self.is_relay(&selection.address) => relaying::STAY,
            false => Duration::ZERO,
        };
        if selection.check != Check::Passed || now.since(selection.since) < dwell {
            return None;
        }
        let better = proven()
            .filter(|(address, entry)| {
                **address != selection.address && entry.wins >= path::SAMPLES
            })
            .filter(|(_, entry)| !on_relay || entry.is_relay());
        Some((self.best(better)?, EndpointReason::BetterPath))
    }

    /// The best of these paths.
    fn best<'a>(
        &self,
        paths: impl Iterator<Item = (&'a SocketAddr, &'a Entry)>,
    ) -> Option<SocketAddr> {
        let relays = self.spec.relays.as_deref();
        paths
            .min_by_key(|(address, entry)| entry.rank(**address, self.table.same_site, relays))
            .map(|(address, _)| *address)
    }

    /// The controlled side follows the last nomination, once proven here too.
    fn follow(&self, now: Time) -> Option<(SocketAddr, EndpointReason)> {
        let nominated = self.nominated?;
        let entry = self.table.get(&nominated)?;
        let settled = self
            .selection
            .as_ref()
            .is_some_and(|s| s.address == nominated && !s.lost);
        (!settled && entry.is_usable(now)).then_some((nominated, EndpointReason::Nominated))
    }

    fn select(&mut self, address: SocketAddr, reason: EndpointReason, env: &mut Env, now: Time) {
        let from_relay = self.leave_for(address, now);
        let lost = self
            .selection
            .as_ref()
            .is_some_and(|selection| selection.lost);
        let live = self.device.is_live(now) && !lost;
        let already = self.device.endpoint == Some(address);
        self.device.mark();
        // What was shown on another path is no sign on this one.
        self.sign_of_life_after = now;
        // Where WireGuard has worked before and probes work again, it is left alone, unless it
        // needs a handshake: of two that cross, as both sides' would now, neither comes to
        // anything.
        let check = if already && self.device.needs_no_handshake(now) {
            Check::Passed
        } else if self.controlling || live {
            self.set_endpoint(address, true, reason, env, now);
            let soon = from_relay || self.is_relay(&address);
            Check::Running {
                tries: 1,
                deadline: now + self.patience(address, soon),
            }
        } else {
            Check::Deferred {
                until: now + DEFER.max(self.rtt(&address) * 2 + DEFER / 5),
            }
        };
        self.selection = Some(Selection {
            address,
            since: now,
            check,
            answered: Some(now),
            doubted: None,
            lost: false,
            roamed: false,
            adopted: false,
            from_relay,
            restored: 0,
        });
        for (_, entry) in self.table.iter_mut() {
            entry.wins = 0;
        }
        env.out.event(Event::PathSelected {
            peer: self.spec.key,
            address,
            reason,
        });
        if check == Check::Passed {
            self.on_connected(address, env);
        }
        self.ping_now(address, env, now);
    }

    fn on_connected(&mut self, address: SocketAddr, env: &mut Env) {
        if !self.is_relay(&address) || self.spec.relay == RelayPolicy::Only {
            self.round.rest();
            self.had_direct |= self.spec.relay != RelayPolicy::Only;
        }
        if let Some(entry) = self.table.get_mut(&address) {
            entry.unblock();
        }
        env.out.event(Event::Connected {
            peer: self.spec.key,
            address,
        });
    }

    fn set_endpoint(
        &mut self,
        endpoint: SocketAddr,
        kick: bool,
        reason: EndpointReason,
        env: &mut Env,
        now: Time,
    ) {
        self.device.setting = Some((endpoint, now));
        let peer = self.spec.key;
        env.out.set_endpoint(
            peer,
            Command::SetEndpoint {
                peer,
                endpoint,
                kick,
                reason,
            },
        );
    }

    /// Follows up on what WireGuard made of the path in use.
    fn check_selection(&mut self, env: &mut Env, now: Time) {
        let Some(selection) = &mut self.selection else {
            return;
        };
        let address = selection.address;
        match selection.check {
            Check::Deferred { until } if until <= now => {
                selection.check = Check::Running {
                    tries: 0,
                    deadline: now + DEFER_KICK,
                };
                if self.device.endpoint != Some(address) {
                    self.set_endpoint(address, false, EndpointReason::Nominated, env, now);
                }
            }
            Check::Running { tries, deadline } if deadline <= now => {
                let alone = !self
                    .table
                    .iter()
                    .any(|(other, entry)| *other != address && entry.is_usable(now));
                let from_relay = selection.from_relay;
                let limit = match alone {
                    true => CHECK_TRIES_ALONE,
                    false if from_relay => CHECK_TRIES + 1,
                    false => CHECK_TRIES,
                };
                if tries < limit {
                    let deadline = now
                        + self.patience(address, from_relay || !alone && self.is_relay(&address));
                    self.selection.iter_mut().for_each(|s| {
                        s.check = Check::Running {
                            tries: tries + 1,
                            deadline,
                        }
                    });
                    self.set_endpoint(address, true, EndpointReason::Retry, env, now);
                } else {
                    self.block(address, env, now);
                }
            }
            Check::Passed if !selection.lost => {
                let Some(selection) = &self.selection else {
                    return;
                };
                if self.dead_at(selection, now) <= now {
                    self.lose(env, now);
                }
            }
            _ => {}
        }
    }

    /// Probes pass, WireGuard does not: on to the next path.
    fn block(&mut self, address: SocketAddr, env: &mut Env, now: Time) {
        // Where WireGuard passes nowhere, no path is to blame.
        let nowhere = self
            .table
            .iter()
            .any(|(other, entry)| *other != address && entry.is_blocked(now));
        let until = self
            .table
            .get_mut(&address)
            .map_or(now, |entry| entry.block(nowhere, now));
        self.leave_deaf(address, env);
        // The other side may have noticed nothing, and decide for the pair.
        self.ping_now(address, env, now);
        if !self.is_relay(&address) {
            self.round.be_silent_until(until);
        }
    }

    /// The path in use is left for that WireGuard does not pass there.
    fn leave_deaf(&mut self, address: SocketAddr, env: &mut Env) {
        self.selection = None;
        self.nominated = None;
        env.out.event(Event::WireGuardBlocked {
            peer: self.spec.key,
            address,
        });
    }

    /// The path in use no longer shows any sign of life.
    fn lose(&mut self, env: &mut Env, now: Time) {
        let Some(selection) = &mut self.selection else {
            return;
        };
        selection.lost = true;
        let address = selection.address;
        env.out.event(Event::PathLost {
            peer: self.spec.key,
            address,
        });
        let silent = self
            .table
            .get(&address)
            .and_then(|entry| entry.unanswered_since)
            .unwrap_or(now);
        for (_, entry) in self
            .table
            .iter_mut()
            .filter(|(_, entry)| !entry.is_answered_since(silent))
        {
            entry.forget_proof();
        }
        self.nominated = None;
        self.round.attempt = 0;
        self.start_round(env, now);
    }

    /// When the path in use counts as lost unless it shows a sign of life.
    fn dead_at(&self, selection: &Selection, now: Time) -> Time {
        let probed = selection.answered.is_some_and(|at| now.since(at) < PROBED);
        let patience = if probed { DEAD } else { DEAD_UNPROBED };
        let traffic = self.device.rx_seen.map_or(Time::ZERO, |at| at + patience);
        let silent = self
            .table
            .get(&selection.address)
            .and_then(|entry| entry.unanswered_since);
        let pong = silent.map_or(now + DEAD_UNPROBED, |since| since + DEAD);
        traffic.max(pong).max(selection.since + DEAD)
    }
}
