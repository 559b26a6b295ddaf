//! The NAT before this node: how it is asked (STUN), how it is sampled, whose packets it lets in, how
//! long it holds a mapping, how far away it is, and what is known of it.

pub(crate) mod family;
pub mod filtering;
pub(crate) mod filters;
pub(crate) mod hops;
pub(crate) mod lifetime;
pub(crate) mod profile;
pub(crate) mod sampling;
pub mod stun;

use std::net::SocketAddr;
use std::num::NonZeroU16;

use natpunch_types::PeerKey;
use rand_core::RngCore;

use crate::ports::SourcePorts;

/// In whose name the spare ports of one kind of measurement are open. No peer has such a key: as a
/// point it is beyond the field's size (RFC 7748, 5), and no multiplication gives that.
pub(crate) const fn owner(measurement: u8) -> PeerKey {
    PeerKey::from_bytes([0xff - measurement; 32])
}

/// What a trial at one server from two spare ports begins with: the next server after those that in
/// a row could not tell, and the ports. `None`: no server answers, or the ports are taken.
pub(crate) fn begin_at(
    servers: &[SocketAddr],
    unfit: usize,
    ports: &mut SourcePorts,
    owner: PeerKey,
    rng: &mut impl RngCore,
) -> Option<(SocketAddr, [NonZeroU16; 2])> {
    let server = *servers.get(unfit % servers.len().max(1))?;
    let [one, other] = ports.open(owner, 2, rng)[..] else {
        ports.close(&owner, |_| false);
        return None;
    };
    Some((server, [one, other]))
}
