//! A peer whose endpoint goes to and fro between two places: two hosts with one key. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_core::{CandidateStatus, PeerStatus};
use natpunch_types::{CandidateKind, PeerKey, Time};

/// In this time…
const FLIP_WINDOW: Duration = Duration::from_secs(60);
/// …so many moves between no more than two places are two hosts: one that roams goes on to new
/// places, and a path that is tried comes back once.
const FLIPS: usize = 6;

/// Where WireGuard saw each peer, lately.
#[derive(Debug, Default)]
pub(in crate::agent) struct Flips(BTreeMap<PeerKey, Moves>);

#[derive(Debug)]
struct Moves {
    last: SocketAddr,
    /// When it moved, and where to; at most [`FLIPS`] of them.
    moves: VecDeque<(Time, SocketAddr)>,
}

impl Flips {
    /// Takes where the device has its peers at `now`, since boot. Peers that are gone are forgotten.
    pub(in crate::agent) fn saw(&mut self, endpoints: &BTreeMap<PeerKey, SocketAddr>, now: Time) {
        self.0.retain(|key, _| endpoints.contains_key(key));
        for (key, endpoint) in endpoints {
            let peer = self.0.entry(*key).or_insert_with(|| Moves {
                last: *endpoint,
                moves: VecDeque::new(),
            });
            if peer.last == *endpoint {
                continue;
            }
            peer.last = *endpoint;
            if peer.moves.len() == FLIPS {
                peer.moves.pop_front();
            }
            peer.moves.push_back((now, *endpoint));
        }
    }

    /// Why the peer's endpoint goes to and fro, if it does. Between a relay and another place it does
    /// so by natpunch's own choice.
    pub(in crate::agent) fn cause(&self, peer: &PeerStatus, now: Time) -> Option<String> {
        let moves = &self.0.get(&peer.key)?.moves;
        let oldest = moves.front().filter(|_| moves.len() == FLIPS)?;
        if now.since(oldest.0) > FLIP_WINDOW {
            return None;
        }
        let mut places: Vec<SocketAddr> = moves.iter().map(|(_, place)| *place).collect();
        places.sort_unstable();
        places.dedup();
        let [a, b] = places.as_slice() else {
            return None;
        };
        let is_relay = |candidate: &CandidateStatus| {
            candidate.kind == CandidateKind::Relay && places.contains(&candidate.address)
        };
        if peer.candidates.iter().any(is_relay) {
            return None;
        }
        Some(format!(
            "WireGuard heard the peer at {a} and {b} in turns, {FLIPS} times within a minute: two hosts run with its \
             private key, and each takes the other's packets; give one of them a key and an entry of its own"
        ))
    }
}
