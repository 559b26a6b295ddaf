//! What the kernel of this host says of its place in the network: its addresses, and which way it
//! would send a packet.

use std::net::IpAddr;

use super::nat64::Nat64;

/// What the kernel uses the link of an address for, the most useful first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkRole {
    /// The default route of the address' family leaves by it.
    DefaultRoute,
    /// A default route leaves by it, too, which another one is preferred to.
    SecondRoute,
    /// No default route leaves by it: a network by itself.
    Isolated,
    /// The same for a link of the kinds (bridge, veth, dummy) by which a host reaches its own
    /// containers and virtual machines.
    Virtual,
    /// A tunnel (WireGuard, tun, tap, vxlan, GRE and the like): another network carries it.
    Tunnel,
}

/// One address of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostAddress {
    /// The address, in [canonical](crate::canonical_ip) form.
    pub ip: IpAddr,
    /// What its link is used for.
    pub role: LinkRole,
}

/// All addresses of this host, and the routers by which it leaves its networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostNetwork {
    /// The unicast addresses of links that are up, best first.
    pub addresses: Vec<HostAddress>,
    /// The next hops of this host's default routes.
    pub routers: Vec<IpAddr>,
    /// How it reaches IPv4 addresses without any IPv4 of its own, if it does.
    pub nat64: Option<Nat64>,
}

impl HostNetwork {
    /// The addresses alone, best first.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(|address| address.ip)
    }

    /// Whether IPv6 is the only way out of this host.
    pub fn is_ipv6_only(&self) -> bool {
        let leaves = |address: &HostAddress| {
            matches!(address.role, LinkRole::DefaultRoute | LinkRole::SecondRoute)
        };
        let mut ways_out = self.addresses.iter().filter(|address| leaves(address));
        let first = ways_out.next();
        first
            .into_iter()
            .chain(ways_out)
            .all(|way| way.ip.is_ipv6())
            && first.is_some()
    }
}

/// A host with these addresses, best first, all on links of one role.
impl FromIterator<IpAddr> for HostNetwork {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(ips: I) -> Self {
        let role = LinkRole::DefaultRoute;
        Self {
            addresses: ips.into_iter().map(|ip| HostAddress { ip, role }).collect(),
            routers: Vec::new(),
            nat64: None,
        }
    }
}

/// Which way the kernel would send a packet to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// To the address itself, over a link of this host: both are on one LAN.
    OnLink,
    /// To a router.
    Routed,
    /// Into a tunnel, by a route to a network that is behind it. A default route into a tunnel is
    /// [`Routed`](Self::Routed): there may be no other way out.
    Tunneled,
    /// To no peer: this host itself, a broadcast address, a prohibited or unreachable network.
    Unusable,
}
