//! The UDP shell: one task per socket, which drains it after each wake-up and sends the answers in one batch.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use natpunch_rendezvous::server::{Transmit, Via};
use natpunch_rendezvous::wire;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};

use super::counters::Counters;
use super::datagrams::{self, Caller, Receiver};
use super::handshakes::HandshakeQueue;
use super::protocols::{Answer, Class, Protocols};
use super::{Backoff, stopped};

/// Longer datagrams than any that is understood, so that a cut-off one never looks whole.
const BUFFER: usize = 2_048;
/// Datagrams taken from the socket before handshakes get their turn.
const DATAGRAMS_PER_TURN: usize = 64;
/// Handshakes worked on before the socket gets its turn again: under a millisecond.
const HANDSHAKES_PER_TURN: usize = 4;
/// What is asked of the kernel; it gives what net.core.rmem_max allows.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Opens a socket. An IPv6 one takes IPv6 only, so that both wildcards can be bound with the same port.
pub(super) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A smaller buffer than asked for only drops earlier.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.set_nonblocking(true)?;
    datagrams::want_local_address(&socket, address)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// What the tasks of all sockets share.
pub(super) struct Shared {
    /// The sockets, in the order in which they were named.
    pub(super) sockets: Vec<UdpSocket>,
    pub(super) protocols: Arc<Protocols>,
    pub(super) counters: Arc<Counters>,
    /// The origin of time.
    pub(super) start: Instant,
    /// The rendezvous may want to be called at another time than it said.
    pub(super) rescheduled: Notify,
}

/// Calls the rendezvous when it wants to be called.
pub(super) async fn keep_time(shared: Arc<Shared>) {
    loop {
        let (transmits, next) = shared.protocols.handle_rendezvous_timeout(shared.start.elapsed());
        shared.transmit(transmits);
        let next = next.map(|next| tokio::time::Instant::from_std(shared.start + next));
        tokio::select! {
            () = shared.rescheduled.notified() => {}
            () = tokio::time::sleep_until(next.unwrap_or_else(tokio::time::Instant::now)), if next.is_some() => {}
        }
    }
}

impl Shared {
    /// Sends what the rendezvous says, by any of the sockets.
    fn transmit(&self, transmits: Vec<Transmit>) {
        for Transmit { via, destination, payload } in transmits {
            let Some(socket) = self.sockets.get(via.socket) else { continue };
            let to = Caller { remote: destination, local: via.local };
            send(socket, &mut vec![(to, Answer::Other(payload))], &self.counters);
        }
    }

    /// Lets the rendezvous take a datagram. What it says by the same socket is sent with the other answers.
    fn handle_rendezvous(
        &self,
        index: usize,
        answers: &mut Vec<(Caller, Answer)>,
        from: Caller,
        payload: &[u8],
        now: std::time::Duration,
    ) {
        let via = Via { socket: index, local: from.local };
        let mut others = self.protocols.handle_rendezvous(via, from.remote, payload, now);
        if others.is_empty() {
            self.counters.dropped.add();
        }
        let own = others.extract_if(.., |transmit| transmit.via.socket == index);
        answers.extend(own.map(|Transmit { via, destination, payload }| {
            (Caller { remote: destination, local: via.local }, Answer::Other(payload))
        }));
        self.transmit(others);
        self.rescheduled.notify_one();
    }
}

/// Serves one socket until `stop` becomes true.
pub(super) async fn serve(index: usize, shared: Arc<Shared>, stop: watch::Receiver<bool>) {
    let Shared { sockets, protocols, counters, start, .. } = &*shared;
    let Some(socket) = sockets.get(index) else { return };
    let mut buffer = vec![0; BUFFER];
    let mut receiver = Receiver::new(socket);
    let mut handshakes = HandshakeQueue::default();
    let mut answers = Vec::with_capacity(DATAGRAMS_PER_TURN);
    let mut backoff = Backoff::new();
    // Made once: to begin and end a wait for each datagram would cost as much as a lookup's cipher.
    let stopping = {
        let mut stop = stop.clone();
        async move { stopped(&mut stop).await }
    };
    tokio::pin!(stopping);
    loop {
        if handshakes.is_empty() {
            tokio::select! {
                biased;
                ready = socket.readable() => if let Err(error) = ready {
                    receive_error(&error, counters, &mut backoff).await;
                },
                () = &mut stopping => return,
            }
        } else {
            tokio::task::yield_now().await;
        }
        if *stop.borrow() {
            return;
        }
        let now = start.elapsed();
        for _ in 0..DATAGRAMS_PER_TURN {
            let (payload, caller) = match receiver.receive(socket, &mut buffer) {
                Ok((length, caller)) => (buffer.get(..length).unwrap_or_default(), caller),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    receive_error(&error, counters, &mut backoff).await;
                    break;
                }
            };
            backoff.reset();
            counters.received.add();
            match protocols.classify(payload) {
                Class::Handshake | Class::Hello => {
                    if !handshakes.push(caller, payload) {
                        counters.handshakes_shed.add();
                    }
                }
                Class::Rendezvous => shared.handle_rendezvous(index, &mut answers, caller, payload, now),
                class => {
                    let answer = protocols.handle(class, caller.remote, payload, now);
                    note(&mut answers, counters, caller, payload, answer);
                }
            }
        }
        send(socket, &mut answers, counters);
        for _ in 0..HANDSHAKES_PER_TURN {
            let Some((caller, payload)) = handshakes.pop() else { break };
            if wire::Kind::of(&payload).is_some() && protocols.speaks_rendezvous() {
                shared.handle_rendezvous(index, &mut answers, caller, &payload, now);
            } else {
                let answer = protocols.handle(Class::Handshake, caller.remote, &payload, now);
                note(&mut answers, counters, caller, &payload, answer);
            }
        }
        send(socket, &mut answers, counters);
    }
}

/// Keeps an answer for sending, unless it were longer than what it answers: whoever spoofs a source must not gain.
fn note(answers: &mut Vec<(Caller, Answer)>, counters: &Counters, to: Caller, request: &[u8], answer: Option<Answer>) {
    match answer.filter(|answer| answer.len() <= request.len()) {
        Some(answer) => answers.push((to, answer)),
        None => counters.dropped.add(),
    }
}

/// Sends these answers, several with one call. What can't be sent is lost, as the network might have lost it: the
/// client asks again.
fn send(socket: &UdpSocket, answers: &mut Vec<(Caller, Answer)>, counters: &Counters) {
    let mut left = answers.as_slice();
    while !left.is_empty() {
        // An error is that of the first one left.
        let (sent, tried) = datagrams::send(socket, left).map_or((0, 1), |sent| (sent, sent.max(1)));
        counters.answered.count(sent);
        counters.send_errors.count(tried - sent);
        left = left.get(tried..).unwrap_or_default();
    }
    answers.clear();
}

async fn receive_error(error: &io::Error, counters: &Counters, backoff: &mut Backoff) {
    counters.receive_errors.add();
    tracing::debug!(%error, "can't receive");
    tokio::time::sleep(backoff.next()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_wildcards_share_a_port() {
        let v4 = bind("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = v4.local_addr().unwrap().port();
        bind(SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port))).unwrap();
    }
}
