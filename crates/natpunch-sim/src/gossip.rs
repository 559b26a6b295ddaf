//! The gossip of one host: the real machine, with what plugin and agent do between it and the core.

use std::time::Duration;

use natpunch_core::Mesh;
use natpunch_gossip::{Effect, Gossip};
use natpunch_types::{Abilities, Ask, InstanceName, News, PeerKey, Time};

/// The discovery instance.
pub(crate) const GOSSIP: &str = "gossip";
/// What its plugin can do.
pub(crate) const ABILITIES: Abilities = Abilities {
    records: true,
    peer_messages: true,
    ..Abilities::NONE
};

/// The gossip of one host. It counts the time of the simulation.
pub(crate) struct Gossiper(Gossip);

impl Gossiper {
    pub(crate) fn new(own: PeerKey) -> Self {
        Self(Gossip::new(own))
    }

    /// Takes a question of the core's.
    pub(crate) fn ask(&mut self, ask: &Ask, now: Duration) {
        let now = Time::from_origin(now);
        match ask {
            Ask::Peers(peers) => self.0.handle_peers(peers, now),
            Ask::Records(records) => self.0.handle_records(records, now),
            Ask::Meet(_) => {}
        }
    }

    pub(crate) fn handle_message(&mut self, from: PeerKey, payload: &[u8], now: Duration) {
        self.0.handle_message(from, payload, Time::from_origin(now));
    }

    pub(crate) fn handle_network_change(&mut self, now: Duration) {
        self.0.handle_network_change(Time::from_origin(now));
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        self.0.poll_timeout().map(Time::since_origin)
    }

    /// Does what is due; false if that was nothing. `time` is the host's own.
    pub(crate) fn drive(&mut self, mesh: &mut Mesh, time: Time, now: Duration) -> bool {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.0.handle_timeout(Time::from_origin(now));
        }
        let mut is_busy = false;
        while let Some(effect) = self.0.poll_effect() {
            is_busy = true;
            match effect {
                Effect::Send { to, payload } => mesh.send_message(&to, &payload, time),
                Effect::Tell(record) => {
                    let news = News::Record(record);
                    mesh.handle_news(&InstanceName::new(GOSSIP), news, time);
                }
            }
        }
        is_busy
    }
}
