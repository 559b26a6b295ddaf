//! The MTU of the routes to peers, as the core has found what their paths let pass.

use std::collections::BTreeMap;

use ipnet::IpNet;
use natpunch_types::PeerKey;
use natpunch_wg::{InterfaceSpec, RouteMtu};

use super::clash::{self, Clash};
use super::{Agent, AgentError};

/// What the core has said of each peer.
#[derive(Debug, Default)]
pub(super) struct RouteMtus {
    of: BTreeMap<PeerKey, RouteMtu>,
    /// The routes do not follow yet.
    changed: bool,
}

impl RouteMtus {
    /// The core says how large packets to a peer may be; `None`: as large as the interface's MTU.
    pub(super) fn set(&mut self, peer: PeerKey, mtu: Option<u16>) {
        let mtu = mtu.map_or(RouteMtu::Interface, |mtu| RouteMtu::AtMost(mtu.into()));
        self.changed |= self.of.insert(peer, mtu) != Some(mtu);
    }

    /// The interface was made anew, without what was set before.
    pub(super) fn reset(&mut self) {
        self.changed = true;
    }

    /// Forgets peers that the mesh no longer has.
    pub(super) fn keep(&mut self, is_peer: impl Fn(&PeerKey) -> bool) {
        self.of.retain(|key, _| is_peer(key));
    }

    /// The interface as it is wanted, with what is known of paths.
    pub(super) fn apply(&self, mut wanted: InterfaceSpec, clashes: &[Clash]) -> InterfaceSpec {
        let in_lan = |net: &IpNet| {
            let overlaps = |clash: &Clash| net.contains(&clash.lan) || clash.lan.contains(net);
            clashes.iter().any(overlaps)
        };
        for peer in &mut wanted.peers {
            let Some(mtu) = self.of.get(&peer.key) else {
                continue;
            };
            // A route to one address of the mesh would win over that of a LAN with the same
            // network, which is the host's own.
            let is_spared = peer.allowed_ips.iter().any(in_lan);
            peer.route_mtu = match is_spared {
                true => RouteMtu::Interface,
                false => *mtu,
            };
        }
        wanted
    }
}

impl Agent {
    /// The interface that this node wants now, with what is known of its peers' paths.
    ///
    /// # Errors
    /// As [`clash::interface`].
    pub(super) fn wanted_interface(&self) -> Result<InterfaceSpec, AgentError> {
        let wanted = clash::interface(&self.node, &self.options.runtime_dir);
        let wanted = wanted.map_err(AgentError::Program)?;
        Ok(self.route_mtus.apply(wanted, &self.clashes))
    }

    /// Lets the routes follow what the core has said since the last call: all peers at once, for a
    /// look at the routes takes long where there are many.
    pub(super) fn limit_routes(&mut self) {
        if !std::mem::take(&mut self.route_mtus.changed) {
            return;
        }
        match self.wanted_interface() {
            Ok(wanted) => self.device.limit_routes(wanted),
            Err(error) => tracing::warn!(%error, "can't set the MTU of routes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::agent::spec;
    use crate::agent::testing::{mesh, node};

    #[test]
    fn a_limit_that_would_take_addresses_from_a_lan_is_not_set() {
        let wanted = || spec::interface(&node(&mesh(2, "")), Path::new("/run/x")).unwrap();
        let keys: Vec<_> = wanted().peers.iter().map(|peer| peer.key).collect();
        let mut mtus = RouteMtus::default();
        mtus.set(keys[0], Some(1_280));
        let limits = |clashes: &[Clash]| -> Vec<RouteMtu> {
            let spec = mtus.apply(wanted(), clashes);
            spec.peers.iter().map(|peer| peer.route_mtu).collect()
        };
        assert_eq!(limits(&[]), [RouteMtu::AtMost(1_280), RouteMtu::AsIs]);
        let clash = Clash {
            network: "10.77.0.0/16".parse().unwrap(),
            lan: "10.77.0.0/24".parse().unwrap(),
            interface: "eth0".to_owned(),
            vital: Vec::new(),
        };
        assert_eq!(limits(&[clash]), [RouteMtu::Interface, RouteMtu::AsIs]);
        mtus.keep(|key| *key != keys[0]);
        assert_eq!(mtus.of.len(), 0);
    }
}
