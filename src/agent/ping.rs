//! What the agent answers to `natpunch ping PEER`: it asks the peer's natpunch on the path in use,
//! and answers when that does, or after a second.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use natpunch_core::{PathKind, PeerState};
use natpunch_types::{LocalSocket, PeerKey, Time};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::status::reply;
use super::{Agent, now};
use crate::control::Reply;

/// How long the peer has to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Pings whose answers are awaited. The control socket bounds their number.
#[derive(Debug, Default)]
pub(super) struct Pings(Vec<Waiting>);

#[derive(Debug)]
struct Waiting {
    peer: PeerKey,
    asked: Time,
    answer: oneshot::Sender<Reply>,
}

/// What became of one ping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pinged {
    /// The peer's first address in the mesh.
    pub address: Option<IpAddr>,
    /// Whether it runs natpunch, and so answers pings of paths.
    pub managed: bool,
    /// The kind of path in use: `lan`, `direct`, `relay` or `none`.
    pub path: String,
    /// Where WireGuard sends to on it.
    pub endpoint: Option<SocketAddr>,
    /// The source port that it leaves from, if that is not WireGuard's own.
    pub source_port: Option<NonZeroU16>,
    /// Whose relay it is.
    pub relayed_by: Vec<String>,
    /// The round trip on the path, in milliseconds, if the peer has answered.
    pub rtt_ms: Option<f64>,
    /// Why there is no path, if there is none.
    pub problem: Option<String>,
}

impl Agent {
    /// Pings a peer on the path in use, and answers later.
    pub(super) fn ping(&mut self, name: &str, answer: oneshot::Sender<Reply>) {
        let named = self.node.peers.iter().find(|peer| peer.name == name);
        let Some(peer) = named.map(|peer| peer.key) else {
            let problem = self.no_such_peer(name);
            let _ = answer.send(Reply::Error(problem));
            return;
        };
        let asked = now();
        self.mesh.ping(&peer, asked);
        let waiting = Waiting {
            peer,
            asked,
            answer,
        };
        self.pings.0.push(waiting);
    }

    /// Answers those whose time has come.
    pub(super) fn answer_pings(&mut self) {
        if self.pings.0.is_empty() {
            return;
        }
        let now = now();
        let (mut done, mut waiting) = (Vec::new(), Vec::new());
        for ping in std::mem::take(&mut self.pings.0) {
            let last = self.mesh.last_answer(&ping.peer);
            let rtt = last.filter(|(at, _)| *at >= ping.asked).map(|(_, rtt)| rtt);
            match rtt.is_some() || now.since(ping.asked) >= PATIENCE {
                true => done.push((ping, rtt)),
                false => waiting.push(ping),
            }
        }
        self.pings.0 = waiting;
        for (ping, rtt) in done {
            let pinged = self.pinged(&ping.peer, rtt);
            let _ = ping.answer.send(reply(&pinged));
        }
    }

    fn pinged(&self, key: &PeerKey, rtt: Option<Duration>) -> Pinged {
        let status = self.mesh.status(now());
        let peer = status.peers.iter().find(|peer| peer.key == *key);
        let known = self.node.peers.iter().find(|peer| peer.key == *key);
        let problem = peer.and_then(|peer| match &peer.state {
            PeerState::Connected => None,
            state => Some(state.to_string()),
        });
        Pinged {
            address: known.and_then(|peer| peer.addresses.first().copied()),
            managed: peer.is_none_or(|peer| peer.managed),
            path: peer.map_or(PathKind::None, |peer| peer.path).to_string(),
            endpoint: peer.and_then(|peer| peer.endpoint),
            source_port: peer.and_then(|peer| match peer.local? {
                LocalSocket::SourcePort(port) => Some(port),
                LocalSocket::WireguardPort => None,
            }),
            relayed_by: peer.map_or_else(Vec::new, |peer| peer.relayed_by.clone()),
            rtt_ms: rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
            problem,
        }
    }
}
