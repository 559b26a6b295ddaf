//! Plain WireGuard peers, which answer no probes: their endpoint is set as plain WireGuard tools
//! would set it, one candidate after the other, and never over a live one.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use natpunch_types::PathId;

use crate::candidates::Table;
use crate::env::Env;
use crate::{EndpointReason, Event, Time};

use super::Peer;
use super::device::Session;

/// How long WireGuard has to make a handshake with a candidate; it sends two initiations in it.
const TRY: Duration = Duration::from_secs(10);
/// Pause after each fruitless pass over all candidates; the last one repeats.
const PAUSE: [Duration; 4] = [
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(15 * 60),
];

#[derive(Debug, Default)]
pub(super) struct PlainTries {
    tried: BTreeSet<PathId>,
    /// Fruitless passes.
    passes: usize,
    /// All candidates were tried, and a pause runs.
    paused: bool,
    next: Option<Time>,
}

/// What to do next to reach a plain peer.
enum Step {
    Wait,
    Try(PathId),
    /// All candidates were tried.
    Pause(Duration),
}

impl PlainTries {
    /// A new candidate ends a pause.
    pub(super) fn on_new_candidate(&mut self) {
        if std::mem::take(&mut self.paused) {
            self.next = None;
        }
        self.passes = 0;
    }

    /// When the tries go on after all candidates were tried in vain.
    pub(super) fn retry_at(&self) -> Option<Time> {
        self.next.filter(|_| self.paused)
    }

    fn step(&mut self, table: &Table, can_reach: impl Fn(IpAddr) -> bool, now: Time) -> Step {
        if self.next.is_some_and(|next| now < next) || table.is_empty() {
            return Step::Wait;
        }
        if std::mem::take(&mut self.paused) {
            self.tried.clear();
        }
        let untried = table.iter().filter(|(path, _)| !self.tried.contains(path));
        let best = untried.min_by_key(|(path, entry)| {
            let reachable = can_reach(path.remote.ip());
            (Reverse(reachable), entry.kind, entry.learned, **path)
        });
        if let Some((path, _)) = best {
            self.tried.insert(*path);
            self.next = Some(now + TRY);
            return Step::Try(*path);
        }
        let rung = PAUSE.get(self.passes).or(PAUSE.last());
        let pause = rung.copied().unwrap_or_default();
        self.passes += 1;
        self.paused = true;
        self.next = Some(now + pause);
        Step::Pause(pause)
    }
}

impl Peer {
    pub(super) fn decide_plain(&mut self, env: &mut Env, now: Time) {
        // A live endpoint is never replaced: WireGuard's own roaming keeps it.
        if self.device.session(now).is_up() {
            self.plain = PlainTries::default();
            return;
        }
        let can_reach = |ip| env.local.can_reach(ip);
        match self.plain.step(&self.table, can_reach, now) {
            Step::Wait => {}
            Step::Try(path) => self.set_endpoint(path, true, EndpointReason::Plain, env, now),
            Step::Pause(retry_in) => {
                let reason = self.unreachable_reason(&env.local, now);
                env.out.event(Event::Unreachable {
                    peer: self.spec.key,
                    reason,
                    retry_in,
                });
            }
        }
    }

    /// When the next try is due, or a live session ends.
    pub(super) fn plain_timeout(&self, now: Time) -> Option<Time> {
        match self.device.session(now) {
            Session::Live { .. } => self.device.live_until(),
            Session::Idle => None,
            Session::None if self.table.is_empty() => None,
            Session::None => self.plain.next,
        }
    }
}
