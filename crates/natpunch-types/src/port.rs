//! The port of a node that is said nowhere: every part of natpunch derives the same.

use blake2::{Blake2s256, Digest as _};

use crate::PeerKey;

/// The listen port of a node whose file names none: 20000 + hash(public key) mod 12000.
///
/// Below the ephemeral range of common systems (32768 and up), and different per node, because two
/// nodes behind one NAT with the same port cost one of them its port-preserving mapping.
pub fn derive_listen_port(key: &PeerKey) -> u16 {
    let digest = Blake2s256::new()
        .chain_update(b"natpunch listen port v1")
        .chain_update(key.as_bytes())
        .finalize();
    let number = digest
        .iter()
        .take(4)
        .fold(0_u32, |n, byte| n << 8 | u32::from(*byte));
    20_000 + (number % 12_000) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_port_is_stable_and_outside_the_ephemeral_range() {
        for byte in 0..=255 {
            let port = derive_listen_port(&PeerKey::from_bytes([byte; 32]));
            assert!((20_000..32_000).contains(&port), "{port}");
        }
        let [first, second] = [1, 2].map(|b| derive_listen_port(&PeerKey::from_bytes([b; 32])));
        assert_ne!(first, second);
    }
}
