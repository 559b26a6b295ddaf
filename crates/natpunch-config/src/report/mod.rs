//! What is wrong with a mesh file, where, and what to do: every other room says it by these.

pub(crate) mod error;
mod masking;
pub(crate) mod source;
pub(crate) mod wording;
