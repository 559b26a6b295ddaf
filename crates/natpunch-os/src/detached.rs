//! Processes of natpunch that go on when the one that started them has ended: each has a log, and
//! those that go on for long a control socket with a lock beside it.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::stat::{Mode, umask};

use crate::Sole;

/// How long to wait for a process that is on its way out.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Opens the log of a process that is to be started. One of more than `most` bytes begins anew.
///
/// # Errors
/// The system's.
pub fn open_log(log: &Path, most: u64) -> io::Result<File> {
    let fresh = fs::metadata(log).is_ok_and(|meta| meta.len() > most);
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(fresh)
        .append(!fresh)
        .mode(0o600)
        .open(log)
}

/// Starts a process of `program`, which logs what this filter lets through.
///
/// # Errors
/// The program can't be run.
pub fn start<S: AsRef<OsStr>>(
    program: &Path,
    arguments: &[S],
    filter: &str,
    log: File,
) -> io::Result<Child> {
    command(program, arguments, filter, log)
        .stdin(Stdio::null())
        .spawn()
}

/// [`start`] for a process that reads what we write to this socket, and so learns of our end.
///
/// # Errors
/// The program can't be run.
pub fn start_reader<S: AsRef<OsStr>>(
    program: &Path,
    arguments: &[S],
    filter: &str,
    log: File,
) -> io::Result<(Child, UnixStream)> {
    let (ours, its) = UnixStream::pair()?;
    let mut command = command(program, arguments, filter, log);
    let child = command.stdin(OwnedFd::from(its)).spawn()?;
    Ok((child, ours))
}

fn command<S: AsRef<OsStr>>(program: &Path, arguments: &[S], filter: &str, log: File) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("NATPUNCH_LOG", filter)
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(log);
    command
}

/// Waits for a process in the background, so that it leaves no zombie when it ends before us.
pub fn reap(mut child: Child) {
    let _ = std::thread::Builder::new()
        .name("reap".to_owned())
        .stack_size(64 << 10)
        .spawn(move || child.wait());
}

/// Ends a process that did not become what it was started for.
pub fn give_up(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// In the process itself, before it has threads: it leaves the terminal and the session of who
/// started it, makes files for its user alone, and is the only one with this control socket as long
/// as it keeps what is returned.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`]: another process has the socket. Or its lock can't be opened.
pub fn begin(socket: &Path) -> io::Result<Sole> {
    leave();
    Sole::take(&socket.with_extension("lock"), LOCK_TIMEOUT)
}

/// In the process itself, before it has threads: it leaves the terminal and the session of who
/// started it, and makes files for its user alone.
pub fn leave() {
    // A session of its own: no terminal, no Ctrl-C meant for the agent. It fails only where it
    // already is one.
    let _ = nix::unistd::setsid();
    umask(Mode::from_bits_truncate(0o077));
}

/// Listens at a control socket, in place of one that an ended process has left.
///
/// # Errors
/// The system's.
pub fn listen(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_log_goes_on_until_it_is_too_long_and_is_its_owners_only() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        for (most, expected) in [(2, "ab"), (2, "abab"), (3, "ab"), (0, "ab")] {
            open_log(&log, most).unwrap().write_all(b"ab").unwrap();
            assert_eq!(fs::read_to_string(&log).unwrap(), expected, "{most}");
        }
        let mode = fs::metadata(&log).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn one_process_has_a_control_socket_and_takes_the_place_of_one_that_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("sock");
        drop(listen(&socket).unwrap());
        assert!(socket.exists(), "as a process leaves it that was killed");
        let _listener = listen(&socket).unwrap();
        assert!(UnixStream::connect(&socket).is_ok());
    }
}
