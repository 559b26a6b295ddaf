//! `[peers.NAME]`: what each says, and whether it can be true beside the others.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

use ipnet::IpNet;
use natpunch_types::PeerKey;

use super::overlaps::Claim;
use super::serve::Server;
use super::{Check, values};
use crate::file::forms::{Network, Word};
use crate::file::merge::twice;
use crate::file::raw::{Named, RawPeer};
use crate::file::reader::{Field, Located};
use crate::mesh::model::PeerConfig;
use crate::mesh::network_map::{NetworkMap, has_special_addresses};
use crate::report::error::ConfigError;
use crate::report::source::Place;
use crate::report::wording::Quoted;

impl Check<'_> {
    pub(super) fn peers(
        &mut self,
        peers: Field<Named<RawPeer>>,
        networks: Option<&[Located<Network>]>,
    ) -> BTreeMap<String, PeerConfig> {
        let mut result = BTreeMap::new();
        let mut keys: BTreeMap<PeerKey, Place> = BTreeMap::new();
        let mut claims = Vec::new();
        let mut names = Vec::new();
        let entries = peers.map(|peers| peers.value.0).unwrap_or_default();
        if entries.is_empty() && !self.may_be_empty {
            self.missing_section(
                "peers",
                "add a section [peers.NAME] with public_key and addresses for each member, or \
                 say `natpunch add-peer`",
            );
        }
        let networks = networks.map(MeshNetworks::new);
        for (name, peer) in entries {
            match self.places.peers.entry(name.clone()) {
                Entry::Occupied(first) => {
                    self.errors.push(twice(
                        &format!("peers.{}", Quoted(&name)),
                        peer.key,
                        *first.get(),
                    ));
                    continue;
                }
                Entry::Vacant(entry) => entry.insert(peer.key),
            };
            let networks = networks.as_ref();
            self.claims(&name, &peer.value, names.len(), networks, &mut claims);
            self.servers.extend(Server::of(&name, &peer.value));
            match (&peer.value.exit_node, &peer.value.exit_except) {
                (Some(exit), _) => {
                    self.places.exit_nodes.insert(name.clone(), exit.place);
                }
                (None, Some(except)) if self.is_all_read(&format!("peers.{name}.exit_node")) => {
                    let message = format!(
                        "`{}` has exceptions from an exit node, but uses none",
                        Quoted(&name)
                    );
                    let error = ConfigError::at(except.key, message).label("exceptions from what?");
                    self.errors
                        .push(error.help("add exit_node = \"NAME\", or remove this line"));
                }
                (None, _) => {}
            }
            self.note_relays(&name, peer.value.relays.clone());
            if let Some(connect) = &peer.value.connect {
                self.places.connects.insert(name.clone(), connect.key);
            }
            if let Some(peer) = self.peer(peer.value, &mut keys) {
                result.insert(name.clone(), peer);
            }
            names.push(name);
        }
        self.overlaps(claims, &names);
        self.exit_nodes(&result);
        result
    }

    /// An exit node is another peer, and one that offers itself.
    fn exit_nodes(&mut self, peers: &BTreeMap<String, PeerConfig>) {
        let offering = peers.iter().filter(|(_, peer)| peer.exit);
        let offering: Vec<&str> = offering.map(|(name, _)| name.as_str()).collect();
        for (name, peer) in peers {
            let (Some(exit), Some(place)) =
                (&peer.exit_node, self.places.exit_nodes.get(name).copied())
            else {
                continue;
            };
            let error = match peers.get(exit) {
                Some(_) if exit == name => {
                    ConfigError::at(place, format!("`{}` is its own exit node", Quoted(name)))
                        .label("names itself")
                        .help("name another peer, or remove this line")
                }
                Some(node) if !node.exit => {
                    let message = format!("`{}` is not an exit node", Quoted(exit));
                    let error = ConfigError::at(place, message).label("all traffic shall go there");
                    let there = self.places.peers.get(exit).copied().unwrap_or_default();
                    error
                        .also(there, "this one")
                        .help("add exit = true there, if it shall forward the traffic of others")
                }
                Some(_) => continue,
                None if !self.complete || self.places.peers.contains_key(exit) => continue,
                None => {
                    let message = format!("there is no peer `{}`", Quoted(exit));
                    let error = ConfigError::at(place, message).label("not a peer of this mesh");
                    match self.suggestions.best(exit, offering.iter().copied()) {
                        Some(best) => error.help(format!("did you mean \"{best}\"?")),
                        None => error.help(
                            "name a peer as in its section [peers.NAME], one with exit = true",
                        ),
                    }
                }
            };
            self.errors.push(error);
        }
    }

    /// Keeps a peer's list of relays for when all relays are known.
    fn note_relays(&mut self, name: &str, relays: Field<Vec<Located<Word>>>) {
        let Some(relays) = relays else { return };
        if relays.value.is_empty() && self.is_all_read(&format!("peers.{name}.relays")) {
            let error = ConfigError::at(relays.place, format!("`{}` names no relay", Quoted(name)));
            let help = "name one, remove this line so that any may be used, or forbid them: \
                        relay = \"never\"";
            self.errors.push(error.label("an empty list").help(help));
        }
        self.places.relays.insert(name.to_owned(), relays.key);
        self.relays.push(relays);
    }

    fn peer(&mut self, raw: RawPeer, keys: &mut BTreeMap<PeerKey, Place>) -> Option<PeerConfig> {
        if let Some(key) = &raw.public_key {
            match keys.entry(key.value.0) {
                Entry::Occupied(first) => {
                    let message = format!("two peers have the public key {}", key.value.0);
                    let error = ConfigError::at(key.place, message).label("used again here");
                    self.errors
                        .push(error.also(*first.get(), "first used here").help(
                        "every peer has a key pair of its own: make one with `natpunch keygen`, \
                         or remove one of the two",
                    ));
                }
                Entry::Vacant(entry) => {
                    entry.insert(key.place);
                }
            }
        }
        let interface = raw
            .interface
            .map(|interface| self.interface(interface.value))
            .unwrap_or_default();
        Some(PeerConfig {
            public_key: raw.public_key?.value.0,
            addresses: raw
                .addresses?
                .value
                .into_iter()
                .map(|address| address.value.0)
                .collect(),
            routes: values(raw.routes).map(|route| route.0).collect(),
            exit: raw.exit.is_some_and(|exit| exit.value),
            exit_node: raw.exit_node.map(|peer| peer.value.0),
            exit_except: values(raw.exit_except).map(|net| net.0).collect(),
            endpoint: raw.endpoint.map(|endpoint| endpoint.value.0),
            managed: raw.managed.is_none_or(|managed| managed.value),
            critical: raw.critical.is_some_and(|critical| critical.value),
            connect: raw.connect.map(|connect| connect.value.0),
            tags: values(raw.tags).map(|tag| tag.0).collect(),
            serve: raw.serve.and_then(|serve| serve.value.0),
            relay: raw.relay.map(|relay| relay.value.0).unwrap_or_default(),
            relays: values(raw.relays).map(|name| name.0).collect(),
            persistent_keepalive: raw.persistent_keepalive.map(|keepalive| keepalive.value.0),
            interface,
        })
    }

    /// Notes what a peer claims, and checks that its addresses are the mesh's.
    fn claims(
        &mut self,
        name: &str,
        raw: &RawPeer,
        peer: usize,
        networks: Option<&MeshNetworks<'_>>,
        claims: &mut Vec<Claim>,
    ) {
        if let Some(addresses) = &raw.addresses
            && addresses.value.is_empty()
            && self.is_all_read(&format!("peers.{name}.addresses"))
        {
            let help = "write an address of one of `mesh.networks`, such as [\"10.77.0.2\"]";
            self.missing(
                addresses.place,
                "the peer's address",
                "a peer has at least one",
                help,
            );
        }
        for address in raw.addresses.iter().flat_map(|addresses| &addresses.value) {
            let ip = address.value.0;
            claims.push(Claim {
                net: IpNet::from(ip),
                peer,
                place: address.place,
            });
            let Some(networks) = networks else { continue };
            match networks.by_address.around(ip.into()) {
                None => {
                    let message = format!("{ip} is outside of the mesh's networks");
                    let mut error =
                        ConfigError::at(address.place, message).label("in none of `mesh.networks`");
                    if let Some(first) = networks.all.first() {
                        error = error.also(first.place, "the mesh's networks");
                    }
                    let help = format!(
                        "write an address of {}, or add a network to `mesh.networks`",
                        networks.shown()
                    );
                    self.errors.push(error.help(help));
                }
                Some(network) => self.not_special(ip, *network, address.place),
            }
        }
        for route in raw.routes.iter().flat_map(|routes| &routes.value) {
            self.places.routes.insert(route.value.0, route.place);
            claims.push(Claim {
                net: route.value.0,
                peer,
                place: route.place,
            });
        }
    }

    /// An address must not be the network's own or its broadcast address.
    fn not_special(&mut self, ip: IpAddr, network: IpNet, place: Place) {
        let what = match network {
            _ if !has_special_addresses(network) => return,
            _ if ip == network.network() => "the network's own address",
            IpNet::V4(_) if ip == network.broadcast() => "the network's broadcast address",
            _ => return,
        };
        let error =
            ConfigError::at(place, format!("{ip} is {what}")).label(format!("in {network}"));
        self.errors
            .push(error.help("give the peer another address"));
    }
}

/// The networks of the mesh, ready to be asked.
struct MeshNetworks<'a> {
    all: &'a [Located<Network>],
    by_address: NetworkMap<IpNet>,
}

impl<'a> MeshNetworks<'a> {
    fn new(all: &'a [Located<Network>]) -> Self {
        let nets = all.iter().map(|network| network.value.0);
        Self {
            all,
            by_address: nets.map(|net| (net, net)).collect(),
        }
    }

    /// The first few of them, for a message.
    fn shown(&self) -> String {
        const SHOWN: usize = 3;
        let nets = self.all.iter().map(|network| network.value.0);
        let mut shown: Vec<String> = nets.take(SHOWN).map(|net| net.to_string()).collect();
        if self.all.len() > SHOWN {
            shown.push(format!("another of the {} networks", self.all.len()));
        }
        shown.join(" or ")
    }
}
