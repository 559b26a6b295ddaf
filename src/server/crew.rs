//! The workers' threads: started together, stopped together, and missed when one is lost.

use std::io;
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use super::protocols::random;
use super::relay::Relay;
use super::worker::{Shared, Worker};

/// All workers of a server.
pub(super) struct Crew {
    threads: Vec<JoinHandle<()>>,
    /// Closed to stop them.
    stop: UnixStream,
    /// Each worker holds a sender that says so when it is dropped.
    lost: mpsc::UnboundedReceiver<()>,
}

/// Says that a worker is gone, whatever ended it.
struct Farewell(mpsc::UnboundedSender<()>);

impl Drop for Farewell {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Crew {
    /// Starts a worker for each of these sets of sockets, and as many threads for the relay.
    ///
    /// # Errors
    /// If the system has no randomness, threads or files left.
    pub(super) fn start(sockets: Vec<Vec<UdpSocket>>, relay: Option<Relay>, shared: &Arc<Shared>) -> io::Result<Self> {
        let passers = match (relay, sockets.first()) {
            (Some(relay), Some(first)) => relay.passers(sockets.len(), first, shared)?,
            _ => Vec::new(),
        };
        let (stop, stopped) = UnixStream::pair()?;
        let (farewell, lost) = mpsc::unbounded_channel();
        let mut threads = Vec::new();
        for (number, sockets) in sockets.into_iter().enumerate() {
            let (shared, rng) = (shared.clone(), random()?);
            let (stopped, farewell) = (stopped.try_clone()?, Farewell(farewell.clone()));
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            threads.push(thread.spawn(move || {
                let _farewell = farewell;
                Worker::new(number, sockets, shared, rng).run(&stopped);
            })?);
        }
        for (number, passer) in passers.into_iter().enumerate() {
            let (stopped, farewell) = (stopped.try_clone()?, Farewell(farewell.clone()));
            let thread = std::thread::Builder::new().name(format!("relay-{number}"));
            threads.push(thread.spawn(move || {
                let _farewell = farewell;
                passer.run(&stopped);
            })?);
        }
        Ok(Self { threads, stop, lost })
    }

    /// Waits until a worker has ended by itself, which may be for ever.
    pub(super) async fn lost(&mut self) {
        if self.threads.is_empty() || self.lost.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Stops all and waits for them.
    pub(super) fn stop(self) {
        drop(self.stop);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}
