//! This node's part of the mesh, and the secrets that it needs for it.

pub(crate) mod exit_node;
pub(crate) mod identity;
pub(crate) mod key_file;
pub(crate) mod local;
pub(crate) mod model;
mod own_peer;
mod remote_peers;
pub(crate) mod resolve;
mod secrets;
