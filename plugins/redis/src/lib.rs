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
mod session;
mod settings;
#[cfg(feature = "testing")]
pub mod testing;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use natpunch_plugin::{
    Ask, BoxFuture, Discovery, Health, Host, Input, News, Password, PluginError, resolve,
};
use natpunch_redis::{Connection, Moved, Stream, Trouble, dial};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use tokio::time::sleep;

use client::Client;
pub use settings::{Settings, Store};

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
    Moved(Moved),
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
                moved = next(&mut self.connection, &mut buffer) => Happened::Moved(moved),
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
                | Happened::Moved(Moved::Wrote(Ok(()))) => {}
                Happened::Dialed(outcome) => self.handle_dialed(outcome),
                Happened::Moved(Moved::Read(Ok(0))) => {
                    self.client.handle_lost(Trouble::Closed, now);
                }
                Happened::Moved(Moved::Read(Ok(length))) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    self.client.handle_bytes(bytes, now);
                }
                Happened::Moved(Moved::Read(Err(error)) | Moved::Wrote(Err(error))) => {
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
            let found = resolve(&store.endpoint);
            self.dialing = Some(Box::pin(dial(&store.endpoint, store.tls.as_ref(), found)));
        }
        if let Some(connection) = &mut self.connection {
            while let Some(bytes) = self.client.poll_transmit(now) {
                connection.send(&bytes);
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

/// What the connection does next, if there is one.
async fn next(connection: &mut Option<Connection>, buffer: &mut [u8]) -> Moved {
    match connection {
        Some(connection) => connection.next(buffer).await,
        None => pending().await,
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
