//! UDP datagrams as bytes. Checksums are computed on the way out and never checked on the way in:
//! between virtual devices a packet carries only a part of its checksum, to be finished by hardware
//! that is not there.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::Ipv4Packet;
use pnet_packet::udp::{MutableUdpPacket, UdpPacket, ipv4_checksum, ipv6_checksum};

const UDP_HEADER: usize = 8;

/// A UDP datagram without its network header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Udp<'a> {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) payload: &'a [u8],
}

/// An IPv4 packet that holds a UDP datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ipv4Udp<'a> {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) ttl: u8,
    pub(crate) udp: Udp<'a>,
}

/// Reads a UDP header and what it covers. Bytes after the length that it states are cut off, as the
/// kernel does.
pub(crate) fn parse_udp(segment: &[u8]) -> Option<Udp<'_>> {
    let header = UdpPacket::new(segment)?;
    let payload = segment.get(UDP_HEADER..usize::from(header.get_length()))?;
    Some(Udp {
        source: header.get_source(),
        destination: header.get_destination(),
        payload,
    })
}

/// Reads an IPv4 packet from its header on, whatever the header's length; fragments are refused.
pub(crate) fn parse_ipv4(packet: &[u8]) -> Option<Ipv4Udp<'_>> {
    let ip = Ipv4Packet::new(packet)?;
    let header = usize::from(ip.get_header_length()) * 4;
    let is_fragment = ip.get_fragment_offset() != 0 || ip.get_flags() & 1 != 0;
    if ip.get_version() != 4
        || header < Ipv4Packet::minimum_packet_size()
        || ip.get_next_level_protocol() != IpNextHeaderProtocols::Udp
        || is_fragment
    {
        return None;
    }
    let segment = packet.get(header..usize::from(ip.get_total_length()))?;
    Some(Ipv4Udp {
        source: ip.get_source(),
        destination: ip.get_destination(),
        ttl: ip.get_ttl(),
        udp: parse_udp(segment)?,
    })
}

/// A UDP datagram with its checksum; `None` if the payload is too long for one, or the families
/// differ.
pub(crate) fn build_udp(
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let mut segment = vec![0; usize::from(length)];
    let mut udp = MutableUdpPacket::new(&mut segment)?;
    udp.set_source(source.port());
    udp.set_destination(destination.port());
    udp.set_length(length);
    udp.set_payload(payload);
    let checksum = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4_checksum(&udp.to_immutable(), &from, &to),
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6_checksum(&udp.to_immutable(), &from, &to),
        _ => return None,
    };
    // Zero would mean "no checksum" (RFC 768), which IPv6 forbids (RFC 8200, 8.1).
    udp.set_checksum(if checksum == 0 { 0xffff } else { checksum });
    Some(segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The Internet checksum over a pseudo header and a segment, written without the code under
    /// test: 0 if it is right.
    fn residue(source: IpAddr, destination: IpAddr, segment: &[u8]) -> u16 {
        let mut bytes = Vec::new();
        for ip in [source, destination] {
            match ip {
                IpAddr::V4(ip) => bytes.extend(ip.octets()),
                IpAddr::V6(ip) => bytes.extend(ip.octets()),
            }
        }
        bytes.extend((segment.len() as u32).to_be_bytes());
        bytes.extend([0, 0, 0, 17]);
        bytes.extend(segment);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        let sum: u64 = bytes
            .chunks(2)
            .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let folded = (0..4).fold(sum, |sum, _| (sum >> 16) + (sum & 0xffff));
        !(folded as u16)
    }

    #[test]
    fn a_built_datagram_has_a_valid_checksum_that_is_never_zero() {
        for (from, to) in [
            ("192.0.2.1:51820", "198.51.100.7:3478"),
            ("[2001:db8::1]:51820", "[2001:db8:ffff::7]:3478"),
        ] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            // Among 65,536 payloads of two bytes there is one whose checksum comes out as zero.
            for payload in (0..=u16::MAX).map(u16::to_be_bytes) {
                let segment = build_udp(from, to, &payload).unwrap();
                assert_ne!(segment[6..8], [0, 0]);
                assert_eq!(residue(from.ip(), to.ip(), &segment), 0);
            }
            for length in [0, 1, 2, 3, 1471, 1472, 65_527] {
                let segment = build_udp(from, to, &vec![0x5a; length]).unwrap();
                assert_eq!(residue(from.ip(), to.ip(), &segment), 0, "{length}");
            }
            assert_eq!(build_udp(from, to, &vec![0; 65_528]), None);
            assert_eq!(
                build_udp(from, "127.0.0.1:1".parse().unwrap(), b"x").is_some(),
                from.is_ipv4()
            );
        }
    }

    #[test]
    fn what_was_built_is_read_back() {
        let (from, to) = (
            "192.0.2.1:51820".parse().unwrap(),
            "198.51.100.7:3478".parse().unwrap(),
        );
        let segment = build_udp(from, to, b"payload").unwrap();
        assert_eq!(
            parse_udp(&segment),
            Some(Udp {
                source: 51820,
                destination: 3478,
                payload: b"payload"
            })
        );
    }

    #[test]
    fn the_length_of_the_udp_header_must_fit_and_cuts_what_follows() {
        let mut segment = vec![0xca, 0x6c, 0x0d, 0x96, 0, 12, 0, 0, 1, 2, 3, 4, 5, 6];
        assert_eq!(parse_udp(&segment).unwrap().payload, [1, 2, 3, 4]);
        for length in 0..=u16::MAX {
            segment[4..6].copy_from_slice(&length.to_be_bytes());
            assert_eq!(
                parse_udp(&segment).is_some(),
                (8..=14).contains(&length),
                "{length}"
            );
        }
    }
}
