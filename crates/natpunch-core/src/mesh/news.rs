//! What discovery tells: the one entry of its news, and what becomes of an instance's word when the
//! instance ends.

use std::collections::BTreeMap;

use natpunch_types::{Abilities, InstanceName, News, PathId, Running};

use super::Mesh;
use crate::{KnownPath, Time};

impl Mesh {
    /// The discovery instances that run, complete, and what each can do. Nothing is taken from any
    /// other.
    ///
    /// What an instance said that is no longer here, or that lost the ability to say it, is taken
    /// back at once. What the predecessor of an instance with other settings said is believed for
    /// a few seconds, and longer if the successor says it again. So a reload ends where a start
    /// with the same file does.
    pub fn handle_instances(&mut self, running: BTreeMap<InstanceName, Running>, now: Time) {
        let is_any = |able: fn(&Abilities) -> bool| {
            let mut running = running.values();
            running.any(|instance| able(&instance.abilities))
        };
        self.env.arranges = is_any(|abilities| abilities.meetings);
        let has_messages = is_any(|abilities| abilities.peer_messages);
        if has_messages != self.env.has_messages {
            self.env.has_messages = has_messages;
            self.env.local.sightings.set_wanted(has_messages);
            let keys: Vec<_> = self.peers.keys().copied().collect();
            keys.iter().for_each(|key| self.settle(key, now));
        }
        let before = std::mem::replace(&mut self.instances, running);
        for (name, was) in before {
            let is = self.instances.get(&name).copied();
            if is.is_none_or(|is| is.run != was.run) {
                self.succeed(&name, is.map(|instance| instance.abilities), now);
            }
        }
        self.flush(now);
    }

    /// An instance was replaced by one with these abilities, or by none.
    fn succeed(&mut self, name: &InstanceName, successor: Option<Abilities>, now: Time) {
        self.env.local.succeed(name, successor, now);
        self.records.touch(now);
        let keys: Vec<_> = self.peers.keys().copied().collect();
        for key in keys {
            self.with_peer(&key, now, |peer, env| {
                peer.succeed(name, successor, env, now)
            });
        }
    }

    /// Takes what a discovery instance has found out. Ignored where it is about a peer that is not
    /// in the spec.
    ///
    /// An own address is published to the peers until its lifetime is over or the instance states
    /// another of the same kind and family. A few changes count at once, more of them one after the
    /// other; then the last one does. Each instance's word of a moment to probe at counts once for
    /// each [`Ask::Meet`](natpunch_types::Ask::Meet).
    pub fn handle_news(&mut self, from: &InstanceName, news: News, now: Time) {
        let is_able = |instance: &Running| instance.abilities.cover(&news);
        // News of an instance that was stopped, or lost an ability, may still be on its way. After
        // a start with the same file there would be no such news.
        if !self.instances.get(from).is_some_and(is_able) {
            return;
        }
        match news {
            News::Candidate { peer, candidate } => self.with_peer(&peer, now, |peer, env| {
                peer.handle_candidate(from, &candidate, env, now)
            }),
            News::Withdrawn { peer, address } => self.with_peer(&peer, now, |peer, env| {
                peer.handle_withdrawn(from, PathId::wireguard(address), env, now)
            }),
            News::Record(record) => {
                if let Some(key) = self.by_record_tag.get(&record.tag).copied() {
                    self.with_peer(&key, now, |peer, env| {
                        peer.handle_record(from, &record.blob, env, now)
                    });
                }
            }
            News::OwnAddress {
                address,
                kind,
                lifetime,
            } => {
                self.env.local.hear(from, (address, kind), lifetime, now);
                self.believe_stated(now);
            }
            News::Mapping(mapping) => self.env.local.set_mapping(from, mapping),
            News::Fire { peer, after } => {
                self.with_peer(&peer, now, |peer, _| peer.handle_fire(from, after, now))
            }
            News::Wanted { peer } => self.with_peer(&peer, now, |peer, env| peer.meet(env, now)),
        }
        self.flush(now);
    }

    /// Takes what has worked in this network before, to be tried. To be told again when other source
    /// ports can be used: until then the paths from such ports are left out.
    pub fn handle_remembered(&mut self, paths: &[KnownPath], now: Time) {
        for known in paths {
            self.with_peer(&known.peer, now, |peer, env| {
                peer.handle_remembered(known.path, known.kind, env, now)
            });
        }
        self.flush(now);
    }

    /// The direct paths that work, of each peer the one in use first: for a [`Memory`](crate::Memory).
    pub fn working_paths(&self, now: Time) -> impl Iterator<Item = KnownPath> {
        let peers = self.peers.values();
        peers.flat_map(move |peer| peer.working_paths(now))
    }
}
