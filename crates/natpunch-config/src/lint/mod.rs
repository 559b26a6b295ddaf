//! What is allowed in a mesh, but likely not meant.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use natpunch_types::{PeerKey, RelayPolicy, SecretKey};

use crate::file::error::{ConfigError, ConfigErrors, Place};
use crate::file::reader::Quoted;
use crate::mesh::model::{Discovery, InterfaceConfig, MeshConfig, PeerConfig};
use crate::mesh::networks::NetworkMap;
use crate::mesh::ports::{listen_port, port_of};
use crate::mesh::public_names;
use crate::mesh::validate::overlap;

/// IPv6 needs links of this MTU at least, in bytes (RFC 8200, 5).
const IPV6_MTU: u32 = 1280;

/// What most links carry, in bytes: the MTU of Ethernet.
const LINK_MTU: u32 = 1500;

/// What WireGuard adds to a packet, in bytes: header and tag, UDP, and IPv6 outside.
const OVERHEAD: u32 = 32 + 8 + 40;

/// Most texts that are tried as private keys.
const MOST_TRIED: usize = 1000;

/// Looks for what is allowed but likely not meant; `None` if there is nothing.
pub fn lint(mesh: &MeshConfig) -> Option<ConfigErrors> {
    let mut findings = Vec::new();
    connectivity(mesh, &mut findings);
    sections(mesh, &mut findings);
    no_relay(mesh, &mut findings);
    no_shared_relay(mesh, &mut findings);
    settings(mesh, &mut findings);
    routes(mesh, &mut findings);
    exit_nodes(mesh, &mut findings);
    private_keys(mesh, &mut findings);
    (!findings.is_empty()).then(|| ConfigErrors::new(findings, Arc::clone(&mesh.sources)))
}

fn place(mesh: &MeshConfig, peer: &str) -> Place {
    mesh.places.peers.get(peer).copied().unwrap_or_default()
}

fn connectivity(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    let finds_nodes = mesh
        .discovery
        .iter()
        .any(|instance| instance.about.finds_peers);
    let hidden = |peer: &PeerConfig| peer.endpoint.is_none();
    let reachable_nodes = mesh
        .peers
        .values()
        .any(|peer| peer.managed && !hidden(peer));
    for (name, _) in mesh
        .peers
        .iter()
        .filter(|(_, peer)| !peer.managed && hidden(peer))
    {
        if !reachable_nodes {
            let message = format!(
                "nobody can reach the plain WireGuard peer `{}`, nor it them",
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
            let finding = ConfigError::at(place(mesh, second), message)
                .label("no endpoint, and no discovery either");
            let help = "give one an endpoint at which both reach it, with serve = true if there are more such pairs, or \
                        add a section [discovery.NAME] with a server";
            findings.push(
                finding
                    .rule("no-discovery")
                    .also(place(mesh, first), "no endpoint either")
                    .help(help),
            );
        }
    }
}

/// A peer that is to be reached by relays only, and no relay that both sides use.
fn no_relay(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
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
            "`{}` is to be reached through relays only, and there is no relay",
            Quoted(name)
        );
        let finding = ConfigError::at(place(mesh, name), message).label("has relay = \"only\"");
        findings.push(finding.rule("no-relay").help(
            "let a peer with an endpoint serve (serve = true), or name a server: [discovery.NAME] with \
             plugin = \"rendezvous\"",
        ));
    }
}

/// What plugins find odd in their sections.
fn sections(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    for Discovery { name, about, .. } in &mesh.discovery {
        let at = mesh.places.discovery.get(name).copied().unwrap_or_default();
        for warning in &about.warnings {
            let message = format!("`{}` {}", Quoted(name), warning.problem);
            let finding = ConfigError::at(at, message).label(warning.label);
            findings.push(finding.rule(warning.rule).help(warning.help));
        }
    }
}

/// Most different lists of relays that are compared with each other.
const MOST_COMPARED: usize = 256;

/// Peers whose lists of relays have nothing in common: one finding for each list, for the first
/// other that it misses. A mesh with more different lists than [`MOST_COMPARED`] is looked at as far
/// as that: each list is compared with every one before it.
fn no_shared_relay(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
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

fn settings(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    for (index, (name, peer)) in mesh.peers.iter().enumerate() {
        let mtu = peer.interface.mtu.or(mesh.interface.mtu);
        if let Some(mtu) = mtu.filter(|mtu| *mtu < IPV6_MTU)
            && peer.addresses.iter().any(std::net::IpAddr::is_ipv6)
        {
            let message = format!(
                "`{}` has an IPv6 address, but its MTU is {mtu}",
                Quoted(name)
            );
            let finding = ConfigError::at(place(mesh, name), message)
                .label("Linux refuses IPv6 on such an interface");
            findings.push(
                finding
                    .rule("small-mtu")
                    .help(format!("IPv6 needs an MTU of {IPV6_MTU} bytes at least")),
            );
        }
        // A default is fine, and one warning for all nodes is enough.
        let own = peer
            .interface
            .mtu
            .or(if index == 0 { mesh.interface.mtu } else { None });
        if let Some(mtu) = own.filter(|mtu| mtu + OVERHEAD > LINK_MTU) {
            let sum = mtu + OVERHEAD;
            let message = format!(
                "an MTU of {mtu} makes packets of {sum} bytes, and most links carry {LINK_MTU}"
            );
            let finding = ConfigError::at(place(mesh, name), message)
                .label("the MTU of this node's interface");
            findings.push(finding.rule("large-mtu").help(format!(
                "write {} or less: WireGuard over UDP and IPv6 adds {OVERHEAD}; more is for networks with jumbo frames only",
                LINK_MTU - OVERHEAD
            )));
        }
        // Its listen port tells the others where it answers.
        let unused = InterfaceConfig {
            listen_port: None,
            ..peer.interface.clone()
        };
        if !peer.managed && unused != InterfaceConfig::default() {
            let message = format!(
                "`{}` is a plain WireGuard peer: natpunch sets up no interface on it",
                Quoted(name)
            );
            let finding = ConfigError::at(place(mesh, name), message)
                .label("these interface settings are used by nobody");
            findings.push(
                finding
                    .rule("unused-interface")
                    .help("set it up on the peer itself, and keep nothing but listen_port here"),
            );
        }
    }
    let managed = mesh.peers.values().filter(|peer| peer.managed).count();
    if let (Some(port), Some(place), true) = (
        mesh.interface.listen_port,
        mesh.places.listen_port,
        managed > 1,
    ) {
        let finding = ConfigError::at(place, format!("every node listens on port {port}"))
            .label("the default of all nodes");
        findings.push(
            finding.rule("shared-port").help(
                "two nodes behind one NAT collide on a port: leave it out, and each node's is derived from its key",
            ),
        );
    }
}

fn routes(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    let places = &mesh.places;
    for (at, kinds) in &mesh.places.foreign_recipients {
        let message = format!(
            "natpunch can't be the recipients of the kind {}",
            kinds.join(", ")
        );
        let finding =
            ConfigError::at(*at, message).label("can be opened by others than nodes, too");
        let help =
            "recipients of nodes begin with age1; others are for people with their own tools";
        findings.push(finding.rule("foreign-recipient").help(help));
    }
    let lans: NetworkMap<IpNet> = mesh.lans.iter().map(|lan| (*lan, *lan)).collect();
    let own = mesh.networks.iter();
    let networks: NetworkMap<IpNet> = own.clone().map(|network| (*network, *network)).collect();
    for (network, at) in own.zip(&places.networks) {
        if let Some(lan) = lans.overlapping(*network) {
            let finding = ConfigError::at(
                *at,
                format!("the mesh's network {network} clashes with the LAN {lan}"),
            );
            let help = "nodes in that LAN would lose it: give the mesh a network of its own";
            findings.push(finding.label("of the mesh").rule("lan-clash").help(help));
        }
    }
    for (route, at) in &places.routes {
        let finding = |message: String, label: &str| ConfigError::at(*at, message).label(label);
        if let Some(network) = networks.overlapping(*route) {
            let message = format!("the route {route} is within the mesh's own network {network}");
            let help = "addresses of the mesh are the peers' own: list them in `addresses`, or route another network";
            findings.push(
                finding(message, "not a network behind a peer")
                    .rule("route-in-mesh")
                    .help(help),
            );
        }
        if let Some(lan) = lans.within(*route) {
            let message =
                format!("the route {route} is wider than the LAN {lan} and takes it along");
            let help = format!("route exactly what is behind the peer, such as {lan}");
            findings.push(
                finding(message, "wider than the LAN")
                    .rule("widened-route")
                    .help(help),
            );
        }
    }
    let inside = mesh.networks.iter().chain(places.routes.keys());
    let inside: NetworkMap<IpNet> = inside.map(|net| (*net, *net)).collect();
    for (name, peer) in &mesh.peers {
        let endpoint = peer
            .endpoint
            .as_ref()
            .and_then(|endpoint| endpoint.parse::<SocketAddr>().ok());
        let around = endpoint.and_then(|endpoint| inside.around(endpoint.ip().into()));
        if let (Some(endpoint), Some(around)) = (endpoint, around) {
            // Behind the peer itself is where it may well be seen from its own LAN; the others'
            // packets loop.
            let message = format!(
                "the endpoint {endpoint} of `{}` is within {around}",
                Quoted(name)
            );
            let finding = ConfigError::at(place(mesh, name), message)
                .label("WireGuard's packets would go into the tunnel");
            findings.push(
                finding
                    .rule("endpoint-in-tunnel")
                    .help("write the address that it has outside of the mesh"),
            );
        }
    }
}

/// What finds an exit node must not need it.
fn exit_nodes(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
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
        let finding = ConfigError::at(place, message)
            .label("asks a web server, which is behind this exit node");
        findings.push(finding.rule("exit-node-needed-to-find-it").help(
            "give the exit node an endpoint, use a discovery that goes outside (all but http do), or name the web \
             server's addresses in exit_except",
        ));
    }
}

/// Private keys that stand anywhere in the files, comments included: texts whose public key a peer
/// has.
fn private_keys(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    let owners: BTreeMap<PeerKey, &str> = mesh
        .peers
        .iter()
        .map(|(name, peer)| (peer.public_key, name.as_str()))
        .collect();
    let mut tried = BTreeSet::new();
    for (file, source) in mesh.sources.0.iter().enumerate() {
        let base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
        let words = source
            .text
            .split(|c| !base64(c))
            .filter(|word| word.len() == 44 && word.ends_with('='));
        for word in words {
            let Ok(key) = word.parse::<SecretKey>() else {
                continue;
            };
            if owners.contains_key(&PeerKey::from_bytes(*key.expose())) {
                continue;
            }
            if tried.len() == MOST_TRIED || !tried.insert(word) {
                continue;
            }
            let Some(owner) = owners.get(&key.public_key()) else {
                continue;
            };
            let start = word.as_ptr().addr() - source.text.as_ptr().addr();
            let at = Place {
                file,
                start,
                end: start + word.len(),
            };
            let message = format!("the private key of `{}` stands in the file", Quoted(owner));
            let finding = ConfigError::at(at, message)
                .label("whoever reads the file is this peer")
                .secret();
            let help =
                "make a new key pair with `natpunch keygen`: what was in git once stays known";
            findings.push(finding.rule("private-key-in-file").help(help));
        }
    }
}

/// Pairs that will not connect by themselves, as far as the file tells: what is worth to know, and
/// often meant. `None` if there are none.
pub fn notes(mesh: &MeshConfig) -> Option<ConfigErrors> {
    const SHOWN: usize = 5;
    let mut findings = Vec::new();
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
    forwarded_ports(mesh, &mut findings);
    public_names(mesh, &mut findings);
    for (name, place) in &mesh.places.exit_nodes {
        let own = mesh.peers.get(name);
        let Some(exit) = own.and_then(|own| mesh.peers.get(own.exit_node.as_ref()?)) else {
            continue;
        };
        for (ipv6, family) in [(false, "IPv4"), (true, "IPv6")] {
            let has = |peer: &PeerConfig| {
                peer.addresses
                    .iter()
                    .any(|address| address.is_ipv6() == ipv6)
            };
            let who = match own {
                Some(own) if !has(own) => name,
                Some(own) if !has(exit) => own.exit_node.as_ref().unwrap_or(name),
                _ => continue,
            };
            let message = format!(
                "`{}` has no {family} to the internet while it uses an exit node",
                Quoted(name)
            );
            let finding = ConfigError::at(*place, message)
                .label(format!("`{}` has no {family} address", Quoted(who)));
            let help = "what it sends by this family is dropped, as it would leak otherwise; for both families give \
                        both peers addresses of both in the mesh";
            findings.push(finding.rule("exit-node-family").help(help));
        }
    }
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
    (!findings.is_empty()).then(|| ConfigErrors::new(findings, Arc::clone(&mesh.sources)))
}

/// Peers that listen on another port than the one of their endpoint.
fn forwarded_ports(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
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
fn public_names(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    if mesh.hosts {
        return;
    }
    if let Some(owner) = public_names::of_a_mesh(&mesh.name) {
        let message = format!("the mesh's name `{}` is {owner}", Quoted(&mesh.name));
        let finding = ConfigError::at(mesh.places.name, message).label("no name for a mesh");
        let help = "with [names] hosts = true this is an error: peers would take names of others";
        findings.push(finding.rule("public-name").help(help));
    }
    for name in mesh.peers.keys() {
        if let Some(owner) = public_names::of_a_peer(name) {
            let message = format!("the peer's name `{}` is {owner}", Quoted(name));
            let finding = ConfigError::at(place(mesh, name), message).label("no name for a peer");
            let help = "with [names] hosts = true this is an error: the name means something else";
            findings.push(finding.rule("public-name").help(help));
        }
    }
}

/// 100.64.0.0/10 (RFC 6598).
const CARRIER_NAT: IpNet = IpNet::V4(ipnet::Ipv4Net::new_assert(
    std::net::Ipv4Addr::new(100, 64, 0, 0),
    10,
));
