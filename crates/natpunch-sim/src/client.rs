//! The clients of natpunch's own rendezvous on one host, one for each server: the real ones, with
//! what the plugin and the agent do between them and the core.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use natpunch_core::{Interest, Mesh, Record, Time};
use natpunch_rendezvous::client::{Client, Config, Event, To};
use natpunch_rendezvous::identity;
use natpunch_rendezvous::wire::Tag;
use natpunch_types::{Candidate, CandidateKind, Origin, PeerKey, RecordTag, SecretKey};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use crate::random::Random;

/// For how long the plugin says that the own address and a relay are good.
const OBSERVED_LIFETIME: Duration = Duration::from_secs(180);
const RELAY_LIFETIME: Duration = Duration::from_secs(90);

/// A server, as a mesh file names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerAddress {
    /// Where it is.
    pub address: SocketAddr,
    /// Its public key.
    pub key: PeerKey,
}

/// The discovery instance of the server at this address.
pub(crate) fn origin(server: IpAddr) -> Origin {
    Origin::new(&format!("server-{server}"))
}

/// The clients of one host.
#[derive(Default)]
pub(crate) struct Clients {
    links: Vec<Link>,
    /// By the mailbox in which its records for us are, each peer.
    watches: BTreeMap<Tag, PeerKey>,
    /// By its pair's tag, each peer and the mailbox of ours for it.
    pairs: BTreeMap<Tag, (PeerKey, Tag)>,
}

struct Link {
    address: SocketAddr,
    origin: Origin,
    client: Client<ChaCha20Rng>,
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
        let link = |ServerAddress { address, key }: &ServerAddress| {
            let config = Config {
                identity: identity(private_key),
                servers: vec![*key],
                admission: None,
            };
            let client = Client::new(
                config,
                *address,
                ChaCha20Rng::from_seed(random.bytes32()),
                now,
            )?;
            let origin = origin(address.ip());
            Some(Link {
                address: *address,
                origin,
                client,
                up: false,
                relayed: BTreeMap::new(),
            })
        };
        Self {
            links: servers.iter().filter_map(link).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn set_interest(&mut self, interest: &[Interest], now: Duration) {
        self.watches = interest
            .iter()
            .map(|interest| (interest.inbound_tag.0, interest.peer))
            .collect();
        self.pairs = interest
            .iter()
            .map(|interest| {
                (
                    interest.pair_tag.0,
                    (interest.peer, interest.outbound_tag.0),
                )
            })
            .collect();
        for Link { client, origin, .. } in &mut self.links {
            client.set_watches(self.watches.keys().copied(), now);
            client.set_relays(
                interest
                    .iter()
                    .map(|interest| (interest.pair_tag.0, interest.relay_by(origin))),
                now,
            );
        }
    }

    pub(crate) fn set_records(&mut self, records: &[Record], now: Duration) {
        for Link { client, .. } in &mut self.links {
            client.set_records(
                records
                    .iter()
                    .map(|record| (record.tag.0, record.blob.as_slice().into())),
                now,
            );
        }
    }

    pub(crate) fn meet(&mut self, peer: PeerKey, now: Duration) {
        let Some((pair, (_, mailbox))) = self.pairs.iter().find(|(_, (known, _))| *known == peer)
        else {
            return;
        };
        self.links
            .iter_mut()
            .filter(|link| link.up)
            .for_each(|link| link.client.meet(*pair, *mailbox, now));
    }

    pub(crate) fn handle_network_change(&mut self, now: Duration) {
        self.links
            .iter_mut()
            .for_each(|link| link.client.handle_network_change(now));
    }

    pub(crate) fn handle_datagram(&mut self, source: SocketAddr, payload: &[u8], now: Duration) {
        for link in self
            .links
            .iter_mut()
            .filter(|link| link.address.ip() == source.ip())
        {
            link.client.handle_datagram(source, payload, now);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        self.links
            .iter()
            .filter_map(|link| link.client.poll_timeout())
            .min()
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
        for link in &mut self.links {
            if link.client.poll_timeout().is_some_and(|at| at <= now) {
                link.client.handle_timeout(now);
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
                match event {
                    Event::Observed(own) => {
                        mesh.handle_reflexive(&link.origin, own, OBSERVED_LIFETIME, time)
                    }
                    Event::Record { tag, blob } => {
                        mesh.handle_record(&link.origin, RecordTag(tag), &blob, time)
                    }
                    Event::Up { .. } => link.up = true,
                    Event::Down => link.up = false,
                    Event::Relay { tag, address } => {
                        let candidates = link.moved(tag, address);
                        for candidate in candidates {
                            peer(&tag).into_iter().for_each(|peer| {
                                mesh.handle_candidate(peer, candidate.clone(), time)
                            });
                        }
                    }
                    Event::Fire { tag, after } => {
                        let origin = &link.origin;
                        peer(&tag)
                            .into_iter()
                            .for_each(|peer| mesh.handle_fire(origin, peer, after, time));
                    }
                    Event::Wanted { tag } => {
                        self.watches
                            .get(&tag)
                            .into_iter()
                            .for_each(|peer| mesh.handle_wanted(*peer, time));
                    }
                    Event::Mapping(mapping) => mesh.handle_mapping(&link.origin, mapping, time),
                    Event::Refused { .. } | Event::Full { .. } => {}
                }
            }
        }
        sent
    }
}

impl Link {
    /// The relay of a pair is here now, or nowhere: the candidate that is gone, and the one that
    /// is.
    fn moved(&mut self, tag: Tag, address: Option<SocketAddr>) -> Vec<Candidate> {
        let before = match address {
            Some(address) => self.relayed.insert(tag, address),
            None => self.relayed.remove(&tag),
        };
        let gone = before
            .filter(|before| Some(*before) != address)
            .map(|address| (address, Duration::ZERO));
        let here = address.map(|address| (address, RELAY_LIFETIME));
        let candidate = |(address, lifetime)| Candidate {
            address,
            kind: CandidateKind::Relay,
            origin: self.origin.clone(),
            lifetime,
        };
        gone.into_iter().chain(here).map(candidate).collect()
    }
}
