//! Keys that one pair of peers shares, derived from their WireGuard static keys under labels of
//! natpunch's own, so that they can never be mistaken for WireGuard's.

use blake2::Blake2sMac256;
use blake2::digest::Mac as _;
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305};
use natpunch_types::{PairTag, PeerKey, PresharedKey, ProbeTag, RecordTag, SecretKey};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// Everything needed for one direction of a pair.
pub(crate) struct Direction {
    pub(crate) probe: XChaCha20Poly1305,
    pub(crate) probe_tag: ProbeTag,
    pub(crate) record: XChaCha20Poly1305,
    pub(crate) record_tag: RecordTag,
    /// Names the source ports that the sender uses where nothing was agreed.
    pub(crate) ports_seed: u16,
    /// Sender's key, then receiver's: authenticated with every record.
    pub(crate) pair: [u8; 64],
}

/// The keys of both directions. Each has its own, so that nothing we sent can be reflected at us.
pub(crate) struct PairKeys {
    pub(crate) outbound: Direction,
    pub(crate) inbound: Direction,
    /// Names the pair: the same on both sides.
    pub(crate) pair_tag: PairTag,
}

impl PairKeys {
    /// `None` if the peer's key is a point of low order: the shared secret would be known to
    /// everyone.
    pub(crate) fn derive(
        private: &SecretKey,
        peer: &PeerKey,
        psk: Option<&PresharedKey>,
    ) -> Option<Self> {
        let shared = StaticSecret::from(*private.expose())
            .diffie_hellman(&PublicKey::from(*peer.as_bytes()));
        if !shared.was_contributory() {
            return None;
        }
        let own = private.public_key();
        let (low, high) = if own < *peer {
            (own, *peer)
        } else {
            (*peer, own)
        };
        let psk = psk.map_or(&[0; 32], PresharedKey::expose);
        let root = mac(
            shared.as_bytes(),
            &[b"natpunch pair v1", low.as_bytes(), high.as_bytes(), psk],
        );
        Some(Self {
            outbound: Direction::derive(&root, &own, peer),
            inbound: Direction::derive(&root, peer, &own),
            pair_tag: PairTag(prefix(&mac(&root, &[b"pair tag"]))),
        })
    }
}

impl Direction {
    fn derive(root: &[u8; 32], sender: &PeerKey, receiver: &PeerKey) -> Self {
        let key = |label: &[u8]| mac(root, &[label, sender.as_bytes(), receiver.as_bytes()]);
        let mut pair = [0; 64];
        for (to, from) in pair
            .iter_mut()
            .zip(sender.as_bytes().iter().chain(receiver.as_bytes()))
        {
            *to = *from;
        }
        Self {
            probe: XChaCha20Poly1305::new((&*key(b"probe key")).into()),
            probe_tag: ProbeTag(prefix(&key(b"probe tag"))),
            record: XChaCha20Poly1305::new((&*key(b"record key")).into()),
            record_tag: RecordTag(prefix(&key(b"record tag"))),
            ports_seed: u16::from_be_bytes(prefix(&key(b"source ports"))),
            pair,
        }
    }
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut mac = <Blake2sMac256 as blake2::digest::KeyInit>::new(key.into());
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}

fn prefix<const N: usize>(key: &[u8; 32]) -> [u8; N] {
    std::array::from_fn(|i| key.get(i).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(psk: Option<PresharedKey>) -> (PairKeys, PairKeys) {
        let [a, b] = [1, 2].map(|byte| SecretKey::from_bytes([byte; 32]));
        let derive = |own: &SecretKey, peer: &SecretKey| {
            PairKeys::derive(own, &peer.public_key(), psk.as_ref()).unwrap()
        };
        (derive(&a, &b), derive(&b, &a))
    }

    #[test]
    fn both_sides_derive_the_same_keys_and_each_direction_its_own() {
        let (a, b) = pair(None);
        assert_eq!(a.outbound.probe_tag, b.inbound.probe_tag);
        assert_eq!(a.inbound.record_tag, b.outbound.record_tag);
        assert_ne!(a.outbound.probe_tag, a.inbound.probe_tag);
        assert_eq!(a.outbound.ports_seed, b.inbound.ports_seed);
        assert_ne!(a.outbound.ports_seed, a.inbound.ports_seed);
        assert_ne!(a.outbound.record_tag, a.inbound.record_tag);
        assert_eq!(a.pair_tag, b.pair_tag);
        let records = [a.outbound.record_tag, a.inbound.record_tag];
        assert!(records.iter().all(|tag| tag.0 != a.pair_tag.0));
    }

    #[test]
    fn a_preshared_key_separates_the_pair() {
        let (plain, _) = pair(None);
        let (with, _) = pair(Some(PresharedKey::from_bytes([9; 32])));
        assert_ne!(plain.outbound.probe_tag, with.outbound.probe_tag);
    }

    #[test]
    fn a_public_key_of_low_order_is_refused() {
        let own = SecretKey::from_bytes([1; 32]);
        for bad in [[0; 32], std::array::from_fn(|i| u8::from(i == 0))] {
            assert!(PairKeys::derive(&own, &PeerKey::from_bytes(bad), None).is_none());
        }
    }
}
