//! The pure core of natpunch: everything that decides, and nothing that touches the world.
//!
//! [`Mesh`] takes inputs and the time (`handle_*(.., now)`) and gives back effects (`poll_*`). It
//! has no clock, no socket, no randomness except its seed, and no hash order. So a run can be
//! repeated bit by bit.
//!
//! # The life of a path
//!
//! 1. **Candidate.** Discovery offers an address, the peer tells it in a sealed record or a ping,
//!    it is the source of an authenticated ping, or WireGuard itself found it. [`admit`] drops
//!    addresses that no peer can have; the rest is merged by address, with the set of origins.
//! 2. **Probing.** A new candidate is pinged at once, all candidates of a peer together, in a burst
//!    of eight pings over two seconds. A ping that comes in is answered, and if it can't be a
//!    replay it starts a burst to where it came from. All pings share one budget. After a fruitless
//!    round comes a growing silence, in the end of an hour, in which a ping now and then keeps our
//!    NAT open for a peer that comes back. After the first silence that is longer than routers
//!    remember a packet, rounds begin with pings of low TTL, which open our NAT and do not reach
//!    the other one.
//! 3. **Proof.** A path is proven when our ping was answered and the peer says that its own was.
//!    The peer of the pair with the lower key nominates one proven path, the other follows.
//! 4. **Endpoint.** Only then [`Command::SetEndpoint`] goes out. The nominating side starts
//!    WireGuard's handshake, and the device's snapshots tell whether it passes; where it does not,
//!    the next path is taken.
//! 5. **Keeping.** The path in use is pinged every five seconds, and when WireGuard sends without
//!    hearing anything. A better one replaces it only after three samples in a row that are clearly
//!    better. WireGuard's own roaming is followed and never fought, except back to a relay. When
//!    pings go unanswered, the other proven paths are asked after one second, and one that answers
//!    takes over after two and a half. Without any sign of life for four seconds, or after a change
//!    of the network, a new round starts; the old endpoint stays until another path is proven.
//!
//! A relay's port is a candidate like any other: proven by the same probes, end to end, so that its
//! round trip is the pair's and the nearest relay wins. It ranks below every direct path. A pair
//! that uses one goes on looking for a direct path, and leaves the relay as soon as one is proven.
//! [`Interest::relay`](natpunch_types::Interest::relay) tells discovery what the pair wants of
//! relays.

mod burst;
mod candidates;
mod env;
mod filter;
mod gather;
mod keys;
mod memory;
mod mesh;
mod messages;
mod nat;
mod output;
mod pacer;
mod path;
mod path_mtu;
mod peer;
mod ports;
mod sightings;
mod spec;
mod status;
mod strategy;

pub use filter::{Rejected, admit};
pub use memory::{KnownPath, Memory};
pub use mesh::Mesh;
pub use nat::lifetime::MeasuredLifetime;
pub use nat::{filtering, stun};
pub use natpunch_types::{PunchSpec, Time};
pub use output::{Command, EndpointReason, Event, Transmit};
pub use peer::Waker;
pub use spec::{MeshSpec, PeerSpec};
pub use status::{
    CandidateStatus, Filtering, LocalStatus, MeshStatus, NatStatus, NotProbed, PacketKind,
    PacketStatus, PathKind, PathMtuStatus, PeerState, PeerStatus, PortPattern, ProbeStatus,
    PunchStatus,
};
