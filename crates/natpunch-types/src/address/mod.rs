//! Transport addresses in one canonical form, and what kind of place an address is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub(crate) mod host;
pub(crate) mod nat64;
pub(crate) mod network;
pub(crate) mod stream;

/// The one form in which natpunch compares and stores an address: an IPv4-mapped or IPv4-compatible
/// IPv6 address becomes IPv4 (RFC 4291, 2.5.5). `::` and `::1` stay what they are.
pub fn canonical_ip(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => {
            if let Some(v4) = v6.to_ipv4_mapped() {
                return IpAddr::V4(v4);
            }
            let [a, b, c, d, e, f, g, h] = v6.segments();
            let compatible = [a, b, c, d, e, f] == [0; 6] && (g, h) > (0, 1);
            if compatible {
                let [g1, g2] = g.to_be_bytes();
                let [h1, h2] = h.to_be_bytes();
                return IpAddr::V4(Ipv4Addr::new(g1, g2, h1, h2));
            }
            ip
        }
    }
}

/// [`canonical_ip`] of a socket address. The flow label is dropped; a scope id is kept only on a
/// link-local address, where it is part of the address.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match (canonical_ip(address.ip()), address) {
        (IpAddr::V6(ip), SocketAddr::V6(v6)) if is_unicast_link_local(ip) => {
            SocketAddr::V6(std::net::SocketAddrV6::new(ip, v6.port(), 0, v6.scope_id()))
        }
        (ip, _) => SocketAddr::new(ip, address.port()),
    }
}

fn is_unicast_link_local(ip: Ipv6Addr) -> bool {
    ip.segments().first().is_some_and(|s| s & 0xffc0 == 0xfe80)
}

/// What kind of place an IP address is, as far as reaching a peer there goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressClass {
    /// A globally routable unicast address.
    Global,
    /// A private (RFC 1918), unique local (RFC 4193), shared carrier (RFC 6598) or benchmarking
    /// (RFC 2544) address.
    Private,
    /// Valid on one link only (RFC 3927, RFC 4291).
    LinkLocal,
    /// An address that no peer can ever have: unspecified, loopback, multicast, broadcast,
    /// documentation-only special ranges, 0.0.0.0/8, 240.0.0.0/4.
    Never,
}

/// The class of an address, after [`canonical_ip`].
///
/// Documentation ranges (RFC 5737, RFC 3849) count as global: labs use them as their internet.
pub fn classify(ip: IpAddr) -> AddressClass {
    match canonical_ip(ip) {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            if a == 0 || a == 127 || a >= 224 {
                AddressClass::Never
            } else if a == 169 && b == 254 {
                AddressClass::LinkLocal
            } else if ip.is_private()
                || (a == 100 && (b & 0xc0) == 64)
                || (a == 198 && (b & 0xfe) == 18)
            {
                AddressClass::Private
            } else {
                AddressClass::Global
            }
        }
        IpAddr::V6(ip) => {
            let [first, ..] = ip.segments();
            if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
                AddressClass::Never
            } else if is_unicast_link_local(ip) {
                AddressClass::LinkLocal
            } else if first & 0xfe00 == 0xfc00 {
                AddressClass::Private
            } else {
                AddressClass::Global
            }
        }
    }
}

/// Whether an address is global in every sense: by [`classify`], not of a [special](is_special)
/// range, of the only IPv6 space that is given out (2000::/3) or NAT64's, and not one that
/// [embeds](embedded_v4) an IPv4 address which is not global.
pub fn is_global(ip: IpAddr) -> bool {
    let plain = |ip| classify(ip) == AddressClass::Global && !is_special(ip);
    let ip = canonical_ip(ip);
    let given_out = match ip {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => matches!(
            v6.segments(),
            [0x2000..=0x3fff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..]
        ),
    };
    given_out && plain(ip) && embedded_v4(ip).is_none_or(|inner| plain(inner.into()))
}

/// Special ranges beyond those of [`classify`], by IANA's special-purpose address registries (RFC
/// 6890): IETF protocol assignments with Teredo, benchmarking and ORCHID among them, 6to4 relays
/// (RFC 7526), NAT64 of local use (RFC 8215), discard and dummy (RFC 6666, RFC 9780), segment
/// routing (RFC 9602), and site-local (RFC 3879). The few addresses of these that are reachable
/// from everywhere are those of services, such as anycast, never of a peer.
pub fn is_special(ip: IpAddr) -> bool {
    match canonical_ip(ip) {
        IpAddr::V4(v4) => matches!(v4.octets(), [192, 0, 0, _] | [192, 88, 99, _]),
        IpAddr::V6(v6) => matches!(
            v6.segments(),
            [0x64, 0xff9b, 1, ..]
                | [0x100, 0, 0, 0 | 1, ..]
                | [0x2001, 0..=0x1ff, ..]
                | [0x5f00, ..]
                | [0xfec0..=0xfeff, ..]
        ),
    }
}

/// The IPv4 address inside a NAT64 (RFC 6052), 6to4 (RFC 3056), ISATAP (RFC 5214) or
/// IPv4-translated (RFC 2765) address.
pub fn embedded_v4(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = ip else { return None };
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match v6.segments() {
        [0x2002, high, low, ..]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => Some(v4(high, low)),
        _ => None,
    }
}

/// True for addresses that two hosts of one LAN may share without a NAT between them.
pub fn is_mesh_lan(ip: IpAddr) -> bool {
    matches!(
        classify(ip),
        AddressClass::Private | AddressClass::LinkLocal
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_form_whatever_its_encoding() {
        let plain: SocketAddr = "203.0.113.7:51820".parse().unwrap();
        for encoding in ["[::ffff:203.0.113.7]:51820", "[::203.0.113.7]:51820"] {
            assert_eq!(canonical(encoding.parse().unwrap()), plain);
        }
        let loopback: IpAddr = "::1".parse().unwrap();
        assert_eq!(canonical_ip(loopback), loopback);
    }

    #[test]
    fn special_ranges_are_known_in_every_encoding() {
        for never in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "::ffff:127.0.0.1",
        ] {
            assert_eq!(
                classify(never.parse().unwrap()),
                AddressClass::Never,
                "{never}"
            );
        }
        for private in [
            "10.0.0.1",
            "100.64.0.1",
            "192.168.1.1",
            "fd00::1",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(
                classify(private.parse().unwrap()),
                AddressClass::Private,
                "{private}"
            );
        }
        assert_eq!(
            classify("fe80::1".parse().unwrap()),
            AddressClass::LinkLocal
        );
        assert_eq!(
            classify("203.0.113.1".parse().unwrap()),
            AddressClass::Global
        );
    }

    /// A special range by its first and last address, and where it is defined.
    const SPECIAL_V4: [(&str, &str, &str); 15] = [
        ("0.0.0.0", "0.255.255.255", "RFC 791, this network"),
        ("10.0.0.0", "10.255.255.255", "RFC 1918"),
        ("100.64.0.0", "100.127.255.255", "RFC 6598, shared"),
        ("127.0.0.0", "127.255.255.255", "RFC 1122, loopback"),
        ("169.254.0.0", "169.254.255.255", "RFC 3927, link-local"),
        ("172.16.0.0", "172.31.255.255", "RFC 1918"),
        (
            "192.0.0.0",
            "192.0.0.255",
            "RFC 6890, IETF protocol assignments",
        ),
        ("192.88.99.0", "192.88.99.255", "RFC 7526, 6to4 relays"),
        ("192.168.0.0", "192.168.255.255", "RFC 1918"),
        ("198.18.0.0", "198.19.255.255", "RFC 2544, benchmarking"),
        ("224.0.0.0", "239.255.255.255", "RFC 5771, multicast"),
        (
            "232.0.0.0",
            "232.255.255.255",
            "RFC 4607, source-specific multicast",
        ),
        ("239.0.0.0", "239.255.255.255", "RFC 2365, scoped multicast"),
        ("240.0.0.0", "255.255.255.254", "RFC 1112, reserved"),
        ("255.255.255.255", "255.255.255.255", "RFC 919, broadcast"),
    ];
    const SPECIAL_V6: [(&str, &str, &str); 20] = [
        ("::", "::", "RFC 4291, unspecified"),
        ("::1", "::1", "RFC 4291, loopback"),
        (
            "::2",
            "::0.0.255.255",
            "RFC 4291, IPv4-compatible 0.0.0.0/16",
        ),
        (
            "0:0:0:0:1::",
            "0:0:0:0:fffe:ffff:ffff:ffff",
            "RFC 4291, reserved",
        ),
        (
            "0:0:0:0:ffff::",
            "::ffff:0:255.255.255.255",
            "RFC 2765, IPv4-translated",
        ),
        (
            "64:ff9b:1::",
            "64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
            "RFC 8215, NAT64 of local use",
        ),
        ("100::", "100::ffff:ffff:ffff:ffff", "RFC 6666, discard"),
        (
            "100:0:0:1::",
            "100::1:ffff:ffff:ffff:ffff",
            "RFC 9780, dummy",
        ),
        (
            "200::",
            "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "RFC 4291, reserved",
        ),
        (
            "2001::",
            "2001:0:ffff:ffff:ffff:ffff:ffff:ffff",
            "RFC 4380, Teredo",
        ),
        (
            "2001:1::",
            "2001:1:ffff:ffff:ffff:ffff:ffff:ffff",
            "RFC 7723 and others, anycast",
        ),
        (
            "2001:2::",
            "2001:2:0:ffff:ffff:ffff:ffff:ffff",
            "RFC 5180, benchmarking",
        ),
        (
            "2001:10::",
            "2001:3f:ffff:ffff:ffff:ffff:ffff:ffff",
            "RFC 4843, RFC 7343, RFC 9374: ORCHID, DRIP",
        ),
        (
            "2001:40::",
            "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
            "RFC 2928, IETF protocol assignments",
        ),
        (
            "4000::",
            "5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "RFC 4291, reserved",
        ),
        (
            "5f00::",
            "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "RFC 9602, segment routing",
        ),
        (
            "fc00::",
            "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "RFC 4193, unique local",
        ),
        (
            "fe80::",
            "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "RFC 4291, link-local",
        ),
        (
            "fec0::",
            "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "RFC 3879, site-local",
        ),
        (
            "ff00::",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "RFC 4291, multicast",
        ),
    ];
    /// What is next to those, and the documentation's (RFC 5737).
    const GLOBAL_V4: [&str; 25] = [
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.2.1",
        "192.88.98.255",
        "192.88.100.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.100.1",
        "203.0.113.1",
        "223.255.255.255",
        "8.8.8.8",
        "192.31.196.1",
    ];
    /// What is next to those, and the documentation's (RFC 3849, RFC 9637).
    const GLOBAL_V6: [&str; 6] = [
        "2000::",
        "2001:200::",
        "2001:db8::1",
        "2003::",
        "3fff::1",
        "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ];

    /// An IPv4 address in each form in which it may come, and whether that form can be global.
    fn encodings(ip: Ipv4Addr) -> Vec<(IpAddr, bool)> {
        let number = u32::from(ip);
        let [high, low] = [(number >> 16) as u16, number as u16];
        let v6 = |segments: [u16; 8]| IpAddr::from(Ipv6Addr::from(segments));
        vec![
            (ip.into(), true),
            (v6([0, 0, 0, 0, 0, 0xffff, high, low]), true),
            (v6([0, 0, 0, 0, 0, 0, high, low]), true),
            (v6([0x64, 0xff9b, 0, 0, 0, 0, high, low]), true),
            (v6([0x2002, high, low, 0, 0, 0, 0, 1]), true),
            (v6([0x2001, 0xdb8, 0, 1, 0, 0x5efe, high, low]), true),
            (v6([0x2001, 0xdb8, 0, 1, 0x200, 0x5efe, high, low]), true),
            (v6([0, 0, 0, 0, 0xffff, 0, high, low]), false),
            (v6([0x64, 0xff9b, 1, 0, 0, 0, high, low]), false),
            // Teredo: a server, and a client whose address is inverted.
            (v6([0x2001, 0, 0xcb00, 0x7101, 0, 0, !high, !low]), false),
            (v6([0x2001, 0, high, low, 0, 0, 0x3400, 0x8efe]), false),
            (v6([0xfe80, 0, 0, 0, 0, 0x5efe, high, low]), false),
        ]
    }

    /// The same with a flow label and a scope id, after which it is canonical.
    fn scoped(ip: IpAddr) -> IpAddr {
        match ip {
            IpAddr::V4(_) => ip,
            IpAddr::V6(v6) => {
                canonical(SocketAddr::V6(std::net::SocketAddrV6::new(v6, 7, 5, 3))).ip()
            }
        }
    }

    #[test]
    fn no_address_of_a_special_range_is_global_in_any_encoding_and_its_neighbours_are() {
        for (first, last, source) in SPECIAL_V4 {
            for ip in [first, last] {
                for (encoding, _) in encodings(ip.parse().unwrap()) {
                    assert!(
                        !is_global(encoding) && !is_global(scoped(encoding)),
                        "{ip} as {encoding}: {source}"
                    );
                }
            }
        }
        for (first, last, source) in SPECIAL_V6 {
            for ip in [first, last] {
                let ip: IpAddr = ip.parse().unwrap();
                assert!(!is_global(ip) && !is_global(scoped(ip)), "{ip}: {source}");
            }
        }
        for ip in GLOBAL_V4 {
            for (encoding, can_be_global) in encodings(ip.parse().unwrap()) {
                assert_eq!(is_global(encoding), can_be_global, "{ip} as {encoding}");
                assert_eq!(
                    is_global(scoped(encoding)),
                    can_be_global,
                    "{ip} as {encoding}"
                );
            }
        }
        for ip in GLOBAL_V6 {
            assert!(is_global(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn a_scope_id_and_a_flow_label_tell_no_two_addresses_apart_but_link_local_ones() {
        let with = |ip: &str, scope| {
            SocketAddr::V6(std::net::SocketAddrV6::new(
                ip.parse().unwrap(),
                1,
                9,
                scope,
            ))
        };
        for ip in [
            "2001:db8::1",
            "::ffff:203.0.113.7",
            "::203.0.113.7",
            "fd00::1",
            "ff02::1",
        ] {
            assert_eq!(canonical(with(ip, 3)), canonical(with(ip, 0)), "{ip}");
        }
        assert_ne!(canonical(with("fe80::1", 3)), canonical(with("fe80::1", 4)));
        assert_eq!(
            canonical(with("fe80::1", 3)),
            "[fe80::1%3]:1".parse().unwrap()
        );
    }
}
