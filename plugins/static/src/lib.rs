//! Discovery from endpoints that the mesh file names.
//!
//! Each `endpoint` of a peer is resolved, and again after [`Settings::resolve_interval`]; sooner
//! while the peer is wanted or its name can't be resolved. An address is a name that resolves to
//! itself, so both go the same way.

mod settings;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use natpunch_plugin::{
    BoxFuture, CandidateKind, Descriptor, Discovery, Endpoint, Health, Host, Input, Observation,
    PeerInterest, PeerKey, PluginError,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

pub use settings::Settings;

/// The shortest time between two lookups of a name.
const MIN_INTERVAL: Duration = Duration::from_secs(5);
/// How many names are looked up at the same time. Each may occupy a thread.
const MAX_LOOKUPS: usize = 8;
/// How many addresses of one name are offered.
const MAX_ADDRESSES: usize = 8;

/// Discovery from the `endpoint`s of the mesh file.
#[derive(Debug)]
pub struct Plugin {
    interval: Duration,
}

impl Plugin {
    /// The plugin with these settings.
    pub fn new(settings: Settings) -> Result<Self, PluginError> {
        if !(1..=86_400).contains(&settings.resolve_interval) {
            return Err(PluginError::Setting {
                key: "resolve_interval".to_owned(),
                problem: format!(
                    "is {}, must be from 1 to 86400 seconds",
                    settings.resolve_interval
                ),
            });
        }
        Ok(Self {
            interval: Duration::from_secs(settings.resolve_interval.into()),
        })
    }
}

impl Discovery for Plugin {
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            id: "static",
            needs_private_key: false,
            needs_wireguard_port: false,
            carries_records: false,
        }
    }

    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async move {
            Run::new(self.interval, &*host).work().await;
            Ok(())
        })
    }
}

/// What is known of one peer's endpoint.
struct Entry {
    text: String,
    wanted: bool,
    /// When to look it up; `None` while that goes on.
    due: Option<Instant>,
    backoff: Duration,
    error: Option<String>,
}

type Found = (PeerKey, String, io::Result<Vec<SocketAddr>>);

/// One run of the plugin.
struct Run<'a> {
    interval: Duration,
    host: &'a dyn Host,
    entries: BTreeMap<PeerKey, Entry>,
    lookups: JoinSet<Found>,
}

impl<'a> Run<'a> {
    fn new(interval: Duration, host: &'a dyn Host) -> Self {
        Self {
            interval,
            host,
            entries: BTreeMap::new(),
            lookups: JoinSet::new(),
        }
    }

    async fn work(mut self) {
        let host = self.host;
        let mut input = host.next();
        loop {
            self.look_up();
            let wake = match self.entries.values().filter_map(|entry| entry.due).min() {
                Some(due) if self.lookups.len() < MAX_LOOKUPS => due,
                _ => Instant::now() + self.interval,
            };
            tokio::select! {
                next = &mut input => {
                    input = host.next();
                    match next {
                        Input::Peers(peers) => self.set_peers(&peers),
                        Input::NetworkChanged => self.entries.values_mut().for_each(Entry::look_up_now),
                        Input::Shutdown => return,
                        Input::Records(_) | Input::Datagram { .. } | Input::Meet(_) => {}
                    }
                }
                Some(found) = self.lookups.join_next() => {
                    if let Ok(found) = found {
                        self.handle_found(found);
                    }
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    fn set_peers(&mut self, peers: &[PeerInterest]) {
        let mut old = std::mem::take(&mut self.entries);
        for peer in peers {
            let Some(text) = peer.endpoint.clone() else {
                continue;
            };
            let mut entry = old
                .remove(&peer.key)
                .filter(|entry| entry.text == text)
                .unwrap_or_else(|| Entry {
                    text,
                    wanted: peer.wanted,
                    due: Some(Instant::now()),
                    backoff: MIN_INTERVAL,
                    error: None,
                });
            if peer.wanted && !entry.wanted {
                entry.look_up_now();
            }
            entry.wanted = peer.wanted;
            self.entries.insert(peer.key, entry);
        }
        self.report();
    }

    /// Starts the lookups that are due.
    fn look_up(&mut self) {
        let now = Instant::now();
        for (peer, entry) in &mut self.entries {
            if self.lookups.len() >= MAX_LOOKUPS {
                return;
            }
            if entry.due.is_some_and(|due| due <= now) {
                entry.due = None;
                let (peer, text) = (*peer, entry.text.clone());
                self.lookups.spawn(async move {
                    let found = resolve(&text).await;
                    (peer, text, found)
                });
            }
        }
    }

    fn handle_found(&mut self, (peer, text, found): Found) {
        // The file may have changed since.
        let Some(entry) = self
            .entries
            .get_mut(&peer)
            .filter(|entry| entry.text == text && entry.due.is_none())
        else {
            return;
        };
        let soon = entry.wanted || found.is_err();
        let wait = if soon {
            entry.backoff.min(self.interval)
        } else {
            self.interval
        };
        entry.backoff = if soon {
            entry.backoff.saturating_mul(2).min(self.interval)
        } else {
            MIN_INTERVAL
        };
        entry.due = Some(Instant::now() + wait);
        match found {
            Ok(addresses) => {
                debug!(peer = %peer.short(), endpoint = text, count = addresses.len(), "resolved");
                entry.error = None;
                for address in addresses.into_iter().take(MAX_ADDRESSES) {
                    self.host.observe(Observation {
                        peer,
                        address,
                        kind: CandidateKind::Mapped,
                        // Outlives two failures in a row.
                        lifetime: self.interval * 3 + Endpoint::LOOKUP_TIMEOUT,
                    });
                }
            }
            Err(error) => entry.error = Some(error.to_string()),
        }
        self.report();
    }

    fn report(&self) {
        let failed: Vec<_> = self
            .entries
            .values()
            .filter_map(|entry| Some((&entry.text, entry.error.as_ref()?)))
            .collect();
        let health = match failed.first() {
            None => Health::Good(format!("endpoints in the file: {}", self.entries.len())),
            Some((text, error)) => Health::Bad(format!(
                "{} of {} endpoints can't be resolved, such as {text}: {error}; check the name and this host's DNS",
                failed.len(),
                self.entries.len()
            )),
        };
        self.host.report(health);
    }
}

impl Entry {
    fn look_up_now(&mut self) {
        self.backoff = MIN_INTERVAL;
        if self.due.is_some() {
            self.due = Some(Instant::now());
        }
    }
}

async fn resolve(text: &str) -> io::Result<Vec<SocketAddr>> {
    let endpoint: Endpoint = text
        .parse()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    endpoint.resolve().await
}

#[cfg(test)]
mod tests;
