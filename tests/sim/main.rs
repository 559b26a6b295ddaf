//! The real core in a simulated internet: which pairs of NATs connect, how fast, and what survives which fault.
//!
//! One seed gives one run, bit by bit; a failure prints its seed and the packet flow. `NATPUNCH_SIM_SEEDS` sets how many
//! seeds the campaign runs, `NATPUNCH_SIM_SEED` repeats a single one. The long campaign:
//! `cargo test --test sim -- --ignored`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout, missing_docs)]

mod faults;
mod lab;
mod matrix;
mod paths;
mod poison;
mod timing;
