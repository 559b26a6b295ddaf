//! ICMP echo (RFC 792, RFC 4443): whether hosts answer.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use natpunch_os::boot_time;

/// Length of an ICMP echo header, in bytes.
const HEADER: usize = 8;
/// What tells our echoes from others', behind the header.
const TOKEN: usize = 8;
/// Largest answer, in bytes: the header of IPv4 comes with it.
const LARGEST: usize = 65_536;
/// How often a request is repeated: one lost packet says nothing.
const REPEAT: Duration = Duration::from_millis(200);
/// Pause between looks at the sockets.
const PAUSE: Duration = Duration::from_millis(2);

/// Asks `targets`, and gives those that answered within `timeout`; returns as soon as all did. Each
/// request is an IP packet of `length` bytes. Blocks; needs `CAP_NET_RAW`. The number of targets is
/// the number of sockets.
///
/// What can't be asked, such as for want of a route, has not answered.
pub fn echo(targets: &[IpAddr], length: usize, timeout: Duration) -> BTreeSet<IpAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let id = NEXT
        .fetch_add(1, Ordering::Relaxed)
        .wrapping_add(std::process::id() as u16);
    let token = boot_time().as_nanos() as u64;
    let start = Instant::now();
    let mut waiting: Vec<(IpAddr, Option<Socket>)> = targets
        .iter()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|target| (*target, None))
        .collect();
    let mut answered = BTreeSet::new();
    let mut buffer = vec![0; LARGEST];
    let mut sequence = 0_u16;
    let mut ask_at = start;
    while !waiting.is_empty() {
        if Instant::now() >= ask_at {
            ask_at += REPEAT;
            sequence = sequence.wrapping_add(1);
            for (target, socket) in &mut waiting {
                // A route may come while we wait, so a socket that could not be had is tried again.
                if socket.is_none() {
                    *socket = open(*target).ok();
                }
                if let Some(open) = socket
                    && open
                        .send(&request(*target, id, sequence, token, length))
                        .is_err()
                {
                    *socket = None;
                }
            }
        }
        waiting.retain_mut(|(target, socket)| {
            let Some(socket) = socket else { return true };
            while let Ok(read) = socket.read(&mut buffer) {
                if is_answer(*target, buffer.get(..read).unwrap_or_default(), id, token) {
                    answered.insert(*target);
                    return false;
                }
            }
            true
        });
        if start.elapsed() >= timeout {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    answered
}

/// Asks one host once, and gives how long its answer took; `None` if none came within `timeout`.
/// The request is an IP packet of `length` bytes. Blocks; needs `CAP_NET_RAW`.
pub fn echo_once(target: IpAddr, length: usize, timeout: Duration) -> Option<Duration> {
    let (id, token) = (std::process::id() as u16, boot_time().as_nanos() as u64);
    let mut socket = open(target).ok()?;
    socket.set_nonblocking(false).ok()?;
    let begin = Instant::now();
    socket.send(&request(target, id, 1, token, length)).ok()?;
    let mut buffer = vec![0; LARGEST];
    loop {
        let left = timeout
            .checked_sub(begin.elapsed())
            .filter(|left| !left.is_zero())?;
        socket.set_read_timeout(Some(left)).ok()?;
        let read = socket.read(&mut buffer).ok()?;
        if is_answer(target, buffer.get(..read)?, id, token) {
            return Some(begin.elapsed());
        }
    }
}

fn open(target: IpAddr) -> io::Result<Socket> {
    let (domain, protocol) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // The kernel then passes on what comes from there only.
    socket.connect(&SocketAddr::new(target, 0).into())?;
    Ok(socket)
}

fn request(target: IpAddr, id: u16, sequence: u16, token: u64, length: usize) -> Vec<u8> {
    let (kind, ip_header) = if target.is_ipv4() { (8, 20) } else { (128, 40) };
    let mut packet = vec![kind, 0, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend(token.to_be_bytes());
    packet.resize(length.saturating_sub(ip_header).max(HEADER + TOKEN), 0);
    if target.is_ipv4() {
        // The kernel does it for ICMPv6, whose sum covers addresses.
        let sum = checksum(&packet).to_be_bytes();
        packet.splice(2..4, sum);
    }
    packet
}

/// RFC 1071.
fn checksum(packet: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in packet.chunks(2) {
        let word = [
            pair.first().copied().unwrap_or_default(),
            pair.get(1).copied().unwrap_or_default(),
        ];
        sum += u32::from(u16::from_be_bytes(word));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn is_answer(target: IpAddr, packet: &[u8], id: u16, token: u64) -> bool {
    let (kind, icmp) = match target {
        IpAddr::V4(_) => {
            let header = usize::from(packet.first().copied().unwrap_or_default() & 0x0f) * 4;
            (0, packet.get(header..).unwrap_or_default())
        }
        IpAddr::V6(_) => (129, packet),
    };
    icmp.first() == Some(&kind)
        && icmp.get(4..6) == Some(id.to_be_bytes().as_slice())
        && icmp.get(HEADER..HEADER + TOKEN) == Some(token.to_be_bytes().as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_answers_and_an_address_without_a_route_does_not() {
        let here: Vec<IpAddr> = vec!["127.0.0.1".parse().unwrap(), "127.0.0.77".parse().unwrap()];
        let start = Instant::now();
        assert_eq!(
            echo(&here, 1420, Duration::from_secs(5))
                .into_iter()
                .collect::<Vec<_>>(),
            here
        );
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "it waited although all had answered"
        );
        assert!(echo_once(here[1], 84, Duration::from_secs(5)).is_some());
        let nowhere: IpAddr = "255.255.255.255".parse().unwrap();
        assert_eq!(echo_once(nowhere, 84, Duration::from_millis(50)), None);
        assert!(echo(&[nowhere], 100, Duration::from_millis(50)).is_empty());
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
        let packet = request("192.0.2.1".parse().unwrap(), 1, 2, 3, 101);
        assert_eq!((packet.len(), checksum(&packet)), (81, 0));
    }
}
