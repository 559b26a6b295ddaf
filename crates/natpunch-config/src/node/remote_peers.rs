//! The other peers as one of them sees them: keys of the pair, relays of the pair, allowed IPs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use blake2::Blake2sMac256;
use blake2::digest::{FixedOutput as _, KeyInit as _, Update as _};
use ipnet::IpNet;
use natpunch_types::{Connect, PeerKey, PresharedKey, RelayPolicy};
use zeroize::Zeroize as _;

use super::exit_node::{EVERYTHING, exit_node};
use super::key_file;
use super::model::RemotePeer;
use super::resolve::DEFAULT_KEEPALIVE;
use super::secrets::SecretReader;
use crate::mesh::model::{MeshConfig, PeerConfig, SecretSource};
use crate::mesh::ports::listen_port;
use crate::report::error::ConfigError;

/// The other peers, with the keys that they share with `name`; the key files are noted.
pub(super) fn peers(
    secrets: &SecretReader<'_>,
    name: &str,
    keepalive: Option<Duration>,
    files: &mut Vec<PathBuf>,
    errors: &mut Vec<ConfigError>,
) -> Vec<RemotePeer> {
    let mesh = secrets.mesh;
    let mut read = |secret: &SecretSource| {
        let key = match secret {
            SecretSource::File(file) => {
                files.push(key_file::actual(file).unwrap_or_else(|_| file.to_owned()));
                key_file::read::<PresharedKey>(file, "keygen")
                    .map_err(|error| secrets.key_file_error(file, error))
            }
            SecretSource::Age(value) => secrets.open(value),
        };
        key.map_err(|error| errors.push(error)).ok()
    };
    let secret = mesh.preshared_secret.as_ref().and_then(&mut read);
    let key_of = |pair: &(String, String), own: Option<PeerKey>, peer: &PeerConfig| match (
        mesh.preshared_keys.get(pair),
        &secret,
        own,
    ) {
        (Some(stated), ..) => read(stated),
        (None, Some(secret), Some(own)) => {
            Some(derive_preshared_key(secret, &own, &peer.public_key))
        }
        (None, ..) => None,
    };
    peers_with(mesh, name, keepalive, key_of)
}

/// The other peers, with the keys that `key_of` knows: of a pair, which has this public key of
/// `name` and this other side.
pub(super) fn peers_with(
    mesh: &MeshConfig,
    name: &str,
    keepalive: Option<Duration>,
    mut key_of: impl FnMut(&(String, String), Option<PeerKey>, &PeerConfig) -> Option<PresharedKey>,
) -> Vec<RemotePeer> {
    let relaying = mesh
        .peers
        .get(name)
        .map(|own| (own.relay, OwnRelays::new(&own.relays)))
        .unwrap_or_default();
    let own_peer = mesh.peers.get(name);
    let own = own_peer.map(|own| own.public_key);
    let exit = mesh.peers.get(name).and_then(|own| exit_node(mesh, own));
    let mut peers = Vec::with_capacity(mesh.peers.len());
    for (other, peer) in mesh.peers.iter().filter(|(other, _)| *other != name) {
        let pair = if name < other.as_str() {
            (name.to_owned(), other.clone())
        } else {
            (other.clone(), name.to_owned())
        };
        let preshared_key = key_of(&pair, own, peer);
        let connect = own_peer.map_or(Connect::Always, |own| mesh.connect_of(own, peer));
        let mut peer = remote(mesh, other, peer, preshared_key, keepalive, &relaying);
        peer.connect = connect;
        if let Some(exit) = exit.as_ref().filter(|exit| exit.peer == *other) {
            peer.allowed_ips.extend(exit.ipv4.then_some(EVERYTHING[0]));
            peer.allowed_ips.extend(exit.ipv6.then_some(EVERYTHING[1]));
            peer.allowed_ips.sort();
        }
        peers.push(peer);
    }
    peers
}

fn remote(
    mesh: &MeshConfig,
    name: &str,
    peer: &PeerConfig,
    preshared_key: Option<PresharedKey>,
    keepalive: Option<Duration>,
    (relay, relays): &(RelayPolicy, OwnRelays<'_>),
) -> RemotePeer {
    let hosts = peer.addresses.iter().map(|address| IpNet::from(*address));
    let stated = peer.persistent_keepalive.or(keepalive);
    let mut allowed_ips: Vec<IpNet> = hosts.chain(peer.routes.iter().copied()).collect();
    allowed_ips.sort();
    RemotePeer {
        name: name.to_owned(),
        key: peer.public_key,
        managed: peer.managed,
        critical: peer.critical,
        connect: Connect::Always,
        addresses: peer.addresses.clone(),
        routes: peer.routes.clone(),
        allowed_ips,
        endpoint: peer.endpoint.clone(),
        preshared_key,
        relay: of_pair(*relay, peer.relay),
        relays: relays.of_pair(&peer.relays),
        persistent_keepalive: Some(stated.unwrap_or(DEFAULT_KEEPALIVE))
            .filter(|keepalive| !keepalive.is_zero()),
        adapts_keepalive: peer.managed && stated.is_none(),
        listen_port: listen_port(&mesh.interface, peer),
    }
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
