//! The process: its control socket, and a pair of sockets for each pin.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use natpunch_os::{allow_fragments, detached, drop_privileges};
use nix::sys::socket::{
    self as sys, AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt,
};
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::{UdpSocket, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

use super::super::holding::{HeldPin, Holding};
use super::carry::{Batch, Way, carry};
use super::{ADDRESS, greeting};
use crate::embedded::read_request;

/// Connections to the control socket at a time, those of watchers among them.
const MAX_CONNECTIONS: usize = 16;
/// How long a client may take.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the process stays without a pin.
const LINGER: Duration = Duration::from_secs(60);
/// Room for bursts while the process is scheduled out, as far as the system allows it.
const SOCKET_BUFFER: usize = 4 << 20;

/// The body of `natpunch pin-forwarder --socket PATH --fwmark MARK`: runs until it is told to stop,
/// gets SIGTERM, or has had no pin for a while. What it sends carries the mark (0: none), as
/// WireGuard's packets do.
///
/// # Errors
/// Another process has the socket, or the system lacks something.
pub fn run(socket: &Path, fwmark: u32) -> io::Result<()> {
    let _lock = detached::begin(socket)?;
    let listener = detached::listen(socket)?;
    // To mark packets is the only thing that not every user may do.
    drop_privileges(fwmark != 0)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, serve(listener, fwmark))
}

async fn serve(listener: StdUnixListener, fwmark: u32) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let service = Rc::new(Service {
        fwmark,
        listen_port: Cell::new(0),
        pins: RefCell::default(),
        batch: Rc::default(),
        stop: Notify::new(),
    });
    let mut terminate = signal(SignalKind::terminate())?;
    tracing::info!("forwarder of pins is up");
    let reason = tokio::select! {
        () = service.stop.notified() => "asked to stop",
        () = accept(listener, &service) => "no agent can reach it any more",
        () = linger(&service) => "no pin is left",
        _ = terminate.recv() => "SIGTERM",
    };
    tracing::info!(reason, "forwarder of pins ends");
    Ok(())
}

async fn accept(listener: UnixListener, service: &Rc<Service>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut conversations = JoinSet::new();
    while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
        while conversations.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = Rc::clone(service);
                conversations.spawn_local(async move {
                    let _ = service.converse(stream).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Returns when there has been no pin for a while.
async fn linger(service: &Service) {
    let mut needed = Instant::now();
    while needed.elapsed() < LINGER {
        tokio::time::sleep(LINGER / 10).await;
        if !service.pins.borrow().is_empty() {
            needed = Instant::now();
        }
    }
}

/// What the connections share.
struct Service {
    fwmark: u32,
    listen_port: Cell<u16>,
    pins: RefCell<BTreeMap<NonZeroU16, Pinned>>,
    batch: Rc<RefCell<Batch>>,
    stop: Notify,
}

/// A pin: two sockets, and what carries datagrams between them until this is dropped.
struct Pinned {
    remote: Rc<Cell<SocketAddr>>,
    /// At the forwarder's address; connected to WireGuard's port, so that nobody else uses it.
    inside: Rc<UdpSocket>,
    local: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Service {
    /// Answers one request; stays with a client that watches.
    async fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let Some(request) = timeout(CLIENT_TIMEOUT, read_request(&mut reader)).await?? else {
            return Ok(());
        };
        let (operation, body) = request.split_once('\n').unwrap_or((&request, ""));
        let outcome = match operation {
            "hello=1" => Ok(greeting(self.fwmark) + "\n"),
            "pins=1" => Ok(self.holding().format()),
            "set_pins=1" => self.hold(body).map(|()| self.holding().format()),
            "stop=1" => {
                self.stop.notify_one();
                Ok(String::new())
            }
            "watch=1" => {
                // The end of this process is what the client waits for.
                let _ = read_request(&mut reader).await;
                return Ok(());
            }
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        };
        let answer = match outcome {
            Ok(text) => text + "errno=0\n\n",
            Err(error) => {
                tracing::warn!(%error, "refused request");
                format!("errno=-{}\n\n", error.raw_os_error().unwrap_or(libc::EIO))
            }
        };
        timeout(CLIENT_TIMEOUT, writer.write_all(answer.as_bytes())).await?
    }

    fn holding(&self) -> Holding {
        let held = |(port, pinned): (&NonZeroU16, &Pinned)| HeldPin {
            remote: pinned.remote.get(),
            port: *port,
            local: Some(pinned.local),
        };
        let mut pins: Vec<_> = self.pins.borrow().iter().map(held).collect();
        pins.sort_by_key(|pin| pin.remote);
        Holding {
            listen_port: self.listen_port.get(),
            pins,
        }
    }

    /// Holds exactly these pins. A port that goes on being pinned keeps its sockets. After an error
    /// all is as before.
    fn hold(&self, text: &str) -> io::Result<()> {
        let wanted = Holding::parse(text).filter(|wanted| wanted.listen_port != 0);
        let wanted = wanted.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut pins = self.pins.borrow_mut();
        let mut opened = Vec::new();
        for pin in &wanted.pins {
            if !pins.contains_key(&pin.port) {
                opened.push((pin.port, self.open(pin, wanted.listen_port)?));
            }
        }
        pins.extend(opened);
        pins.retain(|port, _| wanted.pins.iter().any(|pin| pin.port == *port));
        for pin in &wanted.pins {
            if let Some(pinned) = pins.get(&pin.port) {
                pinned.remote.set(pin.remote);
            }
        }
        if self.listen_port.replace(wanted.listen_port) != wanted.listen_port {
            for pinned in pins.values() {
                connect(&pinned.inside, wanted.listen_port)?;
            }
        }
        Ok(())
    }

    fn open(&self, pin: &HeldPin, listen_port: u16) -> io::Result<Pinned> {
        let remote = Rc::new(Cell::new(pin.remote));
        let outside = Rc::new(outside(pin.port.get(), self.fwmark)?);
        // Where WireGuard sends already, if this stands in for a process that was killed.
        let any = SocketAddr::from((ADDRESS, 0));
        let inside = std::net::UdpSocket::bind(pin.local.unwrap_or(any))?;
        configure(&inside)?;
        let inside = Rc::new(UdpSocket::from_std(inside)?);
        connect(&inside, listen_port)?;
        let local = inside.local_addr()?;
        let mut tasks = JoinSet::new();
        let to = Rc::clone(&remote);
        let batch = || Rc::clone(&self.batch);
        tasks.spawn_local(carry(inside.clone(), outside.clone(), batch(), move || {
            Way::Out(to.get())
        }));
        let from = Rc::clone(&remote);
        tasks.spawn_local(carry(outside, inside.clone(), batch(), move || {
            Way::In(from.get())
        }));
        Ok(Pinned {
            remote,
            inside,
            local,
            _tasks: tasks,
        })
    }
}

/// A socket on a pinned port, for both address families where the host has both.
fn outside(port: u16, fwmark: u32) -> io::Result<UdpSocket> {
    let both = || {
        let socket = sys::socket(
            AddressFamily::Inet6,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        sys::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok::<_, io::Error>(std::net::UdpSocket::from(socket))
    };
    let socket = match both() {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
            ) =>
        {
            std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?
        }
        bound => bound?,
    };
    configure(&socket)?;
    if fwmark != 0 {
        setsockopt(&socket, sockopt::Mark, &fwmark)?;
    }
    UdpSocket::from_std(socket)
}

fn configure(socket: &std::net::UdpSocket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    allow_fragments(socket)?;
    // Each of these makes it faster; none is needed.
    let _ = setsockopt(socket, sockopt::RcvBuf, &SOCKET_BUFFER);
    let _ = setsockopt(socket, sockopt::SndBuf, &SOCKET_BUFFER);
    Ok(())
}

/// Has a socket speak with WireGuard's port, and with no other.
fn connect(socket: &UdpSocket, listen_port: u16) -> io::Result<()> {
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, listen_port));
    Ok(sys::connect(
        socket.as_raw_fd(),
        &SockaddrStorage::from(to),
    )?)
}
