//! What an operator does with a running server: asks it, and changes its settings.

pub(in crate::server) mod counters;
pub(in crate::server) mod metrics;
pub(in crate::server) mod monitor;
pub(in crate::server) mod reload;
pub mod status;
