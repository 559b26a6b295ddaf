//! What this host's WireGuard answers to handshakes: a packet socket on all interfaces, behind a
//! packet filter.
//!
//! Nobody but the kernel sees WireGuard's packets leave, and a raw socket hears only what arrives. A
//! packet socket that hears what leaves is shown every packet of the host, if only to drop it, so
//! one should live for moments.
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use natpunch_types::{RESPONSE_LEN, is_response};
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::NetError;
use crate::filter::responses;
use crate::packet::{parse_ipv4, parse_udp};
use crate::raw::attach;
use crate::readable::readable;
use crate::rest::bind_packets;

const IPV6_HEADER: usize = 40;
/// The longest IP header, the UDP header, a response, and one byte that tells a longer one.
const BUFFER: usize = 60 + 8 + RESPONSE_LEN + 1;

/// A handshake response that left this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentResponse {
    /// The port that it left from, behind this host's own rewriting of packets.
    pub source_port: u16,
    /// Where it went.
    pub destination: SocketAddr,
    /// WireGuard's message.
    pub datagram: Vec<u8>,
}

/// Hears the handshake responses that leave this host.
#[derive(Debug)]
pub struct SentResponses(AsyncFd<Socket>);

impl SentResponses {
    /// Listens from now on. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// natpunch may not open the socket, or the kernel has none of this kind.
    pub fn open() -> Result<Self, NetError> {
        let socket = listen().map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => NetError::NotPermitted,
            _ => NetError::socket("listen to WireGuard's handshake responses")(error),
        })?;
        Ok(Self(socket))
    }

    /// The next response. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn recv(&self) -> Result<SentResponse, NetError> {
        loop {
            let mut buffer = [0; BUFFER];
            let read = |socket: &Socket| {
                match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    // Some interface went down, which is told once.
                    Err(nix::Error::ENETDOWN) => Ok(0),
                    read => read.map_err(io::Error::from),
                }
            };
            let read = self.0.async_io(Interest::READABLE, read).await;
            let length = read.map_err(NetError::socket("hear WireGuard's handshake responses"))?;
            if let Some(response) = buffer.get(..length).and_then(parse) {
                return Ok(response);
            }
        }
    }
}

/// Judges a packet as the filter does.
fn parse(packet: &[u8]) -> Option<SentResponse> {
    let (destination, udp) = match packet.first()? >> 4 {
        4 => {
            let packet = parse_ipv4(packet)?;
            (IpAddr::V4(packet.destination), packet.udp)
        }
        _ => {
            let (header, segment) = packet.split_at_checked(IPV6_HEADER)?;
            let destination = <[u8; 16]>::try_from(header.get(24..)?).ok()?;
            (Ipv6Addr::from(destination).into(), parse_udp(segment)?)
        }
    };
    is_response(udp.payload).then(|| SentResponse {
        source_port: udp.source,
        destination: SocketAddr::new(destination, udp.destination),
        datagram: udp.payload.to_vec(),
    })
}

/// A socket that gets nothing until its filter is in place.
fn listen() -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
    attach(&socket, &responses()).map_err(io::Error::other)?;
    socket.set_nonblocking(true)?;
    // Only a socket for all protocols is shown what leaves.
    bind_packets(&socket, libc::ETH_P_ALL, 0)?;
    readable(socket)
}
