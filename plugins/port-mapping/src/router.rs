//! Asking a router: the sockets around [`Talk`], then UPnP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use natpunch_plugin::{HostNetwork, LinkRole};
use natpunch_types::is_global;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::talk::{Granted, Outcome, Protocol, Step, TRIES};
use crate::upnp;
use crate::wish::{Way, Wish};

/// Where PCP and NAT-PMP listen.
const PORT: u16 = 5351;
/// Where routers announce that they have started, or have another address (RFC 6886, 3.2.1;
/// RFC 6887, 14.1).
const ANNOUNCEMENTS: u16 = 5350;
/// The longest datagram of PCP.
const MAX_DATAGRAM: usize = 1100;
/// Routers looked at.
const MAX_ROUTERS: usize = 8;
/// How often a mapping is taken back, and how long each time's answer is awaited.
const GOODBYES: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(500)];

impl Way {
    /// The best way out. Nothing is sent to find it.
    pub(crate) async fn out_of(network: &HostNetwork) -> Option<Self> {
        let mut found: Vec<(LinkRole, Self)> = Vec::new();
        let routers = network.routers.iter().filter_map(|router| match router {
            IpAddr::V4(router) => Some(*router),
            IpAddr::V6(_) => None,
        });
        for router in routers.take(MAX_ROUTERS) {
            let Ok(own) = own_address(router).await else {
                continue;
            };
            let mut addresses = network.addresses.iter();
            if let Some(address) = addresses.find(|address| address.ip == own) {
                found.push((address.role, Self { router, own }));
            }
        }
        let (role, way) = found.into_iter().min_by_key(|(role, _)| *role)?;
        (role <= LinkRole::SecondRoute).then_some(way)
    }
}

/// The address from which packets to the router leave.
async fn own_address(router: Ipv4Addr) -> io::Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect((router, PORT)).await?;
    match socket.local_addr()? {
        SocketAddr::V4(own) => Ok(*own.ip()),
        SocketAddr::V6(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}

/// Asks the router, by all protocols until one works; by that of the mapping that is held first.
/// `None`: it does not answer.
pub(crate) async fn ask(wish: Wish) -> Option<Outcome> {
    let mut refused = None;
    let mut order = [false, true];
    if wish.held == Some(Protocol::Upnp) {
        order.reverse();
    }
    for by_upnp in order {
        let outcome = if by_upnp {
            upnp::map(&wish).await
        } else {
            talk(&wish).await.ok().flatten()
        };
        match outcome {
            Some(Outcome::Granted(granted)) if !is_global((*granted.external.ip()).into()) => {
                give_back(wish, granted).await;
                return Some(Outcome::Useless(*granted.external.ip()));
            }
            Some(Outcome::Granted(_)) => return outcome,
            Some(Outcome::Refused(..) | Outcome::Useless(_)) => refused = refused.or(outcome),
            None => {}
        }
    }
    refused
}

async fn socket(way: Way) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((way.own, 0)).await?;
    socket.connect((way.router, PORT)).await?;
    Ok(socket)
}

/// Asks by PCP and NAT-PMP. A router without either often says so by ICMP, which is an error here.
async fn talk(wish: &Wish) -> io::Result<Option<Outcome>> {
    let socket = socket(wish.way).await?;
    let mut talk = wish.talk();
    let mut buffer = [0; MAX_DATAGRAM];
    'questions: loop {
        for (tried, wait) in TRIES.into_iter().enumerate() {
            for datagram in talk.datagrams(tried) {
                socket.send(&datagram).await?;
            }
            let until = Instant::now() + wait;
            while let Ok(received) = timeout_at(until, socket.recv(&mut buffer)).await {
                match talk.handle(buffer.get(..received?).unwrap_or_default()) {
                    Step::Ignored => {}
                    Step::GoOn => continue 'questions,
                    Step::Done(outcome) => return Ok(Some(outcome)),
                }
            }
        }
        return Ok(None);
    }
}

/// Takes a mapping back, as well as can be done in a moment.
pub(crate) async fn give_back(wish: Wish, granted: Granted) {
    let Some(goodbye) = wish.talk().goodbye(granted.by) else {
        return upnp::unmap(&wish, granted.external.port()).await;
    };
    let Ok(socket) = socket(wish.way).await else {
        return;
    };
    let mut buffer = [0; MAX_DATAGRAM];
    for wait in GOODBYES {
        if socket.send(&goodbye).await.is_err() {
            return;
        }
        let answer = socket.recv(&mut buffer);
        if timeout_at(Instant::now() + wait, answer).await.is_ok() {
            return;
        }
    }
}

/// The ear for announcements; `None` where the port is somebody's who does not share it. The group
/// is 224.0.0.1, in which every host is.
pub(crate) fn announcements() -> Option<UdpSocket> {
    use socket2::{Domain, Socket, Type};
    let open = || -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, ANNOUNCEMENTS)).into())?;
        UdpSocket::from_std(socket.into())
    };
    let opened = open();
    if let Err(error) = &opened {
        tracing::debug!(%error, "routers' announcements are not heard");
    }
    opened.ok()
}

/// Waits until this router announces something; for ever without an ear.
pub(crate) async fn announced(ear: Option<&UdpSocket>, router: Option<Ipv4Addr>) {
    let mut buffer = [0; MAX_DATAGRAM];
    while let (Some(ear), Some(router)) = (ear, router) {
        let Ok((length, from)) = ear.recv_from(&mut buffer).await else {
            break;
        };
        let datagram = buffer.get(..length).unwrap_or_default();
        let is_one =
            crate::pcp::is_announcement(datagram) || crate::nat_pmp::is_announcement(datagram);
        if from.ip() == router && is_one {
            return;
        }
    }
    std::future::pending().await
}
