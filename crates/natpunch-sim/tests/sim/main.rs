//! The real core in a simulated internet: which pairs of NATs connect, how fast, and what survives
//! which fault.
//!
//! One seed gives one run, bit by bit; a failure prints its seed, how to run it again, and the
//! packet flow, also as a Mermaid chart. With `NATPUNCH_PCAP=DIRECTORY` it leaves a capture of each
//! host and router there. `NATPUNCH_SIM_SEEDS` sets how many seeds a campaign runs,
//! `NATPUNCH_SIM_SEED` repeats a single one; `make sim` and `make sim-campaign` run many more.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod addresses;
mod campaign;
mod deaf;
mod demand;
mod faults;
mod first_packet;
mod gossip;
mod idle;
mod kinds;
mod lab;
mod matrix;
mod outage;
mod paths;
mod picture;
mod poison;
mod profile;
mod published;
mod punch;
mod recovery;
mod relay;
mod servers;
mod sizes;
mod timing;
