//! What the agent keeps on disk: the counter of its sealed records, so that it never goes back.
//!
//! Peers refuse a record whose counter is not higher than the last one. The file holds a number
//! that is ahead of what was used, and is written once in [`AHEAD`] records, not for each. Where
//! the file is lost the wall clock gives the start: it only has to be later than the last start,
//! not right.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use natpunch_os::durable;

const AHEAD: u64 = 1024;

/// The stored counter of one interface.
#[derive(Debug)]
pub(super) struct CounterStore {
    path: PathBuf,
    reserved: u64,
    complained: bool,
}

impl CounterStore {
    /// Opens the store of `interface`; the second value is the first counter that may be used.
    pub(super) fn open(directory: &Path, interface: &str) -> (Self, u64) {
        let path = directory.join(format!("{interface}.counter"));
        let stored = fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
            .unwrap_or(0);
        let clock = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64);
        (
            Self {
                path,
                reserved: 0,
                complained: false,
            },
            stored.max(clock),
        )
    }

    /// To be told the last counter used. Writes the file when the reserve is used up; a disk that
    /// can't be written to is reported once and costs nothing else as long as the wall clock does
    /// not go back.
    pub(super) fn used(&mut self, counter: u64) {
        if counter < self.reserved {
            return;
        }
        self.reserved = counter.saturating_add(AHEAD);
        match self.write() {
            Ok(()) => self.complained = false,
            Err(error) if !self.complained => {
                self.complained = true;
                tracing::warn!(
                    path = %self.path.display(), %error,
                    "can't store the record counter: after a restart with a clock that went back, peers would ignore \
                     this node's records until the clock has caught up"
                );
            }
            Err(_) => {}
        }
    }

    fn write(&self) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        durable::create_dir_all(directory)?;
        let text = format!("{}\n", self.reserved);
        durable::replace(&self.path, text.as_bytes(), 0o600)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_counter_never_goes_back_over_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (mut store, first) = CounterStore::open(directory.path(), "wg0");
        store.used(first + 5);
        fs::write(
            directory.path().join("wg0.counter"),
            format!("{}\n", u64::MAX / 2),
        )
        .unwrap();
        let (_, second) = CounterStore::open(directory.path(), "wg0");
        assert_eq!(
            second,
            u64::MAX / 2,
            "the stored value wins over a clock that is behind it"
        );
        store.used(second + 5);
        let meta = fs::metadata(directory.path().join("wg0.counter")).unwrap();
        assert_eq!(
            meta.permissions().mode() & 0o7777,
            0o600,
            "whatever the umask is"
        );
        let (_, lost) = CounterStore::open(&directory.path().join("gone"), "wg0");
        assert!(lost >= first, "the clock starts where the file is lost");
    }
}
