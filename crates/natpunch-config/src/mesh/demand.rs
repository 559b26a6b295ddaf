//! Pairs on demand: which these are, and what wakes them.

use natpunch_types::Connect;

use super::model::{MeshConfig, PeerConfig};

impl MeshConfig {
    /// Whether a pair keeps a path at all times. Only two nodes of natpunch can wake each other, and
    /// what is critical is never without a path that is known to work.
    pub fn connect_of(&self, a: &PeerConfig, b: &PeerConfig) -> Connect {
        let sides = [a, b];
        let stated = || sides.iter().filter_map(|side| side.connect);
        let keeps = |side: &&PeerConfig| !side.managed || side.critical;
        if sides.iter().any(keeps) || stated().any(|one| one == Connect::Always) {
            Connect::Always
        } else {
            stated().next().unwrap_or(self.connect)
        }
    }

    /// Whether something carries a node's word that it wants another one, which is at rest and has no
    /// endpoint. What peers carry for each other begins at one that has one.
    pub fn carries_records(&self) -> bool {
        let has_endpoint = |peer: &PeerConfig| peer.managed && peer.endpoint.is_some();
        let can_begin = self.peers.values().any(has_endpoint);
        let abilities = self
            .discovery
            .iter()
            .map(|instance| &instance.about.abilities);
        let mut carriers = abilities.filter(|can| can.records);
        carriers.any(|can| can_begin || !can.peer_messages)
    }
}
