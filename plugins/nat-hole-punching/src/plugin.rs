//! The plugin: name resolution, a [`Client`], and the host.

use std::future::{Future, pending};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use natpunch_plugin::{
    BoxFuture, CandidateKind, Descriptor, Discovery, Endpoint, Health, Host, Input, Observation, PeerKey, PluginError,
};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use crate::client::{Client, Event};
use crate::settings::Settings;

/// How long an address is believed that the server gave.
const LIFETIME: Duration = Duration::from_secs(5 * 60);
/// How often the server's name is resolved while all is well; while it is not, at first and at most.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(5 * 60);
const RESOLVE_BACKOFF_MIN: Duration = Duration::from_secs(1);
const RESOLVE_BACKOFF_MAX: Duration = Duration::from_secs(60);
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Discovery through a server of WireGuard's nat-hole-punching example.
#[derive(Debug)]
pub struct Plugin {
    server: Endpoint,
}

impl Plugin {
    /// The plugin with these settings.
    pub fn new(settings: Settings) -> Result<Self, PluginError> {
        let wrong = |problem: String| PluginError::Setting { key: "server".to_owned(), problem };
        let server: Endpoint = settings.server.parse().map_err(|error| wrong(format!("{error}")))?;
        if matches!(server.host.parse(), Ok(IpAddr::V6(_))) {
            return Err(wrong("this protocol knows only IPv4: give the server's IPv4 address or its name".to_owned()));
        }
        Ok(Self { server })
    }
}

impl Discovery for Plugin {
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            id: "nat-hole-punching",
            needs_private_key: false,
            needs_wireguard_port: true,
            carries_records: false,
        }
    }

    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async move {
            Run::new(&self.server, &*host).work().await;
            Ok(())
        })
    }
}

type Lookup = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// One run of the plugin.
struct Run<'a> {
    server: &'a Endpoint,
    host: &'a dyn Host,
    start: Instant,
    peers: Vec<(PeerKey, bool)>,
    client: Option<(SocketAddr, Client)>,
    lookup: Option<Lookup>,
    resolve_at: Instant,
    resolve_backoff: Duration,
    reported: Option<Health>,
}

impl<'a> Run<'a> {
    fn new(server: &'a Endpoint, host: &'a dyn Host) -> Self {
        let now = Instant::now();
        Self {
            server,
            host,
            start: now,
            peers: Vec::new(),
            client: None,
            lookup: None,
            resolve_at: now,
            resolve_backoff: RESOLVE_BACKOFF_MIN,
            reported: None,
        }
    }

    async fn work(mut self) {
        let host = self.host;
        let mut input = host.next();
        loop {
            self.drain();
            if self.lookup.is_none() && Instant::now() >= self.resolve_at {
                self.lookup = Some(lookup(self.server.clone()));
            }
            let wake = self.wake();
            tokio::select! {
                next = &mut input => {
                    input = host.next();
                    if matches!(next, Input::Shutdown) {
                        return;
                    }
                    self.handle_input(next);
                }
                addresses = poll_lookup(&mut self.lookup) => {
                    self.lookup = None;
                    self.handle_addresses(addresses);
                }
                () = sleep_until(wake) => {
                    let now = self.now();
                    if let Some((_, client)) = &mut self.client {
                        client.handle_timeout(now);
                    }
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wake(&self) -> Instant {
        let resolve = self.lookup.is_none().then_some(self.resolve_at);
        let client = self.client.as_ref().and_then(|(_, client)| client.poll_timeout()).map(|at| self.start + at);
        let wake = client.into_iter().chain(resolve).min();
        wake.unwrap_or_else(|| Instant::now() + RESOLVE_INTERVAL)
    }

    fn handle_input(&mut self, input: Input) {
        let now = self.now();
        if let Input::Peers(peers) = &input {
            self.peers = peers.iter().map(|peer| (peer.key, peer.wanted)).collect();
        }
        if matches!(input, Input::NetworkChanged) {
            self.resolve_at = Instant::now();
        }
        let Some((address, client)) = &mut self.client else { return };
        match input {
            Input::Peers(_) => client.set_peers(self.peers.iter().copied(), now),
            Input::Datagram { source, payload } if natpunch_types::canonical(source) == *address => {
                client.handle_datagram(&payload, now);
            }
            Input::NetworkChanged => client.handle_network_change(now),
            Input::Datagram { .. } | Input::Records(_) | Input::Meet(_) | Input::Shutdown => {}
        }
    }

    fn handle_addresses(&mut self, addresses: io::Result<Vec<SocketAddr>>) {
        let addresses: Vec<_> = match addresses {
            Ok(addresses) => addresses.into_iter().map(natpunch_types::canonical).filter(SocketAddr::is_ipv4).collect(),
            Err(error) => {
                let host = &self.server.host;
                self.report(Health::Bad(format!(
                    "{host} can't be resolved: {error}; check the name and this host's DNS"
                )));
                return self.retry_resolve();
            }
        };
        debug!(server = %self.server, count = addresses.len(), "resolved");
        let Some(first) = addresses.first() else {
            self.report(Health::Bad(format!(
                "{} has no IPv4 address, and this protocol knows no other",
                self.server.host
            )));
            return self.retry_resolve();
        };
        self.resolve_at = Instant::now() + RESOLVE_INTERVAL;
        let is_down = matches!(self.reported, Some(Health::Bad(_)));
        let current = self.client.as_ref().map(|(address, _)| *address);
        let at = addresses.iter().position(|address| Some(*address) == current);
        let next = match at {
            // It does not answer where it was: try the next address.
            Some(at) if is_down => addresses.get((at + 1) % addresses.len()).copied(),
            Some(_) => current,
            None => Some(*first),
        };
        if is_down {
            self.retry_resolve();
        }
        if let Some(next) = next.filter(|next| Some(*next) != current) {
            let now = self.now();
            let mut client = Client::new(self.host.own_key(), now);
            client.set_peers(self.peers.iter().copied(), now);
            self.client = Some((next, client));
        }
    }

    fn retry_resolve(&mut self) {
        self.resolve_at = Instant::now() + self.resolve_backoff;
        self.resolve_backoff = (self.resolve_backoff * 2).min(RESOLVE_BACKOFF_MAX);
    }

    /// Executes what the client has to send and to say.
    fn drain(&mut self) {
        let Some((server, client)) = &mut self.client else { return };
        let server = *server;
        let mut health = None;
        while let Some(payload) = client.poll_transmit() {
            self.host.send_from_wireguard_port(server, payload);
        }
        while let Some(event) = client.poll_event() {
            match event {
                Event::Found { peer, address } => self.host.observe(Observation {
                    peer,
                    address: address.into(),
                    kind: CandidateKind::Reflexive,
                    lifetime: LIFETIME,
                }),
                Event::Up => {
                    self.resolve_backoff = RESOLVE_BACKOFF_MIN;
                    health = Some(Health::Good(format!("registered with {} ({server})", self.server)));
                }
                Event::Down => {
                    self.resolve_at = self.resolve_at.min(Instant::now() + self.resolve_backoff);
                    health = Some(Health::Bad(format!(
                        "no answer from {} ({server}): is it running, and may UDP reach port {}?",
                        self.server, self.server.port
                    )));
                }
            }
        }
        if let Some(health) = health {
            self.report(health);
        }
    }

    /// States the health, if it is another than before.
    fn report(&mut self, health: Health) {
        if self.reported.as_ref() != Some(&health) {
            self.reported = Some(health.clone());
            self.host.report(health);
        }
    }
}

fn lookup(server: Endpoint) -> Lookup {
    Box::pin(async move {
        let lookup = tokio::net::lookup_host((server.host.as_str(), server.port));
        Ok(timeout(RESOLVE_TIMEOUT, lookup).await.map_err(io::Error::from)??.collect())
    })
}

async fn poll_lookup(lookup: &mut Option<Lookup>) -> io::Result<Vec<SocketAddr>> {
    match lookup {
        Some(lookup) => lookup.await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests;
