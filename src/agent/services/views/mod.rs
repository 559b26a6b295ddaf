//! How this node and another one see the path between them: the task that asks and answers by
//! [`exchange`].

mod exchange;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use natpunch_net::now;
use serde::Deserialize;
use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub(crate) use self::exchange::PORT;
use self::exchange::{Exchange, Heard, LENGTH, MOST_TRIED};
pub use self::exchange::{PeerView, Tried};
use super::sockets::MeshSockets;
use super::{Calls, Node, Service, sleep_until};
use crate::agent::Why;
use crate::control::{Call, Reply, Request};
use crate::plugins::fill_random;

/// How often a node that does not answer is asked, and how far apart: 1.5 s in all.
const TRIES: u32 = 3;
const TRY_INTERVAL: Duration = Duration::from_millis(500);
/// Questions of this node that wait for an answer.
const MOST_WAITING: usize = 16;
/// Questions of others that the agent is asked at a time.
const MOST_ANSWERING: usize = 4;

enum Input {
    Own {
        interface: String,
        addresses: Vec<IpAddr>,
        /// The peers that run natpunch.
        peers: Vec<(String, Vec<IpAddr>)>,
    },
    Ask {
        peer: String,
        answer: oneshot::Sender<PeerView>,
    },
}

/// The task that asks and answers. It ends when this is dropped.
pub(crate) struct Views {
    inbox: mpsc::Sender<Input>,
    task: JoinHandle<()>,
}

impl Views {
    /// Asks a peer how it sees this node. An error: it did not answer.
    pub(crate) fn ask(&self, peer: String) -> oneshot::Receiver<PeerView> {
        let (answer, answered) = oneshot::channel();
        // Refused: the receiver finds its sender gone.
        let _ = self.inbox.try_send(Input::Ask { peer, answer });
        answered
    }
}

impl Service for Views {
    type Status = ();

    fn start(calls: &Calls) -> Self {
        let (inbox, inputs) = mpsc::channel(16);
        let task = tokio::spawn(run(inputs, calls.clone()));
        Self { inbox, task }
    }

    async fn node_changed(&mut self, node: &Node<'_>) {
        let config = node.config;
        let managed = config.peers.iter().filter(|peer| peer.managed);
        let own = Input::Own {
            interface: config.interface.clone(),
            addresses: config.addresses.iter().map(ipnet::IpNet::addr).collect(),
            peers: managed
                .map(|peer| (peer.name.clone(), peer.addresses.clone()))
                .collect(),
        };
        if self.inbox.try_send(own).is_err() {
            tracing::warn!("`why` of two nodes does not keep up; it asks the peers of before");
        }
    }

    /// `why` asks by [`Views::ask`], which takes a round trip.
    fn status(&self) {}

    async fn stop(self) {}
}

impl Drop for Views {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A question of this node that is not answered yet.
struct Waiting {
    answer: oneshot::Sender<PeerView>,
    nonce: [u8; 8],
    /// How often it was sent.
    tries: u32,
    /// When it is sent again, or given up.
    next: Instant,
}

struct Task {
    exchange: Exchange,
    sockets: MeshSockets,
    waiting: BTreeMap<String, Waiting>,
    calls: Calls,
    answering: Arc<Semaphore>,
}

async fn run(mut inputs: mpsc::Receiver<Input>, calls: Calls) {
    let mut task = Task {
        exchange: Exchange::default(),
        sockets: MeshSockets::new(PORT, "`why` of other nodes can't ask this one"),
        waiting: BTreeMap::new(),
        calls,
        answering: Arc::new(Semaphore::new(MOST_ANSWERING)),
    };
    let mut buffer = [0; LENGTH + 1];
    loop {
        let next = task.waiting.values().map(|waiting| waiting.next).min();
        tokio::select! {
            input = inputs.recv() => match input {
                Some(Input::Own { interface, addresses, peers }) => {
                    task.exchange.set_peers(peers.into_iter());
                    task.sockets.renew(interface, addresses);
                }
                Some(Input::Ask { peer, answer }) => task.ask(peer, answer).await,
                None => return,
            },
            received = task.sockets.receive(&mut buffer) => match received {
                Ok((length, source, socket)) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    task.on_datagram(bytes, source, socket);
                }
                // An ICMP error of an earlier question: that peer does not listen.
                Err(error) => tracing::trace!(%error, "view"),
            },
            () = sleep_until(next) => task.ask_again().await,
        }
    }
}

impl Task {
    /// A question that waits for the same peer already is dropped for the new one.
    async fn ask(&mut self, peer: String, answer: oneshot::Sender<PeerView>) {
        if self.waiting.len() >= MOST_WAITING {
            return;
        }
        let mut nonce = [0; 8];
        fill_random(&mut nonce);
        let waiting = Waiting {
            answer,
            nonce,
            tries: 0,
            next: Instant::now(),
        };
        self.waiting.insert(peer, waiting);
        self.ask_again().await;
    }

    /// Sends what is due, and gives up what was sent often enough.
    async fn ask_again(&mut self) {
        let time = Instant::now();
        self.waiting
            .retain(|_, waiting| waiting.next > time || waiting.tries < TRIES);
        for (peer, waiting) in &mut self.waiting {
            if waiting.next > time {
                continue;
            }
            waiting.tries += 1;
            waiting.next = time + TRY_INTERVAL;
            let Some((addresses, question)) = self.exchange.ask(peer, waiting.nonce) else {
                // There is no such node any more.
                waiting.tries = TRIES;
                continue;
            };
            if let Err(error) = self.sockets.send(&addresses, &question).await {
                tracing::trace!(%peer, %error, "view not asked for");
            }
        }
    }

    fn on_datagram(&mut self, bytes: &[u8], source: SocketAddr, socket: Arc<UdpSocket>) {
        match self.exchange.handle(source.ip(), bytes, now()) {
            Some(Heard::Answer { peer, view }) => {
                if let Some(waiting) = self.waiting.remove(&peer) {
                    let _ = waiting.answer.send(view);
                }
            }
            Some(Heard::Question { peer, nonce }) => {
                // More questions than the agent may be asked at a time are not answered; the asker
                // repeats itself.
                let Ok(permit) = Arc::clone(&self.answering).try_acquire_owned() else {
                    return;
                };
                let calls = self.calls.clone();
                tokio::spawn(async move {
                    let view = view_of(peer, &calls).await;
                    let answer = view.and_then(|view| Exchange::answer(nonce, &view));
                    if let Some(answer) = answer
                        && let Err(error) = socket.send_to(&answer, source).await
                    {
                        tracing::trace!(%source, %error, "view not told");
                    }
                    drop(permit);
                });
            }
            None => {}
        }
    }
}

/// What of the agent's own answer to `why` is told.
#[derive(Deserialize)]
struct Peer {
    state: String,
    path: String,
    endpoint: Option<String>,
    rtt_ms: Option<f64>,
    candidates: Vec<Candidate>,
}

#[derive(Deserialize)]
struct Candidate {
    #[serde(flatten)]
    tried: Tried,
    age_s: f64,
}

/// How this node sees a peer: what `why` says here, shortened.
async fn view_of(peer: String, calls: &Calls) -> Option<PeerView> {
    let (answer, answered) = oneshot::channel();
    let call = Call {
        request: Request::Why { peer },
        connected: now(),
        answer,
    };
    calls.try_send(call).ok()?;
    let Reply::Ok(value) = answered.await.ok()? else {
        return None;
    };
    let why: Why<Peer, serde::de::IgnoredAny> = serde_json::from_value(value).ok()?;
    let mut candidates = why.peer.candidates;
    candidates.sort_by(|a, b| a.age_s.total_cmp(&b.age_s));
    let tried = candidates.into_iter().map(|candidate| candidate.tried);
    Some(PeerView {
        state: why.peer.state,
        path: why.peer.path,
        endpoint: why.peer.endpoint,
        rtt_ms: why.peer.rtt_ms,
        since_s: why.since.since_s,
        situation: why.cause.situation,
        why: why.cause.text,
        nat: why.own_nat,
        tried: tried.take(MOST_TRIED).collect(),
    })
}
