//! The logins on this host, and the peers that they come through.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::Facts;

/// An authenticated login from another host, as the host's own login records have it. A connection
/// alone is none: everybody can open one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub user: String,
    /// Where from: an address, or a name where the login service looked one up.
    pub from: String,
}

impl Login {
    /// The address that it comes from, by the peers' names where a name is all that is known.
    fn address<D>(&self, facts: &Facts<D>) -> Option<IpAddr> {
        // A link-local address has the interface behind a percent sign.
        let text = self.from.split('%').next().unwrap_or_default();
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(address.to_canonical());
        }
        let mesh = &facts.node.mesh;
        let named = facts.peers.iter().find(|peer| {
            let short = text.strip_suffix(mesh).and_then(|t| t.strip_suffix('.'));
            peer.name == text || short == Some(peer.name.as_str())
        });
        named.and_then(|peer| peer.addresses.first()).copied()
    }

    /// The name of the peer that carries it, and the address behind that peer; `None` if it does
    /// not come through the mesh.
    pub(crate) fn carrier<'a, D>(&self, facts: &'a Facts<D>) -> Option<(&'a str, IpAddr)> {
        let address = self.address(facts)?;
        let networks = facts.peers.iter().flat_map(|peer| {
            let name = peer.name.as_str();
            peer.allowed_ips.iter().map(move |net| (*net, name))
        });
        // As in WireGuard the most exact network decides. Through an exit node everything fits,
        // also what comes past the tunnel, so that tells nothing.
        let fits = |(net, _): &(IpNet, &str)| net.prefix_len() > 0 && net.contains(&address);
        let best = networks
            .filter(fits)
            .max_by_key(|(net, _)| net.prefix_len());
        best.map(|(_, name)| (name, address))
    }
}
