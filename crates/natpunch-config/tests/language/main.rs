//! The mesh file's language by itself, with plugins that exist in these tests only: for each verdict
//! what just earns it, and what just does not.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod bounds;
mod claims;
mod findings;
mod support;
