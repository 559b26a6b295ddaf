//! What is printed of a run that failed.

use super::*;
use crate::{chart, pcap};

/// Legs of packets in a chart, and lines of the trace: what fits a screen or two.
const LEGS: usize = 60;
const LINES: usize = 400;

impl World {
    /// The seed of this run.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What to print when a run fails: the seed, what broke, and the packet flow.
    pub fn report(&self) -> String {
        let mut text = format!(
            "seed {}, {} events, trace hash {:016x}\n",
            self.seed,
            self.network.trace.total(),
            self.network.trace.hash()
        );
        for violation in &self.violations {
            text += &format!("VIOLATION: {violation}\n");
        }
        for (host, node) in &self.nodes {
            text += &format!(
                "--- {} {} port {}\n",
                self.network.name(*host),
                node.key.short(),
                node.spec.listen_port
            );
            for (at, event) in node.events.iter().rev().take(30).rev() {
                let peer = event.peer().map_or_else(String::new, |key| key.short());
                text += &format!("    {} {peer} {event}\n", crate::packet::clock(*at));
            }
            let status = node.status(self.now);
            for punch in status.iter().map(|status| &status.punch) {
                text += &format!(
                    "    NAT: {}; {} of {} guesses used, barred: {:?}\n",
                    punch.nat, punch.used, punch.allowed, punch.barred
                );
            }
            for peer in status.iter().flat_map(|status| &status.peers) {
                text += &format!(
                    "    {} {} endpoint {:?}\n",
                    peer.name, peer.state, peer.endpoint
                );
            }
        }
        text += &self.network.trace.text(LINES);
        text + "```mermaid\n" + &self.chart() + "```\n"
    }

    /// The newest packets between nodes as a Mermaid sequence diagram.
    pub fn chart(&self) -> String {
        chart::mermaid(self.network.trace.entries(), &self.places(), LEGS)
    }

    /// What the trace keeps as files in pcap format, by the name of the host or router that
    /// captured it.
    pub fn captures(&self) -> BTreeMap<Arc<str>, Vec<u8>> {
        pcap::captures(self.network.trace.entries())
    }

    /// From the first node by its routers and the servers to the other nodes.
    fn places(&self) -> Vec<Arc<str>> {
        let way_out = |node: HostId| -> Vec<Arc<str>> {
            let gateways = self
                .network
                .gateways_above(self.network.segment_of(node))
                .into_iter()
                .map(|gateway| self.network.gateway_name(gateway).clone());
            [self.network.name(node).clone()]
                .into_iter()
                .chain(gateways)
                .collect()
        };
        let servers = self.servers.keys().chain(self.model_servers.keys());
        let mut nodes = self.nodes.keys().copied();
        let mut places = nodes.next().map(way_out).unwrap_or_default();
        places.extend(servers.map(|server| self.network.name(*server).clone()));
        places.extend(nodes.flat_map(|node| way_out(node).into_iter().rev()));
        places
    }
}
