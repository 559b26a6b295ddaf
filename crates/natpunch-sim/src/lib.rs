//! A seeded internet in virtual time: hosts, links, RFC 4787 NATs, faults, an oracle.
//!
//! The hosts run the real [`natpunch_core::Mesh`] and, where there are servers of natpunch's own
//! rendezvous, its real clients; those servers are the real ones, too, and so is the gossip of the
//! hosts. Everything around them is a
//! model without sockets, threads or a clock. One seed gives one run, bit by bit, so that a failure
//! is repeated by its seed and read in its [`Trace`].
//!
//! This crate is a tool of tests: a scenario that names a host which it did not add is a bug of the
//! scenario, and panics.
#![allow(clippy::indexing_slicing)]

mod chart;
mod client;
mod discovery;
mod gossip;
mod link;
mod nat;
mod network;
mod node;
mod oracle;
mod packet;
mod pcap;
mod random;
mod rendezvous;
mod server;
mod trace;
mod wireguard;
mod world;

pub use client::ServerAddress;
pub use link::LinkConfig;
pub use nat::{
    Allocation, Filtering, Mapping, Nat, NatConfig, Pool, Refusal, Timers, Unsolicited, WhenFull,
};
pub use network::{GatewayConfig, GatewayId, HostId, Network, SegmentId};
pub use node::DiscoveryConfig;
pub use oracle::{Reach, Verdict, direct_path_possible, reach_with_other_ports};
pub use packet::{DEFAULT_TTL, Packet, Payload, Purpose};
pub use random::Random;
pub use rendezvous::{Message as RendezvousMessage, Server as RendezvousServer};
pub use server::Lie;
pub use trace::{Entry, Trace, What};
pub use wireguard::{
    Content as WireGuardContent, Device as WireGuard, GivesUp, Message as WireGuardMessage,
    Outgoing as WireGuardOutgoing, REKEY_TIMEOUT,
};
pub use world::World;
