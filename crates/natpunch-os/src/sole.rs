//! Locks of which one process at a time has each.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How often a lock that another process has is asked for.
const POLL: Duration = Duration::from_millis(10);

/// A lock that this process has until this is dropped or the process ends, whatever ends it.
#[derive(Debug)]
pub struct Sole {
    _lock: Flock<File>,
}

impl Sole {
    /// Takes the lock of this file, which is made if it is not there. A process that was just
    /// killed may hold its lock for a moment longer: that is what `patience` is for. Blocks.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: another process has it. Or the file can't be opened.
    pub fn take(file: &Path, patience: Duration) -> io::Result<Self> {
        let open = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(file)
            // A file system that is read-only can be locked all the same.
            .or_else(|error| File::open(file).map_err(|_| error))?;
        Self::lock(open, patience)
    }

    /// Waits until no process has the lock of this file; a file that is not there has none. Blocks.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: another process still has it. Or the file can't be opened.
    pub fn wait_for(file: &Path, patience: Duration) -> io::Result<()> {
        match OpenOptions::new().write(true).open(file) {
            Ok(open) => Self::lock(open, patience).map(drop),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn lock(mut file: File, patience: Duration) -> io::Result<Self> {
        let deadline = Instant::now() + patience;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self { _lock: lock }),
                Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = back,
                Err((_, errno)) => return Err(errno.into()),
            }
            std::thread::sleep(POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_a_lock_and_the_next_waits_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("lock");
        Sole::wait_for(&file, Duration::ZERO).unwrap();
        let first = Sole::take(&file, Duration::ZERO).unwrap();
        for outcome in [
            Sole::take(&file, Duration::ZERO).map(drop),
            Sole::wait_for(&file, Duration::ZERO),
        ] {
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        let waits = std::thread::spawn(move || Sole::take(&file, Duration::from_secs(60)));
        drop(first);
        waits.join().unwrap().unwrap();
    }
}
