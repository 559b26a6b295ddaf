//! The journal: the version of the mesh that this node is known to work with, and the change that
//! is under way.
//!
//! One small file per interface in the state directory, written before the first change of the
//! kernel and after the last (new file, fsync, rename, fsync of the directory) with a checksum over
//! everything. The next agent, after a crash or a reboot, finds in it which version to go back to
//! and until when the newest one may be tried. It holds the mesh files' text, never a key.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use blake2::{Blake2s256, Digest as _};
use natpunch_os::durable;
use natpunch_rollout::{Change, Hash};
use serde::{Deserialize, Serialize};

use crate::config::Local;

const FORMAT: u32 = 1;
/// Longer than the longest mesh that can be loaded.
const LONGEST: u64 = 64 << 20;

/// A version of the mesh, as text: enough to load it again when its files say something else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Text {
    /// [`NodeConfig::content_hash`](crate::config::NodeConfig::content_hash).
    pub(crate) hash: Hash,
    /// The mesh files with absolute paths.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// What the command line named.
    #[serde(flatten)]
    pub(crate) local: Local,
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The version that works.
    pub(crate) good: Text,
    /// The change that is under way, or was undone.
    pub(crate) change: Option<Change>,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    format: u32,
    checksum: String,
    entry: String,
}

/// The file of one interface.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    path: PathBuf,
}

impl Journal {
    /// The journal of `interface`; the file need not exist.
    pub(crate) fn new(directory: &Path, interface: &str) -> Self {
        Self {
            path: directory.join(format!("{interface}.journal")),
        }
    }

    /// What it says. A file that is damaged is set aside (`.damaged`) and reported: what is unknown
    /// is not gone back to.
    pub(crate) fn read(&self) -> Option<Entry> {
        match self.try_read() {
            Ok(entry) => entry,
            // The disk's trouble, which may pass: nothing is known of what the file holds.
            Err(error) if error.raw_os_error().is_some() => {
                tracing::error!(
                    journal = %self.path.display(), %error,
                    "can't read the journal: there is no version to go back to"
                );
                None
            }
            Err(error) => {
                let aside = self.path.with_extension("journal.damaged");
                let moved = fs::rename(&self.path, &aside);
                tracing::error!(
                    journal = %self.path.display(), %error, aside = moved.is_ok(),
                    "the journal is damaged: there is no version to go back to"
                );
                None
            }
        }
    }

    /// [`Journal::read`], but leaves a damaged file where it is and says nothing.
    pub(crate) fn peek(&self) -> Option<Entry> {
        self.try_read().ok().flatten()
    }

    fn try_read(&self) -> io::Result<Option<Entry>> {
        let file = match fs::File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes)?;
        let envelope: Envelope = serde_json::from_slice(&bytes)?;
        if envelope.format != FORMAT {
            return Err(io::Error::other(format!(
                "it has format {}, this natpunch knows {FORMAT}",
                envelope.format
            )));
        }
        if envelope.checksum != checksum(&envelope.entry) {
            return Err(io::Error::other("its checksum is wrong"));
        }
        Ok(Some(serde_json::from_str(&envelope.entry)?))
    }

    /// Writes it, whole or not at all. When this returns, it is on the disk.
    pub(crate) fn write(&self, entry: &Entry) -> io::Result<()> {
        let text = serde_json::to_string(entry)?;
        let envelope = Envelope {
            format: FORMAT,
            checksum: checksum(&text),
            entry: text,
        };
        let directory = self.path.parent().unwrap_or(Path::new("."));
        durable::create_dir_all(directory)?;
        durable::replace(&self.path, &serde_json::to_vec(&envelope)?, 0o600)
    }

    /// Forgets everything, for `natpunch down`.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn checksum(text: &str) -> String {
    Blake2s256::digest(text.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The name of this boot. Two boots never have the same; where it can't be read, none is like
/// another.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> Entry {
        let version = Text {
            hash: [7; 32],
            files: vec![("/etc/mesh.toml".into(), text.to_owned())],
            local: Local::default(),
        };
        Entry {
            good: version,
            change: Some(Change::Held {
                to: [8; 32],
                reason: "no answer".into(),
            }),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::new(&directory.path().join("state"), "wg0");
        assert_eq!(journal.read(), None);
        for text in ["[mesh]", "", "ä\"\\\n"] {
            journal.write(&entry(text)).unwrap();
            assert_eq!(journal.read(), Some(entry(text)));
        }
        journal.remove();
        assert_eq!(journal.read(), None);
    }

    /// As natpunch 0.1 wrote it before signs of life had a time from which they count.
    #[test]
    fn an_upgrade_finds_the_change_that_the_version_before_left_open() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::new(directory.path(), "wg0");
        let hash = |byte: u8| serde_json::to_string(&[byte; 32]).unwrap();
        let key = natpunch_types::PeerKey::from_bytes([3; 32]);
        let text = format!(
            r#"{{"good":{{"hash":{},"files":[["/etc/mesh.toml","[mesh]"]],"private_key_file":null,
            "age_identity_file":null,"node":null}},"change":{{"state":"open","to":{},"boot":"b",
            "deadline_ms":7000,"by_person":false,"watched":[{{"name":"b","key":"{key}",
            "addresses":["10.77.0.2"],"must":true,"echo":true,"full":false,"handshake":false}}],
            "endpoints":{{"{key}":"192.0.2.1:7"}}}}}}"#,
            hash(7),
            hash(8)
        );
        let envelope = Envelope {
            format: 1,
            checksum: checksum(&text),
            entry: text,
        };
        fs::write(&journal.path, serde_json::to_vec(&envelope).unwrap()).unwrap();
        let entry = journal.read().unwrap();
        let Some(Change::Open {
            settled_ms,
            watched,
            ..
        }) = entry.change
        else {
            panic!("{entry:?}")
        };
        assert_eq!((settled_ms, watched[0].name.as_str()), (0, "b"));
    }

    #[test]
    fn no_damaged_byte_goes_unnoticed_and_none_is_fatal() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::new(directory.path(), "wg0");
        journal.write(&entry("[mesh]\nname = \"home\"")).unwrap();
        let good = fs::read(&journal.path).unwrap();
        for at in 0..good.len() {
            let mut damaged = good.clone();
            damaged[at] ^= 0x02;
            fs::write(&journal.path, &damaged).unwrap();
            assert_eq!(journal.read(), None, "byte {at}");
            assert!(!journal.path.exists(), "set aside");
            fs::write(&journal.path, &good[..at]).unwrap();
            assert_eq!(journal.peek(), None, "cut at {at}");
        }
    }

    #[test]
    fn a_disk_that_takes_nothing_leaves_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::new(directory.path(), "wg0");
        journal.write(&entry("old")).unwrap();
        // A file in the place of the directory: root may write everywhere else.
        let aside = directory.path().with_extension("aside");
        fs::rename(directory.path(), &aside).unwrap();
        fs::write(directory.path(), "").unwrap();
        assert!(journal.write(&entry("new")).is_err());
        fs::remove_file(directory.path()).unwrap();
        fs::rename(&aside, directory.path()).unwrap();
        assert_eq!(journal.read(), Some(entry("old")));
    }
}
