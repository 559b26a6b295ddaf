//! The agent's side: find the forwarder, start it, ask it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use natpunch_os::detached;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::control::{Answer, LONGEST, Opened, Request, VERSION, Wanted};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a process may take to appear, on a machine that is busy.
const START: Duration = Duration::from_secs(10);
/// How often is looked.
const POLL: Duration = Duration::from_millis(5);
/// A longer log is started anew with the next process.
const MAX_LOG: u64 = 1 << 20;

/// Where the forwarder of an interface is asked.
pub fn socket_path(runtime_dir: &Path, interface: &str) -> PathBuf {
    runtime_dir.join(format!("{interface}.forwarder.sock"))
}

/// The forwarder of an interface, started when it is needed.
#[derive(Debug)]
pub struct Forwarder {
    program: PathBuf,
    socket: PathBuf,
    /// One start at a time.
    starting: Mutex<()>,
}

impl Forwarder {
    /// That of an interface; `program` is natpunch.
    pub fn new(program: PathBuf, runtime_dir: &Path, interface: &str) -> Self {
        Self {
            program,
            socket: socket_path(runtime_dir, interface),
            starting: Mutex::new(()),
        }
    }

    /// A port of a server, as it is on this host. To be asked again at least every minute, as long
    /// as it is needed.
    ///
    /// # Errors
    /// The process can't be started, or refuses.
    pub async fn open(&self, wanted: Wanted) -> io::Result<Opened> {
        self.ensure().await?;
        match ask(&self.socket, &Request::Open(wanted)).await? {
            Answer::Opened(opened) => Ok(opened),
            Answer::Refused(problem) => Err(io::Error::other(problem)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Starts the process, unless one of this version answers.
    async fn ensure(&self) -> io::Result<()> {
        let _one = self.starting.lock().await;
        match ask(&self.socket, &Request::Hello).await {
            Ok(Answer::Hello { version }) if version == VERSION => return Ok(()),
            // Of another version, or it is none.
            Ok(_) => stop_at(&self.socket).await,
            Err(_) => {}
        }
        let log = self.socket.with_extension("log");
        let opened = detached::open_log(&log, MAX_LOG)?;
        let arguments = [
            "forwarder".as_ref(),
            "--socket".as_ref(),
            self.socket.as_os_str(),
        ];
        let mut child = detached::start(&self.program, &arguments, "info", opened)?;
        let deadline = Instant::now() + START;
        loop {
            if let Ok(Answer::Hello { .. }) = ask(&self.socket, &Request::Hello).await {
                detached::reap(child);
                return Ok(());
            }
            let ended = child.try_wait().ok().flatten();
            if ended.is_some() || Instant::now() > deadline {
                detached::give_up(&mut child);
                return Err(io::Error::other(format!(
                    "the forwarder did not start; see {}",
                    log.display()
                )));
            }
            sleep(POLL).await;
        }
    }
}

/// Stops the forwarder of an interface, if one runs. For callers without a runtime.
pub fn stop(runtime_dir: &Path, interface: &str) {
    let socket = socket_path(runtime_dir, interface);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    if let Ok(runtime) = runtime {
        runtime.block_on(stop_at(&socket));
    }
    for left in ["lock", "log"] {
        let _ = std::fs::remove_file(socket.with_extension(left));
    }
}

/// Asks for the end, and waits until nobody answers.
async fn stop_at(socket: &Path) {
    if ask(socket, &Request::Stop).await.is_err() {
        return;
    }
    let deadline = Instant::now() + ANSWER;
    while Instant::now() < deadline && ask(socket, &Request::Hello).await.is_ok() {
        sleep(POLL).await;
    }
}

async fn ask(socket: &Path, request: &Request) -> io::Result<Answer> {
    let converse = async {
        let (reader, mut writer) = UnixStream::connect(socket).await?.into_split();
        let mut text = serde_json::to_vec(request).map_err(io::Error::other)?;
        text.push(b'\n');
        writer.write_all(&text).await?;
        let mut line = String::new();
        let mut reader = BufReader::new(reader).take(LONGEST as u64);
        reader.read_line(&mut line).await?;
        serde_json::from_str(&line).map_err(io::Error::other)
    };
    timeout(ANSWER, converse).await?
}
