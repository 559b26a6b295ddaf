//! What the server gives away of a handshake until its client proves where it is.

use natpunch_types::PeerKey;

use crate::crypto::Key;

/// A handshake that waits, at its client, for the proof.
pub(super) struct Ticket {
    pub(super) from_client: Key,
    pub(super) from_server: Key,
    pub(super) identity: PeerKey,
    pub(super) session: u64,
    /// Rises from ticket to ticket.
    pub(super) number: u64,
    /// By which secret its holder came in.
    pub(super) secret: SecretNumber,
}

/// Stands for the secret of a client that another process has admitted.
pub(super) const ELSEWHERE: SecretNumber = SecretNumber::MAX;

/// Names an admission secret (or that none was asked for) while the server runs.
pub(super) type SecretNumber = u16;
