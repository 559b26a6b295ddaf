//! Handshakes that wait for their turn: bounded, and fair between sources.
//!
//! A handshake costs four X25519 operations, a lookup none. So handshakes queue, and lookups pass
//! them. A source that floods fills its own share only; a flood from spoofed sources can fill the
//! queue, for the old protocol has nothing by which to tell such a packet from another before the
//! first X25519 operation.

use std::collections::{HashMap, VecDeque};

use natpunch_net::Ends;
use natpunch_types::Network;

/// Handshakes waiting in all: some 0.2 s of work.
const MAX: usize = 1_024;
/// Handshakes waiting of one source, which may be many nodes behind one carrier NAT.
const MAX_PER_SOURCE: usize = 64;

/// The socket, the source, and the datagram.
type Waiting = (usize, Ends, Vec<u8>);

/// The queue of one worker.
#[derive(Debug, Default)]
pub(in crate::server) struct HandshakeQueue {
    by_source: HashMap<Network, VecDeque<Waiting>>,
    /// The sources with something waiting, next first.
    turns: VecDeque<Network>,
    waiting: usize,
}

impl HandshakeQueue {
    /// Whether nothing waits.
    pub(in crate::server) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// How many wait.
    pub(in crate::server) fn len(&self) -> usize {
        self.waiting
    }

    /// Adds a handshake; false if there is no room for it. One that waits already, which its client
    /// has repeated, is not worked on twice: else a server that is late would be given ever more
    /// work.
    pub(in crate::server) fn push(&mut self, socket: usize, from: Ends, payload: &[u8]) -> bool {
        if self.waiting >= MAX {
            return false;
        }
        let source = Network::of(from.remote.ip());
        let queue = self.by_source.entry(source).or_default();
        if queue.iter().any(|(.., waiting)| waiting == payload) {
            return true;
        }
        if queue.len() >= MAX_PER_SOURCE {
            return false;
        }
        if queue.is_empty() {
            self.turns.push_back(source);
        }
        queue.push_back((socket, from, payload.to_vec()));
        self.waiting += 1;
        true
    }

    /// The next handshake: of each source in turn, in the order of arrival.
    pub(in crate::server) fn pop(&mut self) -> Option<Waiting> {
        let source = self.turns.pop_front()?;
        let queue = self.by_source.get_mut(&source)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.by_source.remove(&source);
        } else {
            self.turns.push_back(source);
        }
        self.waiting -= usize::from(next.is_some());
        next
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn from(host: u16) -> Ends {
        let [high, low] = host.to_be_bytes();
        SocketAddr::from(([198, 51, high, low], 1)).into()
    }

    #[test]
    fn a_flooding_source_delays_another_by_one_handshake() {
        let mut queue = HandshakeQueue::default();
        let kept = (0..1_000_u32)
            .filter(|n| queue.push(0, from(1), &n.to_be_bytes()))
            .count();
        assert_eq!(kept, MAX_PER_SOURCE);
        assert!(queue.push(0, from(2), b"honest"));
        assert_eq!(queue.pop().unwrap().1, from(1));
        assert_eq!(queue.pop().unwrap(), (0, from(2), b"honest".to_vec()));
    }

    #[test]
    fn a_handshake_that_is_repeated_while_it_waits_is_worked_on_once() {
        let mut queue = HandshakeQueue::default();
        assert!(
            queue.push(0, from(1), b"one")
                && queue.push(0, from(1), b"other")
                && queue.push(0, from(1), b"one")
        );
        assert_eq!(queue.len(), 2);
        let payloads: Vec<_> = std::iter::from_fn(|| queue.pop())
            .map(|(.., payload)| payload)
            .collect();
        assert_eq!(payloads, [b"one".to_vec(), b"other".to_vec()]);
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let mut queue = HandshakeQueue::default();
        let kept = (0..5_000).filter(|n| queue.push(0, from(*n), b"x")).count();
        assert_eq!(kept, MAX);
        assert_eq!(std::iter::from_fn(|| queue.pop()).count(), MAX);
        assert!(queue.is_empty() && queue.by_source.is_empty() && queue.turns.is_empty());
    }
}
