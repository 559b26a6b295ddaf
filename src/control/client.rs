//! The command line's end of the control socket. Blocking: these commands do one thing.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use natpunch_os::private::check_listener_in;

use super::{Reply, Request, socket_path};

/// A mesh of 10,000 peers has a status of some MiB.
const MAX_REPLY: u64 = 64 << 20;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why an agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No agent answers.
    #[error("no natpunch agent answers at {path}")]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// It is not ours to ask.
    #[error("may not open {path}: it belongs to the agent's user")]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// It takes requests and does not answer them.
    #[error("the agent at {} (process {pid}) did not answer within {} s", path.display(), patience.as_secs())]
    Hung {
        /// The socket.
        path: PathBuf,
        /// Its process.
        pid: i32,
        /// How long was waited.
        patience: Duration,
    },
    /// The conversation failed.
    #[error("the agent at {path} did not answer: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent refused.
    #[error("{0}")]
    Refused(String),
}

/// A connection to an agent.
pub struct Client {
    path: PathBuf,
    pid: i32,
    patience: Duration,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the agent of `interface`.
    ///
    /// # Errors
    /// No agent answers, or it is not ours to ask.
    pub fn connect(directory: &Path, interface: &str) -> Result<Self, ControlError> {
        Self::connect_to(socket_path(directory, interface))
    }

    /// Connects to a socket.
    ///
    /// # Errors
    /// No agent answers, or this user may not ask it.
    pub fn connect_to(path: PathBuf) -> Result<Self, ControlError> {
        let connect = || -> io::Result<(UnixStream, i32)> {
            let stream = UnixStream::connect(&path)?;
            let pid = check_listener_in(directory_of(&path), &stream)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            Ok((stream, pid))
        };
        match connect() {
            Ok((stream, pid)) => Ok(Self {
                path,
                pid,
                patience: TIMEOUT,
                stream: BufReader::new(stream),
            }),
            Err(source) => Err(match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ControlError::NotRunning { path }
                }
                io::ErrorKind::PermissionDenied => ControlError::Denied { path },
                _ => ControlError::Io { path, source },
            }),
        }
    }

    /// Waits longer for answers than the 10 s that most take at worst.
    ///
    /// # Errors
    /// The connection broke.
    pub fn set_patience(&mut self, patience: Duration) -> Result<(), ControlError> {
        self.patience = patience;
        let set = self.stream.get_ref().set_read_timeout(Some(patience));
        set.map_err(|source| ControlError::Io {
            path: self.path.clone(),
            source,
        })
    }

    /// The process at the other end.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// The connection broke, or the agent refused.
    pub fn ask(&mut self, request: Request) -> Result<serde_json::Value, ControlError> {
        let mut exchange = || -> io::Result<Reply> {
            let mut text = serde_json::to_vec(&request)?;
            text.push(b'\n');
            self.stream.get_mut().write_all(&text)?;
            let mut line = String::new();
            (&mut self.stream).take(MAX_REPLY).read_line(&mut line)?;
            if line.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(serde_json::from_str(&line)?)
        };
        match exchange() {
            Ok(Reply::Ok(value)) => Ok(value),
            Ok(Reply::Error(problem)) => Err(ControlError::Refused(problem)),
            // A blocking socket says so when its time is over.
            Err(source)
                if matches!(
                    source.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                Err(ControlError::Hung {
                    path: self.path.clone(),
                    pid: self.pid,
                    patience: self.patience,
                })
            }
            Err(source) => Err(ControlError::Io {
                path: self.path.clone(),
                source,
            }),
        }
    }
}

fn directory_of(socket: &Path) -> &Path {
    socket.parent().unwrap_or(Path::new("."))
}

/// The interfaces whose agents have a socket in `directory`, sorted. Those of dead agents are left
/// out.
pub fn running(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .filter_map(|entry| {
            entry
                .ok()?
                .file_name()
                .into_string()
                .ok()?
                .strip_suffix(".agent.sock")
                .map(str::to_owned)
        })
        .filter(|name| UnixStream::connect(socket_path(directory, name)).is_ok())
        .collect();
    names.sort();
    names
}
