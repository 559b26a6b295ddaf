//! What holds in every run, checked as it goes.

use super::*;

/// Most candidates that a core may keep of one peer.
const CANDIDATES_PER_PEER: usize = 64;
/// An answer proves a path for this long, as the core has it.
const PROOF_LIFETIME: Duration = Duration::from_secs(90);
/// So long before it the question may have left.
const ROUND_TRIP: Duration = Duration::from_secs(1);
/// A session that got something authentic within this is alive.
const LIVE: Duration = Duration::from_secs(20);

impl World {
    pub(super) fn violate(&mut self, text: String) {
        if self.violations.insert(text.clone()) {
            self.network.note("VIOLATION", text, self.now);
        }
    }

    /// An endpoint of a managed peer is proven: a round trip of probes, truly with that peer. No
    /// endpoint of a live session is replaced by an unproven one. A peer that was removed gets
    /// none.
    pub(super) fn check_endpoint(
        &mut self,
        host: HostId,
        peer: PeerKey,
        endpoint: SocketAddr,
        reason: EndpointReason,
    ) {
        let now = self.now;
        let node = &self.nodes[&host];
        let Some(spec) = node.spec.peers.iter().find(|spec| spec.key == peer) else {
            return self.violate(format!(
                "host {}: endpoint for a peer that was removed",
                host.0
            ));
        };
        if node.device.endpoint(&peer) == Some(endpoint) {
            return;
        }
        let within = |at: Option<&Duration>, lifetime| at.is_some_and(|at| now < *at + lifetime);
        let proven = within(node.heard.get(&(peer, endpoint)), PROOF_LIFETIME)
            && within(node.asked.get(&endpoint), PROOF_LIFETIME + ROUND_TRIP);
        let live = node
            .device
            .last_received(&peer)
            .is_some_and(|at| now < at + LIVE);
        if spec.managed && !proven {
            self.violate(format!(
                "host {}: endpoint {endpoint} is not proven ({reason})",
                host.0
            ));
        }
        if live && !proven {
            self.violate(format!(
                "host {}: live endpoint replaced by {endpoint}, not proven ({reason})",
                host.0
            ));
        }
    }

    /// Probes go to peers, servers and one's own link only.
    pub(super) fn check_destination(&mut self, host: HostId, destination: SocketAddr) {
        if is_multicast(destination.ip())
            || self
                .network
                .is_address_of(destination.ip(), self.participants())
        {
            return;
        }
        self.learn_addresses();
        if !self
            .known_addresses
            .values()
            .any(|addresses| addresses.contains(&destination.ip()))
        {
            let node = self.node_mut(host);
            if node.strangers.insert(destination) {
                self.violate(format!(
                    "host {}: probe to {destination}, which is nobody's",
                    host.0
                ));
            }
        }
    }

    fn participants(&self) -> impl Iterator<Item = HostId> {
        let servers = self.servers.keys().chain(self.model_servers.keys());
        servers
            .chain(self.nodes.keys())
            .chain(&self.injectors)
            .copied()
    }

    pub(super) fn learn_addresses(&mut self) {
        for host in self.nodes.keys() {
            let known = self.known_addresses.entry(*host).or_default();
            known.extend(self.network.addresses(*host));
            for gateway in self.network.gateways_above(self.network.segment_of(*host)) {
                let nat = self.network.nat_v4(gateway).into_iter();
                known.extend(nat.flat_map(|nat| nat.addresses()));
            }
            known.extend(&self.nodes[host].bridges);
        }
    }

    /// Nothing of ours reaches a host that takes part in nothing, but by a broadcast on its LAN or
    /// an address that it shares with a peer.
    pub(super) fn check_third_party(&mut self, host: HostId, packet: &Packet) {
        let ours = packet
            .origin
            .is_some_and(|origin| self.nodes.contains_key(&origin));
        let shared = self
            .known_addresses
            .values()
            .any(|known| known.contains(&packet.destination.ip()));
        let expected = self.participants().any(|participant| participant == host);
        if ours && !expected && !is_multicast(packet.destination.ip()) && !shared {
            self.violate(format!(
                "a packet from {} reached the third party {}",
                packet.source, packet.destination
            ));
        }
    }

    /// Checks what can only be seen from time to time: that memory is bounded.
    pub fn check_memory(&mut self) {
        let hosts: Vec<_> = self.nodes.keys().copied().collect();
        for host in hosts {
            let peers = self
                .status(host)
                .map(|status| status.peers)
                .unwrap_or_default();
            for peer in peers
                .iter()
                .filter(|peer| peer.candidates.len() > CANDIDATES_PER_PEER)
            {
                self.violate(format!(
                    "host {}: {} candidates of one peer",
                    host.0,
                    peer.candidates.len()
                ));
            }
        }
    }
}
