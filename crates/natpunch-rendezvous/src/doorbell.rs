//! Doorbells: one mailbox for each node, in which every peer that looks for it may leave its record.
//!
//! Pairs on demand leave no records for each other while they rest, and watch no mailboxes of each
//! other's. A node watches its own doorbell, whatever the number of its peers. Who knows the node's
//! public key, and may speak to the server, can ring it. So what is in it is a hint until the
//! record opens.

use std::sync::Arc;

use natpunch_types::{PeerKey, PresharedKey};

use crate::crypto::doorbell_tag;
use crate::wire::{MAX_BLOB, Tag};

/// The doorbells of the nodes of one mesh at one server.
#[derive(Clone)]
pub struct Doorbells {
    admission: Option<PresharedKey>,
}

impl Doorbells {
    /// Where the server has this admission secret, if it has one.
    pub fn new(admission: Option<PresharedKey>) -> Self {
        Self { admission }
    }

    /// The doorbell of the node with this WireGuard key.
    pub fn of(&self, node: &PeerKey) -> Tag {
        doorbell_tag(self.admission.as_ref(), node)
    }
}

/// What is left in a doorbell: the mailbox of the pair, and the record that would be in it. `None` if
/// that is too long.
pub fn ring(mailbox: &Tag, record: &[u8]) -> Option<Arc<[u8]>> {
    let blob = [mailbox.as_slice(), record].concat();
    (blob.len() <= MAX_BLOB).then(|| blob.into())
}

/// What was left in a doorbell: the mailbox and the record.
pub fn heard(blob: &[u8]) -> Option<(Tag, Arc<[u8]>)> {
    let (mailbox, record) = blob.split_first_chunk()?;
    Some((*mailbox, record.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rung_is_heard() {
        let blob = ring(&[7; 16], b"record").unwrap();
        assert_eq!(heard(&blob), Some(([7; 16], b"record".as_slice().into())));
        assert_eq!(heard(&blob[..15]), None);
        assert_eq!(ring(&[7; 16], &[0; MAX_BLOB - 15]), None);
        assert!(ring(&[7; 16], &[0; MAX_BLOB - 16]).is_some());
    }

    #[test]
    fn a_doorbell_is_a_nodes_in_a_mesh() {
        let key = |byte| PeerKey::from_bytes([byte; 32]);
        let open = Doorbells::new(None);
        let closed = Doorbells::new(Some(PresharedKey::from_bytes([1; 32])));
        let all = [open.of(&key(1)), open.of(&key(2)), closed.of(&key(1))];
        for (n, tag) in all.iter().enumerate() {
            assert_eq!(all.iter().position(|other| other == tag), Some(n));
        }
    }
}
