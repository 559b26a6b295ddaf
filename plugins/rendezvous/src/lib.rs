//! Discovery through natpunch's own rendezvous (`docs/protocol.md`): one [`Client`] for each
//! address family of the server, and the host.
//!
//! The node registers from WireGuard's own port, so the address that the server sees is
//! WireGuard's. It leaves its sealed records there, and is pushed those of its peers the moment
//! that they change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use natpunch_plugin::{
    Ask, BoxFuture, Candidate, CandidateKind, Connect, Discovery, Endpoint, FAMILIES, Happened,
    Health, Host, Input, Interest, Link, Links, News, OwnAddressKind, PairTag, PeerKey,
    PluginError, RecordTag, RelayUse, SealedRecord, State,
};
use natpunch_rendezvous::client::{Client, Config, Event, To};
use natpunch_rendezvous::doorbell::{self, Doorbells};
use natpunch_rendezvous::wire::Tag;
use natpunch_types::{PresharedKey, Time};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use tracing::debug;
use zeroize::Zeroizing;

mod settings;
mod stream;

use stream::{Stream, Turn, Udp};

pub use settings::{Server, Settings};

/// How long the address is believed that the server sees: it is said again with each ping.
const OBSERVED_LIFETIME: Duration = Duration::from_secs(180);
/// How long the address of a relay is believed: the client says it again with each sign of life,
/// every 100 s at most, and says when it is gone.
const RELAY_LIFETIME: Duration = Duration::from_secs(300);

/// Discovery through a natpunch rendezvous server.
pub struct Plugin {
    server: Server,
    /// The admission secret, or what is wrong with its file.
    admission: Result<Option<PresharedKey>, String>,
}

impl Plugin {
    /// The plugin for this server.
    pub fn new(server: Server, admission: Result<Option<PresharedKey>, String>) -> Self {
        Self { server, admission }
    }

    fn config(&self, host: &dyn Host) -> Result<Config, PluginError> {
        let private_key = host.private_key().ok_or_else(|| {
            PluginError::Failed(
                "the host gave no private key to derive an identity from".to_owned(),
            )
        })?;
        let servers = self.server.keys.clone();
        if self.server.is_node {
            return Ok(Config {
                identity: private_key,
                servers,
                admission: Some(natpunch_rendezvous::node_admission()),
            });
        }
        Ok(Config {
            identity: natpunch_rendezvous::identity(&private_key),
            servers,
            admission: self.admission.clone().map_err(PluginError::Failed)?,
        })
    }
}

impl Discovery for Plugin {
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async move {
            let config = self.config(&*host)?;
            Run::new(&self.server, config, &*host).work().await;
            Ok(())
        })
    }
}

/// One run of the plugin.
struct Run<'a> {
    server: &'a Endpoint,
    config: Config,
    host: &'a dyn Host,
    /// The mailboxes in which peers leave their records for us.
    watches: BTreeMap<RecordTag, PeerKey>,
    /// The tag that each peer and this node share, and the mailbox in which ours are for it.
    pairs: BTreeMap<PeerKey, (PairTag, RecordTag)>,
    records: Arc<[SealedRecord]>,
    doorbells: Doorbells,
    /// This node's, which is watched if a peer may be at rest.
    own_doorbell: Option<Tag>,
    /// The peers on demand that this node looks for, and their doorbells.
    rung: BTreeMap<PeerKey, Tag>,
    /// The peers by it, and what each pair wants of a relay.
    by_tag: BTreeMap<PairTag, (PeerKey, RelayUse)>,
    /// Whether this server's relay is used.
    relays: bool,
    /// The link that asks for relays: to the server a node is one, whichever way it comes.
    relay_link: usize,
    /// Where the relay of a pair is.
    relayed: BTreeMap<PairTag, SocketAddr>,
    links: Links<'a, Client<ChaCha20Rng>>,
    /// The way where no UDP gets through.
    stream: Stream<'a>,
}

/// The number of the stream, as a link that asks for relays.
const STREAM: usize = FAMILIES.len();

impl<'a> Run<'a> {
    fn new(server: &'a Server, config: Config, host: &'a dyn Host) -> Self {
        Self {
            server: &server.endpoint,
            doorbells: Doorbells::new(config.admission.clone()),
            own_doorbell: None,
            rung: BTreeMap::new(),
            config,
            host,
            watches: BTreeMap::new(),
            pairs: BTreeMap::new(),
            records: Arc::from([]),
            by_tag: BTreeMap::new(),
            relays: server.relay,
            relay_link: 0,
            relayed: BTreeMap::new(),
            links: Links::new(&server.endpoint, host).with_more_ports(&server.more_ports),
            stream: Stream::new(server.tls.as_ref(), host),
        }
    }

    async fn work(mut self) {
        loop {
            self.drain();
            self.report();
            let udp = self.udp();
            let timeouts = self
                .clients()
                .filter_map(|client| client.poll_timeout())
                .min();
            let timeout = timeouts.into_iter().chain(self.stream.poll_timeout(udp));
            let timeout = timeout.min();
            let happened = tokio::select! {
                happened = self.links.next(timeout) => happened,
                (port, opened) = self.stream.opened() => {
                    let now = self.links.now();
                    self.stream.handle_opened(port, opened, now);
                    Happened::Timeout
                }
            };
            match happened {
                Happened::Input(Input::Shutdown) => return,
                Happened::Input(input) => self.handle_input(input),
                Happened::Moved(links) => {
                    links
                        .into_iter()
                        .for_each(|(family, address)| self.connect(family, address));
                    self.look_from_elsewhere();
                }
                Happened::Timeout => {}
            }
            let (now, lifetime) = (self.links.now(), self.host.mapping_lifetime());
            let by_udp = self.links.clients().map(|(_, client)| client);
            by_udp.for_each(|client| client.set_mapping_lifetime(lifetime, now));
            self.clients().for_each(|client| client.handle_timeout(now));
            self.look_after_stream(now);
        }
    }

    /// The clients by UDP, and the one in the stream.
    fn clients(&mut self) -> impl Iterator<Item = &mut Client<ChaCha20Rng>> {
        let by_udp = self.links.clients().map(|(_, client)| client);
        by_udp.chain(self.stream.client.as_mut())
    }

    /// Whether a link, or the stream, has a server that answers.
    fn is_up(&self, link: usize) -> bool {
        match link {
            STREAM => self.stream.is_up(),
            family => self.links.is_up(family),
        }
    }

    /// How UDP to the server does.
    fn udp(&mut self) -> Udp {
        let up = self.links.iter().filter_map(|link| match &link.state {
            State::Up(_) => Some(link.active.as_ref()?.1.unanswered_since()),
            _ => None,
        });
        up.fold(Udp::Down, |udp, unanswered| match (udp, unanswered) {
            (Udp::Works, _) | (_, None) => Udp::Works,
            (Udp::Late(one), Some(other)) => Udp::Late(one.max(other)),
            (Udp::Down, Some(since)) => Udp::Late(since),
        })
    }

    /// Begins to use the stream, or ends it, as UDP does.
    fn look_after_stream(&mut self, now: Time) {
        let udp = self.udp();
        match self.stream.handle(udp, now) {
            Turn::Stay => {}
            Turn::Begin => self.stream.client = self.client(Stream::alias()),
            Turn::End => {
                if let Some(family) = FAMILIES.into_iter().find(|family| self.is_up(*family)) {
                    self.ask_for_relays(family);
                }
            }
        }
    }

    fn handle_input(&mut self, input: Input) {
        let now = self.links.now();
        match input {
            Input::Ask(ask) => self.handle_ask(ask, now),
            Input::Datagram { source, payload } => {
                let source = natpunch_types::canonical(source);
                if let (Some(source), Some(client)) =
                    (self.stream.source(source), &mut self.stream.client)
                {
                    client.handle_datagram(source, &payload, now);
                    return;
                }
                let of = |link: &&mut Link<_>| {
                    link.addresses
                        .iter()
                        .any(|address| address.ip() == source.ip())
                };
                for (_, client) in self
                    .links
                    .iter()
                    .filter(of)
                    .filter_map(|link| link.active.as_mut())
                {
                    client.handle_datagram(source, &payload, now);
                }
            }
            Input::NetworkChanged => self
                .clients()
                .for_each(|client| client.handle_network_change(now)),
            Input::FromPeer { .. } | Input::Shutdown => {}
        }
    }

    fn handle_ask(&mut self, ask: Ask, now: Time) {
        match ask {
            Ask::Peers(peers) => {
                let known = peers
                    .iter()
                    .filter(|peer| peer.inbound_tag != RecordTag::NONE && !peer.rests);
                self.watches = known.map(|peer| (peer.inbound_tag, peer.peer)).collect();
                self.set_doorbells(&peers);
                let watches: Vec<Tag> = self.watched().collect();
                self.clients()
                    .for_each(|client| client.set_watches(watches.iter().copied(), now));
                self.set_pairs(&peers);
                self.keep_records(now);
            }
            Ask::Records(records) => {
                self.records = records;
                self.keep_records(now);
            }
            Ask::Meet(peer) => {
                if let Some(doorbell) = self.rung.get(&peer).copied() {
                    self.clients()
                        .for_each(|client| client.repeat_record(doorbell, now));
                }
                let tags = self.pairs.get(&peer).copied();
                // Over one family: the server takes a wish of either for one of this node.
                let up =
                    self.links
                        .iter()
                        .filter_map(|link| match (&link.state, &mut link.active) {
                            (State::Up(round_trip), Some((_, client))) => {
                                Some((*round_trip, client))
                            }
                            _ => None,
                        });
                let in_stream = match self.stream.state {
                    State::Up(round_trip) => self.stream.client.as_mut().zip(Some(round_trip)),
                    _ => None,
                };
                let up = up.chain(in_stream.map(|(client, round_trip)| (round_trip, client)));
                let nearest = up.min_by_key(|(round_trip, _)| *round_trip);
                if let (Some((pair, outbound)), Some((_, client))) = (tags, nearest) {
                    client.meet(pair.0, outbound.0, now);
                }
            }
        }
    }

    /// The mailboxes that this node watches.
    fn watched(&self) -> impl Iterator<Item = Tag> {
        let watches = self.watches.keys().map(|tag| tag.0);
        watches.chain(self.own_doorbell)
    }

    /// Watches this node's doorbell if a pair is on demand, and rings those of the peers that are
    /// looked for.
    fn set_doorbells(&mut self, peers: &[Interest]) {
        let on_demand = peers
            .iter()
            .filter(|peer| peer.connect == Connect::OnDemand);
        let key = self.host.private_key().map(|key| key.public_key());
        let is_any = on_demand.clone().next().is_some();
        self.own_doorbell = key.filter(|_| is_any).map(|key| self.doorbells.of(&key));
        let sought = on_demand.filter(|peer| peer.wanted && !peer.rests);
        self.rung = sought
            .map(|peer| (peer.peer, self.doorbells.of(&peer.peer)))
            .collect();
    }

    /// The records that are kept at the server, each with its mailbox.
    fn kept(&self) -> Vec<(Tag, Arc<[u8]>)> {
        let records = self.records.iter();
        let records = records.map(|record| (record.tag.0, record.blob.clone()));
        let rings = self.rung.iter().filter_map(|(peer, doorbell)| {
            let (_, mailbox) = self.pairs.get(peer)?;
            let record = self.records.iter().find(|record| record.tag == *mailbox)?;
            Some((*doorbell, doorbell::ring(&mailbox.0, &record.blob)?))
        });
        records.chain(rings).collect()
    }

    fn keep_records(&mut self, now: Time) {
        let kept = self.kept();
        self.clients()
            .for_each(|client| client.set_records(kept.iter().cloned(), now));
    }

    fn set_pairs(&mut self, peers: &[Interest]) {
        let known = || peers.iter().filter(|peer| peer.pair_tag != PairTag::NONE);
        self.pairs = known()
            .map(|peer| (peer.peer, (peer.pair_tag, peer.outbound_tag)))
            .collect();
        self.by_tag = known()
            .map(|peer| (peer.pair_tag, (peer.peer, peer.relay)))
            .collect();
        self.ask_for_relays(self.relay_link);
    }

    /// Asks for relays by this link, and by no other.
    fn ask_for_relays(&mut self, family: usize) {
        self.relay_link = family;
        let now = self.links.now();
        // Where its relay is not to be used the server is told so of every pair: the predecessor of
        // this instance may have had it carry.
        let wants = |relay: RelayUse| if self.relays { relay } else { RelayUse::Off };
        let wanted: Vec<_> = self
            .by_tag
            .iter()
            .map(|(tag, (_, relay))| (tag.0, wants(*relay)))
            .collect();
        for (number, link) in self.links.iter().enumerate() {
            let Some((_, client)) = &mut link.active else {
                continue;
            };
            let wanted = wanted.iter().filter(|_| number == family);
            client.set_relays(wanted.copied(), now);
        }
        if let Some(client) = self.stream.client.as_mut().filter(|_| family == STREAM) {
            client.set_relays(wanted.iter().copied(), now);
        }
    }

    /// The relay of a pair is here now, or nowhere.
    fn handle_relay(&mut self, tag: PairTag, address: Option<SocketAddr>) {
        let before = match address {
            Some(address) => self.relayed.insert(tag, address),
            None => self.relayed.remove(&tag),
        };
        let Some((peer, _)) = self.by_tag.get(&tag) else {
            return;
        };
        let peer = *peer;
        if let Some(gone) = before.filter(|before| Some(*before) != address) {
            self.host.tell(News::Withdrawn {
                peer,
                address: gone,
            });
        }
        if let Some(address) = address {
            let candidate = Candidate {
                address,
                kind: CandidateKind::Relay,
                lifetime: RELAY_LIFETIME,
            };
            self.host.tell(News::Candidate { peer, candidate });
        }
    }

    /// A client for the server at this address, which keeps there what this node keeps.
    fn client(&self, address: SocketAddr) -> Option<Client<ChaCha20Rng>> {
        let now = self.links.now();
        let mut seed = Zeroizing::new([0; 32]);
        self.host.random(&mut *seed);
        let rng = ChaCha20Rng::from_seed(*seed);
        let mut client = Client::new(self.config.clone(), address, rng, now)?;
        client.set_watches(self.watched(), now);
        client.set_records(self.kept(), now);
        Some(client)
    }

    /// Uses this address of the server for the family from now on.
    fn connect(&mut self, family: usize, address: Option<SocketAddr>) {
        let active = address.and_then(|address| Some((address, self.client(address)?)));
        self.links.connect(family, active);
        if family == self.relay_link {
            // Another client, another binding.
            let gone: Vec<_> = self.relayed.keys().copied().collect();
            gone.into_iter()
                .for_each(|tag| self.handle_relay(tag, None));
            self.ask_for_relays(family);
        }
    }

    /// Has each client ask at another address of the server, if there is one, how that sees us.
    fn look_from_elsewhere(&mut self) {
        let now = self.links.now();
        for link in self.links.iter() {
            let other = link.next_address();
            if let Some((_, client)) = &mut link.active {
                client.set_other_address(other, now);
            }
        }
    }

    /// Executes what the clients have to send and to say.
    fn drain(&mut self) {
        for link in FAMILIES.into_iter().chain([STREAM]) {
            let (mut next, mut relays) = (None, Vec::new());
            while let Some(event) = self.poll_event(link) {
                match event {
                    // In a stream the server sees no address of WireGuard's.
                    Event::Observed(_) | Event::Mapping(_) if link == STREAM => {}
                    Event::Observed(address) => self.host.tell(News::OwnAddress {
                        address,
                        kind: OwnAddressKind::Reflexive,
                        lifetime: OBSERVED_LIFETIME,
                    }),
                    Event::Record { tag, blob } if self.own_doorbell == Some(tag) => {
                        if let Some((tag, blob)) = doorbell::heard(&blob) {
                            let tag = RecordTag(tag);
                            self.host.tell(News::Record(SealedRecord { tag, blob }));
                        }
                    }
                    Event::Record { tag, blob } => {
                        let tag = RecordTag(tag);
                        self.host.tell(News::Record(SealedRecord { tag, blob }));
                    }
                    Event::Up { round_trip } if link == STREAM => {
                        self.stream.state = State::Up(Some(round_trip));
                    }
                    Event::Up { round_trip } => self.links.up(link, Some(round_trip)),
                    Event::Down if link == STREAM => {
                        self.stream.state = State::Silent(Stream::alias());
                    }
                    Event::Down => next = self.links.down(link),
                    Event::Refused { retry_after } if link == STREAM => {
                        self.stream.state = State::Refused(retry_after);
                    }
                    Event::Refused { retry_after } => self.links.refused(link, retry_after),
                    Event::Relay { tag, address } => relays.push((PairTag(tag), address)),
                    Event::Fire { tag, after } => {
                        if let Some((peer, _)) = self.by_tag.get(&PairTag(tag)) {
                            let peer = *peer;
                            self.host.tell(News::Fire { peer, after });
                        }
                    }
                    Event::Wanted { tag } => {
                        if let Some(peer) = self.watches.get(&RecordTag(tag)) {
                            self.host.tell(News::Wanted { peer: *peer });
                        }
                    }
                    Event::Mapping(mapping) => self.host.tell(News::Mapping(mapping)),
                    Event::Full { mailboxes } => {
                        debug!(server = %self.server, mailboxes, "no room for more mailboxes")
                    }
                }
            }
            self.send(link);
            if link == self.relay_link {
                for (tag, address) in relays {
                    let address = match address {
                        Some(address) if link == STREAM => self.stream.local(address),
                        address => address,
                    };
                    self.handle_relay(tag, address);
                }
            } else if self.is_up(link) && self.has_lost_relays(link) {
                self.ask_for_relays(link);
            }
            if next.is_some() {
                self.connect(link, next);
                self.look_from_elsewhere();
            }
        }
    }

    /// Whether the link that asks for relays is no good, so that this one has to.
    fn has_lost_relays(&self, link: usize) -> bool {
        match (link, self.relay_link) {
            (STREAM, _) => self.stream.is_needed(),
            // It is left when UDP has worked for a while.
            (_, STREAM) => !self.stream.is_up(),
            (_, other) => !self.is_up(other),
        }
    }

    fn poll_event(&mut self, link: usize) -> Option<Event> {
        match link {
            STREAM => self.stream.client.as_mut()?.poll_event(),
            family => self.links.client(family)?.1.poll_event(),
        }
    }

    /// Sends what the client of this link has to send.
    fn send(&mut self, link: usize) {
        if link == STREAM {
            let now = self.links.now();
            while let Some(outgoing) = self.stream.client.as_mut().and_then(Client::poll_transmit) {
                self.stream.send(outgoing, now);
            }
            return;
        }
        let Some((address, client)) = self.links.client(link) else {
            return;
        };
        while let Some(outgoing) = client.poll_transmit() {
            let destination = match outgoing.to {
                To::Server => *address,
                To::Address(address) => address,
            };
            self.host
                .send_from_wireguard_port(destination, outgoing.payload);
        }
    }

    fn report(&mut self) {
        let server = self.server;
        if self.stream.is_up() && self.stream.is_needed() {
            let round_trip = match self.stream.state {
                State::Up(Some(round_trip)) => round_trip.as_secs_f64() * 1e3,
                _ => 0.0,
            };
            return self.host.report(Health::Good(format!(
                "registered with {server} by TLS ({round_trip:.1} ms), as it does not answer by UDP"
            )));
        }
        let clients = self.links.clients();
        let silent: BTreeSet<String> = clients
            .flat_map(|(_, client)| client.silent_ports())
            .map(|address| address.port().to_string())
            .collect();
        self.links.set_note((!silent.is_empty()).then(|| {
            let ports: Vec<String> = silent.into_iter().collect();
            format!(
                "its UDP ports {} do not answer: open the alternate port and the relay's ports in its firewall",
                ports.join(", ")
            )
        }));
        let key = self
            .config
            .servers
            .first()
            .map_or(String::new(), ToString::to_string);
        let problem = self.stream.problem.as_ref();
        let by_tls = problem.map_or(String::new(), |problem| format!("; by TLS: {problem}"));
        self.links.report(|_, client| {
            let identity = client.identity();
            let what = if client.answers_stun() {
                format!(
                    "no answer from {server}, but it answers STUN, so UDP gets there: is its public key {key}, is \
                     the admission secret the same, and does it admit {identity}?"
                )
            } else {
                format!(
                    "no answer from {server}, also not by STUN: is it running, and may UDP reach port {}? Else: is \
                     its public key {key}, is the admission secret the same, and does it admit {identity}?",
                    server.port
                )
            };
            what + &by_tls
        });
    }
}

#[cfg(test)]
mod tests;
