//! The Noise handshake of the rendezvous protocols: snow's state machine, aws-lc's X25519, ring's
//! ChaCha20-Poly1305, and nothing random that was not handed in.
//!
//! snow's own X25519 takes more than twice the time of aws-lc's, and a rendezvous server does
//! little else. aws-lc also refuses a Diffie-Hellman result of all zeros, which a peer that sends a
//! point of small order would force.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};
use natpunch_types::{PeerKey, SecretKey};
use rand_core::CryptoRng;
use snow::Builder;
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver, RingResolver};
use snow::types::{Cipher, Dh, Hash, Random};
pub use snow::{Error, HandshakeState, StatelessTransportState};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// `Noise_IK_25519_ChaChaPoly_BLAKE2s`. `None` can't happen: a test parses it.
static PARAMS: LazyLock<Option<NoiseParams>> =
    LazyLock::new(|| "Noise_IK_25519_ChaChaPoly_BLAKE2s".parse().ok());

/// A static key pair, derived once.
#[derive(Clone)]
pub struct Identity(Arc<KeyPair>);

struct KeyPair {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
    key: agreement::PrivateKey,
}

impl KeyPair {
    fn new(private: &[u8]) -> Option<Self> {
        let key = agreement::PrivateKey::from_private_key(&X25519, private).ok()?;
        let public = key.compute_public_key().ok()?.as_ref().try_into().ok()?;
        Some(Self {
            private: Zeroizing::new(private.try_into().ok()?),
            public,
            key,
        })
    }
}

impl Identity {
    /// `None` for an all-zero key, which is no key but a mistake.
    pub fn new(private: &SecretKey) -> Option<Self> {
        if bool::from(private.expose().ct_eq(&[0; 32])) {
            return None;
        }
        Some(Self(Arc::new(KeyPair::new(private.expose())?)))
    }

    /// Its public key.
    pub fn public(&self) -> PeerKey {
        PeerKey::from_bytes(self.0.public)
    }

    /// A handshake as the one who calls, to the holder of `remote`. The prologue is mixed in, so
    /// that another protocol's messages never fit.
    ///
    /// # Errors
    /// None that an input can cause.
    pub fn initiate(
        &self,
        remote: &PeerKey,
        prologue: &[u8],
        rng: &mut impl CryptoRng,
    ) -> Result<HandshakeState, Error> {
        self.builder(prologue, rng)?
            .remote_public_key(remote.as_bytes())?
            .build_initiator()
    }

    /// A handshake as the one who is called.
    ///
    /// # Errors
    /// None that an input can cause.
    pub fn respond(
        &self,
        prologue: &[u8],
        rng: &mut impl CryptoRng,
    ) -> Result<HandshakeState, Error> {
        self.builder(prologue, rng)?.build_responder()
    }

    fn builder<'a>(
        &'a self,
        prologue: &'a [u8],
        rng: &mut impl CryptoRng,
    ) -> Result<Builder<'a>, Error> {
        let mut ephemeral = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *ephemeral);
        let resolver = Resolver {
            identity: self.0.clone(),
            ephemeral,
        };
        Builder::with_resolver(PARAMS.clone().ok_or(Error::Input)?, Box::new(resolver))
            .local_private_key(&*self.0.private)?
            .prologue(prologue)
    }
}

/// The two keys of a finished handshake: from the one who called, and from the one who was called.
/// `None` before it is finished.
pub fn split(handshake: &mut HandshakeState) -> Option<[Zeroizing<[u8; 32]>; 2]> {
    let ((from_caller, from_called), true) = (
        handshake.dangerously_get_raw_split(),
        handshake.is_handshake_finished(),
    ) else {
        return None;
    };
    Some([Zeroizing::new(from_caller), Zeroizing::new(from_called)])
}

struct Resolver {
    identity: Arc<KeyPair>,
    ephemeral: Zeroizing<[u8; 32]>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Once(Some(self.ephemeral.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| {
            Box::new(Curve25519 {
                known: self.identity.clone(),
                pair: None,
            }) as Box<dyn Dh>
        })
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        RingResolver.resolve_cipher(choice)
    }
}

/// Gives the one ephemeral key of a handshake, and then nothing.
struct Once(Option<Zeroizing<[u8; 32]>>);

impl Random for Once {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        let dest: &mut [u8; 32] = dest.try_into().map_err(|_| Error::Rng)?;
        *dest = *self.0.take().ok_or(Error::Rng)?;
        Ok(())
    }
}

/// X25519 by aws-lc. The static pair is taken from the [`Identity`] instead of being derived for
/// each handshake.
struct Curve25519 {
    known: Arc<KeyPair>,
    pair: Option<Arc<KeyPair>>,
}

impl Dh for Curve25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, private: &[u8]) {
        self.pair = if bool::from(self.known.private.as_slice().ct_eq(private)) {
            Some(self.known.clone())
        } else {
            KeyPair::new(private).map(Arc::new)
        };
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        let mut private = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(&mut *private)?;
        self.pair = Some(Arc::new(KeyPair::new(&*private).ok_or(Error::Dh)?));
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        self.pair.as_ref().map_or(&[0; 32], |pair| &pair.public)
    }

    fn privkey(&self) -> &[u8] {
        self.pair.as_ref().map_or(&[0; 32], |pair| &*pair.private)
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let pair = self.pair.as_ref().ok_or(Error::Dh)?;
        // snow passes its whole buffer, which is sized for the largest curve that it knows.
        let public = UnparsedPublicKey::new(&X25519, public.get(..32).ok_or(Error::Dh)?);
        agreement::agree(&pair.key, public, Error::Dh, |secret| {
            out.get_mut(..32).ok_or(Error::Dh)?.copy_from_slice(secret);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::*;

    #[test]
    fn the_protocol_name_is_one_that_snow_knows() {
        assert!(PARAMS.is_some());
    }

    #[test]
    fn an_all_zero_private_key_is_no_identity() {
        assert!(Identity::new(&SecretKey::from_bytes([0; 32])).is_none());
    }

    #[test]
    fn a_point_of_small_order_is_refused() {
        let identity = Identity::new(&SecretKey::from_bytes([7; 32])).unwrap();
        for point in [[0; 32], {
            let mut one = [0; 32];
            one[0] = 1;
            one
        }] {
            let mut handshake = identity
                .initiate(
                    &PeerKey::from_bytes(point),
                    b"",
                    &mut ChaCha20Rng::from_seed([1; 32]),
                )
                .unwrap();
            assert_eq!(
                handshake.write_message(&[0; 8], &mut [0; 256]),
                Err(Error::Dh)
            );
        }
    }
}
