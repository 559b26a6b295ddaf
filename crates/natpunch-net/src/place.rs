//! Which network this host is in, by what stays the same there and is another elsewhere: the
//! hardware address of the router and the network's prefix.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::{NetError, netlink};

/// A router may have a million routes. The kernel lists the default ones first.
const MAX_ROUTES: usize = 4_096;
/// Neighbours that are looked through for the router.
const MAX_NEIGHBOURS: usize = 4_096;
/// The discard service (RFC 863): nobody answers there.
const DISCARD: u16 = 9;

/// The network that this host is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// One with this name, which no other is likely to have, and which stays the same over a
    /// restart: `02:00:00:00:00:01 192.168.1.0/24`.
    Known(String),
    /// The router has not said its hardware address yet. It was asked for it.
    Asked,
    /// There is no way out.
    None,
}

/// The best default route of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct WayOut {
    link: u32,
    router: Option<IpAddr>,
}

/// Names the network that this host is in: by its IPv4, and by its IPv6 only where it has no IPv4,
/// since prefixes of IPv6 change from day to day at many sites. Interfaces of natpunch's own have no
/// route in the table that is looked at. Blocks for as long as the kernel takes to answer: less
/// than a millisecond.
///
/// # Errors
/// The kernel does not say.
pub fn place() -> Result<Place, NetError> {
    find().map_err(NetError::socket("name the network"))
}

fn find() -> io::Result<Place> {
    let ways = |family| -> io::Result<Option<WayOut>> {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let routes = netlink::dump_first(&RouteNetlinkMessage::GetRoute(request), MAX_ROUTES)?;
        Ok(best(&routes))
    };
    let way = match ways(AddressFamily::Inet)? {
        Some(way) => Some((way, true)),
        None => ways(AddressFamily::Inet6)?.map(|way| (way, false)),
    };
    let Some((way, is_v4)) = way else {
        return Ok(Place::None);
    };
    let neighbours = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let neighbours = netlink::dump_first(&neighbours, MAX_NEIGHBOURS)?;
    let hardware = way
        .router
        .map(|router| hardware(&neighbours, way.link, router));
    if let (Some(router), Some(None)) = (way.router, &hardware) {
        ask(way.link, router)?;
        return Ok(Place::Asked);
    }
    let addresses = if is_v4 {
        netlink::dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?
    } else {
        Vec::new()
    };
    Ok(named(hardware.flatten(), &prefixes(&addresses, way.link)))
}

fn named(hardware: Option<&[u8]>, prefixes: &BTreeSet<IpNet>) -> Place {
    let mut name = String::new();
    for (place, byte) in hardware.unwrap_or_default().iter().enumerate() {
        let colon = if place == 0 { "" } else { ":" };
        let _ = write!(name, "{colon}{byte:02x}");
    }
    for prefix in prefixes {
        let space = if name.is_empty() { "" } else { " " };
        let _ = write!(name, "{space}{prefix}");
    }
    match name.is_empty() {
        true => Place::None,
        false => Place::Known(name),
    }
}

/// The default route of the lowest metric in the main table.
fn best(routes: &[RouteNetlinkMessage]) -> Option<WayOut> {
    let ways = routes.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route) => way_out(route),
        _ => None,
    });
    ways.min_by_key(|(metric, _)| *metric).map(|(_, way)| way)
}

/// Its metric, and where it leads.
fn way_out(route: &RouteMessage) -> Option<(u32, WayOut)> {
    let (mut table, mut metric) = (u32::from(route.header.table), 0);
    let (mut link, mut router) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(address) => router = ip(address),
            _ => {}
        }
    }
    let is_default = route.header.destination_prefix_length == 0
        && route.header.kind == RouteType::Unicast
        && table == u32::from(RouteHeader::RT_TABLE_MAIN);
    let link = link.filter(|_| is_default)?;
    Some((metric, WayOut { link, router }))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// The hardware address of a host on a link, if it has said it.
fn hardware(neighbours: &[RouteNetlinkMessage], link: u32, host: IpAddr) -> Option<&[u8]> {
    let of_host = |message: &&NeighbourMessage| {
        let is_it = |attribute: &NeighbourAttribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => host == *ip,
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => host == *ip,
            _ => false,
        };
        message.header.ifindex == link && message.attributes.iter().any(is_it)
    };
    let neighbours = neighbours.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
        _ => None,
    });
    let found = neighbours.filter(of_host).find_map(|neighbour| {
        let mut attributes = neighbour.attributes.iter();
        attributes.find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(address) => Some(address.as_slice()),
            _ => None,
        })
    });
    found.filter(|address| !address.is_empty() && address.iter().any(|byte| *byte != 0))
}

/// The networks of IPv4 that a link is in.
fn prefixes(addresses: &[RouteNetlinkMessage], link: u32) -> BTreeSet<IpNet> {
    let prefix = |message: &RouteNetlinkMessage| {
        let RouteNetlinkMessage::NewAddress(address) = message else {
            return None;
        };
        let local = address
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
                _ => None,
            })?;
        let net = Ipv4Net::new(local, address.header.prefix_len).ok()?;
        let is_of_use = address.header.index == link && !local.is_link_local();
        is_of_use.then(|| IpNet::V4(net.trunc()))
    };
    addresses.iter().filter_map(prefix).collect()
}

/// Has the kernel ask the router for its hardware address, by a packet without content.
fn ask(link: u32, router: IpAddr) -> io::Result<()> {
    let (own, to): (SocketAddr, SocketAddr) = match router {
        IpAddr::V4(ip) => (([0; 4], 0).into(), (ip, DISCARD).into()),
        IpAddr::V6(ip) => (
            ([0; 16], 0).into(),
            SocketAddrV6::new(ip, DISCARD, 0, link).into(),
        ),
    };
    UdpSocket::bind(own)?.send_to(&[], to).map(|_| ())
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteProtocol;

    use super::*;

    fn route(link: u32, metric: u32, router: &str) -> RouteNetlinkMessage {
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Dhcp;
        let router: IpAddr = router.parse().unwrap();
        route.attributes = vec![
            RouteAttribute::Oif(link),
            RouteAttribute::Priority(metric),
            RouteAttribute::Gateway(router.into()),
        ];
        RouteNetlinkMessage::NewRoute(route)
    }

    fn neighbour(link: u32, ip: &str, hardware: &[u8]) -> RouteNetlinkMessage {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.ifindex = link;
        let destination = match ip.parse().unwrap() {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        };
        neighbour.attributes = vec![NeighbourAttribute::Destination(destination)];
        if !hardware.is_empty() {
            let address = NeighbourAttribute::LinkLayerAddress(hardware.to_vec());
            neighbour.attributes.push(address);
        }
        RouteNetlinkMessage::NewNeighbour(neighbour)
    }

    fn address(link: u32, ip: [u8; 4], length: u8) -> RouteNetlinkMessage {
        let mut address = AddressMessage::default();
        (address.header.index, address.header.prefix_len) = (link, length);
        address.attributes = vec![AddressAttribute::Local(IpAddr::from(ip))];
        RouteNetlinkMessage::NewAddress(address)
    }

    #[test]
    fn a_network_is_named_by_the_router_of_the_best_way_out_and_its_prefix() {
        let routes = [route(3, 600, "10.0.0.1"), route(2, 100, "192.168.1.1")];
        let way = best(&routes).unwrap();
        let router = "192.168.1.1".parse().unwrap();
        assert_eq!(
            way,
            WayOut {
                link: 2,
                router: Some(router)
            }
        );
        let neighbours = [
            neighbour(3, "192.168.1.1", &[9; 6]),
            neighbour(2, "192.168.1.7", &[8; 6]),
            neighbour(2, "192.168.1.1", &[2, 0, 0, 0, 0, 1]),
        ];
        let addresses = [
            address(2, [192, 168, 1, 77], 24),
            address(2, [169, 254, 3, 4], 16),
            address(3, [10, 0, 0, 5], 8),
        ];
        let hardware = hardware(&neighbours, way.link, router);
        let name = "02:00:00:00:00:01 192.168.1.0/24".to_owned();
        assert_eq!(
            named(hardware, &prefixes(&addresses, way.link)),
            Place::Known(name)
        );
    }

    #[test]
    fn a_router_that_has_not_answered_has_no_hardware_address() {
        let router = "192.168.1.1".parse().unwrap();
        for neighbours in [
            vec![],
            vec![neighbour(2, "192.168.1.1", &[])],
            vec![neighbour(2, "192.168.1.1", &[0; 6])],
        ] {
            assert_eq!(hardware(&neighbours, 2, router), None);
        }
        assert_eq!(named(None, &BTreeSet::new()), Place::None);
    }
}
