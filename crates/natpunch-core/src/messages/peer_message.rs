//! What a discovery plugin says to the same plugin at a peer: a sealed datagram on the direct path
//! in use. Layout (integers big-endian):
//!
//! ```text
//!   0  magic "NPch"          16  nonce (24, random)
//!   4  version 1, form 1,    40  sealed, XChaCha20-Poly1305: session of the sender (8), session of
//!      2 x zero                  the receiver (8), sequence number (8), payload (1 to 512), tag (16)
//!   8  tag of the pair and direction; bytes 0..16 are authenticated with it
//! ```
//!
//! Key, tag and sequence numbers are those of probes; the form, which is authenticated, tells the two
//! apart. A version that does not know the form takes it for no probe of its own and drops it.

use natpunch_types::{PEER_MESSAGE_MAX, ProbeTag};
use rand_core::RngCore;

use crate::keys::Direction;
use crate::messages::wire::Reader;
use crate::messages::{Stamp, envelope};

const FORM: envelope::Form = [1, 1, 0, 0];
/// What is around a payload, in bytes.
const AROUND: usize = envelope::AROUND + Stamp::LEN;

/// The tag of a datagram that has the form of a peer's message, by which its peer is found.
pub(crate) fn tag(datagram: &[u8]) -> Option<ProbeTag> {
    let payload = datagram.len().checked_sub(AROUND)?;
    let is_of_length = (1..=PEER_MESSAGE_MAX).contains(&payload);
    envelope::tag(datagram, FORM).filter(|_| is_of_length)
}

/// The datagram; `None` for a payload that is empty or longer than [`PEER_MESSAGE_MAX`].
pub(crate) fn seal(
    stamp: Stamp,
    payload: &[u8],
    keys: &Direction,
    rng: &mut impl RngCore,
) -> Option<Vec<u8>> {
    if !(1..=PEER_MESSAGE_MAX).contains(&payload.len()) {
        return None;
    }
    let mut text = Vec::with_capacity(Stamp::LEN + payload.len());
    stamp.put(&mut text);
    text.extend(payload);
    envelope::seal(FORM, text, keys, rng)
}

/// `None` for anything that the peer did not seal for us in this form.
pub(crate) fn open(keys: &Direction, datagram: &[u8]) -> Option<(Stamp, Vec<u8>)> {
    let text = envelope::open(tag(datagram)?, keys, datagram)?;
    let mut reader = Reader(&text);
    let stamp = Stamp::read(&mut reader)?;
    Some((stamp, reader.0.to_vec()))
}

#[cfg(test)]
mod tests {
    use natpunch_types::SecretKey;
    use rand_core::SeedableRng as _;

    use super::*;
    use crate::keys::PairKeys;
    use crate::messages::probe;

    const STAMP: Stamp = Stamp {
        session: 1,
        to_session: 2,
        sequence: 3,
    };

    fn pair() -> [PairKeys; 2] {
        let [a, b] = [1, 2].map(|byte| SecretKey::from_bytes([byte; 32]));
        [(&a, &b), (&b, &a)]
            .map(|(own, peer)| PairKeys::derive(own, &peer.public_key(), None).unwrap())
    }

    fn sealed(payload: &[u8]) -> Option<Vec<u8>> {
        let mut rng = rand_chacha::ChaCha20Rng::from_seed([0; 32]);
        seal(STAMP, payload, &pair()[0].outbound, &mut rng)
    }

    #[test]
    fn what_is_sealed_for_a_peer_is_opened_by_that_peer_only() {
        let [ours, theirs] = pair();
        for length in [1, 112, PEER_MESSAGE_MAX] {
            let payload = vec![7; length];
            let datagram = sealed(&payload).unwrap();
            assert_eq!(tag(&datagram), Some(theirs.inbound.probe_tag));
            assert_eq!(open(&theirs.inbound, &datagram), Some((STAMP, payload)));
            assert_eq!(open(&ours.inbound, &datagram), None, "sent back to us");
        }
        assert_eq!(sealed(&[]), None);
        assert_eq!(sealed(&[7; PEER_MESSAGE_MAX + 1]), None);
    }

    #[test]
    fn no_bit_of_it_can_be_changed_and_it_is_no_probe_even_of_a_probes_length() {
        let theirs = &pair()[1].inbound;
        let datagram = sealed(&[7; natpunch_types::PROBE_LEN - AROUND]).unwrap();
        assert_eq!(datagram.len(), natpunch_types::PROBE_LEN);
        assert_eq!(probe::tag(&datagram), None);
        for bit in 0..datagram.len() * 8 {
            let mut changed = datagram.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(theirs, &changed), None, "bit {bit}");
            assert!(probe::Probe::open(theirs, &changed).is_none(), "bit {bit}");
        }
        for length in 0..datagram.len() {
            assert_eq!(open(theirs, &datagram[..length]), None, "{length} bytes");
        }
    }
}
