//! Which version of the mesh each node runs: the sockets of [`book`], one on each mesh address of
//! this node, bound to its interface.

mod book;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use natpunch_types::Time;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::book::{Book, LENGTH, Member, PORT, Revision};
pub use self::book::{PeerRevision, Runs, Standing};
use super::{Node, Service};
use crate::plugins::fill_random;

/// How often a node that does not answer is asked in one round, and how far apart.
const TRIES: u32 = 3;
const TRY_INTERVAL: Duration = Duration::from_millis(500);
/// Questions that are sent at once, and the pause before the next ones.
const BATCH: usize = 64;
const BATCH_PAUSE: Duration = Duration::from_millis(5);
/// When addresses that could not be listened on are tried again.
const BIND_RETRY: Duration = Duration::from_secs(10);
/// The same after the first failure.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// What this node runs, and with whom.
struct Own {
    interface: String,
    addresses: Vec<IpAddr>,
    revision: Revision,
    since: Time,
    members: Vec<Member>,
    connected: BTreeSet<String>,
}

enum Input {
    Own(Own),
    Ask {
        connected: BTreeSet<String>,
        answer: oneshot::Sender<(Runs, Vec<PeerRevision>)>,
    },
}

/// The task that asks and answers. It ends when this is dropped.
pub(crate) struct Revisions {
    inbox: mpsc::Sender<Input>,
    not_newest: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Revisions {
    fn spawn() -> Self {
        let (inbox, inputs) = mpsc::channel(16);
        let not_newest = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(run(inputs, Arc::clone(&not_newest)));
        Self {
            inbox,
            not_newest,
            task,
        }
    }

    /// The connected peers are told what this node runs.
    fn tell(&self, node: &Node<'_>) {
        let Node {
            config: node,
            since,
            connected,
        } = node;
        let number = |text: &str| text.parse().unwrap_or_default();
        let revision = Revision {
            generation: node.generation,
            hash: std::array::from_fn(|at| node.mesh_hash.get(at).copied().unwrap_or_default()),
            runs_for: Duration::ZERO,
            version: [
                env!("CARGO_PKG_VERSION_MAJOR"),
                env!("CARGO_PKG_VERSION_MINOR"),
                env!("CARGO_PKG_VERSION_PATCH"),
            ]
            .map(number),
            not_newest: false,
        };
        let members = node
            .peers
            .iter()
            .map(|peer| Member {
                name: peer.name.clone(),
                addresses: peer.addresses.clone(),
                managed: peer.managed,
            })
            .collect();
        let addresses = node.addresses.iter().map(ipnet::IpNet::addr).collect();
        let own = Own {
            interface: node.interface.clone(),
            addresses,
            revision,
            since: *since,
            members,
            connected: connected.clone(),
        };
        if self.inbox.try_send(Input::Own(own)).is_err() {
            tracing::warn!(
                "the exchange of revisions does not keep up; `status --mesh` shows an old version"
            );
        }
    }

    /// Whether there is a newer version that this node does not run.
    pub(crate) fn set_not_newest(&self, not_newest: bool) {
        self.not_newest.store(not_newest, Ordering::Relaxed);
    }

    /// Asks the connected peers; what this node runs, and what they said.
    pub(crate) fn ask(
        &self,
        connected: BTreeSet<String>,
    ) -> oneshot::Receiver<(Runs, Vec<PeerRevision>)> {
        let (answer, answered) = oneshot::channel();
        // Refused: the receiver finds its sender gone.
        let _ = self.inbox.try_send(Input::Ask { connected, answer });
        answered
    }
}

impl Service for Revisions {
    type Status = ();

    fn start() -> Self {
        Self::spawn()
    }

    async fn node_changed(&mut self, node: &Node<'_>) {
        self.tell(node);
    }

    /// `status --mesh` asks by [`Revisions::ask`], which takes a round trip.
    fn status(&self) {}

    async fn stop(self) {}
}

impl Drop for Revisions {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Questions under way.
#[derive(Default)]
struct Round {
    waiting: Vec<oneshot::Sender<(Runs, Vec<PeerRevision>)>>,
    connected: BTreeSet<String>,
    tries: u32,
    /// Who is still to be asked in this try.
    queue: Vec<String>,
    next: Option<Instant>,
}

struct Task {
    own: Own,
    book: Book,
    sockets: Vec<(IpAddr, UdpSocket)>,
    round: Round,
    not_newest: Arc<AtomicBool>,
    bind_at: Option<Instant>,
    complained: bool,
}

async fn run(mut inputs: mpsc::Receiver<Input>, not_newest: Arc<AtomicBool>) {
    let own = loop {
        match inputs.recv().await {
            Some(Input::Own(own)) => break own,
            Some(Input::Ask { .. }) => {}
            None => return,
        }
    };
    let mut task = Task {
        own,
        book: Book::default(),
        sockets: Vec::new(),
        round: Round::default(),
        not_newest,
        bind_at: None,
        complained: false,
    };
    task.renewed();
    let mut buffer = [0; LENGTH + 1];
    loop {
        let next = task.round.next;
        let bind_at = task.bind_at;
        let sleep = |at: Option<Instant>| async move {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            input = inputs.recv() => match input {
                Some(Input::Own(own)) => {
                    task.own = own;
                    task.renewed();
                }
                Some(Input::Ask { connected, answer }) => {
                    task.round.waiting.push(answer);
                    if task.round.next.is_none() || task.round.tries == 0 {
                        task.begin(connected);
                    }
                }
                None => return,
            },
            received = receive(&task.sockets, &mut buffer) => match received {
                Ok((at, length, source)) => task.on_datagram(at, buffer.get(..length).unwrap_or_default(), source).await,
                // An ICMP error of an earlier question: that peer does not listen.
                Err(error) => tracing::trace!(%error, "revision"),
            },
            () = sleep(next) => task.ask_more().await,
            () = sleep(bind_at) => task.bind(),
        }
        task.finish();
    }
}

/// The next datagram of any socket; never, if there is none.
async fn receive(
    sockets: &[(IpAddr, UdpSocket)],
    buffer: &mut [u8],
) -> io::Result<(usize, usize, SocketAddr)> {
    std::future::poll_fn(|context| {
        for (at, (_, socket)) in sockets.iter().enumerate() {
            let mut room = tokio::io::ReadBuf::new(buffer);
            match pin!(socket).poll_recv_from(context, &mut room) {
                std::task::Poll::Ready(Ok(source)) => {
                    return std::task::Poll::Ready(Ok((at, room.filled().len(), source)));
                }
                std::task::Poll::Ready(Err(error)) => return std::task::Poll::Ready(Err(error)),
                std::task::Poll::Pending => {}
            }
        }
        std::task::Poll::Pending
    })
    .await
}

impl Task {
    fn revision(&self) -> Revision {
        Revision {
            runs_for: natpunch_net::now().since(self.own.since),
            not_newest: self.not_newest.load(Ordering::Relaxed),
            ..self.own.revision
        }
    }

    /// This node runs another version, or has another interface.
    fn renewed(&mut self) {
        self.book
            .set_members(std::mem::take(&mut self.own.members), natpunch_net::now());
        self.complained = false;
        self.bind_at = None;
        self.sockets.clear();
        self.bind();
        let connected = std::mem::take(&mut self.own.connected);
        self.begin(connected);
    }

    /// Listens on every address that is not listened on.
    fn bind(&mut self) {
        let is_retry = self.bind_at.take().is_some();
        for address in &self.own.addresses {
            if self.sockets.iter().any(|(bound, _)| bound == address) {
                continue;
            }
            match open(*address, &self.own.interface) {
                Ok(socket) => self.sockets.push((*address, socket)),
                Err(error) => {
                    // A socket that was closed a moment ago is still open in a program that is just
                    // being started: the first failure says nothing.
                    if is_retry && !std::mem::replace(&mut self.complained, true) {
                        let at = SocketAddr::new(*address, PORT);
                        tracing::warn!(%error, "can't listen on {at}; `status --mesh` of other nodes shows this one as silent");
                    }
                    let pause = if is_retry { BIND_RETRY } else { BIND_AGAIN };
                    self.bind_at = Some(Instant::now() + pause);
                }
            }
        }
    }

    fn begin(&mut self, connected: BTreeSet<String>) {
        self.book.begin();
        self.round.queue = connected.iter().rev().cloned().collect();
        self.round.connected = connected;
        self.round.tries = TRIES;
        self.round.next = Some(Instant::now());
    }

    /// Sends some questions of the round.
    async fn ask_more(&mut self) {
        if self.round.tries == 0 {
            return;
        }
        let own = self.revision();
        for _ in 0..BATCH {
            let Some(name) = self.round.queue.pop() else {
                break;
            };
            let mut nonce = [0; 8];
            fill_random(&mut nonce);
            let Some((addresses, question)) = self.book.ask(&name, &own, nonce) else {
                continue;
            };
            let way = addresses.iter().find_map(|to| {
                let (_, socket) = self
                    .sockets
                    .iter()
                    .find(|(from, _)| from.is_ipv4() == to.is_ipv4())?;
                Some((socket, *to))
            });
            if let Some((socket, to)) = way
                && let Err(error) = socket.send_to(&question, SocketAddr::new(to, PORT)).await
            {
                tracing::trace!(peer = %name, %error, "revision not asked for");
            }
        }
        if !self.round.queue.is_empty() {
            self.round.next = Some(Instant::now() + BATCH_PAUSE);
            return;
        }
        self.round.tries = self.round.tries.saturating_sub(1);
        self.round.next = Some(Instant::now() + TRY_INTERVAL);
        if self.round.tries > 0 {
            let silent = |name: &&String| !self.book.has_answered(name);
            self.round.queue = self
                .round
                .connected
                .iter()
                .rev()
                .filter(silent)
                .cloned()
                .collect();
        }
    }

    async fn on_datagram(&mut self, at: usize, bytes: &[u8], source: SocketAddr) {
        // Questions come from the port that answers go to; nothing is sent to another.
        if source.port() != PORT {
            return;
        }
        let own = self.revision();
        let Some(answer) = self
            .book
            .handle(source.ip(), bytes, &own, natpunch_net::now())
        else {
            return;
        };
        if let Some((_, socket)) = self.sockets.get(at)
            && let Err(error) = socket.send_to(&answer, source).await
        {
            tracing::trace!(%source, %error, "revision not told");
        }
    }

    /// Ends the round when all have answered, or when nobody is asked again.
    fn finish(&mut self) {
        let Some(next) = self.round.next else { return };
        let over = self.round.tries == 0 && Instant::now() >= next;
        if !over
            && !self
                .round
                .connected
                .iter()
                .all(|name| self.book.has_answered(name))
        {
            return;
        }
        let own = self.revision();
        let report = self.book.report(
            &own,
            &|name| self.round.connected.contains(name),
            natpunch_net::now(),
        );
        for waiting in std::mem::take(&mut self.round).waiting {
            let _ = waiting.send((Runs::of(&own, Duration::ZERO), report.clone()));
        }
    }
}

fn open(address: IpAddr, interface: &str) -> io::Result<UdpSocket> {
    let domain = if address.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    // Only packets through the tunnel are authenticated, so others must not reach the socket.
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(address, PORT).into())?;
    UdpSocket::from_std(socket.into())
}
