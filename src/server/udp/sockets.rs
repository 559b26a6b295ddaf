//! The UDP sockets: for each address that is listened on, and for its alternate port, one socket of
//! each worker.
//!
//! The sockets of one address share it (`SO_REUSEPORT`); the kernel gives all datagrams of a client
//! to the same one of them, and whichever worker sends, the client sees the same address.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

use natpunch_core::stun::{Change, Origins};
use natpunch_net::want_local_address;
use natpunch_types::with_help;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::server::ServeError;
use crate::server::settings::AlternatePort;

/// What is asked of the kernel; without CAP_NET_ADMIN it gives what net.core.rmem_max allows.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How often another free port is tried, where any will do and one is needed on several addresses.
const FREE_PORT_TRIES: usize = 16;

/// All sockets of a server.
pub(in crate::server) struct Sockets {
    /// The address of each socket of a worker: first those to listen on, as named, then those of
    /// the alternate port.
    pub(in crate::server) addresses: Vec<SocketAddr>,
    /// How many of them were named.
    pub(in crate::server) named: usize,
    /// The alternate port, if there is one.
    pub(in crate::server) alternate_port: Option<u16>,
    /// The sockets of each worker, in the order of their addresses.
    pub(in crate::server) of_workers: Vec<Vec<UdpSocket>>,
}

impl Sockets {
    /// Opens them; their packets have this firewall mark (0: none).
    ///
    /// # Errors
    /// An address can't be had. Without a chosen alternate port the server starts, if it was not
    /// asked for by number.
    pub(in crate::server) fn bind(
        listen: &[SocketAddr],
        alternate: AlternatePort,
        workers: usize,
        fwmark: u32,
    ) -> Result<Self, ServeError> {
        let mut bound: Vec<Bound> = listen
            .iter()
            .map(|address| bind(*address, workers, fwmark))
            .collect::<Result<_, _>>()?;
        let named = bound.len();
        let first = listen.first().map(SocketAddr::port);
        let (port, is_needed) = match (alternate, first) {
            (AlternatePort::Off, _) | (_, None) => (None, false),
            (AlternatePort::Number(port), _) => (Some(port), true),
            (AlternatePort::Next, Some(0)) => (Some(0), false),
            (AlternatePort::Next, Some(first)) => (first.checked_add(1), false),
        };
        let mut alternate_port = None;
        if let Some(port) = port {
            let addresses: Vec<SocketAddr> = bound.iter().map(|(address, _)| *address).collect();
            match bind_alternates(&addresses, port, workers, fwmark) {
                Ok((port, alternates)) => {
                    alternate_port = Some(port);
                    bound.extend(alternates);
                }
                Err(error) if is_needed => return Err(error),
                Err(error) => {
                    let problem =
                        format!("no alternate port, so nodes learn less about their NATs: {error}");
                    let help = "alternate_port = PORT in the --config file chooses another one; \
                                alternate_port = false means none";
                    tracing::warn!("{}", with_help(problem, [help]));
                }
            }
        }
        let addresses = bound.iter().map(|(address, _)| *address).collect();
        // Without a socket there is nothing to work on.
        let workers = if bound.is_empty() { 0 } else { workers };
        let mut of_workers: Vec<Vec<UdpSocket>> = (0..workers).map(|_| Vec::new()).collect();
        for (_, sockets) in bound {
            of_workers
                .iter_mut()
                .zip(sockets)
                .for_each(|(worker, socket)| worker.push(socket));
        }
        Ok(Self {
            addresses,
            named,
            alternate_port,
            of_workers,
        })
    }
}

/// An address, and a socket of each worker on it.
type Bound = (SocketAddr, Vec<UdpSocket>);

/// A port beside those that are listened on, on each of their addresses.
fn bind_alternates(
    addresses: &[SocketAddr],
    port: u16,
    workers: usize,
    fwmark: u32,
) -> Result<(u16, Vec<Bound>), ServeError> {
    let tries = if port == 0 { FREE_PORT_TRIES } else { 1 };
    let mut last = None;
    for _ in 0..tries {
        let (mut port, mut bound) = (port, Vec::<Bound>::new());
        let result = addresses.iter().try_for_each(|address| {
            let alternate = SocketAddr::new(address.ip(), port);
            let is_there = addresses.contains(&alternate)
                || bound.iter().any(|(bound, _)| *bound == alternate);
            if !is_there {
                let sockets = bind(alternate, workers, fwmark)?;
                port = sockets.0.port();
                bound.push(sockets);
            }
            Ok(())
        });
        match result {
            Ok(()) => return Ok((port, bound)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::from(io::ErrorKind::AddrInUse).into()))
}

/// As many sockets on this address as there are workers.
fn bind(address: SocketAddr, workers: usize, fwmark: u32) -> Result<Bound, ServeError> {
    let bind = || {
        // The first one has the address for itself, so that a second server can't take half of the
        // first one's clients. Only then it shares.
        let first = open(address, fwmark)?;
        first.bind(&address.into())?;
        first.set_reuse_port(true)?;
        let first = UdpSocket::from(first);
        let address = first.local_addr()?;
        let mut sockets = vec![first];
        for _ in 1..workers {
            let socket = open(address, fwmark)?;
            socket.set_reuse_port(true)?;
            socket.bind(&address.into())?;
            sockets.push(socket.into());
        }
        Ok((address, sockets))
    };
    bind().map_err(|source| ServeError::Listen {
        protocol: "UDP",
        address,
        source,
    })
}

/// An IPv6 socket takes IPv6 only, so that both wildcards can be bound with the same port.
fn open(address: SocketAddr, fwmark: u32) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A smaller buffer than asked for only drops earlier.
    let forced = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
    let _ = forced.or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER));
    socket.set_nonblocking(true)?;
    if fwmark != 0 {
        socket.set_mark(fwmark)?;
    }
    want_local_address(&socket, address)?;
    Ok(socket)
}

/// Whether this host has IPv6.
pub(in crate::server) fn has_ipv6() -> bool {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    open(any, 0)
        .and_then(|socket| socket.bind(&any.into()))
        .is_ok()
}

/// From which sockets a request that came to one of them can be answered (RFC 5780, 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) struct ReplySockets {
    address: SocketAddr,
    other_port: Option<(usize, SocketAddr)>,
    other_ip: Option<(usize, SocketAddr)>,
    other: Option<(usize, SocketAddr)>,
}

impl ReplySockets {
    /// The answers' sockets of these.
    pub(in crate::server) fn all(
        addresses: &[SocketAddr],
        alternate_port: Option<u16>,
    ) -> Vec<Self> {
        let find = |ip: IpAddr, port: u16| {
            let wanted = SocketAddr::new(ip, port);
            addresses
                .iter()
                .position(|address| *address == wanted)
                .map(|index| (index, wanted))
        };
        let reply = |address: &SocketAddr| {
            let (ip, port) = (address.ip(), address.port());
            let others = addresses
                .iter()
                .map(SocketAddr::port)
                .filter(|other| *other != port);
            let other_port = match alternate_port {
                Some(alternate) if port != alternate => Some(alternate),
                Some(_) => others.clone().find(|port| find(ip, *port).is_some()),
                None => None,
            };
            // A wildcard has all addresses of the host, but which of them others reach is not
            // known.
            let other_ip = addresses.iter().map(SocketAddr::ip).find(|other| {
                *other != ip
                    && other.is_ipv4() == ip.is_ipv4()
                    && !ip.is_unspecified()
                    && !other.is_unspecified()
            });
            Self {
                address: *address,
                other_port: other_port.and_then(|port| find(ip, port)),
                other_ip: other_ip.and_then(|ip| find(ip, port)),
                other: other_ip
                    .zip(other_port)
                    .and_then(|(ip, port)| find(ip, port)),
            }
        };
        addresses.iter().map(reply).collect()
    }

    /// What can be answered from where, when a request came to this address of ours.
    pub(in crate::server) fn origins(&self, local: Option<(IpAddr, u32)>) -> Origins {
        let here = |address: SocketAddr| match local {
            Some((ip, _)) => SocketAddr::new(ip, address.port()),
            None => address,
        };
        Origins {
            here: here(self.address),
            other_port: self.other_port.map(|(_, address)| here(address)),
            other_ip: self.other_ip.map(|(_, address)| address),
            other: self.other.map(|(_, address)| address),
        }
    }

    /// The number of the socket for an answer with this change; `own` is that to which the request
    /// came.
    pub(in crate::server) fn socket(&self, own: usize, change: Change) -> usize {
        let other = match (change.ip, change.port) {
            (false, false) => None,
            (false, true) => self.other_port,
            (true, false) => self.other_ip,
            (true, true) => self.other,
        };
        other.map_or(own, |(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn both_wildcards_share_a_port_and_an_alternate_one() {
        let listen = addresses(&["0.0.0.0:0"]);
        let v4 = Sockets::bind(&listen, AlternatePort::Off, 1, 0).unwrap();
        let port = v4.addresses[0].port();
        assert_eq!((v4.addresses.len(), v4.alternate_port), (1, None));
        Sockets::bind(
            &[SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))],
            AlternatePort::Off,
            2,
            0,
        )
        .unwrap();
        let both = Sockets::bind(
            &addresses(&["127.0.0.1:0", "[::1]:0"]),
            AlternatePort::Next,
            3,
            0,
        )
        .unwrap();
        let alternate = both.alternate_port.unwrap();
        assert_eq!(
            both.addresses[2..]
                .iter()
                .map(SocketAddr::port)
                .collect::<Vec<_>>(),
            [alternate, alternate]
        );
        assert_eq!(
            both.of_workers.iter().map(Vec::len).collect::<Vec<_>>(),
            [4, 4, 4]
        );
    }

    #[test]
    fn a_second_server_on_the_same_address_is_refused_although_workers_share_it() {
        let first = Sockets::bind(&addresses(&["127.0.0.1:0"]), AlternatePort::Off, 2, 0).unwrap();
        for workers in [1, 2] {
            let second = Sockets::bind(&first.addresses, AlternatePort::Off, workers, 0);
            assert!(
                matches!(second, Err(ServeError::Listen { source, .. }) if source.kind() == io::ErrorKind::AddrInUse)
            );
        }
    }

    #[test]
    fn an_alternate_port_that_is_taken_is_an_error_only_if_it_was_named() {
        let taken = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let holder = UdpSocket::bind(taken).unwrap();
        let named = Sockets::bind(
            &addresses(&["127.0.0.1:0"]),
            AlternatePort::Number(taken.port()),
            1,
            0,
        );
        assert!(matches!(named, Err(ServeError::Listen { .. })));
        let before = SocketAddr::new(taken.ip(), taken.port() - 1);
        if let Ok(sockets) = Sockets::bind(&[before], AlternatePort::Next, 1, 0) {
            assert_eq!(
                (sockets.addresses, sockets.alternate_port),
                (vec![before], None)
            );
        }
        drop(holder);
    }

    #[test]
    fn answers_leave_from_the_other_port_and_from_the_other_address() {
        let sockets = addresses(&[
            "192.0.2.1:10",
            "192.0.2.2:10",
            "[2001:db8::1]:10",
            "192.0.2.1:11",
            "192.0.2.2:11",
            "[2001:db8::1]:11",
        ]);
        let reply_sockets = ReplySockets::all(&sockets, Some(11));
        let change = |ip, port| Change { ip, port };
        for (from, ip, port, to) in [
            (0, false, false, 0),
            (0, false, true, 3),
            (0, true, false, 1),
            (0, true, true, 4),
            (4, false, true, 1),
            (4, true, true, 0),
            (2, false, true, 5),
        ] {
            assert_eq!(
                reply_sockets[from].socket(from, change(ip, port)),
                to,
                "{from} {ip} {port}"
            );
        }
        assert_eq!(reply_sockets[0].origins(None).other, Some(sockets[4]));
        assert_eq!(
            reply_sockets[2].origins(None).other_ip,
            None,
            "the other family is no other address"
        );
        let wildcard = ReplySockets::all(&addresses(&["0.0.0.0:10", "0.0.0.0:11"]), Some(11));
        let asked = "198.51.100.7".parse().unwrap();
        let origins = wildcard[0].origins(Some((asked, 0)));
        assert_eq!(
            (origins.here, origins.other_port),
            (SocketAddr::new(asked, 10), Some(SocketAddr::new(asked, 11)))
        );
        assert_eq!((origins.other_ip, origins.other), (None, None));
    }
}
