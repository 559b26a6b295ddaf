//! What nodes say to each other, in a message that the host seals. Layout:
//!
//! ```text
//!   0  version 1
//!   1  kind: 1 the sender leaves a record for the peer named, and looks for it;
//!            2 the peer named has left this record for the receiver
//!   2  public key of the peer named (32)
//!  34  sealed record, 1 to 478 bytes
//! ```
//!
//! What has another version or kind is dropped: a later one may mean anything by it.

use natpunch_types::{PEER_MESSAGE_MAX, PeerKey};

const VERSION: u8 = 1;
const HEADER_LEN: usize = 2 + 32;
/// The longest sealed record that is carried, in bytes. A record with the most candidates has 359.
pub const RECORD_MAX: usize = PEER_MESSAGE_MAX - HEADER_LEN;

/// Which way a record goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the sender, for the peer named, for which the sender looks.
    For,
    /// To the receiver, from the peer named.
    From,
}

/// A message, its record borrowed from the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Which way the record goes.
    pub way: Way,
    /// The peer at the other end.
    pub peer: PeerKey,
    /// The sealed record.
    pub record: &'a [u8],
}

impl<'a> Message<'a> {
    /// The bytes; `None` if the record is empty or longer than [`RECORD_MAX`].
    pub fn to_bytes(self) -> Option<Vec<u8>> {
        if !(1..=RECORD_MAX).contains(&self.record.len()) {
            return None;
        }
        let kind = match self.way {
            Way::For => 1,
            Way::From => 2,
        };
        Some([&[VERSION, kind], &self.peer.as_bytes()[..], self.record].concat())
    }

    /// `None` for anything else.
    pub fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        let ([VERSION, kind], rest) = bytes.split_first_chunk()? else {
            return None;
        };
        let (peer, record) = rest.split_first_chunk()?;
        let way = match kind {
            1 => Way::For,
            2 => Way::From,
            _ => return None,
        };
        (1..=RECORD_MAX).contains(&record.len()).then_some(Self {
            way,
            peer: PeerKey::from_bytes(*peer),
            record,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_that_is_empty_or_too_long_is_neither_written_nor_read() {
        let of = |record| Message {
            way: Way::For,
            peer: PeerKey::from_bytes([3; 32]),
            record,
        };
        let long = [7; RECORD_MAX + 1];
        assert_eq!(of(&[]).to_bytes(), None);
        assert_eq!(of(&long).to_bytes(), None);
        let longest = of(&long[1..]).to_bytes().unwrap();
        assert_eq!(longest.len(), PEER_MESSAGE_MAX);
        assert_eq!(Message::from_bytes(&longest[..HEADER_LEN]), None);
        assert_eq!(Message::from_bytes(&[&longest[..], &[7]].concat()), None);
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_as_the_same_bytes(
            start in prop_oneof![Just(vec![1, 1]), Just(vec![1, 2]), any::<[u8; 2]>().prop_map(Vec::from)],
            rest in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let bytes = [start, rest].concat();
            let is_one = bytes[0] == 1
                && (1..=2).contains(&bytes[1])
                && (HEADER_LEN + 1..=PEER_MESSAGE_MAX).contains(&bytes.len());
            let message = Message::from_bytes(&bytes);
            prop_assert_eq!(message.is_some(), is_one);
            if let Some(message) = message {
                prop_assert_eq!(message.to_bytes(), Some(bytes.clone()));
            }
        }
    }
}
