//! IPv4 addresses as a host without IPv4 reaches them, through a NAT64 of its network (RFC 6146).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{canonical, is_global};

/// The name that has IPv4 addresses only, so that an IPv6 address of it shows the prefix of the
/// network's NAT64 (RFC 7050, 3).
pub const IPV4_ONLY_NAME: &str = "ipv4only.arpa";
/// The addresses of that name (RFC 7050, 8.2).
const WELL_KNOWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];

/// The lengths of a prefix in bytes, the most usual first (RFC 6052, 2.2).
const LENGTHS: [usize; 6] = [12, 8, 7, 6, 5, 4];
/// Bits 64 to 71 are zero, and no part of the IPv4 address (RFC 6052, 2.2).
const RESERVED: usize = 8;

/// The prefix by which a network's NAT64 tells IPv4 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nat64 {
    prefix: [u8; 16],
    /// In bytes: 4, 5, 6, 7, 8 or 12.
    length: usize,
}

impl Nat64 {
    /// The prefix that an address of [`IPV4_ONLY_NAME`] shows, if it shows one.
    pub fn learn(shown: Ipv6Addr) -> Option<Self> {
        let with_length = |length| Nat64 {
            prefix: shown.octets(),
            length,
        };
        let shows = |nat64: &Nat64| WELL_KNOWN.contains(&nat64.extracted(shown));
        let nat64 = LENGTHS.into_iter().map(with_length).find(shows)?;
        let mut prefix = [0; 16];
        for (to, from) in prefix.iter_mut().zip(nat64.prefix).take(nat64.length) {
            *to = from;
        }
        Some(Nat64 { prefix, ..nat64 })
    }

    /// Where packets for an address go: a global IPv4 address is translated, every other one stays.
    /// Private ones mean something in the own network only, which the NAT64 is not part of.
    pub fn outward(&self, address: SocketAddr) -> SocketAddr {
        match canonical(address) {
            SocketAddr::V4(v4) if is_global(IpAddr::V4(*v4.ip())) => {
                SocketAddr::new(self.embedded(*v4.ip()).into(), v4.port())
            }
            _ => address,
        }
    }

    /// Whom an address means: the reverse of [`outward`](Self::outward).
    pub fn inward(&self, address: SocketAddr) -> SocketAddr {
        let SocketAddr::V6(v6) = address else {
            return address;
        };
        let inner = self.extracted(*v6.ip());
        let is_ours = self.embedded(inner) == *v6.ip() && is_global(IpAddr::V4(inner));
        if is_ours {
            SocketAddr::new(inner.into(), v6.port())
        } else {
            address
        }
    }

    /// The places of an IPv4 address' bytes.
    fn places(&self) -> impl Iterator<Item = usize> {
        (self.length..).filter(|place| *place != RESERVED).take(4)
    }

    fn embedded(&self, inner: Ipv4Addr) -> Ipv6Addr {
        let mut bytes = self.prefix;
        for (place, byte) in self.places().zip(inner.octets()) {
            if let Some(at) = bytes.get_mut(place) {
                *at = byte;
            }
        }
        bytes.into()
    }

    fn extracted(&self, outer: Ipv6Addr) -> Ipv4Addr {
        let (bytes, mut inner) = (outer.octets(), [0; 4]);
        for (to, place) in inner.iter_mut().zip(self.places()) {
            *to = bytes.get(place).copied().unwrap_or_default();
        }
        inner.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 6052, 2.4: a prefix, and 192.0.2.33 behind it.
    const EXAMPLES: [(&str, &str); 6] = [
        ("2001:db8:c000:221::", "2001:db8:c000:aa::"),
        ("2001:db8:1c0:2:21::", "2001:db8:1c0:0:aa::"),
        ("2001:db8:122:c000:2:2100::", "2001:db8:122:c000:0:aa00::"),
        ("2001:db8:122:3c0:0:221::", "2001:db8:122:3c0:0:aa::"),
        (
            "2001:db8:122:344:c0:2:2100::",
            "2001:db8:122:344:c0:0:aa00::",
        ),
        (
            "2001:db8:122:344::192.0.2.33",
            "2001:db8:122:344::192.0.0.170",
        ),
    ];

    #[test]
    fn the_examples_of_the_standard_come_out_both_ways() {
        for (address, shown) in EXAMPLES {
            let nat64 = Nat64::learn(shown.parse().unwrap()).unwrap();
            let ipv4: SocketAddr = "192.0.2.33:51820".parse().unwrap();
            let ipv6 = SocketAddr::new(address.parse().unwrap(), 51820);
            assert_eq!(nat64.outward(ipv4), ipv6, "{shown}");
            assert_eq!(nat64.inward(ipv6), ipv4, "{shown}");
        }
    }

    #[test]
    fn a_name_server_without_a_nat64_shows_no_prefix() {
        for shown in ["2001:db8::1", "::1", "64:ff9b::192.0.2.33"] {
            assert_eq!(Nat64::learn(shown.parse().unwrap()), None, "{shown}");
        }
    }

    #[test]
    fn what_the_nat64_does_not_translate_stays_as_it_is() {
        let nat64 = Nat64::learn("64:ff9b::192.0.0.171".parse().unwrap()).unwrap();
        for address in [
            "192.168.1.5:1",
            "10.0.0.1:1",
            "127.78.80.1:1",
            "255.255.255.255:1",
            "[2001:db8::1]:1",
        ] {
            let address = address.parse().unwrap();
            assert_eq!(nat64.outward(address), address);
        }
        for address in ["[2001:db8::1]:1", "[64:ff9b::192.168.1.5]:1", "192.0.2.1:1"] {
            let address = address.parse().unwrap();
            assert_eq!(nat64.inward(address), address);
        }
    }
}
