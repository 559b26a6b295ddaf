//! A rendezvous server as natpunch-go has one: a host registers from WireGuard's port, the server
//! remembers the source address that it saw, and tells it to whoever asks for the key.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::PeerKey;

/// A registration is forgotten after this.
const LIFETIME: Duration = Duration::from_secs(300);

/// A message between a host and the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// "I am `from`, and where is `wanted`?"
    Request {
        /// Who asks, and thereby registers.
        from: PeerKey,
        /// Whom it looks for; nobody if it only registers.
        wanted: Option<PeerKey>,
    },
    /// The answer.
    Answer {
        /// Who was asked for.
        wanted: PeerKey,
        /// Where it was seen last.
        address: Option<SocketAddr>,
    },
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request { wanted: None, .. } => f.write_str("register"),
            Self::Request {
                wanted: Some(key), ..
            } => write!(f, "lookup {}", key.short()),
            Self::Answer {
                wanted,
                address: Some(address),
            } => write!(f, "answer {} at {address}", wanted.short()),
            Self::Answer {
                wanted,
                address: None,
            } => write!(f, "answer {} unknown", wanted.short()),
        }
    }
}

/// The server's memory.
#[derive(Debug, Clone, Default)]
pub struct Server {
    seen: BTreeMap<PeerKey, (SocketAddr, Duration)>,
}

impl Server {
    /// Takes a request and gives the answer, if there is one to give.
    pub fn handle(
        &mut self,
        source: SocketAddr,
        message: Message,
        now: Duration,
    ) -> Option<Message> {
        let Message::Request { from, wanted } = message else {
            return None;
        };
        self.seen.insert(from, (source, now));
        let wanted = wanted?;
        let address = self
            .seen
            .get(&wanted)
            .filter(|(_, at)| now < *at + LIFETIME)
            .map(|(address, _)| *address);
        Some(Message::Answer { wanted, address })
    }

    /// Forgets everything, as a restart does.
    pub fn restart(&mut self) {
        self.seen.clear();
    }
}
