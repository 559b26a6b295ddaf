//! What nodes tell each other: pings, what goes with them, messages of plugins, and sealed records,
//! byte by byte.

pub(crate) mod about;
pub(crate) mod envelope;
pub(crate) mod peer_message;
pub(crate) mod probe;
pub(crate) mod record;
pub(crate) mod size;
pub(crate) mod wire;

use wire::Reader;

/// The place of a message in the conversation of two runs, by which a replay is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Random per start of the sender.
    pub(crate) session: u64,
    /// The receiver's session as the sender knows it; 0 if it does not.
    pub(crate) to_session: u64,
    /// Rises with each message of the sender to the receiver.
    pub(crate) sequence: u64,
}

impl Stamp {
    pub(crate) const LEN: usize = 24;

    pub(crate) fn put(self, out: &mut Vec<u8>) {
        out.extend(self.session.to_be_bytes());
        out.extend(self.to_session.to_be_bytes());
        out.extend(self.sequence.to_be_bytes());
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            session: reader.u64()?,
            to_session: reader.u64()?,
            sequence: reader.u64()?,
        })
    }
}
