//! What the peers are told of where this node is: a sealed record for each, which discovery carries.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{Ask, CandidateKind, PeerKey, RelayPolicy, SealedRecord};

use crate::Time;
use crate::messages::record::Contents;
use crate::peer::Peer;

use super::Mesh;

/// For how long a record is good, and when it is published anew.
const RECORD_LIFETIME: Duration = Duration::from_secs(600);
const REPUBLISH: Duration = Duration::from_secs(300);

impl Mesh {
    /// Publishes records if this node's candidates are others than before, or the records are old,
    /// or a peer has none.
    pub(super) fn publish(&mut self, now: Time) {
        let candidates = self.env.local.candidates();
        if candidates.is_empty() {
            return;
        }
        let is_old = self
            .renewed
            .is_none_or(|renewed| now.since(renewed) >= REPUBLISH);
        let has_changed = self.records.last.as_ref() != Some(&candidates);
        let are_all_new = is_old || has_changed;
        if are_all_new {
            self.sealed.clear();
            self.renewed = Some(now);
        }
        if has_changed {
            self.env.published = Some(now);
            self.records.last = Some(candidates.clone());
        }
        if self.seal(candidates) || are_all_new {
            self.records.sent = Some(now);
            let records: Arc<[SealedRecord]> = self.sealed.values().cloned().collect();
            self.env.out.ask(Ask::Records(records));
            // The peers get it at about the same moment, and try too.
            self.for_wanted(now, Peer::meet);
        }
        let again = self.renewed.map_or(now, |renewed| renewed + REPUBLISH);
        self.records.due = Some(self.records.due.map_or(again, |due| due.min(again)));
    }

    /// Seals the candidates for each peer that has no record of them; true if there was one.
    fn seal(&mut self, candidates: Vec<(CandidateKind, SocketAddr)>) -> bool {
        // Who is to be reached through a relay only needs no address of ours. A peer at rest is told
        // when one of the two wakes.
        let is_told = |peer: &Peer| {
            peer.spec.managed && !peer.rests() && peer.spec.relay != RelayPolicy::Only
        };
        let told = |key: &PeerKey| self.sealed.contains_key(key);
        let untold = self.peers.iter();
        let untold = untold.filter(|(key, peer)| is_told(peer) && !told(key));
        let untold = untold.filter_map(|(key, peer)| Some((*key, peer.keys.as_ref()?)));
        let untold: Vec<_> = untold.collect();
        if untold.is_empty() {
            return false;
        }
        // A bound that is never met; beyond it a record would be refused as old.
        self.record_counter = self.record_counter.saturating_add(1);
        let contents = Contents {
            counter: self.record_counter,
            lifetime: RECORD_LIFETIME,
            candidates,
            profile: self.env.profile,
        };
        let rng = &mut self.env.rng;
        for (key, keys) in untold {
            self.sealed.insert(key, contents.seal(&keys.outbound, rng));
        }
        true
    }
}
