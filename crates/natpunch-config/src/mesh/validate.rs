//! What must be true of a mesh as a whole.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use natpunch_os::secret;
use natpunch_types::PeerKey;

use super::model::{ApplyConfig, Discovery, InterfaceConfig, MeshConfig, PeerConfig, SecretSource};
use super::networks::NetworkMap;
use super::places::Places;
use super::public_names;
use super::relays;
use super::serve::{self, Server};
use crate::file::Parts;
use crate::file::encrypted::Encrypted;
use crate::file::error::{ConfigError, Place, Sources};
use crate::file::forms::{DnsLabel, FilePath, InterfaceName, Network, Word};
use crate::file::kind::{Kind, is_kept};
use crate::file::merge::twice;
use crate::file::raw::{
    Named, RawApply, RawDiscovery, RawInterface, RawMesh, RawPeer, RawPreshared,
};
use crate::file::reader::{Field, Located, Quoted, Suggestions};

/// Checks the merged files and gives their meaning.
pub(crate) fn validate(
    parts: Parts,
    kinds: &[Kind],
    may_be_empty: bool,
    sources: &Arc<Sources>,
    content_hash: [u8; 32],
    errors: &mut Vec<ConfigError>,
) -> Option<MeshConfig> {
    let Parts {
        raw,
        unusable,
        complete,
    } = parts;
    let places = Places::default();
    let mut check = Check {
        sources,
        complete,
        may_be_empty,
        kinds,
        unusable,
        errors,
        places,
        servers: vec![],
        relays: vec![],
        suggestions: Suggestions::default(),
    };
    let generation = raw
        .mesh
        .as_ref()
        .and_then(|mesh| mesh.value.generation.as_ref())
        .map(|field| field.value.0);
    let mesh = check.mesh(raw.mesh);
    check.places.listen_port = raw
        .interface
        .as_ref()
        .and_then(|all| all.value.listen_port.as_ref())
        .map(|port| port.key);
    let apply = raw
        .apply
        .map(|apply| apply_config(apply.value))
        .unwrap_or_default();
    if let Some(age) = raw
        .interface
        .as_ref()
        .and_then(|all| all.value.private_key_age.as_ref())
    {
        let error = ConfigError::at(age.key, "`private_key_age` is for one peer, not for all");
        let help = "put it into the peer's own section: [peers.NAME.interface]";
        check
            .errors
            .push(error.label("every node would have this key").help(help));
    }
    let hosts = raw
        .names
        .and_then(|names| names.value.hosts)
        .is_some_and(|hosts| hosts.value);
    let age_identity_file = raw
        .secrets
        .and_then(|secrets| secrets.value.identity_file)
        .map(|file| {
            check.places.age_identity_file = Some(file.place);
            check.resolve(file.place, &file.value.0)
        });
    let interface = raw
        .interface
        .map(|interface| check.interface(interface.value))
        .unwrap_or_default();
    // With a network that could not be read, nothing can be said to be outside of the networks.
    let all_known = check.is_all_read("mesh.networks");
    let networks = mesh
        .as_ref()
        .map(|mesh| mesh.networks.as_slice())
        .filter(|_| all_known);
    let peers = check.peers(raw.peers, networks);
    let discovery = check.discovery(raw.discovery, &peers, &interface);
    let preshared_keys = check.preshared(raw.preshared);
    let stun_servers = raw
        .stun
        .and_then(|stun| stun.value.servers)
        .map(|servers| servers.value)
        .unwrap_or_default();
    let MeshSection {
        name,
        networks,
        lans,
        preshared_secret,
    } = mesh?;
    check.places.name = name.place;
    if hosts {
        check.public_names(&name);
    }
    if interface.name.is_none() && !InterfaceName::valid(&format!("wg-{}", name.value.0)) {
        let message = format!(
            "`wg-{}` is too long for the name of an interface",
            name.value.0
        );
        let error =
            ConfigError::at(name.place, message).label("the interface is named after the mesh");
        check.errors.push(
            error.help("name it yourself: [interface] with name = \"…\", at most 15 characters"),
        );
    }
    Some(MeshConfig {
        name: name.value.0,
        networks: networks.iter().map(|network| network.value.0).collect(),
        generation,
        lans,
        preshared_secret,
        age_identity_file,
        hosts,
        interface,
        apply,
        discovery,
        stun_servers: stun_servers
            .into_iter()
            .map(|server| server.value.0)
            .collect(),
        peers,
        preshared_keys,
        files: sources.0.iter().map(|source| source.path.clone()).collect(),
        content_hash,
        places: check.places,
        sources: Arc::clone(sources),
    })
}

fn apply_config(raw: RawApply) -> ApplyConfig {
    let default = ApplyConfig::default();
    ApplyConfig {
        confirm: raw.confirm.map_or(default.confirm, |span| span.value.0),
        heal: raw.heal.map_or(default.heal, |heal| heal.value),
        allow: values(raw.allow).map(|allowed| allowed.0).collect(),
    }
}

struct Check<'a> {
    sources: &'a Sources,
    complete: bool,
    may_be_empty: bool,
    kinds: &'a [Kind],
    unusable: BTreeSet<String>,
    errors: &'a mut Vec<ConfigError>,
    places: Places,
    servers: Vec<Server>,
    /// The lists of relays that peers have.
    relays: Vec<Located<Vec<Located<Word>>>>,
    suggestions: Suggestions,
}

/// `[mesh]`.
struct MeshSection {
    name: Located<DnsLabel>,
    networks: Vec<Located<Network>>,
    lans: Vec<IpNet>,
    preshared_secret: Option<SecretSource>,
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

/// An address or route of a peer, for the search for overlaps.
struct Claim {
    net: IpNet,
    peer: usize,
    place: Place,
}

impl Check<'_> {
    fn missing(&mut self, place: Place, what: &str, label: &str, help: &str) {
        self.errors.push(
            ConfigError::at(place, format!("{what} is missing"))
                .label(label)
                .help(help),
        );
    }

    /// Whether nothing of a key stands in the files beyond what could be read.
    fn is_all_read(&self, key: &str) -> bool {
        self.complete && !self.unusable.contains(key)
    }

    /// A whole section is missing.
    fn missing_section(&mut self, section: &str, help: &str) {
        if let (true, Some(source)) = (self.is_all_read(section), self.sources.0.first()) {
            let message = format!("the section [{section}] is missing");
            self.errors
                .push(ConfigError::of(&source.path, message).help(help));
        }
    }

    fn mesh(&mut self, mesh: Field<RawMesh>) -> Option<MeshSection> {
        let Some(mesh) = mesh else {
            self.missing_section(
                "mesh",
                "add: [mesh] with name = \"home\" and networks = [\"10.77.0.0/16\"]",
            );
            return None;
        };
        let RawMesh {
            name,
            networks,
            lans,
            preshared_secret_file,
            preshared_secret_age,
            ..
        } = mesh.value;
        if name.is_none() && self.is_all_read("mesh.name") {
            self.missing(
                mesh.key,
                "`mesh.name`",
                "this section has no name",
                "add a line: name = \"home\"",
            );
        }
        if networks
            .as_ref()
            .is_none_or(|networks| networks.value.is_empty())
            && self.is_all_read("mesh.networks")
        {
            let place = networks
                .as_ref()
                .map_or(mesh.key, |networks| networks.place);
            let help =
                "add the networks of the mesh's own addresses: networks = [\"10.77.0.0/16\"]";
            self.missing(
                place,
                "`mesh.networks`",
                "a mesh needs at least one network",
                help,
            );
        }
        let networks = networks?.value;
        let mut earlier: NetworkMap<&Located<Network>> = NetworkMap::new();
        for network in &networks {
            let net = network.value.0;
            if let Some(earlier) = earlier.overlapping(net) {
                let message = format!("the networks {net} and {} overlap", earlier.value.0);
                let error = ConfigError::at(network.place, message)
                    .label("overlaps")
                    .also(earlier.place, "with this one");
                self.errors.push(error.help("remove one of the two"));
            }
            earlier.insert(net, network);
        }
        self.places.networks = networks.iter().map(|network| network.place).collect();
        let preshared_secret = self.secret(
            "preshared_secret",
            preshared_secret_file,
            preshared_secret_age,
        );
        if let Some((SecretSource::File(path), place)) = &preshared_secret {
            self.places.preshared_key_files.insert(path.clone(), *place);
        }
        Some(MeshSection {
            name: name?,
            networks,
            lans: values(lans).map(|lan| lan.0).collect(),
            preshared_secret: preshared_secret.map(|(secret, _)| secret),
        })
    }

    /// A secret that is in a file, or stands here encrypted, and where it is said.
    fn secret(
        &mut self,
        name: &str,
        file: Field<FilePath>,
        age: Field<Encrypted>,
    ) -> Option<(SecretSource, Place)> {
        if let (Some(file), Some(age)) = (&file, &age) {
            let error = ConfigError::at(age.key, format!("both `{name}_file` and `{name}_age`"));
            let help = "remove one of the two: the key is in a file of the node's own, or in here";
            self.errors.push(
                error
                    .label("one secret too many")
                    .also(file.key, "the other one")
                    .help(help),
            );
        }
        if let Some(age) = age {
            if !age.value.foreign().is_empty() {
                self.places
                    .foreign_recipients
                    .push((age.key, age.value.foreign().to_vec()));
            }
            return Some((SecretSource::Age(age.value.at(age.key)), age.key));
        }
        file.map(|file| {
            (
                SecretSource::File(self.resolve(file.place, &file.value.0)),
                file.place,
            )
        })
    }

    fn interface(&mut self, raw: RawInterface) -> InterfaceConfig {
        let private_key = self.secret("private_key", raw.private_key_file, raw.private_key_age);
        if let Some((SecretSource::File(path), place)) = &private_key {
            self.places
                .private_key_files
                .entry(path.clone())
                .or_insert(*place);
        }
        InterfaceConfig {
            name: raw.name.map(|name| name.value.0),
            private_key: private_key.map(|(secret, _)| secret),
            mtu: raw.mtu.map(|mtu| mtu.value.0),
            listen_port: raw.listen_port.map(|port| port.value.0),
            fwmark: raw.fwmark.map(|mark| mark.value.0),
            backend: raw.backend.map(|backend| backend.value),
            persistent_keepalive: raw.persistent_keepalive.map(|keepalive| keepalive.value.0),
        }
    }

    /// A path counts from the directory of the file that names it.
    fn resolve(&self, place: Place, path: &Path) -> PathBuf {
        if secret::credential(path).is_some() {
            return path.to_owned();
        }
        let directory = self
            .sources
            .0
            .get(place.file)
            .and_then(|source| source.path.parent());
        directory.map_or_else(|| path.to_owned(), |directory| directory.join(path))
    }

    fn peers(
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
                "add a section [peers.NAME] with public_key and addresses for each member, or say `natpunch add-peer`",
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
                    let message = format!("`{}` is no exit node", Quoted(exit));
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
            let help = "name one, remove this line so that any may be used, or forbid them: relay = \"never\"";
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
                    self.errors.push(error.also(*first.get(), "first used here").help(
                        "every peer has a key pair of its own: make one with `natpunch keygen`, or remove one of the two",
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

    /// Finds networks of different peers that overlap. Networks nest or are apart, so that in
    /// sorted order everything around a network is on the stack.
    fn overlaps(&mut self, mut claims: Vec<Claim>, names: &[String]) {
        claims.sort_by_key(|claim| (claim.net.network(), claim.net.prefix_len(), claim.place));
        let mut around: Vec<&Claim> = Vec::new();
        let name = |peer: usize| names.get(peer).map(String::as_str).unwrap_or_default();
        for claim in &claims {
            while around
                .last()
                .is_some_and(|outer| !overlap(outer.net, claim.net))
            {
                around.pop();
            }
            let rival = around
                .iter()
                .rev()
                .find(|outer| outer.peer != claim.peer || outer.net == claim.net);
            if let Some(rival) = rival {
                let (first, second) = if rival.place < claim.place {
                    (*rival, claim)
                } else {
                    (claim, *rival)
                };
                let message = if first.peer == second.peer {
                    format!("{} is there twice", shown(second.net))
                } else if first.net == second.net {
                    format!(
                        "`{}` and `{}` both have {}",
                        Quoted(name(first.peer)),
                        Quoted(name(second.peer)),
                        shown(second.net)
                    )
                } else {
                    let (a, b) = (Quoted(name(second.peer)), Quoted(name(first.peer)));
                    format!(
                        "{} of `{a}` overlaps {} of `{b}`",
                        shown(second.net),
                        shown(first.net)
                    )
                };
                let help = if first.peer == second.peer {
                    "remove one of the two"
                } else {
                    "WireGuard sends a packet to one peer: every address belongs to exactly one"
                };
                let error = ConfigError::at(second.place, message).label("claimed again here");
                self.errors
                    .push(error.also(first.place, "first claimed here").help(help));
            }
            // Two peers with the same network are rivals of whatever is inside; a third entry of
            // it would only make the search through the stack longer.
            let same = |outer: &&Claim| outer.net == claim.net;
            let twice = around
                .iter()
                .rev()
                .take(2)
                .filter(|outer| same(outer))
                .count()
                == 2;
            let again = around
                .last()
                .is_some_and(|o| same(o) && o.peer == claim.peer);
            if !twice && !again {
                around.push(claim);
            }
        }
    }

    /// In a hosts file no name may stand that others own.
    fn public_names(&mut self, mesh: &Located<DnsLabel>) {
        let name = &mesh.value.0;
        if let Some(owner) = public_names::of_a_mesh(name) {
            let message = format!("the mesh can't be named `{}`: it is {owner}", Quoted(name));
            let error = ConfigError::at(mesh.place, message).label("peers get names in it");
            let help = "name the mesh otherwise, such as `home`, or write no names: [names] with hosts = false";
            self.errors.push(error.help(help));
        }
        for (peer, place) in &self.places.peers {
            if let Some(owner) = public_names::of_a_peer(peer) {
                let message = format!("no peer can be named `{}`: it is {owner}", Quoted(peer));
                let error = ConfigError::at(*place, message).label("would be in the hosts file");
                let help = "name the peer otherwise, or write no names: [names] with hosts = false";
                self.errors.push(error.help(help));
            }
        }
    }

    fn discovery(
        &mut self,
        raw: Field<Named<RawDiscovery>>,
        peers: &BTreeMap<String, PeerConfig>,
        interface: &InterfaceConfig,
    ) -> Vec<Discovery> {
        let mut seen: BTreeMap<String, Place> = BTreeMap::new();
        let mut instances = Vec::new();
        for (name, instance) in raw.map(|raw| raw.value.0).unwrap_or_default() {
            match seen.entry(name.clone()) {
                Entry::Occupied(first) => {
                    self.errors.push(twice(
                        &format!("discovery.{}", Quoted(&name)),
                        instance.key,
                        *first.get(),
                    ));
                    continue;
                }
                Entry::Vacant(entry) => entry.insert(instance.key),
            };
            let RawDiscovery { plugin, settings } = instance.value;
            if name != plugin && is_kept(self.kinds, &name) {
                let message = format!("the name `{name}` is kept for the plugin of this name");
                let error = ConfigError::at(instance.key, message)
                    .label("another plugin can't have this name");
                self.errors
                    .push(error.help("name the instance otherwise, such as [discovery.web]"));
            }
            instances.push(Discovery::new(&name, plugin, settings));
        }
        self.places.discovery = seen.clone();
        let are_offered = instances
            .iter()
            .any(|instance| instance.about.offers_endpoints);
        if !are_offered && peers.values().any(|peer| peer.endpoint.is_some()) {
            let implied = |kind: &Kind| {
                let instance = kind.implied()?;
                Some(Discovery::new(kind.id(), kind.id(), instance))
            };
            instances.extend(self.kinds.iter().filter_map(implied));
        }
        let servers = std::mem::take(&mut self.servers);
        let servers_by_name = servers.iter().map(Server::name).collect();
        let known = relays::Known::new(&instances, &seen, servers_by_name, &self.places.peers);
        let unread = |name: &str| {
            let keys = [
                format!("discovery.{name}"),
                format!("peers.{name}"),
                format!("peers.{name}.serve"),
            ];
            !self.complete || keys.iter().any(|key| self.unusable.contains(key))
        };
        self.relays
            .iter()
            .for_each(|list| known.check(list, unread, &mut self.suggestions, self.errors));
        let unreadable = |name: &str| self.unusable.contains(&format!("peers.{name}.endpoint"));
        instances.extend(serve::instances(
            self.kinds,
            &servers,
            peers,
            interface,
            &seen,
            unreadable,
            self.errors,
        ));
        instances
    }

    fn preshared(
        &mut self,
        raw: Field<Vec<Located<RawPreshared>>>,
    ) -> BTreeMap<(String, String), SecretSource> {
        let mut seen: BTreeMap<(String, String), Place> = BTreeMap::new();
        let mut keys = BTreeMap::new();
        for section in raw.map(|raw| raw.value).unwrap_or_default() {
            let RawPreshared {
                peers,
                preshared_key_file,
                preshared_key_age,
            } = section.value;
            let key = self.secret("preshared_key", preshared_key_file, preshared_key_age);
            let Some(pair) = peers else { continue };
            let mut names: Vec<String> =
                pair.value.iter().map(|name| name.value.0.clone()).collect();
            names.sort();
            let [first, second] = names.as_slice() else {
                let error = ConfigError::at(pair.place, "a preshared key belongs to two peers")
                    .label("expected two names");
                self.errors
                    .push(error.help("write: peers = [\"laptop\", \"nas\"]"));
                continue;
            };
            if first == second {
                let error = ConfigError::at(pair.place, "a peer has no preshared key with itself")
                    .label("twice the same");
                self.errors.push(error.help("name two peers"));
                continue;
            }
            for name in &pair.value {
                if !self.places.peers.contains_key(&name.value.0)
                    && self.is_all_read(&format!("peers.{}", name.value.0))
                {
                    let known = self.places.peers.keys().map(String::as_str);
                    let best = self.suggestions.best(&name.value.0, known);
                    let message = format!("there is no peer `{}`", Quoted(&name.value.0));
                    let error =
                        ConfigError::at(name.place, message).label("not a peer of this mesh");
                    self.errors.push(match best {
                        Some(best) => error.help(format!("did you mean \"{best}\"?")),
                        None => error.help("name a peer as in its section [peers.NAME]"),
                    });
                }
            }
            let names = (first.clone(), second.clone());
            match seen.entry(names.clone()) {
                Entry::Occupied(earlier) => {
                    let message = format!(
                        "two preshared keys for `{}` and `{}`",
                        Quoted(first),
                        Quoted(second)
                    );
                    let error = ConfigError::at(pair.place, message).label("named again here");
                    self.errors.push(
                        error
                            .also(*earlier.get(), "first named here")
                            .help("remove one of the two"),
                    );
                }
                Entry::Vacant(entry) => {
                    entry.insert(pair.place);
                }
            }
            if let Some((key, place)) = key {
                if let SecretSource::File(path) = &key {
                    self.places
                        .preshared_key_files
                        .entry(path.clone())
                        .or_insert(place);
                }
                keys.insert(names, key);
            }
        }
        keys
    }
}

/// Whether the first address of a network, and of IPv4 the last, are no peer's (RFC 3021, RFC 6164:
/// not where there are just one or two).
pub(crate) fn has_special_addresses(network: IpNet) -> bool {
    network.max_prefix_len() - network.prefix_len() >= 2
}

fn values<T>(field: Field<Vec<Located<T>>>) -> impl Iterator<Item = T> {
    field
        .map(|field| field.value)
        .unwrap_or_default()
        .into_iter()
        .map(|element| element.value)
}

pub(crate) fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// A host network as the address that it is.
fn shown(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}
