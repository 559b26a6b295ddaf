//! The protocols on one UDP socket, told apart by form.
//!
//! 1. A complete STUN message (RFC 8489, 5: two zero bits, the cookie at offset 4, a length that is a multiple of four
//!    and that of the datagram) is STUN.
//! 2. Exactly 64 bytes is nat-hole-punching, if that is spoken.
//! 3. Everything else is natpunch-go, if that is spoken. Its requests have 93 and 109 bytes, neither of which a STUN
//!    message can have, so the order never takes a datagram from its protocol. A request of nat-hole-punching could be
//!    taken for STUN with a public key made for it, by its owner alone.

use std::net::SocketAddr;
use std::time::Duration;

use natpunch_core::stun;
use natpunch_types::SecretKey;

use super::settings::Compat;

/// Which protocol a datagram belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// STUN.
    Stun,
    /// A request of nat-hole-punching.
    HolePunching,
    /// A handshake of natpunch-go: much work.
    Handshake,
    /// Another packet of natpunch-go: little work.
    NatpunchGo,
    /// None that is spoken here.
    Unknown,
}

/// The protocol servers behind all sockets.
#[derive(Debug)]
pub(super) struct Protocols {
    speaks_hole_punching: bool,
    speaks_natpunch_go: bool,
}

impl Protocols {
    /// STUN, and the protocols of `compat`.
    pub(super) fn new(compat: &[Compat], _key: &SecretKey) -> Self {
        Self {
            speaks_hole_punching: compat.contains(&Compat::NatHolePunching),
            speaks_natpunch_go: compat.contains(&Compat::NatpunchGo),
        }
    }

    /// Which protocol a datagram belongs to. See the [module](self) for the order.
    pub(super) fn classify(&self, payload: &[u8]) -> Class {
        if stun::is_stun(payload) {
            Class::Stun
        } else if self.speaks_hole_punching && payload.len() == 64 {
            Class::HolePunching
        } else if self.speaks_natpunch_go {
            if payload.first() == Some(&1) { Class::Handshake } else { Class::NatpunchGo }
        } else {
            Class::Unknown
        }
    }

    /// The answer to a datagram of this class.
    pub(super) fn handle(&self, class: Class, source: SocketAddr, payload: &[u8], _now: Duration) -> Option<Vec<u8>> {
        match class {
            Class::Stun => stun::respond(payload, source),
            _ => None,
        }
    }
}
