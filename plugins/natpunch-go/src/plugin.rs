//! The plugin: name resolution, one [`Client`] for each address family of the server, and the host.

use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use natpunch_plugin::{
    BoxFuture, CandidateKind, Descriptor, Discovery, Endpoint, Health, Host, Input, Observation, PeerKey, PluginError,
    SecretKey,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;
use zeroize::Zeroizing;

use crate::client::{Client, Event};
use crate::settings::Settings;

/// How long an address is believed that the server gave.
const LIFETIME: Duration = Duration::from_secs(5 * 60);
/// How often the server's name is resolved while all is well; while it is not, at first and at most.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(5 * 60);
const RESOLVE_BACKOFF_MIN: Duration = Duration::from_secs(1);
const RESOLVE_BACKOFF_MAX: Duration = Duration::from_secs(60);
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many addresses of one family are tried in turn.
const MAX_ADDRESSES: usize = 8;

/// Discovery through a natpunch-go server.
#[derive(Debug)]
pub struct Plugin {
    server: Endpoint,
    public_key: PeerKey,
}

impl Plugin {
    /// The plugin with these settings.
    pub fn new(settings: Settings) -> Result<Self, PluginError> {
        let wrong = |key: &str, problem: String| PluginError::Setting { key: key.to_owned(), problem };
        if settings.public_key.as_bytes() == &[0; 32] {
            let problem = "is all zeros; copy the line that the server prints at its start".to_owned();
            return Err(wrong("public_key", problem));
        }
        let server = settings.server.parse().map_err(|error| wrong("server", format!("{error}")))?;
        Ok(Self { server, public_key: settings.public_key })
    }
}

impl Discovery for Plugin {
    fn descriptor(&self) -> Descriptor {
        Descriptor { id: "natpunch-go", needs_private_key: true, needs_wireguard_port: true, carries_records: false }
    }

    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async move {
            let private_key = host
                .private_key()
                .ok_or_else(|| PluginError::Failed("the host gave no private key to authenticate with".to_owned()))?;
            Run::new(&self.server, self.public_key, private_key, &*host).work().await
        })
    }
}

type Lookup = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// One run of the plugin.
struct Run<'a> {
    server: &'a Endpoint,
    public_key: PeerKey,
    private_key: SecretKey,
    host: &'a dyn Host,
    start: Instant,
    peers: Vec<(PeerKey, bool)>,
    /// IPv4, IPv6.
    links: [Link; 2],
    lookup: Option<Lookup>,
    resolve_at: Instant,
    resolve_backoff: Duration,
    resolve_error: Option<String>,
    reported: Option<Health>,
}

/// The server's addresses of one family, and the client of the one in use.
#[derive(Default)]
struct Link {
    addresses: Vec<SocketAddr>,
    active: Option<(SocketAddr, Client<ChaCha20Rng>)>,
    /// Whether the server answers there, once that is known.
    round_trip: Option<Option<Duration>>,
}

impl<'a> Run<'a> {
    fn new(server: &'a Endpoint, public_key: PeerKey, private_key: SecretKey, host: &'a dyn Host) -> Self {
        let now = Instant::now();
        Self {
            server,
            public_key,
            private_key,
            host,
            start: now,
            peers: Vec::new(),
            links: Default::default(),
            lookup: None,
            resolve_at: now,
            resolve_backoff: RESOLVE_BACKOFF_MIN,
            resolve_error: None,
            reported: None,
        }
    }

    async fn work(mut self) -> Result<(), PluginError> {
        let host = self.host;
        let mut input = host.next();
        loop {
            self.drain();
            self.report();
            if self.lookup.is_none() && Instant::now() >= self.resolve_at {
                self.lookup = Some(lookup(self.server.clone()));
            }
            let wake = self.wake();
            tokio::select! {
                next = &mut input => {
                    input = host.next();
                    if matches!(next, Input::Shutdown) {
                        return Ok(());
                    }
                    self.handle_input(next);
                }
                addresses = poll_lookup(&mut self.lookup) => {
                    self.lookup = None;
                    self.handle_addresses(addresses);
                }
                () = sleep_until(wake) => {
                    let now = self.now();
                    self.clients().for_each(|(_, client)| client.handle_timeout(now));
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn clients(&mut self) -> impl Iterator<Item = &mut (SocketAddr, Client<ChaCha20Rng>)> {
        self.links.iter_mut().filter_map(|link| link.active.as_mut())
    }

    fn wake(&mut self) -> Instant {
        let start = self.start;
        let resolve = if self.lookup.is_some() { None } else { Some(self.resolve_at) };
        let timeouts = self.clients().filter_map(|(_, client)| client.poll_timeout());
        let wake = timeouts.map(|at| start + at).chain(resolve).min();
        wake.unwrap_or_else(|| start + Duration::from_secs(86_400 * 365))
    }

    fn handle_input(&mut self, input: Input) {
        let now = self.now();
        match input {
            Input::Peers(peers) => {
                self.peers = peers.iter().map(|peer| (peer.key, peer.wanted)).collect();
                let peers = self.peers.clone();
                self.clients().for_each(|(_, client)| client.set_peers(peers.iter().copied(), now));
            }
            Input::Datagram { source, payload } => {
                let source = natpunch_types::canonical(source);
                for (_, client) in self.clients().filter(|(address, _)| *address == source) {
                    client.handle_datagram(&payload, now);
                }
            }
            Input::NetworkChanged => {
                self.resolve_at = Instant::now();
                self.clients().for_each(|(_, client)| client.handle_network_change(now));
            }
            Input::Records(_) | Input::Meet(_) | Input::Shutdown => {}
        }
    }

    fn handle_addresses(&mut self, addresses: io::Result<Vec<SocketAddr>>) {
        let addresses = match addresses {
            Ok(addresses) => {
                self.resolve_error = None;
                addresses
            }
            Err(error) => {
                self.resolve_error = Some(error.to_string());
                self.retry_resolve();
                return;
            }
        };
        debug!(server = %self.server, count = addresses.len(), "resolved");
        for family in [0, 1] {
            let of_family = addresses.iter().map(|address| natpunch_types::canonical(*address));
            let of_family: Vec<_> =
                of_family.filter(|address| usize::from(address.is_ipv6()) == family).take(MAX_ADDRESSES).collect();
            let Some(link) = self.links.get_mut(family) else { continue };
            link.addresses = of_family;
            let stays = link.active.as_ref().is_some_and(|(address, _)| link.addresses.contains(address));
            if !stays {
                let first = link.addresses.first().copied();
                self.connect(family, first);
            }
        }
        if self.is_well() || self.links.iter().all(|link| link.round_trip.is_none()) {
            self.resolve_at = Instant::now() + RESOLVE_INTERVAL;
        } else {
            self.retry_resolve();
        }
    }

    fn retry_resolve(&mut self) {
        self.resolve_at = Instant::now() + self.resolve_backoff;
        self.resolve_backoff = (self.resolve_backoff * 2).min(RESOLVE_BACKOFF_MAX);
    }

    fn is_well(&self) -> bool {
        self.links.iter().any(|link| matches!(link.round_trip, Some(Some(_))))
    }

    /// Uses this address of the server for the family from now on.
    fn connect(&mut self, family: usize, address: Option<SocketAddr>) {
        let now = self.now();
        let active = address.and_then(|address| {
            let mut seed = Zeroizing::new([0; 32]);
            self.host.random(&mut *seed);
            let unix_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let rng = ChaCha20Rng::from_seed(*seed);
            let mut client = Client::new(&self.private_key, self.public_key, rng, unix_time, now)?;
            client.set_peers(self.peers.iter().copied(), now);
            Some((address, client))
        });
        if let Some(link) = self.links.get_mut(family) {
            link.active = active;
            link.round_trip = None;
        }
    }

    /// Executes what the clients have to send and to say.
    fn drain(&mut self) {
        for family in [0, 1] {
            let mut went_down = false;
            let Some(link) = self.links.get_mut(family) else { continue };
            let Some((address, client)) = &mut link.active else { continue };
            while let Some(event) = client.poll_event() {
                match event {
                    Event::Found { peer, address } => self.host.observe(Observation {
                        peer,
                        address,
                        kind: CandidateKind::Reflexive,
                        lifetime: LIFETIME,
                    }),
                    Event::Up { round_trip } => {
                        link.round_trip = Some(Some(round_trip));
                        self.resolve_backoff = RESOLVE_BACKOFF_MIN;
                    }
                    Event::Down => {
                        link.round_trip = Some(None);
                        went_down = true;
                    }
                }
            }
            while let Some(payload) = client.poll_transmit() {
                self.host.send_from_wireguard_port(*address, payload);
            }
            if went_down {
                let at = link.addresses.iter().position(|other| other == address);
                let next = at.and_then(|at| link.addresses.get((at + 1) % link.addresses.len())).copied();
                let moves = next.is_some_and(|next| next != *address);
                self.resolve_at = self.resolve_at.min(Instant::now() + self.resolve_backoff);
                if moves {
                    self.connect(family, next);
                    if let Some(link) = self.links.get_mut(family) {
                        link.round_trip = Some(None);
                    }
                }
            }
        }
    }

    /// States the health, if it is another than before.
    fn report(&mut self) {
        let answering: Vec<String> = self
            .links
            .iter()
            .filter_map(|link| Some((link.active.as_ref()?.0, link.round_trip??)))
            .map(|(address, round_trip)| format!("{address}, {:.1} ms", round_trip.as_secs_f64() * 1000.0))
            .collect();
        let silent = self.links.iter().any(|link| link.round_trip == Some(None));
        let server = self.server;
        let health = if !answering.is_empty() {
            Health::Good(format!("registered with {server} ({})", answering.join("; ")))
        } else if silent {
            Health::Bad(format!(
                "no answer from {server}: is it running, may UDP reach port {}, and is its public key {}?",
                server.port, self.public_key
            ))
        } else if let Some(error) = &self.resolve_error {
            Health::Bad(format!("{} can't be resolved: {error}; check the name and this host's DNS", server.host))
        } else {
            return;
        };
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
