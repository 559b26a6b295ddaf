//! Versions on disk: `sources/ID/` below the state directory, one directory a source.
//!
//! ```text
//! lock                  held while an agent follows the source
//! manifest              a checksum, then JSON: which version was applied last, and the checksums of its files
//! 7-3f2a91c0d4e5/       a version's mesh files; nothing in it is ever changed
//! ```
//!
//! A version is written beside its place, flushed and renamed. It counts only when the manifest,
//! written the same way, names it: so there is the version before or the new one, never a part.
//! What does not match its checksum is set aside, and the next look at the source replaces it.

use std::fs::{self, File as DiskFile, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use natpunch_os::{Sole, durable};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::error::SourceError;
use super::location::Location;
use super::{Fetched, blake2, hex};

const HEAD: &str = "natpunch-source 1 ";
const LONGEST_MANIFEST: u64 = 4 << 20;

/// A version that is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    /// The commit, or the hash of the file.
    pub(super) revision: String,
    /// `generation` of the mesh.
    pub(super) generation: Option<u64>,
    /// The web server's name for the version.
    pub(super) etag: Option<String>,
    /// When it was fetched, in seconds since 1970.
    pub(super) fetched: u64,
    /// When it was signed, by what the signature covers, in seconds since 1970.
    #[serde(default)]
    pub(super) signed_at: Option<u64>,
    /// Name of its directory.
    directory: String,
    /// The file's name if the mesh is one file, else the mesh is the directory.
    file: Option<String>,
    files: Vec<Checksum>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Checksum {
    name: String,
    blake2s: String,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    location: String,
    applied: Version,
}

/// The versions of one source.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    location: String,
    applied: Option<Version>,
    serial: u64,
    /// `None` where the disk can't be written to.
    _lock: Option<Sole>,
}

impl Store {
    /// Opens the store of a source, and checks what it holds. A disk that can't be written to does
    /// not matter yet.
    ///
    /// # Errors
    /// Another agent follows the source.
    pub(super) fn open(state_dir: &Path, location: &Location) -> Result<Self, SourceError> {
        let directory = directory_of(state_dir, location);
        if let Err(error) = durable::create_dir_all(&directory) {
            tracing::debug!(directory = %directory.display(), %error, "can't make the directory of the source");
        }
        let lock = match Sole::take(&directory.join("lock"), Duration::ZERO) {
            Ok(lock) => Some(lock),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(SourceError::local(format!(
                    "another natpunch agent follows {location} already"
                ))
                .help(
                    "`natpunch status` shows it, `natpunch reload` makes it look for a new version",
                ));
            }
            // A directory that can't be written to keeps nothing that two could confuse.
            Err(_) => None,
        };
        let mut store = Self {
            directory,
            location: location.to_string(),
            applied: None,
            serial: 0,
            _lock: lock,
        };
        store.applied = store.read().unwrap_or_else(|problem| {
            tracing::warn!(directory = %store.directory.display(), "{problem}; it is set aside and not used");
            store.set_aside("manifest");
            None
        });
        store.serial = store.last_serial();
        store.prune(&[]);
        Ok(store)
    }

    /// What was applied last, without a lock and without any change: for commands that only look.
    pub(super) fn peek(state_dir: &Path, location: &Location) -> Option<Version> {
        let directory = directory_of(state_dir, location);
        Self {
            directory,
            location: location.to_string(),
            applied: None,
            serial: 0,
            _lock: None,
        }
        .read()
        .ok()?
    }

    /// The version that was applied last.
    pub(super) fn applied(&self) -> Option<&Version> {
        self.applied.as_ref()
    }

    /// Where the mesh of a version is.
    pub(super) fn path(&self, version: &Version) -> PathBuf {
        let directory = self.directory.join(&version.directory);
        match &version.file {
            Some(file) => directory.join(file),
            None => directory,
        }
    }

    /// Room for work, below the state directory since `/tmp` may be small; what is left of an
    /// earlier one is removed.
    ///
    /// # Errors
    /// The disk can't be written to.
    pub(super) fn workspace(&self) -> Result<TempDir, SourceError> {
        durable::create_dir_all(&self.directory)
            .and_then(|()| {
                tempfile::Builder::new()
                    .prefix(".work-")
                    .tempdir_in(&self.directory)
            })
            .map_err(|error| self.cant_write(&error))
    }

    /// Writes a version, which does not count yet.
    ///
    /// # Errors
    /// The disk can't be written to; nothing is left of the attempt.
    pub(super) fn write(
        &mut self,
        fetched: Fetched,
        fetched_at: u64,
    ) -> Result<Version, SourceError> {
        let Fetched {
            revision,
            files,
            single,
            etag,
            signed_at,
        } = fetched;
        let short = revision.get(..12).unwrap_or(&revision);
        let version = Version {
            directory: format!("{}-{short}", self.serial + 1),
            file: files
                .first()
                .filter(|_| single)
                .map(|file| file.name.clone()),
            files: files
                .iter()
                .map(|file| Checksum {
                    name: file.name.clone(),
                    blake2s: hex(&blake2(&file.content)),
                })
                .collect(),
            revision,
            generation: None,
            etag,
            fetched: fetched_at,
            signed_at,
        };
        let write = || -> io::Result<()> {
            let new = tempfile::Builder::new()
                .prefix(".new-")
                .tempdir_in(&self.directory)?;
            for file in &files {
                let mut open = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(new.path().join(&file.name))?;
                open.write_all(&file.content)?;
                open.sync_all()?;
            }
            durable::sync_directory(new.path())?;
            fs::rename(new.path(), self.directory.join(&version.directory))?;
            // It has another name now: there is nothing to remove.
            let _ = new.keep();
            durable::sync_directory(&self.directory)
        };
        write().map_err(|error| self.cant_write(&error))?;
        self.serial += 1;
        Ok(version)
    }

    /// Makes a version the one that was applied last.
    ///
    /// # Errors
    /// The disk can't be written to; the version before stays.
    pub(super) fn accept(&mut self, version: &Version) -> Result<(), SourceError> {
        let manifest = Manifest {
            location: self.location.clone(),
            applied: version.clone(),
        };
        let write = || -> io::Result<()> {
            let json = serde_json::to_vec_pretty(&manifest)?;
            let mut content = format!("{HEAD}{}\n", hex(&blake2(&json))).into_bytes();
            content.extend(json);
            durable::replace(&self.directory.join("manifest"), &content, 0o600)
        };
        write().map_err(|error| self.cant_write(&error))?;
        self.applied = Some(version.clone());
        Ok(())
    }

    /// Removes versions other than the applied one and these.
    pub(super) fn prune(&self, keep: &[&Version]) {
        for entry in fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let is_kept = ["lock", "manifest"].contains(&name)
                || name.starts_with("set-aside-")
                || self
                    .applied
                    .iter()
                    .chain(keep.iter().copied())
                    .any(|version| version.directory == name);
            if !is_kept {
                // What can't be removed now is tried again.
                let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
            }
        }
    }

    /// Reads the manifest and checks the version that it names. `Ok(None)`: there is none.
    fn read(&self) -> Result<Option<Version>, String> {
        let path = self.directory.join("manifest");
        let mut text = String::new();
        let read = DiskFile::open(&path)
            .and_then(|file| file.take(LONGEST_MANIFEST).read_to_string(&mut text));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(format!(
                    "the record of the last good version can't be read: {error}"
                ));
            }
        }
        let corrupt = || "the record of the last good version is damaged".to_owned();
        let (head, json) = text.split_once('\n').ok_or_else(corrupt)?;
        if head.strip_prefix(HEAD) != Some(hex(&blake2(json.as_bytes())).as_str()) {
            return Err(corrupt());
        }
        let Manifest { location, applied } = serde_json::from_str(json).map_err(|_| corrupt())?;
        if location != self.location {
            return Err(format!(
                "the last good version is of another source, {location}"
            ));
        }
        for Checksum { name, blake2s } in &applied.files {
            let content =
                fs::read(self.directory.join(&applied.directory).join(name)).unwrap_or_default();
            if hex(&blake2(&content)) != *blake2s {
                self.set_aside(&applied.directory);
                return Err(format!("{name} of the last good version is damaged"));
            }
        }
        Ok(Some(applied))
    }

    /// Keeps something out of the way for a person to look at: one thing of a kind, the newest.
    fn set_aside(&self, name: &str) {
        let kind = if name == "manifest" {
            "manifest"
        } else {
            "version"
        };
        let to = self.directory.join(format!("set-aside-{kind}"));
        let _ = fs::remove_dir_all(&to).or_else(|_| fs::remove_file(&to));
        let _ = fs::rename(self.directory.join(name), &to);
    }

    fn last_serial(&self) -> u64 {
        let entries = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        let serial = |name: &str| name.split_once('-')?.0.parse().ok();
        entries
            .filter_map(|entry| serial(entry.file_name().to_str()?))
            .max()
            .unwrap_or(0)
    }

    fn cant_write(&self, error: &io::Error) -> SourceError {
        SourceError::local(format!("can't keep a version of the mesh in {}: {error}", self.directory.display()))
            .help("free some space, or make the directory writable; the running mesh stays as it is meanwhile")
    }
}

fn directory_of(state_dir: &Path, location: &Location) -> PathBuf {
    // Absolute, since it may be named relative to a directory that programs are not run in.
    let state_dir = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    state_dir.join("sources").join(location.id())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::super::File;
    use super::*;

    fn location() -> Location {
        Location::parse(OsStr::new("https://config.example/mesh.toml")).unwrap()
    }

    fn fetched(text: &str) -> Fetched {
        let file = File {
            name: "mesh.toml".to_owned(),
            content: text.as_bytes().to_vec(),
        };
        Fetched {
            revision: hex(&blake2(text.as_bytes())),
            files: vec![file],
            single: true,
            etag: None,
            signed_at: None,
        }
    }

    fn with_version(state: &Path, text: &str) -> (Store, Version) {
        let mut store = Store::open(state, &location()).unwrap();
        let version = store.write(fetched(text), 1).unwrap();
        store.accept(&version).unwrap();
        (store, version)
    }

    #[test]
    fn what_was_applied_last_is_there_after_a_restart_and_nothing_else() {
        let state = tempfile::tempdir().unwrap();
        let (mut store, first) = with_version(state.path(), "one");
        let second = store.write(fetched("two"), 2).unwrap();
        assert!(
            Store::open(state.path(), &location())
                .unwrap_err()
                .to_string()
                .contains("another natpunch agent")
        );
        let (first_path, second_path) = (store.path(&first), store.path(&second));
        drop(store);
        let store = Store::open(state.path(), &location()).unwrap();
        assert_eq!(store.applied(), Some(&first));
        assert_eq!(fs::read_to_string(first_path).unwrap(), "one");
        assert!(
            !second_path.exists(),
            "a version that was never applied is not kept"
        );
    }

    #[test]
    fn damaged_state_is_set_aside_and_never_used() {
        let damages: [fn(&Store, &Version); 4] = [
            |store, version| fs::write(store.path(version), "tampered").unwrap(),
            |store, version| fs::remove_file(store.path(version)).unwrap(),
            |store, _| fs::write(store.directory.join("manifest"), "").unwrap(),
            |store, _| {
                let path = store.directory.join("manifest");
                let text = fs::read_to_string(&path)
                    .unwrap()
                    .replace("\"fetched\": 1", "\"fetched\": 2");
                fs::write(path, text).unwrap();
            },
        ];
        for damage in damages {
            let state = tempfile::tempdir().unwrap();
            let (store, version) = with_version(state.path(), "one");
            damage(&store, &version);
            drop(store);
            let store = Store::open(state.path(), &location()).unwrap();
            assert_eq!(store.applied(), None);
            assert!(store.directory.join("set-aside-manifest").exists());
            drop(store);
            let (store, _) = with_version(state.path(), "two");
            assert!(
                store.applied().is_some(),
                "the next version is kept as ever"
            );
        }
    }
}
