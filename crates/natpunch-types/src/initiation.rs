//! WireGuard's handshake messages, as far as others than WireGuard can read them, and where
//! initiations go that have no way to the peer yet.
//!
//! A peer without a path has a *resting endpoint*: a loopback address that nothing else uses. So
//! WireGuard keeps the packets that wait for a session, and its initiation can be picked up there
//! and sent on the path that is found. Without any endpoint WireGuard refuses the packets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac as _};
use blake2::{Blake2s256, Blake2sMac, Digest as _};

use crate::PeerKey;

/// Bytes of a handshake initiation (WireGuard's whitepaper, 5.4.2).
pub const INITIATION_LEN: usize = 148;
/// Bytes of a handshake response (WireGuard's whitepaper, 5.4.3).
pub const RESPONSE_LEN: usize = 92;

/// The first two bytes of all resting endpoints.
pub const RESTING_NETWORK: [u8; 2] = [127, 79];
/// Their port is that of the discard service (RFC 863): no unprivileged program can have it, and
/// one that has it throws away what comes.
pub const RESTING_PORT: u16 = 9;

/// Message types 1 and 2, and three bytes that are zero.
const INITIATION: [u8; 4] = [1, 0, 0, 0];
const RESPONSE: [u8; 4] = [2, 0, 0, 0];
/// Both end with `mac1`, which is made over all that is before it, and `mac2`, of this length each.
const MAC_LEN: usize = 16;

/// Where a peer without a path is. It follows from the key alone, so that neither a restart nor a
/// reload moves a peer; of two peers at one endpoint, [`is_initiation_for`] tells which is meant.
pub fn resting_endpoint(peer: &PeerKey) -> SocketAddr {
    // The last bytes: people look for keys that begin with a word.
    let [.., c, d] = *peer.as_bytes();
    let [a, b] = RESTING_NETWORK;
    SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), RESTING_PORT)
}

/// Whether this is the resting endpoint of some peer.
pub fn is_resting(endpoint: SocketAddr) -> bool {
    let in_network = |ip: Ipv4Addr| ip.octets().starts_with(&RESTING_NETWORK);
    endpoint.port() == RESTING_PORT
        && matches!(endpoint.ip().to_canonical(), IpAddr::V4(ip) if in_network(ip))
}

/// Whether a datagram has the form of a handshake initiation.
pub fn is_initiation(datagram: &[u8]) -> bool {
    datagram.len() == INITIATION_LEN && datagram.starts_with(&INITIATION)
}

/// Whether a datagram has the form of a handshake response.
pub fn is_response(datagram: &[u8]) -> bool {
    datagram.len() == RESPONSE_LEN && datagram.starts_with(&RESPONSE)
}

/// Whether a datagram is a handshake initiation that was made for this peer: its `mac1` is keyed by
/// the public key of whom it is for (WireGuard's whitepaper, 5.4.4).
pub fn is_initiation_for(peer: &PeerKey, datagram: &[u8]) -> bool {
    is_initiation(datagram) && is_for(peer, datagram)
}

/// The same of a handshake response.
pub fn is_response_for(peer: &PeerKey, datagram: &[u8]) -> bool {
    is_response(datagram) && is_for(peer, datagram)
}

/// Writes the `mac1` of a handshake message, for tests and models that make some.
pub fn sign_handshake(peer: &PeerKey, datagram: &mut [u8]) {
    let before = datagram.len().saturating_sub(2 * MAC_LEN);
    let (covered, rest) = datagram.split_at_mut(before);
    if let (Some(mac), Some(place)) = (mac1(peer, covered), rest.get_mut(..MAC_LEN)) {
        place.copy_from_slice(&mac);
    }
}

fn is_for(peer: &PeerKey, datagram: &[u8]) -> bool {
    let before = datagram.len().saturating_sub(2 * MAC_LEN);
    let (covered, rest) = datagram.split_at(before);
    let mac = mac1(peer, covered);
    mac.is_some_and(|mac| rest.get(..MAC_LEN) == Some(&mac[..]))
}

fn mac1(peer: &PeerKey, covered: &[u8]) -> Option<[u8; MAC_LEN]> {
    let labelled = Blake2s256::new().chain_update(b"mac1----");
    let key = labelled.chain_update(peer.as_bytes()).finalize();
    let mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(&key).ok()?;
    Some(mac.chain_update(covered).finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AddressClass, canonical, classify, is_forwarder};

    const PEER: PeerKey = PeerKey::from_bytes([7; 32]);

    fn message(length: usize, message_type: u8) -> Vec<u8> {
        let mut datagram = vec![0x5a; length];
        datagram[..4].copy_from_slice(&[message_type, 0, 0, 0]);
        sign_handshake(&PEER, &mut datagram);
        datagram
    }

    #[test]
    fn a_resting_endpoint_is_a_loopback_address_that_no_other_part_uses() {
        let endpoint = resting_endpoint(&PEER);
        assert_eq!(endpoint, "127.79.7.7:9".parse().unwrap());
        assert!(is_resting(endpoint) && !is_forwarder(endpoint.ip()));
        assert_eq!(classify(endpoint.ip()), AddressClass::Never);
        let mapped: SocketAddr = "[::ffff:127.79.7.7]:9".parse().unwrap();
        assert!(is_resting(mapped) && canonical(mapped) == endpoint);
        for other in [
            "127.79.7.7:51820",
            "127.78.80.1:9",
            "[::1]:9",
            "192.0.2.1:9",
        ] {
            assert!(!is_resting(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn a_message_is_for_the_peer_whose_key_its_mac_was_made_with() {
        type IsFor = fn(&PeerKey, &[u8]) -> bool;
        let kinds: [(usize, u8, IsFor); 2] = [
            (INITIATION_LEN, 1, is_initiation_for),
            (RESPONSE_LEN, 2, is_response_for),
        ];
        for (length, message_type, is_for) in kinds {
            let mut datagram = message(length, message_type);
            assert!(is_for(&PEER, &datagram));
            assert!(!is_for(&PeerKey::from_bytes([8; 32]), &datagram));
            datagram[50] ^= 1;
            assert!(!is_for(&PEER, &datagram));
        }
    }

    #[test]
    fn what_has_another_type_or_length_is_no_handshake_message() {
        for length in (0..200).filter(|length| *length != INITIATION_LEN) {
            let datagram = message(length.max(4), 1);
            assert!(!is_initiation_for(&PEER, &datagram[..length]), "{length}");
        }
        for length in (0..200).filter(|length| *length != RESPONSE_LEN) {
            let datagram = message(length.max(4), 2);
            assert!(!is_response_for(&PEER, &datagram[..length]), "{length}");
        }
        for message_type in [0, 2, 3, 4] {
            let other = message(INITIATION_LEN, message_type);
            assert!(!is_initiation_for(&PEER, &other), "{message_type}");
        }
        for message_type in [0, 1, 3, 4] {
            let other = message(RESPONSE_LEN, message_type);
            assert!(!is_response_for(&PEER, &other), "{message_type}");
        }
    }
}
