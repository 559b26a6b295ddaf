//! The protocol's Noise handshake and transport.

use natpunch_noise::{Error, HandshakeState, StatelessTransportState};
use natpunch_types::{PeerKey, SecretKey};
use rand_core::CryptoRng;

/// Mixed into each handshake, so that another protocol's messages never fit.
const PROLOGUE: &[u8] = b"natpunch-go is the best :)";

/// A static key pair, derived once.
#[derive(Clone)]
pub(crate) struct Identity(natpunch_noise::Identity);

impl Identity {
    /// `None` for an all-zero key, which is no key but a mistake.
    pub(crate) fn new(private: &SecretKey) -> Option<Self> {
        natpunch_noise::Identity::new(private).map(Self)
    }

    pub(crate) fn public(&self) -> PeerKey {
        self.0.public()
    }

    /// A handshake as the one who calls, to the holder of `remote`.
    pub(crate) fn initiate(
        &self,
        remote: &PeerKey,
        rng: &mut impl CryptoRng,
    ) -> Result<HandshakeState, Error> {
        self.0.initiate(remote, PROLOGUE, rng)
    }

    /// A handshake as the one who is called.
    pub(crate) fn respond(&self, rng: &mut impl CryptoRng) -> Result<HandshakeState, Error> {
        self.0.respond(PROLOGUE, rng)
    }
}

/// The two keys of a finished handshake. The nonce of each message is explicit: the caller never
/// seals twice under one, and remembers which it has opened.
pub(crate) struct Transport(StatelessTransportState);

impl Transport {
    pub(crate) fn new(handshake: HandshakeState) -> Option<Self> {
        handshake.into_stateless_transport_mode().ok().map(Self)
    }

    /// Seals `plaintext` into the front of `out`; the length of the ciphertext.
    pub(crate) fn seal(&self, nonce: u64, plaintext: &[u8], out: &mut [u8]) -> Option<usize> {
        self.0.write_message(nonce, plaintext, out).ok()
    }

    /// Opens `ciphertext` into the front of `out`, which must be as long as the ciphertext; the
    /// length of the plaintext.
    pub(crate) fn open(&self, nonce: u64, ciphertext: &[u8], out: &mut [u8]) -> Option<usize> {
        self.0.read_message(nonce, ciphertext, out).ok()
    }
}
