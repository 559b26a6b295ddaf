//! The real binary in a small internet: what natpunch promises, on real NATs, with real processes.
//!
//! Each test has a sandbox of its own (`natpunch_lab::sandbox`), so they run side by side and leave
//! nothing behind. `NATPUNCH_LAB_BACKEND=kernel` runs them on kernel WireGuard, as `make test-vm`
//! does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod adoption;
mod backends;
mod changes;
mod connecting;
mod crashes;
mod demand;
mod disk;
mod disks;
mod doctor;
mod gitops;
mod gossip;
mod host;
mod idle;
mod ipv6;
mod kill_matrix;
mod liveness;
mod loading;
mod lockout;
mod measure;
mod mesh;
#[path = "../shared/mutate.rs"]
mod mutate;
mod names;
mod pairs;
mod paths;
mod pins;
mod plain;
mod port_mapping;
mod quiet;
mod reasons;
mod relay;
mod rest;
mod revisions;
mod roaming;
mod rollout;
mod routes;
mod safety;
mod secrets;
mod serving;
mod storms;
mod swaps;
mod tls;
mod warm;
mod watchdog;
mod why;
mod world;
