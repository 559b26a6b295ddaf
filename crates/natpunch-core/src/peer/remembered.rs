//! What has worked with the peer before, in the network that this node is in: tried, and believed no
//! more than what discovery says.

use std::time::Duration;

use natpunch_types::{CandidateKind, Origin, PathId};

use crate::candidates::{Entry, Offer};
use crate::env::Env;
use crate::{KnownPath, Time};

use super::{Connection, Peer};

/// For how long it is tried, unless it is proven.
const LIFETIME: Duration = Duration::from_secs(600);

impl Peer {
    /// A path that worked in an earlier run, or before this node left the network.
    pub(crate) fn handle_remembered(
        &mut self,
        path: PathId,
        kind: CandidateKind,
        env: &mut Env,
        now: Time,
    ) {
        // A plain peer has no answer that would prove anything.
        if !self.probes() {
            return;
        }
        if let Some(port) = path.pin() {
            let is_sought = !self.rests() && self.connection(now) != Connection::Settled;
            if !is_sought || !env.ports.reopen(port, self.spec.key) {
                return;
            }
        }
        let offer = Offer {
            path,
            // That its packets come from there was true then.
            kind: match kind {
                CandidateKind::PeerReflexive => CandidateKind::Reflexive,
                kind => kind,
            },
            origin: &Origin::Remembered,
            expires: now + LIFETIME,
            recorded: false,
        };
        self.learn(offer, env, now);
        self.remember_at_rest(path);
        self.decide(env, now);
    }

    /// The direct paths on which something has passed both ways lately, the one in use first.
    pub(crate) fn working_paths(&self, now: Time) -> impl Iterator<Item = KnownPath> {
        let works = move |(path, entry): &(&PathId, &Entry)| {
            let rests = self.choice.is_selected(**path) && entry.is_answered_at_rest(now);
            !entry.is_relay() && !entry.is_blocked(now) && (entry.is_proven(now) || rests)
        };
        let known = |(path, entry): (&PathId, &Entry)| KnownPath {
            peer: self.spec.key,
            path: *path,
            kind: entry.kind,
        };
        let is_in_use = |(path, _): &(&PathId, &Entry)| self.choice.is_selected(**path);
        let in_use = self.table.iter().filter(is_in_use);
        let others = self.table.iter().filter(move |path| !is_in_use(path));
        in_use.chain(others).filter(works).map(known)
    }
}
