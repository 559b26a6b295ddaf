//! From the mesh to this node's part of it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use natpunch_plugin_description::{Secret, SecretForm};
use natpunch_types::{SecretKey, with_help};

use super::exit_node::exit_node;
use super::local::Local;
use super::model::{NodeConfig, RemotePeer};
use super::own_peer::ThisHost;
use super::remote_peers::{peers, peers_with};
use super::secrets::SecretReader;
use super::{key_file, own_peer};
use crate::mesh::model::{Discovery, MeshConfig, PeerConfig, SecretSource};
use crate::mesh::network_map::NetworkMap;
use crate::mesh::ports::listen_port;
use crate::report::error::{ConfigError, ConfigErrors};

/// WireGuard's own default MTU, in bytes: 1500 less the most that its headers take.
const DEFAULT_MTU: u32 = 1420;

/// Shorter than the UDP mapping lifetime of nearly every NAT (RFC 4787, REQ-5 asks for 2 minutes;
/// 30 s are seen).
pub(super) const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(25);

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
    let secrets = SecretReader::new(mesh, local);
    own_peer::find(&secrets)
        .and_then(|host| node(&secrets, host))
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
    let peers = peers(
        &SecretReader::new(mesh, local),
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
    let secrets = SecretReader::new(mesh, local);
    let key = secrets
        .open(value)
        .and_then(|key| secrets.check_key(name, peer, value, key));
    key.map(Some)
        .map_err(|error| ConfigErrors::new(vec![error], Arc::clone(&mesh.sources)))
}

fn node(secrets: &SecretReader<'_>, host: ThisHost<'_>) -> Result<NodeConfig, Vec<ConfigError>> {
    let mesh = secrets.mesh;
    let ThisHost {
        name,
        private_key,
        key_file,
    } = host;
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
    let mut errors = Vec::new();
    let mut key_files = vec![key_file::actual(&key_file).unwrap_or(key_file)];
    let peers = peers(
        secrets,
        name,
        keepalive_of(mesh, own),
        &mut key_files,
        &mut errors,
    );
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut discovery = discovery(mesh, own);
    read_secrets(&mut discovery, &mut key_files);
    let mut node = part(mesh, name, own, peers, discovery);
    node.private_key = private_key;
    node.files.extend_from_slice(&key_files);
    node.key_files = key_files;
    Ok(node)
}

/// The part of the mesh that the peer `name` would have, with no key in it: its private key is
/// zero, and no peer has a preshared one. Pure. `None`: there is no such peer, or it runs plain
/// WireGuard.
pub fn without_keys(mesh: &MeshConfig, name: &str) -> Option<NodeConfig> {
    let (name, own) = mesh.peers.get_key_value(name)?;
    if !own.managed {
        return None;
    }
    let peers = peers_with(mesh, name, keepalive_of(mesh, own), |_, _, _| None);
    Some(part(mesh, name, own, peers, discovery(mesh, own)))
}

/// What follows from the mesh alone: the private key and the key files are filled in later.
fn part(
    mesh: &MeshConfig,
    name: &str,
    own: &PeerConfig,
    peers: Vec<RemotePeer>,
    discovery: Vec<Discovery>,
) -> NodeConfig {
    let keepalive = keepalive_of(mesh, own).unwrap_or(DEFAULT_KEEPALIVE);
    let (own_interface, all) = (&own.interface, &mesh.interface);
    let public_key = own.public_key;
    let exit = exit_node(mesh, own);
    NodeConfig {
        mesh: mesh.name.clone(),
        networks: mesh.networks.clone(),
        lans: mesh.lans.clone(),
        name: name.to_owned(),
        interface: own_interface
            .name
            .clone()
            .or_else(|| all.name.clone())
            .unwrap_or_else(|| format!("wg-{}", mesh.name)),
        private_key: SecretKey::from_bytes([0; 32]),
        public_key,
        listen_port: listen_port(&mesh.interface, own),
        fwmark: match (own_interface.fwmark.or(all.fwmark).unwrap_or(0), &exit) {
            // Told by their mark, WireGuard's own packets go outside.
            (0, Some(exit)) => exit.table,
            (mark, _) => mark,
        },
        exit_node: exit,
        forwards: [false, true].map(|ipv6| {
            let mut routes = own.routes.iter();
            let to_a_route = routes.any(|route| route.addr().is_ipv6() == ipv6);
            to_a_route || (own.exit && own.has_family(ipv6))
        }),
        mtu: own_interface.mtu.or(all.mtu).unwrap_or(DEFAULT_MTU),
        backend: own_interface.backend.or(all.backend).unwrap_or_default(),
        persistent_keepalive: Some(keepalive).filter(|keepalive| !keepalive.is_zero()),
        addresses: own_addresses(mesh, own),
        peers,
        serve: own.serve,
        apply: mesh.apply.clone(),
        punch: mesh.punch,
        discovery,
        stun_servers: mesh.stun_servers.clone(),
        files: mesh.files.clone(),
        key_files: Vec::new(),
        hosts: mesh.hosts,
        content_hash: mesh.content_hash,
        mesh_hash: mesh.mesh_hash(),
        generation: mesh.generation,
    }
}

/// The discovery instances that a node uses.
fn discovery(mesh: &MeshConfig, own: &PeerConfig) -> Vec<Discovery> {
    let is_itself = |instance: &Discovery| instance.about.node == Some(own.public_key);
    let asks_router = own
        .interface
        .port_mapping
        .or(mesh.interface.port_mapping)
        .unwrap_or(true);
    let is_used = |one: &&Discovery| !is_itself(one) && (asks_router || !one.about.asks_router);
    let others = mesh.discovery.iter().filter(is_used);
    others.cloned().collect()
}

/// Reads the secrets of discovery instances, whose files are noted. One that can't be read is the
/// plugin's to report.
fn read_secrets(instances: &mut [Discovery], files: &mut Vec<PathBuf>) {
    for instance in instances {
        for secret in instance.about.secrets.clone() {
            let read = match secret.form {
                SecretForm::Key => key_file::read(&secret.path, "keygen").map(Secret::Key),
                SecretForm::Password => key_file::read_password(&secret.path).map(Secret::Password),
            };
            let read = read.map_err(|error| {
                let problem = format!("{}: {}", secret.key, error.problem);
                with_help(problem, [error.help])
            });
            instance.secrets.0.insert(secret.key, read);
            files.push(key_file::actual(&secret.path).unwrap_or(secret.path));
        }
    }
}

/// What the file says of the keepalives that a node sends.
fn keepalive_of(mesh: &MeshConfig, own: &PeerConfig) -> Option<Duration> {
    own.interface
        .persistent_keepalive
        .or(mesh.interface.persistent_keepalive)
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
