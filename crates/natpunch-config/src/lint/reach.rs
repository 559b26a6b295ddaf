//! Peers that will not find or reach each other.

use std::collections::{BTreeMap, BTreeSet};

use natpunch_types::{Connect, RelayPolicy};

use super::place;
use crate::mesh::model::{Discovery, MeshConfig, PeerConfig};
use crate::report::error::ConfigError;
use crate::report::wording::Quoted;

pub(super) fn connectivity(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    let hidden = |peer: &PeerConfig| peer.endpoint.is_none();
    let reachable_nodes = mesh
        .peers
        .values()
        .any(|peer| peer.managed && !hidden(peer));
    // What peers tell each other needs a first path.
    let finds = |instance: &Discovery| {
        instance.about.finds_peers && (reachable_nodes || !instance.about.abilities.peer_messages)
    };
    let finds_nodes = mesh.discovery.iter().any(finds);
    for (name, _) in mesh
        .peers
        .iter()
        .filter(|(_, peer)| !peer.managed && hidden(peer))
    {
        if !reachable_nodes {
            let message = format!(
                "no peer can reach the plain WireGuard peer `{}`, and it can reach none",
                Quoted(name)
            );
            let finding = ConfigError::at(place(mesh, name), message)
                .label("has no natpunch and no endpoint");
            findings.push(
                finding
                    .rule("unreachable-plain-peer")
                    .help("give it an endpoint, or give one to a node: one side must be reachable"),
            );
        }
    }
    if !finds_nodes {
        let mut nodes = mesh
            .peers
            .iter()
            .filter(|(_, peer)| peer.managed && hidden(peer));
        if let (Some((first, _)), Some((second, _))) = (nodes.next(), nodes.next()) {
            let message = format!(
                "`{}` and `{}` can't find each other",
                Quoted(first),
                Quoted(second)
            );
            let finding = ConfigError::at(place(mesh, second), message).label(
                match mesh.discovery.iter().any(|d| d.about.finds_peers) {
                    true => "no endpoint, and nobody has one at which gossip could begin",
                    false => "no endpoint, and no discovery either",
                },
            );
            let help = "give one an endpoint at which both reach it, with serve = true if there \
                        are more such pairs, or add a section [discovery.NAME] with a server";
            findings.push(
                finding
                    .rule("no-discovery")
                    .also(place(mesh, first), "no endpoint either")
                    .help(help),
            );
        }
    }
}

/// Pairs on demand of which neither side hears that the other one wants it.
pub(super) fn never_woken(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    if mesh.carries_records() {
        return;
    }
    let peers = mesh.peers.iter();
    let hidden = peers.filter(|(_, peer)| peer.endpoint.is_none());
    let is_on_demand = |a: &PeerConfig, b: &PeerConfig| mesh.connect_of(a, b) == Connect::OnDemand;
    // Two that would rest with one of their own kind rest with each other.
    let sleepers = hidden.clone().filter(|(_, peer)| is_on_demand(peer, peer));
    let mut lost = sleepers.filter_map(|(name, peer)| {
        let mut others = hidden.clone().filter(|(other, _)| *other != name);
        let (other, _) = others.find(|(_, other)| is_on_demand(peer, other))?;
        Some((name, other))
    });
    let Some((name, other)) = lost.next() else {
        return;
    };
    let stated = [name, other].map(|name| mesh.places.connects.get(name).copied());
    let at = stated.into_iter().flatten().next().or(mesh.places.connect);
    let message = format!(
        "nothing wakes the pair of `{}` and `{}`, which is on demand",
        Quoted(name),
        Quoted(other)
    );
    let finding = ConfigError::at(at.unwrap_or_default(), message)
        .label("neither has an endpoint, and no discovery here carries records");
    findings.push(finding.rule("never-woken").help(
        "add a section [discovery.NAME] with plugin = \"rendezvous\", give one of the two an \
         endpoint, or keep them connected: connect = \"always\"",
    ));
}

/// A peer that is to be reached by relays only, and no relay that both sides use.
pub(super) fn no_relay(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    if mesh
        .discovery
        .iter()
        .any(|instance| instance.about.abilities.relays)
    {
        return;
    }
    for (name, _) in mesh
        .peers
        .iter()
        .filter(|(_, peer)| peer.relay == RelayPolicy::Only)
    {
        let message = format!(
            "`{}` is reached only through relays, and the mesh has no relay",
            Quoted(name)
        );
        let finding = ConfigError::at(place(mesh, name), message).label("has relay = \"only\"");
        findings.push(finding.rule("no-relay").help(
            "let a peer with an endpoint serve (serve = true), or name a server: \
             [discovery.NAME] with plugin = \"rendezvous\"",
        ));
    }
}

/// Most different lists of relays that are compared with each other.
const MOST_COMPARED: usize = 256;

/// Peers whose lists of relays have nothing in common: one finding for each list, for the first
/// other that it misses. A mesh with more different lists than [`MOST_COMPARED`] is looked at as
/// far as that: each list is compared with every one before it.
pub(super) fn no_shared_relay(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    let mut lists: BTreeMap<&[String], (BTreeSet<&str>, &str)> = BTreeMap::new();
    let may_relay = |peer: &PeerConfig| {
        peer.managed && peer.relay != RelayPolicy::Never && !peer.relays.is_empty()
    };
    for (name, peer) in mesh.peers.iter().filter(|(_, peer)| may_relay(peer)) {
        if lists.contains_key(peer.relays.as_slice()) {
            continue;
        }
        if lists.len() == MOST_COMPARED {
            break;
        }
        let list: BTreeSet<&str> = peer.relays.iter().map(String::as_str).collect();
        if let Some((_, other)) = lists.values().find(|(seen, _)| list.is_disjoint(seen)) {
            let at = |peer: &str| mesh.places.relays.get(peer).copied().unwrap_or_default();
            let message = format!(
                "`{}` and `{}` have no relay in common",
                Quoted(other),
                Quoted(name)
            );
            let finding = ConfigError::at(at(name), message).label("by these only");
            let finding = finding
                .also(at(other), "by these only")
                .rule("no-shared-relay");
            findings.push(finding.help(
                "name one in both lists, or the two can't be connected where no direct path is",
            ));
        }
        lists.insert(&peer.relays, (list, name));
    }
}

/// What finds an exit node must not need it.
pub(super) fn exit_nodes(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    // What leaves from WireGuard's port goes outside of the exit node.
    let finds = |instance: &Discovery| {
        instance.about.finds_peers && instance.about.abilities.wireguard_port
    };
    if mesh.discovery.is_empty() || mesh.discovery.iter().any(finds) {
        return;
    }
    for (name, peer) in &mesh.peers {
        let exit = peer
            .exit_node
            .as_ref()
            .and_then(|exit| Some((exit, mesh.peers.get(exit)?)));
        let Some((exit, _)) = exit.filter(|(_, exit)| exit.endpoint.is_none() && peer.managed)
        else {
            continue;
        };
        let place = mesh
            .places
            .exit_nodes
            .get(name)
            .copied()
            .unwrap_or_default();
        let message = format!(
            "`{}` can find its exit node `{}` only through it",
            Quoted(name),
            Quoted(exit)
        );
        let finding =
            ConfigError::at(place, message).label("asks a server that is behind this exit node");
        findings.push(finding.rule("exit-node-needed-to-find-it").help(
            "give the exit node an endpoint, use a discovery that goes outside (such as \
             rendezvous), or name the server's addresses in exit_except",
        ));
    }
}
