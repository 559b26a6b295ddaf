//! What a server starts with: its settings and open files.

pub(in crate::server) mod files;
pub mod settings;
