//! UDP sockets inside the mesh, one on each mesh address of this node, bound to its interface.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::Instant;

/// When addresses that could not be listened on are tried again.
const BIND_RETRY: Duration = Duration::from_secs(10);
/// The same after the first failure.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// The sockets of one port.
pub(super) struct MeshSockets {
    port: u16,
    /// What does not work without them, for the log.
    needed_for: &'static str,
    interface: String,
    addresses: Vec<IpAddr>,
    open: Vec<(IpAddr, Arc<UdpSocket>)>,
    bind_at: Option<Instant>,
    complained: bool,
}

impl MeshSockets {
    /// None yet.
    pub(super) fn new(port: u16, needed_for: &'static str) -> Self {
        Self {
            port,
            needed_for,
            interface: String::new(),
            addresses: Vec::new(),
            open: Vec::new(),
            bind_at: None,
            complained: false,
        }
    }

    /// The node has these addresses, or its interface is a new one.
    pub(super) fn renew(&mut self, interface: String, addresses: Vec<IpAddr>) {
        (self.interface, self.addresses) = (interface, addresses);
        self.complained = false;
        self.bind_at = None;
        self.open.clear();
        self.bind();
    }

    /// Listens on every address that is not listened on.
    fn bind(&mut self) {
        let is_retry = self.bind_at.take().is_some();
        for address in &self.addresses {
            if self.open.iter().any(|(bound, _)| bound == address) {
                continue;
            }
            let at = SocketAddr::new(*address, self.port);
            match bound(at, &self.interface) {
                Ok(socket) => self.open.push((*address, Arc::new(socket))),
                Err(error) => {
                    // A socket that was closed a moment ago is still open in a program that is just
                    // being started: the first failure says nothing.
                    if is_retry && !std::mem::replace(&mut self.complained, true) {
                        tracing::warn!(%error, "can't listen on {at}; {}", self.needed_for);
                    }
                    let pause = if is_retry { BIND_RETRY } else { BIND_AGAIN };
                    self.bind_at = Some(Instant::now() + pause);
                }
            }
        }
    }

    /// The next datagram of a peer: its length, its sender, and the socket that it came to. An error
    /// is about an earlier datagram: the peer does not listen. Dropping the future loses nothing.
    pub(super) async fn receive(
        &mut self,
        buffer: &mut [u8],
    ) -> io::Result<(usize, SocketAddr, Arc<UdpSocket>)> {
        loop {
            let retry = self.bind_at;
            let open = &self.open;
            let next = std::future::poll_fn(|context| {
                for (_, socket) in open {
                    let mut room = tokio::io::ReadBuf::new(buffer);
                    match pin!(socket).poll_recv_from(context, &mut room) {
                        Poll::Ready(Ok(source)) => {
                            let length = room.filled().len();
                            return Poll::Ready(Ok((length, source, Arc::clone(socket))));
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => {}
                    }
                }
                Poll::Pending
            });
            let received = match retry {
                Some(at) => tokio::time::timeout_at(at, next).await,
                None => Ok(next.await),
            };
            match received {
                // Questions come from the port that answers go to; nothing is sent to another.
                Ok(Ok((_, source, _))) if source.port() != self.port => {}
                Ok(received) => return received,
                // What could not be bound is due again.
                Err(_) => self.bind(),
            }
        }
    }

    /// Sends to the first of a peer's addresses whose family this node has.
    pub(super) async fn send(&self, to: &[IpAddr], bytes: &[u8]) -> io::Result<()> {
        let way = to.iter().find_map(|to| {
            let is_of_family = |from: &IpAddr| from.is_ipv4() == to.is_ipv4();
            let (_, socket) = self.open.iter().find(|(from, _)| is_of_family(from))?;
            Some((socket, SocketAddr::new(*to, self.port)))
        });
        let (socket, to) = way.ok_or(io::ErrorKind::AddrNotAvailable)?;
        socket.send_to(bytes, to).await.map(drop)
    }
}

fn bound(at: SocketAddr, interface: &str) -> io::Result<UdpSocket> {
    let domain = if at.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    // Only packets through the tunnel are authenticated, so others must not reach the socket.
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    UdpSocket::from_std(socket.into())
}
