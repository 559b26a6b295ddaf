//! The threads of the workers and of the relay: started together, stopped together, and missed when
//! one is lost.

use std::io;
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use super::protocols::random;
use super::relay::Relay;
use super::worker::{Shared, Worker};

/// All threads of a server.
pub(super) struct Crew {
    threads: Vec<JoinHandle<()>>,
    /// Closed to stop them.
    stop: UnixStream,
    /// Each thread holds a sender that says so when it is dropped.
    lost: mpsc::UnboundedReceiver<()>,
}

/// Says that a thread is gone, whatever ended it.
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
    pub(super) fn start(
        sockets: Vec<Vec<UdpSocket>>,
        relay: Option<Relay>,
        shared: &Arc<Shared>,
    ) -> io::Result<Self> {
        let passers = match (relay, sockets.first()) {
            (Some(relay), Some(first)) => relay.passers(sockets.len(), first, shared)?,
            _ => Vec::new(),
        };
        let (stop, stopped) = UnixStream::pair()?;
        let (farewell, lost) = mpsc::unbounded_channel();
        let mut threads = Vec::new();
        let now = shared.start.elapsed();
        for (number, sockets) in sockets.into_iter().enumerate() {
            let (shared, rng) = (shared.clone(), random()?);
            let name = format!("worker-{number}");
            let beat = shared.beats.expect(&name, now);
            let (stopped, farewell) = (stopped.try_clone()?, Farewell(farewell.clone()));
            threads.push(std::thread::Builder::new().name(name).spawn(move || {
                let _farewell = farewell;
                Worker::new(sockets, shared, beat, rng).run(&stopped);
            })?);
        }
        for (number, passer) in passers.into_iter().enumerate() {
            let (stopped, farewell) = (stopped.try_clone()?, Farewell(farewell.clone()));
            let name = format!("relay-{number}");
            let beat = shared.beats.expect(&name, now);
            threads.push(std::thread::Builder::new().name(name).spawn(move || {
                let _farewell = farewell;
                passer.run(&beat, &stopped);
            })?);
        }
        Ok(Self {
            threads,
            stop,
            lost,
        })
    }

    /// Whether a thread has ended by itself.
    pub(super) fn has_lost(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Waits until a thread has ended by itself, which may be for ever.
    pub(super) async fn lost(&mut self) {
        if self.threads.is_empty() || self.lost.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// As if a thread had panicked.
    #[cfg(test)]
    pub(super) fn lose(&mut self) {
        let thread = std::thread::spawn(|| ());
        while !thread.is_finished() {
            std::thread::yield_now();
        }
        self.threads.push(thread);
    }

    /// Stops all and waits for them.
    pub(super) fn stop(self) {
        drop(self.stop);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}
