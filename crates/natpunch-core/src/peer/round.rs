//! Rounds of probing: a burst to every candidate at once, then silence that grows from round to
//! round.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use natpunch_types::{PathId, Travel, is_mesh_lan};

use crate::burst::Burst;
use crate::candidates::Entry;
use crate::env::Env;
use crate::{Event, PacketKind, Time, Transmit};

use super::vigilance::HOLE;
use super::{Connection, Peer};

/// Silence after each fruitless round; the last one repeats. 35 s is longer than the 30 s for which
/// a Linux router remembers a packet that it did not expect, and which would spoil the next try.
const SILENCE: [Duration; 7] = [
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(35),
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(15 * 60),
    Duration::from_secs(60 * 60),
];
/// A relay is in use and no search for a direct path is under way: one begins after this.
const SEARCH_AFTER: Duration = Duration::from_secs(2);
/// In silences at least this long ...
const LONG_SILENCE: Duration = Duration::from_secs(60);
/// ... this many of the newest candidates are still pinged, often enough that our NAT stays open
/// for them: the first ping of a peer that comes back after hours then gets through. This costs as
/// much as WireGuard's own keepalive.
const HOLES: usize = 4;
/// From this fruitless round on the peer is said to be unreachable.
const UNREACHABLE_AFTER: usize = 3;
/// A new candidate restarts the ladder of silences, but not more often than this: otherwise a peer
/// whose address changes all the time would be probed all the time.
const RESET_EVERY: Duration = Duration::from_secs(60);
/// Beacons of a round.
const BEACONS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(140),
    Duration::from_millis(620),
];

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    /// No path is looked for, or there is no candidate.
    #[default]
    Resting,
    Probing {
        until: Time,
    },
    Silent {
        until: Time,
    },
}

/// Where the search for a path is.
#[derive(Debug, Default)]
pub(super) struct Round {
    phase: Phase,
    /// Fruitless rounds in a row.
    attempt: usize,
    last_reset: Option<Time>,
    started: Time,
    beacons: usize,
}

impl Round {
    /// A path is found.
    pub(super) fn rest(&mut self) {
        self.phase = Phase::Resting;
        self.attempt = 0;
        self.beacons = BEACONS.len();
    }

    /// Probing is of no use before this.
    pub(super) fn be_silent_until(&mut self, until: Time) {
        self.phase = Phase::Silent { until };
        self.attempt = self.attempt.max(UNREACHABLE_AFTER);
        self.beacons = BEACONS.len();
    }

    /// The next round is a first one again.
    pub(super) fn start_over(&mut self) {
        self.attempt = 0;
    }

    pub(super) fn is_unreachable(&self) -> bool {
        self.attempt >= UNREACHABLE_AFTER
    }

    pub(super) fn is_probing(&self) -> bool {
        matches!(self.phase, Phase::Probing { .. })
    }

    pub(super) fn is_silent(&self) -> bool {
        matches!(self.phase, Phase::Silent { .. })
    }

    /// When the silence ends, if there is one.
    pub(super) fn silent_until(&self) -> Option<Time> {
        self.ends_at().filter(|_| self.is_silent())
    }

    /// When the next round begins, of a peer that is held to be unreachable.
    pub(super) fn retry_at(&self) -> Option<Time> {
        match self.phase {
            Phase::Silent { until } if self.is_unreachable() => Some(until),
            Phase::Resting | Phase::Probing { .. } | Phase::Silent { .. } => None,
        }
    }

    /// When the round or the silence ends.
    pub(super) fn ends_at(&self) -> Option<Time> {
        match self.phase {
            Phase::Resting => None,
            Phase::Probing { until } | Phase::Silent { until } => Some(until),
        }
    }

    pub(super) fn next_beacon(&self) -> Option<Time> {
        let offset = BEACONS.get(self.beacons)?;
        Some(self.started + *offset)
    }

    /// Begins a round. It has openers only after a silence in which routers forgot the packets that
    /// spoiled the earlier rounds: before that, openers gain nothing.
    fn begin(&mut self, behind_one_nat: bool, now: Time) -> Option<Burst> {
        let opening = self.is_unreachable().then_some(Burst::Opening);
        self.phase = Phase::Probing {
            until: now + opening.unwrap_or_default().duration(),
        };
        self.started = now;
        let beacons = self.attempt == 0 || behind_one_nat;
        self.beacons = if beacons { 0 } else { BEACONS.len() };
        opening
    }

    /// The burst to a new candidate has begun: it is a round of its own, and begins a new ladder.
    pub(super) fn on_new_candidate(&mut self, now: Time) {
        let resets = self
            .last_reset
            .is_none_or(|last| now.since(last) >= RESET_EVERY);
        if resets {
            self.last_reset = Some(now);
            self.attempt = 0;
        }
        if resets || self.phase == Phase::Resting {
            self.phase = Phase::Probing {
                until: now + Burst::Direct.duration(),
            };
        }
    }

    /// A burst has begun within the round: its answers are awaited.
    pub(super) fn on_burst(&mut self, burst: Burst, now: Time) {
        if let Phase::Probing { until } = &mut self.phase {
            *until = (*until).max(now + burst.duration());
        }
    }

    /// A ping of a burst has to wait for the node's budget, so that the burst ends then. The round
    /// is not over before each candidate had its share: until then nothing is known of the others.
    pub(super) fn on_held_back(&mut self, burst_ends: Time, now: Time) {
        if let Phase::Probing { until } = &mut self.phase
            && now < *until
        {
            *until = (*until).max(burst_ends);
        }
    }

    /// The search goes on.
    pub(super) fn search_on(&mut self, now: Time) {
        self.phase = Phase::Silent {
            until: now + SEARCH_AFTER,
        };
    }

    /// Whether a round may begin before its turn: the last one is over and was long ago.
    fn may_begin_early(&self, now: Time) -> bool {
        self.is_silent() && now.since(self.started) >= RESET_EVERY
    }

    /// The round was fruitless: silence, for so long.
    fn fail(&mut self, had_direct: bool, now: Time) -> Duration {
        let rung = SILENCE.get(self.attempt).or(SILENCE.last());
        let mut silence = rung.copied().unwrap_or_default();
        if had_direct {
            // A direct path has worked before, so one is likely to work again.
            silence = silence.min(LONG_SILENCE);
        }
        self.attempt += 1;
        self.phase = Phase::Silent {
            until: now + silence,
        };
        silence
    }
}

/// Only NATs are spoilt by early packets: IPv6 firewalls and LANs are not.
pub(super) fn may_be_poisoned(path: PathId, entry: &Entry) -> bool {
    path.remote.is_ipv4() && !is_mesh_lan(path.remote.ip()) && !entry.is_relay()
}

impl Peer {
    /// Probes every candidate at once.
    pub(super) fn start_round(&mut self, env: &mut Env, now: Time) {
        if !self.probes() || self.rests() {
            return;
        }
        let shares_nat = |path: &PathId| env.local.shares_public_ip(path.remote.ip());
        let behind_one_nat = self.table.iter().any(|(path, _)| shares_nat(path));
        let opening = self.round.begin(behind_one_nat, now);
        let connected = self.connection(now) != Connection::Down;
        let mut bursts = Vec::new();
        for (path, entry) in self.table.iter() {
            // WireGuard does not pass on a blocked path; a proven one is pinged by its own timer.
            if entry.is_blocked(now) || connected && entry.is_proven(now) {
                continue;
            }
            let opening = opening.filter(|_| may_be_poisoned(*path, entry));
            let burst = opening.unwrap_or_else(|| self.first_burst(*path, env, now));
            bursts.push((*path, burst));
        }
        for (_, entry) in self.table.iter_mut() {
            entry.keeps_hole = false;
            entry.route_asked = false;
        }
        for (path, burst) in bursts {
            self.round.on_burst(burst, now);
            self.start_burst(path, burst, now);
        }
        self.ask_to_meet(env, now);
    }

    /// Both sides are likely to hear of each other at this moment. If the last round was long ago,
    /// a round that begins now meets the peer's round; two long silences might not meet for hours.
    /// Only for a peer that has published a record lately.
    pub(crate) fn meet(&mut self, env: &mut Env, now: Time) {
        let record = self.record.as_ref();
        let alive = record.is_some_and(|record| now < record.expires);
        if alive && self.round.may_begin_early(now) {
            self.start_round(env, now);
        }
    }

    /// The cause of the failures so far may have been on this side. Restarts the ladder of
    /// silences, but only from a long silence.
    pub(crate) fn start_anew(&mut self, env: &mut Env, now: Time) {
        if self.round.may_begin_early(now) {
            self.round.start_over();
            self.start_round(env, now);
        }
    }

    /// The peer runs anew, or this node is on the internet again: that a round has failed tells
    /// nothing any more.
    pub(crate) fn search_again(&mut self, env: &mut Env, now: Time) {
        if self.round.is_silent() {
            self.round.start_over();
            self.start_round(env, now);
        }
    }

    /// When the search for a direct path has to be taken up again: at once, where a relay is in use
    /// and the last round ended with a direct path, which is gone.
    pub(super) fn search_at(&self, now: Time) -> Option<Time> {
        let rests = self.round.phase == Phase::Resting;
        (rests && self.connection(now) == Connection::ByRelay).then_some(now)
    }

    /// Ends a fruitless round, or its silence.
    pub(super) fn advance_round(&mut self, env: &mut Env, now: Time) {
        match self.round.phase {
            Phase::Resting => {}
            // A path is found, or there is no candidate to probe.
            Phase::Probing { .. } if self.has_found() || self.table.is_empty() => {
                self.round.phase = Phase::Resting;
            }
            // Fruitless. The silence lets routers forget the packets of this round.
            Phase::Probing { .. } => {
                let silence = self.round.fail(self.had_direct, now);
                // A relay carries what little there is, and who wants a direct path again has discovery
                // let both sides probe.
                let is_held = env.arranges && self.is_idle(env, now);
                if silence >= LONG_SILENCE && !is_held {
                    self.keep_holes(env, now);
                }
                if self.round.is_unreachable() && !self.has_live_session(now) {
                    let reason = self.unreachable_reason(&env.local, now);
                    env.out.event(Event::Unreachable {
                        peer: self.spec.key,
                        reason,
                        retry_in: silence,
                    });
                }
            }
            Phase::Silent { .. } => self.start_round(env, now),
        }
    }

    fn keep_holes(&mut self, env: &mut Env, now: Time) {
        let holes = self
            .table
            .iter_mut()
            .filter(|(path, entry)| !is_mesh_lan(path.remote.ip()) && !entry.is_relay());
        let mut newest: Vec<_> = holes.collect();
        newest.sort_by_key(|(_, entry)| Reverse(entry.learned));
        for (_, entry) in newest.into_iter().take(HOLES) {
            entry.keeps_hole = true;
            entry.burst = Burst::Opening;
            entry.next_ping = Some(now + env.jitter(HOLE));
        }
    }

    /// LAN beacons: an ordinary ping, broadcast on the links of our private addresses to the port
    /// on which the peer listens. Two nodes behind one NAT without hairpin may know only their
    /// common public address. The peer answers from its LAN address, and so this node learns it. At
    /// most three per round and link, in first rounds and where the peer's public address is our
    /// own.
    pub(super) fn send_beacons(&mut self, env: &mut Env, now: Time) {
        while self.round.next_beacon().is_some_and(|due| due <= now) {
            self.round.beacons += 1;
            if self.connection(now) == Connection::Settled {
                continue;
            }
            let everybody = IpAddr::V4(Ipv4Addr::BROADCAST);
            let path = PathId::wireguard(SocketAddr::new(everybody, self.spec.listen_port));
            let sources: Vec<IpAddr> = env.local.beacon_sources().collect();
            for source in sources {
                if path.remote.port() == 0 || !env.pings.take(now) {
                    return;
                }
                let Some(payload) = self.ping(path, env, now) else {
                    return;
                };
                let beacon = Transmit {
                    path,
                    source: Some(source),
                    travel: Travel::Ttl(1),
                    payload,
                };
                self.send(PacketKind::Beacon, beacon, env, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use natpunch_types::{CandidateKind, InstanceName, Origin};

    use super::*;
    use crate::candidates::{Offer, Table};

    #[test]
    fn early_packets_spoil_nothing_within_a_lan_by_ipv6_or_at_a_relay() {
        let is_careful = |address: &str, kind| {
            let path = PathId::wireguard(address.parse().unwrap());
            let offer = Offer {
                path,
                kind,
                origin: &Origin::Discovery(InstanceName::new("rv")),
                expires: Time::ZERO + Duration::from_secs(60),
                recorded: false,
            };
            let mut table = Table::default();
            table.learn(&offer, None, Time::ZERO);
            may_be_poisoned(path, table.get(&path).unwrap())
        };
        assert!(is_careful("203.0.113.1:9", CandidateKind::Reflexive));
        assert!(!is_careful("203.0.113.1:9", CandidateKind::Relay));
        assert!(!is_careful("192.168.1.2:9", CandidateKind::Host));
        assert!(!is_careful("[2001:db8::1]:9", CandidateKind::Host));
    }
}
