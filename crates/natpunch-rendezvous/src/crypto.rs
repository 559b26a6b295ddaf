//! Keys, seals and MACs of the protocol.

use aws_lc_rs::aead::{
    Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN as SESSION_NONCE_LEN, Nonce, UnboundKey,
};
use blake2::Blake2sMac256;
use blake2::digest::Mac as _;
use chacha20poly1305::{AeadInPlace, KeyInit, XChaCha20Poly1305, XNonce};
use natpunch_noise::HandshakeState;
use natpunch_types::{PeerKey, PresharedKey, SecretKey};
use rand_core::RngCore;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::wire::{CookieBytes, MAC_LEN, NONCE_LEN, Tag};

/// Secret bytes of 32: wiped when they are let go, never shown, compared in constant time.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; 32]>);

impl Key {
    pub(crate) fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl std::ops::Deref for Key {
    type Target = [u8; 32];
    fn deref(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        equal(&**self, &**other)
    }
}

impl Eq for Key {}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// The rendezvous identity of the holder of a WireGuard private key: a key of its own, from which
/// the WireGuard key can't be told.
pub fn identity(wireguard: &SecretKey) -> SecretKey {
    SecretKey::from_bytes(*mac(
        wireguard.expose(),
        &[b"natpunch rendezvous identity v1"],
    ))
}

/// What stands for the admission secret between the nodes of a mesh and one of them that serves it:
/// no secret, but a label. There all use their WireGuard keys as identities, and what they derive
/// here must be of no other use.
pub fn node_admission() -> PresharedKey {
    PresharedKey::from_bytes(*mac(&[0; 32], &[b"natpunch rendezvous of a node v1"]))
}

/// The doorbell of a node, where the server has this admission secret.
pub(crate) fn doorbell_tag(admission: Option<&PresharedKey>, node: &PeerKey) -> Tag {
    let secret = admission.map_or(&[0; 32], PresharedKey::expose);
    short_mac(
        secret,
        &[b"natpunch rendezvous v1 doorbell", node.as_bytes()],
    )
}

/// What everybody has who may speak to a server: made of its public key and the mesh's admission
/// secret.
#[derive(Clone)]
pub(crate) struct HelloKeys {
    mac1: Key,
    cookie: Key,
    /// Mixed into the handshake.
    pub(crate) prologue: [u8; 32],
}

impl HelloKeys {
    pub(crate) fn new(server: &PeerKey, admission: Option<&PresharedKey>) -> Self {
        let secret = admission.map_or(&[0; 32], PresharedKey::expose);
        let key = |label: &[u8]| {
            mac(
                secret,
                &[b"natpunch rendezvous v1 ", label, server.as_bytes()],
            )
        };
        Self {
            mac1: key(b"mac1"),
            cookie: key(b"cookie"),
            prologue: *key(b"prologue"),
        }
    }

    pub(crate) fn mac1(&self, parts: &[u8]) -> [u8; MAC_LEN] {
        short_mac(&self.mac1, &[parts])
    }

    /// Seals what a cookie reply says, bound to the hello that it answers.
    pub(crate) fn seal_cookie(
        &self,
        nonce: &[u8; NONCE_LEN],
        mac1: &[u8],
        text: &mut Vec<u8>,
    ) -> Option<()> {
        XChaCha20Poly1305::new((&*self.cookie).into())
            .encrypt_in_place(XNonce::from_slice(nonce), mac1, text)
            .ok()
    }

    pub(crate) fn open_cookie(
        &self,
        nonce: &[u8; NONCE_LEN],
        mac1: &[u8],
        text: &mut Vec<u8>,
    ) -> Option<()> {
        XChaCha20Poly1305::new((&*self.cookie).into())
            .decrypt_in_place(XNonce::from_slice(nonce), mac1, text)
            .ok()
    }
}

/// The mac2 of a hello: its sender has got this cookie.
pub(crate) fn mac2(cookie: &CookieBytes, text: &[u8]) -> [u8; MAC_LEN] {
    let mut key = Zeroizing::new([0; 32]);
    for (to, from) in key.iter_mut().zip(cookie) {
        *to = *from;
    }
    short_mac(&key, &[b"natpunch rendezvous v1 mac2", text])
}

/// The two keys of a finished handshake: of what its caller says, and of what the other side says.
pub(crate) fn split(handshake: &mut HandshakeState) -> Option<[Key; 2]> {
    natpunch_noise::split(handshake).map(|keys| keys.map(Key))
}

/// Seals in place under a random nonce, which is put in front.
pub(crate) fn seal_random(
    key: &Key,
    aad: &[u8],
    text: &[u8],
    rng: &mut impl RngCore,
) -> Option<Vec<u8>> {
    let mut nonce = [0; NONCE_LEN];
    rng.fill_bytes(&mut nonce);
    let mut sealed = Vec::with_capacity(NONCE_LEN + text.len() + MAC_LEN);
    sealed.extend(nonce);
    let mut text = Zeroizing::new(text.to_vec());
    let cipher = XChaCha20Poly1305::new((&**key).into());
    let tag = cipher
        .encrypt_in_place_detached(XNonce::from_slice(&nonce), aad, &mut text)
        .ok()?;
    sealed.extend(text.iter());
    sealed.extend(tag);
    Some(sealed)
}

pub(crate) fn open_random(key: &Key, aad: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let (text, tag) = text.split_last_chunk::<MAC_LEN>()?;
    let mut text = Zeroizing::new(text.to_vec());
    let cipher = XChaCha20Poly1305::new((&**key).into());
    cipher
        .decrypt_in_place_detached(XNonce::from_slice(nonce), aad, &mut text, tag.into())
        .ok()?;
    Some(text)
}

/// One message of a session: the header, and the text sealed, with which the header is
/// authenticated.
pub(crate) fn seal_message(key: &Key, counter: u64, header: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(header.len() + text.len() + MAC_LEN);
    message.extend(header);
    message.extend(text);
    seal_in_place(key, counter, header.len(), message)
}

/// The same, where the text stands behind its header already.
pub(crate) fn seal_in_place(
    key: &Key,
    counter: u64,
    header_len: usize,
    mut message: Vec<u8>,
) -> Option<Vec<u8>> {
    let (header, text) = message.split_at_mut_checked(header_len)?;
    let cipher = session_cipher(key)?;
    let tag = cipher
        .seal_in_place_separate_tag(session_nonce(counter), Aad::from(&*header), text)
        .ok()?;
    message.extend(tag.as_ref());
    Some(message)
}

pub(crate) fn open_message(
    key: &Key,
    counter: u64,
    header: &[u8],
    sealed: &[u8],
) -> Option<Vec<u8>> {
    let mut text = sealed.to_vec();
    let length = session_cipher(key)?
        .open_in_place(session_nonce(counter), Aad::from(header), &mut text)
        .ok()?
        .len();
    text.truncate(length);
    Some(text)
}

/// aws-lc's ChaCha20-Poly1305: on messages as short as these RustCrypto's takes seven times as
/// long.
fn session_cipher(key: &Key) -> Option<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, &**key)
        .ok()
        .map(LessSafeKey::new)
}

/// Noise's encoding of a counter for ChaChaPoly (12.3): four zero bytes, then the counter,
/// little-endian.
fn session_nonce(counter: u64) -> Nonce {
    let mut nonce = [0; SESSION_NONCE_LEN];
    for (to, from) in nonce.iter_mut().skip(4).zip(counter.to_le_bytes()) {
        *to = from;
    }
    Nonce::assume_unique_for_key(nonce)
}

pub(crate) fn mac(key: &[u8; 32], parts: &[&[u8]]) -> Key {
    let mut mac = <Blake2sMac256 as blake2::digest::KeyInit>::new(key.into());
    parts.iter().for_each(|part| mac.update(part));
    Key::new(mac.finalize().into_bytes().into())
}

pub(crate) fn short_mac<const N: usize>(key: &[u8; 32], parts: &[&[u8]]) -> [u8; N] {
    let long = mac(key, parts);
    std::array::from_fn(|i| long.get(i).copied().unwrap_or_default())
}

/// Names a blob, so that neither side sends what the other has.
pub(crate) fn digest(blob: &[u8]) -> [u8; 8] {
    short_mac(&[0; 32], &[b"natpunch rendezvous v1 digest", blob])
}

pub(crate) fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

pub(crate) fn random_key(rng: &mut impl RngCore) -> Key {
    let mut key = Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut *key);
    Key(key)
}

#[cfg(test)]
mod tests {
    use zeroize::ZeroizeOnDrop;

    use super::*;
    use crate::frame::Notice;
    use crate::relay::Command;
    use crate::relay::bind::{Message, State};

    #[test]
    fn no_secret_is_shown_and_each_is_wiped() {
        const fn is_wiped<T: ZeroizeOnDrop>(_: &T) {}
        // 0xa7 is 167.
        let key = || Key::new([0xa7; 32]);
        is_wiped(&key().0);
        let keys = [key(), key()];
        let registered = [std::net::SocketAddr::from(([192, 0, 2, 1], 1)); 2];
        for shown in [
            format!("{:?}", key()),
            format!(
                "{:#?}",
                Notice::RelayOffer {
                    tag: [1; 16],
                    port: 2,
                    allocation: 3,
                    key: key()
                }
            ),
            format!(
                "{:?}",
                Command::Open {
                    allocation: 1,
                    keys,
                    registered
                }
            ),
            format!(
                "{:?}",
                Message {
                    allocation: 1,
                    nonce: [2; 8],
                    cookie: [0xa7; 16],
                    state: State::Unproven
                }
            ),
        ] {
            assert!(
                !shown.contains("167") && !shown.to_lowercase().contains("a7"),
                "{shown}"
            );
        }
    }

    #[test]
    fn keys_are_equal_only_if_all_their_bytes_are() {
        let key = Key::new([7; 32]);
        assert_eq!(key, key.clone());
        for at in 0..32 {
            let mut other = [7; 32];
            other[at] ^= 1;
            assert_ne!(key, Key::new(other), "{at}");
        }
    }
}
