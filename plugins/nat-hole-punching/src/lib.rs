//! Discovery through WireGuard's nat-hole-punching example (`contrib/` of wireguard-tools):
//! [`Server`], [`Client`] and [plugin](Plugin), all for IPv4.
//!
//! | direction | datagram |
//! |---|---|
//! | to the server | exactly 64 bytes: own public key, public key asked for |
//! | to the client | IPv4 address 4 and port 2, in network byte order; or nothing, when not known |
//!
//! The protocol has no authentication of any kind: anybody can register any key. What it yields is
//! a hint that a probe has to prove, like every other, but who serves it or asks it opts into that
//! by name.

pub mod client;
mod plugin;
pub mod server;
mod settings;
mod wire;

pub use client::Client;
pub use plugin::Plugin;
pub use server::Server;
pub use settings::{Server as ServerSettings, Settings};
