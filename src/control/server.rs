//! The agent's end of the control socket.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use natpunch_os::private;
use natpunch_types::Time;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{Reply, Request};

const MAX_REQUEST: u64 = 4096;
const MAX_CONNECTIONS: usize = 16;
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

/// Listens until it is dropped, and then removes the socket.
pub struct Server {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens on `path` and passes requests to `calls`. A stale socket of a dead agent is
    /// replaced; a living agent's is an error of kind `AddrInUse`.
    ///
    /// # Errors
    /// The directory or the socket can't be made, or somebody answers there already.
    pub async fn listen(path: &Path, calls: mpsc::Sender<Call>) -> io::Result<Self> {
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
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let task = tokio::spawn(async move {
            loop {
                let Ok(place) = places.clone().acquire_owned().await else {
                    return;
                };
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let calls = calls.clone();
                        tokio::spawn(async move {
                            if let Err(error) = serve(stream, calls).await {
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

async fn serve(stream: UnixStream, calls: mpsc::Sender<Call>) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("user {uid} may not control the agent"),
        ));
    }
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
