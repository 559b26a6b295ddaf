//! What WireGuard sends to peers that have no path yet: a packet socket on the loopback interface,
//! behind a packet filter.
//!
//! The packets end nowhere else: no program has the port, and the kernel's "port unreachable" does
//! not concern WireGuard. A packet socket has them also where the host's firewall lets nothing in
//! from its own loopback interface. One socket hears all resting endpoints, which are too many to
//! bind each of them.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

use natpunch_types::{INITIATION_LEN, RESTING_NETWORK, RESTING_PORT, is_initiation, is_resting};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{LinkAddr, MsgFlags, SockaddrLike as _, bind, recv};
use socket2::{Domain, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::NetError;
use crate::filter::rested;
use crate::packet::parse_ipv4;
use crate::raw::attach;
use crate::readable::readable;

/// The longest IPv4 header, the UDP header, an initiation, and one byte that tells a longer one.
const BUFFER: usize = 60 + 8 + INITIATION_LEN + 1;

/// A handshake initiation that WireGuard sent to a resting endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rested {
    /// The resting endpoint.
    pub endpoint: SocketAddr,
    /// WireGuard's message, as it would have gone to the peer.
    pub initiation: Vec<u8>,
}

/// Hears the handshake initiations that a WireGuard device sends to resting endpoints.
#[derive(Debug)]
pub struct RestingPeers {
    socket: AsyncFd<Socket>,
    /// WireGuard's port.
    port: u16,
}

impl RestingPeers {
    /// Listens to the WireGuard device at this port. What it has sent before is not heard. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// This host has no loopback interface, or natpunch may not open the socket.
    pub fn open(port: u16) -> Result<Self, NetError> {
        let socket = listen(port).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => NetError::NotPermitted,
            _ => {
                NetError::socket("listen to peers without a path on the loopback interface")(error)
            }
        })?;
        Ok(Self { socket, port })
    }

    /// The next initiation. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn recv(&self) -> Result<Rested, NetError> {
        loop {
            let mut buffer = [0; BUFFER];
            let read = |socket: &Socket| {
                match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    // The interface is down, which is told once.
                    Err(nix::Error::ENETDOWN) => Ok(0),
                    read => read.map_err(io::Error::from),
                }
            };
            let read = self.socket.async_io(Interest::READABLE, read).await;
            let length = read.map_err(NetError::socket("hear peers without a path"))?;
            if let Some(rested) = buffer.get(..length).and_then(|packet| self.parse(packet)) {
                return Ok(rested);
            }
        }
    }

    /// Judges a packet as the filter does.
    fn parse(&self, packet: &[u8]) -> Option<Rested> {
        let packet = parse_ipv4(packet)?;
        let endpoint = SocketAddr::new(packet.destination.into(), packet.udp.destination);
        let initiation = packet.udp.payload;
        let is_wireguards = packet.udp.source == self.port && packet.source.is_loopback();
        (is_wireguards && is_resting(endpoint) && is_initiation(initiation)).then(|| Rested {
            endpoint,
            initiation: initiation.to_vec(),
        })
    }
}

/// A socket that gets nothing until its filter is in place.
fn listen(port: u16) -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
    attach(&socket, &rested(port, RESTING_NETWORK, RESTING_PORT)).map_err(io::Error::other)?;
    socket.set_nonblocking(true)?;
    bind_packets(&socket, libc::ETH_P_IP, if_nametoindex("lo")?)?;
    readable(socket)
}

/// Has a packet socket see this protocol on this interface; 0 is all.
pub(crate) fn bind_packets(socket: &Socket, protocol: i32, interface: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (protocol as u16).to_be(),
        sll_ifindex: interface as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to a whole `sockaddr_ll` with its family, of the length that is given,
    // which is copied before this function returns.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
    let address = address.ok_or(io::ErrorKind::InvalidInput)?;
    Ok(bind(socket.as_raw_fd(), &address)?)
}
