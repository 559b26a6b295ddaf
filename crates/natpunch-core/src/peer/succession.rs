//! What a peer's part of the mesh forgets when a discovery instance ends or is replaced.

use natpunch_types::{Abilities, InstanceName, Origin, PathId};

use super::Peer;
use crate::env::Env;
use crate::{Event, Time};

impl Peer {
    /// An instance takes back its word for a place.
    pub(crate) fn handle_withdrawn(
        &mut self,
        from: &InstanceName,
        path: PathId,
        env: &mut Env,
        now: Time,
    ) {
        let origin = Origin::Discovery(from.clone());
        self.withdraw(path, &origin, now);
        self.decide(env, now);
    }

    /// An instance was replaced by one with these abilities, or by none.
    pub(crate) fn succeed(
        &mut self,
        instance: &InstanceName,
        successor: Option<Abilities>,
        env: &mut Env,
        now: Time,
    ) {
        // The counter stays: an older record is as old as it was.
        let brings_records = successor.is_some_and(|abilities| abilities.records);
        if let Some(record) = self.record.as_mut()
            && record.origin == *instance
            && !brings_records
        {
            record.candidates.clear();
        }
        let origin = Origin::Discovery(instance.clone());
        self.table.succeed(&origin, successor, now);
        self.table.expire(self.keep(), now);
        self.leave_barred(env, now);
        self.decide(env, now);
    }

    /// Leaves the path in use if it is a relay that may no longer be used. As after a start, no
    /// path is known then; WireGuard's endpoint stays until another path is proven.
    pub(super) fn leave_barred(&mut self, env: &mut Env, now: Time) {
        let selected = self.choice.selection.as_ref().map(|s| s.path);
        let Some(path) = selected.filter(|path| self.table.is_barred_relay(path)) else {
            return;
        };
        self.choice.bar(path);
        env.out.event(Event::RelayWithdrawn {
            peer: self.spec.key,
            path,
        });
        self.round.start_over();
        self.start_round(env, now);
    }
}
