//! Raw sockets, packet filters and link watching for natpunch.

mod error;
mod filter;
mod packet;
mod raw;
mod readable;
mod source;

pub use error::NetError;
pub use raw::{MAX_SOURCES, RawPort, Received};
