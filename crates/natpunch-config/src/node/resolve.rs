//! From the mesh to this node's part of it.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use blake2::Blake2sMac256;
use blake2::digest::{FixedOutput as _, KeyInit as _, Update as _};
use ipnet::IpNet;
use natpunch_os::secret;
use natpunch_types::{KeyError, PeerKey, PresharedKey, RelayPolicy, SecretKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

use super::identity::{Closed, DEFAULT_IDENTITY_FILE, Identities};
use super::key_file::{self, KeyFileError};
use crate::file::encrypted::Encrypted;
use crate::file::error::{ConfigError, ConfigErrors, Place};
use crate::file::reader::Quoted;
use crate::mesh::model::{
    Discovery, ExitNode, MeshConfig, NodeConfig, PeerConfig, RemotePeer, SecretSource,
};
use crate::mesh::networks::NetworkMap;
use crate::mesh::ports::listen_port;

/// WireGuard's own default MTU, in bytes: 1500 less the most that its headers take.
const DEFAULT_MTU: u32 = 1420;

/// Shorter than the UDP mapping lifetime of nearly every NAT (RFC 4787, REQ-5 asks for 2 minutes;
/// 30 s are seen).
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(25);

/// What a host knows beside the mesh file: where its own secrets are, and who it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// The private key file, instead of those that the mesh names.
    pub private_key_file: Option<PathBuf>,
    /// The file of the age identity, instead of the one that the mesh names.
    pub age_identity_file: Option<PathBuf>,
    /// The name of the peer that this host is, if its identity opens the keys of several.
    pub node: Option<String>,
}

impl Local {
    /// The same with absolute paths, which mean the same in another directory.
    #[must_use]
    pub fn absolute(self) -> Self {
        let absolute = |file: PathBuf| match secret::credential(&file) {
            Some(_) => file,
            None => std::path::absolute(&file).unwrap_or(file),
        };
        Self {
            private_key_file: self.private_key_file.map(absolute),
            age_identity_file: self.age_identity_file.map(absolute),
            node: self.node,
        }
    }
}

/// [`resolve_node_at`] with this private key file, or with what the mesh names.
///
/// # Errors
/// If a key can't be used, or if no peer, or more than one, is this host.
pub fn resolve_node(
    mesh: &MeshConfig,
    private_key_file: Option<&Path>,
) -> Result<NodeConfig, ConfigErrors> {
    resolve_node_at(
        mesh,
        &Local {
            private_key_file: private_key_file.map(Path::to_owned),
            ..Local::default()
        },
    )
}

/// Finds this host in a mesh by its private key and gives its part of it. Reads key files and opens
/// encrypted keys: the private one, and the preshared ones that it shares.
///
/// The private key is that of `local.private_key_file` if given. Otherwise it is that of the file
/// that a peer's own section or `[interface]` names, if that file is on this host; otherwise the
/// encrypted one that this host's age identity opens.
///
/// # Errors
/// If a key can't be used, or if no peer, or more than one, is this host.
pub fn resolve_node_at(mesh: &MeshConfig, local: &Local) -> Result<NodeConfig, ConfigErrors> {
    let resolve = Resolve::new(mesh, local);
    let found = match &local.private_key_file {
        Some(file) => resolve.by_file(file),
        None => resolve.by_mesh(),
    };
    found
        .and_then(|found| resolve.node(found))
        .map_err(|errors| ConfigErrors::new(errors, Arc::clone(&mesh.sources)))
}

/// The other peers of a mesh as the peer `name` sees them, plain WireGuard peers too. Reads the
/// preshared keys that they share.
///
/// # Errors
/// If one can't be used.
pub fn peers_of(
    mesh: &MeshConfig,
    name: &str,
    local: &Local,
) -> Result<Vec<RemotePeer>, ConfigErrors> {
    let Some(own) = mesh.peers.get(name) else {
        return Ok(Vec::new());
    };
    let mut errors = Vec::new();
    let peers = Resolve::new(mesh, local).peers(
        name,
        keepalive_of(mesh, own),
        &mut Vec::new(),
        &mut errors,
    );
    if errors.is_empty() {
        Ok(peers)
    } else {
        Err(ConfigErrors::new(errors, Arc::clone(&mesh.sources)))
    }
}

/// The private key of the peer `name`, if it stands in the mesh file encrypted.
///
/// # Errors
/// It can't be opened, or is not the peer's.
pub fn private_key_of(
    mesh: &MeshConfig,
    name: &str,
    local: &Local,
) -> Result<Option<SecretKey>, ConfigErrors> {
    let Some(peer) = mesh.peers.get(name) else {
        return Ok(None);
    };
    let Some(SecretSource::Age(value)) = &peer.interface.private_key else {
        return Ok(None);
    };
    let resolve = Resolve::new(mesh, local);
    let key = resolve
        .open(value)
        .and_then(|key| resolve.check_key(name, peer, value, key));
    key.map(Some)
        .map_err(|error| ConfigErrors::new(vec![error], Arc::clone(&mesh.sources)))
}

/// The preshared key of a pair from the secret of the mesh: BLAKE2s keyed by the secret (RFC 7693,
/// 2.9) over a label and the two public keys, the lesser first. It depends on nothing else, so no
/// other peer changes it.
fn derive_preshared_key(secret: &PresharedKey, a: &PeerKey, b: &PeerKey) -> PresharedKey {
    let (first, second) = if a < b { (a, b) } else { (b, a) };
    let mut mac = Blake2sMac256::new(secret.expose().into());
    mac.update(b"natpunch preshared key of a pair, v1");
    mac.update(first.as_bytes());
    mac.update(second.as_bytes());
    let mut derived = mac.finalize_fixed();
    let key = PresharedKey::from_bytes(derived.into());
    derived.as_mut_slice().zeroize();
    key
}

fn keepalive_of(mesh: &MeshConfig, own: &PeerConfig) -> Duration {
    own.interface
        .persistent_keepalive
        .or(mesh.interface.persistent_keepalive)
        .unwrap_or(DEFAULT_KEEPALIVE)
}

struct Resolve<'a> {
    mesh: &'a MeshConfig,
    local: &'a Local,
    /// Read when the first encrypted value needs them.
    identities: OnceCell<Result<Identities, KeyFileError>>,
}

/// The peer that this host is, its key, and the file that holds it or opens it.
type Found<'a> = (&'a str, SecretKey, PathBuf);

impl<'a> Resolve<'a> {
    fn new(mesh: &'a MeshConfig, local: &'a Local) -> Self {
        Self {
            mesh,
            local,
            identities: OnceCell::new(),
        }
    }

    fn identity_file(&self) -> &Path {
        let file = self
            .local
            .age_identity_file
            .as_deref()
            .or(self.mesh.age_identity_file.as_deref());
        file.unwrap_or(Path::new(DEFAULT_IDENTITY_FILE))
    }

    fn identities(&self) -> Result<&Identities, &KeyFileError> {
        self.identities
            .get_or_init(|| Identities::read(self.identity_file()))
            .as_ref()
    }

    /// The identity that an encrypted value needs can't be used.
    fn no_identity(&self, value: &Encrypted, error: &KeyFileError) -> ConfigError {
        let message = format!("the age identity can't be used: {}", error.problem);
        let mut shown = ConfigError::at(value.place, message).label("encrypted");
        if !error.help.is_empty() {
            shown = shown.help(error.help.as_str());
        }
        if error.absent {
            shown = shown.help(
                "or name this node's identity: --age-identity FILE, or identity_file in [secrets]",
            );
        }
        shown
    }

    /// Opens an encrypted value.
    fn open<K: FromStr<Err = KeyError>>(&self, value: &Encrypted) -> Result<K, ConfigError> {
        let identities = self
            .identities()
            .map_err(|error| self.no_identity(value, error))?;
        identities
            .open(value)
            .map_err(|closed| self.closed(value, closed, identities))
    }

    fn closed(&self, value: &Encrypted, closed: Closed, identities: &Identities) -> ConfigError {
        let file = identities.file().display();
        let error = |message: String| ConfigError::at(value.place, message).label("encrypted");
        match closed {
            Closed::NotForUs => error(format!("the age identity of {file} does not open this"))
                .help(format!(
                    "encrypt it to this node, too: --recipient {}",
                    identities.recipients()
                )),
            Closed::Damaged => error("what is encrypted here is damaged".to_owned()).help(
                "it is for this node, but was changed after it was made: encrypt the key again",
            ),
            Closed::NotAKey(problem) => {
                error(format!("what is encrypted here is not a key: {problem}"))
                    .help("encrypt what `natpunch keygen` prints, with `natpunch encrypt`")
            }
        }
    }

    /// An encrypted private key has to be that of the peer in whose section it stands.
    fn check_key(
        &self,
        name: &str,
        peer: &PeerConfig,
        value: &Encrypted,
        key: SecretKey,
    ) -> Result<SecretKey, ConfigError> {
        let public = key.public_key();
        if public == peer.public_key {
            return Ok(key);
        }
        let error = ConfigError::at(
            value.place,
            format!("what is encrypted here is not the private key of `{name}`"),
        );
        Err(error.label("another key").help(format!(
            "the public key of this one is {public}: correct public_key, or encrypt the right key"
        )))
    }

    fn place(&self, file: &Path) -> Option<Place> {
        let places = &self.mesh.places;
        places
            .private_key_files
            .get(file)
            .or_else(|| places.preshared_key_files.get(file))
            .copied()
    }

    fn error(&self, file: &Path, message: String) -> ConfigError {
        match self.place(file) {
            Some(place) => ConfigError::at(place, message).label("named here"),
            None => ConfigError::of(file, message),
        }
    }

    fn key_file_error(&self, file: &Path, error: KeyFileError) -> ConfigError {
        let shown = self.error(file, error.problem);
        if error.help.is_empty() {
            shown
        } else {
            shown.help(error.help)
        }
    }

    /// The file that would hold a peer's key on its host.
    fn key_file_of(&self, peer: &'a PeerConfig) -> Option<&'a Path> {
        match peer
            .interface
            .private_key
            .as_ref()
            .or(self.mesh.interface.private_key.as_ref())?
        {
            SecretSource::File(file) => Some(file),
            SecretSource::Age(_) => None,
        }
    }

    fn by_file(&self, file: &Path) -> Result<Found<'a>, Vec<ConfigError>> {
        let key: SecretKey = key_file::read(file, "keygen")
            .map_err(|error| vec![self.key_file_error(file, error)])?;
        let public = key.public_key();
        match self
            .mesh
            .peers
            .iter()
            .find(|(_, peer)| peer.public_key == public)
        {
            Some((name, _)) => Ok((name, key, file.to_owned())),
            None => Err(vec![self.nobody(file, &key)]),
        }
    }

    fn by_mesh(&self) -> Result<Found<'a>, Vec<ConfigError>> {
        if let Some(node) = self
            .local
            .node
            .as_deref()
            .filter(|node| !self.mesh.peers.contains_key(*node))
        {
            let file = self.mesh.files.first().cloned().unwrap_or_default();
            let error = ConfigError::of(
                &file,
                format!("there is no peer `{}`, as --node says", Quoted(node)),
            );
            return Err(vec![error.help(
                "name the peer that this host is, as in its section [peers.NAME]",
            )]);
        }
        // Peers by the file that would hold their key on their host.
        let mut files: BTreeMap<&Path, BTreeMap<PeerKey, &'a str>> = BTreeMap::new();
        let is_meant = |name: &str| self.local.node.as_deref().is_none_or(|node| node == name);
        for (name, peer) in self.mesh.peers.iter().filter(|(name, _)| is_meant(name)) {
            if let Some(file) = self.key_file_of(peer) {
                files.entry(file).or_default().insert(peer.public_key, name);
            }
        }
        let present: Vec<&Path> = files
            .keys()
            .copied()
            .filter(|file| key_file::exists(file))
            .collect();
        let mut found: Vec<Found<'a>> = Vec::new();
        let mut errors = Vec::new();
        for file in &present {
            match key_file::read::<SecretKey>(file, "keygen") {
                Ok(key) => match files
                    .get(file)
                    .and_then(|peers| peers.get(&key.public_key()))
                {
                    Some(name) => found.push((name, key, file.to_path_buf())),
                    None => errors.push(self.nobody(file, &key)),
                },
                Err(error) => errors.push(self.key_file_error(file, error)),
            }
        }
        // A key file on this host is its owner's word; an identity may open the keys of several.
        if found.is_empty() {
            let unread = self.by_identity(&is_meant, &mut found, &mut errors);
            if let (true, true, Some(error)) = (found.is_empty(), errors.is_empty(), unread) {
                errors.push(error);
            }
        }
        match found.len() {
            1 => found.pop().ok_or_else(Vec::new),
            0 if !errors.is_empty() => Err(errors),
            0 => Err(vec![self.no_key_file(files.keys().next().copied())]),
            _ => {
                let names: Vec<&str> = found.iter().map(|(name, ..)| *name).collect();
                let message = format!(
                    "this host holds the keys of several peers: {}",
                    names.join(", ")
                );
                let file = found
                    .first()
                    .map(|(.., file)| file.clone())
                    .unwrap_or_default();
                Err(vec![self.error(&file, message).help(
                    "say which one it is: --node NAME, or --private-key-file FILE",
                )])
            }
        }
    }

    /// Looks for encrypted private keys that this host's identity opens. The value is what is wrong
    /// if there are such keys, but none of them opens.
    fn by_identity(
        &self,
        is_meant: &dyn Fn(&str) -> bool,
        found: &mut Vec<Found<'a>>,
        errors: &mut Vec<ConfigError>,
    ) -> Option<ConfigError> {
        let mut closed = None;
        for (name, peer) in self.mesh.peers.iter().filter(|(name, _)| is_meant(name)) {
            let Some(SecretSource::Age(value)) = &peer.interface.private_key else {
                continue;
            };
            let identities = match self.identities() {
                Ok(identities) => identities,
                Err(error) => return Some(self.no_identity(value, error)),
            };
            match identities.open::<SecretKey>(value) {
                Ok(key) => match self.check_key(name, peer, value, key) {
                    Ok(key) => found.push((name, key, identities.file().to_owned())),
                    Err(error) => errors.push(error),
                },
                Err(Closed::NotForUs) => {
                    closed = closed.or(Some(self.closed(value, Closed::NotForUs, identities)))
                }
                Err(broken) => errors.push(self.closed(value, broken, identities)),
            }
        }
        closed
    }

    fn no_key_file(&self, file: Option<&Path>) -> ConfigError {
        match file {
            Some(file) => match key_file::read::<SecretKey>(file, "keygen") {
                Err(error) => self.key_file_error(file, error),
                Ok(key) => self.nobody(file, &key),
            },
            None => {
                let file = self.mesh.files.first().cloned().unwrap_or_default();
                ConfigError::of(&file, "the mesh names no private key file")
                    .help("add [interface] with private_key_file = \"/etc/natpunch/mesh.key\", or say --private-key-file FILE")
            }
        }
    }

    /// No peer has this key.
    fn nobody(&self, file: &Path, key: &SecretKey) -> ConfigError {
        let public = key.public_key();
        let message = format!("no peer of the mesh has the key of {}", file.display());
        let error = self.error(file, message);
        match self.mesh.peers.iter().find(|(_, peer)| peer.public_key == public) {
            Some((name, _)) => {
                error.help(format!("it is the key of `{name}`, whose section names another private_key_file"))
            }
            None => error
                .help(format!("its public key is {public}: add it as [peers.NAME] with public_key = \"{public}\""))
                .help("or name the right key: --private-key-file FILE"),
        }
    }

    /// The other peers, with the keys that they share with `name`; the key files are noted.
    fn peers(
        &self,
        name: &str,
        keepalive: Duration,
        files: &mut Vec<PathBuf>,
        errors: &mut Vec<ConfigError>,
    ) -> Vec<RemotePeer> {
        let mesh = self.mesh;
        let mut read = |secret: &SecretSource| {
            let key = match secret {
                SecretSource::File(file) => {
                    files.push(key_file::actual(file).unwrap_or_else(|_| file.to_owned()));
                    key_file::read::<PresharedKey>(file, "keygen")
                        .map_err(|error| self.key_file_error(file, error))
                }
                SecretSource::Age(value) => self.open(value),
            };
            key.map_err(|error| errors.push(error)).ok()
        };
        let secret = mesh.preshared_secret.as_ref().and_then(&mut read);
        let relaying = mesh
            .peers
            .get(name)
            .map(|own| (own.relay, OwnRelays::new(&own.relays)))
            .unwrap_or_default();
        let own = mesh.peers.get(name).map(|own| own.public_key);
        let exit = mesh.peers.get(name).and_then(|own| exit_node(mesh, own));
        let mut peers = Vec::with_capacity(mesh.peers.len());
        for (other, peer) in mesh.peers.iter().filter(|(other, _)| *other != name) {
            let pair = if name < other.as_str() {
                (name.to_owned(), other.clone())
            } else {
                (other.clone(), name.to_owned())
            };
            let preshared_key = match (mesh.preshared_keys.get(&pair), &secret, own) {
                (Some(stated), ..) => read(stated),
                (None, Some(secret), Some(own)) => {
                    Some(derive_preshared_key(secret, &own, &peer.public_key))
                }
                (None, ..) => None,
            };
            let mut peer = remote(mesh, other, peer, preshared_key, keepalive, &relaying);
            if let Some(exit) = exit.as_ref().filter(|exit| exit.peer == *other) {
                peer.allowed_ips.extend(exit.ipv4.then_some(EVERYTHING[0]));
                peer.allowed_ips.extend(exit.ipv6.then_some(EVERYTHING[1]));
                peer.allowed_ips.sort();
            }
            peers.push(peer);
        }
        peers
    }

    fn node(
        &self,
        (name, private_key, key_file): Found<'_>,
    ) -> Result<NodeConfig, Vec<ConfigError>> {
        let mesh = self.mesh;
        let Some(own) = mesh.peers.get(name) else {
            return Err(Vec::new());
        };
        if !own.managed {
            let place = mesh.places.peers.get(name).copied().unwrap_or_default();
            let error = ConfigError::at(
                place,
                format!("this host is `{name}`, which the file calls a plain WireGuard peer"),
            );
            return Err(vec![
                error
                    .label("this host")
                    .help("remove managed = false, or don't run natpunch here"),
            ]);
        }
        let keepalive = keepalive_of(mesh, own);
        let mut errors = Vec::new();
        let mut key_files = vec![key_file::actual(&key_file).unwrap_or(key_file)];
        let peers = self.peers(name, keepalive, &mut key_files, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut discovery: Vec<Discovery> = mesh
            .discovery
            .iter()
            .filter(|instance| !is_node(instance, &own.public_key))
            .cloned()
            .collect();
        for instance in &mut discovery {
            for secret in instance.about.secrets.clone() {
                let read = key_file::read::<PresharedKey>(&secret.path, "keygen");
                let read = read.map_err(|error| {
                    let (key, problem, help) = (secret.key, error.problem, error.help);
                    format!("{key}: {problem}; {help}")
                });
                instance.secrets.0.insert(secret.key, read);
                key_files.push(key_file::actual(&secret.path).unwrap_or(secret.path));
            }
        }
        let (own_interface, all) = (&own.interface, &mesh.interface);
        let public_key = own.public_key;
        let exit = exit_node(mesh, own);
        Ok(NodeConfig {
            mesh: mesh.name.clone(),
            networks: mesh.networks.clone(),
            lans: mesh.lans.clone(),
            name: name.to_owned(),
            interface: own_interface
                .name
                .clone()
                .or_else(|| all.name.clone())
                .unwrap_or_else(|| format!("wg-{}", mesh.name)),
            private_key,
            public_key,
            listen_port: listen_port(&mesh.interface, own),
            fwmark: match (own_interface.fwmark.or(all.fwmark).unwrap_or(0), &exit) {
                // Told by their mark, WireGuard's own packets go outside.
                (0, Some(exit)) => exit.table,
                (mark, _) => mark,
            },
            exit_node: exit,
            forwards: [false, true].map(|ipv6| {
                let route = own
                    .routes
                    .iter()
                    .any(|route| route.addr().is_ipv6() == ipv6);
                route
                    || (own.exit
                        && own
                            .addresses
                            .iter()
                            .any(|address| address.is_ipv6() == ipv6))
            }),
            mtu: own_interface.mtu.or(all.mtu).unwrap_or(DEFAULT_MTU),
            backend: own_interface.backend.or(all.backend).unwrap_or_default(),
            persistent_keepalive: Some(keepalive).filter(|keepalive| !keepalive.is_zero()),
            addresses: own_addresses(mesh, own),
            peers,
            serve: own.serve,
            apply: mesh.apply.clone(),
            discovery,
            stun_servers: mesh.stun_servers.clone(),
            files: mesh.files.iter().chain(&key_files).cloned().collect(),
            key_files,
            hosts: mesh.hosts,
            content_hash: mesh.content_hash,
            mesh_hash: mesh.mesh_hash(),
            generation: mesh.generation,
        })
    }
}

fn remote(
    mesh: &MeshConfig,
    name: &str,
    peer: &PeerConfig,
    preshared_key: Option<PresharedKey>,
    keepalive: Duration,
    (relay, relays): &(RelayPolicy, OwnRelays<'_>),
) -> RemotePeer {
    let hosts = peer.addresses.iter().map(|address| IpNet::from(*address));
    let mut allowed_ips: Vec<IpNet> = hosts.chain(peer.routes.iter().copied()).collect();
    allowed_ips.sort();
    RemotePeer {
        name: name.to_owned(),
        key: peer.public_key,
        managed: peer.managed,
        critical: peer.critical,
        addresses: peer.addresses.clone(),
        routes: peer.routes.clone(),
        allowed_ips,
        endpoint: peer.endpoint.clone(),
        preshared_key,
        relay: of_pair(*relay, peer.relay),
        relays: relays.of_pair(&peer.relays),
        persistent_keepalive: Some(peer.persistent_keepalive.unwrap_or(keepalive))
            .filter(|keepalive| !keepalive.is_zero()),
        listen_port: listen_port(&mesh.interface, peer),
    }
}

/// The default routes of IPv4 and IPv6.
const EVERYTHING: [IpNet; 2] = [
    IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(ipnet::Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

/// These networks, and the default routes of both address families.
pub fn with_default_routes(mut networks: Vec<IpNet>) -> Vec<IpNet> {
    networks.extend(EVERYTHING);
    networks.sort();
    networks.dedup();
    networks
}

/// The exit node that a peer uses. Two meshes on one host differ in their port, and so in their
/// table; its upper half is "NP", so that it is nobody else's.
fn exit_node(mesh: &MeshConfig, own: &PeerConfig) -> Option<ExitNode> {
    let name = own.exit_node.as_ref()?;
    let exit = mesh.peers.get(name)?;
    let both = |ipv6| {
        [own, exit].iter().all(|peer| {
            peer.addresses
                .iter()
                .any(|address| address.is_ipv6() == ipv6)
        })
    };
    Some(ExitNode {
        peer: name.clone(),
        table: 0x4e50_0000 | u32::from(listen_port(&mesh.interface, own)),
        ipv4: both(false),
        ipv6: both(true),
        except: own.exit_except.clone(),
    })
}

/// What holds for a pair of which the sides say this: what one forbids, the other can't ask for.
fn of_pair(a: RelayPolicy, b: RelayPolicy) -> RelayPolicy {
    let either = |policy| a == policy || b == policy;
    [RelayPolicy::Never, RelayPolicy::Only]
        .into_iter()
        .find(|policy| either(*policy))
        .unwrap_or_default()
}

/// The relays that this node lists, with the place of each.
#[derive(Default)]
struct OwnRelays<'a> {
    list: &'a [String],
    places: BTreeMap<&'a str, usize>,
}

impl<'a> OwnRelays<'a> {
    fn new(list: &'a [String]) -> Self {
        let numbered = list.iter().enumerate();
        Self {
            list,
            places: numbered.map(|(n, name)| (name.as_str(), n)).collect(),
        }
    }

    /// The relays of a pair of which the other side lists these: those of both, by the sum of
    /// their places, then by name. `None`: any.
    fn of_pair(&self, other: &[String]) -> Option<Vec<String>> {
        match (self.list, other) {
            ([], []) => None,
            ([], one) | (one, []) => Some(one.to_vec()),
            (_, other) => {
                let numbered = other.iter().enumerate();
                let shared = numbered.filter_map(|(place, name)| {
                    let own = self.places.get(name.as_str())?;
                    Some((place + own, name))
                });
                let mut shared: Vec<(usize, &String)> = shared.collect();
                shared.sort();
                Some(shared.into_iter().map(|(_, name)| name.clone()).collect())
            }
        }
    }
}

/// Whether an instance is the node with this key, which does not ask itself.
fn is_node(instance: &Discovery, key: &PeerKey) -> bool {
    instance.about.node == Some(*key)
}

/// The addresses of a peer, each with the prefix length of the mesh network around it, so that the
/// interface's connected route is the mesh.
pub fn own_addresses(mesh: &MeshConfig, own: &PeerConfig) -> Vec<IpNet> {
    let networks = mesh.networks.iter().map(|network| (*network, network));
    let networks: NetworkMap<&IpNet> = networks.collect();
    let with_prefix = |address: &IpAddr| {
        let alone = IpNet::from(*address);
        let around = networks.around(alone);
        around
            .and_then(|network| IpNet::new(*address, network.prefix_len()).ok())
            .unwrap_or(alone)
    };
    own.addresses.iter().map(with_prefix).collect()
}
