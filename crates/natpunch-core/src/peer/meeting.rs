//! Probes that leave on both sides at the same moment, which discovery arranges. Each probe has
//! passed its own NAT before the other side's arrives there, so no NAT sees an unexpected packet.
//!
//! A side asks for a moment when it knows a candidate of the peer, and is told the moment once both
//! sides have asked. Until then it sends only openers. A side whose own candidates were published a
//! while ago need not wait: the peer has known them for longer, and its openers are out.
//!
//! Each server names a moment of its own, to both sides. The two sides may hear the servers in
//! different order, and a server may lie: so both sides fire at every server's moment.

use std::collections::BTreeSet;
use std::time::Duration;

use natpunch_types::{Ask, CandidateKind, InstanceName, PathId};

use crate::Time;
use crate::burst::Burst;
use crate::env::Env;

use super::round::may_be_poisoned;
use super::{Connection, Peer};

/// Discovery is asked at most this often for one peer.
const EVERY: Duration = Duration::from_secs(2);
/// Its answers count for this long after it was asked, of each instance once, and of so many
/// instances.
const PATIENCE: Duration = Duration::from_secs(8);
const MAX_ORIGINS: usize = 4;
/// No honest server names a moment that is further away than this.
const MAX_DELAY: Duration = Duration::from_secs(3);
/// Candidates that were published this long ago have reached the peer already.
const KNOWN: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Meeting {
    asked: Option<Time>,
    /// The instances that have told a moment since then.
    told: BTreeSet<InstanceName>,
    /// The moments to come: those of an earlier asking, too, each at most [`MAX_DELAY`] away.
    fire_at: BTreeSet<Time>,
}

impl Meeting {
    pub(super) fn fires_at(&self) -> Option<Time> {
        self.fire_at.first().copied()
    }

    /// Whether discovery may be asked again; if so, it counts as asked.
    fn ask(&mut self, now: Time) -> bool {
        let may = self.asked.is_none_or(|asked| now.since(asked) >= EVERY);
        if may {
            self.asked = Some(now);
            self.told.clear();
        }
        may
    }

    /// An instance's server names a moment.
    fn on_told(&mut self, instance: &InstanceName, after: Duration, now: Time) {
        let awaited = self.asked.is_some_and(|asked| now.since(asked) < PATIENCE);
        if !awaited || after > MAX_DELAY || self.told.len() >= MAX_ORIGINS {
            return;
        }
        if self.told.insert(instance.clone()) {
            self.fire_at.insert(now + after);
        }
    }

    /// Takes the moments that have come; false if there was none.
    fn take_due(&mut self, now: Time) -> bool {
        self.fire_at.extract_if(..=now, |_| true).count() > 0
    }
}

impl Peer {
    /// How to begin with a path on which nothing was heard.
    pub(super) fn first_burst(&self, path: PathId, env: &Env, now: Time) -> Burst {
        let Some(entry) = self.table.get(&path) else {
            return Burst::Direct;
        };
        let behind_nat = entry.kind == CandidateKind::Reflexive && may_be_poisoned(path, entry);
        let told = env.published.map(|at| self.told_since(at));
        let known = told.is_some_and(|at| now.since(at) >= KNOWN);
        let is_poison_prone = || self.is_poison_prone(env);
        match env.arranges {
            _ if !behind_nat => Burst::Direct,
            true if !known || is_poison_prone() => Burst::Held,
            // Nobody names a moment: then the openers of both sides come first.
            false if is_poison_prone() => Burst::Opening,
            true | false => Burst::Direct,
        }
    }

    /// A round begins: best if the peer's does, too.
    pub(super) fn ask_to_meet(&mut self, env: &mut Env, now: Time) {
        let knows = self.table.iter().any(|(_, entry)| !entry.is_relay());
        // Where nothing is known of a peer that may rest, the asking is what tells it.
        let wants = (knows || self.is_on_demand()) && self.connection(now) != Connection::Settled;
        if wants && !self.rests() && self.meeting.ask(now) {
            env.out.ask(Ask::Meet(self.spec.key));
        }
    }

    /// The peer probes us at this moment, says this instance's server.
    pub(crate) fn handle_fire(&mut self, instance: &InstanceName, after: Duration, now: Time) {
        self.meeting.on_told(instance, after, now);
    }

    /// Probes all paths that are not proven, if this is the moment.
    pub(super) fn fire(&mut self, now: Time) {
        if !self.meeting.take_due(now) || self.connection(now) == Connection::Settled {
            return;
        }
        let mut aims = Vec::new();
        for (path, entry) in self.table.iter() {
            if !(entry.is_relay() || entry.is_proven(now) || entry.is_blocked(now)) {
                aims.push(*path);
            }
        }
        for path in aims {
            self.start_burst(path, Burst::Direct, now);
        }
        self.round.on_burst(Burst::Direct, now);
        self.punching.on_fire(now);
    }
}
