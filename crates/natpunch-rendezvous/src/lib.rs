//! natpunch's own rendezvous protocol over UDP, as `docs/protocol.md` specifies it: [`Server`] and
//! [`Client`].
//!
//! Both are pure: they take datagrams, the time since any origin and a random number generator, and
//! give datagrams, events and the time at which they want to be called. What arrives is parsed or
//! dropped; nothing panics, nothing is answered before its sender is known to hold the server's
//! public key (and the mesh's admission secret, where there is one), and nothing is kept before its
//! sender's key and address are proven.

pub mod client;
pub mod cluster;
mod crypto;
pub mod doorbell;
mod frame;
pub mod relay;
pub mod server;
pub mod stream;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod wire;

pub use client::Client;
pub use crypto::{identity, node_admission};
pub use server::Server;
