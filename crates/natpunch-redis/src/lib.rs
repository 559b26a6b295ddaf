//! What natpunch's clients of Redis and Valkey share: RESP3 with bounded reading, the connection,
//! the address of a server, and what is wrong with one, in words.
//!
//! The clients are of natpunch's own: those that there are hold whole replies, however long, in
//! queues without bounds, and a server is nobody to trust.

mod address;
mod connection;
mod dial;
mod resp;
mod trouble;

pub use address::{Address, AddressError};
pub use connection::{Connection, Moved};
pub use dial::{Stream, Tls, dial};
pub use resp::{LONGEST, Nonsense, Reader, Reply, command, hello};
pub use trouble::Trouble;
