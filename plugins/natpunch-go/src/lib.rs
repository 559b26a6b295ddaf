//! Discovery through natpunch-go's rendezvous: [`Server`], [`Client`] and the [plugin](Plugin).
//!
//! The protocol is natpunch-go's to the byte, so that its unmodified clients and servers take part;
//! `docs/compat.md` says which of its defects are cured here, and which only nearly, because the
//! bytes forbid more.
//!
//! [`Server`] and [`Client`] are pure: they take datagrams, the time and a random number generator,
//! and return datagrams.

pub mod client;
mod noise;
mod plugin;
pub mod server;
mod settings;
mod window;
mod wire;

pub use client::Client;
pub use plugin::Plugin;
pub use server::Server;
pub use settings::{Server as ServerSettings, Settings};

#[cfg(test)]
mod testing;
