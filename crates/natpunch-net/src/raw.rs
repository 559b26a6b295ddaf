//! Raw UDP sockets that speak from a port which another socket, WireGuard's, owns.
//!
//! The owner keeps getting all of its own packets; these sockets get copies of those that the
//! [filter](crate::filter) lets through, and WireGuard drops them, since they don't have its shape.

use std::collections::BTreeSet;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

use natpunch_os::{allow_fragments, without_fragments};
use natpunch_types::{Nat64, Route, Travel, canonical, lock};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, recvmsg, sendmsg,
    setsockopt, sockopt,
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::NetError;
use crate::filter::{Family, Instruction, Rules, drop_all, unscoped};
use crate::packet::{build_udp, parse_ipv4, parse_udp};
use crate::readable::readable;
use crate::source::{SourceCache, interface_of};

/// Most sources whose datagrams pass the filter whatever their shape.
pub const MAX_SOURCES: usize = 64;

/// Longest IPv4 header, UDP header, and the longest payload that is read; a longer datagram is
/// dropped.
const BUFFER: usize = 60 + 8 + 2048;

/// A datagram that came to the port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Canonical address of the sender; with a scope id if it is link-local.
    pub source: SocketAddr,
    /// The address that it was sent to, which may be a broadcast or multicast address.
    pub destination: IpAddr,
    /// Time to live, or hop limit, as it arrived.
    pub ttl: Option<u8>,
    /// What follows the UDP header.
    pub payload: Vec<u8>,
}

/// Raw IPv4 and IPv6 sockets on one UDP port. What comes out of [`recv`](Self::recv) is a probe,
/// STUN, or a datagram from an allowed source; nothing of it has been authenticated, and its UDP
/// checksum has not been looked at.
#[derive(Debug)]
pub struct RawPort {
    v4: Option<AsyncFd<Socket>>,
    v6: Option<AsyncFd<Socket>>,
    rules: Mutex<Rules>,
    /// Held while a datagram leaves, since options of the sockets hold for all.
    sending: Mutex<()>,
    fwmark: AtomicU32,
    sources: SourceCache,
}

impl RawPort {
    /// Opens the sockets for a UDP port of this network namespace. Packets are sent with `fwmark`
    /// (0: none), as WireGuard does. One of the families may be missing on this host. Must be
    /// called within a tokio runtime.
    pub fn open(port: u16, fwmark: u32) -> Result<Self, NetError> {
        let rules = Rules {
            port,
            sources: BTreeSet::new(),
            nat64: None,
        };
        let open = |family| match unfiltered(family) {
            Ok(socket) => filtered(socket, family, &rules, fwmark).map(Ok),
            Err(error) if is_missing(&error) => Ok(Err(error)),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(NetError::NotPermitted),
            Err(source) => Err(NetError::Socket {
                what: "open a raw socket",
                source,
            }),
        };
        let (v4, v6) = match (open(Family::V4)?, open(Family::V6)?) {
            (Err(error), Err(_)) => return Err(NetError::NoFamily(error)),
            (v4, v6) => (v4.ok(), v6.ok()),
        };
        tracing::debug!(
            port,
            fwmark,
            ipv4 = v4.is_some(),
            ipv6 = v6.is_some(),
            "raw sockets are open"
        );
        Ok(Self {
            v4,
            v6,
            rules: Mutex::new(rules),
            sending: Mutex::new(()),
            fwmark: AtomicU32::new(fwmark),
            sources: SourceCache::default(),
        })
    }

    /// The port that these sockets speak from.
    pub fn port(&self) -> u16 {
        self.rules().port
    }

    /// Lets datagrams of any shape from this address and port through, at most [`MAX_SOURCES`] of
    /// them: for servers whose protocol can't be told from others by its bytes.
    pub fn allow_source(&self, source: SocketAddr) -> Result<(), NetError> {
        let mut rules = self.rules();
        let mut changed = rules.clone();
        if !changed.sources.insert(unscoped(source)) {
            return Ok(());
        }
        if changed.sources.len() > MAX_SOURCES {
            return Err(NetError::TooManySources {
                address: source,
                limit: MAX_SOURCES,
            });
        }
        self.install(&changed)?;
        *rules = changed;
        Ok(())
    }

    /// Takes back [`allow_source`](Self::allow_source); what is queued from there is dropped.
    pub fn forbid_source(&self, source: SocketAddr) -> Result<(), NetError> {
        let mut rules = self.rules();
        if rules.sources.remove(&unscoped(source)) {
            // If the kernel keeps the wider program, the narrower rules still hold for what is
            // read.
            self.install(&rules)?;
        }
        Ok(())
    }

    /// Changes the mark of what is sent from now on (0: none).
    pub fn set_fwmark(&self, fwmark: u32) -> Result<(), NetError> {
        for socket in [&self.v4, &self.v6].into_iter().flatten() {
            socket
                .get_ref()
                .set_mark(fwmark)
                .map_err(NetError::socket("set the fwmark of a raw socket"))?;
        }
        self.fwmark.store(fwmark, Ordering::Relaxed);
        self.sources.clear();
        Ok(())
    }

    /// Has global IPv4 addresses translated on their way, from now on or no more: they are sent to as
    /// the network's NAT64 has them, and what comes from there comes from them.
    pub fn set_nat64(&self, nat64: Option<Nat64>) -> Result<(), NetError> {
        let mut rules = self.rules();
        let changed = Rules {
            nat64,
            ..rules.clone()
        };
        self.install(&changed)?;
        *rules = changed;
        Ok(())
    }

    /// Forgets which source address belongs to which destination: to be called when links,
    /// addresses or routes changed. What is remembered is a second old at most.
    pub fn forget_routes(&self) {
        self.sources.clear();
    }

    /// Which way the kernel would send a packet of this port to an address.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn route(&self, destination: IpAddr) -> Result<Route, NetError> {
        let destination = self.translated(SocketAddr::new(destination, 0)).ip();
        crate::route::route(destination, self.fwmark.load(Ordering::Relaxed))
            .map_err(NetError::socket("ask the kernel for a route"))
    }

    /// The next datagram that passes. Dropping the future loses nothing. An error means that a
    /// socket is broken, and that the port should be opened anew.
    pub async fn recv(&self) -> Result<Received, NetError> {
        let mut v4 = [0; BUFFER];
        let mut v6 = [0; BUFFER];
        loop {
            let received = tokio::select! {
                received = receive(&self.v4, |socket| receive_v4(socket, &mut v4)) => received?,
                received = receive(&self.v6, |socket| receive_v6(socket, &mut v6)) => received?,
            };
            let Some((port, received)) = received else {
                continue;
            };
            let rules = self.rules();
            let source = match rules.nat64 {
                Some(nat64) => nat64.inward(received.source),
                None => received.source,
            };
            if rules.accept(source, port, &received.payload) {
                return Ok(Received { source, ..received });
            }
        }
    }

    /// Sends one datagram from the port.
    ///
    /// Without a `source` address it takes the one that a route lookup gives, as WireGuard does.
    /// With one, a broadcast or multicast leaves through the interface that owns it. An error that
    /// [is soft](NetError::is_soft) concerns this datagram only. Never blocks.
    pub fn send(
        &self,
        source: Option<IpAddr>,
        destination: SocketAddr,
        travel: Travel,
        payload: &[u8],
    ) -> Result<(), NetError> {
        let destination = self.translated(canonical(destination));
        let send =
            |socket: &Socket| self.try_send(socket, source, destination, travel.ttl(), payload);
        // What must arrive whole changes the socket for all that is sent by it meanwhile.
        let _order = lock(&self.sending);
        let sent = self.socket_to(destination).and_then(|socket| match travel {
            Travel::Usual | Travel::Ttl(_) => send(socket),
            Travel::Whole => without_fragments(socket, send),
        });
        sent.map_err(|source| NetError::Send {
            destination,
            source,
        })
    }

    /// The socket of an address' family.
    fn socket_to(&self, destination: SocketAddr) -> io::Result<&Socket> {
        let socket = match destination {
            SocketAddr::V4(_) => &self.v4,
            SocketAddr::V6(_) => &self.v6,
        };
        let socket = socket.as_ref().map(AsyncFd::get_ref);
        socket.ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
    }

    fn try_send(
        &self,
        socket: &Socket,
        source: Option<IpAddr>,
        destination: SocketAddr,
        ttl: Option<u8>,
        payload: &[u8],
    ) -> io::Result<()> {
        let source = match source {
            Some(source) => natpunch_types::canonical_ip(source),
            None => self
                .sources
                .lookup(destination, self.fwmark.load(Ordering::Relaxed))?,
        };
        let segment = build_udp(SocketAddr::new(source, self.port()), destination, payload)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
        let segment = [IoSlice::new(&segment)];
        let ttl = ttl.map(i32::from);
        match (source, destination) {
            (IpAddr::V4(source), SocketAddr::V4(destination)) => {
                let interface = if is_link_wide(destination.ip().to_owned().into()) {
                    interface_of(source.into())
                } else {
                    0
                };
                let info = libc::in_pktinfo {
                    ipi_ifindex: interface as libc::c_int,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(source.octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let mut control = vec![ControlMessage::Ipv4PacketInfo(&info)];
                control.extend(ttl.as_ref().map(ControlMessage::Ipv4Ttl));
                let destination =
                    SockaddrIn::from(std::net::SocketAddrV4::new(*destination.ip(), 0));
                sendmsg(
                    socket.as_raw_fd(),
                    &segment,
                    &control,
                    MsgFlags::MSG_DONTWAIT,
                    Some(&destination),
                )?;
            }
            (IpAddr::V6(source), SocketAddr::V6(destination)) => {
                let interface = match destination.scope_id() {
                    0 if is_link_wide(destination.ip().to_owned().into()) => {
                        interface_of(source.into())
                    }
                    scope => scope,
                };
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: source.octets(),
                    },
                    ipi6_ifindex: interface,
                };
                let mut control = vec![ControlMessage::Ipv6PacketInfo(&info)];
                control.extend(ttl.as_ref().map(ControlMessage::Ipv6HopLimit));
                // A raw IPv6 socket takes the port for a protocol number.
                let destination =
                    SockaddrIn6::from(SocketAddrV6::new(*destination.ip(), 0, 0, interface));
                sendmsg(
                    socket.as_raw_fd(),
                    &segment,
                    &control,
                    MsgFlags::MSG_DONTWAIT,
                    Some(&destination),
                )?;
            }
            _ => return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        }
        Ok(())
    }

    /// The kernel swaps the program of a socket in one step: no packet meets an open door in
    /// between.
    fn install(&self, rules: &Rules) -> Result<(), NetError> {
        for (socket, family) in [(&self.v4, Family::V4), (&self.v6, Family::V6)] {
            if let Some(socket) = socket {
                attach(socket.get_ref(), &rules.program(family))?;
            }
        }
        Ok(())
    }

    fn translated(&self, address: SocketAddr) -> SocketAddr {
        let nat64 = self.rules().nat64;
        nat64.map_or(address, |nat64| nat64.outward(address))
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        lock(&self.rules)
    }
}

/// A raw socket as the kernel makes it: it receives every UDP packet of the namespace from this
/// moment on.
fn unfiltered(family: Family) -> io::Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::UDP))?;
    allow_fragments(&socket)?;
    Ok(socket)
}

/// Closes the door, throws out what came in before, and only then opens it as far as the rules say.
fn filtered(
    socket: Socket,
    family: Family,
    rules: &Rules,
    fwmark: u32,
) -> Result<AsyncFd<Socket>, NetError> {
    attach(&socket, &drop_all())?;
    drain(&socket)?;
    configure(&socket, family, fwmark).map_err(NetError::socket("configure a raw socket"))?;
    attach(&socket, &rules.program(family))?;
    readable(socket).map_err(NetError::socket("watch a raw socket"))
}

pub(crate) fn attach(socket: &Socket, program: &[Instruction]) -> Result<(), NetError> {
    let program: Vec<_> = program
        .iter()
        .map(|line| SockFilter::new(line.code, line.jt, line.jf, line.k))
        .collect();
    socket
        .attach_filter(&program)
        .map_err(NetError::socket("attach a packet filter to a raw socket"))
}

/// Empties the queue, which grows no more.
pub(crate) fn drain(socket: &Socket) -> Result<(), NetError> {
    let mut byte = [0];
    loop {
        match nix::sys::socket::recv(socket.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => return Ok(()),
            Err(error) => return Err(NetError::socket("empty a raw socket")(error.into())),
        }
    }
}

fn configure(socket: &Socket, family: Family, fwmark: u32) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    if fwmark != 0 {
        socket.set_mark(fwmark)?;
    }
    match family {
        Family::V4 => socket.set_broadcast(true)?,
        Family::V6 => {
            setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            socket.set_recv_hoplimit_v6(true)?;
            socket.set_multicast_loop_v6(false)?;
        }
    }
    Ok(())
}

/// One read of a socket, when there is something; `None` if it is nothing to hand on.
async fn receive<T>(
    socket: &Option<AsyncFd<Socket>>,
    mut read: impl FnMut(&Socket) -> io::Result<Option<T>>,
) -> Result<Option<T>, NetError> {
    let Some(socket) = socket else {
        return std::future::pending().await;
    };
    socket
        .async_io(Interest::READABLE, |socket| read(socket))
        .await
        .map_err(NetError::socket("receive from a raw socket"))
}

/// Destination port and datagram.
type Arrival = Option<(u16, Received)>;

fn receive_v4(socket: &Socket, buffer: &mut [u8]) -> io::Result<Arrival> {
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        None,
        MsgFlags::MSG_DONTWAIT,
    )?;
    let (bytes, flags) = (message.bytes, message.flags);
    let Some(packet) = buffer
        .get(..bytes)
        .filter(|_| !flags.contains(MsgFlags::MSG_TRUNC))
    else {
        return Ok(None);
    };
    Ok(parse_ipv4(packet).map(|packet| {
        let received = Received {
            source: SocketAddr::new(packet.source.into(), packet.udp.source),
            destination: packet.destination.into(),
            ttl: Some(packet.ttl),
            payload: packet.udp.payload.to_vec(),
        };
        (packet.udp.destination, received)
    }))
}

fn receive_v6(socket: &Socket, buffer: &mut [u8]) -> io::Result<Arrival> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::c_int);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn6>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let (bytes, flags, sender) = (message.bytes, message.flags, message.address);
    let mut destination = None;
    let mut ttl = None;
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                destination = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr))
            }
            ControlMessageOwned::Ipv6HopLimit(limit) => ttl = u8::try_from(limit).ok(),
            _ => {}
        }
    }
    let (Some(sender), Some(destination)) = (sender, destination) else {
        return Ok(None);
    };
    let Some(segment) = buffer
        .get(..bytes)
        .filter(|_| !flags.contains(MsgFlags::MSG_TRUNC))
    else {
        return Ok(None);
    };
    Ok(parse_udp(segment).map(|udp| {
        let received = Received {
            source: canonical(
                SocketAddrV6::new(sender.ip(), udp.source, 0, sender.scope_id()).into(),
            ),
            destination: destination.into(),
            ttl,
            payload: udp.payload.to_vec(),
        };
        (udp.destination, received)
    }))
}

/// True for destinations that exist on every link: the interface must be chosen by the sender.
fn is_link_wide(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_broadcast() || ip.is_multicast(),
        IpAddr::V6(ip) => ip.is_multicast() || ip.is_unicast_link_local(),
    }
}

/// The errors of a kernel without one of the families.
fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT)
    )
}

#[cfg(test)]
#[path = "raw_tests.rs"]
mod tests;
