//! The age identities of this host, which open the values of the mesh file that are encrypted to
//! it, and whom a value is encrypted to. What is opened exists in memory only, and is wiped.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use age::armor::{ArmoredReader, ArmoredWriter, Format};
use age::secrecy::ExposeSecret as _;
use age::x25519::{Identity, Recipient};
use age::{DecryptError, Decryptor, Encryptor};
use natpunch_types::KeyError;
use zeroize::Zeroizing;

use super::key_file::{self, KeyFileError};
use crate::file::encrypted::{Encrypted, LONGEST_SECRET, MOST_RECIPIENTS};

/// Where a node's identity is if nothing else is said.
pub const DEFAULT_IDENTITY_FILE: &str = "/etc/natpunch/age.key";

/// Most identities of a host.
const MOST_IDENTITIES: usize = 16;
/// Longest identity file, in bytes.
const LONGEST_IDENTITY_FILE: usize = 16 << 10;

/// Why a value can't be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// It is for others.
    NotForUs,
    /// It was changed after it was made.
    Damaged,
    /// It holds no key.
    NotAKey(KeyError),
}

/// The age identities of this host.
pub(crate) struct Identities {
    file: PathBuf,
    keys: Vec<Identity>,
}

impl Identities {
    /// Reads an identity file, as `natpunch keygen --age` and `age-keygen` make it.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(crate) fn read(file: &Path) -> Result<Self, KeyFileError> {
        let text = key_file::read_text(file, "keygen --age", LONGEST_IDENTITY_FILE)?;
        let fail = |problem: &str| KeyFileError {
            absent: false,
            problem: format!("{} {problem}", file.display()),
            help: "it holds a line AGE-SECRET-KEY-1…, as `natpunch keygen --age` prints it"
                .to_owned(),
        };
        let mut keys = Vec::new();
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            keys.push(
                line.parse::<Identity>()
                    .map_err(|_| fail("holds something else than age identities"))?,
            );
            if keys.len() > MOST_IDENTITIES {
                return Err(fail("holds too many age identities"));
            }
        }
        if keys.is_empty() {
            Err(fail("holds no age identity"))
        } else {
            Ok(Self {
                file: file.to_owned(),
                keys,
            })
        }
    }

    /// The file that they are from.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// What others encrypt to.
    pub(crate) fn recipients(&self) -> String {
        self.keys
            .iter()
            .map(|key| key.to_public().to_string())
            .collect::<Vec<_>>()
            .join(" or ")
    }

    /// Opens a value that holds a key.
    pub(crate) fn open<K: FromStr<Err = KeyError>>(&self, value: &Encrypted) -> Result<K, Closed> {
        let decryptor = Decryptor::new_buffered(ArmoredReader::new(value.armor().as_bytes()))
            .map_err(|_| Closed::Damaged)?;
        let mut plain =
            match decryptor.decrypt(self.keys.iter().map(|key| key as &dyn age::Identity)) {
                Ok(plain) => plain.take(LONGEST_SECRET as u64),
                Err(DecryptError::NoMatchingKeys) => return Err(Closed::NotForUs),
                Err(_) => return Err(Closed::Damaged),
            };
        // Its room is there before it is filled, so that no copy of it is left behind.
        let mut secret = Zeroizing::new(String::with_capacity(LONGEST_SECRET));
        plain
            .read_to_string(&mut secret)
            .map_err(|_| Closed::Damaged)?;
        secret.trim().parse().map_err(Closed::NotAKey)
    }
}

/// A new identity: the text of its file, and the recipient that others encrypt to.
pub fn new_age_identity() -> (Zeroizing<String>, String) {
    let identity = Identity::generate();
    let recipient = identity.to_public().to_string();
    let secret = identity.to_string();
    (
        Zeroizing::new(format!(
            "# public key: {recipient}\n{}\n",
            secret.expose_secret()
        )),
        recipient,
    )
}

/// The recipients of the identities in the text of an identity file; `None` if it holds something
/// else, or none.
pub fn age_recipients(text: &str) -> Option<Vec<String>> {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let recipients: Option<Vec<String>> = lines
        .map(|line| {
            line.parse::<Identity>()
                .ok()
                .map(|key| key.to_public().to_string())
        })
        .collect();
    recipients.filter(|recipients| !recipients.is_empty())
}

/// Whom something is encrypted to: `age1…`.
#[derive(Clone)]
pub struct AgeRecipient(Recipient);

impl fmt::Debug for AgeRecipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for AgeRecipient {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| {
            if text.starts_with("AGE-SECRET-KEY-") {
                "this is an identity, which is secret; its recipient begins with age1".to_owned()
            } else {
                "not a recipient of age, which begins with age1".to_owned()
            }
        })
    }
}

/// The cost of trying a code, as the logarithm of scrypt's N (RFC 7914): 32 MiB for each try.
const CODE_COST: u8 = 15;

/// Encrypts to a code that people type, as `age -p` does.
///
/// # Errors
/// age's.
pub fn age_seal(plain: &[u8], code: &str) -> Result<Vec<u8>, String> {
    let mut recipient = age::scrypt::Recipient::new(code.to_owned().into());
    recipient.set_work_factor(CODE_COST);
    let to = std::iter::once(&recipient as &dyn age::Recipient);
    let encryptor = Encryptor::with_recipients(to).map_err(|error| error.to_string())?;
    let mut sealed = Vec::new();
    let written = encryptor.wrap_output(&mut sealed).and_then(|mut writer| {
        std::io::Write::write_all(&mut writer, plain)?;
        writer.finish().map(|_| ())
    });
    written.map_err(|error| error.to_string())?;
    Ok(sealed)
}

/// Opens what [`age_seal`] made. `None`: the code is another, or it was changed.
pub fn age_unseal(sealed: &[u8], code: &str) -> Option<Vec<u8>> {
    let mut identity = age::scrypt::Identity::new(code.to_owned().into());
    identity.set_max_work_factor(CODE_COST);
    let decryptor = Decryptor::new_buffered(sealed).ok()?;
    let opened = decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity));
    // As much as there is room for, so that no copy of it is left behind.
    let mut plain = Vec::with_capacity(sealed.len());
    opened
        .ok()?
        .take(sealed.len() as u64)
        .read_to_end(&mut plain)
        .ok()?;
    Some(plain)
}

/// Encrypts a key to recipients, in armor.
///
/// # Errors
/// There are none, or too many.
pub fn age_encrypt(key: &str, recipients: &[AgeRecipient]) -> Result<String, String> {
    if recipients.len() > MOST_RECIPIENTS {
        return Err(format!("more than {MOST_RECIPIENTS} recipients"));
    }
    let to = recipients
        .iter()
        .map(|recipient| &recipient.0 as &dyn age::Recipient);
    let encryptor = Encryptor::with_recipients(to).map_err(|error| error.to_string())?;
    let mut armor = Vec::new();
    let written = ArmoredWriter::wrap_output(&mut armor, Format::AsciiArmor).and_then(|armored| {
        let mut writer = encryptor.wrap_output(armored)?;
        std::io::Write::write_all(&mut writer, key.as_bytes())?;
        writer.finish()?.finish().map(|_| ())
    });
    written.map_err(|error| error.to_string())?;
    String::from_utf8(armor).map_err(|error| error.to_string())
}
