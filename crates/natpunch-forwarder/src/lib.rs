//! The forwarder: a process of this host that carries datagrams to a server and back in one stream
//! of TLS, where no UDP passes.
//!
//! For each port of the server (its own, or one of its relay's) it has a UDP port of its own, at a
//! loopback address ([`natpunch_types::FORWARDER`]). What WireGuard, or the agent in its name,
//! sends there from WireGuard's port comes out at the server's port, and back. So every WireGuard
//! can use it, that of the kernel, too.
//!
//! It is a process of its own, so that the agent can be killed, restarted and upgraded under
//! traffic. The agent starts it when it needs it, finds it again by its [control
//! socket](client::Forwarder), and says every few seconds that it still needs a tunnel. A tunnel
//! that nobody needs, and in which WireGuard says nothing, ends after some minutes, and the process
//! with the last one.

mod client;
mod connect;
mod control;
mod process;
mod proxy;
mod tunnel;

pub use client::{Forwarder, socket_path, stop};
pub use control::{Opened, Wanted};
pub use process::run;
