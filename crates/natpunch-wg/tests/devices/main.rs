//! The backends on real devices, in network namespaces: root needed. Tests whose names contain
//! `kernel` need kernel WireGuard; `make test-vm` runs them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)]

mod common;
mod conformance;
mod interface;
mod pins;
mod routing;
mod timers;
mod traffic;
