//! What one process says to another, by that one's channel.

use rand_core::RngCore;

use super::{Keys, ProcessId, Record, Waiting, Wish, put_client, read_client};
use crate::server::ClientId;
use crate::wire::{MAX_DATAGRAM, Reader, Tag};

/// What one process says to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(pub(crate) Word);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Word {
    /// A client of mine has left this record in a mailbox that clients of yours watch.
    Record { tag: Tag, record: Record },
    /// A client of mine, whose record is in this mailbox, wants to meet those that watch it.
    Wanted { tag: Tag },
    /// This client of mine meets one of yours, at this moment by the store's clock.
    Met {
        tag: Tag,
        other: Waiting,
        moment: i64,
    },
    /// A client of mine wants this of your relay; answers go to me.
    Wish { from: ProcessId, wish: Wish },
    /// Tell this client of yours what these frames say of your pair's relay, which is mine.
    Notices { client: ClientId, frames: Vec<u8> },
}

impl Word {
    /// The mailbox that it is about.
    pub(crate) fn mailbox(&self) -> Option<Tag> {
        match self {
            Self::Record { tag, .. } | Self::Wanted { tag } => Some(*tag),
            Self::Met { .. } | Self::Wish { .. } | Self::Notices { .. } => None,
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
            Self::Wanted { tag } => {
                out.push(2);
                out.extend(tag);
            }
            Self::Met { tag, other, moment } => {
                out.push(3);
                out.extend(tag);
                other.put(&mut out);
                out.extend(moment.to_be_bytes());
            }
            Self::Wish { from, wish } => {
                out.push(4);
                out.extend(from.0);
                wish.put(&mut out);
            }
            Self::Notices { client, frames } => {
                out.push(5);
                put_client(client, &mut out);
                out.extend(frames);
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
            2 => Self::Wanted {
                tag: reader.array()?,
            },
            3 => Self::Met {
                tag: reader.array()?,
                other: Waiting::read(&mut reader)?,
                moment: i64::from_be_bytes(reader.array()?),
            },
            4 => Self::Wish {
                from: ProcessId(reader.array()?),
                wish: Wish::read(&mut reader)?,
            },
            5 => Self::Notices {
                client: read_client(&mut reader)?,
                frames: reader.rest(MAX_DATAGRAM)?.to_vec(),
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
