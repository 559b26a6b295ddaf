//! The NAT before this node: how it is asked (STUN), how it is sampled, and what is known of it.

pub(crate) mod profile;
pub(crate) mod sampling;
pub mod stun;
