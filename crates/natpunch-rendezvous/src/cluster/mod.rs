//! Several processes of one server that share a store, Redis or Valkey: what they ask it and what
//! they say to each other, as bytes.
//!
//! What is decided is in [`Server`](crate::Server). The store learns nothing of what it keeps: each
//! name is a keyed hash of a tag, and each value is sealed under a secret that the processes have
//! and the store has not.

mod ask;
mod keys;
mod message;

pub use ask::{Answer, Ask, Raw};
pub(crate) use ask::{Question, Reply};
pub use keys::Keys;
pub use message::Message;
pub(crate) use message::Word;

use std::net::SocketAddr;
use std::sync::Arc;

use natpunch_types::{PeerKey, RelayUse};

use crate::frame::read_use;
use crate::server::ClientId;
use crate::wire::{Digest, Reader, Tag, put_address};

/// How long what is said to the store stays there, in milliseconds: as long as a record or a wish
/// that its client does not repeat.
pub(crate) const LIFETIME_MS: i64 = 900_000;

/// Names one connection of a process to the store. Nobody ever uses it again, so what stands under
/// the name of one that is gone can be taken away by everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId(pub(crate) [u8; 8]);

impl std::fmt::Display for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A record as processes hand it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// When a process heard it from its owner, by the store's clock, in milliseconds. Of two records
    /// the one heard later is the newer: their own counters are sealed.
    pub(crate) heard: i64,
    pub(crate) digest: Digest,
    pub(crate) blob: Arc<[u8]>,
}

/// A client that waits to meet another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Where it is.
    pub(crate) process: ProcessId,
    pub(crate) client: PeerKey,
    pub(crate) round_trip_ms: u16,
}

/// What a client of one process wants of the relay of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) tag: Tag,
    pub(crate) client: ClientId,
    /// Where it has proven to be.
    pub(crate) address: SocketAddr,
    pub(crate) wants: RelayUse,
}

impl Wish {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.tag);
        put_client(&self.client, out);
        put_address(out, self.address);
        out.push(self.wants as u8);
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            tag: reader.array()?,
            client: read_client(reader)?,
            address: reader.address()?,
            wants: read_use(reader)?,
        })
    }
}

fn put_client(client: &ClientId, out: &mut Vec<u8>) {
    out.extend(client.identity.as_bytes());
    out.push(client.v6.into());
}

fn read_client(reader: &mut Reader<'_>) -> Option<ClientId> {
    Some(ClientId {
        identity: PeerKey::from_bytes(reader.array()?),
        v6: reader.u8()? != 0,
    })
}

impl Waiting {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.process.0);
        out.extend(self.client.as_bytes());
        out.extend(self.round_trip_ms.to_be_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            process: ProcessId(reader.array()?),
            client: PeerKey::from_bytes(reader.array()?),
            round_trip_ms: reader.u16()?,
        })
    }
}

impl Record {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.heard.to_be_bytes());
        out.extend(self.digest);
        out.extend(&*self.blob);
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            heard: i64::from_be_bytes(reader.array()?),
            digest: reader.array()?,
            blob: reader.rest(crate::wire::MAX_BLOB)?.into(),
        })
    }
}
