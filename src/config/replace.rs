//! Files that are written whole or not at all.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::Path;

/// Puts new content in a file's place in one step: a reader sees the old one or the new one. Mode
/// and owner stay; a symbolic link stays one, and the file behind it is replaced.
pub(crate) fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    let file = match fs::canonicalize(file) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return create(file, content, 0o644);
        }
        Err(error) => return Err(error),
    };
    let meta = fs::metadata(&file)?;
    in_place(&file, content, |open, temporary| {
        if fchown(open, Some(meta.uid()), Some(meta.gid())).is_err() {
            // Only root gives files away; another user keeps what the directory allows.
            fchown(open, None, Some(meta.gid())).ok();
        }
        open.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777))?;
        fs::rename(temporary, &file)
    })
}

/// Makes a file that is not there, whole or not at all.
///
/// # Errors
/// `AlreadyExists` if it is there.
pub(super) fn create(file: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    in_place(file, content, |open, temporary| {
        open.set_permissions(fs::Permissions::from_mode(mode))?;
        // A link, unlike a rename, never takes the place of a file that is there.
        fs::hard_link(temporary, file)?;
        fs::remove_file(temporary)
    })
}

/// Writes a hidden file beside `file` and has `finish` give it its name.
fn in_place(
    file: &Path,
    content: &[u8],
    finish: impl FnOnce(&fs::File, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let directory = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut name = std::ffi::OsString::from(".");
    name.push(file.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    name.push(format!(".{}.new", std::process::id()));
    let temporary = directory.join(name);
    let mut open = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC)
        .open(&temporary)?;
    let done = open
        .write_all(content)
        .and_then(|()| open.sync_all())
        .and_then(|()| finish(&open, &temporary))
        // The name is as durable as the content.
        .and_then(|()| fs::File::open(directory)?.sync_all());
    if done.is_err() {
        fs::remove_file(&temporary).ok();
    }
    done
}
