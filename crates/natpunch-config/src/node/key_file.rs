//! Files that hold a secret: one key in base64, readable by its owner only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use natpunch_os::secret::{self, SecretError};
use natpunch_os::{durable, reason};
use natpunch_types::{KeyError, SecretKey};
use zeroize::Zeroizing;

use crate::report::error::ConfigErrors;

/// Why a key file can't be used, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyFileError {
    /// The file is not there.
    pub(crate) absent: bool,
    pub(crate) problem: String,
    pub(crate) help: String,
}

impl KeyFileError {
    fn of(error: &SecretError, what: &str) -> Self {
        Self {
            absent: error.is_absent(),
            problem: error.to_string(),
            help: error.help(what),
        }
    }
}

/// Where the file really is: a credential is in the directory that systemd made for the service.
///
/// # Errors
/// There is no such directory.
pub(crate) fn actual(file: &Path) -> Result<PathBuf, KeyFileError> {
    secret::actual(file).map_err(|error| KeyFileError::of(&error, "keygen"))
}

/// Reads a key file after looking at its owner and mode.
///
/// # Errors
/// As [`read_text`], or if it does not hold one key.
pub(crate) fn read<K: FromStr<Err = KeyError>>(file: &Path, what: &str) -> Result<K, KeyFileError> {
    let text = read_text(file, what, LONGEST)?;
    let shown = actual(file)?.display().to_string();
    text.trim().parse().map_err(|error: KeyError| KeyFileError {
        absent: false,
        problem: format!("{shown} does not hold a key: {error}"),
        help: format!("it holds one line of 44 characters, as `natpunch {what}` prints it"),
    })
}

/// [`secret::read`] with the words of a configuration error; `what` is the command of natpunch that
/// prints such a secret.
///
/// # Errors
/// As [`secret::read`].
pub(crate) fn read_text(
    file: &Path,
    what: &str,
    longest: usize,
) -> Result<Zeroizing<String>, KeyFileError> {
    secret::read(file, longest).map_err(|error| KeyFileError::of(&error, what))
}

/// A new private key from the system's random numbers.
///
/// # Errors
/// The system gives none.
pub fn new_private_key() -> io::Result<SecretKey> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    getrandom::fill(bytes.as_mut_slice()).map_err(io::Error::other)?;
    // Clamped as Curve25519 does it anyway (RFC 7748, 5), so that the key looks like those of
    // `wg genkey`.
    let [first, .., last] = &mut *bytes;
    *first &= 0xf8;
    *last = (*last & 0x7f) | 0x40;
    Ok(SecretKey::from_bytes(*bytes))
}

/// The private key of a file: the one that it holds, or a new one if it is not there. The flag says
/// whether it is new.
///
/// # Errors
/// What is wrong with the file that is there, or why it can't be made.
pub fn new_key_file(file: &Path) -> Result<(SecretKey, bool), ConfigErrors> {
    let fail = |problem: String, help: &str| ConfigErrors::of(file, problem, help);
    match read::<SecretKey>(file, "keygen") {
        Ok(key) => return Ok((key, false)),
        Err(error) if error.absent => {}
        Err(error) => return Err(fail(error.problem, &error.help)),
    }
    let key = new_private_key().map_err(|error| {
        fail(
            format!("the system gives no random bytes: {error}"),
            "try again",
        )
    })?;
    write(file, &key.expose_base64()).map_err(|error| {
        fail(
            format!("can't make this key file: {}", reason(&error)),
            "name a file that can be made",
        )
    })?;
    Ok((key, true))
}

/// The private key of a file.
///
/// # Errors
/// What is wrong with the file.
pub fn read_key_file(file: &Path) -> Result<SecretKey, ConfigErrors> {
    read(file, "keygen").map_err(|error| {
        // A new key would be another one than that which is asked for.
        let help = match error.absent {
            true => "name the file that holds this key",
            false => &error.help,
        };
        ConfigErrors::of(file, error.problem.as_str(), help)
    })
}

/// Makes a file with secrets, readable by its owner only.
///
/// # Errors
/// It is there already, or can't be made.
pub fn create_secret_file(file: &Path, content: &[u8]) -> Result<(), ConfigErrors> {
    durable::create(file, content, 0o600).map_err(|error| ConfigErrors::cannot_make(file, &error))
}

/// Makes a key file that is not there, readable by its owner only.
pub(crate) fn write(file: &Path, base64: &str) -> io::Result<()> {
    durable::create(
        file,
        Zeroizing::new(format!("{base64}\n")).as_bytes(),
        0o600,
    )
}

/// Longest file that is read, in bytes; a key has 44.
const LONGEST: usize = 4096;

/// Whether something of that name is there.
pub(crate) fn exists(file: &Path) -> bool {
    actual(file).is_ok_and(|file| fs::symlink_metadata(file).is_ok())
}
