//! Datagrams in and out of a socket that is bound to a wildcard: an answer leaves from the address that was asked.
//!
//! A host with several addresses (a floating IP, a VPN, IPv6 nearly always) would else answer from the address that
//! the route to the client prefers, and the client's NAT drops what comes from where it never sent anything
//! (RFC 1123 2.1, RFC 4787 5). The kernel tells by `IP_PKTINFO` which address was asked, and is told by the same.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;

use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmsg, sendmmsg, setsockopt,
    sockopt,
};
use socket2::Socket;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::protocols::Answer;

/// Who asked, and at which of our addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    /// The client's address.
    pub(super) remote: SocketAddr,
    /// Our address, and the interface if the address is link-local; nothing where the socket is bound to one address.
    pub(super) local: Option<(IpAddr, u32)>,
}

impl From<SocketAddr> for Caller {
    fn from(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}

/// Asks the kernel to tell which address each datagram was sent to.
pub(super) fn want_local_address(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address.ip() {
        ip if !ip.is_unspecified() => {}
        IpAddr::V4(_) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        IpAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}

/// Receives datagrams from one socket.
pub(super) struct Receiver {
    wildcard: bool,
    control: Vec<u8>,
}

impl Receiver {
    /// For a socket that [`want_local_address`] prepared.
    pub(super) fn new(socket: &UdpSocket) -> Self {
        let wildcard = socket.local_addr().is_ok_and(|address| address.ip().is_unspecified());
        Self { wildcard, control: nix::cmsg_space!(in6_pktinfo) }
    }

    /// The next datagram's length and sender.
    ///
    /// # Errors
    /// `WouldBlock` if nothing waits.
    pub(super) fn receive(&mut self, socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Caller)> {
        if !self.wildcard {
            return socket.try_recv_from(buffer).map(|(length, remote)| (length, remote.into()));
        }
        socket.try_io(Interest::READABLE, || {
            let mut slices = [IoSliceMut::new(buffer)];
            let message = recvmsg::<SockaddrStorage>(
                socket.as_raw_fd(),
                &mut slices,
                Some(&mut self.control),
                MsgFlags::MSG_DONTWAIT,
            )?;
            let remote = message.address.as_ref().and_then(socket_address).ok_or(io::ErrorKind::InvalidData)?;
            let local = message.cmsgs().ok().and_then(|mut messages| messages.find_map(|message| local_of(&message)));
            Ok((message.bytes, Caller { remote, local }))
        })
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
}

fn local_of(message: &ControlMessageOwned) -> Option<(IpAddr, u32)> {
    match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some((IpAddr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()), 0)),
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            let address = std::net::Ipv6Addr::from(info.ipi6_addr.s6_addr);
            // Else the answer takes whatever route there is.
            let interface = if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
            Some((address.into(), interface))
        }
        _ => None,
    }
}

/// Sends the first of these answers, with as many of those that follow as one system call can; how many went out.
///
/// # Errors
/// The first one could not be sent.
pub(super) fn send(socket: &UdpSocket, answers: &[(Caller, Answer)]) -> io::Result<usize> {
    let Some((Caller { remote, local }, first)) = answers.first() else { return Ok(0) };
    let same = answers.iter().take_while(|(caller, _)| caller.local == *local);
    let slices: Vec<_> = same.map(|(_, answer)| [IoSlice::new(answer)]).collect();
    if slices.len() == 1 && local.is_none() {
        return socket.try_send_to(first, *remote).map(|_| 1);
    }
    let remotes: Vec<_> =
        answers.iter().take(slices.len()).map(|(caller, _)| Some(SockaddrStorage::from(caller.remote))).collect();
    let (v4, v6);
    let (control, space) = match local {
        None => (None, None),
        Some((IpAddr::V4(address), _)) => {
            let source = in_addr { s_addr: u32::from_ne_bytes(address.octets()) };
            v4 = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: in_addr { s_addr: 0 } };
            (Some(ControlMessage::Ipv4PacketInfo(&v4)), Some(nix::cmsg_space!(in_pktinfo)))
        }
        Some((IpAddr::V6(address), interface)) => {
            v6 = in6_pktinfo { ipi6_addr: in6_addr { s6_addr: address.octets() }, ipi6_ifindex: *interface };
            (Some(ControlMessage::Ipv6PacketInfo(&v6)), Some(nix::cmsg_space!(in6_pktinfo)))
        }
    };
    let mut headers = MultiHeaders::preallocate(slices.len(), space);
    socket.try_io(Interest::WRITABLE, || {
        let sent =
            sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &remotes, control.as_slice(), MsgFlags::empty())?;
        Ok(sent.count())
    })
}
