//! Meshes from git repositories and web servers: real git, real servers on loopback, real disks
//! that are full.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod binding;
#[path = "../docs/blocks.rs"]
#[allow(dead_code)]
mod blocks;
mod commands;
mod disks;
mod git;
mod hostile;
mod server;
mod ssh;
mod support;
mod web;
