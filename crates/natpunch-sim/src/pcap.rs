//! Packets as Wireshark and tcpdump read them: the classic pcap format
//! (draft-ietf-opsawg-pcap), link type RAW (101): IP without a frame around it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use natpunch_types::{IcmpError, IcmpKind};

use crate::packet::{Packet, Payload};
use crate::trace::{Entry, What};

const MAGIC: u32 = 0xa1b2_c3d4;
const VERSION: [u16; 2] = [2, 4];
const LONGEST: u32 = 65_535;
const RAW_IP: u32 = 101;

const ICMP: u8 = 1;
const UDP: u8 = 17;

/// A capture of each place of a trace: of a host what it sends and receives, of a router what
/// passes or should pass on its outside. Times count from the start of the run.
pub(crate) fn captures<'a>(
    entries: impl Iterator<Item = &'a Entry>,
) -> BTreeMap<Arc<str>, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in entries {
        let Some(packet) = &entry.packet else {
            continue;
        };
        let packet = match entry.what {
            What::Sent | What::Delivered | What::ForwardedTo(_) | What::Dropped(_) => ip(packet),
            What::SentAs(source) => ip(&Packet {
                source,
                ..packet.clone()
            }),
            // It was captured when it left.
            What::Lost(_) | What::Note(_) => continue,
        };
        let file: &mut Vec<u8> = files.entry(entry.place.clone()).or_insert_with(file_header);
        let length = packet.len() as u32;
        let (seconds, micros) = (entry.at.as_secs() as u32, entry.at.subsec_micros());
        file.extend(words([seconds, micros, length, length]));
        file.extend(packet);
    }
    files
}

fn words(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

fn file_header() -> Vec<u8> {
    let version = u32::from(VERSION[1]) << 16 | u32::from(VERSION[0]);
    words([MAGIC, version, 0, 0, LONGEST, RAW_IP])
}

fn ip(packet: &Packet) -> Vec<u8> {
    let (source, destination) = (packet.source, packet.destination);
    let (protocol, content) = match &packet.payload {
        Payload::Icmp(error) => (ICMP, icmp_error(error, destination)),
        _ => {
            let payload = packet.payload.to_bytes();
            let mut datagram = udp_header(source, destination, payload.len());
            datagram.extend(payload.iter());
            let sum = checksum(&[
                pseudo_header(source, destination, &datagram),
                datagram.clone(),
            ]);
            datagram[6..8].copy_from_slice(&sum);
            (UDP, datagram)
        }
    };
    let mut bytes = ip_header(
        (source.ip(), destination.ip()),
        protocol,
        packet.ttl,
        content.len(),
    );
    bytes.extend(content);
    bytes
}

/// RFC 791, 3.1 and RFC 8200, 3.
fn ip_header(ips: (IpAddr, IpAddr), protocol: u8, ttl: u8, length: usize) -> Vec<u8> {
    match ips {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0];
            header.extend((length as u16 + 20).to_be_bytes());
            header.extend([0, 0, 0, 0, ttl, protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = checksum(&[header.clone()]);
            header[10..12].copy_from_slice(&sum);
            header
        }
        (source, destination) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((length as u16).to_be_bytes());
            header.extend([protocol, ttl]);
            header.extend(octets(source));
            header.extend(octets(destination));
            header
        }
    }
}

/// RFC 768, without a checksum.
fn udp_header(source: SocketAddr, destination: SocketAddr, length: usize) -> Vec<u8> {
    let fields = [source.port(), destination.port(), length as u16 + 8, 0];
    fields.into_iter().flat_map(u16::to_be_bytes).collect()
}

/// RFC 792: the error, and the beginning of what it is about.
fn icmp_error(error: &IcmpError, sender: SocketAddr) -> Vec<u8> {
    let (kind, code) = match error.kind {
        IcmpKind::TimeExceeded => (11, 0),
        IcmpKind::PortUnreachable => (3, 3),
        IcmpKind::Prohibited => (3, 13),
    };
    let (about, quoted) = (error.destination, &error.payload);
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(ip_header(
        (sender.ip(), about.ip()),
        UDP,
        1,
        8 + quoted.len(),
    ));
    message.extend(udp_header(sender, about, quoted.len()));
    message.extend(quoted);
    let sum = checksum(&[message.clone()]);
    message[2..4].copy_from_slice(&sum);
    message
}

fn pseudo_header(source: SocketAddr, destination: SocketAddr, datagram: &[u8]) -> Vec<u8> {
    let mut header = octets(source.ip());
    header.extend(octets(destination.ip()));
    header.extend([0, UDP]);
    header.extend((datagram.len() as u16).to_be_bytes());
    header
}

/// An IPv4 address among those of IPv6 is the invalid 0.0.0.0 of a packet that no family has.
fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::octets(&ip).to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// RFC 1071, over parts of which all but the last have an even length.
fn checksum(parts: &[Vec<u8>]) -> [u8; 2] {
    let pairs = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = pairs
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!(folded as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entry(what: What, source: &str, payload: Payload) -> Entry {
        let destination = "198.51.100.9:53".parse().unwrap();
        Entry {
            at: Duration::from_micros(1_000_007),
            place: "gw".into(),
            what,
            packet: Some(Packet::new(source.parse().unwrap(), destination, payload)),
        }
    }

    #[test]
    fn a_capture_has_the_bytes_of_the_standards() {
        let seen = "203.0.113.1:4000".parse().unwrap();
        let sent = entry(
            What::SentAs(seen),
            "10.0.0.2:4000",
            Payload::Raw(vec![1, 2, 3]),
        );
        let captures = captures([&sent].into_iter());
        let mut expected = words([MAGIC, 0x0004_0002, 0, 0, 65_535, 101, 1, 7, 31, 31]);
        expected.extend([0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0x14, 0x90]);
        expected.extend([203, 0, 113, 1, 198, 51, 100, 9]);
        expected.extend([0x0f, 0xa0, 0, 53, 0, 11, 0x85, 0xc2, 1, 2, 3]);
        assert_eq!(captures["gw"], expected);
    }

    #[test]
    fn what_a_link_lost_is_captured_once_where_it_left() {
        let lost = entry(
            What::Lost("lost"),
            "10.0.0.2:4000",
            Payload::Raw(Vec::new()),
        );
        assert!(captures([&lost].into_iter()).is_empty());
    }

    /// A receiver adds all up, the checksum too, and gets zero (RFC 1071).
    #[test]
    fn every_checksum_is_right() {
        let error = IcmpError {
            kind: IcmpKind::TimeExceeded,
            from: IpAddr::from([192, 0, 2, 1]),
            source_port: 4_000,
            destination: "198.51.100.7:9".parse().unwrap(),
            payload: vec![1, 2, 3],
        };
        let error = icmp_error(&error, "10.0.0.2:4000".parse().unwrap());
        assert_eq!(checksum(&[error]), [0, 0]);
        let header = ip_header(
            (IpAddr::from([10, 0, 0, 2]), IpAddr::from([1, 1, 1, 1])),
            UDP,
            9,
            8,
        );
        assert_eq!(checksum(&[header]), [0, 0]);
    }
}
