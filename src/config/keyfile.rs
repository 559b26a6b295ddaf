//! Files that hold a secret: one key in base64, readable by its owner only.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use natpunch_types::{KeyError, SecretKey};
use zeroize::Zeroizing;

use super::error::{ConfigError, ConfigErrors};
use super::load::reason;
use super::replace;

/// Why a key file can't be used, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyFileError {
    /// The file is not there.
    pub(super) absent: bool,
    pub(super) problem: String,
    pub(super) help: String,
}

/// The name of a credential, if a path means one: `credential:NAME`.
pub(super) fn credential(file: &Path) -> Option<&str> {
    file.to_str()?.strip_prefix("credential:")
}

/// Where the file really is: a credential is in the directory that systemd made for the service.
///
/// # Errors
/// There is no such directory.
pub(super) fn actual(file: &Path) -> Result<PathBuf, KeyFileError> {
    let Some(name) = credential(file) else {
        return Ok(file.to_owned());
    };
    match std::env::var_os("CREDENTIALS_DIRECTORY") {
        Some(directory) => Ok(PathBuf::from(directory).join(name)),
        None => Err(KeyFileError {
            absent: true,
            problem: format!(
                "the credential `{name}` is not there: systemd gave this process none"
            ),
            help: format!(
                "add LoadCredential={name}:/path/of/the/key to the unit that runs natpunch"
            ),
        }),
    }
}

/// Reads a key file after looking at its owner and mode.
///
/// # Errors
/// As [`read_text`], or if it does not hold one key.
pub(super) fn read<K: FromStr<Err = KeyError>>(file: &Path, what: &str) -> Result<K, KeyFileError> {
    let text = read_text(file, what, LONGEST)?;
    let shown = actual(file)?.display().to_string();
    text.trim().parse().map_err(|error: KeyError| KeyFileError {
        absent: false,
        problem: format!("{shown} does not hold a key: {error}"),
        help: format!("it holds one line of 44 characters, as `natpunch {what}` prints it"),
    })
}

/// Reads a file with a secret after looking at its owner and mode.
///
/// # Errors
/// If it can't be read, if others than its owner may read it, if its owner is neither root nor this
/// process' user, or if it is empty. No more than `longest` bytes are read.
pub(super) fn read_text(
    file: &Path,
    what: &str,
    longest: usize,
) -> Result<Zeroizing<String>, KeyFileError> {
    // systemd lets the service's user in by an access list, which shows as bits of the group; its
    // directory is private.
    let others = if credential(file).is_some() {
        0o007
    } else {
        0o077
    };
    let file = &*actual(file)?;
    let shown = file.display();
    let fail = |problem: String, help: String| KeyFileError {
        absent: false,
        problem,
        help,
    };
    // O_NONBLOCK: opening a FIFO would wait for a writer.
    let mut open = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(file)
        .map_err(|error| {
            let absent = error.kind() == std::io::ErrorKind::NotFound;
            let help = if absent {
                format!("make it: (umask 077; natpunch {what} > {shown})")
            } else {
                "run natpunch as the owner of the file, or as root".to_owned()
            };
            KeyFileError {
                absent,
                problem: format!("can't read {shown}: {}", reason(&error)),
                help,
            }
        })?;
    let meta = open.metadata().map_err(|error| {
        fail(
            format!("can't read {shown}: {}", reason(&error)),
            String::new(),
        )
    })?;
    if !meta.is_file() {
        return Err(fail(
            format!("{shown} is not a file"),
            "name a file that holds the key".to_owned(),
        ));
    }
    let mode = meta.mode() & 0o7777;
    if mode & others != 0 {
        let problem = format!("{shown} can be read by others than its owner (mode {mode:04o})");
        return Err(fail(
            problem,
            format!("chmod 600 {shown}; if others may have read it, make a new key"),
        ));
    }
    let user = nix::unistd::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != user {
        let problem = format!("{shown} belongs to another user (uid {})", meta.uid());
        return Err(fail(problem, format!("chown root {shown}")));
    }
    let mut text = Zeroizing::new(String::with_capacity(longest));
    open.by_ref()
        .take(longest as u64)
        .read_to_string(&mut text)
        .map_err(|error| {
            fail(
                format!("can't read {shown}: {}", reason(&error)),
                format!("it holds what `natpunch {what}` prints"),
            )
        })?;
    if text.trim().is_empty() {
        return Err(fail(
            format!("{shown} is empty"),
            format!("it holds what `natpunch {what}` prints"),
        ));
    }
    Ok(text)
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
    let fail = |problem: String, help: &str| {
        let error = ConfigError::of(file, problem).help(help);
        ConfigErrors::new(vec![error], Arc::default())
    };
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

/// Makes a key file that is not there, readable by its owner only.
pub(super) fn write(file: &Path, base64: &str) -> io::Result<()> {
    replace::create(
        file,
        Zeroizing::new(format!("{base64}\n")).as_bytes(),
        0o600,
    )
}

/// Longest file that is read, in bytes; a key has 44.
const LONGEST: usize = 4096;

/// Whether something of that name is there.
pub(super) fn exists(file: &Path) -> bool {
    actual(file).is_ok_and(|file| fs::symlink_metadata(file).is_ok())
}
