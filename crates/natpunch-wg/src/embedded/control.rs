//! The agent's side of the device process: start it, find it, stop it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::PROTOCOL_VERSION;
use crate::error::WgError;
use crate::spec::BackendKind;
use crate::state_file::control_socket;
use crate::uapi::{Client, UapiDevice};

/// How long a device process may take to appear, on a machine that is busy booting.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How often is looked.
const POLL: Duration = Duration::from_millis(5);
/// A longer log is started anew with the next process.
const MAX_LOG: u64 = 1 << 20;
/// What the device process logs. gotatun logs an error for each packet to a peer without endpoint.
const LOG_FILTER: &str = "warn,gotatun=off,natpunch_wg=info";

/// A running device process.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    name: String,
    socket: PathBuf,
    client: Client,
}

impl Control {
    fn new(name: &str, runtime_dir: &Path) -> Self {
        let socket = control_socket(runtime_dir, name);
        Self {
            name: name.into(),
            client: Client::new(socket.clone()),
            socket,
        }
    }

    /// The process of this interface, if one answers.
    pub(crate) fn find(name: &str, runtime_dir: &Path) -> Result<Option<Self>, WgError> {
        let control = Self::new(name, runtime_dir);
        let hello = match control.client.request("hello", "") {
            Ok(hello) => hello,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(e) => {
                return Err(WgError::io(
                    format!("talk to the device at {}", control.socket.display()),
                    e,
                ));
            }
        };
        let found = hello
            .lines()
            .find_map(|line| line.strip_prefix("protocol=")?.parse().ok())
            .unwrap_or(0);
        if found != PROTOCOL_VERSION {
            return Err(WgError::DeviceVersion {
                name: name.into(),
                found,
                ours: PROTOCOL_VERSION,
            });
        }
        Ok(Some(control))
    }

    /// The device that it serves.
    pub(crate) fn device(&self) -> UapiDevice {
        UapiDevice::at(self.socket.clone(), BackendKind::Userspace)
    }

    /// Stops the process, and returns when it has let go of everything: its interface, its sockets,
    /// and last its lock. An answer that no longer comes is too early a sign, for the UDP port may
    /// still be in use.
    pub(crate) fn stop(&self) -> Result<(), WgError> {
        match self.client.request("stop", "") {
            Ok(_) => {}
            // It may end before it has answered.
            Err(e) if is_gone(&e) => {}
            Err(e) => return Err(WgError::io(format!("stop the device of {}", self.name), e)),
        }
        let what = || format!("stop the device of {}", self.name);
        let mut lock = match OpenOptions::new()
            .write(true)
            .open(self.socket.with_extension("lock"))
        {
            Ok(lock) => lock,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(WgError::io(what(), e)),
        };
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
                Ok(_) => return Ok(()),
                Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => lock = back,
                Err((_, errno)) => return Err(WgError::io(what(), errno.into())),
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Nobody listens there, or it ended while we asked.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(
        error.kind(),
        NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof
    )
}

/// Starts the device process and returns when it answers.
pub(crate) fn start(name: &str, program: &Path, runtime_dir: &Path) -> Result<Control, WgError> {
    let control = Control::new(name, runtime_dir);
    let log = runtime_dir.join(format!("{name}.device.log"));
    let fresh = fs::metadata(&log).is_ok_and(|meta| meta.len() > MAX_LOG);
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(fresh)
        .append(!fresh)
        .mode(0o600)
        .open(&log)
        .map_err(|e| WgError::io(format!("open {}", log.display()), e))?;
    let log_start = file.metadata().map_or(0, |meta| meta.len());
    let mut child = Command::new(program)
        .arg("device")
        .arg(name)
        .arg("--socket")
        .arg(&control.socket)
        .env("NATPUNCH_LOG", LOG_FILTER)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .map_err(|e| WgError::io(format!("start {}", program.display()), e))?;
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(control) = Control::find(name, runtime_dir)? {
            reap(child);
            return Ok(control);
        }
        let ended = child.try_wait().ok().flatten();
        if ended.is_some() || Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            let said = said_since(&log, log_start);
            let reason = match ended {
                Some(status) if said.is_empty() => format!("it ended with {status}"),
                Some(_) => said,
                None => format!(
                    "it did not answer within {} s {said}",
                    START_TIMEOUT.as_secs()
                ),
            };
            return Err(WgError::DeviceStart {
                name: name.into(),
                reason,
            });
        }
        std::thread::sleep(POLL);
    }
}

/// Waits for the process in the background, so that it leaves no zombie when it ends before us.
fn reap(mut child: Child) {
    let _ = std::thread::Builder::new()
        .name("reap-device".into())
        .stack_size(64 << 10)
        .spawn(move || child.wait());
}

/// The last lines that the process logged.
fn said_since(log: &Path, start: u64) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    let text = String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(3)..)
        .unwrap_or_default()
        .join("; ")
}
