//! What is allowed in a mesh, but likely not meant.

use std::sync::Arc;

use super::error::{ConfigError, ConfigErrors, Place};
use super::model::{DiscoverySettings, InterfaceConfig, MeshConfig, PeerConfig};
use super::read::Quoted;

/// IPv6 needs links of this MTU at least, in bytes (RFC 8200, 5).
const IPV6_MTU: u32 = 1280;

/// Looks for what is allowed but likely not meant; `None` if there is nothing.
pub fn lint(mesh: &MeshConfig) -> Option<ConfigErrors> {
    let mut findings = Vec::new();
    connectivity(mesh, &mut findings);
    settings(mesh, &mut findings);
    (!findings.is_empty()).then(|| ConfigErrors::new(findings, Arc::clone(&mesh.sources)))
}

fn place(mesh: &MeshConfig, peer: &str) -> Place {
    mesh.places.peers.get(peer).copied().unwrap_or_default()
}

fn connectivity(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    let finds_nodes = mesh.discovery.iter().any(|instance| !matches!(instance.settings, DiscoverySettings::Static(_)));
    let hidden = |peer: &PeerConfig| peer.endpoint.is_none();
    let reachable_nodes = mesh.peers.values().any(|peer| peer.managed && !hidden(peer));
    for (name, _) in mesh.peers.iter().filter(|(_, peer)| !peer.managed && hidden(peer)) {
        if !reachable_nodes {
            let message = format!("nobody can reach the plain WireGuard peer `{}`, nor it them", Quoted(name));
            let finding = ConfigError::at(place(mesh, name), message).label("has no natpunch and no endpoint");
            findings.push(finding.help("give it an endpoint, or give one to a node: one side must be reachable"));
        }
    }
    if !finds_nodes {
        let mut nodes = mesh.peers.iter().filter(|(_, peer)| peer.managed && hidden(peer));
        if let (Some((first, _)), Some((second, _))) = (nodes.next(), nodes.next()) {
            let message = format!("`{}` and `{}` can't find each other", Quoted(first), Quoted(second));
            let finding = ConfigError::at(place(mesh, second), message).label("no endpoint, and no discovery either");
            let help = "add a section [discovery.NAME], such as with plugin = \"natpunch-go\", or give one an endpoint";
            findings.push(finding.also(place(mesh, first), "no endpoint either").help(help));
        }
    }
}

fn settings(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    for (name, peer) in &mesh.peers {
        let mtu = peer.interface.mtu.or(mesh.interface.mtu);
        if let Some(mtu) = mtu.filter(|mtu| *mtu < IPV6_MTU)
            && peer.addresses.iter().any(std::net::IpAddr::is_ipv6)
        {
            let message = format!("`{}` has an IPv6 address, but its MTU is {mtu}", Quoted(name));
            let finding = ConfigError::at(place(mesh, name), message).label("Linux refuses IPv6 on such an interface");
            findings.push(finding.help(format!("IPv6 needs an MTU of {IPV6_MTU} bytes at least")));
        }
        // Its listen port tells the others where it answers.
        let unused = InterfaceConfig { listen_port: None, ..peer.interface.clone() };
        if !peer.managed && unused != InterfaceConfig::default() {
            let message = format!("`{}` is a plain WireGuard peer: natpunch sets up no interface on it", Quoted(name));
            let finding =
                ConfigError::at(place(mesh, name), message).label("these interface settings are used by nobody");
            findings.push(finding.help("set it up on the peer itself, and keep nothing but listen_port here"));
        }
    }
    let managed = mesh.peers.values().filter(|peer| peer.managed).count();
    if let (Some(port), Some(place), true) = (mesh.interface.listen_port, mesh.places.listen_port, managed > 1) {
        let finding =
            ConfigError::at(place, format!("every node listens on port {port}")).label("the default of all nodes");
        findings.push(
            finding.help(
                "two nodes behind one NAT collide on a port: leave it out, and each node's is derived from its key",
            ),
        );
    }
}
