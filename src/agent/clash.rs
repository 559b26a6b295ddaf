//! Where a LAN that this host is in has addresses of the mesh, too: what goes where then, and what
//! the mesh leaves alone so that the host is never worse off than without it.
//!
//! A LAN with the same network or a part of it wins by its route, whichever was there first: its
//! metric is lower, or it is more exact. A LAN that is larger would lose what the mesh has; where
//! its gateway or a resolver is among that, the mesh does not take its network there.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use natpunch_net::{Lan, Surroundings, surroundings};
use natpunch_wg::InterfaceSpec;
use serde::{Deserialize, Serialize};

use super::{Agent, spec};
use crate::config::NodeConfig;

/// A network of the mesh that is also one of a LAN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clash {
    /// The mesh's network.
    pub network: IpNet,
    /// The LAN's.
    pub lan: IpNet,
    /// The interface that is in the LAN.
    pub interface: String,
    /// What the LAN's hosts would be cut off from: their gateway, resolvers. The mesh does not take
    /// the network then.
    pub vital: Vec<IpAddr>,
}

impl Clash {
    /// Whether packets to the addresses that both have go to the LAN.
    fn lan_wins(&self) -> bool {
        !self.vital.is_empty() || self.network.contains(&self.lan)
    }
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            network,
            lan,
            interface,
            vital,
        } = self;
        write!(
            f,
            "the LAN {lan} on {interface} has addresses of the mesh's {network}: "
        )?;
        let vital: Vec<String> = vital.iter().map(ToString::to_string).collect();
        if !vital.is_empty() {
            write!(
                f,
                "{} of the LAN would be cut off, so the mesh does not take {network} here; no peer \
                 in it is reached until this host leaves the LAN or the mesh has another network",
                vital.join(" and ")
            )
        } else if self.lan_wins() {
            write!(
                f,
                "packets to {lan} go to the LAN, and no peer with an address in it is reached \
                 until this host leaves the LAN or one of the two is renumbered"
            )
        } else {
            write!(
                f,
                "packets to {network} go to the mesh, and no host of the LAN with an address in it \
                 is reached"
            )
        }
    }
}

/// The networks that the mesh has on this host and that a LAN has, too.
pub(crate) fn clashes(wanted: &InterfaceSpec, around: &Surroundings) -> Vec<Clash> {
    let own = wanted.addresses.iter().map(IpNet::trunc);
    let networks = own
        .filter(|net| net.prefix_len() < net.max_prefix_len())
        .chain(wanted.routes.iter().map(IpNet::trunc));
    let mut found = Vec::new();
    for network in networks {
        for Lan { net, interface } in &around.lans {
            if !network.contains(net) && !net.contains(&network) {
                continue;
            }
            // A network that peers offer and that this host is in is the case that metrics are for.
            let is_route = wanted.routes.contains(&network);
            if is_route && network == *net {
                continue;
            }
            let taken = |ip: &&IpAddr| network.contains(*ip) && net.contains(*ip);
            let vital = if *net != network && net.contains(&network) {
                around.vital.iter().filter(taken).copied().collect()
            } else {
                Vec::new()
            };
            found.push(Clash {
                network,
                lan: *net,
                interface: interface.clone(),
                vital,
            });
        }
    }
    found
}

/// Takes those networks out of what is wanted of the interface that would cut this host off from
/// its gateway or a resolver. The node keeps its own address.
pub(super) fn spare(wanted: &mut InterfaceSpec, clashes: &[Clash]) {
    let spared = |net: IpNet| {
        let is_vital = |clash: &Clash| clash.network == net && !clash.vital.is_empty();
        clashes.iter().any(is_vital)
    };
    wanted.routes.retain(|route| !spared(route.trunc()));
    for address in &mut wanted.addresses {
        if spared(address.trunc()) {
            *address = IpNet::from(address.addr());
        }
    }
}

/// [`spec::interface`] as this host can have it where it is now.
///
/// # Errors
/// As [`spec::interface`].
pub(crate) fn interface(node: &NodeConfig, runtime_dir: &Path) -> std::io::Result<InterfaceSpec> {
    let mut wanted = spec::interface(node, runtime_dir)?;
    let found = clashes(&wanted, &surroundings(&node.interface));
    spare(&mut wanted, &found);
    Ok(wanted)
}

impl Agent {
    /// Says what clashes now and did not before, and sees to it that the interface follows.
    pub(super) fn look_for_clashes(&mut self) {
        let Ok(wanted) = spec::interface(&self.node, &self.options.runtime_dir) else {
            return;
        };
        let found = clashes(&wanted, &surroundings(&self.node.interface));
        if found == self.clashes {
            return;
        }
        for clash in found.iter().filter(|clash| !self.clashes.contains(clash)) {
            tracing::warn!("{clash}");
        }
        for clash in self.clashes.iter().filter(|clash| !found.contains(clash)) {
            tracing::info!(
                network = %clash.network, lan = %clash.lan, interface = %clash.interface,
                "the LAN with addresses of the mesh is gone"
            );
        }
        let vital = |clashes: &[Clash]| clashes.iter().any(|clash| !clash.vital.is_empty());
        let moves = vital(&found) || vital(&self.clashes);
        self.clashes = found;
        if moves {
            self.look_for_drift();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::agent::testing::{mesh, node};

    fn wanted(address: &str, routes: &[&str]) -> InterfaceSpec {
        let mut wanted = spec::interface(&node(&mesh(2, "")), Path::new("/run/x")).unwrap();
        wanted.addresses = vec![address.parse().unwrap()];
        wanted.routes = routes.iter().map(|route| route.parse().unwrap()).collect();
        wanted
    }

    fn around(lan: &str, vital: &[&str]) -> Surroundings {
        Surroundings {
            lans: BTreeSet::from([Lan {
                net: lan.parse().unwrap(),
                interface: "eth0".to_owned(),
            }]),
            vital: vital.iter().map(|ip| ip.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn a_lan_with_a_network_of_the_mesh_is_named_and_one_with_another_is_not() {
        let wanted = wanted("10.77.0.1/24", &[]);
        for (lan, lan_wins) in [
            ("10.77.0.0/24", true),
            ("10.77.0.128/25", true),
            ("10.0.0.0/8", false),
        ] {
            let found = clashes(&wanted, &around(lan, &[]));
            assert_eq!(found.len(), 1, "{lan}");
            assert_eq!(found[0].lan_wins(), lan_wins, "{lan}");
            let said = found[0].to_string();
            assert!(said.contains("eth0") && said.contains(lan), "{said}");
        }
        assert!(clashes(&wanted, &around("192.168.1.0/24", &["192.168.1.1"])).is_empty());
    }

    #[test]
    fn a_network_with_the_gateway_of_a_larger_lan_in_it_is_not_taken() {
        let mut wanted = wanted("10.77.0.5/24", &["10.88.0.0/16", "10.99.0.0/24"]);
        let around = around("10.0.0.0/8", &["10.77.0.1", "10.99.0.53", "9.9.9.9"]);
        let found = clashes(&wanted, &around);
        spare(&mut wanted, &found);
        let nets = |texts: &[&str]| -> Vec<IpNet> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        assert_eq!(wanted.addresses, nets(&["10.77.0.5/32"]));
        assert_eq!(wanted.routes, nets(&["10.88.0.0/16"]));
    }

    #[test]
    fn where_the_lan_wins_by_its_route_nothing_is_changed() {
        let before = wanted("10.77.0.5/24", &["192.168.1.0/24"]);
        for lan in ["10.77.0.0/24", "10.77.0.0/25", "192.168.1.0/24"] {
            let mut after = before.clone();
            let found = clashes(&after, &around(lan, &["10.77.0.1", "192.168.1.1"]));
            spare(&mut after, &found);
            assert_eq!(after.addresses, before.addresses, "{lan}");
            assert_eq!(after.routes, before.routes, "{lan}");
        }
    }
}
