//! Probes that leave on both sides at the same moment, as discovery can arrange: each has passed
//! its own NAT before the other's arrives there, so that no NAT sees a packet that it does not
//! expect.
//!
//! A side says that it wants to meet when it knows where the peer may be, and is told the moment
//! once both have said so. Until then it sends openers only. A side whose candidates have been
//! known for a while is not the first to know of the other, and need not wait: the other's openers
//! are out.
//!
//! Each server names a moment of its own, to both sides. Which word arrives first may differ
//! between them, and a server may lie: so both fire at every server's moment.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{Ask, CandidateKind, InstanceName};

use crate::Time;
use crate::burst::Burst;
use crate::env::Env;

use super::Peer;
use super::round::{Phase, may_be_poisoned};

/// Discovery is asked at most this often for one peer.
const EVERY: Duration = Duration::from_secs(2);
/// What it says counts for this long after it was asked, of each instance once, and of so many.
const PATIENCE: Duration = Duration::from_secs(8);
const MAX_ORIGINS: usize = 4;
/// A moment that is further away than this is none that a server would name.
const MAX_DELAY: Duration = Duration::from_secs(3);
/// What was published this long ago has reached the peer before we could hear of it.
const KNOWN: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Meeting {
    asked: Option<Time>,
    /// Who has told a moment since then.
    told: BTreeSet<InstanceName>,
    /// The moments to come: those of an earlier asking, too, each at most [`MAX_DELAY`] away.
    fire_at: BTreeSet<Time>,
}

impl Meeting {
    pub(super) fn fires_at(&self) -> Option<Time> {
        self.fire_at.first().copied()
    }
}

impl Peer {
    /// How to begin with a place that nothing was heard from.
    pub(super) fn first_burst(&self, address: SocketAddr, env: &Env, now: Time) -> Burst {
        let Some(entry) = self.table.get(&address) else {
            return Burst::Direct;
        };
        let behind_nat = entry.kind == CandidateKind::Reflexive && may_be_poisoned(address, entry);
        let known = env.published.is_some_and(|at| now.since(at) >= KNOWN);
        if env.arranges && behind_nat && !known {
            Burst::Held
        } else {
            Burst::Direct
        }
    }

    /// A round begins: best if the peer's does, too.
    pub(super) fn ask_to_meet(&mut self, env: &mut Env, now: Time) {
        let often = self
            .meeting
            .asked
            .is_some_and(|asked| now.since(asked) < EVERY);
        let knows = self.table.iter().any(|(_, entry)| !entry.is_relay());
        if !often && knows && !self.is_settled(now) {
            self.meeting.asked = Some(now);
            self.meeting.told.clear();
            env.out.ask(Ask::Meet(self.spec.key));
        }
    }

    /// The peer probes us at this moment, says this instance's server.
    pub(crate) fn handle_fire(&mut self, instance: &InstanceName, after: Duration, now: Time) {
        let Meeting {
            asked,
            told,
            fire_at,
        } = &mut self.meeting;
        let asked = asked.is_some_and(|asked| now.since(asked) < PATIENCE);
        if asked && after <= MAX_DELAY && told.len() < MAX_ORIGINS && told.insert(instance.clone())
        {
            fire_at.insert(now + after);
        }
    }

    /// Probes all places that are not proven, if this is the moment.
    pub(super) fn fire(&mut self, now: Time) {
        let moments = self.meeting.fire_at.extract_if(..=now, |_| true).count();
        if moments == 0 || self.is_settled(now) {
            return;
        }
        let aims = |entry: &crate::candidates::Entry| {
            !(entry.is_relay() || entry.is_proven(now) || entry.is_blocked(now))
        };
        let addresses: Vec<_> = self
            .table
            .iter()
            .filter(|(_, entry)| aims(entry))
            .map(|(address, _)| *address)
            .collect();
        for address in addresses {
            self.start_burst(address, Burst::Direct, now);
        }
        if let Phase::Probing { until } = &mut self.round.phase {
            *until = (*until).max(now + Burst::Direct.duration());
        }
    }
}
