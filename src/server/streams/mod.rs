//! Clients that reach the server by a stream, where no UDP passes: WebSocket over TLS, or behind a
//! reverse proxy.
//!
//! Each message is one datagram of the rendezvous or of a relay's port
//! ([`natpunch_rendezvous::stream`]). It goes to the thread that has the datagrams of that port,
//! under an [address](natpunch_types::stream_address) that stands for the stream, and what is sent
//! to that address goes back into the stream. So all that holds of datagrams holds here.

pub(in crate::server) mod connection;
pub(in crate::server) mod listener;
pub(in crate::server) mod mailbox;
pub(in crate::server) mod tls;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use natpunch_rendezvous::stream;
use tokio::sync::mpsc;

use mailbox::{Arrived, Mailbox};

/// The number of the socket of what came in a stream, in [`Via`](natpunch_rendezvous::server::Via).
pub(in crate::server) const STREAM: usize = usize::MAX;
/// Messages that wait to be sent in one stream; newer ones are dropped.
const QUEUE: usize = 512;

/// The streams that are open, and the threads that have the datagrams in them.
#[derive(Default)]
pub(in crate::server) struct Streams {
    /// Where the messages to each client wait, by the address that stands for its stream.
    open: RwLock<HashMap<SocketAddr, mpsc::Sender<Vec<u8>>>>,
    /// One for each worker.
    workers: Vec<Arc<Mailbox>>,
    /// By the relay's UDP port: the mailbox of its thread, and the number of the port there.
    relay: OnceLock<BTreeMap<u16, (Arc<Mailbox>, usize)>>,
}

impl Streams {
    /// None, for so many workers.
    ///
    /// # Errors
    /// The system has no files left.
    pub(in crate::server) fn new(workers: usize) -> std::io::Result<Self> {
        let workers = (0..workers).map(|_| Mailbox::new().map(Arc::new));
        Ok(Self {
            workers: workers.collect::<Result<_, _>>()?,
            ..Self::default()
        })
    }

    /// The mailbox of a worker.
    pub(in crate::server) fn of_worker(&self, number: usize) -> Option<Arc<Mailbox>> {
        self.workers.get(number).cloned()
    }

    /// The relay's ports are these. Said once.
    pub(in crate::server) fn set_relay(&self, ports: BTreeMap<u16, (Arc<Mailbox>, usize)>) {
        let _ = self.relay.set(ports);
    }

    /// How many are open.
    pub(in crate::server) fn count(&self) -> usize {
        self.open
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Opens one: what is sent to this address comes out at the other end.
    fn open(&self, address: SocketAddr) -> mpsc::Receiver<Vec<u8>> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.insert(address, sender);
        receiver
    }

    fn close(&self, address: SocketAddr) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.remove(&address);
    }

    /// Hands in a message that came in a stream; false if it is none, for no port of this server,
    /// or if there is no room for it.
    fn receive(&self, source: SocketAddr, number: u64, message: &[u8]) -> bool {
        let Some((port, datagram)) = stream::parse(message) else {
            return false;
        };
        let (mailbox, place) = if port == stream::SERVER {
            // One stream is always the same worker's, as one client's datagrams are.
            let count = u64::try_from(self.workers.len()).unwrap_or(1).max(1);
            let worker = usize::try_from(number % count).unwrap_or_default();
            match self.workers.get(worker) {
                Some(mailbox) => (mailbox, 0),
                None => return false,
            }
        } else {
            match self.relay.get().and_then(|ports| ports.get(&port)) {
                Some((mailbox, place)) => (mailbox, *place),
                None => return false,
            }
        };
        mailbox.push(Arrived {
            place,
            source,
            payload: datagram.to_vec(),
        })
    }

    /// Sends a datagram of this port in the stream of an address; false if there is none, or no
    /// room for it.
    pub(in crate::server) fn send(&self, to: SocketAddr, port: u16, datagram: &[u8]) -> bool {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let message = || stream::message(port, datagram);
        open.get(&to)
            .is_some_and(|queue| queue.try_reserve().map(|p| p.send(message())).is_ok())
    }
}
