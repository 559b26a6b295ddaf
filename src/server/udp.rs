//! The UDP shell: one task per socket, which drains it after each wake-up and answers in place.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::watch;

use super::counters::Counters;
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
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// Serves one socket until `stop` becomes true.
pub(super) async fn serve(
    socket: UdpSocket,
    protocols: Arc<Protocols>,
    counters: Arc<Counters>,
    start: Instant,
    mut stop: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; BUFFER];
    let mut handshakes = HandshakeQueue::default();
    let mut backoff = Backoff::new();
    loop {
        if handshakes.is_empty() {
            tokio::select! {
                biased;
                ready = socket.readable() => if let Err(error) = ready {
                    receive_error(&error, &counters, &mut backoff).await;
                },
                () = stopped(&mut stop) => return,
            }
        } else {
            tokio::task::yield_now().await;
        }
        if *stop.borrow() {
            return;
        }
        let now = start.elapsed();
        for _ in 0..DATAGRAMS_PER_TURN {
            let (payload, source) = match socket.try_recv_from(&mut buffer) {
                Ok((length, source)) => (buffer.get(..length).unwrap_or_default(), source),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    receive_error(&error, &counters, &mut backoff).await;
                    break;
                }
            };
            backoff.reset();
            counters.received.add();
            match protocols.classify(payload) {
                Class::Handshake => {
                    if !handshakes.push(source, payload) {
                        counters.handshakes_shed.add();
                    }
                }
                class => answer(&socket, &counters, source, payload, protocols.handle(class, source, payload, now)),
            }
        }
        for _ in 0..HANDSHAKES_PER_TURN {
            let Some((source, payload)) = handshakes.pop() else { break };
            answer(&socket, &counters, source, &payload, protocols.handle(Class::Handshake, source, &payload, now));
        }
    }
}

/// Sends an answer, unless it were longer than what it answers: whoever spoofs a source must not gain by it.
fn answer(socket: &UdpSocket, counters: &Counters, to: SocketAddr, request: &[u8], answer: Option<Answer>) {
    let Some(answer) = answer.filter(|answer| answer.len() <= request.len()) else {
        counters.dropped.add();
        return;
    };
    match socket.try_send_to(&answer, to) {
        Ok(_) => counters.answered.add(),
        // A full send buffer is the network's way of losing it; the client asks again.
        Err(_) => counters.send_errors.add(),
    }
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
