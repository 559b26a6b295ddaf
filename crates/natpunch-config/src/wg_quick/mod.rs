//! wg-quick's files: read, written, and made into a mesh.

pub(crate) mod comments;
pub(crate) mod convert;
pub(crate) mod import;
pub(crate) mod syntax;
