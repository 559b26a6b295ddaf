//! Networks, routes and endpoints that get into each other's way.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::place;
use crate::mesh::model::MeshConfig;
use crate::mesh::network_map::NetworkMap;
use crate::report::error::ConfigError;
use crate::report::wording::Quoted;

pub(super) fn routes(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    let places = &mesh.places;
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
            let help = "addresses of the mesh are the peers' own: list them in `addresses`, or \
                        route another network";
            findings.push(
                finding(message, "not a network behind a peer")
                    .rule("route-in-mesh")
                    .help(help),
            );
        }
        if let Some(lan) = lans.within(*route) {
            let message = format!(
                "the route {route} contains the LAN {lan}, so traffic to it goes to the peer"
            );
            let help = format!("route exactly what is behind the peer, such as {lan}");
            findings.push(
                finding(message, "wider than the LAN")
                    .rule("widened-route")
                    .help(help),
            );
        }
    }
}

/// Endpoints that WireGuard would reach through its own tunnel.
pub(super) fn endpoints(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    let inside = mesh.networks.iter().chain(mesh.places.routes.keys());
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
