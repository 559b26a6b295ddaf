//! The clients of natpunch's own rendezvous on one host, one for each server: the real ones, with
//! what the plugin and the agent do between them and the core.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use natpunch_core::Mesh;
use natpunch_rendezvous::client::{Client, Config, Event, To};
use natpunch_rendezvous::doorbell::{self, Doorbells};
use natpunch_rendezvous::identity;
use natpunch_rendezvous::wire::Tag;
use natpunch_types::{
    Abilities, Ask, Candidate, CandidateKind, Connect, InstanceName, Interest, News,
    OwnAddressKind, PeerKey, RecordTag, SealedRecord, SecretKey, Time,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use crate::random::Random;

/// For how long the plugin says that the own address and a relay are good.
const OBSERVED_LIFETIME: Duration = Duration::from_secs(180);
const RELAY_LIFETIME: Duration = Duration::from_secs(300);

/// A server, as a mesh file names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerAddress {
    /// Where it is.
    pub address: SocketAddr,
    /// Its public key.
    pub key: PeerKey,
    /// Whether its relay is used: `relay` of the mesh file.
    pub relays: bool,
}

/// The discovery instance of the server at this address.
pub(crate) fn origin(server: IpAddr) -> InstanceName {
    InstanceName::new(&format!("server-{server}"))
}

/// What the plugin of natpunch's own rendezvous can do.
pub(crate) const ABILITIES: Abilities = Abilities {
    wireguard_port: true,
    meetings: true,
    relays: true,
    records: true,
    mappings: false,
    peer_messages: false,
};

/// The clients of one host.
pub(crate) struct Clients {
    key: PeerKey,
    links: Vec<Link>,
    records: Vec<SealedRecord>,
    /// This node's doorbell, if a pair is on demand.
    doorbell: Option<Tag>,
    /// The peers on demand that it looks for, and their doorbells.
    rung: BTreeMap<PeerKey, Tag>,
    /// By the mailbox in which its records for us are, each peer.
    watches: BTreeMap<Tag, PeerKey>,
    /// By its pair's tag, each peer and the mailbox of ours for it.
    pairs: BTreeMap<Tag, (PeerKey, Tag)>,
}

struct Link {
    address: SocketAddr,
    origin: InstanceName,
    client: Client<ChaCha20Rng>,
    relays: bool,
    up: bool,
    /// Where the relay of a pair is.
    relayed: BTreeMap<Tag, SocketAddr>,
}

impl Clients {
    pub(crate) fn new(
        private_key: &SecretKey,
        servers: &[ServerAddress],
        random: &mut Random,
        now: Duration,
    ) -> Self {
        let link = |server: &ServerAddress| {
            let ServerAddress {
                address,
                key,
                relays,
            } = server;
            let config = Config {
                identity: identity(private_key),
                servers: vec![*key],
                admission: None,
            };
            let client = Client::new(
                config,
                *address,
                ChaCha20Rng::from_seed(random.bytes32()),
                Time::from_origin(now),
            )?;
            let origin = origin(address.ip());
            Some(Link {
                address: *address,
                origin,
                client,
                relays: *relays,
                up: false,
                relayed: BTreeMap::new(),
            })
        };
        Self {
            key: private_key.public_key(),
            links: servers.iter().filter_map(link).collect(),
            records: Vec::new(),
            doorbell: None,
            rung: BTreeMap::new(),
            watches: BTreeMap::new(),
            pairs: BTreeMap::new(),
        }
    }

    /// Takes a question of the core's.
    pub(crate) fn ask(&mut self, ask: &Ask, now: Duration) {
        match ask {
            Ask::Peers(peers) => self.set_peers(peers, now),
            Ask::Records(records) => {
                self.records = records.to_vec();
                self.keep_records(now);
            }
            Ask::Meet(peer) => self.meet(*peer, now),
        }
    }

    fn set_peers(&mut self, interest: &[Interest], now: Duration) {
        self.watches = interest
            .iter()
            .filter(|interest| !interest.rests)
            .map(|interest| (interest.inbound_tag.0, interest.peer))
            .collect();
        let doorbells = Doorbells::new(None);
        let on_demand = interest
            .iter()
            .filter(|interest| interest.connect == Connect::OnDemand);
        let is_any = on_demand.clone().next().is_some();
        self.doorbell = is_any.then(|| doorbells.of(&self.key));
        let sought = on_demand.filter(|interest| interest.wanted && !interest.rests);
        self.rung = sought
            .map(|interest| (interest.peer, doorbells.of(&interest.peer)))
            .collect();
        let of_pair = |interest: &Interest| {
            let mailbox = interest.outbound_tag.0;
            (interest.pair_tag.0, (interest.peer, mailbox))
        };
        self.pairs = interest.iter().map(of_pair).collect();
        for Link {
            client,
            origin,
            relays,
            ..
        } in &mut self.links
        {
            let watched = self.watches.keys().copied().chain(self.doorbell);
            client.set_watches(watched, Time::from_origin(now));
            client.set_relays(
                interest
                    .iter()
                    .filter(|_| *relays)
                    .map(|interest| (interest.pair_tag.0, interest.relay_by(origin))),
                Time::from_origin(now),
            );
        }
        self.keep_records(now);
    }

    /// Leaves the records in their mailboxes, and with the doorbells that are rung.
    fn keep_records(&mut self, now: Duration) {
        let of = |record: &SealedRecord| (record.tag.0, record.blob.clone());
        let mut kept: Vec<_> = self.records.iter().map(of).collect();
        for (peer, mailbox) in self.pairs.values() {
            let record = self.records.iter().find(|record| record.tag.0 == *mailbox);
            let doorbell = self.rung.get(peer);
            if let (Some(record), Some(doorbell)) = (record, doorbell) {
                let ring = doorbell::ring(mailbox, &record.blob);
                kept.extend(ring.map(|ring| (*doorbell, ring)));
            }
        }
        for Link { client, .. } in &mut self.links {
            client.set_records(kept.iter().cloned(), Time::from_origin(now));
        }
    }

    fn meet(&mut self, peer: PeerKey, now: Duration) {
        let Some((pair, (_, mailbox))) = self.pairs.iter().find(|(_, (known, _))| *known == peer)
        else {
            return;
        };
        self.links
            .iter_mut()
            .filter(|link| link.up)
            .for_each(|link| {
                if let Some(doorbell) = self.rung.get(&peer) {
                    link.client.repeat_record(*doorbell, Time::from_origin(now));
                }
                link.client.meet(*pair, *mailbox, Time::from_origin(now));
            });
    }

    /// The instance of this server was replaced by one that does not relay.
    pub(crate) fn stop_relaying(&mut self, server: SocketAddr, now: Duration) {
        for link in &mut self.links {
            if link.address == server {
                link.relays = false;
                link.client.set_relays([], Time::from_origin(now));
            }
        }
    }

    pub(crate) fn handle_network_change(&mut self, now: Duration) {
        self.links
            .iter_mut()
            .for_each(|link| link.client.handle_network_change(Time::from_origin(now)));
    }

    pub(crate) fn handle_datagram(&mut self, source: SocketAddr, payload: &[u8], now: Duration) {
        for link in self
            .links
            .iter_mut()
            .filter(|link| link.address.ip() == source.ip())
        {
            link.client
                .handle_datagram(source, payload, Time::from_origin(now));
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        self.links
            .iter()
            .filter_map(|link| link.client.poll_timeout())
            .min()
            .map(Time::since_origin)
    }

    /// Does what is due, and tells the core what is new; what to send from WireGuard's port, before
    /// anything of the core's.
    pub(crate) fn drive(
        &mut self,
        mesh: &mut Mesh,
        time: Time,
        now: Duration,
    ) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut sent = Vec::new();
        let lifetime = mesh.mapping_lifetime();
        let lifetime = lifetime.map(|seconds| Duration::from_secs(seconds.into()));
        for link in &mut self.links {
            let at = Time::from_origin(now);
            link.client.set_mapping_lifetime(lifetime, at);
            if link
                .client
                .poll_timeout()
                .is_some_and(|at| at <= Time::from_origin(now))
            {
                link.client.handle_timeout(Time::from_origin(now));
            }
            while let Some(outgoing) = link.client.poll_transmit() {
                let to = match outgoing.to {
                    To::Server => link.address,
                    To::Address(address) => address,
                };
                sent.push((to, outgoing.payload));
            }
            while let Some(event) = link.client.poll_event() {
                let peer = |tag| self.pairs.get(tag).map(|(peer, _)| *peer);
                let news = match event {
                    Event::Observed(address) => vec![News::OwnAddress {
                        address,
                        kind: OwnAddressKind::Reflexive,
                        lifetime: OBSERVED_LIFETIME,
                    }],
                    Event::Record { tag, blob } if self.doorbell == Some(tag) => {
                        doorbell::heard(&blob)
                            .map(|(tag, blob)| {
                                let tag = RecordTag(tag);
                                News::Record(SealedRecord { tag, blob })
                            })
                            .into_iter()
                            .collect()
                    }
                    Event::Record { tag, blob } => {
                        let tag = RecordTag(tag);
                        vec![News::Record(SealedRecord { tag, blob })]
                    }
                    Event::Up { .. } => {
                        link.up = true;
                        vec![]
                    }
                    Event::Down => {
                        link.up = false;
                        vec![]
                    }
                    Event::Relay { tag, address } => link.moved(tag, address, peer(&tag)),
                    Event::Fire { tag, after } => peer(&tag)
                        .map(|peer| News::Fire { peer, after })
                        .into_iter()
                        .collect(),
                    Event::Wanted { tag } => {
                        let peer = self.watches.get(&tag);
                        peer.map(|peer| News::Wanted { peer: *peer })
                            .into_iter()
                            .collect()
                    }
                    Event::Mapping(mapping) => vec![News::Mapping(mapping)],
                    Event::Refused { .. } | Event::Full { .. } => vec![],
                };
                for news in news {
                    mesh.handle_news(&link.origin, news, time);
                }
            }
        }
        sent
    }
}

impl Link {
    /// The relay of a pair is here now, or nowhere: what the core is told of it.
    fn moved(&mut self, tag: Tag, address: Option<SocketAddr>, peer: Option<PeerKey>) -> Vec<News> {
        let before = match address {
            Some(address) => self.relayed.insert(tag, address),
            None => self.relayed.remove(&tag),
        };
        let Some(peer) = peer else {
            return vec![];
        };
        let gone = before.filter(|before| Some(*before) != address);
        let withdrawn = gone.map(|address| News::Withdrawn { peer, address });
        let offered = address.map(|address| News::Candidate {
            peer,
            candidate: Candidate {
                address,
                kind: CandidateKind::Relay,
                lifetime: RELAY_LIFETIME,
            },
        });
        withdrawn.into_iter().chain(offered).collect()
    }
}
