//! Which version of the mesh each node runs: the task that asks and answers by [`book`].

mod book;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use natpunch_types::Time;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::book::{Book, LENGTH, Member, PORT, Revision};
pub use self::book::{PeerRevision, Runs, Standing};
use super::sockets::MeshSockets;
use super::{Calls, Node, Service, sleep_until};
use crate::plugins::fill_random;

/// How often a node that does not answer is asked in one round, and how far apart.
const TRIES: u32 = 3;
const TRY_INTERVAL: Duration = Duration::from_millis(500);
/// Questions that are sent at once, and the pause before the next ones.
const BATCH: usize = 64;
const BATCH_PAUSE: Duration = Duration::from_millis(5);
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

    fn start(_: &Calls) -> Self {
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
    sockets: MeshSockets,
    round: Round,
    not_newest: Arc<AtomicBool>,
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
        sockets: MeshSockets::new(
            PORT,
            "`status --mesh` of other nodes shows this one as silent",
        ),
        round: Round::default(),
        not_newest,
    };
    task.renewed();
    let mut buffer = [0; LENGTH + 1];
    loop {
        let next = task.round.next;
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
            received = task.sockets.receive(&mut buffer) => match received {
                Ok((length, source, socket)) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    task.on_datagram(bytes, source, &socket).await;
                }
                // An ICMP error of an earlier question: that peer does not listen.
                Err(error) => tracing::trace!(%error, "revision"),
            },
            () = sleep_until(next) => task.ask_more().await,
        }
        task.finish();
    }
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
        self.book.set_members(std::mem::take(&mut self.own.members));
        let addresses = std::mem::take(&mut self.own.addresses);
        self.sockets.renew(self.own.interface.clone(), addresses);
        let connected = std::mem::take(&mut self.own.connected);
        self.begin(connected);
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
            if let Err(error) = self.sockets.send(&addresses, &question).await {
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

    async fn on_datagram(&mut self, bytes: &[u8], source: SocketAddr, socket: &UdpSocket) {
        let own = self.revision();
        let Some(answer) = self
            .book
            .handle(source.ip(), bytes, &own, natpunch_net::now())
        else {
            return;
        };
        if let Err(error) = socket.send_to(&answer, source).await {
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
