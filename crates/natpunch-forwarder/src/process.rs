//! The process: its control socket, and the tunnels that it holds.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use natpunch_os::detached;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Notify, Semaphore};
use tokio::time::timeout;

use crate::control::{Answer, LONGEST, Request, VERSION, Wanted};
use crate::tunnel::Tunnel;

/// Connections to the control socket at a time.
const MAX_CONNECTIONS: usize = 16;
/// Tunnels at a time.
const MAX_TUNNELS: usize = 16;
/// How long a client may take.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often is looked what is needed no more.
const SWEEP: Duration = Duration::from_secs(5);
/// How long the process stays without a tunnel.
const LINGER: Duration = Duration::from_secs(60);
const THREADS: usize = 2;

/// What the connections share.
struct Service {
    /// By what they are for, without the port.
    tunnels: Mutex<HashMap<Wanted, Tunnel>>,
    stop: Notify,
}

/// The body of `natpunch forwarder --socket PATH`: runs until it is told to stop, gets SIGTERM, or
/// nobody has needed it for a while.
///
/// # Errors
/// Another process has the socket, or the system lacks something.
pub fn run(socket: &Path) -> io::Result<()> {
    let _lock = detached::begin(socket)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()?
        .block_on(serve(socket))
}

async fn serve(path: &Path) -> io::Result<()> {
    let listener = UnixListener::from_std(detached::listen(path)?)?;
    let service = Arc::new(Service {
        tunnels: Mutex::default(),
        stop: Notify::new(),
    });
    let mut terminate = signal(SignalKind::terminate())?;
    tracing::info!("forwarder is up");
    let reason = tokio::select! {
        () = service.stop.notified() => "asked to stop",
        () = accept(listener, service.clone()) => "no agent can reach it any more",
        () = sweep(&service) => "no agent needs it any more",
        _ = terminate.recv() => "SIGTERM",
    };
    tracing::info!(reason, "forwarder ends");
    let _ = std::fs::remove_file(path);
    Ok(())
}

async fn accept(listener: UnixListener, service: Arc<Service>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(permit) = connections.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = service.clone();
                tokio::spawn(async move {
                    let _ = timeout(CLIENT_TIMEOUT, service.converse(stream)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Ends what is needed no more, and returns when nothing has been for a while.
async fn sweep(service: &Service) {
    let mut needed = Instant::now();
    while needed.elapsed() < LINGER {
        tokio::time::sleep(SWEEP).await;
        let mut tunnels = service.tunnels.lock().await;
        tunnels.retain(|_, tunnel| !tunnel.is_idle());
        if !tunnels.is_empty() {
            needed = Instant::now();
        }
    }
}

impl Service {
    /// Answers one request.
    async fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut line = String::new();
        let mut reader = BufReader::new(reader).take(LONGEST as u64);
        reader.read_line(&mut line).await?;
        let answer = match serde_json::from_str(&line) {
            Ok(request) => self.answer(request).await,
            Err(error) => Answer::Refused(error.to_string()),
        };
        let mut text = serde_json::to_vec(&answer).map_err(io::Error::other)?;
        text.push(b'\n');
        writer.write_all(&text).await
    }

    async fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Hello => Answer::Hello { version: VERSION },
            Request::Stop => {
                self.stop.notify_one();
                Answer::Stopped
            }
            Request::Open(wanted) => {
                let mut tunnels = self.tunnels.lock().await;
                let of = Wanted {
                    port: 0,
                    ..wanted.clone()
                };
                if !tunnels.contains_key(&of) && tunnels.len() >= MAX_TUNNELS {
                    return Answer::Refused("too many servers".to_owned());
                }
                let tunnel = tunnels.entry(of).or_insert_with_key(Tunnel::start);
                match tunnel.open(wanted.port).await {
                    Ok(opened) => Answer::Opened(opened),
                    Err(error) => Answer::Refused(error.to_string()),
                }
            }
        }
    }
}
