//! What the resolved mesh file means for each part of the node: the device, the core, the plugins.

use std::collections::BTreeSet;
use std::path::Path;

use ipnet::IpNet;
use natpunch_core::{MeshSpec, PeerSpec};
use natpunch_types::{Connect, InstanceName};
use natpunch_wg::{BackendChoice, DefaultRoute, InterfaceSpec, RouteMtu};

use crate::config::{Backend, Discovery, NodeConfig};

/// The WireGuard interface that the mesh file asks for.
///
/// # Errors
/// This program's own path is not known, so the embedded device can't be started.
pub(crate) fn interface(node: &NodeConfig, runtime_dir: &Path) -> std::io::Result<InterfaceSpec> {
    let mut routes: Vec<IpNet> = node
        .peers
        .iter()
        .flat_map(|peer| peer.allowed_ips.iter().copied())
        .collect();
    // The default route has its own place, and an address inside this node's own prefix is on-link
    // already.
    routes.retain(|route| {
        route.prefix_len() > 0
            && !node
                .addresses
                .iter()
                .any(|address| address.trunc().contains(route))
    });
    routes.sort();
    routes.dedup();
    Ok(InterfaceSpec {
        name: node.interface.clone(),
        private_key: node.private_key.clone(),
        listen_port: node.listen_port,
        fwmark: node.fwmark,
        mtu: node.mtu,
        addresses: node.addresses.clone(),
        routes,
        default_route: node.exit_node.as_ref().map(|exit| DefaultRoute {
            table: exit.table,
            ipv4: exit.ipv4,
            ipv6: exit.ipv6,
            except: exit.except.clone(),
        }),
        peers: node
            .peers
            .iter()
            .map(|peer| natpunch_wg::PeerSpec {
                key: peer.key,
                preshared_key: peer.preshared_key.clone(),
                allowed_ips: peer.allowed_ips.clone(),
                // A keepalive to a peer at rest would wake it: the core switches it on.
                persistent_keepalive: peer
                    .persistent_keepalive
                    .filter(|_| peer.connect == Connect::Always),
                adapts_keepalive: peer.adapts_keepalive || peer.connect == Connect::OnDemand,
                route_mtu: RouteMtu::AsIs,
                endpoint: None,
                rests: peer.managed,
            })
            .collect(),
        backend: match node.backend {
            Backend::Auto => BackendChoice::Auto,
            Backend::Kernel => BackendChoice::Kernel,
            Backend::Userspace => BackendChoice::Userspace,
            Backend::External => BackendChoice::External,
        },
        owner: node.mesh.clone(),
        adopt: false,
        device_program: std::env::current_exe()?,
        runtime_dir: runtime_dir.to_owned(),
    })
}

/// What the core needs to know.
pub(crate) fn mesh(node: &NodeConfig) -> MeshSpec {
    let mut overlay = node.networks.clone();
    overlay.extend(node.addresses.iter().map(IpNet::trunc));
    // Through an exit node all addresses are within the mesh: what goes outside is told by its
    // mark, not by its address.
    overlay.extend(
        node.peers
            .iter()
            .flat_map(|peer| &peer.allowed_ips)
            .filter(|net| net.prefix_len() > 0),
    );
    overlay.sort();
    overlay.dedup();
    MeshSpec {
        punch: node.punch,
        private_key: node.private_key.clone(),
        listen_port: node.listen_port,
        mtu: node.mtu,
        overlay,
        peers: node
            .peers
            .iter()
            .map(|peer| PeerSpec {
                key: peer.key,
                name: peer.name.clone(),
                managed: peer.managed,
                connect: peer.connect,
                preshared_key: peer.preshared_key.clone(),
                persistent_keepalive: peer.persistent_keepalive,
                adapts_keepalive: peer.adapts_keepalive,
                listen_port: peer.listen_port,
                endpoint: peer.endpoint.as_deref().map(Into::into),
                relay: peer.relay,
                relays: peer
                    .relays
                    .as_ref()
                    .map(|names| names.iter().map(|name| InstanceName::new(name)).collect()),
            })
            .collect(),
    }
}

/// What a node that runs has to make anew when its part of the mesh changes. All else takes the
/// change as it runs, so a reload ends where a start would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Anew {
    /// The raw sockets: WireGuard's port or mark is another.
    pub(crate) sockets: bool,
    /// The core: this node has another key.
    pub(crate) core: bool,
    /// The discovery instances that go on as they are, by name; all others are started.
    pub(crate) kept_plugins: BTreeSet<String>,
}

impl Anew {
    pub(crate) fn between(before: &NodeConfig, after: &NodeConfig) -> Self {
        let sockets = before.listen_port != after.listen_port || before.fwmark != after.fwmark;
        let core = before.private_key != after.private_key;
        let same = |instance: &&Discovery| before.discovery.contains(instance);
        let kept = after.discovery.iter().filter(same);
        Self {
            sockets,
            core,
            // Every instance has the port and the key of its start.
            kept_plugins: if sockets || core {
                BTreeSet::new()
            } else {
                kept.map(|instance| instance.name.clone()).collect()
            },
        }
    }
}

/// Every STUN server that the file names, `HOST:PORT`: the servers of natpunch's own rendezvous,
/// which answer STUN on their port, too. They alone show how the NAT hands out ports.
pub(crate) fn stun_servers(node: &NodeConfig) -> Vec<String> {
    let mut servers = node.stun_servers.clone();
    for discovery in &node.discovery {
        servers.extend(discovery.about.stun.iter().cloned());
        if discovery.about.abilities.meetings {
            servers.extend(discovery.about.servers.iter().cloned());
        }
    }
    servers.sort();
    servers.dedup();
    servers
}
