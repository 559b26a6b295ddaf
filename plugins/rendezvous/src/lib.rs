//! Discovery through natpunch's own rendezvous (`docs/protocol.md`): name resolution, one [`Client`] for each address
//! family of the server, and the host.
//!
//! The node registers from WireGuard's own port, so the address that the server sees is WireGuard's. It leaves its
//! sealed records there, and is pushed those of its peers the moment that they change.

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use natpunch_plugin::{
    BoxFuture, CandidateKind, Descriptor, Discovery, Endpoint, Health, Host, Input, Observation, PeerInterest, PeerKey,
    PluginError, RecordTag, RelayUse, SealedRecord,
};
use natpunch_rendezvous::client::{Client, Config, Event, To};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;
use zeroize::Zeroizing;

mod secret;
mod settings;

pub use settings::{ServingNode, Settings};

/// How long the address is believed that the server sees: it is said again with each ping.
const OBSERVED_LIFETIME: Duration = Duration::from_secs(180);
/// How long the address of a relay is believed: the client says it again with each sign of life (25 s).
const RELAY_LIFETIME: Duration = Duration::from_secs(90);
/// How often the server's name is resolved while all is well; while it is not, at first and at most.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(5 * 60);
const RESOLVE_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many addresses of one family are tried in turn.
const MAX_ADDRESSES: usize = 8;

/// Discovery through a natpunch rendezvous server.
#[derive(Debug)]
pub struct Plugin {
    server: Endpoint,
    settings: Settings,
    /// The server is a node of the mesh, and knows this one by its WireGuard key.
    at_node: bool,
}

impl Plugin {
    /// The plugin with these settings.
    ///
    /// # Errors
    /// A setting that can't work.
    pub fn new(settings: Settings) -> Result<Self, PluginError> {
        let wrong = |key: &str, problem: String| PluginError::Setting { key: key.to_owned(), problem };
        let zero = |key: &PeerKey| key.as_bytes() == &[0; 32];
        for (name, key) in
            [("public_key", Some(&settings.public_key)), ("next_public_key", settings.next_public_key.as_ref())]
        {
            if key.is_some_and(zero) {
                let problem = "is all zeros; copy the line that the server prints at its start".to_owned();
                return Err(wrong(name, problem));
            }
        }
        if settings.admission_secret_file.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(wrong("admission_secret_file", "is not an absolute path".to_owned()));
        }
        let server = settings.server.parse().map_err(|error| wrong("server", format!("{error}")))?;
        Ok(Self { server, settings, at_node: false })
    }

    /// The plugin for a node of the mesh that serves it.
    ///
    /// # Errors
    /// Its address has no form that can be used.
    pub fn of_node(node: ServingNode) -> Result<Self, PluginError> {
        let ServingNode { server, public_key } = node;
        let settings = Settings { server, public_key, next_public_key: None, admission_secret_file: None, relay: true };
        Ok(Self { at_node: true, ..Self::new(settings)? })
    }

    async fn config(&self, host: &dyn Host) -> Result<Config, PluginError> {
        let private_key = host
            .private_key()
            .ok_or_else(|| PluginError::Failed("the host gave no private key to derive an identity from".to_owned()))?;
        if self.at_node {
            return Ok(Config {
                identity: private_key,
                servers: vec![self.settings.public_key],
                admission: Some(natpunch_rendezvous::node_admission()),
            });
        }
        let admission = match &self.settings.admission_secret_file {
            Some(path) => Some(secret::read(path).await.map_err(PluginError::Failed)?),
            None => None,
        };
        let servers = [Some(self.settings.public_key), self.settings.next_public_key];
        Ok(Config {
            identity: natpunch_rendezvous::identity(&private_key),
            servers: servers.into_iter().flatten().collect(),
            admission,
        })
    }
}

impl Discovery for Plugin {
    fn descriptor(&self) -> Descriptor {
        Descriptor { id: "rendezvous", needs_private_key: true, needs_wireguard_port: true, carries_records: true }
    }

    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async move {
            let config = self.config(&*host).await?;
            Run::new(&self.server, self.settings.relay, config, &*host).work().await
        })
    }
}

type Lookup = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// One run of the plugin.
struct Run<'a> {
    server: &'a Endpoint,
    config: Config,
    host: &'a dyn Host,
    start: Instant,
    /// The mailboxes in which peers leave their records for us.
    watches: BTreeMap<[u8; 16], PeerKey>,
    /// The tag that each peer and this node share, and the mailbox in which ours are for it.
    pairs: BTreeMap<PeerKey, (RecordTag, RecordTag)>,
    records: Arc<[SealedRecord]>,
    /// The peers by it, and what each pair wants of a relay.
    by_tag: BTreeMap<[u8; 16], (PeerKey, RelayUse)>,
    /// Whether this server's relay is used.
    relays: bool,
    /// The link that asks for relays: to the server a node is one, whichever way it comes.
    relay_link: usize,
    /// Where the relay of a pair is.
    relayed: BTreeMap<[u8; 16], SocketAddr>,
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
    state: State,
}

/// How a link is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum State {
    #[default]
    Unknown,
    Up(Duration),
    Silent,
    Refused(Duration),
}

impl Link {
    fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// The address to try when this one is silent, if it is another.
    fn next_address(&self, address: SocketAddr) -> Option<SocketAddr> {
        let at = self.addresses.iter().position(|other| *other == address)?;
        let next = self.addresses.get((at + 1) % self.addresses.len())?;
        Some(*next).filter(|next| *next != address)
    }

    /// Has the client ask at another address of the server, if there is one, how that sees us.
    fn look_from_elsewhere(&mut self, now: Duration) {
        let other = self.active.as_ref().and_then(|(address, _)| self.next_address(*address));
        if let Some((_, client)) = &mut self.active {
            client.set_other_address(other, now);
        }
    }
}

impl<'a> Run<'a> {
    fn new(server: &'a Endpoint, relays: bool, config: Config, host: &'a dyn Host) -> Self {
        let now = Instant::now();
        Self {
            server,
            config,
            host,
            start: now,
            watches: BTreeMap::new(),
            pairs: BTreeMap::new(),
            records: Arc::from([]),
            by_tag: BTreeMap::new(),
            relays,
            relay_link: 0,
            relayed: BTreeMap::new(),
            links: Default::default(),
            lookup: None,
            resolve_at: now,
            resolve_backoff: RESOLVE_BACKOFF.0,
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
                () = sleep_until(wake) => {}
            }
            let now = self.now();
            self.clients().for_each(|(_, client)| client.handle_timeout(now));
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
                // A peer without a tag has no key in common with us.
                let known = peers.iter().filter(|peer| peer.inbound_tag.0 != [0; 16]);
                self.watches = known.map(|peer| (peer.inbound_tag.0, peer.key)).collect();
                let watches: Vec<_> = self.watches.keys().copied().collect();
                self.clients().for_each(|(_, client)| client.set_watches(watches.iter().copied(), now));
                self.set_pairs(&peers);
            }
            Input::Records(records) => {
                self.records = records.clone();
                self.clients().for_each(|(_, client)| set_records(client, &records, now));
            }
            Input::Datagram { source, payload } => {
                let source = natpunch_types::canonical(source);
                let of = |link: &&mut Link| link.addresses.iter().any(|address| address.ip() == source.ip());
                for (_, client) in self.links.iter_mut().filter(of).filter_map(|link| link.active.as_mut()) {
                    client.handle_datagram(source, &payload, now);
                }
            }
            Input::NetworkChanged => {
                self.resolve_at = Instant::now();
                self.clients().for_each(|(_, client)| client.handle_network_change(now));
            }
            Input::Meet(peer) => {
                let tags = self.pairs.get(&peer).copied();
                // Over one family: the server takes a wish of either for one of this node.
                let up = self.links.iter_mut().filter_map(|link| match (&link.state, &mut link.active) {
                    (State::Up(round_trip), Some((_, client))) => Some((*round_trip, client)),
                    _ => None,
                });
                let nearest = up.min_by_key(|(round_trip, _)| *round_trip);
                if let (Some((pair, outbound)), Some((_, client))) = (tags, nearest) {
                    client.meet(pair.0, outbound.0, now);
                }
            }
            Input::Shutdown => {}
        }
    }

    fn set_pairs(&mut self, peers: &[PeerInterest]) {
        let known = || peers.iter().filter(|peer| peer.pair_tag.0 != [0; 16]);
        self.pairs = known().map(|peer| (peer.key, (peer.pair_tag, peer.outbound_tag))).collect();
        self.by_tag = known().map(|peer| (peer.pair_tag.0, (peer.key, peer.relay))).collect();
        self.ask_for_relays(self.relay_link);
    }

    /// Asks for relays by this link, and by no other.
    fn ask_for_relays(&mut self, family: usize) {
        self.relay_link = family;
        let now = self.now();
        let wanted: Vec<_> = self.by_tag.iter().map(|(tag, (_, relay))| (*tag, *relay)).collect();
        for (number, link) in self.links.iter_mut().enumerate() {
            let Some((_, client)) = &mut link.active else { continue };
            let wanted = wanted.iter().filter(|_| self.relays && number == family);
            client.set_relays(wanted.copied(), now);
        }
    }

    /// The relay of a pair is here now, or nowhere.
    fn handle_relay(&mut self, tag: [u8; 16], address: Option<SocketAddr>) {
        let before = match address {
            Some(address) => self.relayed.insert(tag, address),
            None => self.relayed.remove(&tag),
        };
        let Some((peer, _)) = self.by_tag.get(&tag) else { return };
        let gone = before.filter(|before| Some(*before) != address).map(|address| (address, Duration::ZERO));
        for (address, lifetime) in gone.into_iter().chain(address.map(|address| (address, RELAY_LIFETIME))) {
            self.host.observe(Observation { peer: *peer, address, kind: CandidateKind::Relay, lifetime });
        }
    }

    fn handle_addresses(&mut self, addresses: io::Result<Vec<SocketAddr>>) {
        let addresses = match addresses {
            Ok(addresses) => addresses,
            Err(error) => {
                self.resolve_error = Some(error.to_string());
                self.retry_resolve();
                return;
            }
        };
        self.resolve_error = None;
        debug!(server = %self.server, count = addresses.len(), "resolved");
        let now = self.now();
        for family in [0, 1] {
            let of_family = addresses.iter().map(|address| natpunch_types::canonical(*address));
            let of_family: Vec<_> =
                of_family.filter(|address| usize::from(address.is_ipv6()) == family).take(MAX_ADDRESSES).collect();
            let Some(link) = self.links.get_mut(family) else { continue };
            link.addresses = of_family;
            let stays = link.active.as_ref().is_some_and(|(address, _)| link.addresses.contains(address));
            if stays {
                link.look_from_elsewhere(now);
            } else {
                let first = link.addresses.first().copied();
                self.connect(family, first);
            }
        }
        let well = self.links.iter().any(Link::is_up);
        if well || self.links.iter().all(|link| link.state == State::Unknown) {
            self.resolve_at = Instant::now() + RESOLVE_INTERVAL;
        } else {
            self.retry_resolve();
        }
    }

    fn retry_resolve(&mut self) {
        self.resolve_at = Instant::now() + self.resolve_backoff;
        self.resolve_backoff = (self.resolve_backoff * 2).min(RESOLVE_BACKOFF.1);
    }

    /// Uses this address of the server for the family from now on.
    fn connect(&mut self, family: usize, address: Option<SocketAddr>) {
        let now = self.now();
        let active = address.and_then(|address| {
            let mut seed = Zeroizing::new([0; 32]);
            self.host.random(&mut *seed);
            let mut client = Client::new(self.config.clone(), address, ChaCha20Rng::from_seed(*seed), now)?;
            client.set_watches(self.watches.keys().copied(), now);
            set_records(&mut client, &self.records, now);
            Some((address, client))
        });
        if let Some(link) = self.links.get_mut(family) {
            link.active = active;
            link.state = State::Unknown;
            link.look_from_elsewhere(now);
        }
        if family == self.relay_link {
            // Another client, another binding.
            let gone: Vec<_> = self.relayed.keys().copied().collect();
            gone.into_iter().for_each(|tag| self.handle_relay(tag, None));
            self.ask_for_relays(family);
        }
    }

    /// Executes what the clients have to send and to say.
    fn drain(&mut self) {
        for family in [0, 1] {
            let (mut went_down, mut relays) = (false, Vec::new());
            let Some(link) = self.links.get_mut(family) else { continue };
            let Some((address, client)) = &mut link.active else { continue };
            while let Some(event) = client.poll_event() {
                match event {
                    Event::Observed(own) => self.host.observed_self(own, OBSERVED_LIFETIME),
                    Event::Record { tag, blob } => self.host.deliver(SealedRecord { tag: RecordTag(tag), blob }),
                    Event::Up { round_trip } => {
                        link.state = State::Up(round_trip);
                        self.resolve_backoff = RESOLVE_BACKOFF.0;
                    }
                    Event::Down => {
                        link.state = State::Silent;
                        went_down = true;
                    }
                    Event::Refused { retry_after } => link.state = State::Refused(retry_after),
                    Event::Relay { tag, address } => relays.push((tag, address)),
                    Event::Fire { tag, after } => {
                        if let Some((peer, _)) = self.by_tag.get(&tag) {
                            self.host.fire(*peer, after);
                        }
                    }
                    Event::Wanted { tag } => {
                        if let Some(peer) = self.watches.get(&tag) {
                            self.host.wanted(*peer);
                        }
                    }
                    Event::Mapping(mapping) => self.host.mapping(mapping),
                    Event::Full { mailboxes } => debug!(server = %self.server, mailboxes, "no room for more mailboxes"),
                }
            }
            while let Some(outgoing) = client.poll_transmit() {
                let destination = match outgoing.to {
                    To::Server => *address,
                    To::Address(address) => address,
                };
                self.host.send_from_wireguard_port(destination, outgoing.payload);
            }
            let address = *address;
            let (next, is_up) = (link.next_address(address), link.is_up());
            if family == self.relay_link {
                relays.into_iter().for_each(|(tag, address)| self.handle_relay(tag, address));
            } else if is_up && !self.links.get(self.relay_link).is_some_and(Link::is_up) {
                self.ask_for_relays(family);
            }
            if went_down {
                self.resolve_at = self.resolve_at.min(Instant::now() + self.resolve_backoff);
                if next.is_some() {
                    self.connect(family, next);
                    if let Some(link) = self.links.get_mut(family) {
                        link.state = State::Silent;
                    }
                }
            }
        }
    }

    /// States the health, if it is another than before.
    fn report(&mut self) {
        let mut up = Vec::new();
        let (mut silent, mut refused) = (false, None);
        for link in &self.links {
            match (&link.state, &link.active) {
                (State::Up(round_trip), Some((address, _))) => {
                    up.push(format!("{address}, {:.1} ms", round_trip.as_secs_f64() * 1000.0));
                }
                (State::Silent, _) => silent = true,
                (State::Refused(retry_after), _) => refused = Some(*retry_after),
                _ => {}
            }
        }
        let server = self.server;
        let health = if !up.is_empty() {
            Health::Good(format!("registered with {server} ({})", up.join("; ")))
        } else if let Some(retry_after) = refused {
            Health::Bad(format!("{server} has no room for this node; tries again in {} s", retry_after.as_secs()))
        } else if silent {
            let identity = self.links.iter().find_map(|link| Some(link.active.as_ref()?.1.identity()));
            let identity = identity.map_or(String::new(), |identity| format!(", and does it admit {identity}"));
            let key = self.config.servers.first().map_or(String::new(), ToString::to_string);
            Health::Bad(format!(
                "no answer from {server}: is it running, may UDP reach port {}, is its public key {key}, is the \
                 admission secret the same{identity}?",
                server.port
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

fn set_records(client: &mut Client<ChaCha20Rng>, records: &[SealedRecord], now: Duration) {
    client.set_records(records.iter().map(|record| (record.tag.0, record.blob.clone())), now);
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
