//! The directory: this node's file written to it, the others' read from it. What is in it is
//! anybody's, so all that is read has a bound.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use natpunch_plugin::{RecordTag, SealedRecord};
use rustix::fs::{Mode, OFlags, open};

use crate::format;

/// Files that are looked at; more are left out, and said.
const MOST_FILES: usize = 4_096;
/// Names in the directory that are looked at, of whatever kind.
const MOST_NAMES: usize = 65_536;
/// The longest file, in bytes: the records of some thousands of peers.
const LONGEST: u64 = 8 << 20;
/// Different records under one tag that are remembered. One is the peer's, the others are those of
/// a writer that knows the tag.
const MOST_UNDER_TAG: usize = 8;

/// The directory, and what is known of it.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// This node's file.
    own: String,
    /// What each file was when it was read last.
    seen: BTreeMap<OsString, Stamp>,
    /// What was found under each tag already.
    told: BTreeMap<RecordTag, VecDeque<SealedRecord>>,
}

/// What a file was: replacing or changing it changes one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// What a look at the directory came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Records that were not found before.
    pub(crate) records: Vec<SealedRecord>,
    /// Other nodes' files that are there.
    pub(crate) files: usize,
    /// Files that are too long, too many, or can't be read: how many, and why the last was not.
    pub(crate) left_out: usize,
    pub(crate) reason: Option<String>,
}

impl Found {
    fn leave_out(&mut self, reason: String) {
        self.left_out += 1;
        self.reason = Some(reason);
    }
}

impl Directory {
    pub(crate) fn new(path: PathBuf, own: String) -> Self {
        Self {
            path,
            own,
            seen: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }

    /// Puts this node's records there, in place of those before.
    ///
    /// # Errors
    /// The directory's.
    pub(crate) fn publish(&self, records: &[SealedRecord]) -> io::Result<()> {
        let file = self.path.join(&self.own);
        let text = format::write(records);
        // A synchroniser would carry the same once more.
        if fs::read(&file).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(());
        }
        natpunch_os::durable::replace(&file, text.as_bytes(), 0o644)
    }

    /// The tags that are wanted have changed: all files are to be read anew.
    pub(crate) fn read_anew(&mut self, wanted: &BTreeSet<RecordTag>) {
        self.seen.clear();
        self.told.retain(|tag, _| wanted.contains(tag));
    }

    /// Looks for what is new.
    ///
    /// # Errors
    /// The directory can't be read.
    pub(crate) fn look(&mut self, wanted: &BTreeSet<RecordTag>) -> io::Result<Found> {
        let mut found = Found::default();
        let mut there = BTreeMap::new();
        for entry in fs::read_dir(&self.path)?.take(MOST_NAMES) {
            let name = entry?.file_name();
            let path = Path::new(&name);
            let is_records = path.extension().is_some_and(|end| end == format::EXTENSION);
            if !is_records || name == *self.own {
                continue;
            }
            if there.len() == MOST_FILES {
                found.leave_out(format!("there are more than {MOST_FILES} files"));
                continue;
            }
            match self.read(&name, wanted, &mut found) {
                Ok(stamp) => drop(there.insert(name, stamp)),
                // Renamed or removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => found.leave_out(format!("{}: {error}", name.display())),
            }
        }
        found.files = there.len();
        self.seen = there;
        Ok(found)
    }

    /// Reads a file if it is another than it was.
    fn read(
        &mut self,
        name: &OsString,
        wanted: &BTreeSet<RecordTag>,
        found: &mut Found,
    ) -> io::Result<Stamp> {
        // Neither a link that leads elsewhere nor a pipe that never answers.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(open(self.path.join(name), flags, Mode::empty())?);
        let metadata = file.metadata()?;
        let stamp = Stamp::of(&metadata);
        if self.seen.get(name) == Some(&stamp) {
            return Ok(stamp);
        }
        if !metadata.is_file() || metadata.len() > LONGEST {
            return Err(io::Error::other(format!(
                "not a file of at most {} MiB",
                LONGEST >> 20
            )));
        }
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes)?;
        let records = format::read(&bytes, |tag| wanted.contains(tag))
            .ok_or_else(|| io::Error::other("not a file of natpunch's records"))?;
        for record in records {
            let told = self.told.entry(record.tag).or_default();
            if told.contains(&record) {
                continue;
            }
            if told.len() == MOST_UNDER_TAG {
                told.pop_front();
            }
            told.push_back(record.clone());
            found.records.push(record);
        }
        Ok(stamp)
    }
}

#[cfg(test)]
mod tests;
