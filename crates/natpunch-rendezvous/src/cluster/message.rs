//! What one process says to another, by that one's channel.

use rand_core::RngCore;

use super::{Keys, ProcessId, Record};
use crate::wire::{Reader, Tag};

/// What one process says to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(pub(crate) Word);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Word {
    /// A client of mine has left this record in a mailbox that clients of yours watch.
    Record { tag: Tag, record: Record },
}

impl Word {
    /// The mailbox that it is about.
    pub(crate) fn mailbox(&self) -> Option<Tag> {
        match self {
            Self::Record { tag, .. } => Some(*tag),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Record { tag, record } => {
                out.push(1);
                out.extend(tag);
                record.put(&mut out);
            }
        }
        out
    }

    fn decode(text: &[u8]) -> Option<Self> {
        let mut reader = Reader(text);
        Some(match reader.u8()? {
            1 => Self::Record {
                tag: reader.array()?,
                record: Record::read(&mut reader)?,
            },
            _ => return None,
        })
    }
}

impl Message {
    /// The message as it is published.
    pub(super) fn seal(&self, keys: &Keys, to: ProcessId, rng: &mut impl RngCore) -> Vec<u8> {
        keys.seal(&keys.channel(to), &self.0.encode(), rng)
    }

    /// Opens what came by the channel of this process; `None`: no process of the cluster said that.
    pub fn open(keys: &Keys, me: ProcessId, sealed: &[u8]) -> Option<Self> {
        let text = keys.open(&keys.channel(me), sealed)?;
        Word::decode(&text).map(Self)
    }
}
