//! The real core in a simulated internet: which pairs of NATs connect, how fast, and what survives
//! which fault.
//!
//! One seed gives one run, bit by bit; a failure prints its seed and the packet flow.
//! `NATPUNCH_SIM_SEEDS` sets how many seeds a campaign runs, `NATPUNCH_SIM_SEED` repeats a single
//! one; `make sim` runs many more.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs
)]

mod addresses;
mod deaf;
mod faults;
mod first_packet;
mod gossip;
mod idle;
mod lab;
mod matrix;
mod outage;
mod paths;
mod poison;
mod profile;
mod punch;
mod relay;
mod servers;
mod sizes;
mod timing;
