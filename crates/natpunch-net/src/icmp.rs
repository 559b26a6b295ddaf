//! ICMP errors about this host's UDP datagrams: what routers on the way say.
//!
//! A raw socket gets a copy of each ICMP packet of the namespace behind the host's firewall. The
//! filter in the kernel lets through those few kinds that are of use, and that quote UDP.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use natpunch_types::{IcmpError, IcmpKind, canonical_ip};
use nix::sys::socket::{MsgFlags, SockaddrIn6, recvmsg};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::NetError;
use crate::filter::{Instruction, drop_all, op};
use crate::raw::{attach, drain};
use crate::readable::readable;

/// An error is read this far: the longest IPv4 header, the ICMP header, the quoted headers, and
/// more of the payload than tells one probe from another.
const BUFFER: usize = 60 + 8 + 60 + 8 + 64;
const ICMP_HEADER: usize = 8;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const UDP: u8 = 17;

/// Raw ICMP sockets of both families.
#[derive(Debug)]
pub struct IcmpErrors {
    v4: Option<AsyncFd<Socket>>,
    v6: Option<AsyncFd<Socket>>,
}

impl IcmpErrors {
    /// Opens the sockets. One of the families may be missing on this host. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// Raw sockets are not permitted, or there is neither family.
    pub fn open() -> Result<Self, NetError> {
        let open = |domain, protocol, program: &[Instruction]| {
            let socket = Socket::new(domain, Type::RAW, Some(protocol))
                .map_err(NetError::socket("open a raw socket for ICMP"))?;
            attach(&socket, &drop_all())?;
            drain(&socket)?;
            socket
                .set_nonblocking(true)
                .map_err(NetError::socket("configure a raw socket for ICMP"))?;
            attach(&socket, program)?;
            readable(socket).map_err(NetError::socket("watch a raw socket for ICMP"))
        };
        let v4 = open(Domain::IPV4, Protocol::ICMPV4, &program_v4());
        let v6 = open(Domain::IPV6, Protocol::ICMPV6, &program_v6());
        match (v4, v6) {
            (Err(error), Err(_)) => Err(error),
            (v4, v6) => Ok(Self {
                v4: v4.ok(),
                v6: v6.ok(),
            }),
        }
    }

    /// The next error. Dropping the future loses nothing.
    ///
    /// # Errors
    /// A socket is broken, and should not be read any more.
    pub async fn recv(&self) -> Result<IcmpError, NetError> {
        loop {
            let received = tokio::select! {
                received = receive(&self.v4, receive_v4) => received?,
                received = receive(&self.v6, receive_v6) => received?,
            };
            if let Some(error) = received {
                return Ok(error);
            }
        }
    }
}

/// One read, when there is something; `None` if it is nothing to hand on.
async fn receive(
    socket: &Option<AsyncFd<Socket>>,
    read: impl Fn(&Socket, &mut [u8]) -> io::Result<Option<IcmpError>>,
) -> Result<Option<IcmpError>, NetError> {
    let Some(socket) = socket else {
        return std::future::pending().await;
    };
    let mut buffer = [0; BUFFER];
    socket
        .async_io(Interest::READABLE, |socket| read(socket, &mut buffer))
        .await
        .map_err(NetError::socket("receive ICMP"))
}

fn receive_v4(socket: &Socket, buffer: &mut [u8]) -> io::Result<Option<IcmpError>> {
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let bytes = recvmsg::<()>(socket.as_raw_fd(), &mut slices, None, flags)?.bytes;
    Ok(buffer.get(..bytes).and_then(parse_v4))
}

fn receive_v6(socket: &Socket, buffer: &mut [u8]) -> io::Result<Option<IcmpError>> {
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut slices, None, flags)?;
    let (bytes, sender) = (message.bytes, message.address);
    let parse = |sender: SockaddrIn6| parse_v6(sender.ip(), buffer.get(..bytes)?);
    Ok(sender.and_then(parse))
}

/// An error of IPv4, from its IP header on.
fn parse_v4(packet: &[u8]) -> Option<IcmpError> {
    let (from, icmp) = ipv4(packet)?;
    let kind = match icmp.get(..2)? {
        [11, 0] => IcmpKind::TimeExceeded,
        [3, 9 | 10 | 13] => IcmpKind::Prohibited,
        _ => return None,
    };
    let quoted = icmp.get(ICMP_HEADER..)?;
    let destination = Ipv4Addr::from(<[u8; 4]>::try_from(quoted.get(16..20)?).ok()?);
    let (_, udp) = ipv4(quoted).filter(|_| quoted.get(9) == Some(&UDP))?;
    error(kind, from.into(), destination.into(), udp)
}

/// The source and what follows the header of an IPv4 packet.
fn ipv4(packet: &[u8]) -> Option<(Ipv4Addr, &[u8])> {
    let first = packet.first().filter(|first| **first >> 4 == 4)?;
    let source = Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(12..16)?).ok()?);
    Some((source, packet.get(usize::from(first & 0x0f) * 4..)?))
}

/// An error of IPv6, from its ICMP header on. One that quotes extension headers is of no use.
fn parse_v6(from: Ipv6Addr, icmp: &[u8]) -> Option<IcmpError> {
    let kind = match icmp.get(..2)? {
        [3, 0] => IcmpKind::TimeExceeded,
        [1, 1] => IcmpKind::Prohibited,
        _ => return None,
    };
    let (header, udp) = icmp.get(ICMP_HEADER..)?.split_at_checked(IPV6_HEADER)?;
    let destination = Ipv6Addr::from(<[u8; 16]>::try_from(header.get(24..40)?).ok()?);
    let is_udp = header.first()? >> 4 == 6 && header.get(6) == Some(&UDP);
    error(kind, from.into(), destination.into(), udp).filter(|_| is_udp)
}

fn error(kind: IcmpKind, from: IpAddr, to: IpAddr, udp: &[u8]) -> Option<IcmpError> {
    let (ports, rest) = udp.split_first_chunk::<4>()?;
    let [a, b, c, d] = *ports;
    let payload = rest.get(UDP_HEADER - ports.len()..)?;
    Some(IcmpError {
        kind,
        from: canonical_ip(from),
        source_port: u16::from_be_bytes([a, b]),
        destination: SocketAddr::new(canonical_ip(to), u16::from_be_bytes([c, d])),
        payload: payload.to_vec(),
    })
}

/// A branch: over so many instructions if it holds, and if it does not.
const fn branch(k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction {
        code: op::IF_EQUAL,
        jt,
        jf,
        k,
    }
}

const fn run(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Time exceeded, or the codes of "prohibited"; about UDP. A raw IPv4 socket sees a packet from its
/// IP header on.
fn program_v4() -> [Instruction; 12] {
    [
        run(op::X_HEADER_LENGTH, 0),
        run(op::LOAD_BYTE_FROM_X, 0),
        branch(11, 5, 0),
        branch(3, 0, 7),
        run(op::LOAD_BYTE_FROM_X, 1),
        branch(9, 2, 0),
        branch(10, 1, 0),
        branch(13, 0, 3),
        run(op::LOAD_BYTE_FROM_X, ICMP_HEADER as u32 + 9),
        branch(UDP as u32, 0, 1),
        run(op::RETURN, BUFFER as u32),
        run(op::RETURN, 0),
    ]
}

/// The same of IPv6, whose raw sockets see a packet from its ICMP header on.
fn program_v6() -> [Instruction; 9] {
    [
        run(op::LOAD_BYTE, 0),
        branch(3, 3, 0),
        branch(1, 0, 5),
        run(op::LOAD_BYTE, 1),
        branch(1, 0, 3),
        run(op::LOAD_BYTE, ICMP_HEADER as u32 + 6),
        branch(UDP as u32, 0, 1),
        run(op::RETURN, BUFFER as u32),
        run(op::RETURN, 0),
    ]
}

#[cfg(test)]
#[path = "icmp_tests.rs"]
mod tests;
