//! Discovery from endpoints that the mesh file names.
//!
//! Each `endpoint` of a peer is resolved, and again after [`Settings::resolve_interval`]; sooner
//! while the peer is wanted or its name can't be resolved. An address is offered at once, whatever
//! the name servers do. Names wait for one of few lookups at a time, the one that is due longest
//! first: a name that nobody answers for comes after all others that wait.

mod settings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use natpunch_plugin::{
    Ask, BoxFuture, Candidate, CandidateKind, Discovery, Endpoint, Health, Host, Input, Interest,
    LOOKUP_TIMEOUT, News, PeerKey, PluginError, resolve,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

pub use settings::{Endpoints, Settings};

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
    /// The plugin for these.
    pub fn new(Endpoints { interval }: Endpoints) -> Self {
        Self { interval }
    }
}

impl Discovery for Plugin {
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async move {
            Run::new(self.interval, &*host).work().await;
            Ok(())
        })
    }
}

/// What is known of one peer's endpoint.
struct Entry {
    text: Arc<str>,
    /// What it says, or what is wrong with it.
    endpoint: Result<Endpoint, String>,
    wanted: bool,
    /// When to look it up; `None` while that goes on.
    due: Option<Instant>,
    backoff: Duration,
    error: Option<String>,
}

type Found = (PeerKey, Arc<str>, Result<Vec<SocketAddr>, String>);

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
            let wake = self
                .next_due()
                .unwrap_or_else(|| Instant::now() + self.interval);
            tokio::select! {
                next = &mut input => {
                    input = host.next();
                    match next {
                        Input::Ask(Ask::Peers(peers)) => self.set_peers(&peers),
                        Input::NetworkChanged => self.entries.values_mut().for_each(Entry::look_up_now),
                        Input::Shutdown => return,
                        Input::Ask(_) | Input::Datagram { .. } | Input::FromPeer { .. } => {}
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

    fn set_peers(&mut self, peers: &[Interest]) {
        let mut old = std::mem::take(&mut self.entries);
        for peer in peers {
            let Some(text) = peer.endpoint.clone() else {
                continue;
            };
            let mut entry = old
                .remove(&peer.peer)
                .filter(|entry| entry.text == text)
                .unwrap_or_else(|| Entry {
                    endpoint: text.parse().map_err(|error| format!("{error}")),
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
            self.entries.insert(peer.peer, entry);
        }
        self.report();
    }

    /// Offers the addresses that are due, and starts the lookups that are due and have room.
    fn look_up(&mut self) {
        let now = Instant::now();
        let is_due = |entry: &Entry| entry.due.is_some_and(|due| due <= now);
        let mut found: Vec<Found> = Vec::new();
        let mut waiting: Vec<(Instant, PeerKey)> = Vec::new();
        for (peer, entry) in self.entries.iter_mut().filter(|(_, entry)| is_due(entry)) {
            match &entry.endpoint {
                _ if entry.is_name() => {
                    waiting.extend(entry.due.map(|due| (due, *peer)));
                }
                // Neither an address nor a text of another form is anything to ask for.
                known => {
                    let addresses = known.clone().map(|known| known.address());
                    entry.due = None;
                    found.push((*peer, entry.text.clone(), addresses.map(Vec::from_iter)));
                }
            }
        }
        for found in found {
            self.handle_found(found);
        }
        waiting.sort_unstable();
        let room = MAX_LOOKUPS.saturating_sub(self.lookups.len());
        for (_, peer) in waiting.into_iter().take(room) {
            let Some(entry) = self.entries.get_mut(&peer) else {
                continue;
            };
            let Ok(endpoint) = entry.endpoint.clone() else {
                continue;
            };
            entry.due = None;
            let text = entry.text.clone();
            self.lookups.spawn(async move {
                let found = resolve(&endpoint).await;
                (peer, text, found.map_err(|error| error.to_string()))
            });
        }
    }

    /// When something can be done next.
    fn next_due(&self) -> Option<Instant> {
        let has_room = self.lookups.len() < MAX_LOOKUPS;
        let can_go_on = |entry: &&Entry| has_room || !entry.is_name();
        let entries = self.entries.values().filter(can_go_on);
        entries.filter_map(|entry| entry.due).min()
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
                debug!(peer = %peer.short(), endpoint = &*text, count = addresses.len(), "resolved");
                entry.error = None;
                for address in addresses.into_iter().take(MAX_ADDRESSES) {
                    let candidate = Candidate {
                        address,
                        kind: CandidateKind::Mapped,
                        // Outlives two failures in a row.
                        lifetime: self.interval * 3 + LOOKUP_TIMEOUT,
                    };
                    self.host.tell(News::Candidate { peer, candidate });
                }
            }
            Err(error) => entry.error = Some(error),
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
    /// Somebody has to be asked for its address.
    fn is_name(&self) -> bool {
        self.endpoint
            .as_ref()
            .is_ok_and(|endpoint| endpoint.address().is_none())
    }

    fn look_up_now(&mut self) {
        self.backoff = MIN_INTERVAL;
        if self.due.is_some() {
            self.due = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
