//! Addresses that stand for streams, where natpunch otherwise has those of UDP.
//!
//! A datagram that came in a stream has no source address of its own. A server gives it one that no
//! host can have, so that all that it counts by address and by network holds there, too. A node
//! gives the stream one of its own loopback addresses, to which WireGuard can send.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::network::{Network, STREAM, is_stream};

/// Where the forwarder of a node listens, which carries WireGuard's packets in a stream: a loopback
/// address that nothing else uses.
pub const FORWARDER: Ipv4Addr = Ipv4Addr::new(127, 78, 80, 1);

/// Whether this is the forwarder's address.
pub fn is_forwarder(ip: IpAddr) -> bool {
    ip == IpAddr::V4(FORWARDER)
}

/// The source address that a server gives the stream of this number (below 2⁵⁶) from a host. Its
/// [`Network`] is that of the host.
pub fn stream_address(host: IpAddr, stream: u64) -> SocketAddr {
    let network = u128::from(Network::of(host).bits());
    let stream = u128::from(stream & ((1 << 56) - 1));
    let bits = u128::from(STREAM) << 120 | network << 56 | stream;
    SocketAddr::new(Ipv6Addr::from_bits(bits).into(), 1)
}

/// Whether this address stands for a stream ([`stream_address`]).
pub fn is_stream_address(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if is_stream(ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AddressClass, canonical, classify, is_global};

    #[test]
    fn a_stream_counts_for_the_network_of_its_host_and_has_an_address_of_its_own() {
        for host in ["192.0.2.7", "2001:db8:1:2::3", "fd00::1"] {
            let host: IpAddr = host.parse().unwrap();
            let [one, other] = [1, 2].map(|stream| stream_address(host, stream));
            assert_ne!(one, other);
            assert!(is_stream_address(one.ip()) && !is_stream_address(host));
            assert_eq!(canonical(one), one);
            assert_eq!(Network::of(one.ip()), Network::of(host));
            assert_eq!(Network::of(one.ip()).site(), Network::of(host).site());
            assert!(!is_global(one.ip()), "no relay sends there by UDP");
        }
    }

    #[test]
    fn the_forwarder_is_at_a_loopback_address() {
        assert!(FORWARDER.is_loopback() && is_forwarder(FORWARDER.into()));
        assert!(!is_forwarder(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(classify(FORWARDER.into()), AddressClass::Never);
    }
}
