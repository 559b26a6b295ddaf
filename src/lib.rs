//! natpunch: a WireGuard mesh as code.
//!
//! This crate is the shell: the only place where the pure core, the sockets, the WireGuard device
//! and the plugins meet. `docs/ARCHITECTURE.md` is the map.

pub mod agent;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod doctor;
mod exposition;
pub mod invite;
pub mod plugins;
pub mod server;
pub mod source;
pub mod words;
