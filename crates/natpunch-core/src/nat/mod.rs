//! The NAT before this node: how it is asked (STUN), how it is sampled, how long it holds a
//! mapping, and what is known of it.

pub(crate) mod lifetime;
pub(crate) mod profile;
pub(crate) mod sampling;
pub mod stun;
