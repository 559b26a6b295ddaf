//! The path MTU: how large packets may be on the path in use, found by probes of its own
//! (DPLPMTUD, RFC 8899). Pure: says which sizes to ask about, and takes what was answered.
//!
//! Routers that drop what is too large often say nothing, so only an answer proves a size, and only
//! an answer to a smaller one makes silence tell something: a peer of an earlier version, or a relay
//! that does not know these probes, answers none at all, and nothing is concluded.
//!
//! - A new path is asked about the whole size, that of the interface's MTU. If it passes, that was
//!   one question and one answer, and nothing more is sent while nobody talks.
//! - Otherwise the sizes between [`BASE`] and the whole are searched, [`WAYS`] at a time.
//! - While data goes out, the size that passed is asked about every [`CONFIRM_EVERY`], or
//!   [`CONFIRM_SOON`] if nothing comes back. So a path that has become a black hole is noticed though
//!   small packets go on to pass.
//! - A limited path is asked for more after [`RAISE_AFTER`] with traffic, or when it changes.
//!
//! Sizes are those of packets inside of the tunnel, in bytes.

use std::time::Duration;

use natpunch_types::SIZE_PROBE_LEN;

use crate::Time;
use crate::messages::probe::Transaction;

/// What WireGuard puts around a packet before UDP: header and tag.
const WIREGUARD: u16 = 32;
/// The least that is looked for: outside, a packet of this size has the 1,280 bytes that every link
/// of IPv6 carries (RFC 8200, 5).
pub(crate) const BASE: u16 = 1_200;
/// A size that passes wherever pings do. Who answers it knows these probes.
const SMALL: u16 = *SIZE_PROBE_LEN.start() as u16 - WIREGUARD;
/// An interface of a larger MTU is not measured: natpunch receives no larger probes.
const LARGEST: u16 = *SIZE_PROBE_LEN.end() as u16 - WIREGUARD;
/// WireGuard pads packets to multiples of this many bytes, and some devices do so beyond the MTU of
/// a route.
const GRAIN: u16 = 16;
/// So many sizes of a range are asked about at once.
const WAYS: u16 = 4;
/// How often a size is asked about before silence counts: once more than MAX_PROBES of RFC 8899,
/// 5.1.2, so that a bad radio link is no narrow one ...
const TRIES: u8 = 4;
/// ... and in the search between two sizes, where a lost packet only costs some bytes.
const TRIES_BETWEEN: u8 = 2;
/// How long an answer is waited for: two round trips, within these bounds.
const WAIT: (Duration, Duration) = (Duration::from_millis(400), Duration::from_secs(2));
/// How long a path has to be in use before it is measured: most relays are left sooner.
const SETTLED: Duration = Duration::from_secs(2);
/// How often the size is confirmed while data goes out ...
const CONFIRM_EVERY: Duration = Duration::from_secs(5);
/// ... and while nothing comes back: before the path is left for one that WireGuard passes.
const CONFIRM_SOON: Duration = Duration::from_secs(1);
/// How long after a search a larger size is tried again (RFC 8899, 5.1.1, PMTU_RAISE_TIMER).
const RAISE_AFTER: Duration = Duration::from_secs(600);
/// How long smaller packets have to show that they pass.
const GRACE: Duration = Duration::from_secs(5);
/// Questions that may still be answered.
const MAX_PENDING: usize = 64;

/// What is asked in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Goal {
    /// Whether this size passes, or at least `floor`.
    Target { target: u16, floor: u16 },
    /// Which sizes between the two pass: the lower one does, the upper one does not.
    Between { low: u16, high: u16 },
}

/// Sizes that are asked about until they are answered or have been asked often enough.
#[derive(Debug)]
struct Round {
    goal: Goal,
    /// The largest that was answered; 0 is none.
    answered: u16,
    tries: u8,
    next: Time,
}

impl Round {
    fn new(goal: Goal, now: Time) -> Self {
        Self {
            goal,
            answered: 0,
            tries: 0,
            next: now,
        }
    }

    /// What it asks about, ascending.
    fn sizes(&self) -> Vec<u16> {
        match self.goal {
            // The usual case costs one question.
            Goal::Target { target, .. } if self.tries == 0 => vec![target],
            Goal::Target { target, floor } if floor < target => vec![SMALL, floor, target],
            Goal::Target { target, .. } => vec![SMALL, target],
            Goal::Between { low, high } => between(low, high),
        }
    }

    fn limit(&self) -> u8 {
        match self.goal {
            Goal::Target { .. } => TRIES,
            Goal::Between { .. } => TRIES_BETWEEN,
        }
    }
}

/// Up to [`WAYS`] multiples of [`GRAIN`] that lie between two sizes, evenly spread.
fn between(low: u16, high: u16) -> Vec<u16> {
    let first = low / GRAIN + 1;
    let last = high.saturating_sub(1) / GRAIN;
    let count = (last + 1).saturating_sub(first);
    let ways = count.min(WAYS);
    let step = |way: u16| u32::from(way) * u32::from(count + 1) / u32::from(ways + 1);
    (1..=ways)
        .map(|way| (first + step(way) as u16 - 1) * GRAIN)
        .collect()
}

/// The path MTU of one peer's path in use.
#[derive(Debug, Default)]
pub(crate) struct PathMtu {
    /// The interface's MTU, as far as it is measured.
    whole: u16,
    /// The largest size that is known to pass; `None`: it was not measured, or in vain.
    passes: Option<u16>,
    round: Option<Round>,
    pending: Vec<(Transaction, u16)>,
    /// When a size was last confirmed, or tried in vain.
    tried: Option<Time>,
    /// When a search ended at less than the whole size.
    limited: Option<Time>,
    /// Bytes of data that were sent since `tried`.
    sent: u64,
}

impl PathMtu {
    /// Measures a path anew.
    pub(crate) fn begin(&mut self, mtu: u32, now: Time) {
        let whole = u16::try_from(mtu).unwrap_or(u16::MAX);
        *self = Self {
            whole,
            ..Self::default()
        };
        if (SMALL + 1..=LARGEST).contains(&whole) {
            self.ask(whole, BASE.min(whole), now + SETTLED);
        }
    }

    /// There is no path to measure.
    pub(crate) fn pause(&mut self) {
        self.round = None;
        self.pending.clear();
    }

    /// The largest packet that passes, as far as it is known, and whether that is less than the
    /// interface's MTU.
    pub(crate) fn found(&self) -> Option<(u16, bool)> {
        self.passes.map(|size| (size, size < self.whole))
    }

    /// What WireGuard sends may vanish for its size alone: the size that passed is not answered at
    /// this moment, or was found not to pass just now.
    pub(crate) fn is_suspect(&self, now: Time) -> bool {
        let is_unanswered = self.round.as_ref().is_some_and(|round| match round.goal {
            Goal::Target { .. } => round.tries > 1,
            Goal::Between { .. } => true,
        });
        let is_new = self.limited.is_some_and(|at| now.since(at) < GRACE);
        is_unanswered || is_new
    }

    /// The UDP payload of the packet that WireGuard makes of one of this size.
    pub(crate) fn payload(size: u16) -> usize {
        usize::from(size + WIREGUARD)
    }

    fn ask(&mut self, target: u16, floor: u16, now: Time) {
        self.pending.clear();
        self.round = Some(Round::new(Goal::Target { target, floor }, now));
    }

    /// WireGuard has sent data: so many bytes; `waits`: it has heard nothing since, though the path
    /// answers pings.
    pub(crate) fn on_data(&mut self, bytes: u64, waits: bool, now: Time) {
        self.sent = self.sent.saturating_add(bytes);
        let (Some(passes), None) = (self.passes, &self.round) else {
            return;
        };
        let is_due = |since: Option<Time>, after| since.is_none_or(|at| now.since(at) >= after);
        // Less than one full packet can't have vanished for its size.
        let every = if waits { CONFIRM_SOON } else { CONFIRM_EVERY };
        if self.sent < u64::from(passes) || !is_due(self.tried, every) {
            return;
        }
        if self.limited.is_some_and(|at| is_due(Some(at), RAISE_AFTER)) {
            self.ask(self.whole, passes, now);
        } else {
            self.ask(passes, BASE.min(passes), now);
        }
    }

    /// When sizes are to be asked about, or silence counts.
    pub(crate) fn wakes_at(&self) -> Option<Time> {
        self.round.as_ref().map(|round| round.next)
    }

    /// The sizes to ask about now; each is to be told by [`on_asked`](Self::on_asked).
    pub(crate) fn due(&mut self, rtt: Duration, now: Time) -> Vec<u16> {
        while let Some(round) = &mut self.round {
            if now < round.next {
                return Vec::new();
            }
            if round.tries >= round.limit() {
                self.conclude(now);
                continue;
            }
            let mut sizes = round.sizes();
            sizes.retain(|size| *size > round.answered);
            if sizes.is_empty() {
                self.conclude(now);
                continue;
            }
            round.tries += 1;
            let (least, most) = WAIT;
            round.next = now + (rtt * 2).clamp(least, most);
            return sizes;
        }
        Vec::new()
    }

    /// No question can leave now: the same ones are due again at this time.
    pub(crate) fn postpone(&mut self, until: Time) {
        if let Some(round) = &mut self.round {
            round.tries = round.tries.saturating_sub(1);
            round.next = until;
        }
    }

    /// A question left.
    pub(crate) fn on_asked(&mut self, size: u16, transaction: Transaction) {
        if self.pending.len() < MAX_PENDING {
            self.pending.push((transaction, size));
        }
    }

    /// A question was answered.
    pub(crate) fn on_answer(&mut self, transaction: &Transaction, now: Time) {
        let asked = self.pending.iter().find(|(asked, _)| asked == transaction);
        let (Some((_, size)), Some(round)) = (asked, &mut self.round) else {
            return;
        };
        round.answered = round.answered.max(*size);
        let is_largest = match round.goal {
            Goal::Target { target, .. } => round.answered >= target,
            Goal::Between { high, .. } => {
                // The answer to the question before the search came late.
                let is_late = round.answered >= high;
                is_late || round.sizes().last() == Some(&round.answered)
            }
        };
        if is_largest {
            self.conclude(now);
        }
    }

    /// The round is over: every size that was not answered is too large.
    fn conclude(&mut self, now: Time) {
        let Some(round) = self.round.take() else {
            return;
        };
        let answered = round.answered;
        match round.goal {
            Goal::Target { target, .. } if answered >= target => self.settle(target, now),
            Goal::Target { target, floor } if answered >= floor => {
                self.search(floor, target, now);
            }
            // Even the size that passed before does not, so it is the one to look below.
            Goal::Target { floor, .. } if answered > 0 && floor > BASE => {
                self.ask(floor, BASE, now);
            }
            // Less than the base is not looked for.
            Goal::Target { floor, .. } if answered > 0 => self.settle(floor, now),
            // Nobody answers: the path is dead, or the other end does not know these probes.
            Goal::Target { .. } => {
                (self.tried, self.sent) = (Some(now), 0);
                self.pending.clear();
            }
            Goal::Between { high, .. } if answered >= high => self.settle(answered, now),
            Goal::Between { low, high } => {
                let sizes = between(low, high);
                let refused = sizes.into_iter().find(|size| *size > answered);
                self.search(low.max(answered), refused.unwrap_or(high), now);
            }
        }
    }

    fn search(&mut self, low: u16, high: u16, now: Time) {
        if between(low, high).is_empty() {
            self.settle(low, now);
        } else {
            self.round = Some(Round::new(Goal::Between { low, high }, now));
        }
    }

    fn settle(&mut self, size: u16, now: Time) {
        let is_new = self.passes != Some(size);
        self.passes = Some(size);
        (self.tried, self.sent) = (Some(now), 0);
        self.pending.clear();
        if size >= self.whole {
            self.limited = None;
        } else if is_new || self.limited.is_some_and(|at| now.since(at) >= RAISE_AFTER) {
            self.limited = Some(now);
        }
    }
}

#[cfg(test)]
#[path = "path_mtu_tests.rs"]
mod tests;
