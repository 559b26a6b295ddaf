//! Commands about a mesh file: make, edit, check, draw and translate it. None needs an agent.

pub(super) mod add_peer;
pub(super) mod check;
pub(super) mod diff;
pub(super) mod edit_peer;
pub(super) mod export;
pub(super) mod graph;
pub(super) mod import;
pub(super) mod init;
pub(super) mod invite;
pub(super) mod remove_peer;
pub(super) mod schema;
