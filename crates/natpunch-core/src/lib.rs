//! The pure core of natpunch: everything that decides, and nothing that touches the world.

mod candidates;
mod env;
mod filter;
mod gather;
mod keys;
mod mesh;
mod output;
mod path;
mod peer;
mod probe;
mod record;
mod spec;
mod status;
pub mod stun;
mod time;
mod wire;

pub use filter::{Rejected, admit};
pub use mesh::Mesh;
pub use output::{Command, EndpointReason, Event, Interest, Record, Transmit};
pub use spec::{MeshSpec, PeerSpec, derive_listen_port};
pub use status::{CandidateStatus, LocalStatus, MeshStatus, PathKind, PeerState, PeerStatus};
pub use time::Time;
