//! The pure core of natpunch: everything that decides, and nothing that touches the world.

pub mod stun;
mod mesh;
mod output;
mod spec;
mod status;
mod time;

pub use mesh::Mesh;
pub use output::{Command, EndpointReason, Event, Interest, Record, Transmit};
pub use spec::{MeshSpec, PeerSpec, derive_listen_port};
pub use status::{CandidateStatus, LocalStatus, MeshStatus, PathKind, PeerState, PeerStatus};
pub use time::Time;
