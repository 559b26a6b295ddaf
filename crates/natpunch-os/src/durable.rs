//! Files and directories that are there whole or not at all, and that survive a power cut.
//!
//! Every file of natpunch's own is written here and nowhere else. A new file is written beside its
//! place, flushed, given its name, and then the directory is flushed: without the first flush the
//! name could stand for an empty file after a power cut, without the second for the old one.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, fchown};
use std::path::Path;
use std::time::Duration;

use tempfile::NamedTempFile;

use crate::failpoint;

/// A temporary file of this age belongs to a process that was killed: no write takes so long.
const LEFTOVER: Duration = Duration::from_secs(60);
const SUFFIX: &str = ".new";

/// Puts `content` in the place of `file` in one step: a reader, also one after a power cut, sees
/// the old file or the new one. When this returns, the new one is on the disk.
///
/// # Errors
/// The disk's. The old file stays.
pub fn replace(file: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = directory_of(file);
    let new = write_beside(file, content)?;
    new.as_file()
        .set_permissions(Permissions::from_mode(mode))?;
    new.persist(file)?;
    failpoint(format_args!("{}: renamed", file.display()));
    sync_directory(directory)
}

/// [`replace`] for a file that people keep: mode and owner stay, and a symbolic link stays one: the
/// file behind it is replaced. A file that is not there is made with mode 0644.
///
/// # Errors
/// The disk's. The old file stays.
pub fn rewrite(file: &Path, content: &[u8]) -> io::Result<()> {
    let file = match fs::canonicalize(file) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return create(file, content, 0o644);
        }
        Err(error) => return Err(error),
    };
    let meta = fs::metadata(&file)?;
    let new = write_beside(&file, content)?;
    if fchown(new.as_file(), Some(meta.uid()), Some(meta.gid())).is_err() {
        // Only root gives files away; another user keeps what the directory allows.
        fchown(new.as_file(), None, Some(meta.gid())).ok();
    }
    // After the owner, since a change of owner clears the set-user bits.
    new.as_file()
        .set_permissions(Permissions::from_mode(meta.mode() & 0o7777))?;
    new.persist(&file)?;
    sync_directory(directory_of(&file))
}

/// Makes a file that is not there, whole or not at all. When this returns, it is on the disk.
///
/// # Errors
/// `AlreadyExists` if it is there, which changes nothing; else the disk's.
pub fn create(file: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let new = write_beside(file, content)?;
    new.as_file()
        .set_permissions(Permissions::from_mode(mode))?;
    new.persist_noclobber(file)?;
    sync_directory(directory_of(file))
}

/// Writes a hidden file beside `file`, readable by its owner only, and flushes it. Dropped, it is
/// removed again.
fn write_beside(file: &Path, content: &[u8]) -> io::Result<NamedTempFile> {
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    let directory = directory_of(file);
    remove_leftovers(directory, &prefix);
    failpoint(format_args!("{}: before the new file", file.display()));
    let mut new = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(SUFFIX)
        .tempfile_in(directory)?;
    failpoint(format_args!("{}: an empty new file", file.display()));
    new.write_all(content)?;
    failpoint(format_args!("{}: written, not on disk", file.display()));
    new.as_file().sync_all()?;
    failpoint(format_args!("{}: before the rename", file.display()));
    Ok(new)
}

/// Removes the new files of writers that were killed, or they would add up.
fn remove_leftovers(directory: &Path, prefix: &std::ffi::OsStr) {
    let prefix = prefix.as_encoded_bytes();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        let is_new = name.starts_with(prefix) && name.ends_with(SUFFIX.as_bytes());
        let is_old = || {
            let age = entry.metadata().ok()?.modified().ok()?.elapsed().ok()?;
            Some(age > LEFTOVER)
        };
        if is_new && is_old() == Some(true) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Makes a directory and what is missing above it, for this user only. When this returns, each that
/// was made has its name on the disk: flushing a file keeps its bytes, and where it is found only
/// if the directories above are kept, too.
///
/// # Errors
/// The disk's.
pub fn create_dir_all(directory: &Path) -> io::Result<()> {
    match fs::metadata(directory) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        // Of a disk that fails the error says so; making what is there would say that it is there.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let above = directory_of(directory);
    create_dir_all(above)?;
    match DirBuilder::new().mode(0o700).create(directory) {
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
        other => other?,
    }
    sync_directory(above)
}

/// Puts the names in a directory on the disk.
///
/// # Errors
/// The disk's.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn directory_of(file: &Path) -> &Path {
    file.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(file: &Path) -> u32 {
        fs::metadata(file).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("state.json");
        for content in [&b"one"[..], b"", b"a longer one"] {
            replace(&file, content, 0o600).unwrap();
            assert_eq!(fs::read(&file).unwrap(), content);
            assert_eq!(mode(&file), 0o600, "whatever the umask is");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_replaced_stays_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        // A directory with something in it: nothing can be renamed over it.
        let file = directory.path().join("state.json");
        fs::create_dir_all(file.join("something")).unwrap();
        replace(&file, b"new", 0o600).unwrap_err();
        assert!(file.join("something").is_dir());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_there_is_never_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        create(&file, b"first", 0o600).unwrap();
        let error = create(&file, b"second", 0o600).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&file).unwrap(), b"first");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_rewritten_file_keeps_its_mode_and_a_link_stays_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("mesh"), directory.path().join("link"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        rewrite(&link, b"new").unwrap();
        assert_eq!(
            (fs::read(&file).unwrap(), mode(&file)),
            (b"new".into(), 0o640)
        );
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_what_another_writes_now_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("state.json");
        let old = directory.path().join(".state.json.killed.new");
        let fresh = directory.path().join(".state.json.writing.new");
        let other = directory.path().join(".other.json.killed.new");
        for path in [&old, &fresh, &other] {
            fs::write(path, "half").unwrap();
        }
        let past = std::time::SystemTime::now() - 2 * LEFTOVER;
        for path in [&old, &other] {
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_modified(past)
                .unwrap();
        }
        replace(&file, b"whole", 0o600).unwrap();
        assert!(!old.exists() && fresh.exists() && other.exists());
    }
}
