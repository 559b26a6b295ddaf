//! The threads of the workers and of the relay: started together, stopped together, and missed when
//! one is lost.

use std::io;
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use crate::server::protocols::random;
use crate::server::relay::Relay;
use crate::server::streams::mailbox::Mailbox;
use crate::server::worker::{Shared, Worker};

/// All threads of a server.
pub(in crate::server) struct Threads {
    threads: Vec<JoinHandle<()>>,
    /// Closed to stop them.
    stop: UnixStream,
    /// Each thread holds a sender that says so when it is dropped.
    lost: mpsc::UnboundedReceiver<()>,
}

/// Says that a thread is gone, whatever ended it.
struct ExitNotice(mpsc::UnboundedSender<()>);

impl Drop for ExitNotice {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Threads {
    /// Starts a worker for each of these sets of sockets, and as many threads for the relay.
    ///
    /// # Errors
    /// If the system has no randomness, threads or files left.
    pub(in crate::server) fn start(
        sockets: Vec<Vec<UdpSocket>>,
        relay: Option<Relay>,
        shared: &Arc<Shared>,
    ) -> io::Result<Self> {
        let forwarders = match (relay, sockets.first()) {
            (Some(relay), Some(first)) => relay.forwarders(sockets.len(), first, shared)?,
            _ => Vec::new(),
        };
        let (stop, stopped) = UnixStream::pair()?;
        let (exit_notice, lost) = mpsc::unbounded_channel();
        let mut threads = Vec::new();
        let now = shared.start.now();
        for (number, sockets) in sockets.into_iter().enumerate() {
            let (shared, rng) = (shared.clone(), random()?);
            let name = format!("worker-{number}");
            let heartbeat = shared.heartbeats.expect(&name, now);
            let (stopped, exit_notice) = (stopped.try_clone()?, ExitNotice(exit_notice.clone()));
            let mailbox = match shared.streams.of_worker(number) {
                Some(mailbox) => mailbox,
                None => Arc::new(Mailbox::new()?),
            };
            threads.push(std::thread::Builder::new().name(name).spawn(move || {
                let _farewell = exit_notice;
                Worker::new((sockets, mailbox), shared, heartbeat, rng).run(&stopped);
            })?);
        }
        for (number, forwarder) in forwarders.into_iter().enumerate() {
            let (stopped, exit_notice) = (stopped.try_clone()?, ExitNotice(exit_notice.clone()));
            let name = format!("relay-{number}");
            let heartbeat = shared.heartbeats.expect(&name, now);
            threads.push(std::thread::Builder::new().name(name).spawn(move || {
                let _farewell = exit_notice;
                forwarder.run(&heartbeat, &stopped);
            })?);
        }
        Ok(Self {
            threads,
            stop,
            lost,
        })
    }

    /// Whether a thread has ended by itself.
    pub(in crate::server) fn has_lost(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Waits until a thread has ended by itself, which may be for ever.
    pub(in crate::server) async fn lost(&mut self) {
        if self.threads.is_empty() || self.lost.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// As if a thread had panicked.
    #[cfg(test)]
    pub(in crate::server) fn lose(&mut self) {
        let thread = std::thread::spawn(|| ());
        while !thread.is_finished() {
            std::thread::yield_now();
        }
        self.threads.push(thread);
    }

    /// Stops all and waits for them.
    pub(in crate::server) fn stop(self) {
        drop(self.stop);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}
