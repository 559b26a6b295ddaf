//! The record store, over HTTP.

pub(in crate::server) mod http;
pub(in crate::server) mod rate;
pub(in crate::server) mod store;
