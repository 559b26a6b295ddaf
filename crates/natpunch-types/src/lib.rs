//! The words of natpunch, shared by every other crate: keys, addresses, candidates and where they came from.
//!
//! There is one [`Candidate`] type in the whole tree, and one canonical form of a transport address, so that a
//! comparison can never miss because of an encoding (`::ffff:10.0.0.1` and `10.0.0.1` are the same address).

mod address;
mod candidate;
mod device;
mod key;

pub use address::{AddressClass, canonical, canonical_ip, classify, is_mesh_lan};
pub use candidate::{Candidate, CandidateKind, Origin};
pub use device::{DevicePeer, DeviceSnapshot};
pub use key::{KeyError, PeerKey, PresharedKey, SecretKey};
