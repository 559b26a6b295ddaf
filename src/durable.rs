//! Directories whose names survive a power cut.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

/// Makes a directory and what is missing above it, for this user only. When this returns, each that
/// was made has its name on the disk: flushing a file keeps its bytes, and where it is found only
/// if the directories above are kept, too.
pub(crate) fn create_dir_all(directory: &Path) -> io::Result<()> {
    match fs::metadata(directory) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        // Of a disk that fails the error says so; making what is there would say that it is there.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let above = directory
        .parent()
        .filter(|above| !above.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    create_dir_all(above)?;
    match DirBuilder::new().mode(0o700).create(directory) {
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
        other => other?,
    }
    sync_directory(above)
}

/// Puts the names in a directory on the disk.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    fs::File::open(directory)?.sync_all()
}
