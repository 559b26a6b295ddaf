//! A worker: one thread with its own socket on every address, which takes datagrams by the batch,
//! lets the protocols answer, and sends by the batch.
//!
//! What is the same for all workers is locked for what changes it and for nothing else:
//! Diffie-Hellman, ciphers and system calls run outside of any lock.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use natpunch_net::{Ends, Inbox, Outbox, Stopwatch};
use natpunch_rendezvous::server::{Incoming, Opened, Unsealed, Via};
use natpunch_rendezvous::{stream, wire};
use natpunch_types::Time;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rand_chacha::ChaCha20Rng;

use crate::server::Backoff;
use crate::server::cluster::Wake;
use crate::server::counters::Counters;
use crate::server::handshakes::HandshakeQueue;
use crate::server::heartbeats::{BEAT, Heartbeat, Heartbeats};
use crate::server::protocols::{Answer, Class, Protocols};
use crate::server::sockets::{ReplySockets, Sockets};
use crate::server::streams::mailbox::Mailbox;
use crate::server::streams::{STREAM, Streams};

/// Longer datagrams than any that is understood, so that a cut-off one never looks whole.
const LONGEST: usize = 2_048;
/// Handshakes worked on before the sockets get their turn again: about a millisecond.
const HANDSHAKES_PER_TURN: usize = 4;

/// What all workers share.
pub(in crate::server) struct Shared {
    pub(in crate::server) protocols: Protocols,
    /// Where an answer to what came to a socket may leave.
    pub(in crate::server) reply_sockets: Vec<ReplySockets>,
    pub(in crate::server) counters: Arc<Counters>,
    /// The origin of time.
    pub(in crate::server) start: Stopwatch,
    /// Signs of life of the workers and of the relay's threads.
    pub(in crate::server) heartbeats: Heartbeats,
    /// How many workers there are.
    pub(in crate::server) workers: usize,
    /// Handshakes that wait for their turn, of all workers.
    pub(in crate::server) waiting: AtomicUsize,
    /// The clients that no UDP reaches.
    pub(in crate::server) streams: Streams,
    /// Wakes the task of the store, if there is one.
    pub(in crate::server) store_wake: Arc<Wake>,
}

impl Shared {
    /// What the workers of these sockets share; time begins now.
    ///
    /// # Errors
    /// The system has no files left.
    pub(in crate::server) fn new(
        protocols: Protocols,
        sockets: &Sockets,
        counters: Arc<Counters>,
        store_wake: Arc<Wake>,
    ) -> io::Result<Self> {
        Ok(Self {
            protocols,
            reply_sockets: ReplySockets::all(&sockets.addresses, sockets.alternate_port),
            counters,
            start: Stopwatch::start(),
            heartbeats: Heartbeats::default(),
            workers: sockets.of_workers.len(),
            waiting: AtomicUsize::new(0),
            streams: Streams::new(sockets.of_workers.len())?,
            store_wake,
        })
    }

    /// The threads that have shown no sign of life within this time.
    pub(in crate::server) fn stuck(&self, within: Duration) -> Vec<String> {
        self.heartbeats.missed(within, self.start.now())
    }
}

/// Serves its sockets until the other end of `stop` is closed.
pub(in crate::server) struct Worker {
    sockets: Vec<UdpSocket>,
    /// What came in streams.
    mailbox: Arc<Mailbox>,
    shared: Arc<Shared>,
    heartbeat: Arc<Heartbeat>,
    rng: ChaCha20Rng,
    handshakes: HandshakeQueue,
    /// What is to be sent, by socket; last what goes into streams.
    outgoing: Vec<Vec<(Ends, Answer)>>,
    outbox: Outbox,
    /// When the rendezvous last said that it wants to be called.
    next: Option<Time>,
}

impl Worker {
    pub(in crate::server) fn new(
        (sockets, mailbox): (Vec<UdpSocket>, Arc<Mailbox>),
        shared: Arc<Shared>,
        heartbeat: Arc<Heartbeat>,
        rng: ChaCha20Rng,
    ) -> Self {
        let outgoing = (0..=sockets.len()).map(|_| Vec::new()).collect();
        let (handshakes, outbox) = (HandshakeQueue::default(), Outbox::default());
        Self {
            sockets,
            mailbox,
            shared,
            heartbeat,
            rng,
            handshakes,
            outgoing,
            outbox,
            next: None,
        }
    }

    /// Serves.
    pub(in crate::server) fn run(mut self, stop: &UnixStream) {
        let mut inbox = Inbox::new(LONGEST);
        let mut backoff = Backoff::new();
        let mut ready = Vec::with_capacity(self.sockets.len());
        loop {
            let now = self.now();
            self.heartbeat.show(now);
            let wait = if self.handshakes.is_empty() {
                self.next.map_or(BEAT, |next| next.since(now)).min(BEAT)
            } else {
                Duration::ZERO
            };
            ready.clear();
            if !self.wait(stop, wait, &mut ready) {
                return;
            }
            for index in ready.iter().copied() {
                match self.receive(index, &mut inbox) {
                    Ok(()) => backoff.reset(),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        self.shared.counters.receive_errors.add();
                        tracing::debug!(%error, "can't receive");
                        std::thread::sleep(backoff.next());
                    }
                }
                self.flush();
            }
            self.receive_streams();
            self.work();
            self.keep_time();
            self.flush();
        }
    }

    fn now(&self) -> Time {
        self.shared.start.now()
    }

    /// Waits for datagrams, at most this long; false if the server is to stop.
    fn wait(&self, stop: &UnixStream, longest: Duration, ready: &mut Vec<usize>) -> bool {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut files: Vec<PollFd> = self
            .sockets
            .iter()
            .map(|socket| readable(socket.as_fd()))
            .collect();
        files.push(readable(self.mailbox.as_fd()));
        files.push(readable(stop.as_fd()));
        // Rounded up, for else the last millisecond would be waited for in a busy loop.
        let milliseconds = u16::try_from(longest.as_micros().div_ceil(1_000)).unwrap_or(u16::MAX);
        // An interrupted wait is a short one.
        let _ = poll(&mut files, PollTimeout::from(milliseconds));
        let is_ready = |file: &PollFd| file.any() == Some(true);
        ready.extend(
            files
                .iter()
                .take(self.sockets.len())
                .enumerate()
                .filter(|(_, file)| is_ready(file))
                .map(|(n, _)| n),
        );
        !files.last().is_some_and(is_ready)
    }

    /// Takes one batch from a socket.
    fn receive(&mut self, index: usize, inbox: &mut Inbox) -> io::Result<()> {
        let Some(socket) = self.sockets.get(index) else {
            return Ok(());
        };
        let count = inbox.receive(socket)?;
        self.shared.counters.received.count(count);
        self.take(index, inbox.datagrams());
        Ok(())
    }

    /// Takes what came in streams.
    fn receive_streams(&mut self) {
        let arrived = self.mailbox.take();
        if !arrived.is_empty() {
            let datagrams = arrived
                .iter()
                .map(|arrived| (arrived.source.into(), arrived.payload.as_slice()));
            self.take(STREAM, datagrams);
        }
    }

    /// Takes datagrams of one socket, or of streams.
    fn take<'a>(&mut self, index: usize, datagrams: impl Iterator<Item = (Ends, &'a [u8])>) {
        let shared = self.shared.clone();
        let Shared {
            protocols,
            reply_sockets,
            counters,
            ..
        } = &*shared;
        let now = self.now();
        let (mut requests, mut opened) = (Vec::new(), Vec::new());
        let mut others: Vec<(Via, SocketAddr, &[u8])> = Vec::new();
        for (ends, payload) in datagrams {
            let via = Via {
                socket: index,
                local: ends.local,
            };
            match protocols.classify(payload) {
                // Of the protocols that know no sessions, none is for streams.
                class if index == STREAM && !matches!(class, Class::Rendezvous(_)) => {
                    counters.dropped.add();
                }
                Class::Stun => {
                    let answer = reply_sockets.get(index).and_then(|reply| {
                        let (answer, change, remote) = protocols.answer_stun(
                            payload,
                            ends.remote,
                            &reply.origins(ends.local),
                            now,
                        )?;
                        let local = ends.local.filter(|_| !change.ip);
                        let ends = Ends { local, remote };
                        Some((reply.socket(index, change), ends, answer))
                    });
                    match answer {
                        Some((socket, ends, answer)) => {
                            self.push(socket, ends, Answer::Other(answer))
                        }
                        None => counters.dropped.add(),
                    }
                }
                Class::Rendezvous(wire::Kind::Hello) => {
                    let Some(responder) = protocols.responder() else {
                        continue;
                    };
                    match responder.handle_hello(ends.remote, payload, &mut self.rng, now) {
                        Incoming::Ignore => counters.dropped.add(),
                        Incoming::Cookie(answer) => {
                            self.answer(index, ends, payload, Some(Answer::Other(answer)))
                        }
                        Incoming::Welcome => self.queue(index, ends, payload),
                    }
                }
                Class::Rendezvous(wire::Kind::Confirm) => {
                    let confirm = protocols
                        .responder()
                        .and_then(|responder| responder.open_confirm(ends.remote, payload, now));
                    match confirm {
                        Some(confirm) => opened.push((via, ends.remote, confirm)),
                        None => counters.dropped.add(),
                    }
                }
                Class::Rendezvous(wire::Kind::Request) => {
                    requests.push((via, ends.remote, payload))
                }
                Class::Rendezvous(_) => others.push((via, ends.remote, payload)),
                Class::Handshake => self.queue(index, ends, payload),
                class => {
                    let answer = protocols.handle(class, ends.remote, payload, now);
                    self.answer(index, ends, payload, answer);
                }
            }
        }
        if !requests.is_empty() || !opened.is_empty() || !others.is_empty() {
            self.handle_rendezvous(&requests, opened, &others, now);
        }
    }

    /// Lets the rendezvous take what came in one batch: requests by their sessions' keys, and what
    /// was opened already.
    fn handle_rendezvous(
        &mut self,
        requests: &[(Via, SocketAddr, &[u8])],
        mut opened: Vec<(Via, SocketAddr, Opened)>,
        others: &[(Via, SocketAddr, &[u8])],
        now: Time,
    ) {
        let Shared {
            protocols,
            counters,
            ..
        } = &*self.shared;
        let Some(rendezvous) = protocols.rendezvous() else {
            return;
        };
        let openers: Vec<_> = {
            let mut server = rendezvous.lock();
            requests
                .iter()
                .map(|(.., payload)| server.opener(payload))
                .collect()
        };
        for ((via, source, payload), opener) in requests.iter().zip(openers) {
            match opener {
                Some(opener) => opened.push((*via, *source, opener.open(payload))),
                None => counters.dropped.add(),
            }
        }
        let (unsealed, next) = {
            let mut server = rendezvous.lock();
            for (via, source, opened) in opened {
                server.handle_opened(via, source, opened, now);
            }
            for (via, source, payload) in others {
                server.handle_datagram(*via, *source, payload, now);
            }
            (rendezvous.drain(&mut server, now), server.poll_timeout())
        };
        self.next = next;
        self.seal(unsealed);
    }

    /// Calls the rendezvous if it wants to be called.
    fn keep_time(&mut self) {
        let now = self.now();
        let Some(rendezvous) = self
            .shared
            .protocols
            .rendezvous()
            .filter(|_| self.next.is_none_or(|next| next <= now))
        else {
            return;
        };
        let unsealed = {
            let mut server = rendezvous.lock();
            server.handle_timeout(now);
            self.next = Some(server.poll_timeout().unwrap_or(now + BEAT));
            rendezvous.drain(&mut server, now)
        };
        self.seal(unsealed);
    }

    fn seal(&mut self, unsealed: Vec<Unsealed>) {
        for transmit in unsealed.into_iter().filter_map(Unsealed::seal) {
            let ends = Ends {
                remote: transmit.destination,
                local: transmit.via.local,
            };
            self.push(transmit.via.socket, ends, Answer::Other(transmit.payload));
        }
    }

    /// Keeps a handshake until there is time for it.
    fn queue(&mut self, index: usize, ends: Ends, payload: &[u8]) {
        let before = self.handshakes.len();
        if self.handshakes.push(index, ends, payload) {
            // None more if it waited already.
            self.shared
                .waiting
                .fetch_add(self.handshakes.len() - before, Ordering::Relaxed);
        } else {
            self.shared.counters.handshakes_shed.add();
        }
    }

    /// Works on some handshakes.
    fn work(&mut self) {
        let shared = self.shared.clone();
        let Shared { protocols, .. } = &*shared;
        for _ in 0..HANDSHAKES_PER_TURN {
            let Some((index, ends, payload)) = self.handshakes.pop() else {
                return;
            };
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
            let now = self.now();
            let answer = match (wire::Kind::of(&payload), protocols.responder()) {
                (Some(_), Some(responder)) => responder
                    .welcome(ends.remote, &payload, &mut self.rng, now)
                    .map(Answer::Other),
                _ => protocols.handle(Class::Handshake, ends.remote, &payload, now),
            };
            self.answer(index, ends, &payload, answer);
        }
    }

    /// Keeps an answer for sending, unless it were longer than what it answers: whoever spoofs a
    /// source must not gain.
    fn answer(&mut self, index: usize, ends: Ends, request: &[u8], answer: Option<Answer>) {
        match answer.filter(|answer| answer.len() <= request.len()) {
            Some(answer) => self.push(index, ends, answer),
            None => self.shared.counters.dropped.add(),
        }
    }

    fn push(&mut self, socket: usize, ends: Ends, answer: Answer) {
        if let Some(outgoing) = self.outgoing.get_mut(socket.min(self.sockets.len())) {
            outgoing.push((ends, answer));
        }
    }

    /// Sends what is kept. What can't be sent is lost, as the network might have lost it: the
    /// client asks again.
    fn flush(&mut self) {
        for (socket, outgoing) in self
            .sockets
            .iter()
            .zip(&mut self.outgoing)
            .filter(|(_, outgoing)| !outgoing.is_empty())
        {
            let sent = self.outbox.send(socket, outgoing);
            self.shared.counters.answered.count(sent);
            self.shared
                .counters
                .send_errors
                .count(outgoing.len() - sent);
            outgoing.clear();
        }
        let Shared {
            streams, counters, ..
        } = &*self.shared;
        for (ends, answer) in self
            .outgoing
            .last_mut()
            .into_iter()
            .flat_map(|o| o.drain(..))
        {
            match streams.send(ends.remote, stream::SERVER, &answer) {
                true => counters.answered.add(),
                false => counters.stream_unsent.add(),
            }
        }
    }
}
