//! What is worth to know, and often meant.

use ipnet::IpNet;

use super::place;
use crate::mesh::model::{MeshConfig, PeerConfig};
use crate::mesh::network_map::overlap;
use crate::mesh::ports::{listen_port, port_of};
use crate::mesh::public_names::{of_a_mesh, of_a_peer};
use crate::report::error::ConfigError;
use crate::report::wording::Quoted;

/// Pairs that will not connect by themselves, as far as the file tells.
pub(super) fn unreachable_pairs(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    const SHOWN: usize = 5;
    let peers = mesh.peers.iter();
    let hidden: Vec<(&String, &PeerConfig)> =
        peers.filter(|(_, peer)| peer.endpoint.is_none()).collect();
    for (name, _) in hidden.iter().filter(|(_, peer)| !peer.managed) {
        let others = hidden.len() - 1;
        if others == 0 || hidden.len() == mesh.peers.len() {
            continue;
        }
        let more = others.saturating_sub(SHOWN);
        let mut shown = hidden
            .iter()
            .map(|(other, _)| other)
            .filter(|other| *other != name)
            .take(SHOWN)
            .map(|other| format!("`{}`", Quoted(other)))
            .collect::<Vec<_>>()
            .join(", ");
        if more > 0 {
            shown.push_str(&format!(" and {more} more"));
        }
        let message = format!(
            "the plain WireGuard peer `{}` can't reach {shown}",
            Quoted(name)
        );
        let finding =
            ConfigError::at(place(mesh, name), message).label("neither side has an endpoint");
        findings.push(
            finding
                .rule("unreachable-pair")
                .help("natpunch punches only between two nodes that run it"),
        );
    }
}

/// Peers that listen on another port than the one of their endpoint.
pub(super) fn forwarded_ports(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    for (name, peer) in &mesh.peers {
        let Some(port) = peer.endpoint.as_deref().and_then(port_of) else {
            continue;
        };
        let listens = listen_port(&mesh.interface, peer);
        if listens == port {
            continue;
        }
        let message = format!(
            "`{}` listens on port {listens}, and the others reach it at port {port}",
            Quoted(name)
        );
        let finding = ConfigError::at(place(mesh, name), message)
            .label("right if its router forwards the one to the other");
        let help = "else leave listen_port out: a node with an endpoint listens on its port";
        findings.push(finding.rule("endpoint-port").help(help));
    }
}

/// Names that others own, of a mesh that writes none into the hosts file; where it does they are
/// errors.
pub(super) fn public_names(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    if mesh.hosts {
        return;
    }
    if let Some(owner) = of_a_mesh(&mesh.name) {
        let message = format!("the mesh's name `{}` is {owner}", Quoted(&mesh.name));
        let finding = ConfigError::at(mesh.places.name, message).label("no name for a mesh");
        let help = "with [names] hosts = true this is an error: peers would take names of others";
        findings.push(finding.rule("public-name").help(help));
    }
    for name in mesh.peers.keys() {
        if let Some(owner) = of_a_peer(name) {
            let message = format!("the peer's name `{}` is {owner}", Quoted(name));
            let finding = ConfigError::at(place(mesh, name), message).label("no name for a peer");
            let help = "with [names] hosts = true this is an error: the name means something else";
            findings.push(finding.rule("public-name").help(help));
        }
    }
}

/// Address families that an exit node does not carry.
pub(super) fn exit_families(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    for (name, place) in &mesh.places.exit_nodes {
        let own = mesh.peers.get(name);
        let Some(exit) = own.and_then(|own| mesh.peers.get(own.exit_node.as_ref()?)) else {
            continue;
        };
        for (ipv6, family) in [(false, "IPv4"), (true, "IPv6")] {
            let who = match own {
                Some(own) if !own.has_family(ipv6) => name,
                Some(own) if !exit.has_family(ipv6) => own.exit_node.as_ref().unwrap_or(name),
                _ => continue,
            };
            let message = format!(
                "`{}` has no {family} to the internet while it uses an exit node",
                Quoted(name)
            );
            let finding = ConfigError::at(*place, message)
                .label(format!("`{}` has no {family} address", Quoted(who)));
            let help = "what it sends by this family is dropped, as it would leak otherwise; for \
                        both families give both peers addresses of both in the mesh";
            findings.push(finding.rule("exit-node-family").help(help));
        }
    }
}

/// 100.64.0.0/10 (RFC 6598).
const CARRIER_NAT: IpNet = IpNet::V4(ipnet::Ipv4Net::new_assert(
    std::net::Ipv4Addr::new(100, 64, 0, 0),
    10,
));

/// Networks of the mesh that carrier NATs use, too.
pub(super) fn carrier_nats(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    for (network, at) in mesh.networks.iter().zip(&mesh.places.networks) {
        if overlap(*network, CARRIER_NAT) {
            let finding = ConfigError::at(
                *at,
                format!("{network} is shared address space of carrier NATs (RFC 6598)"),
            );
            let help = "a node behind such a NAT may need addresses of it outside of the mesh";
            findings.push(
                finding
                    .label("of the mesh")
                    .rule("carrier-nat-clash")
                    .help(help),
            );
        }
    }
}
