//! The NAT before this node: how it is asked (STUN), how it is sampled, whose packets it lets in, how
//! long it holds a mapping, how far away it is, and what is known of it.

pub(crate) mod family;
pub mod filtering;
pub(crate) mod filters;
pub(crate) mod hops;
pub(crate) mod lifetime;
pub(crate) mod profile;
pub(crate) mod sampling;
pub mod stun;

use natpunch_types::PeerKey;

/// In whose name the spare ports of one kind of measurement are open. No peer has such a key: as a
/// point it is beyond the field's size (RFC 7748, 5), and no multiplication gives that.
pub(crate) const fn owner(measurement: u8) -> PeerKey {
    PeerKey::from_bytes([0xff - measurement; 32])
}
