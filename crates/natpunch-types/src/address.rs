//! Transport addresses in one canonical form, and what kind of place an address is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The one form in which natpunch compares and stores an address: an IPv4-mapped or IPv4-compatible IPv6 address
/// becomes IPv4 (RFC 4291, 2.5.5). `::` and `::1` stay what they are.
pub fn canonical_ip(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => {
            if let Some(v4) = v6.to_ipv4_mapped() {
                return IpAddr::V4(v4);
            }
            let [a, b, c, d, e, f, g, h] = v6.segments();
            let compatible = [a, b, c, d, e, f] == [0; 6] && g != 0;
            if compatible {
                let [g1, g2] = g.to_be_bytes();
                let [h1, h2] = h.to_be_bytes();
                return IpAddr::V4(Ipv4Addr::new(g1, g2, h1, h2));
            }
            ip
        }
    }
}

/// [`canonical_ip`] of a socket address. The flow label is dropped; a scope id is kept only on a link-local address,
/// where it is part of the address.
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
    /// A private (RFC 1918), unique local (RFC 4193) or shared carrier (RFC 6598) address.
    Private,
    /// Valid on one link only (RFC 3927, RFC 4291).
    LinkLocal,
    /// An address that no peer can ever have: unspecified, loopback, multicast, broadcast, documentation-only
    /// special ranges, 0.0.0.0/8, 240.0.0.0/4.
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
            } else if ip.is_private() || (a == 100 && (b & 0xc0) == 64) {
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

/// Whether an address is global in every sense: also not of a special range beyond those of [`classify`], nor an IPv6
/// address that [embeds](embedded_v4) an IPv4 address which is not global.
pub fn is_global(ip: IpAddr) -> bool {
    let plain = |ip| classify(ip) == AddressClass::Global && !is_special(ip);
    plain(canonical_ip(ip)) && embedded_v4(ip).is_none_or(|inner| plain(inner.into()))
}

/// Special ranges beyond those of [`classify`]: IETF protocol assignments (RFC 6890), discard (RFC 6666), site-local
/// (RFC 3879).
pub fn is_special(ip: IpAddr) -> bool {
    match canonical_ip(ip) {
        IpAddr::V4(v4) => matches!(v4.octets(), [192, 0, 0, _]),
        IpAddr::V6(v6) => matches!(v6.segments(), [0x100, 0, 0, 0, ..] | [0xfec0..=0xfeff, ..]),
    }
}

/// The IPv4 address inside a NAT64 (RFC 6052) or 6to4 (RFC 3056) address.
pub fn embedded_v4(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = ip else { return None };
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

/// True for addresses that two hosts of one LAN may share without a NAT between them.
pub fn is_mesh_lan(ip: IpAddr) -> bool {
    matches!(classify(ip), AddressClass::Private | AddressClass::LinkLocal)
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
        for never in
            ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1", "::ffff:127.0.0.1"]
        {
            assert_eq!(classify(never.parse().unwrap()), AddressClass::Never, "{never}");
        }
        for private in ["10.0.0.1", "100.64.0.1", "192.168.1.1", "fd00::1", "::ffff:10.0.0.1"] {
            assert_eq!(classify(private.parse().unwrap()), AddressClass::Private, "{private}");
        }
        assert_eq!(classify("fe80::1".parse().unwrap()), AddressClass::LinkLocal);
        assert_eq!(classify("203.0.113.1".parse().unwrap()), AddressClass::Global);
        for not_global in ["::ffff:10.0.0.1", "::10.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::1", "fec0::1", "192.0.0.8"]
        {
            assert!(!is_global(not_global.parse().unwrap()), "{not_global}");
        }
        for global in ["203.0.113.1", "::ffff:203.0.113.1", "64:ff9b::cb00:7101", "2001:db8::1"] {
            assert!(is_global(global.parse().unwrap()), "{global}");
        }
    }
}
