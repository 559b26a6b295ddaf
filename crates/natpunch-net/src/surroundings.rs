//! The networks that this host is in beside the mesh, and what it can't do without there.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use natpunch_types::canonical_ip;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// A network that an interface of this host is in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lan {
    /// The network.
    pub net: IpNet,
    /// The interface.
    pub interface: String,
}

/// What is around this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Networks of interfaces that are up.
    pub lans: BTreeSet<Lan>,
    /// Gateways of default routes, and resolvers: what a host can't do without.
    pub vital: BTreeSet<IpAddr>,
}

/// Looks around in this network namespace, leaving out the interface `exclude`. What can't be read
/// is not there.
pub fn surroundings(exclude: &str) -> Surroundings {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut vital = gateways_v4(&read("/proc/thread-self/net/route"), exclude);
    vital.extend(gateways_v6(
        &read("/proc/thread-self/net/ipv6_route"),
        exclude,
    ));
    vital.extend(resolvers(&read("/etc/resolv.conf")));
    Surroundings {
        lans: lans(exclude),
        vital,
    }
}

fn lans(exclude: &str) -> BTreeSet<Lan> {
    let Ok(addresses) = getifaddrs() else {
        return BTreeSet::new();
    };
    // Of a tunnel or a modem line the other end is all there is: no LAN.
    let no_lan = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_POINTOPOINT;
    let usable =
        |flags: InterfaceFlags| flags.contains(InterfaceFlags::IFF_UP) && !flags.intersects(no_lan);
    addresses
        .filter(|entry| entry.interface_name != exclude && usable(entry.flags))
        .filter_map(|entry| {
            let ip = |storage: nix::sys::socket::SockaddrStorage| -> Option<IpAddr> {
                let v4 = storage
                    .as_sockaddr_in()
                    .map(|address| IpAddr::V4(address.ip()));
                v4.or_else(|| storage.as_sockaddr_in6().map(|address| address.ip().into()))
            };
            let (address, mask) = (ip(entry.address?)?, ip(entry.netmask?)?);
            let net = IpNet::with_netmask(address, mask).ok()?.trunc();
            // One address alone is no network, and a link-local one is on every link.
            let is_lan = net.prefix_len() < net.max_prefix_len() && !is_link_local(net.addr());
            is_lan.then_some(Lan {
                net,
                interface: entry.interface_name,
            })
        })
        .collect()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Lines of `Iface Destination Gateway Flags RefCnt Use Metric Mask ...`, addresses as the bytes in
/// memory, in hex.
fn gateways_v4(table: &str, exclude: &str) -> BTreeSet<IpAddr> {
    let gateway = |line: &str| -> Option<IpAddr> {
        let mut fields = line.split_whitespace();
        let interface = fields.next()?;
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let mask = fields.nth(4)?;
        let number = u32::from_str_radix(gateway, 16).ok()?;
        let is_default = destination == "00000000" && mask == "00000000";
        (is_default && number != 0 && interface != exclude)
            .then(|| Ipv4Addr::from(number.to_ne_bytes()).into())
    };
    table.lines().filter_map(gateway).collect()
}

/// Lines of `destination length source length gateway metric refs use flags interface`.
fn gateways_v6(table: &str, exclude: &str) -> BTreeSet<IpAddr> {
    let gateway = |line: &str| -> Option<IpAddr> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (length, gateway) = (fields.get(1)?, fields.get(4)?);
        let ip = Ipv6Addr::from(u128::from_str_radix(gateway, 16).ok()?);
        let is_default = *length == "00";
        (is_default && !ip.is_unspecified() && *fields.last()? != exclude).then_some(ip.into())
    };
    let found = table.lines().filter_map(gateway);
    found.filter(|ip| !is_link_local(*ip)).collect()
}

fn resolvers(text: &str) -> BTreeSet<IpAddr> {
    let server = |line: &str| -> Option<IpAddr> {
        let rest = line.trim_start().strip_prefix("nameserver")?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let found = text.lines().filter_map(server).map(canonical_ip);
    found.filter(|ip| !ip.is_loopback()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn gateways_are_those_of_default_routes_of_other_interfaces() {
        let gateway = format!("{:08X}", u32::from_ne_bytes([10, 77, 0, 1]));
        let table = format!(
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
             eth0\t00000000\t{gateway}\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             eth0\t0000FEA9\t{gateway}\t0003\t0\t0\t100\t0000FFFF\t0\t0\t0\n\
             wg0\t00000000\t0202020A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
             eth0\t00004D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        );
        assert_eq!(gateways_v4(&table, "wg0"), ips(&["10.77.0.1"]));
        let table = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                     20010db8000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n\
                     00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                     fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n";
        assert_eq!(gateways_v6(table, "wg0"), ips(&["2001:db8::1"]));
        assert!(gateways_v6(table, "eth0").is_empty());
        for damaged in ["", "eth0", "eth0 x y", "\n\n", "0 00 0 0 zz"] {
            assert!(gateways_v4(damaged, "").is_empty() && gateways_v6(damaged, "").is_empty());
        }
    }

    #[test]
    fn resolvers_of_other_hosts_are_found() {
        let text = "# nameserver 192.0.2.9\nnameserver 10.77.0.53\n nameserver\t2001:db8::53 # x\n\
                    nameserver 127.0.0.53\nnameserver\noptions edns0\n";
        assert_eq!(resolvers(text), ips(&["10.77.0.53", "2001:db8::53"]));
    }
}
