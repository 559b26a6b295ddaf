//! Files that hold a secret: readable by their owner only, and read with a bound.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::reason;

/// Why a secret can't be used. `Display` says what is wrong; [`SecretError::help`] what to do.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// `credential:NAME`, and systemd gave this process no credentials.
    #[error("the credential `{name}` is not there: systemd gave this process none")]
    NoCredentials {
        /// NAME.
        name: String,
    },
    /// `credential:NAME`, and NAME is none of a credential.
    #[error("`{name}` is not the name of a credential")]
    NotAName {
        /// NAME.
        name: String,
    },
    /// It can't be opened or read.
    #[error("can't read {}: {}", path.display(), reason(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A directory, a FIFO or the like.
    #[error("{} is not a file", path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// Others than its owner may read or write it.
    #[error("{} can be read by others than its owner (mode {mode:04o})", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Its owner is neither root nor the user of this process.
    #[error("{} belongs to another user (uid {owner})", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// It holds more than any such secret.
    #[error("{} is longer than {longest} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        longest: usize,
    },
    /// It holds no text.
    #[error("{} is not text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// It holds nothing, or blanks only.
    #[error("{} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl SecretError {
    /// Whether there is no such file, so that one may be made.
    pub fn is_absent(&self) -> bool {
        match self {
            Self::NoCredentials { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// What to do about it. `command` is the command of natpunch that prints such a secret.
    pub fn help(&self, command: &str) -> String {
        match self {
            Self::NoCredentials { name } => {
                format!("add LoadCredential={name}:/path/of/the/key to the unit that runs natpunch")
            }
            Self::NotAName { .. } => {
                "write credential: and the name of LoadCredential= in the unit".to_owned()
            }
            Self::Io { path, .. } if self.is_absent() => {
                format!(
                    "make it: (umask 077; natpunch {command} > {})",
                    path.display()
                )
            }
            Self::Io { .. } => "run natpunch as the owner of the file, or as root".to_owned(),
            Self::NotAFile { .. } => "name a file that holds the key".to_owned(),
            Self::Exposed { path, .. } => format!(
                "chmod 600 {}; if others may have read it, make a new key",
                path.display()
            ),
            Self::Foreign { path, .. } => format!("chown root {}", path.display()),
            Self::TooLong { .. } | Self::NotText { .. } | Self::Empty { .. } => {
                format!("it holds what `natpunch {command}` prints")
            }
        }
    }
}

/// The name of a credential, if a path means one: `credential:NAME`.
pub fn credential(file: &Path) -> Option<&str> {
    file.to_str()?.strip_prefix("credential:")
}

/// Whether a credential can have this name: that of a file right in the directory of credentials.
pub fn is_credential_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// Where the file really is: a credential is in the directory that systemd made for the service.
///
/// # Errors
/// There is no such directory, or the name is none.
pub fn actual(file: &Path) -> Result<PathBuf, SecretError> {
    let Some(name) = credential(file) else {
        return Ok(file.to_owned());
    };
    let name_of = || name.to_owned();
    if !is_credential_name(name) {
        return Err(SecretError::NotAName { name: name_of() });
    }
    match std::env::var_os("CREDENTIALS_DIRECTORY") {
        Some(directory) => Ok(PathBuf::from(directory).join(name)),
        None => Err(SecretError::NoCredentials { name: name_of() }),
    }
}

/// Reads a file (or `credential:NAME`) that holds a secret as text of at most `longest` bytes,
/// after looking at its owner and mode.
///
/// # Errors
/// If it can't be read, if others than its owner may read it, if its owner is neither root nor this
/// process' user, if it is empty, no text, or too long.
pub fn read(file: &Path, longest: usize) -> Result<Zeroizing<String>, SecretError> {
    // systemd lets the service's user in by an access list, which shows as bits of the group; its
    // directory is private.
    let others = if credential(file).is_some() {
        0o007
    } else {
        0o077
    };
    let path = actual(file)?;
    let failed = |source| SecretError::Io {
        path: path.clone(),
        source,
    };
    // O_NONBLOCK: opening a FIFO would wait for a writer.
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(&path)
        .map_err(failed)?;
    // Of the file that is open, not of the name, which may mean another by now.
    let meta = open.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(SecretError::NotAFile { path });
    }
    let mode = meta.mode() & 0o7777;
    if mode & others != 0 {
        return Err(SecretError::Exposed { path, mode });
    }
    let user = nix::unistd::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != user {
        let owner = meta.uid();
        return Err(SecretError::Foreign { path, owner });
    }
    // Room from the start: a buffer that grows leaves copies behind that nobody wipes.
    let mut bytes = Zeroizing::new(Vec::with_capacity(longest + 1));
    open.take(longest as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() > longest {
        return Err(SecretError::TooLong { path, longest });
    }
    let Ok(text) = std::str::from_utf8(&bytes) else {
        return Err(SecretError::NotText { path });
    };
    if text.trim().is_empty() {
        return Err(SecretError::Empty { path });
    }
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn found(content: &[u8], mode: u32) -> Result<Zeroizing<String>, SecretError> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        read(&file, 8)
    }

    #[test]
    fn a_secret_of_its_owner_is_read() {
        for mode in [0o600, 0o400] {
            assert_eq!(*found(b"secret\n", mode).unwrap(), "secret\n");
        }
    }

    #[test]
    fn a_credential_is_a_file_right_in_its_directory() {
        for bad in ["", ".", "..", "../key", "a/b", "/etc/key"] {
            let file = PathBuf::from(format!("credential:{bad}"));
            assert!(
                matches!(actual(&file), Err(SecretError::NotAName { name }) if name == bad),
                "{bad}"
            );
        }
        assert!(is_credential_name("home.key"));
        assert_eq!(
            actual(Path::new("/etc/key")).unwrap(),
            Path::new("/etc/key")
        );
    }

    #[test]
    fn a_secret_that_others_can_read_or_that_is_none_is_refused() {
        for mode in [0o604, 0o640, 0o620, 0o601, 0o644] {
            assert!(matches!(
                found(b"secret", mode),
                Err(SecretError::Exposed { mode: at, .. }) if at == mode
            ));
        }
        assert!(matches!(
            found(b" \n", 0o600),
            Err(SecretError::Empty { .. })
        ));
        assert!(matches!(
            found(b"\xff\xfe", 0o600),
            Err(SecretError::NotText { .. })
        ));
        assert!(matches!(
            found(b"123456789", 0o600),
            Err(SecretError::TooLong { longest: 8, .. })
        ));
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(
            read(directory.path(), 8),
            Err(SecretError::NotAFile { .. })
        ));
        let absent = read(&directory.path().join("gone"), 8).unwrap_err();
        assert!(absent.is_absent());
        assert!(absent.help("keygen").contains("natpunch keygen >"));
    }
}
