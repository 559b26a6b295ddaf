//! Names and seals of what is in the store.

use natpunch_types::PresharedKey;
use rand_core::RngCore;

use super::ProcessId;
use crate::crypto::{self, Key, open_random, seal_random, short_mac};
use crate::wire::Tag;

/// What the processes of a cluster have in common.
#[derive(Clone)]
pub struct Keys {
    prefix: Vec<u8>,
    names: Key,
    seals: Key,
}

/// What is kept under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shelf {
    /// The newest record of a mailbox.
    Record,
    /// The processes whose clients watch a mailbox.
    Readers,
    /// The client that waits to meet the other one of its pair.
    Meeting,
    /// The process that is to have the relay of a pair.
    Host,
}

impl Shelf {
    fn letter(self) -> u8 {
        match self {
            Self::Record => b'r',
            Self::Readers => b'w',
            Self::Meeting => b'm',
            Self::Host => b'l',
        }
    }
}

impl Keys {
    /// Those of the processes that have this secret and this prefix of names.
    pub fn new(prefix: &str, secret: &PresharedKey) -> Self {
        let key = |label: &[u8]| crypto::mac(secret.expose(), &[b"natpunch cluster v1 ", label]);
        Self {
            prefix: prefix.as_bytes().to_vec(),
            names: key(b"names"),
            seals: key(b"seals"),
        }
    }

    /// The name of what is kept under a tag. Whoever reads it learns neither the tag nor what else
    /// is kept under that tag.
    pub(super) fn name(&self, shelf: Shelf, tag: &Tag) -> Vec<u8> {
        let letter = [shelf.letter()];
        let hash: [u8; 16] = short_mac(&self.names, &[&letter, tag]);
        [&self.prefix[..], &letter, b":", &hash].concat()
    }

    /// The channel of a process.
    pub fn channel(&self, process: ProcessId) -> Vec<u8> {
        [&self.prefix[..], format!("c:{process}").as_bytes()].concat()
    }

    /// Seals what is kept under this name, or sent by this channel.
    pub(super) fn seal(&self, name: &[u8], text: &[u8], rng: &mut impl RngCore) -> Vec<u8> {
        // Only a text longer than any here can't be sealed.
        seal_random(&self.seals, name, text, rng).unwrap_or_default()
    }

    /// Opens it; `None` if no process of the cluster has sealed it for this name.
    pub(super) fn open(&self, name: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        open_random(&self.seals, name, sealed).map(|text| text.to_vec())
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}
