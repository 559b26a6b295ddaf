//! WireGuard keys: 32 bytes, written in base64 as `wg` writes them; and the port that follows from
//! one.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::{Blake2s256, Digest as _};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Why a text is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyError {
    /// The text is not base64.
    NotBase64,
    /// The text decodes to another number of bytes than 32.
    WrongLength(usize),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBase64 => f.write_str("not base64"),
            Self::WrongLength(n) => write!(f, "decodes to {n} bytes, a key has 32"),
        }
    }
}

impl std::error::Error for KeyError {}

fn decode(text: &str) -> Result<[u8; 32], KeyError> {
    let bytes = Zeroizing::new(
        STANDARD
            .decode(text.trim())
            .map_err(|_| KeyError::NotBase64)?,
    );
    <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| KeyError::WrongLength(bytes.len()))
}

/// A WireGuard public key: the identity of a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey([u8; 32]);

impl PeerKey {
    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight characters of the key in base64: enough for a log line, not for an identity.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", self.short())
    }
}

impl FromStr for PeerKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl serde::Serialize for PeerKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PeerKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Wiped on drop, compared in constant time, never printed: `Debug` shows a placeholder and
        /// there is no `Display` and no `Serialize`.
        #[derive(Clone, Zeroize, ZeroizeOnDrop)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The key with these bytes.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The bytes of the key. Whoever calls this keeps them out of logs and wipes copies.
            pub const fn expose(&self) -> &[u8; 32] {
                &self.0
            }

            /// The key in base64, for a key file or for WireGuard; wiped on drop.
            pub fn expose_base64(&self) -> Zeroizing<String> {
                Zeroizing::new(STANDARD.encode(self.0))
            }
        }

        impl FromStr for $name {
            type Err = KeyError;
            fn from_str(text: &str) -> Result<Self, KeyError> {
                decode(text).map(Self)
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.ct_eq(&other.0).into()
            }
        }

        impl Eq for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

secret!(
    /// A WireGuard private key.
    SecretKey
);

impl SecretKey {
    /// The public key that belongs to this private key (RFC 7748, 6.1).
    pub fn public_key(&self) -> PeerKey {
        let secret = x25519_dalek::StaticSecret::from(self.0);
        PeerKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }
}

secret!(
    /// A WireGuard preshared key, shared by one pair of peers.
    PresharedKey
);

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
    fn a_key_is_written_as_wg_writes_it() {
        let text = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let key: PeerKey = text.parse().unwrap();
        assert_eq!(key.as_bytes()[31], 31);
        assert_eq!(key.to_string(), text);
    }

    #[test]
    fn a_public_key_is_that_of_rfc_7748() {
        let hex = |text: &str| {
            std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
        };
        let private = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";
        let public = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f";
        assert_eq!(
            SecretKey::from_bytes(hex(private)).public_key(),
            PeerKey::from_bytes(hex(public))
        );
    }

    #[test]
    fn a_bad_key_says_why() {
        assert_eq!("?".parse::<PeerKey>(), Err(KeyError::NotBase64));
        assert_eq!("AAEC".parse::<PeerKey>(), Err(KeyError::WrongLength(3)));
    }

    #[test]
    fn a_secret_is_never_printed() {
        let key = SecretKey::from_bytes([7; 32]);
        assert_eq!(format!("{key:?}"), "SecretKey(redacted)");
    }

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
