//! A packet socket behind a packet filter: it hears packets of this host that no other socket is
//! shown, from their IP header on.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd as _;

use natpunch_types::{INITIATION_LEN, RESPONSE_LEN};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{LinkAddr, MsgFlags, SockaddrLike as _, bind, recv};
use socket2::{Domain, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::NetError;
use crate::filter::Instruction;
use crate::raw::attach;
use crate::readable::readable;

/// The longest message of a handshake.
const MESSAGE: usize = if INITIATION_LEN > RESPONSE_LEN {
    INITIATION_LEN
} else {
    RESPONSE_LEN
};
/// The longest IP header without extensions, the UDP header, a message, and one byte that tells a
/// longer one.
const BUFFER: usize = 60 + 8 + MESSAGE + 1;

/// A socket that hears the handshake messages that its filter keeps.
#[derive(Debug)]
pub(crate) struct PacketEar {
    socket: AsyncFd<Socket>,
    /// What it does, for errors.
    hear: &'static str,
}

impl PacketEar {
    /// Listens from now on, to packets of this protocol (`ETH_P_IP` and the like) on this interface
    /// or on all. `listen` and `hear` say in errors what the socket is for. Must be called within a
    /// tokio runtime.
    pub(crate) fn open(
        filter: &[Instruction],
        protocol: i32,
        interface: Option<&str>,
        (listen, hear): (&'static str, &'static str),
    ) -> Result<Self, NetError> {
        let socket = open(filter, protocol, interface);
        let socket = socket.map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => NetError::NotPermitted,
            _ => NetError::socket(listen)(error),
        })?;
        Ok(Self { socket, hear })
    }

    /// The next packet in which `judge` finds something. Dropping the future loses nothing.
    pub(crate) async fn recv<T>(&self, judge: impl Fn(&[u8]) -> Option<T>) -> Result<T, NetError> {
        loop {
            let mut buffer = [0; BUFFER];
            let read = |socket: &Socket| {
                match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    // An interface is down, which is told once.
                    Err(nix::Error::ENETDOWN) => Ok(0),
                    read => read.map_err(io::Error::from),
                }
            };
            let read = self.socket.async_io(Interest::READABLE, read).await;
            let length = read.map_err(NetError::socket(self.hear))?;
            if let Some(found) = buffer.get(..length).and_then(&judge) {
                return Ok(found);
            }
        }
    }
}

/// A socket that gets nothing until its filter is in place.
fn open(
    filter: &[Instruction],
    protocol: i32,
    interface: Option<&str>,
) -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
    attach(&socket, filter).map_err(io::Error::other)?;
    socket.set_nonblocking(true)?;
    let interface = interface.map(if_nametoindex).transpose()?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (protocol as u16).to_be(),
        // 0 is all.
        sll_ifindex: interface.unwrap_or(0) as i32,
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
    bind(socket.as_raw_fd(), &address)?;
    readable(socket)
}
