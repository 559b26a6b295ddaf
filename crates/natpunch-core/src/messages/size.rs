//! Probes that measure how large datagrams may be on a path (RFC 8899, 4.1): padded questions that
//! no router may split, and short answers. Layout (integers big-endian):
//!
//! ```text
//!   0  magic "NPch"          16  nonce (24, random)
//!   4  version 1, form 2,    40  sealed, XChaCha20-Poly1305: session of the sender (8), session of
//!      2 x zero                  the receiver (8), sequence number (8), kind (1: 1 question,
//!   8  tag of the pair and       2 answer), 3 x zero, transaction (12), zeros up to the length
//!      direction                 that is asked about, tag (16)
//! ```
//!
//! Key, tag, sequence numbers and transactions are those of probes; the form, which is
//! authenticated, tells them apart. A version that does not know the form drops it, so a path to it
//! is never measured. An answer has the shortest length, so it is never longer than what it answers.

use natpunch_types::{ProbeTag, SIZE_PROBE_FORM, SIZE_PROBE_LEN};
use rand_core::RngCore;

use crate::keys::Direction;
use crate::messages::probe::Transaction;
use crate::messages::wire::Reader;
use crate::messages::{Stamp, envelope};

/// The sealed text without padding.
const FIELDS_LEN: usize = Stamp::LEN + 4 + 12;
/// The shortest one, in bytes.
pub(crate) const SHORTEST: usize = envelope::AROUND + FIELDS_LEN;
const _: () = assert!(SHORTEST == *SIZE_PROBE_LEN.start());

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Does this arrive?
    Question,
    /// It did.
    Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SizeProbe {
    pub(crate) kind: Kind,
    pub(crate) stamp: Stamp,
    /// Of an answer: that of its question.
    pub(crate) transaction: Transaction,
}

/// The tag of a datagram that has this form, by which its peer is found.
pub(crate) fn tag(datagram: &[u8]) -> Option<ProbeTag> {
    let is_of_length = SIZE_PROBE_LEN.contains(&datagram.len());
    envelope::tag(datagram, SIZE_PROBE_FORM).filter(|_| is_of_length)
}

impl SizeProbe {
    /// The datagram, of `length` bytes as far as a probe may have so many.
    pub(crate) fn seal(
        &self,
        length: usize,
        keys: &Direction,
        rng: &mut impl RngCore,
    ) -> Option<Vec<u8>> {
        let length = length.clamp(*SIZE_PROBE_LEN.start(), *SIZE_PROBE_LEN.end());
        let length = length - envelope::AROUND;
        let mut text = Vec::with_capacity(length);
        self.stamp.put(&mut text);
        let kind = match self.kind {
            Kind::Question => 1,
            Kind::Answer => 2,
        };
        text.extend([kind, 0, 0, 0]);
        text.extend(self.transaction.bytes());
        text.resize(length, 0);
        envelope::seal(SIZE_PROBE_FORM, text, keys, rng)
    }

    /// `None` for anything that the peer did not seal for us in this form.
    pub(crate) fn open(keys: &Direction, datagram: &[u8]) -> Option<Self> {
        let text = envelope::open(tag(datagram)?, keys, datagram)?;
        let mut reader = Reader(&text);
        let stamp = Stamp::read(&mut reader)?;
        let kind = match reader.array::<4>()? {
            [1, ..] => Kind::Question,
            [2, ..] => Kind::Answer,
            _ => return None,
        };
        Some(Self {
            kind,
            stamp,
            transaction: Transaction::from_bytes(reader.array()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use natpunch_types::SecretKey;
    use rand_core::SeedableRng as _;

    use super::*;
    use crate::keys::PairKeys;
    use crate::messages::{peer_message, probe};

    #[test]
    fn what_is_asked_at_a_length_is_opened_by_the_peer_only_and_is_no_other_message() {
        let [a, b] = [1, 2].map(|byte| SecretKey::from_bytes([byte; 32]));
        let pair = |own: &SecretKey, peer: &SecretKey| {
            PairKeys::derive(own, &peer.public_key(), None).unwrap()
        };
        let (ours, theirs) = (pair(&a, &b), pair(&b, &a));
        let mut rng = rand_chacha::ChaCha20Rng::from_seed([0; 32]);
        let asked = SizeProbe {
            kind: Kind::Question,
            stamp: Stamp {
                session: 1,
                to_session: 2,
                sequence: 3,
            },
            transaction: Transaction::random(&mut rng),
        };
        for length in [SHORTEST, natpunch_types::PROBE_LEN, 1_452] {
            let datagram = asked.seal(length, &ours.outbound, &mut rng).unwrap();
            assert_eq!(datagram.len(), length);
            assert_eq!(SizeProbe::open(&theirs.inbound, &datagram), Some(asked));
            assert_eq!(SizeProbe::open(&ours.inbound, &datagram), None);
            assert_eq!(probe::tag(&datagram), None);
            assert_eq!(peer_message::tag(&datagram), None);
            for bit in (0..length * 8).step_by(7) {
                let mut changed = datagram.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(SizeProbe::open(&theirs.inbound, &changed), None, "{bit}");
            }
            assert_eq!(
                SizeProbe::open(&theirs.inbound, &datagram[..length - 1]),
                None
            );
        }
        let shortest = asked.seal(0, &ours.outbound, &mut rng).unwrap();
        assert_eq!(shortest.len(), SHORTEST);
    }
}
