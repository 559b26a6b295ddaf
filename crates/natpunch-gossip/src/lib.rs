//! The gossip: the nodes of a mesh carry sealed records for each other, so that the loss of every
//! server does not stop a node that moves. [`Gossip`] is one node's part in it.
//!
//! Pure: it takes what the host of a discovery plugin tells, and the time, and gives what to send
//! and what to tell the host. That a message is of the peer that it is said to be of is the host's
//! matter; what the peer says is believed no further than that. A helper learns who looks for whom.
//! It can neither read nor forge a record, nor roll one back; it can withhold it.

mod held;
mod machine;
mod wire;

pub use machine::{Effect, Gossip};
pub use wire::{Message, RECORD_MAX, Way};
