//! Discovery through sealed records on any web server.
//!
//! Each node puts the records that its host sealed for its peers at `URL/TAG`, and fetches those
//! that its peers left for it. With `natpunch serve --http` a long poll (`POST URL/poll`) brings a
//! change to the other side at once. Any other web server works for reading: then the records are
//! fetched as plain files, often while a peer is wanted and seldom else.
//!
//! Nothing that comes from the server is believed: records are opened by the host, which knows the
//! sender's key. What comes is bounded in size, rate and number. Tags are secrets of two peers and
//! never logged.

mod client;
mod fetch;
mod publish;
mod settings;
#[cfg(feature = "testing")]
pub mod testing;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use natpunch_plugin::{
    Ask, BoxFuture, Discovery, Health, Host, Input, Interest, PluginError, SealedRecord,
};
use natpunch_types::{lock, spread};
use tokio::sync::watch;

use client::Client;
pub use settings::{Settings, Store};

/// The http plugin.
#[derive(Debug)]
pub struct Plugin {
    store: Store,
}

impl Plugin {
    /// The plugin for this store.
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

impl Discovery for Plugin {
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(run(self.store.base.clone(), self.store.interval, host))
    }
}

/// What the host last said, for the publisher and the fetcher.
#[derive(Clone)]
struct Feeds {
    client: watch::Receiver<Client>,
    peers: watch::Receiver<Arc<[Interest]>>,
    records: watch::Receiver<Arc<[SealedRecord]>>,
}

async fn run(base: url::Url, interval: Duration, host: Arc<dyn Host>) -> Result<(), PluginError> {
    let new_client =
        || Client::new(base.clone()).map_err(|error| PluginError::Failed(error.to_string()));
    let (client, client_feed) = watch::channel(new_client()?);
    let (peers, peers_feed) = watch::channel(Arc::from([]));
    let (records, records_feed) = watch::channel(Arc::from([]));
    let feeds = Feeds {
        client: client_feed,
        peers: peers_feed,
        records: records_feed,
    };
    let outbox = Arc::new(publish::Outbox::default());
    let reporter = Arc::new(Reporter::new(host.clone()));
    let publisher = publish::run(feeds.clone(), outbox.clone(), reporter.clone());
    let fetcher = fetch::run(feeds, outbox, reporter, interval);
    tokio::pin!(publisher, fetcher);
    loop {
        let input = tokio::select! {
            input = host.next() => input,
            () = &mut publisher => return Ok(()),
            () = &mut fetcher => return Ok(()),
        };
        match input {
            Input::Ask(Ask::Peers(new)) => drop(peers.send_replace(new)),
            Input::Ask(Ask::Records(new)) => drop(records.send_replace(new)),
            // Connections of the old network hang until they time out: start over with none.
            Input::NetworkChanged => drop(client.send_replace(new_client()?)),
            Input::Datagram { .. } | Input::FromPeer { .. } | Input::Ask(Ask::Meet(_)) => {}
            Input::Shutdown => return Ok(()),
        }
    }
}

/// States the health of both directions as one.
struct Reporter {
    host: Arc<dyn Host>,
    state: Mutex<Directions>,
}

/// What last came of each direction.
#[derive(Debug, Default)]
struct Directions {
    publishing: Option<Result<String, String>>,
    fetching: Option<Result<String, String>>,
}

impl Reporter {
    fn new(host: Arc<dyn Host>) -> Self {
        Self {
            host,
            state: Mutex::default(),
        }
    }

    fn publishing(&self, outcome: Result<String, String>) {
        self.update(|state| state.publishing = Some(outcome));
    }

    fn fetching(&self, outcome: Result<String, String>) {
        self.update(|state| state.fetching = Some(outcome));
    }

    fn update(&self, change: impl FnOnce(&mut Directions)) {
        let health = {
            let mut state = lock(&self.state);
            change(&mut state);
            let all = [&state.publishing, &state.fetching];
            let text = |wanted: fn(&Result<String, String>) -> Option<&String>| {
                let texts: Vec<&str> = all
                    .into_iter()
                    .flatten()
                    .filter_map(wanted)
                    .map(String::as_str)
                    .collect();
                texts.join("; ")
            };
            match text(|outcome| outcome.as_ref().err()) {
                problems if problems.is_empty() => {
                    Health::Good(text(|outcome| outcome.as_ref().ok()))
                }
                problems => Health::Bad(problems),
            }
        };
        self.host.report(health);
    }

    fn jitter(&self, duration: Duration) -> Duration {
        let mut random = [0; 4];
        self.host.random(&mut random);
        spread(duration, u32::from_be_bytes(random))
    }
}

/// The wait after a failure: half a second, doubling up to half a minute.
#[derive(Debug)]
struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(500);
    const LAST: Duration = Duration::from_secs(30);

    fn new() -> Self {
        Self(Self::FIRST)
    }

    fn next(&mut self) -> Duration {
        let next = self.0;
        self.0 = (next * 2).min(Self::LAST);
        next
    }
}
