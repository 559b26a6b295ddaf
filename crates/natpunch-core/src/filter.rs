//! What can never be a peer's outer address.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use natpunch_types::{AddressClass, canonical, classify, embedded_v4, is_forwarder, is_special};

/// Why an address is not a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    /// Port 0.
    NoPort,
    /// Unspecified, loopback, multicast, broadcast or reserved.
    Special,
    /// An IPv6 address that embeds an IPv4 address which only means something elsewhere (NAT64,
    /// 6to4).
    Embedded,
    /// Valid on one link only, and nothing says which.
    ForeignLink,
    /// Inside the mesh's own networks: the tunnel would run through itself.
    Overlay,
    /// This node itself.
    Own,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPort => "port 0",
            Self::Special => "unspecified, loopback, multicast, broadcast or reserved",
            Self::Embedded => "embeds an IPv4 address that is not global",
            Self::ForeignLink => "link-local of an unknown link",
            Self::Overlay => "inside the mesh's own networks",
            Self::Own => "this node itself",
        })
    }
}

/// The candidate filter: the canonical form of an address that may be a peer's.
///
/// # Errors
/// Why it can never be one, given the mesh's networks and this node's own transport addresses.
pub fn admit(
    address: SocketAddr,
    overlay: &[IpNet],
    is_own: impl Fn(SocketAddr) -> bool,
) -> Result<SocketAddr, Rejected> {
    let address = canonical(address);
    if address.port() == 0 {
        return Err(Rejected::NoPort);
    }
    // Of who offers it, the caller knows more.
    if is_forwarder(address.ip()) {
        return Ok(address);
    }
    match classify(address.ip()) {
        AddressClass::Never => return Err(Rejected::Special),
        AddressClass::LinkLocal if !matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0) => {
            return Err(Rejected::ForeignLink);
        }
        _ if is_special(address.ip()) => return Err(Rejected::Special),
        _ => {}
    }
    if let Some(inner) = embedded_v4(address.ip())
        && (classify(inner.into()) != AddressClass::Global
            || overlay.iter().any(|net| net.contains(&IpAddr::V4(inner))))
    {
        return Err(Rejected::Embedded);
    }
    if overlay.iter().any(|net| net.contains(&address.ip())) {
        return Err(Rejected::Overlay);
    }
    if is_own(address) {
        return Err(Rejected::Own);
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str) -> Result<SocketAddr, Rejected> {
        let overlay = [
            "10.77.0.0/16".parse().unwrap(),
            "fd77::/64".parse().unwrap(),
        ];
        let own: [SocketAddr; 2] = [
            "192.168.1.10:20000".parse().unwrap(),
            "[2001:db8::10]:20000".parse().unwrap(),
        ];
        admit(address.parse().unwrap(), &overlay, |address| {
            own.contains(&address)
        })
    }

    /// Every way to write an IPv4 address as a socket address.
    fn encodings(ip: &str, port: u16) -> [String; 3] {
        [
            format!("{ip}:{port}"),
            format!("[::ffff:{ip}]:{port}"),
            format!("[::{ip}]:{port}"),
        ]
    }

    #[test]
    fn every_special_range_is_refused_in_every_encoding() {
        let table = [
            ("0.0.0.0", Rejected::Special),
            ("0.1.2.3", Rejected::Special),
            ("127.0.0.1", Rejected::Special),
            ("127.255.255.254", Rejected::Special),
            ("169.254.7.7", Rejected::ForeignLink),
            ("192.0.0.1", Rejected::Special),
            ("224.0.0.1", Rejected::Special),
            ("239.255.255.250", Rejected::Special),
            ("240.0.0.1", Rejected::Special),
            ("255.255.255.255", Rejected::Special),
            ("10.77.0.1", Rejected::Overlay),
            ("10.77.255.255", Rejected::Overlay),
        ];
        for (ip, why) in table {
            for encoding in encodings(ip, 1000).iter().filter(|_| ip != "0.0.0.0") {
                assert_eq!(check(encoding), Err(why), "{encoding}");
            }
        }
        let only_v6 = [
            ("[::]:1", Rejected::Special),
            ("[::1]:1", Rejected::Special),
            ("[ff02::1]:1", Rejected::Special),
            ("[ff0e::1]:1", Rejected::Special),
            ("[fe80::1]:1", Rejected::ForeignLink),
            ("[fec0::1]:1", Rejected::Special),
            ("[100::1]:1", Rejected::Special),
            ("[fd77::1]:1", Rejected::Overlay),
            ("[64:ff9b::7f00:1]:1", Rejected::Embedded),
            ("[64:ff9b::c0a8:101]:1", Rejected::Embedded),
            ("[64:ff9b::a4d:1]:1", Rejected::Embedded),
            ("[64:ff9b:1::cb00:7101]:1", Rejected::Special),
            ("[2001::1]:1", Rejected::Special),
            ("[::0.0.1.1]:1", Rejected::Special),
            ("[::ffff:0:a00:1]:1", Rejected::Embedded),
            ("[2001:db8::5efe:10.0.0.1]:1", Rejected::Embedded),
            ("[2002:7f00:1::1]:1", Rejected::Embedded),
            ("[2002:c0a8:101::1]:1", Rejected::Embedded),
        ];
        for (address, why) in only_v6 {
            assert_eq!(check(address), Err(why), "{address}");
        }
    }

    #[test]
    fn port_0_and_this_node_itself_are_refused_in_every_encoding() {
        for encoding in encodings("203.0.113.1", 0) {
            assert_eq!(check(&encoding), Err(Rejected::NoPort), "{encoding}");
        }
        for encoding in encodings("192.168.1.10", 20_000) {
            assert_eq!(check(&encoding), Err(Rejected::Own), "{encoding}");
        }
        assert_eq!(check("[2001:db8::10]:20000"), Err(Rejected::Own));
        assert!(
            check("192.168.1.10:20001").is_ok(),
            "another node behind the same address"
        );
    }

    #[test]
    fn what_a_peer_may_have_is_admitted_in_canonical_form() {
        for good in [
            "203.0.113.1:1",
            "192.168.1.11:20000",
            "10.0.0.1:1",
            "100.64.0.1:1",
            "172.16.0.1:1",
        ] {
            for encoding in [
                good.to_owned(),
                format!("[::ffff:{}", good.replacen(':', "]:", 1)),
            ] {
                assert_eq!(check(&encoding), Ok(good.parse().unwrap()), "{encoding}");
            }
        }
        for good in [
            "[2001:db8::1]:1",
            "[fd00::1]:1",
            "[64:ff9b::cb00:7101]:1",
            "[fe80::1%3]:1",
        ] {
            assert_eq!(check(good), Ok(good.parse().unwrap()), "{good}");
        }
    }
}
