//! Which way the kernel would send a packet, by its routing rules and not by what an address looks
//! like.

use std::io;
use std::net::IpAddr;

use natpunch_types::{AddressClass, Route, classify};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink;
use crate::snapshot::{LinkKind, link_kind};

/// The way of a packet with this mark (0: none) to an address. Blocks for as long as the kernel
/// takes to answer two questions: some ten microseconds.
pub(crate) fn route(destination: IpAddr, fwmark: u32) -> io::Result<Route> {
    let (family, bits) = match destination {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.header.destination_prefix_length = bits;
    // The route itself is wanted, with its prefix length, and not a clone for this destination.
    request.header.flags = RouteFlags::FibMatch;
    request.attributes = vec![RouteAttribute::Destination(RouteAddress::from(destination))];
    if fwmark != 0 {
        request.attributes.push(RouteAttribute::Mark(fwmark));
    }
    match netlink::get(RouteNetlinkMessage::GetRoute(request)) {
        Ok(RouteNetlinkMessage::NewRoute(route)) => classify_route(destination, &route, kind_of),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        // Unreachable, prohibited or blackholed.
        Err(error) => match error.raw_os_error() {
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL) => {
                Ok(Route::Unusable)
            }
            _ => Err(error),
        },
    }
}

fn kind_of(link: u32) -> io::Result<LinkKind> {
    let mut request = LinkMessage::default();
    request.header.index = link;
    match netlink::get(RouteNetlinkMessage::GetLink(request))? {
        RouteNetlinkMessage::NewLink(link) => Ok(link_kind(&link)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn classify_route(
    destination: IpAddr,
    route: &RouteMessage,
    kind_of: impl Fn(u32) -> io::Result<LinkKind>,
) -> io::Result<Route> {
    if route.header.kind != RouteType::Unicast {
        return Ok(Route::Unusable);
    }
    let (mut link, mut has_router) = (None, false);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => has_router = true,
            // Any of the hops tells what kind of way it is.
            RouteAttribute::MultiPath(hops) => {
                link = hops.first().map(|hop| hop.interface_index);
                has_router = true;
            }
            _ => {}
        }
    }
    let kind = link.map_or(Ok(LinkKind::Physical), kind_of)?;
    let is_network = is_one_network(destination, route.header.destination_prefix_length);
    Ok(match kind {
        LinkKind::Tunnel if is_network => Route::Tunneled,
        LinkKind::Physical | LinkKind::Virtual if is_network && !has_router => Route::OnLink,
        _ => Route::Routed,
    })
}

/// Whether a route with this prefix length leads to one network, and not to the internet or a part
/// of it: a VPN that takes everything is often set as two halves of the internet, or as all of it
/// without private networks. No site has a wider private network than RFC 1918 and RFC 4193 have,
/// and few have a wider global one than /16 or /32.
fn is_one_network(destination: IpAddr, prefix_length: u8) -> bool {
    let narrowest = match (destination, classify(destination)) {
        (IpAddr::V4(_), AddressClass::Global) => 16,
        (IpAddr::V4(_), _) => 8,
        (IpAddr::V6(_), AddressClass::Global) => 32,
        (IpAddr::V6(_), _) => 7,
    };
    prefix_length >= narrowest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(kind: RouteType, prefix_length: u8, router: Option<&str>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.kind = kind;
        route.header.destination_prefix_length = prefix_length;
        route.attributes = vec![RouteAttribute::Oif(1)];
        if let Some(router) = router {
            let router: IpAddr = router.parse().unwrap();
            route
                .attributes
                .push(RouteAttribute::Gateway(router.into()));
        }
        route
    }

    #[test]
    fn a_way_is_told_by_its_link_its_router_and_its_width() {
        use {LinkKind::*, RouteType::*};
        let router = Some("192.168.1.1");
        let table = [
            ("192.168.1.5", Physical, Unicast, 24, None, Route::OnLink),
            ("192.168.1.5", Virtual, Unicast, 24, None, Route::OnLink),
            ("203.0.113.5", Physical, Unicast, 0, router, Route::Routed),
            ("10.1.2.3", Physical, Unicast, 8, router, Route::Routed),
            // Behind a modem that needs no router's address.
            ("203.0.113.5", Physical, Unicast, 0, None, Route::Routed),
            ("10.8.0.5", Tunnel, Unicast, 24, None, Route::Tunneled),
            ("10.8.0.5", Tunnel, Unicast, 8, None, Route::Tunneled),
            ("203.0.113.5", Tunnel, Unicast, 24, None, Route::Tunneled),
            ("fd77::5", Tunnel, Unicast, 64, None, Route::Tunneled),
            // A VPN that takes everything, whole, as two halves, or less private networks.
            ("203.0.113.5", Tunnel, Unicast, 0, None, Route::Routed),
            ("203.0.113.5", Tunnel, Unicast, 1, None, Route::Routed),
            ("172.64.0.1", Tunnel, Unicast, 10, None, Route::Routed),
            ("2001:db8::5", Tunnel, Unicast, 3, None, Route::Routed),
            // This host itself, and the LAN's broadcast address.
            ("192.168.1.2", Physical, Local, 32, None, Route::Unusable),
            (
                "192.168.1.255",
                Physical,
                Broadcast,
                32,
                None,
                Route::Unusable,
            ),
            (
                "192.168.9.1",
                Physical,
                BlackHole,
                24,
                None,
                Route::Unusable,
            ),
        ];
        for (to, kind, route_kind, length, router, expected) in table {
            let found = classify_route(
                to.parse().unwrap(),
                &route(route_kind, length, router),
                |_| Ok(kind),
            );
            assert_eq!(
                found.unwrap(),
                expected,
                "{to} by a {kind:?} link, /{length}"
            );
        }
    }
}
