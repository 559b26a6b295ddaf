//! How closely the path in use is watched: every few seconds while WireGuard carries data, and only
//! as often as its NATs need it while nobody talks.
//!
//! An idle pair costs both ends their batteries and bills. WireGuard's own keepalive holds the
//! mapping of its sender and shows the other end that the path works, so it serves as a ping. Data
//! that waits for an answer has the path asked at once, whatever is written here.

use std::time::Duration;

use natpunch_types::{PathId, backoff};

use crate::Time;
use crate::env::Env;

use super::Peer;
use super::selection::Check;

/// Ping interval on the path in use while there is traffic; half of the shortest common mapping
/// timer (10 s).
pub(super) const KEEPALIVE: Duration = Duration::from_secs(5);
/// Ping interval that keeps a hole open; with jitter still less than the shortest common mapping
/// timer (30 s).
pub(super) const HOLE: Duration = Duration::from_secs(22);
/// A pair is idle when WireGuard has carried nothing but its own messages for this long.
const IDLE_AFTER: Duration = Duration::from_secs(20);
/// The path of an idle pair is asked when it has shown no life for this long. More than WireGuard's
/// usual keepalive (25 s), which then comes first, and less than the mapping timer of most NATs (30
/// s), which the answer of a peer holds that sends no keepalive.
const IDLE: Duration = Duration::from_secs(28);
/// The path of an idle pair has to answer so often even if keepalives come in: what is never asked
/// is not proven any more.
const IDLE_PROOF: Duration = Duration::from_secs(60);
/// The longest keepalive of WireGuard's that holds this side's mapping in most NATs.
const HOLDS: Duration = Duration::from_secs(25);
/// A path that did not answer after a rest, for at least this long while the peer was there, has
/// lost a mapping ...
const LOST_MAPPING: (Duration, Duration) = (Duration::from_millis(900), Duration::from_secs(30));
/// ... and paths to this peer get no rest for so long, twice as long each time up to the second
/// figure.
const NO_REST: (Duration, Duration) = (Duration::from_secs(3_600), Duration::from_secs(86_400));

/// What was learned of how long paths to one peer can be left alone.
#[derive(Debug, Default)]
pub(super) struct Vigilance {
    /// Mappings that were lost in a rest.
    lost: u32,
    /// No rest before this.
    no_rest_until: Option<Time>,
}

impl Vigilance {
    fn may_rest(&self, now: Time) -> bool {
        self.no_rest_until.is_none_or(|until| until <= now)
    }

    fn on_lost_mapping(&mut self, now: Time) {
        if !self.may_rest(now) {
            return;
        }
        let pause = backoff(NO_REST, self.lost);
        self.lost = self.lost.saturating_add(1);
        self.no_rest_until = Some(now + pause);
    }
}

impl Peer {
    /// WireGuard works on the path in use, and nobody has anything to say.
    pub(super) fn is_idle(&self, now: Time) -> bool {
        let Some(selection) = &self.choice.selection else {
            return false;
        };
        let rested =
            now.since(selection.since) >= IDLE_AFTER && self.device.is_quiet(IDLE_AFTER, now);
        rested
            && selection.check == Check::Passed
            && selection.doubted.is_none()
            && self.device.session(now).is_up()
            && !self.device.is_waiting()
            && self.vigilance.may_rest(now)
    }

    /// When the path in use, which has just answered, is asked again.
    pub(super) fn watch_at(&self, env: &mut Env, now: Time) -> Time {
        if self.is_idle(now) {
            now + self.rest(env)
        } else {
            now + env.jitter(KEEPALIVE)
        }
    }

    /// How long the path of an idle pair is left alone after a sign of life.
    fn rest(&self, env: &mut Env) -> Duration {
        let holds = |keepalive: Duration| keepalive <= HOLDS;
        if self.spec.persistent_keepalive.is_some_and(holds) {
            IDLE
        } else {
            // Nothing but these pings holds this side's mapping.
            env.jitter(HOLE)
        }
    }

    /// A ping that is due on the path in use need not be sent yet: until when.
    pub(super) fn rests_until(&self, path: PathId, env: &mut Env, now: Time) -> Option<Time> {
        if !self.choice.is_selected(path) || !self.is_idle(now) {
            return None;
        }
        let entry = self.table.get(&path).filter(|e| e.unanswered == 0)?;
        let answered = entry.answered_at()?;
        let life = self
            .device
            .rx_seen
            .map_or(answered, |heard| heard.max(answered));
        let until = (life + self.rest(env)).min(answered + IDLE_PROOF);
        (until > now).then_some(until)
    }

    /// Somebody talks again: the path in use is watched closely from now on.
    pub(super) fn wake(&mut self, env: &mut Env, now: Time) {
        let Some(path) = self.choice.selection.as_ref().map(|s| s.path) else {
            return;
        };
        let soon = now + env.jitter(KEEPALIVE);
        if let Some(entry) = self.table.get_mut(&path)
            && entry.next_ping.is_some_and(|at| at > soon)
        {
            entry.next_ping = Some(soon);
        }
    }

    /// The peer has answered, on whatever path. If the one in use did not after a rest, the rest
    /// was too long for some NAT on it.
    pub(super) fn learn_of_rest(&mut self, now: Time) {
        let in_use = self.choice.selection.as_ref().map(|s| s.path);
        let Some(entry) = in_use.and_then(|path| self.table.get(&path)) else {
            return;
        };
        let (Some(answered), Some(silent)) = (entry.answered_at(), entry.unanswered_since) else {
            return;
        };
        let (least, most) = LOST_MAPPING;
        let silence = now.since(silent);
        let rested = silent.since(answered) > KEEPALIVE * 2;
        if rested && silence >= least && silence <= most {
            self.vigilance.on_lost_mapping(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_that_was_lost_in_a_rest_ends_the_rests_longer_each_time() {
        let mut vigilance = Vigilance::default();
        let mut now = Time::ZERO;
        for hours in [1, 2, 4, 8, 16, 24, 24] {
            assert!(vigilance.may_rest(now));
            vigilance.on_lost_mapping(now);
            // What is lost while there is no rest says nothing.
            vigilance.on_lost_mapping(now);
            let pause = Duration::from_secs(hours * 3_600);
            assert!(!vigilance.may_rest(now + (pause - Duration::from_secs(1))));
            now += pause;
        }
    }
}
