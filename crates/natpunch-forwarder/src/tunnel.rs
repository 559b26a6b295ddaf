//! One tunnel: the stream to a server, made anew whenever it ends, and the UDP ports on this host
//! that stand for the server's.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use natpunch_rendezvous::stream;
use natpunch_types::{FORWARDER, lock};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::connect::{Socket, connect};
use crate::control::{Opened, Wanted};

/// Datagrams that wait for the stream; newer ones are dropped, as a network would.
const QUEUE: usize = 512;
/// Ports of one server at a time: its own, and its relay's.
const MAX_PORTS: usize = 128;
/// Datagrams that are sent by one write.
const BATCH: usize = 64;
/// How often the stream is tested, and after how long without a sign of the server it is dead.
const PING: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(25);
/// The wait before the stream is made again, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// How long a tunnel stays that nobody asks for, and in which WireGuard says nothing.
const IDLE: (Duration, Duration) = (Duration::from_secs(90), Duration::from_secs(300));
/// A datagram of WireGuard's, and not of the agent, begins with its type, 1 to 4, in four bytes.
const WIREGUARD: std::ops::RangeInclusive<u8> = 1..=4;

/// A tunnel, which ends when it is dropped.
pub(crate) struct Tunnel {
    inside: Arc<Inside>,
    _tasks: JoinSet<()>,
}

/// What its tasks share.
struct Inside {
    wanted: Wanted,
    ports: Mutex<HashMap<u16, Arc<UdpSocket>>>,
    queue: mpsc::Sender<Vec<u8>>,
    readers: Mutex<JoinSet<()>>,
    state: Mutex<State>,
}

struct State {
    is_connected: bool,
    problem: Option<String>,
    /// When it was asked for, and when WireGuard said something in it.
    asked: Instant,
    used: Instant,
}

impl Tunnel {
    /// A tunnel for these, which begins to connect at once.
    pub(crate) fn start(wanted: &Wanted) -> Self {
        let (queue, queued) = mpsc::channel(QUEUE);
        let now = Instant::now();
        let inside = Arc::new(Inside {
            wanted: wanted.clone(),
            ports: Mutex::default(),
            queue,
            readers: Mutex::default(),
            state: Mutex::new(State {
                is_connected: false,
                problem: None,
                asked: now,
                used: now,
            }),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(inside.clone().keep_connected(queued));
        Self {
            inside,
            _tasks: tasks,
        }
    }

    /// The port on this host that stands for this one of the server.
    ///
    /// # Errors
    /// The system has no sockets left.
    pub(crate) async fn open(&self, port: u16) -> io::Result<Opened> {
        let inside = &self.inside;
        let known = lock(&inside.ports).get(&port).cloned();
        let socket = match known {
            Some(socket) => socket,
            None => {
                if lock(&inside.ports).len() >= MAX_PORTS {
                    return Err(io::Error::other("too many ports of one server"));
                }
                let socket = Arc::new(bind(inside.wanted.wireguard_port).await?);
                lock(&inside.ports).insert(port, socket.clone());
                lock(&inside.readers).spawn(inside.clone().collect(port, socket.clone()));
                socket
            }
        };
        let mut state = lock(&inside.state);
        state.asked = Instant::now();
        Ok(Opened {
            address: socket.local_addr()?,
            is_connected: state.is_connected,
            problem: state.problem.clone(),
        })
    }

    /// Whether nobody needs it any more.
    pub(crate) fn is_idle(&self) -> bool {
        let state = lock(&self.inside.state);
        state.asked.elapsed() > IDLE.0 && state.used.elapsed() > IDLE.1
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        lock(&self.inside.readers).abort_all();
    }
}

/// A socket at the forwarder's address that speaks with WireGuard's port, and with no other.
async fn bind(wireguard_port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::from((FORWARDER, 0))).await?;
    socket
        .connect((Ipv4Addr::LOCALHOST, wireguard_port))
        .await?;
    Ok(socket)
}

impl Inside {
    /// Takes what is sent to a port on this host, by the batch.
    async fn collect(self: Arc<Self>, port: u16, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; stream::LONGEST];
        loop {
            // WireGuard may not listen at this moment, which a connected socket is told.
            if socket.readable().await.is_err() {
                sleep(BACKOFF.0).await;
                continue;
            }
            for _ in 0..BATCH {
                let Ok(length) = socket.try_recv(&mut buffer) else {
                    break;
                };
                let Some(datagram) = buffer.get(..length) else {
                    break;
                };
                if datagram
                    .first()
                    .is_some_and(|kind| WIREGUARD.contains(kind))
                {
                    lock(&self.state).used = Instant::now();
                }
                let _ = self.queue.try_send(stream::message(port, datagram));
            }
        }
    }

    /// Makes the stream, and makes it again.
    async fn keep_connected(self: Arc<Self>, mut queued: mpsc::Receiver<Vec<u8>>) {
        let mut backoff = BACKOFF.0;
        loop {
            match connect(&self.wanted.upstream, self.wanted.fwmark).await {
                Ok(socket) => {
                    tracing::info!(server = %self.wanted.upstream.url, "connected");
                    self.set(true, None);
                    backoff = BACKOFF.0;
                    // What waited meanwhile was said again since, or is late.
                    while queued.try_recv().is_ok() {}
                    let (sink, source) = socket.split();
                    tokio::select! {
                        () = self.receive(source) => {}
                        () = send(sink, &mut queued) => {}
                    }
                    tracing::warn!(server = %self.wanted.upstream.url, "the stream has ended");
                    self.set(false, None);
                }
                Err(problem) => {
                    tracing::warn!(server = %self.wanted.upstream.url, "{problem}");
                    self.set(false, Some(problem));
                }
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    fn set(&self, is_connected: bool, problem: Option<String>) {
        let mut state = lock(&self.state);
        (state.is_connected, state.problem) = (is_connected, problem);
    }

    /// Hands what comes in the stream to WireGuard's port.
    async fn receive(&self, mut source: SplitStream<Socket>) {
        while let Ok(Some(Ok(message))) = timeout(SILENCE, source.next()).await {
            let Message::Binary(message) = message else {
                continue;
            };
            let Some((port, datagram)) = stream::parse(&message) else {
                continue;
            };
            let socket = lock(&self.ports).get(&port).cloned();
            if let Some(socket) = socket {
                // What can't be sent is lost, as a network might have lost it.
                let _ = socket.try_send(datagram);
            }
        }
    }
}

/// Sends what waits, and a ping now and then, until the stream ends or stalls.
async fn send(mut sink: SplitSink<Socket, Message>, queued: &mut mpsc::Receiver<Vec<u8>>) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut ping = tokio::time::interval(PING);
    loop {
        tokio::select! {
            count = queued.recv_many(&mut batch, BATCH) => if count == 0 { return },
            _ = ping.tick() => {}
        }
        let is_ping = batch.is_empty();
        let send = async {
            for message in batch.drain(..) {
                sink.feed(Message::binary(message)).await?;
            }
            if is_ping {
                sink.feed(Message::Ping(Bytes::new())).await?;
            }
            sink.flush().await
        };
        if !matches!(timeout(SILENCE, send).await, Ok(Ok(()))) {
            return;
        }
    }
}
