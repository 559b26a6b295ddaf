//! Records: a node's candidates, sealed for one peer, that any untrusted store may carry.
//!
//! A store can withhold a record, but not read, forge, mix or (while the receiver runs) roll it
//! back: the sealed text names the pair and the direction, carries a counter that only rises and a
//! lifetime that counts from receipt, and is padded to one of two sizes. Layout: version 1, nonce
//! (24), then sealed: version 1, counter (8), lifetime in seconds (4), number of candidates, then
//! per candidate kind (1) and address (18); zeros; tag (16). Kind 6 has the sender's NAT in the
//! place of an address, as a ping says it; a version that does not know it skips it as a candidate
//! of an unknown kind.

use std::net::SocketAddr;
use std::time::Duration;

use chacha20poly1305::{AeadInPlace as _, XNonce};
use natpunch_types::{CandidateKind, SealedRecord};
use rand_core::RngCore;

use crate::keys::Direction;
use crate::messages::about::About;
use crate::messages::wire::{ADDRESS_LEN, Reader, put_address, read_address};
use crate::nat::profile::NatProfile;

/// A record is believed no longer than this, whatever it says.
const MAX_LIFETIME: Duration = Duration::from_secs(3600);
/// A record lists at most this many candidates.
pub(crate) const MAX_CANDIDATES: usize = 16;

const VERSION: u8 = 1;
const NONCE_LEN: usize = 24;
const MAC_LEN: usize = 16;
const ENTRY_LEN: usize = 1 + ADDRESS_LEN;
const SMALL: usize = 14 + 5 * ENTRY_LEN;
const LARGE: usize = 14 + MAX_CANDIDATES * ENTRY_LEN;
/// The kind of the entry that is no candidate.
const KIND_PROFILE: u8 = 6;
const LABEL: &[u8] = b"natpunch record v1";

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) counter: u64,
    pub(crate) lifetime: Duration,
    pub(crate) candidates: Vec<(CandidateKind, SocketAddr)>,
    /// What the sender knows of its NAT.
    pub(crate) profile: NatProfile,
}

impl Contents {
    pub(crate) fn seal(&self, keys: &Direction, rng: &mut impl RngCore) -> SealedRecord {
        let says_profile = self.profile != NatProfile::default();
        let most = MAX_CANDIDATES - usize::from(says_profile);
        let candidates = self.candidates.iter().take(most);
        let count = candidates.len() + usize::from(says_profile);
        let size = if count <= 5 { SMALL } else { LARGE };
        let mut text = Vec::with_capacity(size);
        text.push(VERSION);
        text.extend(self.counter.to_be_bytes());
        text.extend(
            u32::try_from(self.lifetime.as_secs())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        text.push(count as u8);
        if says_profile {
            text.push(KIND_PROFILE);
            let about = About {
                profile: self.profile,
                ..About::default()
            };
            text.extend(about.to_bytes());
        }
        for (kind, address) in candidates {
            text.push(kind_code(*kind));
            put_address(&mut text, Some(*address));
        }
        text.resize(size, 0);

        let mut nonce = [0; NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        let mut blob = Vec::with_capacity(1 + NONCE_LEN + size + MAC_LEN);
        blob.push(VERSION);
        blob.extend(nonce);
        // The cipher refuses only texts of more than 256 GiB; such a record would be one that
        // nobody can open.
        if let Ok(mac) =
            keys.record
                .encrypt_in_place_detached(XNonce::from_slice(&nonce), &aad(keys), &mut text)
        {
            blob.extend(text);
            blob.extend(mac);
        }
        SealedRecord {
            tag: keys.record_tag,
            blob: blob.into(),
        }
    }

    /// `None` for anything that the peer did not seal for us.
    pub(crate) fn open(keys: &Direction, blob: &[u8]) -> Option<Self> {
        if ![SMALL, LARGE].contains(&blob.len().checked_sub(1 + NONCE_LEN + MAC_LEN)?) {
            return None;
        }
        let ([version], rest) = blob.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>()?;
        let (sealed, mac) = rest.split_last_chunk::<MAC_LEN>()?;
        if *version != VERSION {
            return None;
        }
        let mut text = sealed.to_vec();
        keys.record
            .decrypt_in_place_detached(nonce.into(), &aad(keys), &mut text, mac.into())
            .ok()?;

        let mut reader = Reader(&text);
        if reader.u8()? != VERSION {
            return None;
        }
        let counter = reader.u64()?;
        let lifetime = Duration::from_secs(reader.u32()?.into()).min(MAX_LIFETIME);
        let count = usize::from(reader.u8()?).min(MAX_CANDIDATES);
        let mut candidates = Vec::with_capacity(count);
        let mut profile = NatProfile::default();
        for _ in 0..count {
            let kind = reader.u8()?;
            let about = About::from_bytes(reader.0).filter(|_| kind == KIND_PROFILE);
            profile = about.map_or(profile, |about| about.profile);
            let address = read_address(&mut reader)?;
            // A kind that this version does not know is skipped, not an error.
            candidates.extend(kind_from_code(kind).zip(address));
        }
        Some(Self {
            counter,
            lifetime,
            candidates,
            profile,
        })
    }
}

fn aad(keys: &Direction) -> Vec<u8> {
    [LABEL, &keys.pair, &keys.record_tag.0].concat()
}

fn kind_code(kind: CandidateKind) -> u8 {
    match kind {
        CandidateKind::Host => 1,
        CandidateKind::Mapped => 2,
        CandidateKind::PeerReflexive => 3,
        CandidateKind::Reflexive => 4,
        CandidateKind::Relay => 5,
    }
}

fn kind_from_code(code: u8) -> Option<CandidateKind> {
    match code {
        1 => Some(CandidateKind::Host),
        2 => Some(CandidateKind::Mapped),
        // Only the receiver itself can find a peer-reflexive candidate.
        3 | 4 => Some(CandidateKind::Reflexive),
        5 => Some(CandidateKind::Relay),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use natpunch_types::SecretKey;
    use rand_core::SeedableRng as _;

    use super::*;
    use crate::keys::PairKeys;

    #[test]
    fn a_record_has_one_of_two_lengths_whatever_is_in_it() {
        let keys = [1, 2].map(|byte| SecretKey::from_bytes([byte; 32]));
        let ours = PairKeys::derive(&keys[0], &keys[1].public_key(), None).unwrap();
        let length = |count: u16| {
            let candidate = |n| (CandidateKind::Host, SocketAddr::from(([10, 0, 0, 1], n)));
            let contents = Contents {
                counter: 1,
                lifetime: Duration::from_secs(600),
                candidates: (1..=count).map(candidate).collect(),
                profile: NatProfile::default(),
            };
            let mut rng = rand_chacha::ChaCha20Rng::from_seed([0; 32]);
            contents.seal(&ours.outbound, &mut rng).blob.len()
        };
        let around = 1 + 24 + 16;
        // What the protocol's description says: 14 bytes, and entries of 19.
        assert_eq!([length(0), length(4)], [around + 14 + 5 * 19; 2]);
        assert_eq!([length(6), length(16)], [around + 14 + 16 * 19; 2]);
    }

    #[test]
    fn a_record_is_believed_for_an_hour_at_most() {
        let [a, b] = [1, 2].map(|byte| SecretKey::from_bytes([byte; 32]));
        let ours = PairKeys::derive(&a, &b.public_key(), None).unwrap();
        let theirs = PairKeys::derive(&b, &a.public_key(), None).unwrap();
        for (said, believed) in [(600, 600), (3600, 3600), (86_400, 3600), (u64::MAX, 3600)] {
            let contents = Contents {
                counter: 1,
                lifetime: Duration::from_secs(said),
                candidates: vec![],
                profile: NatProfile::default(),
            };
            let record = contents.seal(
                &ours.outbound,
                &mut rand_chacha::ChaCha20Rng::from_seed([0; 32]),
            );
            let opened = Contents::open(&theirs.inbound, &record.blob).unwrap();
            assert_eq!(opened.lifetime, Duration::from_secs(believed));
        }
    }
}
