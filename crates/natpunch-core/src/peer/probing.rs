//! Pings to one peer: what they say, and when the next one leaves.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{PathId, Rate, RateBudget, RelayPolicy, ReplayWindow};

use crate::burst::Burst;
use crate::candidates::{Pending, PendingPing};
use crate::env::Env;
use crate::keys::PairKeys;
use crate::messages::Stamp;
use crate::messages::about::{About, Word};
use crate::messages::probe::{Kind, Probe, Transaction};
use crate::{PacketKind, Time, Transmit};

use super::selection::Check;
use super::vigilance::{HOLE, KEEPALIVE};
use super::{Connection, Peer};

/// So many of the likeliest paths get a full burst, which the budget of one peer is enough for.
const FULL_BURSTS: usize = 12;
/// How long a first ping waits for the kernel's word on the way to its destination.
const ROUTE: Duration = Duration::from_millis(50);
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

/// Pings to one peer's unproven paths: at most this many at once, and this many per second in the
/// long run.
const MAX_CHECKS: u64 = 100;
const CHECKS_PER_SECOND: u64 = 10;
/// The same for answers to pings that may be replays: enough for a peer that has restarted and
/// pings all our addresses.
const MAX_UNSURE: u64 = 32;
const UNSURE_PER_SECOND: u64 = 8;

/// The peer's present run, and which of its pings were seen.
#[derive(Debug)]
struct Remote {
    session: u64,
    seen: ReplayWindow<64>,
}

/// So many times within this an ended run of the peer was the present one again: no run comes back,
/// so two live. Late answers of a run that has ended come in a moment.
const RETURNS: usize = 3;
const RETURNS_WITHIN: Duration = Duration::from_secs(60);

/// Runs of the peer that come back, as none does: two hosts answer with its key.
#[derive(Debug, Default)]
struct Twins {
    /// The run before the present one.
    before: Option<u64>,
    /// When a run came back, the last ones.
    returns: VecDeque<Time>,
}

impl Twins {
    fn on_other_run(&mut self, known: Option<u64>, session: u64, now: Time) {
        if self.before == Some(session) {
            if self.returns.len() >= RETURNS {
                self.returns.pop_front();
            }
            self.returns.push_back(now);
        }
        self.before = known;
    }

    fn live(&self, now: Time) -> bool {
        let lately = |at: &&Time| now.since(**at) <= RETURNS_WITHIN;
        self.returns.iter().filter(lately).count() >= RETURNS
    }
}

/// What can be said of a ping before it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    /// It is of the peer's present run, was made after we started and comes for the first time.
    Fresh,
    /// It was seen before, or is too old to tell.
    Seen,
    /// It does not name our session: the peer does not know it yet, or it is a replay.
    KnowsUsNot,
    /// It is of another run of the peer than the one that is known: a later one, or a replay.
    OtherRun,
}

/// What this side says of the path with every probe on it.
#[derive(Debug, Clone, Copy)]
struct Says {
    heard: bool,
    in_use: bool,
    checking: bool,
    deaf: bool,
    unheard: bool,
    at_ease: bool,
}

/// The conversation of probes with one peer.
#[derive(Debug)]
pub(super) struct Prober {
    pending: Pending,
    remote: Option<Remote>,
    twins: Twins,
    sequence: u64,
    /// The transaction of the last ping, and the one that shots share.
    last: Transaction,
    shot: Transaction,
    /// Pings to paths that are not in use.
    checks: RateBudget,
    /// Answers to what may be a replay.
    unsure: RateBudget,
    /// Where the peer last saw us.
    pub(super) seen_as: Option<SocketAddr>,
}

impl Default for Prober {
    fn default() -> Self {
        Self {
            pending: Pending::default(),
            remote: None,
            twins: Twins::default(),
            sequence: 0,
            last: Transaction::default(),
            shot: Transaction::default(),
            checks: RateBudget::new(Rate::per_second(CHECKS_PER_SECOND, MAX_CHECKS)),
            unsure: RateBudget::new(Rate::per_second(UNSURE_PER_SECOND, MAX_UNSURE)),
            seen_as: None,
        }
    }
}

impl Prober {
    /// A conversation whose numbers follow this one. A peer that was removed here and comes back
    /// still knows our run, and would drop a number that it may have seen as a replay.
    pub(super) fn going_on_from(sequence: u64) -> Self {
        Self {
            sequence,
            ..Self::default()
        }
    }

    /// Goes on where another conversation with the same keys stopped. Otherwise the peer would drop
    /// our next probes as replays of this run, and its own replays would pass here for new.
    pub(super) fn resume(&mut self, predecessor: Self) {
        self.sequence = self.sequence.max(predecessor.sequence);
        self.remote = predecessor.remote;
    }

    /// Answers to what was asked so far are not awaited any more.
    pub(super) fn forget_questions(&mut self) {
        self.pending = Pending::default();
    }

    /// Judges a ping or a message; one that is fresh counts as seen from now on.
    pub(super) fn judge(&mut self, stamp: Stamp, own_session: u64) -> Freshness {
        if stamp.to_session != own_session {
            return Freshness::KnowsUsNot;
        }
        let remote = self.remote.get_or_insert_with(|| Remote {
            session: stamp.session,
            seen: ReplayWindow::default(),
        });
        if remote.session != stamp.session {
            Freshness::OtherRun
        } else if remote.seen.take(stamp.sequence) {
            Freshness::Fresh
        } else {
            Freshness::Seen
        }
    }

    /// Whether a ping that may be a replay is answered.
    pub(super) fn may_answer_unsure(&mut self, now: Time) -> bool {
        self.unsure.take(now)
    }

    /// The ping that a pong answers.
    pub(super) fn take_pending(
        &mut self,
        transaction: &Transaction,
        now: Time,
    ) -> Option<PendingPing> {
        self.pending.take(transaction, now)
    }

    /// Pings on the same path that left after this one, as far as they are unanswered.
    pub(super) fn pings_after(&self, ping: &PendingPing) -> u32 {
        self.pending.after(ping)
    }

    /// A pong shows the peer's present run. True if another one was known: it has restarted.
    pub(super) fn on_run(&mut self, session: u64, now: Time) -> bool {
        let known = self.remote.as_ref().map(|remote| remote.session);
        if known != Some(session) {
            self.twins.on_other_run(known, session, now);
            self.remote = Some(Remote {
                session,
                seen: ReplayWindow::default(),
            });
        }
        known.is_some_and(|known| known != session)
    }

    /// Whether two hosts answer in turns with the peer's key.
    pub(super) fn has_twins(&self, now: Time) -> bool {
        self.twins.live(now)
    }

    /// The stamp of the next message.
    pub(super) fn stamp(&mut self, own_session: u64) -> Stamp {
        self.sequence += 1;
        Stamp {
            session: own_session,
            to_session: self.remote.as_ref().map_or(0, |remote| remote.session),
            sequence: self.sequence,
        }
    }

    /// What is the same in every probe.
    fn probe(&mut self, kind: Kind, says: Says, own_session: u64) -> Probe {
        let Stamp {
            session,
            to_session,
            sequence,
        } = self.stamp(own_session);
        Probe {
            kind,
            heard: says.heard,
            in_use: says.in_use,
            checking: says.checking,
            deaf: says.deaf,
            unheard: says.unheard,
            at_ease: says.at_ease,
            session,
            to_session,
            sequence,
            transaction: Transaction::default(),
            about: None,
            observed: None,
            hosts: Vec::new(),
        }
    }

    /// The bytes of a ping, whose pong is awaited from now on.
    fn ping(
        &mut self,
        path: PathId,
        says: Says,
        (hosts, word): (Vec<SocketAddr>, Word),
        keys: &PairKeys,
        env: &mut Env,
        now: Time,
    ) -> Vec<u8> {
        let transaction = Transaction::random(&mut env.rng);
        let mut probe = self.probe(Kind::Ping, says, env.session);
        probe.transaction = transaction;
        probe.hosts = hosts;
        probe.about = Some(About {
            profile: env.profile,
            word,
        });
        self.last = transaction;
        self.pending.push(PendingPing {
            transaction,
            path,
            sent: now,
        });
        probe.seal(&keys.outbound, &mut env.rng)
    }

    /// A ping with the transaction of the last one that awaits its pong: whichever of them arrives
    /// is answered alike.
    fn shot(&mut self, says: Says, word: Word, keys: &PairKeys, env: &mut Env) -> Vec<u8> {
        let mut probe = self.probe(Kind::Ping, says, env.session);
        probe.transaction = self.shot;
        probe.about = Some(About {
            profile: env.profile,
            word,
        });
        probe.seal(&keys.outbound, &mut env.rng)
    }

    /// The bytes of the answer to a ping that came by `path`.
    fn pong(
        &mut self,
        path: PathId,
        says: Says,
        ping: &Probe,
        keys: &PairKeys,
        env: &mut Env,
    ) -> Vec<u8> {
        let mut pong = self.probe(Kind::Pong, says, env.session);
        pong.transaction = ping.transaction;
        // Which may be a later run of the peer than the one that we have heard from.
        pong.to_session = ping.session;
        pong.observed = Some(path.remote);
        pong.seal(&keys.outbound, &mut env.rng)
    }
}

impl Peer {
    /// The number of the last message of this run to the peer.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.prober.sequence
    }

    pub(super) fn start_burst(&mut self, path: PathId, burst: Burst, now: Time) {
        let sparse = burst == Burst::Direct
            && !self.choice.is_selected(path)
            && self.table.place(path) >= FULL_BURSTS;
        let same_site = self.table.same_site;
        if self.rests() {
            return;
        }
        if let Some(entry) = self.table.get_mut(&path) {
            let sparse = sparse || burst == Burst::Direct && entry.is_hopeless(path, same_site);
            let burst = if sparse { Burst::Sparse } else { burst };
            entry.burst = burst;
            entry.burst_started = now;
            entry.step = 0;
            entry.next_ping = Some(now);
        }
    }

    /// Sends the pings that are due, as far as the budget reaches.
    pub(super) fn send_pings(&mut self, env: &mut Env, now: Time) {
        let mut due = Vec::new();
        for (path, entry) in self.table.iter() {
            if entry.next_ping.is_some_and(|at| at <= now) {
                due.push(*path);
            }
        }
        // Of what the budgets allow, the likely ones get the most.
        due.sort_by_cached_key(|path| self.table.place(*path));
        for path in due {
            let selected = self.choice.is_selected(path);
            let has_family = env.local.can_reach(path.remote.ip());
            let is_shadowed = self.is_shadowed(path);
            let rests_until = self.rests_until(path, env, now);
            let Some(entry) = self.table.get_mut(&path) else {
                continue;
            };
            if is_shadowed {
                entry.next_ping = None;
                continue;
            }
            if rests_until.is_some() {
                entry.next_ping = rests_until;
                continue;
            }
            if !entry.route_asked && has_family {
                entry.route_asked = true;
                env.out.find_route(self.spec.key, path.remote.ip());
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
            // The path in use is never starved by the others.
            let may_check = selected || self.prober.checks.take(now);
            if !may_check || entry.is_blocked(now) {
                // The next round comes.
                entry.next_ping = None;
                env.probes.held_back += u64::from(!may_check);
            } else if (selected || entry.has_turn || !env.pings.has_queue(now))
                && env.pings.take(now)
            {
                self.send_ping(path, env, now);
            } else {
                env.probes.held_back += 1;
                if selected {
                    // It does not stand in line behind those that are only tried.
                    let room = env.pings.available_at().unwrap_or(now);
                    entry.next_ping = Some(room.max(now + Duration::from_millis(1)));
                    continue;
                }
                let turn = env.pings.turn(now);
                entry.hold_back(turn, now);
                self.round.on_held_back(entry.burst_ends(), now);
            }
        }
    }

    /// A ping out of turn, within the budget, because there is news for the peer.
    pub(super) fn ping_now(&mut self, path: PathId, env: &mut Env, now: Time) {
        if env.pings.take(now) {
            self.send_ping(path, env, now);
            return;
        }
        env.probes.held_back += 1;
        if let Some(entry) = self.table.get_mut(&path) {
            let room = env.pings.available_at().unwrap_or(now);
            entry.next_ping = Some(room.max(now + Duration::from_millis(1)));
        }
    }

    /// Somebody wants to see that the peer answers: the path in use is pinged, and where a better one
    /// is looked for, that is done now.
    pub(crate) fn ping_in_use(&mut self, env: &mut Env, now: Time) {
        if let Some(path) = self.choice.selection.as_ref().map(|s| s.path) {
            self.ping_now(path, env, now);
        }
        if self.connection(now) != Connection::Settled {
            self.meet(env, now);
        }
    }

    fn send_ping(&mut self, path: PathId, env: &mut Env, now: Time) {
        let Some(payload) = self.ping(path, env, now) else {
            return;
        };
        let Some(entry) = self.table.get_mut(&path) else {
            return;
        };
        let ttl = entry.ttl(env.profile.hops, now);
        entry.on_ping(now);
        let kind = ttl.map_or(PacketKind::Probe, |_| PacketKind::Opener);
        let ping = Transmit {
            travel: ttl.into(),
            ..Transmit::new(path, payload)
        };
        self.send(kind, ping, env, now);
        env.probes.sent += 1;
        // The next moment of the burst that is still to come; a ping out of turn takes the place of
        // the last due one.
        let Some(entry) = self.table.get_mut(&path) else {
            return;
        };
        let due = entry.burst.due(now.since(entry.burst_started));
        entry.step = due.max(entry.step);
        let in_burst = entry.burst.offset(entry.step);
        let next = match in_burst.map(|offset| entry.burst_started + offset) {
            Some(next) => Some(next),
            None => {
                let interval = self.ping_interval(path, env, now);
                interval.map(|interval| now + env.jitter(interval))
            }
        };
        if let Some(entry) = self.table.get_mut(&path) {
            entry.next_ping = next;
        }
    }

    /// How long after the last ping of a burst the next one follows; `None`: the next round comes.
    fn ping_interval(&self, path: PathId, env: &Env, now: Time) -> Option<Duration> {
        let entry = self.table.get(&path)?;
        if self.choice.is_selected(path) {
            let hurry = HURRY.max(entry.rtt.unwrap_or_default() * 3 / 2);
            return Some(if entry.unanswered <= HURRIES {
                // The sooner a dead path is noticed, the less is lost.
                RETRY.min(hurry)
            } else if entry.unanswered <= RETRIES {
                RETRY
            } else {
                // WireGuard may work without a natpunch that answers.
                SLOW
            });
        }
        let settled = self.connection(now) == Connection::Settled;
        if settled && self.is_idle(env, now) {
            return Some(self.idle_interval(path, env, now));
        }
        if self.scene(now).standby(self.choice.selection.as_ref()) == Some(path) {
            return Some(WARM);
        }
        match (entry.is_proven(now), settled) {
            // It may have become better than the one in use.
            (true, true) => Some(REEVALUATE),
            // Of several relays one is in use.
            (true, false) if entry.is_relay() => Some(REEVALUATE),
            // It is about to be chosen.
            (true, false) => Some(KEEPALIVE),
            // What did not work may work now, which is no matter of urgency.
            (false, true) => Some(RETRY_UNPROVEN),
            // The peer gets in through it when it comes back.
            (false, false) if entry.keeps_hole => Some(HOLE),
            (false, false) => None,
        }
    }

    /// The bytes of a ping on a path, whose pong is awaited from now on.
    pub(super) fn ping(&mut self, path: PathId, env: &mut Env, now: Time) -> Option<Vec<u8>> {
        let says = self.says(path, now);
        let hosts = match self.spec.relay {
            // A peer that is to be reached by a relay only needs no address of ours.
            RelayPolicy::Only => Vec::new(),
            RelayPolicy::Auto | RelayPolicy::Never => env.local.ping_hosts(),
        };
        let keys = self.keys.as_ref()?;
        let word = self.punching.word();
        self.vigilance.on_ping(env.profile.lifetime);
        Some(self.prober.ping(path, says, (hosts, word), keys, env, now))
    }

    /// The bytes of the answer to a ping.
    pub(super) fn pong(
        &mut self,
        path: PathId,
        ping: &Probe,
        env: &mut Env,
        now: Time,
    ) -> Option<Vec<u8>> {
        let says = self.says(path, now);
        let keys = self.keys.as_ref()?;
        Some(self.prober.pong(path, says, ping, keys, env))
    }

    /// The bytes of a shot at a port that may be the peer's. Of many shots one awaits a pong, which
    /// tells the path that it came on.
    pub(super) fn shot_ping(
        &mut self,
        path: PathId,
        awaits: bool,
        env: &mut Env,
        now: Time,
    ) -> Option<Vec<u8>> {
        let says = self.says(path, now);
        let word = self.punching.word();
        let keys = self.keys.as_ref()?;
        if !awaits {
            return Some(self.prober.shot(says, word, keys, env));
        }
        let says_too = (Vec::new(), word);
        let ping = self.prober.ping(path, says, says_too, keys, env, now);
        self.prober.shot = self.prober.last;
        Some(ping)
    }

    /// Our pings on a path were answered lately, or before a rest.
    pub(super) fn is_answered(&self, path: PathId, now: Time) -> bool {
        let entry = self.table.get(&path);
        let at_rest = self.choice.is_selected(path);
        entry.is_some_and(|e| e.is_answered(now) || at_rest && e.is_answered_at_rest(now))
    }

    fn says(&self, path: PathId, now: Time) -> Says {
        let selection = self.choice.selection.as_ref();
        let check = selection.filter(|s| s.path == path).map(|s| s.check);
        let entry = self.table.get(&path);
        Says {
            heard: self.is_answered(path, now),
            in_use: matches!(check, Some(check) if check != Check::Lost),
            checking: match check {
                // A sign of life that comes before the pin is in force is lost, and the next one is
                // seconds away.
                Some(Check::Running { .. }) => path.pin().is_none() || !self.device.is_setting(now),
                Some(Check::Passed) => self.device.wants_sign_of_life(now),
                // The peer's handshake should come by itself, or the path is not used.
                Some(Check::Deferred { .. } | Check::Lost) | None => false,
            },
            deaf: entry.is_some_and(|entry| entry.is_deaf_here(now)),
            unheard: self.device.has_heard_nothing(now),
            at_ease: self.is_at_ease(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twins_after(runs: &[u64], seconds_apart: u64) -> bool {
        let mut prober = Prober::default();
        let mut now = Time::ZERO;
        for run in runs {
            now += Duration::from_secs(seconds_apart);
            prober.on_run(*run, now);
        }
        prober.has_twins(now)
    }

    #[test]
    fn runs_that_come_back_again_and_again_are_two_hosts_with_one_key() {
        assert!(twins_after(&[1, 2, 1, 2, 1], 5));
        assert!(!twins_after(&[1, 2, 3, 4, 5, 6, 7], 5), "it restarts often");
        assert!(
            !twins_after(&[1, 2, 1, 2], 5),
            "late answers of the run before"
        );
        assert!(
            !twins_after(&[1, 2, 1, 2, 1, 2, 1], 60),
            "too seldom to tell"
        );
    }
}
