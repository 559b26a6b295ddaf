//! The agent's side of the device process: start it, find it, stop it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use natpunch_os::{Sole, detached};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::PROTOCOL_VERSION;
use crate::backend::BackendKind;
use crate::error::WgError;
use crate::state_file::control_socket;
use crate::uapi::{Client, UapiDevice, hung};

/// How long a device process may take to appear, on a machine that is busy booting.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How often is looked.
const POLL: Duration = Duration::from_millis(5);
/// A longer log is started anew with the next process.
const MAX_LOG: u64 = 1 << 20;
/// What the device process logs. gotatun logs an error for each packet to a peer without endpoint.
const LOG_FILTER: &str = "warn,gotatun=off,natpunch_wg=info";

/// How long a process that was killed may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// The process of an embedded device, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceProcess {
    /// Its id.
    pub pid: i32,
    /// The version of natpunch that it runs.
    pub version: String,
    /// Whether the program file that it runs was removed or replaced since, as by an upgrade.
    pub replaced: bool,
}

/// A running device process.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    name: String,
    socket: PathBuf,
    client: Client,
    process: Option<DeviceProcess>,
}

impl Control {
    fn new(name: &str, runtime_dir: &Path) -> Self {
        let socket = control_socket(runtime_dir, name);
        Self {
            name: name.into(),
            client: Client::new(socket.clone()),
            socket,
            process: None,
        }
    }

    /// The process, as it described itself when it was found.
    pub(crate) fn process(&self) -> Option<&DeviceProcess> {
        self.process.as_ref()
    }

    /// The process of this interface, if one answers.
    pub(crate) fn find(name: &str, runtime_dir: &Path) -> Result<Option<Self>, WgError> {
        let mut control = Self::new(name, runtime_dir);
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
            Err(e) => return Err(control.failed("talk to", e)),
        };
        let field = |name: &str| {
            let mut lines = hello.lines().filter_map(|line| line.split_once('='));
            lines.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let found = field("protocol")
            .and_then(|version| version.parse().ok())
            .unwrap_or(0);
        if found != PROTOCOL_VERSION {
            return Err(WgError::DeviceVersion {
                name: name.into(),
                found,
                ours: PROTOCOL_VERSION,
            });
        }
        control.process = field("pid")
            .and_then(|pid| pid.parse().ok())
            .map(|pid| DeviceProcess {
                pid,
                version: field("version").unwrap_or_default().to_owned(),
                replaced: field("replaced") == Some("1"),
            });
        Ok(Some(control))
    }

    /// Ends the process of this interface, whether it answers or not, and returns when it has let
    /// go of everything.
    pub(crate) fn end(name: &str, runtime_dir: &Path) -> Result<(), WgError> {
        let stopped = Self::find(name, runtime_dir).and_then(|found| match found {
            Some(control) => control.stop(),
            None => Ok(()),
        });
        match stopped {
            Err(WgError::Hung { pid, .. }) => Self::new(name, runtime_dir).kill(pid),
            other => other,
        }
    }

    /// For a process that does not answer any more. It listens at our socket, in a directory where
    /// no other user can make one.
    fn kill(&self, pid: i32) -> Result<(), WgError> {
        tracing::warn!(interface = %self.name, pid, "the device does not answer; it is killed");
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => self.wait_for_lock(KILL_TIMEOUT),
            Err(errno) => Err(WgError::io(
                format!("kill the device of {} (process {pid})", self.name),
                errno.into(),
            )),
        }
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
            Err(e) => return Err(self.failed("stop", e)),
        }
        self.wait_for_lock(START_TIMEOUT)
    }

    /// What went wrong in a request.
    fn failed(&self, what: &str, error: io::Error) -> WgError {
        match hung(&error) {
            Some(pid) => WgError::Hung {
                name: self.name.clone(),
                pid,
            },
            None => WgError::io(
                format!("{what} the device at {}", self.socket.display()),
                error,
            ),
        }
    }

    /// The lock goes with the process.
    fn wait_for_lock(&self, patience: Duration) -> Result<(), WgError> {
        let lock = self.socket.with_extension("lock");
        Sole::wait_for(&lock, patience)
            .map_err(|error| WgError::io(format!("stop the device of {}", self.name), error))
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
    let file = detached::open_log(&log, MAX_LOG)
        .map_err(|e| WgError::io(format!("open {}", log.display()), e))?;
    let log_start = file.metadata().map_or(0, |meta| meta.len());
    let arguments = [
        "device".as_ref(),
        name.as_ref(),
        "--socket".as_ref(),
        control.socket.as_os_str(),
    ];
    let mut child = detached::start(program, &arguments, LOG_FILTER, file)
        .map_err(|e| WgError::io(format!("start {}", program.display()), e))?;
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        match Control::find(name, runtime_dir) {
            Ok(Some(control)) => {
                detached::reap(child);
                return Ok(control);
            }
            Ok(None) => {}
            // Not one that we could use: it must not stay, nor its interface.
            Err(error) => {
                detached::give_up(&mut child);
                return Err(error);
            }
        }
        let ended = child.try_wait().ok().flatten();
        if ended.is_some() || Instant::now() > deadline {
            detached::give_up(&mut child);
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
