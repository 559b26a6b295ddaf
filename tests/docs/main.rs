//! README and docs/, run as they are written: each command block is typed into a shell, letter by
//! letter, in a small internet of namespaces. What can't be run says why beside it.
//!
//! A block is marked by a comment on the line above its fence, which is not shown:
//! `<!-- test: NAME -->` for one that a test runs ([`blocks::Block::named`]), `<!-- not run: WHY -->`
//! for one that none does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod blocks;
mod cli;
mod deps;
mod exit_codes;
mod fields;
#[path = "../source/server.rs"]
#[allow(dead_code)]
mod git_server;
mod gitops;
mod how_tos;
mod join;
mod links;
mod marks;
mod mesh_files;
mod monitoring;
mod recipes;
mod server;
mod two_machines;
mod typed;
