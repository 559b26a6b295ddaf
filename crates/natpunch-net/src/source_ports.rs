//! UDP sockets on source ports beside WireGuard's, for probes from many ports of one host.
//!
//! They are ordinary bound sockets, unlike the raw ones on WireGuard's port, because these ports
//! have no other owner. So the kernel answers no probe with "port unreachable", no other program
//! gets the port, and a probe is heard if and only if the host's firewall would let WireGuard hear
//! what comes the same way. The price is a file descriptor for each port, of both address families
//! together.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future as _;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU16;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use natpunch_os::{allow_fragments, without_fragments};
use natpunch_types::{Nat64, Travel, canonical};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, SockaddrIn6, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use crate::NetError;
use crate::filter::{Family, Rules};
use crate::raw::{RawPort, attach};

/// Longest payload that is read; a longer datagram is cut and then no probe.
const BUFFER: usize = 2048;

/// Datagrams of one port that are thrown away at once, before the others have their turn.
const AT_ONCE: usize = 16;

/// A probe, or the answer of a STUN server, that came to one of the ports; nothing of it has been
/// authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// The port that it came to.
    pub port: NonZeroU16,
    /// Canonical address of the sender.
    pub source: SocketAddr,
    /// What follows the UDP header.
    pub payload: Vec<u8>,
}

/// The source ports that are open. Those that are not wanted any more are closed.
#[derive(Debug)]
pub struct SourcePorts {
    fwmark: u32,
    nat64: Option<Nat64>,
    open: BTreeMap<NonZeroU16, Port>,
    /// Where the next search for a probe begins, so that no port is heard before all others.
    turn: AtomicUsize,
}

#[derive(Debug)]
enum Port {
    /// It is ours alone.
    Own(OwnPort),
    /// Another process has a socket on it, which carries WireGuard's packets there.
    Shared(RawPort),
}

#[derive(Debug)]
struct OwnPort {
    socket: UdpSocket,
    /// Whether it speaks IPv4 by addresses mapped into IPv6 (RFC 4291, 2.5.5.2); a host without
    /// IPv6 has sockets of IPv4 alone.
    is_mapped: bool,
    rules: Rules,
}

impl SourcePorts {
    /// No port yet. What is sent will carry `fwmark` (0: none), as WireGuard's packets do, so that
    /// it is routed as they are.
    pub fn new(fwmark: u32) -> Self {
        Self {
            fwmark,
            nat64: None,
            open: BTreeMap::new(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Has IPv4 addresses translated on their way, from now on or no more, as by
    /// [`RawPort::set_nat64`](crate::RawPort::set_nat64).
    pub fn set_nat64(&mut self, nat64: Option<Nat64>) {
        self.nat64 = nat64;
        for port in self.open.values() {
            if let Port::Shared(raw) = port {
                translate(raw, nat64);
            }
        }
    }

    /// Opens exactly these ports, and gives those that can't be opened, such as one that another
    /// program has. The `shared` ones among them are left to another process of ours, which binds
    /// them: they are heard and spoken from by raw sockets, as WireGuard's port is. Must be called
    /// within a tokio runtime.
    pub fn set(
        &mut self,
        ports: &[NonZeroU16],
        shared: &BTreeSet<NonZeroU16>,
    ) -> Vec<(NonZeroU16, NetError)> {
        let wanted: BTreeSet<NonZeroU16> = ports.iter().copied().collect();
        self.open.retain(|port, _| wanted.contains(port));
        let mut refused = Vec::new();
        for port in wanted {
            let is_shared = shared.contains(&port);
            match self.open.get(&port) {
                // One that was shared may still be bound by the other process.
                Some(Port::Shared(_)) => continue,
                Some(Port::Own(_)) if !is_shared => continue,
                Some(Port::Own(_)) | None => {}
            }
            let opened = match is_shared {
                true => RawPort::open(port.get(), self.fwmark).map(|raw| {
                    translate(&raw, self.nat64);
                    Port::Shared(raw)
                }),
                false => OwnPort::open(port, self.fwmark).map(Port::Own),
            };
            match opened {
                Ok(open) => {
                    self.open.insert(port, open);
                }
                Err(error) => refused.push((port, error)),
            }
        }
        refused
    }

    /// How many ports are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// True if none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The next probe to any of the ports; waits for ever while none is open. Dropping the future
    /// loses nothing.
    pub async fn recv(&self) -> Probed {
        let shared = self.open.iter().filter_map(|(port, open)| match open {
            Port::Own(_) => None,
            Port::Shared(raw) => Some(Box::pin(recv_shared(*port, raw))),
        });
        let mut shared: Vec<_> = shared.collect();
        std::future::poll_fn(|context| {
            for recv in &mut shared {
                if let Poll::Ready(probed) = recv.as_mut().poll(context) {
                    return Poll::Ready(probed);
                }
            }
            self.poll_recv(context)
        })
        .await
    }

    fn poll_recv(&self, context: &mut Context<'_>) -> Poll<Probed> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % self.open.len().max(1);
        let ports = self.open.iter();
        for (number, port) in ports.clone().skip(first).chain(ports.take(first)) {
            let Port::Own(port) = port else { continue };
            if let Poll::Ready((source, payload)) = port.poll_recv(context) {
                return Poll::Ready(Probed {
                    port: *number,
                    source: self.nat64.map_or(source, |nat64| nat64.inward(source)),
                    payload,
                });
            }
        }
        Poll::Pending
    }

    /// Sends one datagram from one of the ports. The source address is what a route lookup gives, as
    /// for WireGuard. Never blocks.
    ///
    /// # Errors
    /// [Soft](NetError::is_soft) ones concern this datagram only; a port that is not open is one.
    pub fn send(
        &self,
        port: NonZeroU16,
        destination: SocketAddr,
        travel: Travel,
        payload: &[u8],
    ) -> Result<(), NetError> {
        let destination = canonical(destination);
        let translated = self
            .nat64
            .map_or(destination, |nat64| nat64.outward(destination));
        let sent = match self.open.get(&port) {
            // It translates by itself.
            Some(Port::Shared(raw)) => return raw.send(None, destination, travel, payload),
            Some(Port::Own(port)) => port.send(translated, travel, payload),
            None => Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL)),
        };
        sent.map_err(|source| NetError::Send {
            destination: translated,
            source,
        })
    }
}

/// Has a shared port translate as its neighbours do.
fn translate(raw: &RawPort, nat64: Option<Nat64>) {
    if let Err(error) = raw.set_nat64(nat64) {
        tracing::warn!(%error, "a shared source port does not pass the NAT64");
    }
}

/// The next probe to a port that another process has bound.
async fn recv_shared(port: NonZeroU16, raw: &RawPort) -> Probed {
    match raw.recv().await {
        Ok(received) => Probed {
            port,
            source: received.source,
            payload: received.payload,
        },
        Err(error) => {
            // The path is found dead by its silence, and left.
            tracing::warn!(port, %error, "a shared source port is not heard any more");
            std::future::pending().await
        }
    }
}

impl OwnPort {
    fn open(port: NonZeroU16, fwmark: u32) -> Result<Self, NetError> {
        let rules = Rules {
            port: port.get(),
            sources: BTreeSet::new(),
            nat64: None,
        };
        let (socket, is_mapped) = match bound(Domain::IPV6, &rules, fwmark) {
            // The kernel has no IPv6, or none at this moment (disable_ipv6).
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
                ) =>
            {
                (bound(Domain::IPV4, &rules, fwmark), false)
            }
            socket => (socket, true),
        };
        let socket = socket
            .and_then(|socket| UdpSocket::from_std(socket.into()))
            .map_err(NetError::socket("open a source port for probes"))?;
        Ok(Self {
            socket,
            is_mapped,
            rules,
        })
    }

    fn poll_recv(&self, context: &mut Context<'_>) -> Poll<(SocketAddr, Vec<u8>)> {
        let mut bytes = [0; BUFFER];
        for _ in 0..AT_ONCE {
            let mut buffer = ReadBuf::new(&mut bytes);
            let source = match self.socket.poll_recv_from(context, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(source)) => canonical(source),
                // The error of some datagram, which is told once.
                Poll::Ready(Err(error)) => {
                    tracing::trace!(%error, "not received");
                    continue;
                }
            };
            let payload = buffer.filled();
            if self.rules.accept(source, self.rules.port, payload) {
                return Poll::Ready((source, payload.to_vec()));
            }
        }
        // The other ports come first; this one is looked at again.
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn send(&self, destination: SocketAddr, travel: Travel, payload: &[u8]) -> io::Result<()> {
        let send = |_: &UdpSocket| self.try_send(destination, travel.ttl(), payload);
        match travel {
            Travel::Usual | Travel::Ttl(_) => send(&self.socket),
            Travel::Whole => without_fragments(&self.socket, send),
        }
    }

    fn try_send(&self, destination: SocketAddr, ttl: Option<u8>, payload: &[u8]) -> io::Result<()> {
        let ttl = ttl.map(i32::from);
        let control: Vec<_> = match destination {
            SocketAddr::V4(_) => ttl.as_ref().map(ControlMessage::Ipv4Ttl),
            SocketAddr::V6(_) => ttl.as_ref().map(ControlMessage::Ipv6HopLimit),
        }
        .into_iter()
        .collect();
        let (descriptor, payload) = (self.socket.as_raw_fd(), [IoSlice::new(payload)]);
        let flags = MsgFlags::MSG_DONTWAIT;
        match destination {
            SocketAddr::V4(to) if !self.is_mapped => {
                let to = SockaddrIn::from(to);
                sendmsg(descriptor, &payload, &control, flags, Some(&to))?;
            }
            SocketAddr::V4(to) => {
                let mapped = SocketAddrV6::new(to.ip().to_ipv6_mapped(), to.port(), 0, 0);
                let to = SockaddrIn6::from(mapped);
                sendmsg(descriptor, &payload, &control, flags, Some(&to))?;
            }
            SocketAddr::V6(to) if self.is_mapped => {
                let to = SockaddrIn6::from(to);
                sendmsg(descriptor, &payload, &control, flags, Some(&to))?;
            }
            SocketAddr::V6(_) => return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        }
        Ok(())
    }
}

/// A socket of its port, behind the filter from its first packet on.
fn bound(domain: Domain, rules: &Rules, fwmark: u32) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    let address = if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, rules.port))
    } else {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, rules.port))
    };
    allow_fragments(&socket)?;
    socket.set_nonblocking(true)?;
    if fwmark != 0 {
        socket.set_mark(fwmark)?;
    }
    // A filter of a UDP socket sees a packet from its UDP header on, as that of a raw IPv6 socket
    // does.
    attach(&socket, &rules.program(Family::V6)).map_err(io::Error::other)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
