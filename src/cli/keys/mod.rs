//! Commands about keys: make them, print their public half, encrypt them.

pub(super) mod encrypt;
pub(super) mod keygen;
pub(super) mod pubkey;
