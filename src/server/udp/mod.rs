//! UDP: sockets, the threads that serve them, and the protocols on them.

pub(in crate::server) mod control;
pub(in crate::server) mod handshakes;
pub(in crate::server) mod heartbeats;
pub(in crate::server) mod protocols;
pub(in crate::server) mod sockets;
pub(in crate::server) mod threads;
pub(in crate::server) mod worker;
