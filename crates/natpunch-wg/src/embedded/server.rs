//! The two sockets of the device process, and what is said on them.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use natpunch_os::detached;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify, Semaphore};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::PROTOCOL_VERSION;
use super::driver::Driver;
use crate::pins::Holding;
use crate::uapi::codec;

/// Connections at once, on both sockets together.
const MAX_CONNECTIONS: usize = 32;
/// The longest request: 10,000 networks and their peers, several times over.
const MAX_REQUEST: u64 = 16 << 20;
/// How long a client may take for a request, or stay silent.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

/// A socket file that is removed again.
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens at `path`, in a directory for root's eyes only. The caller knows that a file there is
/// stale.
pub(super) fn listen(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    let listener = UnixListener::from_std(detached::listen(path)?)?;
    Ok((listener, SocketFile(path.into())))
}

/// What the connections share.
#[derive(Clone)]
pub(super) struct Service {
    driver: Arc<Mutex<Driver>>,
    connections: Arc<Semaphore>,
    stop: Arc<Notify>,
    /// Somebody has changed the device: its driver may have something to do soon.
    changed: Arc<Notify>,
}

impl Service {
    pub(super) fn new(driver: Driver) -> Self {
        Self {
            driver: Arc::new(Mutex::new(driver)),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            stop: Arc::new(Notify::new()),
            changed: Arc::new(Notify::new()),
        }
    }

    /// Ends when a client asked for the end of the device.
    pub(super) async fn stopped(&self) {
        self.stop.notified().await;
    }

    /// Gives the driver its turns, for ever.
    pub(super) async fn drive(self) {
        loop {
            let pause = self.driver.lock().await.turn().await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Serves one socket, for ever. Only the control socket has `hello`, `stop` and
    /// what pins need.
    pub(super) async fn serve(self, listener: UnixListener, control: bool) {
        loop {
            let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let service = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = service.converse(stream, control).await {
                            tracing::debug!(%error, "connection");
                        }
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

    async fn converse(&self, stream: UnixStream, control: bool) -> io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        loop {
            let Some(request) = timeout(CLIENT_TIMEOUT, read_request(&mut reader)).await?? else {
                return Ok(());
            };
            let answer = self.answer(&request, control).await;
            timeout(CLIENT_TIMEOUT, writer.write_all(answer.as_bytes())).await??;
        }
    }

    async fn answer(&self, request: &str, control: bool) -> Zeroizing<String> {
        let (operation, body) = request.split_once('\n').unwrap_or((request, ""));
        let outcome = match operation {
            "get=1" => Ok(codec::format_get(&self.driver.lock().await.get().await)),
            "set=1" => self.set(body).await.map(|()| Zeroizing::default()),
            "hello=1" if control => Ok(Zeroizing::new(format!(
                "protocol={PROTOCOL_VERSION}\nversion={}\npid={}\nreplaced={}\n",
                env!("CARGO_PKG_VERSION"),
                std::process::id(),
                u8::from(is_replaced())
            ))),
            "pins=1" if control => Ok(self.pins().await),
            "set_pins=1" if control => match Holding::parse(body) {
                Some(wanted) => self.set_pins(&wanted).await,
                None => Err(libc::EINVAL),
            },
            "stop=1" if control => {
                self.stop.notify_one();
                Ok(Zeroizing::default())
            }
            _ => Err(libc::EINVAL),
        };
        match outcome {
            Ok(mut text) => {
                text.push_str("errno=0\n\n");
                text
            }
            Err(errno) => Zeroizing::new(format!("errno=-{errno}\n\n")),
        }
    }

    async fn pins(&self) -> Zeroizing<String> {
        let pins = self.driver.lock().await.pins();
        Zeroizing::new(Holding::of(0, &pins).format())
    }

    async fn set_pins(&self, wanted: &Holding) -> Result<Zeroizing<String>, i32> {
        let outcome = self.driver.lock().await.set_pins(&wanted.set()).await;
        outcome.map_err(|errno| {
            tracing::warn!(%errno, "can't hold pins");
            errno as i32
        })?;
        Ok(self.pins().await)
    }

    async fn set(&self, body: &str) -> Result<(), i32> {
        let request = codec::parse_set(body).map_err(|error| {
            tracing::warn!(%error, "refused request");
            libc::EINVAL
        })?;
        let outcome = self.driver.lock().await.set(request).await;
        self.changed.notify_one();
        outcome.map_err(|errno| {
            tracing::warn!(%errno, "failed request");
            errno as i32
        })
    }
}

/// Whether the program file of this process was removed or replaced: the kernel says so behind its
/// name.
fn is_replaced() -> bool {
    std::fs::read_link("/proc/self/exe").is_ok_and(|program| {
        program
            .as_os_str()
            .as_encoded_bytes()
            .ends_with(b" (deleted)")
    })
}

/// Reads up to the empty line. `None` is the end of the connection.
pub(crate) async fn read_request(
    reader: &mut BufReader<tokio::net::unix::OwnedReadHalf>,
) -> io::Result<Option<Zeroizing<String>>> {
    let mut reader = reader.take(MAX_REQUEST);
    let mut request = Zeroizing::new(String::new());
    loop {
        let before = request.len();
        if reader.read_line(&mut request).await? == 0 {
            return if reader.limit() == 0 {
                Err(io::ErrorKind::FileTooLarge.into())
            } else {
                Ok(None)
            };
        }
        if request.get(before..) == Some("\n") {
            if before > 0 {
                request.truncate(before);
                return Ok(Some(request));
            }
            request.clear();
        }
    }
}
