//! What is wanted of which router.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::talk::{Protocol, Talk};

/// The way out of this network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) router: Ipv4Addr,
    /// This host's address towards it.
    pub(crate) own: Ipv4Addr,
}

/// What is wanted of the router.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    pub(crate) way: Way,
    /// WireGuard's port.
    pub(crate) port: u16,
    /// The address outside that would be best.
    pub(crate) suggested: SocketAddrV4,
    /// A port outside for a router by UPnP that can't give that one.
    pub(crate) other_port: u16,
    pub(crate) nonce: [u8; 12],
    /// By which protocol the mapping that is held was made.
    pub(crate) held: Option<Protocol>,
}

impl Wish {
    /// The talk in which it is asked for.
    pub(crate) fn talk(&self) -> Talk {
        Talk::new(self.nonce, self.way.own, self.port, self.suggested)
    }
}
