//! The units by which addresses are counted: a network, and a site, which may have many networks.

use std::net::{IpAddr, Ipv6Addr};

/// The first byte of the addresses that stand for [streams](crate::stream_address): one of those
/// that the IETF keeps back (RFC 4291, 2.4: only 2000::/3 is given out).
pub(super) const STREAM: u8 = 0x5a;

/// An IPv4 address, or the first 64 bits of an IPv6 one. No two are the same: the IPv6 networks
/// that begin with 32 zero bits are not assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network(u64);

impl Network {
    /// The network of an address; of that of a [stream](crate::stream_address), of its host.
    pub fn of(ip: IpAddr) -> Self {
        Self(match ip {
            IpAddr::V4(ip) => ip.to_bits().into(),
            IpAddr::V6(ip) => stream_network(ip).unwrap_or_else(|| (ip.to_bits() >> 64) as u64),
        })
    }

    /// The bits that tell it from every other.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The site that it is part of.
    pub fn site(self) -> Site {
        // IPv4 is what has 32 zero bits in front.
        let bits = if self.0 >> 32 == 0 { 8 } else { 16 };
        Site(self.0 >> bits << bits)
    }
}

/// The bits of the network that a stream comes from, if the address is that of a stream.
fn stream_network(ip: Ipv6Addr) -> Option<u64> {
    is_stream(ip).then_some((ip.to_bits() >> 56) as u64)
}

/// Whether an address stands for a stream.
pub(super) fn is_stream(ip: Ipv6Addr) -> bool {
    let [first, ..] = ip.octets();
    first == STREAM
}

/// What one subscriber may have many networks of: an IPv4 /24, or an IPv6 /48.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site(u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_an_ipv4_24_or_an_ipv6_48() {
        let site = |text: &str| Network::of(text.parse().unwrap()).site();
        assert_eq!(site("192.0.2.1"), site("192.0.2.254"));
        assert_ne!(site("192.0.2.1"), site("192.0.3.1"));
        assert_eq!(site("2001:db8:1:2::3"), site("2001:db8:1:ffff::"));
        assert_ne!(site("2001:db8:1::"), site("2001:db8:2::"));
    }
}
