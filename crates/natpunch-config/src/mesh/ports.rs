//! The UDP ports on which WireGuard listens.

use natpunch_types::derive_listen_port;

use super::model::{InterfaceConfig, MeshConfig, PeerConfig};

/// The port on which a peer's WireGuard listens; `all` is what holds for every node.
pub(crate) fn listen_port(all: &InterfaceConfig, peer: &PeerConfig) -> u16 {
    // What the file says of the port itself: a router may forward another one to it.
    let stated = peer.interface.listen_port.or(all.listen_port);
    // The others send to the endpoint, so without a word of the port that is where it listens.
    let reached = || peer.endpoint.as_deref().and_then(port_of);
    stated
        .or_else(reached)
        .unwrap_or_else(|| derive_listen_port(&peer.public_key))
}

/// The port of `HOST:PORT`.
pub(crate) fn port_of(endpoint: &str) -> Option<u16> {
    endpoint.rsplit_once(':')?.1.parse().ok()
}

/// The port on which a peer with an endpoint listens; `None` for one without, which the file does
/// not say.
pub fn endpoint_listen_port(mesh: &MeshConfig, peer: &PeerConfig) -> Option<u16> {
    let reachable = peer.endpoint.is_some();
    reachable.then(|| listen_port(&mesh.interface, peer))
}
