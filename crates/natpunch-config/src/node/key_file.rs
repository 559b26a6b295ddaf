//! Files that hold a secret: one key in base64, readable by its owner only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use natpunch_os::secret::{self, SecretError};
use natpunch_os::{durable, reason};
use natpunch_types::{KeyError, Password, PasswordError, SecretKey};
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
    let not_a_key = |problem: &dyn std::fmt::Display| KeyFileError {
        absent: false,
        problem: format!("{shown} does not hold a key: {problem}"),
        help: format!("it holds one line of 44 characters, as `natpunch {what}` prints it"),
    };
    if text.trim() == ALL_ZERO {
        return Err(not_a_key(&"what is there is all zero"));
    }
    let parsed = text.trim().parse();
    parsed.map_err(|error: KeyError| not_a_key(&error))
}

/// Reads the file of a password after looking at its owner and mode.
///
/// # Errors
/// As [`secret::read`], or if it does not hold one line.
pub(crate) fn read_password(file: &Path) -> Result<Password, KeyFileError> {
    let shown = actual(file)?.display().to_string();
    let text = secret::read(file, LONGEST).map_err(|error| {
        let help = match &error {
            SecretError::TooLong { .. }
            | SecretError::NotText { .. }
            | SecretError::Empty { .. } => ONE_LINE.to_owned(),
            SecretError::Io { .. } if error.is_absent() => {
                format!("write the password there: (umask 077; cat > {shown})")
            }
            _ => error.help("keygen"),
        };
        KeyFileError {
            help,
            ..KeyFileError::of(&error, "keygen")
        }
    })?;
    text.parse().map_err(|error: PasswordError| KeyFileError {
        absent: false,
        problem: format!("{shown} does not hold a password: {error}"),
        help: ONE_LINE.to_owned(),
    })
}

const ONE_LINE: &str = "it holds one line: the password, as the server has it";

/// No key that anybody made.
const ALL_ZERO: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

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
/// whether it is new. Of two that make it at once both get the same key. A credential is never
/// made.
///
/// # Errors
/// What is wrong with the file that is there, or why it can't be made.
pub fn new_key_file(file: &Path) -> Result<(SecretKey, bool), ConfigErrors> {
    let fail = |problem: String, help: &str| ConfigErrors::of(file, problem, help);
    match read::<SecretKey>(file, "keygen") {
        Ok(key) => return Ok((key, false)),
        Err(error) if error.absent && secret::credential(file).is_none() => {}
        Err(error) => return Err(fail(error.problem, &error.help)),
    }
    let key = new_private_key().map_err(|error| {
        fail(
            format!("the system gives no random bytes: {error}"),
            "try again",
        )
    })?;
    match write(file, &key.expose_base64()) {
        Ok(()) => Ok((key, true)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            read_key_file(file).map(|key| (key, false))
        }
        Err(error) => {
            let help = match error.kind() {
                io::ErrorKind::NotFound => {
                    "make its directory first, writable by the user that runs natpunch"
                }
                io::ErrorKind::PermissionDenied => {
                    "the user that runs natpunch must own the file and its directory"
                }
                _ => "name a file that can be made",
            };
            let problem = format!("can't make this key file: {}", reason(&error));
            Err(fail(problem, help))
        }
    }
}

/// The private key of a file.
///
/// # Errors
/// What is wrong with the file.
pub fn read_key_file(file: &Path) -> Result<SecretKey, ConfigErrors> {
    read(file, "keygen").map_err(|error| {
        // A new file would hold another key than the one that is asked for; a credential is given.
        let is_to_be_made = error.absent && secret::credential(file).is_none();
        let help = match is_to_be_made {
            true => "name the file that holds this key",
            false => &error.help,
        };
        ConfigErrors::of(file, error.problem.as_str(), help)
    })
}

/// Reads the file of a password after looking at its owner and mode.
///
/// # Errors
/// What is wrong with it, and what would help.
pub fn read_password_file(file: &Path) -> Result<Password, ConfigErrors> {
    read_password(file)
        .map_err(|error| ConfigErrors::of(file, error.problem.as_str(), error.help.as_str()))
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

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn a_key_that_is_made_once_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let (first, new) = new_key_file(&path).unwrap();
        assert!(new);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let (second, new) = new_key_file(&path).unwrap();
        assert!(second == first && !new);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn starts_at_once_agree_on_one_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let start = || new_key_file(&path).unwrap();
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            let ended = threads.into_iter().map(|thread| thread.join().unwrap());
            ended.collect()
        });
        let (kept, _) = new_key_file(&path).unwrap();
        assert!(keys.iter().all(|(key, _)| *key == kept));
        assert_eq!(keys.iter().filter(|(_, new)| *new).count(), 1);
    }

    #[test]
    fn what_is_no_key_of_its_owner_alone_is_refused_and_left_alone() {
        let key = SecretKey::from_bytes([7; 32]).expose_base64();
        for (content, mode, words) in [
            (&b""[..], 0o600, "is empty"),
            (b"\n", 0o600, "is empty"),
            (b"\xff\xfe", 0o600, "is not text"),
            (b"hello", 0o600, "not base64"),
            (b"AAEC", 0o600, "3 bytes"),
            (&[b'A'; 5000], 0o600, "is longer than"),
            (ALL_ZERO.as_bytes(), 0o600, "all zero"),
            (key.as_bytes(), 0o604, "read by others"),
            (key.as_bytes(), 0o640, "read by others"),
            (key.as_bytes(), 0o644, "read by others"),
        ] {
            let (_directory, path) = file(content, mode);
            let error = new_key_file(&path).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("help: "), "{error}");
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        let (_directory, path) = file(key.as_bytes(), 0o400);
        assert!(new_key_file(&path).is_ok());
    }

    #[test]
    fn the_file_of_a_password_holds_one_line_and_its_blanks_are_kept() {
        let (_directory, path) = file(b" open sesame \n", 0o600);
        assert_eq!(read_password(&path).unwrap().expose(), " open sesame ");
        for (content, mode, problem, help) in [
            (&b"\n"[..], 0o600, "is empty", "one line"),
            (b"one\ntwo\n", 0o600, "does not hold a password", "one line"),
            (&[b'x'; 2000], 0o600, "2000 bytes", "one line"),
            (b"open sesame", 0o644, "read by others", "chmod 600"),
        ] {
            let (_directory, path) = file(content, mode);
            let error = read_password(&path).unwrap_err();
            assert!(error.problem.contains(problem), "{error:?}");
            assert!(error.help.contains(help), "{error:?}");
        }
        let error = read_password(&path.with_file_name("none")).unwrap_err();
        assert!(error.absent && error.help.contains("cat >"), "{error:?}");
    }

    #[test]
    fn a_key_is_made_only_where_a_file_can_be() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = directory.path().join("not/there");
        let error = new_key_file(&nowhere).unwrap_err().to_string();
        assert!(error.contains("make its directory first"), "{error}");
        assert!(new_key_file(directory.path()).is_err());
        let credential = Path::new("credential:natpunch-test.key");
        let error = new_key_file(credential).unwrap_err().to_string();
        assert!(error.contains("LoadCredential="), "{error}");
    }
}
