//! This node's part of the mesh, and the secrets that it needs for it.

pub(crate) mod identity;
pub(crate) mod key_file;
pub(crate) mod resolve;
