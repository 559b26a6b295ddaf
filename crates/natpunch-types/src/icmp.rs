//! What routers say of packets that this host has sent.

use std::net::{IpAddr, SocketAddr};

use crate::Nat64;

/// What an ICMP error says, as far as it is of use (RFC 792, RFC 1812, RFC 4443).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpKind {
    /// The packet has used up its hops on the way.
    TimeExceeded,
    /// Somebody has forbidden it: communication with the network, with the host, or at all (type 3,
    /// codes 9, 10 and 13; of IPv6 type 1, code 1).
    Prohibited,
    /// Nobody listens at that port (type 3, code 3; of IPv6 type 1, code 4). It says nothing of the
    /// way there, so hosts are not asked for it; some NATs end a session because of it.
    PortUnreachable,
}

/// An ICMP error about a UDP datagram of this host. Anybody may have made it up: what it quotes has
/// to be compared with what was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IcmpError {
    /// What it says.
    pub kind: IcmpKind,
    /// Who says it, in canonical form.
    pub from: IpAddr,
    /// The port that the datagram left from.
    pub source_port: u16,
    /// Where the datagram went, in canonical form.
    pub destination: SocketAddr,
    /// The beginning of its payload, as far as it is quoted: nothing, or more (RFC 792, RFC 1812,
    /// 4.3.2.3).
    pub payload: Vec<u8>,
}

impl IcmpError {
    /// The same as it is without the network's NAT64, which translates errors of IPv4 together with
    /// what they quote (RFC 7915, 4.2 and 4.3). Routers before it say their address of IPv6.
    pub fn inward(self, nat64: &Nat64) -> Self {
        Self {
            from: nat64.inward(SocketAddr::new(self.from, 0)).ip(),
            destination: nat64.inward(self.destination),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_quotes_an_address_behind_a_nat64_is_about_the_address_of_ipv4() {
        let nat64 = Nat64::learn("64:ff9b::192.0.0.170".parse().unwrap()).unwrap();
        let error = |from: &str, destination: &str| IcmpError {
            kind: IcmpKind::TimeExceeded,
            from: from.parse().unwrap(),
            source_port: 51_820,
            destination: destination.parse().unwrap(),
            payload: vec![1],
        };
        let translated = "[64:ff9b::c633:6407]:9";
        for (from, expected) in [
            ("64:ff9b::cb00:7101", "203.0.113.1"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            let said = error(from, translated).inward(&nat64);
            assert_eq!(said, error(expected, "198.51.100.7:9"));
        }
        let native = error("2001:db8::1", "[2001:db8:2::7]:9");
        assert_eq!(native.clone().inward(&nat64), native);
    }
}
