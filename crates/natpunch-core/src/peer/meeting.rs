//! Probes that leave on both sides at the same moment, as discovery can arrange.

use std::time::Duration;

use crate::Time;
use crate::burst::Burst;
use crate::env::Env;

use super::Peer;

/// Discovery is asked at most this often for one peer, and believed at most as often.
const EVERY: Duration = Duration::from_secs(2);
/// A moment that is further away than this is none that a server would name.
const MAX_DELAY: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Meeting {
    asked: Option<Time>,
    told: Option<Time>,
    fire_at: Option<Time>,
}

impl Meeting {
    pub(super) fn fires_at(&self) -> Option<Time> {
        self.fire_at
    }
}

impl Peer {
    /// A round begins: best if the peer's does, too.
    pub(super) fn ask_to_meet(&mut self, env: &mut Env, now: Time) {
        let often = self.meeting.asked.is_some_and(|asked| now.since(asked) < EVERY);
        if !often && !self.is_settled(now) {
            self.meeting.asked = Some(now);
            env.out.meet(self.spec.key);
        }
    }

    /// The peer probes us at this moment.
    pub(crate) fn handle_fire(&mut self, after: Duration, now: Time) {
        let often = self.meeting.told.is_some_and(|told| now.since(told) < EVERY);
        if self.probes() && !often && after <= MAX_DELAY && !self.is_settled(now) {
            self.meeting.told = Some(now);
            self.meeting.fire_at = Some(now + after);
        }
    }

    /// Probes all places that are not proven, if this is the moment.
    pub(super) fn fire(&mut self, now: Time) {
        if self.meeting.fire_at.take_if(|at| *at <= now).is_none() {
            return;
        }
        let unproven = self.table.iter().filter(|(_, entry)| !entry.is_proven(now) && !entry.is_blocked(now));
        let addresses: Vec<_> = unproven.map(|(address, _)| *address).collect();
        for address in addresses {
            self.start_burst(address, Burst::Direct, now);
        }
    }
}
