//! The server's key file: made on first start, refused when it is anything but a private key that
//! only we can read.
//!
//! The server's identity is what every client pins, so a start never goes on with a damaged, shared
//! or empty key, and never makes a new identity where there was one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use natpunch_types::{KeyError, SecretKey};
use zeroize::{Zeroize as _, Zeroizing};

/// A key file is 45 bytes; anything much longer is something else.
const MAX_FILE: u64 = 256;

/// Why the server has no key to start with.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It can't be made, opened or read.
    #[error("{}: can't {action} the key file: {source}\n  hint: {hint}", path.display())]
    Io {
        /// The key file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The error of the system.
        source: io::Error,
        /// What would help.
        hint: &'static str,
    },
    /// Others than its owner may read or write it.
    #[error(
        "{}: others can read the server's private key (mode {mode:04o})\n  hint: chmod 600 {}; \
         if others may have seen it, remove it: a new key is made at the next start",
        path.display(), path.display()
    )]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is a credential, and systemd gave this process none of that name.
    #[error(
        "credential:{name}: systemd gave this process no such credential\n  hint: add LoadCredential={name}:/path/of/the/file \
         to the unit that runs the server"
    )]
    NoCredential {
        /// What follows `credential:`.
        name: String,
    },
    /// It is not a regular file.
    #[error("{}: the key file is not a regular file\n  hint: --key-file names a file, not a directory", path.display())]
    NotAFile {
        /// The key file.
        path: PathBuf,
    },
    /// Its content is not a private key.
    #[error(
        "{}: not a private key: {problem}\n  hint: the file holds one key as `natpunch keygen` prints it; \
         remove it, and a new one is made at the next start (with a new public key for all clients)",
        path.display()
    )]
    Invalid {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        problem: Problem,
    },
}

/// What is wrong with the content of a key file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Nothing in it.
    #[error("the file is empty")]
    Empty,
    /// Too much in it.
    #[error("the file is longer than a key")]
    TooLong,
    /// Not text.
    #[error("the file is not text")]
    NotText,
    /// All bytes are zero.
    #[error("the key is all zero")]
    Zero,
    /// Text, but no key.
    #[error("{0}")]
    Key(KeyError),
}

/// The name of a credential of systemd's, if a path means one: `credential:NAME`.
fn credential(path: &Path) -> Option<&str> {
    path.to_str()?.strip_prefix("credential:")
}

/// Where a key file really is: a credential is in the directory that systemd made for the service.
///
/// # Errors
/// systemd gave this process no credentials, or the name is none.
pub(in crate::server) fn actual(path: &Path) -> Result<PathBuf, KeyFileError> {
    let Some(name) = credential(path) else {
        return Ok(path.to_owned());
    };
    let error = || KeyFileError::NoCredential {
        name: name.to_owned(),
    };
    let is_name = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|_| is_name);
    Ok(PathBuf::from(directory.ok_or_else(error)?).join(name))
}

/// Reads the key of `path`, or makes one there if the file does not exist. A credential is never
/// made.
///
/// # Errors
/// If the file can't be read or made, is readable by others, or holds no key. A file that exists is
/// never changed.
pub fn load_or_create(path: &Path) -> Result<SecretKey, KeyFileError> {
    if credential(path).is_some() {
        return load(path);
    }
    match File::open(path) {
        Ok(file) => read(path, file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(path)?;
            // Read back, also because another start may have been first.
            let file = File::open(path).map_err(|source| io_error(path, "open", source))?;
            read(path, file)
        }
        Err(source) => Err(io_error(path, "open", source)),
    }
}

/// Reads a key or secret of 32 bytes that must be there.
///
/// # Errors
/// If the file can't be read, is readable by others, or holds no key.
pub fn load(path: &Path) -> Result<SecretKey, KeyFileError> {
    let file = File::open(actual(path)?).map_err(|source| io_error(path, "open", source))?;
    read(path, file)
}

fn io_error(path: &Path, action: &'static str, source: io::Error) -> KeyFileError {
    let hint = match source.kind() {
        _ if credential(path).is_some() => {
            "LoadCredential=NAME:/path/of/the/file in the unit gives it to the server"
        }
        io::ErrorKind::NotFound => {
            "make its directory first, writable by the user that runs the server"
        }
        io::ErrorKind::PermissionDenied => {
            "the user that runs the server must own the file and its directory"
        }
        _ => "name another place with --key-file",
    };
    KeyFileError::Io {
        path: path.to_owned(),
        action,
        source,
        hint,
    }
}

fn read(path: &Path, file: File) -> Result<SecretKey, KeyFileError> {
    let invalid = |problem| KeyFileError::Invalid {
        path: path.to_owned(),
        problem,
    };
    let metadata = file
        .metadata()
        .map_err(|source| io_error(path, "examine", source))?;
    if !metadata.is_file() {
        return Err(KeyFileError::NotAFile {
            path: path.to_owned(),
        });
    }
    // systemd lets the service's user in by an access list, which shows as bits of the group; its
    // directory is private.
    let others = if credential(path).is_some() {
        0o007
    } else {
        0o077
    };
    let mode = metadata.mode() & 0o7777;
    if mode & others != 0 {
        return Err(KeyFileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    // Enough from the start: a growing buffer would leave unwiped copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize + 1));
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| io_error(path, "read", source))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(invalid(Problem::TooLong));
    }
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| invalid(Problem::NotText))?
        .trim();
    if text.is_empty() {
        return Err(invalid(Problem::Empty));
    }
    let key: SecretKey = text.parse().map_err(|error| invalid(Problem::Key(error)))?;
    if key == SecretKey::from_bytes([0; 32]) {
        return Err(invalid(Problem::Zero));
    }
    Ok(key)
}

/// Makes a key under another name and links it to its own, so that no start ever sees half a key
/// and of two starts at once both use the same key.
fn create(path: &Path) -> Result<(), KeyFileError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| io_error(path, "draw a key for", io::Error::other(error.to_string())))?;
    let key = SecretKey::from_bytes(bytes);
    bytes.zeroize();

    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".new-{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let result =
        write_new(&temporary, &key).and_then(|()| match std::fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        });
    // The name is ours alone (create_new), unless it was there before, where nothing was linked.
    if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::AlreadyExists) {
        let _ = std::fs::remove_file(&temporary);
    }
    result.map_err(|source| io_error(path, "make", source))?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| io_error(path, "store", source))
}

fn write_new(path: &Path, key: &SecretKey) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(key.expose_base64().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn the_first_start_makes_a_key_that_later_starts_keep() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let first = load_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert!(load_or_create(&path).unwrap() == first);
        assert_eq!(
            std::fs::read_dir(directory.path()).unwrap().count(),
            1,
            "a temporary file was left"
        );
    }

    #[test]
    fn starts_at_once_agree_on_one_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| load_or_create(&path)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let kept = load_or_create(&path).unwrap();
        // Threads share a process id: those that lost the temporary name may fail, but none may
        // have another key.
        for key in keys.into_iter().flatten() {
            assert!(key == kept);
        }
    }

    #[test]
    fn a_damaged_key_is_refused_and_left_alone() {
        let zero = natpunch_types::SecretKey::from_bytes([0; 32]).expose_base64();
        for (content, problem) in [
            (&b""[..], Problem::Empty),
            (b"\n", Problem::Empty),
            (b"\xff\xfe", Problem::NotText),
            (b"hello", Problem::Key(KeyError::NotBase64)),
            (b"AAEC", Problem::Key(KeyError::WrongLength(3))),
            (&[b'A'; 300], Problem::TooLong),
            (zero.as_bytes(), Problem::Zero),
        ] {
            let (_directory, path) = file(content, 0o600);
            match load_or_create(&path) {
                Err(KeyFileError::Invalid { problem: found, .. }) => assert_eq!(found, problem),
                other => panic!("{content:?} gave {other:?}"),
            }
            assert_eq!(std::fs::read(&path).unwrap(), content);
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let key = SecretKey::from_bytes([7; 32]).expose_base64();
        for mode in [0o604, 0o640, 0o620, 0o601, 0o644] {
            let (_directory, path) = file(key.as_bytes(), mode);
            assert!(
                matches!(load_or_create(&path), Err(KeyFileError::Exposed { mode: found, .. }) if found == mode)
            );
        }
        let (_directory, path) = file(key.as_bytes(), 0o400);
        assert!(load_or_create(&path).is_ok());
    }

    #[test]
    fn a_missing_directory_is_an_error_with_a_hint() {
        let directory = tempfile::tempdir().unwrap();
        let error = load_or_create(&directory.path().join("not/there"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("hint:") && error.contains("not/there"),
            "{error}"
        );
        assert!(matches!(
            load_or_create(directory.path()),
            Err(KeyFileError::NotAFile { .. })
        ));
    }
}
