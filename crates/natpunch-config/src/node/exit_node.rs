//! All traffic of a node through one peer.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::model::ExitNode;
use crate::mesh::model::{MeshConfig, PeerConfig};
use crate::mesh::ports::listen_port;

/// The default routes of IPv4 and IPv6.
pub(super) const EVERYTHING: [IpNet; 2] = [
    IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(ipnet::Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

/// These networks, and the default routes of both address families.
pub fn with_default_routes(mut networks: Vec<IpNet>) -> Vec<IpNet> {
    networks.extend(EVERYTHING);
    networks.sort();
    networks.dedup();
    networks
}

/// The exit node that a peer uses. Two meshes on one host differ in their port, and so in their
/// table; its upper half is "NP", so that it is nobody else's.
pub(super) fn exit_node(mesh: &MeshConfig, own: &PeerConfig) -> Option<ExitNode> {
    let name = own.exit_node.as_ref()?;
    let exit = mesh.peers.get(name)?;
    let both = |ipv6| own.has_family(ipv6) && exit.has_family(ipv6);
    Some(ExitNode {
        peer: name.clone(),
        table: 0x4e50_0000 | u32::from(listen_port(&mesh.interface, own)),
        ipv4: both(false),
        ipv6: both(true),
        except: own.exit_except.clone(),
    })
}
