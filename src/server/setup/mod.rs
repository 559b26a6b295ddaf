//! What a server starts with: its settings, its keys, and open files.

pub(in crate::server) mod files;
pub mod key;
pub mod settings;
