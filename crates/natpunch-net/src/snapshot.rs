//! The links, addresses and default routes of this host at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use natpunch_types::{AddressClass, HostAddress, HostNetwork, LinkRole, canonical_ip, classify};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink;

/// Most addresses that a host is said to have.
const MAX_ADDRESSES: usize = 256;
/// The protocol number of the routes that natpunch sets itself.
const OUR_ROUTES: RouteProtocol = RouteProtocol::Other(0x4e);
/// A router may have a million routes. The kernel lists the default ones first.
const MAX_ROUTES: usize = 4096;

/// What kind of link it is, as far as that tells what is behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkKind {
    /// A cable, a radio, a modem, or a bundle of such.
    Physical,
    /// Between this host and its containers and virtual machines.
    Virtual,
    /// Carried by another network.
    Tunnel,
}

/// An address that is in use, on a link that is up; the best first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct LocalAddress {
    role: LinkRole,
    temporary: bool,
    link: u32,
    ip: IpAddr,
}

/// All that matters here of the links and addresses of a host. Links without an address of use,
/// like those that come and go with containers, are not part of it.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    addresses: BTreeSet<LocalAddress>,
    routers: BTreeSet<IpAddr>,
}

/// The links by which default routes leave, and the routers there.
#[derive(Debug, Default)]
struct DefaultRoutes {
    /// The metric of the best one by each link, of IPv6 (true) and of IPv4.
    metrics: BTreeMap<(bool, u32), u32>,
    routers: BTreeSet<IpAddr>,
}

impl Snapshot {
    pub(crate) fn take(exclude: &[&str]) -> io::Result<Self> {
        let links = netlink::dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let addresses = netlink::dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let request = RouteNetlinkMessage::GetRoute(request);
            routes.extend(netlink::dump_first(&request, MAX_ROUTES)?);
        }
        Ok(Self::from_messages(&links, &addresses, &routes, exclude))
    }

    fn from_messages(
        links: &[RouteNetlinkMessage],
        addresses: &[RouteNetlinkMessage],
        routes: &[RouteNetlinkMessage],
        exclude: &[&str],
    ) -> Self {
        let kinds: BTreeMap<u32, LinkKind> = links
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) if is_usable_link(link, exclude) => {
                    Some((link.header.index, link_kind(link)))
                }
                _ => None,
            })
            .collect();
        let ways_out = DefaultRoutes::of(routes);
        let addresses = addresses.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(address) => local_address(address),
            _ => None,
        });
        Self {
            addresses: addresses
                .filter_map(|address| {
                    let kind = kinds.get(&address.link)?;
                    let role = ways_out.role(&address, *kind);
                    Some(LocalAddress { role, ..address })
                })
                .collect(),
            routers: ways_out.routers,
        }
    }

    /// Whether the addresses and what their links are used for are the same.
    pub(crate) fn has_addresses_of(&self, other: &Self) -> bool {
        self.addresses == other.addresses
    }

    pub(crate) fn network(&self) -> HostNetwork {
        let mut seen = BTreeSet::new();
        HostNetwork {
            addresses: self
                .addresses
                .iter()
                .filter(|address| seen.insert(address.ip))
                .take(MAX_ADDRESSES)
                .map(|LocalAddress { ip, role, .. }| HostAddress {
                    ip: *ip,
                    role: *role,
                })
                .collect(),
            routers: self.routers.iter().copied().collect(),
            nat64: None,
        }
    }

    /// True if packets to others may take this route. The kernel's own routes come and go with the
    /// addresses; routes over links without an address, our own WireGuard interface among them,
    /// carry nothing of WireGuard's.
    pub(crate) fn is_way_out(&self, route: &RouteMessage) -> bool {
        let derived = matches!(
            route.header.kind,
            RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast
        ) || route.header.protocol == RouteProtocol::Kernel
            || route.header.flags.contains(RouteFlags::Cloned);
        let link = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(link) => Some(*link),
                _ => None,
            });
        !derived
            && route.header.protocol != OUR_ROUTES
            && link.is_none_or(|link| self.addresses.iter().any(|address| address.link == link))
    }
}

impl DefaultRoutes {
    fn of(routes: &[RouteNetlinkMessage]) -> Self {
        let mut known = Self::default();
        for message in routes {
            if let RouteNetlinkMessage::NewRoute(route) = message {
                known.add(route);
            }
        }
        known
    }

    fn add(&mut self, route: &RouteMessage) {
        let (mut table, mut metric) = (u32::from(route.header.table), 0);
        let (mut links, mut routers) = (Vec::new(), Vec::new());
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Oif(link) => links.push(*link),
                RouteAttribute::Gateway(router) => routers.push(router),
                RouteAttribute::MultiPath(hops) => {
                    for hop in hops {
                        links.push(hop.interface_index);
                        routers.extend(hop.attributes.iter().filter_map(gateway));
                    }
                }
                _ => {}
            }
        }
        let is_default = route.header.destination_prefix_length == 0
            && route.header.kind == RouteType::Unicast
            && table == u32::from(RouteHeader::RT_TABLE_MAIN);
        if !is_default {
            return;
        }
        let is_ipv6 = route.header.address_family == AddressFamily::Inet6;
        for link in links {
            let best = self.metrics.entry((is_ipv6, link)).or_insert(metric);
            *best = (*best).min(metric);
        }
        self.routers
            .extend(routers.into_iter().filter_map(|router| match router {
                RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
                RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
                _ => None,
            }));
    }

    /// What the link of an address is used for.
    fn role(&self, address: &LocalAddress, kind: LinkKind) -> LinkRole {
        let is_ipv6 = address.ip.is_ipv6();
        let metric = self.metrics.get(&(is_ipv6, address.link));
        let best = self
            .metrics
            .iter()
            .filter(|((family, _), _)| *family == is_ipv6)
            .map(|(_, metric)| metric)
            .min();
        match (kind, metric) {
            // A tunnel broker's IPv6 (RFC 4213) is reached through the tunnel from everywhere; a
            // private address is not.
            (LinkKind::Tunnel, Some(_)) if classify(address.ip) == AddressClass::Global => {
                LinkRole::SecondRoute
            }
            (LinkKind::Tunnel, _) => LinkRole::Tunnel,
            (_, Some(metric)) if Some(metric) == best => LinkRole::DefaultRoute,
            (_, Some(_)) => LinkRole::SecondRoute,
            (LinkKind::Physical, None) => LinkRole::Isolated,
            (LinkKind::Virtual, None) => LinkRole::Virtual,
        }
    }
}

fn gateway(attribute: &RouteAttribute) -> Option<&RouteAddress> {
    match attribute {
        RouteAttribute::Gateway(router) => Some(router),
        _ => None,
    }
}

/// The kind of a link by what the kernel says of its driver: its name is anybody's choice.
pub(crate) fn link_kind(link: &LinkMessage) -> LinkKind {
    let infos = link
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
    let kind = infos.flatten().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        // Meshes and VPNs: WireGuard, tun and tap (also of ZeroTier, Tailscale, OpenVPN, and of
        // natpunch's own embedded device).
        Some(InfoKind::Wireguard | InfoKind::Tun | InfoKind::Xfrm | InfoKind::Vti | InfoKind::Vti6)
        // Overlays of container networks.
        | Some(InfoKind::Vxlan | InfoKind::Geneve | InfoKind::BatAdv | InfoKind::BareUdp)
        // One network within another.
        | Some(
            InfoKind::IpIp
            | InfoKind::Ip6Tnl
            | InfoKind::SitTun
            | InfoKind::GreTun
            | InfoKind::GreTun6
            | InfoKind::GreTap
            | InfoKind::GreTap6
            | InfoKind::ErSpan
            | InfoKind::Ip6ErSpan
            | InfoKind::Gtp
            | InfoKind::Amt,
        ) => LinkKind::Tunnel,
        Some(
            InfoKind::Bridge
            | InfoKind::Veth
            | InfoKind::Dummy
            | InfoKind::Ifb
            | InfoKind::Netkit
            | InfoKind::Vrf,
        ) => LinkKind::Virtual,
        _ => LinkKind::Physical,
    }
}

fn is_usable_link(link: &LinkMessage, exclude: &[&str]) -> bool {
    let flags = link.header.flags;
    let is_excluded = link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::IfName(name) => exclude.contains(&name.as_str()),
        _ => false,
    });
    flags.contains(LinkFlags::Up | LinkFlags::Running)
        && !flags.contains(LinkFlags::Loopback)
        && !is_excluded
}

fn local_address(message: &AddressMessage) -> Option<LocalAddress> {
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            // On a point-to-point link this is the other end, and `Local` is there too.
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let ip = canonical_ip(local.or(address)?);
    let is_reachable = match classify(ip) {
        AddressClass::Global | AddressClass::Private => true,
        AddressClass::LinkLocal => ip.is_ipv4(),
        AddressClass::Never => false,
    };
    let not_in_use = AddressFlags::Dadfailed | AddressFlags::Deprecated;
    let tentative =
        flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    // The flag means "secondary" on IPv4, where it is nothing special.
    let temporary =
        message.header.family == AddressFamily::Inet6 && flags.contains(AddressFlags::Secondary);
    (is_reachable && !flags.intersects(not_in_use) && !tentative).then_some(LocalAddress {
        // Known once its link is.
        role: LinkRole::Isolated,
        temporary,
        link: message.header.index,
        ip,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, flags: LinkFlags) -> RouteNetlinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = flags;
        RouteNetlinkMessage::NewLink(link)
    }

    fn address(link: u32, ip: &str, flags: AddressFlags) -> RouteNetlinkMessage {
        let ip: IpAddr = ip.parse().unwrap();
        let mut address = AddressMessage::default();
        address.header.family = if ip.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        address.header.index = link;
        address.attributes = vec![
            AddressAttribute::Address(ip),
            AddressAttribute::Flags(flags),
        ];
        RouteNetlinkMessage::NewAddress(address)
    }

    /// The addresses of a host with one link that is up (1), one without a carrier (2), and
    /// loopback (3).
    fn addresses(of: &[RouteNetlinkMessage]) -> Vec<String> {
        let up = LinkFlags::Up | LinkFlags::Running;
        let links = [
            link(1, up),
            link(2, LinkFlags::Up),
            link(3, up | LinkFlags::Loopback),
        ];
        Snapshot::from_messages(&links, of, &[], &[])
            .network()
            .ips()
            .map(|ip| ip.to_string())
            .collect()
    }

    #[test]
    fn temporary_addresses_come_last_and_those_not_in_use_not_at_all() {
        let none = AddressFlags::empty();
        let of = [
            address(1, "2001:db8::7e4", AddressFlags::Secondary),
            address(1, "2001:db8::1", none),
            address(1, "192.0.2.1", none),
            address(1, "192.0.2.2", AddressFlags::Secondary),
            address(1, "2001:db8::2", AddressFlags::Tentative),
            address(
                1,
                "2001:db8::3",
                AddressFlags::Tentative | AddressFlags::Optimistic,
            ),
            address(1, "2001:db8::4", AddressFlags::Deprecated),
            address(
                1,
                "2001:db8::5",
                AddressFlags::Tentative | AddressFlags::Dadfailed,
            ),
            address(1, "fe80::1", none),
            address(1, "169.254.7.7", none),
            address(2, "192.0.2.3", none),
            address(3, "192.0.2.4", none),
            address(4, "192.0.2.5", none),
        ];
        let expected = [
            "169.254.7.7",
            "192.0.2.1",
            "192.0.2.2",
            "2001:db8::1",
            "2001:db8::3",
            "2001:db8::7e4",
        ];
        assert_eq!(addresses(&of), expected);
    }

    #[test]
    fn the_list_of_addresses_is_bounded() {
        let many: Vec<_> = (0..=511)
            .map(|n| {
                let ip = format!("192.0.{}.{}", 2 + n / 256, n % 256);
                address(1, &ip, AddressFlags::empty())
            })
            .collect();
        assert_eq!(addresses(&many).len(), MAX_ADDRESSES);
    }

    fn link_of_kind(index: u32, kind: Option<InfoKind>) -> RouteNetlinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up | LinkFlags::Running;
        let info = kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        message.attributes.extend(info);
        RouteNetlinkMessage::NewLink(message)
    }

    fn default_route(link: u32, router: &str, metric: u32) -> RouteNetlinkMessage {
        let router: IpAddr = router.parse().unwrap();
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.address_family = if router.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        route.attributes = vec![
            RouteAttribute::Oif(link),
            RouteAttribute::Gateway(router.into()),
            RouteAttribute::Priority(metric),
        ];
        RouteNetlinkMessage::NewRoute(route)
    }

    #[test]
    fn a_tunnel_is_told_by_its_driver_and_comes_last_unless_it_is_the_way_to_the_internet() {
        let none = AddressFlags::empty();
        let links = [
            link_of_kind(1, Some(InfoKind::Wireguard)),
            link_of_kind(2, Some(InfoKind::Tun)),
            link_of_kind(3, Some(InfoKind::Vxlan)),
            link_of_kind(4, Some(InfoKind::Bridge)),
            link_of_kind(5, None),
            link_of_kind(6, Some(InfoKind::SitTun)),
            link_of_kind(7, None),
        ];
        let of = [
            address(1, "10.8.0.2", none),
            address(2, "10.147.17.2", none),
            address(3, "10.244.1.0", none),
            address(4, "172.17.0.1", none),
            address(5, "192.168.1.2", none),
            address(6, "2001:db8::2", none),
            address(7, "192.168.9.2", none),
        ];
        let routes = [
            // A VPN that takes everything is still a tunnel.
            default_route(1, "10.8.0.1", 50),
            default_route(5, "192.168.1.1", 100),
            default_route(6, "2001:db8::1", 1024),
        ];
        let network = Snapshot::from_messages(&links, &of, &routes, &[]).network();
        let found: Vec<(String, LinkRole)> = network
            .addresses
            .iter()
            .map(|address| (address.ip.to_string(), address.role))
            .collect();
        let expected = [
            ("192.168.1.2", LinkRole::SecondRoute),
            ("2001:db8::2", LinkRole::SecondRoute),
            ("192.168.9.2", LinkRole::Isolated),
            ("172.17.0.1", LinkRole::Virtual),
            ("10.8.0.2", LinkRole::Tunnel),
            ("10.147.17.2", LinkRole::Tunnel),
            ("10.244.1.0", LinkRole::Tunnel),
        ];
        assert_eq!(found, expected.map(|(ip, role)| (ip.to_owned(), role)));
    }
}
