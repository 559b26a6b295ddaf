//! What a mesh file means, after parsing, merging and validation.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use natpunch_plugin_description::{AnyInstance, Description, Secrets};
use natpunch_types::{Connect, Consent, PeerKey, PunchSpec, RelayPolicy};

use super::digest;
use super::places::Places;
use crate::file::encrypted::Encrypted;
use crate::file::forms::Backend;
use crate::report::source::{Location, Sources};

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In a file of the node's own; relative paths of the mesh file are resolved against the
    /// directory of the file that names it.
    File(PathBuf),
    /// In the mesh file, encrypted.
    Age(Encrypted),
}

/// How changes are applied: `[apply]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplyConfig {
    /// How long peers may take to be alive again after a change; zero is for ever.
    pub confirm: Duration,
    /// Whether drift is undone.
    pub heal: bool,
    /// What a change may do.
    pub allow: Vec<Consent>,
}

impl Default for ApplyConfig {
    fn default() -> Self {
        Self {
            confirm: Duration::from_secs(60),
            heal: true,
            allow: Vec::new(),
        }
    }
}

/// Interface settings as far as the file states them: the defaults of `[interface]`, or what one
/// peer overrides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// Interface name.
    pub name: Option<String>,
    /// The private key.
    pub private_key: Option<SecretSource>,
    /// MTU, in bytes.
    pub mtu: Option<u32>,
    /// WireGuard's UDP port.
    pub listen_port: Option<u16>,
    /// Firewall mark of WireGuard's packets; 0 is none.
    pub fwmark: Option<u32>,
    /// Which WireGuard device.
    pub backend: Option<Backend>,
    /// Interval of persistent keepalives that the node sends; zero is off.
    pub persistent_keepalive: Option<Duration>,
    /// Whether the router is asked for a port mapping.
    pub port_mapping: Option<bool>,
}

/// A discovery instance: `[discovery.NAME]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Discovery {
    /// NAME.
    pub name: String,
    /// Its plugin.
    pub plugin: &'static str,
    /// Its settings.
    pub settings: AnyInstance,
    /// What is to be known of it.
    pub about: Description,
    /// What its secret files hold on this node.
    pub secrets: Secrets,
    /// Where its keys stand.
    pub places: KeyPlaces,
}

/// Where the keys of a section stand, for what is found wrong with them later. It is no part of
/// what the section says: any two are equal.
#[derive(Debug, Clone, Default)]
pub struct KeyPlaces(pub(crate) BTreeMap<String, Location>);

impl PartialEq for KeyPlaces {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl KeyPlaces {
    /// Where a key stands, such as `settings.directory`; where it is missing, the table that it
    /// belongs in.
    pub fn of(&self, key: &str) -> Option<&Location> {
        self.0.get(key).or_else(|| {
            let table = key.rsplit_once('.').map_or("", |(table, _)| table);
            self.0.get(table).or_else(|| self.0.get(""))
        })
    }
}

impl Discovery {
    /// An instance whose secrets were not read.
    pub fn new(name: &str, plugin: &'static str, settings: AnyInstance) -> Self {
        Self {
            name: name.to_owned(),
            plugin,
            about: settings.describe(),
            settings,
            secrets: Secrets::default(),
            places: KeyPlaces::default(),
        }
    }
}

/// A peer: `[peers.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its public key.
    pub public_key: PeerKey,
    /// Its addresses in the mesh, at least one.
    pub addresses: Vec<IpAddr>,
    /// Networks behind it.
    pub routes: Vec<IpNet>,
    /// Whether others may send all their traffic through it.
    pub exit: bool,
    /// The peer through which it sends all its own: one with [`exit`](Self::exit).
    pub exit_node: Option<String>,
    /// Networks that it reaches outside of that peer.
    pub exit_except: Vec<IpNet>,
    /// `HOST:PORT` at which it can be reached, checked for form.
    pub endpoint: Option<String>,
    /// False for a plain WireGuard peer that does not run natpunch.
    pub managed: bool,
    /// Whether changes must not lose it.
    pub critical: bool,
    /// Whether it and the others keep a path at all times; `None`: as the mesh says.
    pub connect: Option<Connect>,
    /// Free words for people and tools.
    pub tags: Vec<String>,
    /// The UDP port at which it serves the mesh, if it does.
    pub serve: Option<u16>,
    /// Whether the others reach it by relays, and it them.
    pub relay: RelayPolicy,
    /// By whose relays, best first: names of discovery instances. Empty: any.
    pub relays: Vec<String>,
    /// Interval of persistent keepalives that every node sends to it; `None`: what the node's
    /// interface says.
    pub persistent_keepalive: Option<Duration>,
    /// What it overrides of `[interface]`.
    pub interface: InterfaceConfig,
}

impl PeerConfig {
    /// Whether it has an address of IPv6, or of IPv4.
    pub(crate) fn has_family(&self, ipv6: bool) -> bool {
        self.addresses
            .iter()
            .any(|address| address.is_ipv6() == ipv6)
    }
}

/// A whole mesh, valid for every node in it.
#[derive(Debug, Clone)]
pub struct MeshConfig {
    /// Name of the mesh.
    pub name: String,
    /// The mesh's own networks; every peer's addresses are inside.
    pub networks: Vec<IpNet>,
    /// Rises with every version, where the file says so.
    pub generation: Option<u64>,
    /// Local networks that nodes sit in, for [`lint`](crate::lint).
    pub lans: Vec<IpNet>,
    /// What holds for pairs of which neither side says another thing.
    pub connect: Connect,
    /// The secret that preshared keys are derived from.
    pub preshared_secret: Option<SecretSource>,
    /// The file of a node's age identity.
    pub age_identity_file: Option<PathBuf>,
    /// Defaults for every node's interface.
    pub interface: InterfaceConfig,
    /// How changes are applied.
    pub apply: ApplyConfig,
    /// How much may be probed: `[punch]`.
    pub punch: PunchSpec,
    /// Discovery instances in the order of the file. An instance of `static` is there whenever a
    /// peer has an endpoint, one for the nodes' own routers, and one for each peer that serves.
    pub discovery: Vec<Discovery>,
    /// STUN servers, `HOST:PORT`.
    pub stun_servers: Vec<String>,
    /// Whether the peers' names are put into the hosts file.
    pub hosts: bool,
    /// The peers by name.
    pub peers: BTreeMap<String, PeerConfig>,
    /// Preshared keys by pair of peer names, the lesser name first.
    pub preshared_keys: BTreeMap<(String, String), SecretSource>,
    /// The files read, in the order of merging.
    pub files: Vec<PathBuf>,
    /// BLAKE2s of what the files contain (never of key files): equal hashes, equal meshes.
    pub content_hash: [u8; 32],
    /// Places and source text, to point at the file in later errors.
    pub(crate) places: Places,
    pub(crate) sources: Arc<Sources>,
}

impl MeshConfig {
    /// BLAKE2s of what the mesh says: the same on every node that has the same mesh, wherever its
    /// files lie, however they are named, and in whatever order they say it.
    pub fn mesh_hash(&self) -> [u8; 32] {
        digest::of(&self.sources)
    }

    /// The files that this was read from, with absolute paths, as [`load_texts`](crate::load_texts)
    /// takes them.
    pub fn texts(&self) -> Vec<(PathBuf, String)> {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        self.sources
            .0
            .iter()
            .map(|source| (absolute(&source.path), source.text.clone()))
            .collect()
    }
}
