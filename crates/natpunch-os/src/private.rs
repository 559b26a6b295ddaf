//! Directories and sockets that nobody else may have a hand in.
//!
//! What the agent believes of a directory of its own (its state, its sockets) it does as root. A
//! directory that a stranger may write to holds what the stranger likes.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// Why a directory is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum NotPrivate {
    /// It can't be looked at.
    #[error("can't look at {}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// What is there.
        path: PathBuf,
    },
    /// It belongs to somebody else.
    #[error(
        "{} belongs to user {owner}, who could put anything there; help: chown it to user \
         {wanted}, or name another directory",
        path.display()
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user of this process.
        wanted: u32,
    },
    /// Others may write to it.
    #[error(
        "others than its owner may write to {} (mode {mode:04o}), and could put anything there; \
         help: chmod go-w it, or name another directory",
        path.display()
    )]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Demands that only root and this process' user can put anything into a directory.
///
/// # Errors
/// Why it is not so. `Io` with `NotFound` if it is not there.
pub fn check_directory(path: &Path) -> Result<(), NotPrivate> {
    let meta = fs::metadata(path).map_err(|source| NotPrivate::Io {
        path: path.to_owned(),
        source,
    })?;
    if !meta.is_dir() {
        return Err(NotPrivate::NotADirectory {
            path: path.to_owned(),
        });
    }
    let user = nix::unistd::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != user {
        return Err(NotPrivate::Owner {
            path: path.to_owned(),
            owner: meta.uid(),
            wanted: user,
        });
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(NotPrivate::Writable {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// As [`check_listener`], for somebody who asks the service of another user, as root does: in a
/// directory that only its owner may write to, the owner's process is the one that is meant.
///
/// # Errors
/// `PermissionDenied` if it is somebody else's.
pub fn check_listener_in(directory: &Path, socket: &impl AsFd) -> io::Result<i32> {
    let meta = fs::metadata(directory)?;
    let is_private = meta.is_dir() && meta.mode() & 0o022 == 0;
    listener(socket, is_private.then_some(meta.uid()))
}

/// Demands that the process which listens at the other end of a Unix socket is root's or this
/// user's, and tells its id. The kernel notes it when the socket is made to listen; the other end
/// can't lie.
///
/// # Errors
/// `PermissionDenied` if it is somebody else's.
pub fn check_listener(socket: &impl AsFd) -> io::Result<i32> {
    listener(socket, None)
}

fn listener(socket: &impl AsFd, trusted: Option<u32>) -> io::Result<i32> {
    let peer = getsockopt(&socket.as_fd(), PeerCredentials)?;
    let user = nix::unistd::geteuid().as_raw();
    if peer.uid() != 0 && peer.uid() != user && Some(peer.uid()) != trusted {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "process {} of user {} listens there, not one of root or of user {user}; remove \
                 the socket and see to it that others can't write to its directory",
                peer.pid(),
                peer.uid()
            ),
        ));
    }
    Ok(peer.pid())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        for (mode, private) in [
            (0o700, true),
            (0o755, true),
            (0o770, false),
            (0o702, false),
            (0o1777, false),
        ] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            let found = check_directory(path);
            assert_eq!(found.is_ok(), private, "{mode:o}: {found:?}");
        }
        let file = path.join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(
            check_directory(&file),
            Err(NotPrivate::NotADirectory { .. })
        ));
    }

    #[test]
    fn a_listener_is_known_by_its_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let pid = check_listener(&UnixStream::connect(&path).unwrap()).unwrap();
        assert_eq!(pid, std::process::id() as i32);
    }
}
