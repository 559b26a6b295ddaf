//! Datagrams in and out of an ordinary UDP socket, many with one system call.
//!
//! A socket that is bound to a wildcard address must answer from the address that was asked: a host
//! with several (a floating IP, a VPN, IPv6 nearly always) would else answer from the one that the
//! route to the client prefers, and the client's NAT drops what comes from where it never sent
//! anything (RFC 1123 2.1, RFC 4787 5). The kernel tells by `IP_PKTINFO` which address was asked,
//! and is told by the same.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd as _};

use nix::sys::socket::{setsockopt, sockopt};

/// Datagrams that one system call takes or gives at most.
pub const BATCH: usize = 64;
/// Room for one control message of each kind that is used here, aligned as the kernel wants it.
const CONTROL: usize = 8;

/// The two ends of a datagram's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The other's address.
    pub remote: SocketAddr,
    /// Our address, and the interface if the address is link-local; `None`: that of the socket, or
    /// the route's choice.
    pub local: Option<(IpAddr, u32)>,
}

impl From<SocketAddr> for Ends {
    fn from(remote: SocketAddr) -> Self {
        Self {
            remote,
            local: None,
        }
    }
}

/// Asks the kernel to tell which address each datagram was sent to, if the socket is to be bound to
/// a wildcard.
///
/// # Errors
/// The socket is not of this family.
pub fn want_local_address(socket: &impl AsFd, bound_to: SocketAddr) -> io::Result<()> {
    match bound_to.ip() {
        ip if !ip.is_unspecified() => {}
        IpAddr::V4(_) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        IpAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}

/// Receives datagrams, up to [`BATCH`] at a time. Belongs to one thread.
pub struct Inbox {
    longest: usize,
    bytes: Vec<u8>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<[u64; CONTROL]>,
    slices: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    received: usize,
}

impl Inbox {
    /// An inbox for datagrams of up to `longest` bytes; longer ones are cut off.
    pub fn new(longest: usize) -> Self {
        Self {
            longest,
            bytes: vec![0; BATCH * longest],
            // SAFETY: an all-zero sockaddr_storage is a valid one of no family.
            names: vec![unsafe { mem::zeroed() }; BATCH],
            controls: vec![[0; CONTROL]; BATCH],
            slices: Vec::with_capacity(BATCH),
            headers: Vec::with_capacity(BATCH),
            received: 0,
        }
    }

    /// Takes what waits, in place of what was taken before; how many datagrams. Does not wait.
    ///
    /// # Errors
    /// `WouldBlock` if nothing waits.
    pub fn receive(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        self.received = 0;
        self.slices.clear();
        let slices = self.bytes.chunks_exact_mut(self.longest);
        self.slices.extend(slices.map(|bytes| libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        }));
        self.headers.clear();
        let parts = self
            .slices
            .iter_mut()
            .zip(&mut self.names)
            .zip(&mut self.controls);
        self.headers.extend(parts.map(|((slice, name), control)| {
            // SAFETY: an all-zero mmsghdr is a valid one that has no buffers.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_name = (&raw mut *name).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as _;
            header.msg_hdr.msg_iov = slice;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = size_of_val(control) as _;
            header
        }));
        // SAFETY: each header points to one name, one slice of bytes and one control buffer of the
        // lengths it says, which all live in `self`, are not touched during the call, and belong to
        // no other header.
        let received = unsafe {
            let count = self.headers.len() as libc::c_uint;
            let fd = socket.as_fd().as_raw_fd();
            libc::recvmmsg(
                fd,
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        self.received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        Ok(self.received)
    }

    /// What was received last.
    pub fn datagrams(&self) -> impl Iterator<Item = (Ends, &[u8])> {
        let parts = self
            .headers
            .iter()
            .zip(&self.names)
            .zip(self.bytes.chunks_exact(self.longest));
        parts
            .take(self.received)
            .filter_map(|((header, name), bytes)| {
                let payload = bytes.get(..header.msg_len as usize)?;
                // SAFETY: the kernel has filled in the control buffer, which the header points to
                // and which lives in `self`.
                let local = unsafe { local_of(&header.msg_hdr) };
                Some((
                    Ends {
                        remote: address_of(name)?,
                        local,
                    },
                    payload,
                ))
            })
    }
}

/// The address that a datagram was sent to.
///
/// # Safety
/// The control buffer of this header is as the kernel has left it.
unsafe fn local_of(header: &libc::msghdr) -> Option<(IpAddr, u32)> {
    // SAFETY: these walk the messages of the control buffer within the length that the kernel set;
    // the data of a message of these types is the structure that is read, at any alignment.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = libc::CMSG_DATA(message)
                        .cast::<libc::in_pktinfo>()
                        .read_unaligned();
                    return Some((
                        Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()).into(),
                        0,
                    ));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = libc::CMSG_DATA(message)
                        .cast::<libc::in6_pktinfo>()
                        .read_unaligned();
                    let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    // Else the answer takes whatever route there is.
                    let interface = if address.is_unicast_link_local() {
                        info.ipi6_ifindex
                    } else {
                        0
                    };
                    return Some((address.into(), interface));
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
    }
    None
}

fn address_of(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: this is the structure of this family, which fits in any sockaddr_storage and
            // is aligned as it is.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(name.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(name.sin6_port), 0, name.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// Sends datagrams, up to [`BATCH`] at a time. Belongs to one thread.
#[derive(Default)]
pub struct Outbox {
    names: Vec<(libc::sockaddr_storage, libc::socklen_t)>,
    controls: Vec<([u64; CONTROL], usize)>,
    slices: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Outbox {
    /// Sends these; how many went out. One that can't be sent is lost, as the network might have
    /// lost it. Does not wait.
    pub fn send<P: AsRef<[u8]>>(&mut self, socket: &impl AsFd, datagrams: &[(Ends, P)]) -> usize {
        let (mut left, mut all) = (datagrams, 0);
        while !left.is_empty() {
            let now = left.get(..BATCH).unwrap_or(left);
            let sent = self.send_batch(socket, now);
            all += sent;
            // An error is that of the first one left.
            left = left.get(sent.max(1)..).unwrap_or_default();
        }
        all
    }

    fn send_batch<P: AsRef<[u8]>>(&mut self, socket: &impl AsFd, datagrams: &[(Ends, P)]) -> usize {
        self.names.clear();
        self.names
            .extend(datagrams.iter().map(|(ends, _)| name_of(ends.remote)));
        self.controls.clear();
        self.controls
            .extend(datagrams.iter().map(|(ends, _)| control_of(ends.local)));
        self.slices.clear();
        self.slices.extend(datagrams.iter().map(|(_, payload)| {
            let payload = payload.as_ref();
            libc::iovec {
                iov_base: payload.as_ptr().cast_mut().cast(),
                iov_len: payload.len(),
            }
        }));
        self.headers.clear();
        let parts = self
            .slices
            .iter_mut()
            .zip(&mut self.names)
            .zip(&mut self.controls);
        self.headers
            .extend(parts.map(|((slice, (name, length)), (control, used))| {
                // SAFETY: an all-zero mmsghdr is a valid one that has no buffers.
                let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
                header.msg_hdr.msg_name = (&raw mut *name).cast();
                header.msg_hdr.msg_namelen = *length;
                header.msg_hdr.msg_iov = slice;
                header.msg_hdr.msg_iovlen = 1;
                if *used > 0 {
                    header.msg_hdr.msg_control = control.as_mut_ptr().cast();
                    header.msg_hdr.msg_controllen = *used as _;
                }
                header
            }));
        // SAFETY: each header points to a name, a slice and a control buffer of the lengths it
        // says, which live in `self` or in `datagrams` for as long as the call takes; the kernel
        // only reads them.
        let sent = unsafe {
            let count = self.headers.len() as libc::c_uint;
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT as _,
            )
        };
        usize::try_from(sent).unwrap_or(0)
    }
}

fn name_of(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    let address = socket2::SockAddr::from(address);
    // SAFETY: the storage that socket2 filled in is copied whole.
    let storage = unsafe {
        address
            .as_ptr()
            .cast::<libc::sockaddr_storage>()
            .read_unaligned()
    };
    (storage, address.len())
}

/// The control message that makes a datagram leave from this address, and its length.
fn control_of(local: Option<(IpAddr, u32)>) -> ([u64; CONTROL], usize) {
    let mut control = [0; CONTROL];
    let used = match local {
        None => 0,
        Some((IpAddr::V4(address), _)) => {
            let source = libc::in_addr {
                s_addr: u32::from_ne_bytes(address.octets()),
            };
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: source,
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            write_control(&mut control, libc::IPPROTO_IP, libc::IP_PKTINFO, info)
        }
        Some((IpAddr::V6(address), interface)) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: address.octets(),
                },
                ipi6_ifindex: interface as _,
            };
            write_control(&mut control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
        }
    };
    (control, used)
}

fn write_control<T>(
    control: &mut [u64; CONTROL],
    level: libc::c_int,
    kind: libc::c_int,
    value: T,
) -> usize {
    const {
        assert!(size_of::<T>() <= size_of::<libc::in6_pktinfo>());
        // SAFETY: computes a length.
        assert!(
            unsafe { libc::CMSG_SPACE(size_of::<libc::in6_pktinfo>() as _) } as usize
                <= CONTROL * 8
        );
    }
    // SAFETY: the buffer has room for a header and a value of this size, as asserted above, and is
    // aligned for a header.
    unsafe {
        let message = control.as_mut_ptr().cast::<libc::cmsghdr>();
        (*message).cmsg_level = level;
        (*message).cmsg_type = kind;
        (*message).cmsg_len = libc::CMSG_LEN(size_of::<T>() as _) as _;
        libc::CMSG_DATA(message).cast::<T>().write_unaligned(value);
        libc::CMSG_SPACE(size_of::<T>() as _) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// Waits until something can be received, at most ten seconds.
    fn receive(inbox: &mut Inbox, socket: &UdpSocket) -> Vec<(Ends, Vec<u8>)> {
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(10)))
            .unwrap();
        socket.peek_from(&mut [0]).unwrap();
        inbox.receive(socket).unwrap();
        inbox
            .datagrams()
            .map(|(ends, payload)| (ends, payload.to_vec()))
            .collect()
    }

    fn bound(address: &str) -> UdpSocket {
        let address: SocketAddr = address.parse().unwrap();
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::DGRAM,
            None,
        )
        .unwrap();
        want_local_address(&socket, address).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.into()
    }

    #[test]
    fn a_batch_arrives_as_it_was_sent_and_an_answer_leaves_from_where_was_asked() {
        for (wildcard, asked, from) in [
            ("0.0.0.0:0", "127.0.0.2", "127.0.0.3:0"),
            ("[::]:0", "::1", "[::1]:0"),
            ("127.0.0.1:0", "127.0.0.1", "127.0.0.1:0"),
        ] {
            let (server, client) = (bound(wildcard), bound(from));
            let to = SocketAddr::new(asked.parse().unwrap(), server.local_addr().unwrap().port());
            let questions: Vec<(Ends, Vec<u8>)> = (0..40_u8)
                .map(|n| (to.into(), vec![n; usize::from(n)]))
                .collect();
            let (mut inbox, mut outbox) = (Inbox::new(2048), Outbox::default());
            assert_eq!(outbox.send(&client, &questions), 40);
            let mut answers = receive(&mut inbox, &server);
            assert_eq!(
                answers
                    .iter()
                    .map(|(_, payload)| payload.clone())
                    .collect::<Vec<_>>(),
                questions
                    .iter()
                    .map(|(_, payload)| payload.clone())
                    .collect::<Vec<_>>()
            );
            for (ends, payload) in &mut answers {
                assert_eq!(ends.remote, client.local_addr().unwrap());
                assert_eq!(ends.local.is_some(), wildcard != "127.0.0.1:0");
                payload.push(0);
            }
            assert_eq!(outbox.send(&server, &answers), 40);
            let received = receive(&mut inbox, &client);
            assert_eq!(received.len(), 40);
            assert!(
                received.iter().all(|(ends, _)| ends.remote == to),
                "{received:?}"
            );
            assert_eq!(
                inbox.receive(&client).unwrap_err().kind(),
                io::ErrorKind::WouldBlock
            );
            assert_eq!(inbox.datagrams().count(), 0);
        }
    }

    #[test]
    fn a_datagram_that_cannot_be_sent_stops_no_other() {
        let (server, client) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
        let good = Ends::from(server.local_addr().unwrap());
        let bad = Ends::from(SocketAddr::from(([127, 0, 0, 1], 0)));
        let datagrams: Vec<(Ends, Vec<u8>)> = (0..200_u8)
            .map(|n| (if n % 3 == 1 { bad } else { good }, vec![n]))
            .collect();
        assert_eq!(Outbox::default().send(&client, &datagrams), 133);
        let mut inbox = Inbox::new(64);
        let mut received = 0;
        while received < 133 {
            received += receive(&mut inbox, &server).len();
        }
    }
}
