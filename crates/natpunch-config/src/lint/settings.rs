//! Settings that do nothing, or not what was meant.

use super::place;
use crate::mesh::model::{Discovery, InterfaceConfig, MeshConfig};
use crate::report::error::ConfigError;
use crate::report::wording::Quoted;

/// IPv6 needs links of this MTU at least, in bytes (RFC 8200, 5).
const IPV6_MTU: u32 = 1280;

/// What most links carry, in bytes: the MTU of Ethernet.
const LINK_MTU: u32 = 1500;

/// What WireGuard adds to a packet, in bytes: header and tag, UDP, and IPv6 outside.
const OVERHEAD: u32 = 32 + 8 + 40;

/// What plugins find odd in their sections.
pub(super) fn sections(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    for Discovery { name, about, .. } in &mesh.discovery {
        let at = mesh.places.discovery.get(name).copied().unwrap_or_default();
        for warning in &about.warnings {
            let message = format!("`{}` {}", Quoted(name), warning.problem);
            let finding = ConfigError::at(at, message).label(warning.label);
            findings.push(finding.rule(warning.rule).help(warning.help));
        }
    }
}

pub(super) fn settings(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
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
                "write {} or less: WireGuard over UDP and IPv6 adds {OVERHEAD}; more is for \
                 networks with jumbo frames only",
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
                .label("no node uses these interface settings");
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
        findings.push(finding.rule("shared-port").help(
            "two nodes behind one NAT collide on a port: leave it out, and each node's is \
                 derived from its key",
        ));
    }
}
