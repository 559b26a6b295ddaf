//! How a running mesh is changed: the decisions, and nothing that touches the world.
//!
//! [`Rollout`] is one state machine. The newest version of the mesh, what peers answer, what the
//! journal and the device said, a person's confirmation and the time go in; what has to be written,
//! asked and applied comes out. A node never runs a version that is neither known to work, nor
//! watched until a deadline, nor being undone, wherever it dies ([`Rollout::resume`]).
//! docs/operations.md has the diagram.

mod caps;
mod facts;
mod journal;
mod login;
mod machine;
mod resume;
mod watch;
mod words;

pub use caps::{Refusal, refusals};
pub use facts::{
    Effect, ExitFacts, Facts, Finds, Hash, NodeFacts, PeerFacts, Release, Rules, Touch, effects,
};
pub use journal::{Change, Entry, Recorded, Watch};
pub use login::Login;
pub use machine::Rollout;
pub use resume::{Resumed, Start};
pub use watch::watched;
pub use words::{
    Answers, Ask, ConfirmError, Moment, Notice, Open, Output, Phase, Refused, Settings,
};
