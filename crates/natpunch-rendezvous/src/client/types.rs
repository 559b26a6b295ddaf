//! What a client is told, and what it says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{Mapping, PeerKey, PresharedKey, SecretKey};

use crate::wire::Tag;

/// What a client needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its own [identity](crate::identity).
    pub identity: SecretKey,
    /// The server's public keys, tried in turn: the current one, and the next.
    pub servers: Vec<PeerKey>,
    /// The mesh's admission secret, if the server asks for one.
    pub admission: Option<PresharedKey>,
}

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The server sees us at this address. Said again each time that it says so.
    Observed(SocketAddr),
    /// Registered.
    Up {
        /// The time from hello to welcome.
        round_trip: Duration,
    },
    /// The server does not answer; it is tried again.
    Down,
    /// The server has no room for us; it is tried again after this time.
    Refused {
        /// At the earliest.
        retry_after: Duration,
    },
    /// The server has no room for this many of our mailboxes; they are tried again.
    Full {
        /// How many were refused since the last time.
        mailboxes: usize,
    },
    /// A mailbox that we watch holds this now.
    Record {
        /// Which.
        tag: Tag,
        /// What.
        blob: Arc<[u8]>,
    },
    /// We bind this address of a relay for a pair: said with the first two binds, which are to be
    /// sent before anything else goes there, then when the other side is bound, too, and again
    /// while both are. None: no longer.
    Relay {
        /// The pair.
        tag: Tag,
        /// Where the relay is.
        address: Option<SocketAddr>,
    },
    /// Fire at a peer when this time has passed since now; it does so at the same moment.
    Fire {
        /// The pair.
        tag: Tag,
        /// When.
        after: Duration,
    },
    /// The peer that leaves its record in this mailbox, which we watch, wants to meet us.
    Wanted {
        /// The mailbox.
        tag: Tag,
    },
    /// How the NAT before us maps, as far as two ports of one server can tell.
    Mapping(Mapping),
}

/// Where a datagram goes. No address ever comes from the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// To the server.
    Server,
    /// To another port of the server.
    Address(SocketAddr),
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Where it goes.
    pub to: To,
    /// What.
    pub payload: Vec<u8>,
}

impl Outgoing {
    pub(super) fn to_server(payload: Vec<u8>) -> Self {
        Self {
            to: To::Server,
            payload,
        }
    }
}
