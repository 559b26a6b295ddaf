//! Pings and pongs of one peer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use natpunch_types::{CandidateKind, Origin, RelayPolicy, ReplayWindow};
use rand_core::RngCore as _;

use crate::burst::Burst;
use crate::candidates::{Entry, PendingPing};
use crate::env::Env;
use crate::probe::{Kind, Probe};
use crate::{EndpointReason, Event, Time, Transmit};

use super::round::Phase;
use super::{Check, LEARNED_LIFETIME, Peer};

/// So many of the likeliest places get a full burst, which the budget of one peer is enough for.
const FULL_BURSTS: usize = 12;
/// How long a first ping waits for the kernel's word on the way to its destination.
const ROUTE: Duration = Duration::from_millis(50);
/// Ping interval on the path in use; half of the shortest common mapping timer (10 s).
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Ping interval, or one and a half round trips, while few are unanswered ...
const HURRY: Duration = Duration::from_millis(400);
const HURRIES: u32 = 7;
/// ... and then, for so many pings, after which the peer's natpunch is taken to be off.
const RETRY: Duration = Duration::from_secs(1);
const RETRIES: u32 = 14;
/// Ping interval when it is.
const SLOW: Duration = Duration::from_secs(10);
/// How often the relay that stands by is pinged: often enough that common NATs keep the mapping (30
/// s).
const WARM: Duration = Duration::from_secs(20);
/// How often a proven path that is not in use is looked at again.
const REEVALUATE: Duration = Duration::from_secs(60);
/// The same for one that was not proven, as long as another is in use.
const RETRY_UNPROVEN: Duration = Duration::from_secs(300);
/// A ping that is due this soon need not be triggered.
const SOON: Duration = Duration::from_millis(100);
/// Ping interval that keeps a hole open; with jitter still less than the shortest common mapping
/// timer (30 s).
pub(super) const HOLE: Duration = Duration::from_secs(22);
/// The peer's WireGuard is shown that ours is alive at most this often.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(2);
/// A ping that was not asked for restarts a finished burst at most this often.
const TRIGGER_EVERY: Duration = Duration::from_secs(5);

/// The peer's present run, and which of its pings were seen.
#[derive(Debug)]
pub(super) struct Remote {
    session: u64,
    seen: ReplayWindow<64>,
}

impl Remote {
    fn new(session: u64) -> Self {
        Self {
            session,
            seen: ReplayWindow::default(),
        }
    }
}

impl Peer {
    pub(super) fn start_burst(&mut self, address: SocketAddr, burst: Burst, now: Time) {
        let sparse = burst == Burst::Direct
            && !self.is_selected(address)
            && self.table.place(address) >= FULL_BURSTS;
        let same_site = self.table.same_site;
        if let Some(entry) = self.table.get_mut(&address) {
            let sparse = sparse || burst == Burst::Direct && entry.is_hopeless(address, same_site);
            let burst = if sparse { Burst::Sparse } else { burst };
            entry.burst = burst;
            entry.burst_started = now;
            entry.step = 0;
            entry.next_ping = Some(now);
        }
    }

    /// Sends the pings that are due, as far as the budget reaches.
    pub(super) fn send_pings(&mut self, env: &mut Env, now: Time) {
        let due = |next: Option<Time>| next.is_some_and(|at| at <= now);
        let mut addresses: Vec<SocketAddr> = self
            .table
            .iter()
            .filter(|(_, entry)| due(entry.next_ping))
            .map(|(address, _)| *address)
            .collect();
        // Of what the budgets allow, the likely ones get the most.
        addresses.sort_by_cached_key(|address| self.table.place(*address));
        for address in addresses {
            let selected = self.is_selected(address);
            let has_family = env.local.can_reach(address.ip());
            let Some(entry) = self.table.get_mut(&address) else {
                continue;
            };
            if !entry.route_asked && has_family {
                entry.route_asked = true;
                env.out.find_route(self.spec.key, address.ip());
                // The first one waits for the answer, so that nothing goes where it must not.
                if entry.route.is_none() || entry.is_barred() {
                    entry.next_ping = Some(now + ROUTE);
                    continue;
                }
            }
            if !selected && (entry.is_barred() || !has_family) {
                entry.next_ping = None;
                continue;
            }
            let exhausted = !selected && !self.checks.take(now);
            if exhausted || entry.is_blocked(now) {
                entry.next_ping = None;
            } else if env.pings.take(now) {
                self.send_ping(address, env, now);
            } else {
                let spread = Duration::from_millis(1 + u64::from(env.rng.next_u32() % 40));
                let room = env.pings.available_at().unwrap_or(now);
                entry.next_ping = Some(room.max(now) + spread);
            }
        }
    }

    /// A ping out of turn, within the budget, because there is news for the peer.
    pub(super) fn ping_now(&mut self, address: SocketAddr, env: &mut Env, now: Time) {
        if env.pings.take(now) {
            self.send_ping(address, env, now);
        } else if let Some(entry) = self.table.get_mut(&address) {
            let room = env.pings.available_at().unwrap_or(now);
            entry.next_ping = Some(room.max(now + Duration::from_millis(1)));
        }
    }

    fn send_ping(&mut self, address: SocketAddr, env: &mut Env, now: Time) {
        let Some(payload) = self.ping(address, env, now) else {
            return;
        };
        let ttl = self.table.get(&address).and_then(|entry| entry.ttl(now));
        env.out.transmit(Transmit {
            destination: address,
            source: None,
            ttl,
            payload,
        });
        let selected = self.is_selected(address);
        let settled = self.is_settled(now);
        let stands_by = self.standby(now) == Some(address);
        let Some(entry) = self.table.get_mut(&address) else {
            return;
        };
        entry.on_ping(now);
        // The next moment of the burst that is still to come; a ping out of turn takes the place of
        // the last due one.
        entry.step = entry
            .burst
            .due(now.since(entry.burst_started))
            .max(entry.step);
        entry.next_ping = entry
            .burst
            .offset(entry.step)
            .map(|offset| entry.burst_started + offset)
            .or_else(|| {
                let wait = match entry.unanswered {
                    0..=HURRIES if selected => {
                        RETRY.min(HURRY.max(entry.rtt.unwrap_or_default() * 3 / 2))
                    }
                    0..=RETRIES if selected => RETRY,
                    _ if selected => SLOW,
                    _ if stands_by => WARM,
                    _ => match (entry.is_proven(now), settled) {
                        (true, true) => REEVALUATE,
                        (true, false) if entry.is_relay() => REEVALUATE,
                        (true, false) => KEEPALIVE,
                        (false, true) => RETRY_UNPROVEN,
                        (false, false) if entry.keeps_hole => HOLE,
                        // The next round comes.
                        (false, false) => return None,
                    },
                };
                Some(now + env.jitter(wait))
            });
    }

    /// The bytes of a ping to an address, whose pong is awaited from now on.
    pub(super) fn ping(
        &mut self,
        destination: SocketAddr,
        env: &mut Env,
        now: Time,
    ) -> Option<Vec<u8>> {
        let mut transaction = [0; 12];
        env.rng.fill_bytes(&mut transaction);
        let mut probe = self.probe(Kind::Ping, destination, env, now);
        probe.transaction = transaction;
        if self.spec.relay != RelayPolicy::Only {
            probe.hosts = env.local.ping_hosts();
        }
        let payload = probe.seal(&self.keys.as_ref()?.outbound, &mut env.rng);
        self.pending.push(PendingPing {
            transaction,
            destination,
            sent: now,
        });
        Some(payload)
    }

    /// What every probe on a path tells.
    fn probe(&mut self, kind: Kind, address: SocketAddr, env: &Env, now: Time) -> Probe {
        self.sequence += 1;
        let in_use = self
            .selection
            .as_ref()
            .filter(|selection| selection.address == address && !selection.lost);
        Probe {
            kind,
            heard: self
                .table
                .get(&address)
                .is_some_and(|entry| entry.is_answered(now)),
            in_use: in_use.is_some(),
            checking: in_use.is_some_and(|selection| match selection.check {
                Check::Deferred { .. } => false,
                Check::Running { .. } => true,
                Check::Passed => self.is_deaf(now),
            }),
            unheard: self.device.has_heard_nothing(now),
            deaf: self
                .table
                .get(&address)
                .is_some_and(|entry| entry.is_deaf_here(now)),
            session: env.session,
            to_session: self.remote.as_ref().map_or(0, |remote| remote.session),
            sequence: self.sequence,
            transaction: [0; 12],
            observed: None,
            hosts: Vec::new(),
        }
    }

    /// A datagram that carries this peer's tag.
    pub(crate) fn handle_probe(
        &mut self,
        source: SocketAddr,
        destination: Option<IpAddr>,
        datagram: &[u8],
        env: &mut Env,
        now: Time,
    ) {
        if !self.probes() {
            return;
        }
        let Some(probe) = self
            .keys
            .as_ref()
            .and_then(|keys| Probe::open(&keys.inbound, datagram))
        else {
            return;
        };
        let Ok(source) = env.admit(source) else {
            return;
        };
        if self.spec.relay == RelayPolicy::Only && !self.is_relay(&source) {
            return;
        }
        // No answer: else the peer would take a way that is of no use here.
        if self.table.get(&source).is_some_and(Entry::is_barred) && !self.is_selected(source) {
            return;
        }
        match probe.kind {
            Kind::Ping => self.handle_ping(source, destination, &probe, env, now),
            Kind::Pong => self.handle_pong(source, &probe, env, now),
        }
        self.decide(env, now);
    }

    fn handle_ping(
        &mut self,
        source: SocketAddr,
        destination: Option<IpAddr>,
        ping: &Probe,
        env: &mut Env,
        now: Time,
    ) {
        // A ping of the peer's present run that names our session was made after we started.
        // Anything else may be a replay, from a forged source even.
        let knows_us = ping.to_session == env.session;
        let fresh = knows_us && {
            let remote = self.remote.get_or_insert_with(|| Remote::new(ping.session));
            if remote.session == ping.session && !remote.seen.take(ping.sequence) {
                return;
            }
            remote.session == ping.session
        };
        if !fresh && !self.unsure.take(now) || !env.pongs.take(now) {
            return;
        }
        if !fresh {
            // It gets one packet of its size, and nothing else changes: an answer, which tells an
            // honest peer our session, so that it is named in its next ping; and then a ping, whose
            // answer tells us the peer's.
            if !knows_us {
                self.send_pong(source, destination, ping, env, now);
            } else if let Some(payload) = self.ping(source, env, now) {
                env.out.transmit(Transmit {
                    destination: source,
                    source: None,
                    ttl: None,
                    payload,
                });
            }
            return;
        }
        let known = self.table.get(&source).is_some();
        self.learn_from_peer(source, CandidateKind::PeerReflexive, env, now);
        self.believe(source, ping, env, now);
        self.send_pong(source, destination, ping, env, now);
        for host in &ping.hosts {
            self.learn_from_peer(*host, CandidateKind::Host, env, now);
        }
        if !known {
            self.doubt(now);
        }
        self.trigger(source, now);
        self.send_pings(env, now);
    }

    fn send_pong(
        &mut self,
        destination: SocketAddr,
        pinged: Option<IpAddr>,
        ping: &Probe,
        env: &mut Env,
        now: Time,
    ) {
        let mut pong = self.probe(Kind::Pong, destination, env, now);
        pong.transaction = ping.transaction;
        // Which may be a later run of the peer than the one that we have heard from.
        pong.to_session = ping.session;
        pong.observed = Some(destination);
        let Some(keys) = &self.keys else { return };
        let payload = pong.seal(&keys.outbound, &mut env.rng);
        // Answer from the address that was pinged, unless that was a broadcast.
        let source = pinged.filter(|ip| env.local.is_own_ip(*ip));
        env.out.transmit(Transmit {
            destination,
            source,
            ttl: None,
            payload,
        });
    }

    fn handle_pong(&mut self, source: SocketAddr, pong: &Probe, env: &mut Env, now: Time) {
        if pong.to_session != env.session && pong.to_session != 0 {
            return;
        }
        let Some(ping) = self.pending.take(&pong.transaction, now) else {
            return;
        };
        // The transaction was random: this is the peer's present run.
        if self
            .remote
            .as_ref()
            .is_none_or(|remote| remote.session != pong.session)
        {
            if self.remote.is_some() {
                self.on_restart(env, now);
            }
            self.remote = Some(Remote::new(pong.session));
        }
        self.seen_as = pong.observed;
        if ping.destination != source {
            // The answer to a beacon, or from a peer with several addresses: a place to ask, not a
            // proof.
            self.learn_from_peer(source, CandidateKind::PeerReflexive, env, now);
            self.trigger(source, now);
            self.send_pings(env, now);
            return;
        }
        if self.table.get(&source).is_none() {
            // Only a ping of a new run was seen from there so far.
            self.learn_from_peer(source, CandidateKind::PeerReflexive, env, now);
        }
        let rtt = now.since(ping.sent);
        let connected = self.is_connected(now);
        let relays = self.spec.relays.as_deref();
        let same_site = self.table.same_site;
        let current = self
            .selection
            .as_ref()
            .filter(|selection| selection.address != source)
            .and_then(|selection| {
                Some(
                    self.table
                        .get(&selection.address)?
                        .rank(selection.address, same_site, relays),
                )
            });
        let Some(entry) = self.table.get_mut(&source) else {
            return;
        };
        let news = !entry.is_answered(now);
        entry.on_pong(rtt, now);
        if let Some(current) = current {
            let rank = entry.rank(source, same_site, relays);
            let wins = rank.is_worth_leaving(&current);
            entry.wins = if wins {
                entry.wins.saturating_add(1)
            } else {
                0
            };
        }
        let was_proven = entry.is_proven(now);
        self.believe(source, pong, env, now);
        if let Some(selection) = self
            .selection
            .as_mut()
            .filter(|selection| selection.address == source)
        {
            selection.answered = Some(now);
            selection.doubted = None;
        }
        let selected = self.is_selected(source);
        let Some(entry) = self.table.get_mut(&source) else {
            return;
        };
        if selected && connected {
            entry.step = usize::MAX;
            entry.next_ping = Some(now + env.jitter(KEEPALIVE));
        }
        if !was_proven && entry.is_proven(now) {
            env.out.event(Event::PathProven {
                peer: self.spec.key,
                address: source,
                rtt,
            });
        }
        // The choice first, so that this ping carries the nomination, unless it has sent one
        // itself.
        self.decide(env, now);
        if news
            && self
                .table
                .get(&source)
                .is_some_and(|entry| entry.last_ping != Some(now))
        {
            self.ping_now(source, env, now);
        }
    }

    /// Flags of a fresh message.
    fn believe(&mut self, source: SocketAddr, probe: &Probe, env: &mut Env, now: Time) {
        if let Some(entry) = self.table.get_mut(&source) {
            entry.on_heard(probe.heard, now);
        }
        self.heed_deafness(source, probe.deaf, env, now);
        if probe.unheard {
            self.heed_unheard(source, env, now);
        }
        if probe.in_use {
            self.peer_uses = Some(source);
        } else if self.peer_uses == Some(source) {
            self.peer_uses = None;
        }
        if probe.in_use && !self.controlling && now >= self.deaf_until {
            self.nominated = Some(source);
        }
        // Without keys it would be a handshake, and cross the one that the peer has just begun:
        // both come to nothing.
        let can_answer = self.has_live_session(now) && self.device.has_keys(now);
        let in_use = self.is_selected(source) && self.device.endpoint == Some(source);
        if probe.checking && in_use && can_answer && now >= self.sign_of_life_after {
            self.sign_of_life_after = now + SIGN_OF_LIFE_EVERY;
            self.set_endpoint(source, true, EndpointReason::Asked, env, now);
        }
    }

    fn learn_from_peer(
        &mut self,
        address: SocketAddr,
        kind: CandidateKind,
        env: &mut Env,
        now: Time,
    ) {
        self.learn(
            address,
            kind,
            &Origin::Peer,
            now + LEARNED_LIFETIME,
            false,
            env,
            now,
        );
    }

    /// A packet came from there: ask at once, since its NAT is open now.
    fn trigger(&mut self, address: SocketAddr, now: Time) {
        let Some(entry) = self.table.get_mut(&address) else {
            return;
        };
        let soon = entry.next_ping.is_some_and(|next| next <= now + SOON);
        let just_asked = entry.last_ping.is_some_and(|at| now.since(at) < SOON);
        if entry.is_proven(now) || soon {
            return;
        }
        // What came in shows that openers are no longer needed.
        let pause = if entry.burst == Burst::Direct {
            TRIGGER_EVERY
        } else {
            Duration::ZERO
        };
        if now.since(entry.burst_started) >= pause {
            self.start_burst(address, Burst::Direct, now);
        } else if !just_asked {
            entry.next_ping = Some(now);
        }
    }

    /// The peer runs anew and has heard nothing yet.
    fn on_restart(&mut self, env: &mut Env, now: Time) {
        for (_, entry) in self.table.iter_mut() {
            entry.forget_heard();
        }
        self.nominated = None;
        self.peer_uses = None;
        if matches!(self.round.phase, Phase::Silent { .. }) {
            self.round.attempt = 0;
            self.start_round(env, now);
        }
    }
}
