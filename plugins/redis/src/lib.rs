//! Discovery through sealed records in a Redis or Valkey server.
//!
//! Each node keeps the records that its host sealed for its peers in the server, one key for each
//! tag, which expires unless it is stored again. It publishes each that is new on the channel of
//! the same name, so that a peer that is connected has it at once.
//!
//! The client is of its own: those that there are hold whole replies, however long, in queues
//! without bounds, and a server is nobody to trust. Nothing that comes from it is believed:
//! records are opened by the host, which knows the sender's key. Tags are secrets of two peers and
//! never logged.

mod client;
mod dial;
mod resp;
mod session;
mod settings;
#[cfg(feature = "testing")]
pub mod testing;
mod trouble;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use natpunch_plugin::{
    Ask, BoxFuture, Discovery, Health, Host, Input, News, Password, PluginError,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::time::sleep;

use client::Client;
use dial::{Stream, dial};
pub use settings::{Settings, Store};
use trouble::Trouble;

/// How much is read at a time, in bytes.
const PIECE: usize = 8 << 10;

/// The redis plugin.
#[derive(Debug)]
pub struct Plugin {
    store: Store,
    /// The password, or what is wrong with its file.
    password: Result<Option<Password>, String>,
}

impl Plugin {
    /// The plugin for this server.
    pub fn new(store: Store, password: Result<Option<Password>, String>) -> Self {
        Self { store, password }
    }
}

impl Discovery for Plugin {
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async move {
            let password = self.password.clone().map_err(PluginError::Failed)?;
            Run::new(&self.store, password, &*host).work().await;
            Ok(())
        })
    }
}

/// One run of the plugin.
struct Run<'a> {
    store: &'a Store,
    host: &'a dyn Host,
    client: Client,
    /// A connection that is being made.
    dialing: Option<BoxFuture<'a, Result<Stream, String>>>,
    connection: Option<Connection>,
}

/// What happened next.
enum Happened {
    Told(Input),
    Dialed(Result<Stream, String>),
    /// So many bytes came, and are in the buffer; none at the end.
    Read(std::io::Result<usize>),
    Wrote(std::io::Result<()>),
    TimedOut,
}

impl<'a> Run<'a> {
    fn new(store: &'a Store, password: Option<Password>, host: &'a dyn Host) -> Self {
        let mut seed = [0; 32];
        host.random(&mut seed);
        let random = ChaCha20Rng::from_seed(seed);
        let config = store.config(password);
        Self {
            store,
            host,
            client: Client::new(config, random, host.now()),
            dialing: None,
            connection: None,
        }
    }

    async fn work(mut self) {
        let mut buffer = vec![0; PIECE];
        loop {
            self.drain();
            let timeout = self.client.poll_timeout();
            let wait = timeout.map(|at| at.since(self.host.now()));
            let happened = tokio::select! {
                input = self.host.next() => Happened::Told(input),
                dialed = dialed(&mut self.dialing) => Happened::Dialed(dialed),
                happened = next(&mut self.connection, &mut buffer) => happened,
                () = due(wait) => Happened::TimedOut,
            };
            let now = self.host.now();
            match happened {
                Happened::Told(Input::Ask(Ask::Peers(peers))) => {
                    self.client
                        .set_tags(peers.iter().map(|peer| peer.inbound_tag));
                }
                Happened::Told(Input::Ask(Ask::Records(records))) => {
                    self.client.set_records(&records);
                }
                Happened::Told(Input::NetworkChanged) => self.client.handle_network_change(now),
                Happened::Told(Input::Shutdown) => return,
                Happened::Told(
                    Input::Datagram { .. } | Input::FromPeer { .. } | Input::Ask(Ask::Meet(_)),
                )
                | Happened::TimedOut
                | Happened::Wrote(Ok(())) => {}
                Happened::Dialed(outcome) => self.handle_dialed(outcome),
                Happened::Read(Ok(0)) => self.client.handle_lost(Trouble::Closed, now),
                Happened::Read(Ok(length)) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    self.client.handle_bytes(bytes, now);
                }
                Happened::Read(Err(error)) | Happened::Wrote(Err(error)) => {
                    let problem = format!("{}: {error}", self.store.endpoint);
                    self.client.handle_lost(Trouble::Unreachable(problem), now);
                }
            }
            // After what has come: an answer that was read late is none that is overdue.
            self.client.handle_timeout(now);
        }
    }

    fn handle_dialed(&mut self, outcome: Result<Stream, String>) {
        self.dialing = None;
        let now = self.host.now();
        match outcome {
            Ok(stream) => {
                self.connection = Some(Connection::new(stream));
                self.client.handle_connected(now);
            }
            Err(problem) => self.client.handle_lost(Trouble::Unreachable(problem), now),
        }
    }

    /// Does what the client asks for.
    fn drain(&mut self) {
        let now = self.host.now();
        while let Some(record) = self.client.poll_news() {
            self.host.tell(News::Record(record));
        }
        if !self.client.is_up() {
            self.connection = None;
        }
        if self.client.poll_connect(now) {
            let store = self.store;
            self.dialing = Some(Box::pin(dial(&store.endpoint, store.tls.as_ref())));
        }
        if let Some(connection) = &mut self.connection {
            while let Some(bytes) = self.client.poll_transmit(now) {
                connection.unsent.extend(bytes);
            }
        }
        if let Some(health) = self.client.health() {
            let server = &self.store.endpoint;
            self.host.report(match health {
                Health::Good(note) => Health::Good(format!("{server}: {note}")),
                Health::Bad(note) => Health::Bad(format!("{server}: {note}")),
            });
        }
    }
}

/// A connection, and what it has not taken yet: at most the commands of a window.
struct Connection {
    reader: ReadHalf<Stream>,
    writer: WriteHalf<Stream>,
    unsent: Vec<u8>,
    /// TLS may hold back what was written.
    is_flushed: bool,
}

impl Connection {
    fn new(stream: Stream) -> Self {
        let (reader, writer) = split(stream);
        Self {
            reader,
            writer,
            unsent: Vec::new(),
            is_flushed: true,
        }
    }

    /// Writes some of what is unsent. Nothing is lost when it is dropped before its end.
    async fn write(
        writer: &mut WriteHalf<Stream>,
        unsent: &mut Vec<u8>,
        is_flushed: &mut bool,
    ) -> std::io::Result<()> {
        if unsent.is_empty() {
            writer.flush().await?;
            *is_flushed = true;
            return Ok(());
        }
        match writer.write(unsent).await? {
            0 => Err(std::io::ErrorKind::WriteZero.into()),
            written => {
                unsent.drain(..written);
                *is_flushed = false;
                Ok(())
            }
        }
    }
}

/// What the connection does next, if there is one.
async fn next(connection: &mut Option<Connection>, buffer: &mut [u8]) -> Happened {
    let Some(connection) = connection else {
        return pending().await;
    };
    let Connection {
        reader,
        writer,
        unsent,
        is_flushed,
    } = connection;
    let has_work = !unsent.is_empty() || !*is_flushed;
    tokio::select! {
        read = reader.read(buffer) => Happened::Read(read),
        wrote = Connection::write(writer, unsent, is_flushed), if has_work => Happened::Wrote(wrote),
    }
}

async fn dialed(
    dialing: &mut Option<BoxFuture<'_, Result<Stream, String>>>,
) -> Result<Stream, String> {
    match dialing {
        Some(dialing) => dialing.await,
        None => pending().await,
    }
}

async fn due(wait: Option<Duration>) {
    match wait {
        Some(wait) => sleep(wait).await,
        None => pending().await,
    }
}
