//! Plain WireGuard peers, which answer no probes: their endpoint is set as plain WireGuard tools
//! would set it, one candidate after the other, and never over a live one.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::env::Env;
use crate::{EndpointReason, Event, Time};

use super::Peer;

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
    tried: BTreeSet<SocketAddr>,
    /// Fruitless passes.
    passes: usize,
    /// All were tried: a pause.
    pub(super) paused: bool,
    pub(super) next: Option<Time>,
}

impl PlainTries {
    /// Something new to try ends a pause.
    pub(super) fn on_new_candidate(&mut self) {
        if std::mem::take(&mut self.paused) {
            self.next = None;
        }
        self.passes = 0;
    }
}

impl Peer {
    pub(super) fn decide_plain(&mut self, env: &mut Env, now: Time) {
        if self.device.is_live(now) || self.device.is_idle(now) {
            self.plain = PlainTries::default();
            return;
        }
        if self.plain.next.is_some_and(|next| now < next) || self.table.is_empty() {
            return;
        }
        if std::mem::take(&mut self.plain.paused) {
            self.plain.tried.clear();
        }
        let untried = self
            .table
            .iter()
            .filter(|(address, _)| !self.plain.tried.contains(*address));
        let best = untried.min_by_key(|(address, entry)| {
            (
                Reverse(env.local.can_reach(address.ip())),
                entry.kind,
                entry.learned,
                **address,
            )
        });
        if let Some((address, _)) = best {
            let address = *address;
            self.plain.tried.insert(address);
            self.plain.next = Some(now + TRY);
            self.set_endpoint(address, true, EndpointReason::Plain, env, now);
            return;
        }
        let pause = PAUSE
            .get(self.plain.passes)
            .or(PAUSE.last())
            .copied()
            .unwrap_or_default();
        self.plain.passes += 1;
        self.plain.paused = true;
        self.plain.next = Some(now + pause);
        let reason = self.unreachable_reason(&env.local, now);
        env.out.event(Event::Unreachable {
            peer: self.spec.key,
            reason,
            retry_in: pause,
        });
    }

    /// When the next try is due, or a live session ends.
    pub(super) fn plain_timeout(&self, now: Time) -> Option<Time> {
        if self.device.is_live(now) {
            self.device.live_until()
        } else if self.device.is_idle(now) || self.table.is_empty() {
            None
        } else {
            self.plain.next
        }
    }
}
