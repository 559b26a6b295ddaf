//! Rounds of probing: a burst to every candidate at once, then silence that grows from round to
//! round.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use natpunch_types::is_mesh_lan;

use crate::burst::Burst;
use crate::candidates::Entry;
use crate::env::Env;
use crate::{Event, Time, Transmit};

use super::Peer;
use super::probing::HOLE;

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
/// A path through a relay is in use and no other is looked for any more: the search goes on after
/// this.
const SEARCH_AFTER: Duration = Duration::from_secs(2);
/// In silences at least this long ...
const LONG_SILENCE: Duration = Duration::from_secs(60);
/// ... this many of the newest candidates are pinged all the same, often enough that the hole in
/// our NAT stays open: a peer that comes back after hours then gets through with its first ping.
/// This costs what WireGuard's own keepalive does.
const HOLES: usize = 4;
/// From this fruitless round on the peer is said to be unreachable.
const UNREACHABLE_AFTER: usize = 3;
/// A new candidate starts the ladder anew, but not more often than this: a peer whose address
/// changes all the time is not worth more.
const RESET_EVERY: Duration = Duration::from_secs(60);
/// Beacons of a round.
const BEACONS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(140),
    Duration::from_millis(620),
];

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Resting,
    Probing {
        until: Time,
    },
    Silent {
        until: Time,
    },
}

#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) phase: Phase,
    /// Fruitless rounds in a row.
    pub(super) attempt: usize,
    last_reset: Option<Time>,
    started: Time,
    beacons: usize,
}

impl Round {
    pub(super) fn rest(&mut self) {
        self.phase = Phase::Resting;
        self.attempt = 0;
        self.beacons = BEACONS.len();
    }

    pub(super) fn be_silent_until(&mut self, until: Time) {
        self.phase = Phase::Silent { until };
        self.attempt = self.attempt.max(UNREACHABLE_AFTER);
        self.beacons = BEACONS.len();
    }

    pub(super) fn is_unreachable(&self) -> bool {
        self.attempt >= UNREACHABLE_AFTER
    }

    fn next_beacon(&self) -> Option<Time> {
        BEACONS
            .get(self.beacons)
            .map(|offset| self.started + *offset)
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        let phase = match self.phase {
            Phase::Resting => None,
            Phase::Probing { until } | Phase::Silent { until } => Some(until),
        };
        [phase, self.next_beacon()].into_iter().flatten().min()
    }
}

/// Only NATs are spoilt by early packets: IPv6 firewalls and LANs are not.
pub(super) fn may_be_poisoned(address: SocketAddr, entry: &Entry) -> bool {
    address.is_ipv4() && !is_mesh_lan(address.ip()) && !entry.is_relay()
}

impl Peer {
    /// Probes every candidate at once.
    pub(super) fn start_round(&mut self, env: &mut Env, now: Time) {
        if !self.probes() {
            return;
        }
        // Only after a silence in which routers forgot what spoiled the earlier rounds is there
        // something to win.
        let opening = self.round.is_unreachable().then_some(Burst::Opening);
        self.round.phase = Phase::Probing {
            until: now + opening.unwrap_or_default().duration(),
        };
        self.round.started = now;
        let behind_one_nat = self
            .table
            .iter()
            .any(|(address, _)| env.local.shares_public_ip(address.ip()));
        self.round.beacons = if self.round.attempt == 0 || behind_one_nat {
            0
        } else {
            BEACONS.len()
        };
        let connected = self.is_connected(now);
        let addresses: Vec<(SocketAddr, Burst)> = self
            .table
            .iter()
            .filter(|(_, entry)| !(entry.is_blocked(now) || connected && entry.is_proven(now)))
            .map(|(address, entry)| {
                let burst = opening.filter(|_| may_be_poisoned(*address, entry));
                (
                    *address,
                    burst.unwrap_or_else(|| self.first_burst(*address, env, now)),
                )
            })
            .collect();
        for (_, entry) in self.table.iter_mut() {
            entry.keeps_hole = false;
            entry.route_asked = false;
        }
        for (address, burst) in addresses {
            self.start_burst(address, burst, now);
        }
        self.ask_to_meet(env, now);
    }

    /// The burst to a new candidate has begun; it begins a new ladder too.
    pub(super) fn on_new_candidate(&mut self, now: Time) {
        let resets = self
            .round
            .last_reset
            .is_none_or(|last| now.since(last) >= RESET_EVERY);
        if resets && !self.is_settled(now) {
            self.round.last_reset = Some(now);
            self.round.attempt = 0;
            self.round.phase = Phase::Probing {
                until: now + Burst::Direct.duration(),
            };
        } else if self.round.phase == Phase::Resting && !self.is_settled(now) {
            self.round.phase = Phase::Probing {
                until: now + Burst::Direct.duration(),
            };
        }
    }

    /// Both sides are likely to hear of each other at this moment: a round now, if the last one was
    /// long ago, finds the peer's one, where two long silences might not meet for hours. Only for a
    /// peer that published something lately.
    pub(crate) fn meet(&mut self, env: &mut Env, now: Time) {
        let alive = self
            .record
            .as_ref()
            .is_some_and(|record| now < record.expires);
        let silent = matches!(self.round.phase, Phase::Silent { .. })
            && now.since(self.round.started) >= RESET_EVERY;
        if alive && silent {
            self.start_round(env, now);
        }
    }

    /// The cause of the failures so far may have been on our side: the whole ladder anew, but only
    /// from a long silence.
    pub(crate) fn start_anew(&mut self, env: &mut Env, now: Time) {
        if matches!(self.round.phase, Phase::Silent { .. })
            && now.since(self.round.started) >= RESET_EVERY
        {
            self.round.attempt = 0;
            self.start_round(env, now);
        }
    }

    /// Ends a fruitless round, or its silence.
    pub(super) fn advance_round(&mut self, env: &mut Env, now: Time) {
        match self.round.phase {
            Phase::Probing { until } if until <= now => {
                if self.has_found() || self.table.is_empty() {
                    self.round.phase = Phase::Resting;
                    return;
                }
                let silence = SILENCE
                    .get(self.round.attempt)
                    .or(SILENCE.last())
                    .copied()
                    .unwrap_or_default();
                let silence = if self.had_direct {
                    silence.min(LONG_SILENCE)
                } else {
                    silence
                };
                self.round.attempt += 1;
                self.round.phase = Phase::Silent {
                    until: now + silence,
                };
                if silence >= LONG_SILENCE {
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
            Phase::Silent { until } if until <= now => self.start_round(env, now),
            // A relay was found, and what is looked for is a path without one.
            Phase::Resting if self.is_connected(now) && !self.is_settled(now) => {
                self.round.phase = Phase::Silent {
                    until: now + SEARCH_AFTER,
                };
            }
            _ => {}
        }
    }

    fn keep_holes(&mut self, env: &mut Env, now: Time) {
        let holes = self
            .table
            .iter_mut()
            .filter(|(address, entry)| !is_mesh_lan(address.ip()) && !entry.is_relay());
        let mut newest: Vec<_> = holes.collect();
        newest.sort_by_key(|(_, entry)| Reverse(entry.learned));
        for (_, entry) in newest.into_iter().take(HOLES) {
            entry.keeps_hole = true;
            entry.burst = Burst::Opening;
            entry.next_ping = Some(now + env.jitter(HOLE));
        }
    }

    /// LAN beacons: an ordinary ping, broadcast on the links of our private addresses to the port
    /// on which the peer listens. Two nodes behind one NAT without hairpin may know nothing but
    /// their common public address; the answer comes from the peer's LAN address, which is thereby
    /// learned. At most three per round and link, in first rounds and where the peer's public
    /// address is our own.
    pub(super) fn send_beacons(&mut self, env: &mut Env, now: Time) {
        while self.round.next_beacon().is_some_and(|due| due <= now) {
            self.round.beacons += 1;
            if self.is_settled(now) {
                continue;
            }
            let destination =
                SocketAddr::new(IpAddr::V4(Ipv4Addr::BROADCAST), self.spec.listen_port);
            let sources: Vec<IpAddr> = env.local.beacon_sources().collect();
            for source in sources {
                if destination.port() == 0 || !env.pings.take(now) {
                    return;
                }
                let Some(payload) = self.ping(destination, env, now) else {
                    return;
                };
                env.out.transmit(Transmit {
                    destination,
                    source: Some(source),
                    ttl: Some(1),
                    payload,
                });
            }
        }
    }
}
