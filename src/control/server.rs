//! The agent's end of the control socket.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use natpunch_os::private;
use natpunch_types::Time;
use natpunch_types::with_help;
use nix::unistd::{Gid, Group};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{Reply, Request};

const MAX_REQUEST: u64 = 4096;
const MAX_CONNECTIONS: usize = 16;
/// How many of them may be the group's: it can't keep root away.
const MAX_READERS: usize = 8;
const IDLE: Duration = Duration::from_secs(60);

/// A request.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// When its connection was made.
    pub connected: Time,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Reply>,
}

/// A group of this host whose members may ask an agent, and change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readers(Gid);

impl FromStr for Readers {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if let Ok(number) = name.parse() {
            return Ok(Self(Gid::from_raw(number)));
        }
        match Group::from_name(name) {
            Ok(Some(group)) => Ok(Self(group.gid)),
            Ok(None) => {
                Err("this host has no such group; make it: groupadd --system NAME".to_owned())
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Readers {
    /// Lets the group in, to look into a directory or to speak to a socket.
    fn admit(self, path: &Path, mode: u32) -> io::Result<()> {
        std::os::unix::fs::chown(path, None, Some(self.0.as_raw()))
            .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
            .map_err(|error| {
                let problem = format!("can't let group {} in: {error}", self.0);
                let help = "run the agent in this group: `Group=` of its unit";
                io::Error::new(error.kind(), with_help(problem, [help]))
            })
    }
}

/// Listens until it is dropped, and then removes the socket.
pub struct Server {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens on `path` and passes requests to `calls`. A stale socket of a dead agent is
    /// replaced; a living agent's is an error of kind `AddrInUse`. The group of `readers` may ask,
    /// and look for the sockets in the directory.
    ///
    /// # Errors
    /// The directory or the socket can't be made, or somebody answers there already.
    pub async fn listen(
        path: &Path,
        readers: Option<Readers>,
        calls: mpsc::Sender<Call>,
    ) -> io::Result<Self> {
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another agent answers there",
            ));
        }
        if let Some(directory) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)?;
            private::check_directory(directory).map_err(io::Error::other)?;
            if let Some(readers) = readers {
                readers.admit(directory, 0o750)?;
            }
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        if let Some(readers) = readers {
            readers.admit(path, 0o660)?;
        }
        let readers = readers.map(|_| Arc::new(Semaphore::new(MAX_READERS)));
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let task = tokio::spawn(async move {
            loop {
                let Ok(place) = places.clone().acquire_owned().await else {
                    return;
                };
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let (calls, readers) = (calls.clone(), readers.clone());
                        tokio::spawn(async move {
                            if let Err(error) = serve(stream, readers, calls).await {
                                tracing::debug!(%error, "control connection ended");
                            }
                            drop(place);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "control socket can't accept");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        });
        Ok(Self {
            path: path.to_owned(),
            task,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves one connection. `readers` are the places of the group; `None`: it has none.
async fn serve(
    stream: UnixStream,
    readers: Option<Arc<Semaphore>>,
    calls: mpsc::Sender<Call>,
) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let controls = uid == 0 || uid == nix::unistd::geteuid().as_raw();
    // Others come as far as this by the modes of the directory and the socket, which let in the
    // group and are root's to change.
    let _place = match readers {
        _ if controls => None,
        Some(places) => Some(places.try_acquire_owned().map_err(io::Error::other)?),
        None => {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("user {uid} may not control the agent"),
            ));
        }
    };
    let connected = natpunch_net::now();
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = String::new();
        let mut limited = (&mut read).take(MAX_REQUEST);
        match tokio::time::timeout(IDLE, limited.read_line(&mut line)).await {
            Err(_) | Ok(Ok(0)) => return Ok(()),
            Ok(read) => _ = read?,
        }
        if !line.ends_with('\n') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "request is too long",
            ));
        }
        let reply = match serde_json::from_str::<Request>(&line) {
            Err(error) => Reply::Error(format!("not a request: {error}")),
            Ok(request) if !controls && !request.only_reads() => Reply::Error(
                "the group of the control socket may only ask; help: run this as root, or as the \
                 user that runs the agent"
                    .to_owned(),
            ),
            Ok(request) => {
                let (answer, answered) = oneshot::channel();
                if calls
                    .send(Call {
                        request,
                        connected,
                        answer,
                    })
                    .await
                    .is_err()
                {
                    return Ok(());
                }
                answered
                    .await
                    .unwrap_or_else(|_| Reply::Error("the agent is stopping".to_owned()))
            }
        };
        let mut text = serde_json::to_vec(&reply)?;
        text.push(b'\n');
        write.write_all(&text).await?;
    }
}
