//! The machine from outside: what goes in, what comes out. One program, since it is linked once for
//! each mutant.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod caps;
mod course;
mod deaths;
mod facts;
mod matrix;
mod resume;
mod support;
mod undone;
