//! The relay: a [`Port`] passes datagrams between the two bound addresses of an allocation,
//! unchanged and unread.
//!
//! The [server](crate::Server) decides which clients may use it: it makes an allocation when the
//! sessions of two clients have asked for the same pair, gives each side a secret, and tells a port
//! of it by [`Command`]s. The port decides about each datagram alone, shares nothing with the
//! server, and tells it in [`Event`]s what became of the allocation.
//!
//! A port can't be aimed: no datagram names a destination. Where it sends is one of two addresses,
//! each of which has shown the secret of its side and has answered a challenge from there.

pub(crate) mod bind;
mod budget;
mod port;
mod shape;
#[cfg(test)]
mod share_tests;

pub use crate::crypto::Key;
pub use budget::Budget;
pub use port::{Command, Counters, Event, Limits, Own, Port, Verdict};
