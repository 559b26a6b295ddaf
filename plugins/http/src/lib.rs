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

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use natpunch_plugin::{
    BoxFuture, Descriptor, Discovery, Health, Host, Input, PeerInterest, PluginError, SealedRecord,
};
use tokio::sync::watch;

use client::Client;
#[doc(hidden)]
pub use client::read_answer;

/// `[discovery.NAME]` with `plugin = "http"`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the records are: `https://HOST/v1` for a `natpunch serve --http` behind TLS, or any
    /// directory on a web server.
    pub url: String,
    /// STUN servers, `HOST:PORT`, that tell this node its address as the internet sees it. HTTP
    /// can't: its port is another one. `natpunch serve` answers STUN on its UDP port.
    #[serde(default)]
    pub stun: Vec<String>,
    /// Seconds between two looks for a wanted peer's record on a server without long poll; for
    /// other peers it is 20 times as long.
    #[serde(default = "default_interval")]
    #[schemars(range(min = 1, max = 3600))]
    pub interval: u64,
}

fn default_interval() -> u64 {
    3
}

/// The http plugin.
#[derive(Debug)]
pub struct Plugin {
    base: url::Url,
    interval: Duration,
}

impl Plugin {
    /// The value of `plugin = "…"`.
    pub const ID: &'static str = "http";

    /// A plugin with these settings.
    ///
    /// # Errors
    /// If a setting is wrong; the error names its key.
    pub fn new(settings: Settings) -> Result<Self, PluginError> {
        let wrong = |key: &str, problem: String| PluginError::Setting {
            key: key.to_owned(),
            problem,
        };
        let mut base = url::Url::parse(settings.url.trim()).map_err(|error| {
            wrong(
                "url",
                format!("{error}; a URL looks like https://rv.example.org/v1"),
            )
        })?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none_or(str::is_empty) {
            return Err(wrong(
                "url",
                "an http or https URL is needed, such as https://rv.example.org/v1".to_owned(),
            ));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(wrong(
                "url",
                "the mesh file is no place for a password; records need none".to_owned(),
            ));
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err(wrong(
                "url",
                "the tags are appended to the URL, so it has no ? and no #".to_owned(),
            ));
        }
        // Joining replaces what follows the last slash.
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        if !(1..=3_600).contains(&settings.interval) {
            return Err(wrong(
                "interval",
                format!("{} is not between 1 and 3600 seconds", settings.interval),
            ));
        }
        Ok(Self {
            base,
            interval: Duration::from_secs(settings.interval),
        })
    }
}

impl Discovery for Plugin {
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            id: Self::ID,
            needs_private_key: false,
            needs_wireguard_port: false,
            carries_records: true,
        }
    }

    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(run(self.base.clone(), self.interval, host))
    }
}

/// What the host last said, for the publisher and the fetcher.
#[derive(Clone)]
struct Feeds {
    client: watch::Receiver<Client>,
    peers: watch::Receiver<Arc<[PeerInterest]>>,
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
            Input::Peers(new) => drop(peers.send_replace(new)),
            Input::Records(new) => drop(records.send_replace(new)),
            // Connections of the old network hang until they time out: start over with none.
            Input::NetworkChanged => drop(client.send_replace(new_client()?)),
            Input::Datagram { .. } | Input::Meet(_) => {}
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
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Somewhere between three quarters and five quarters of a duration, so that nodes don't act in
    /// step.
    fn jitter(&self, duration: Duration) -> Duration {
        let mut byte = [0; 1];
        self.host.random(&mut byte);
        duration.mul_f64(0.75 + f64::from(u8::from_be_bytes(byte)) / 512.0)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Settings {
        Settings {
            url: url.to_owned(),
            stun: vec![],
            interval: 3,
        }
    }

    #[test]
    fn a_tag_is_appended_to_the_url_with_or_without_a_slash() {
        for url in [
            "https://rv.example.org/v1",
            "https://rv.example.org/v1/",
            " https://rv.example.org/v1 ",
        ] {
            assert_eq!(
                Plugin::new(settings(url)).unwrap().base.as_str(),
                "https://rv.example.org/v1/"
            );
        }
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (url, words) in [
            ("rv.example.org", "URL"),
            ("ftp://rv.example.org", "http"),
            ("https://a:b@rv.example.org", "password"),
            ("https://rv.example.org/?a", "?"),
        ] {
            match Plugin::new(settings(url)) {
                Err(PluginError::Setting { key, problem }) => {
                    assert!(key == "url" && problem.contains(words), "{problem}")
                }
                other => panic!("{url}: {other:?}"),
            }
        }
        let zero = Settings {
            interval: 0,
            ..settings("https://rv.example.org")
        };
        assert!(
            matches!(Plugin::new(zero), Err(PluginError::Setting { key, .. }) if key == "interval")
        );
    }
}
