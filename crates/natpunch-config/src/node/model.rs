//! One node's part of a mesh.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use natpunch_types::{Connect, PeerKey, PresharedKey, PunchSpec, RelayPolicy, SecretKey};

use crate::file::forms::Backend;
use crate::mesh::model::{ApplyConfig, Discovery};

/// Another peer of the mesh, as a node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemotePeer {
    /// Its name: a DNS label.
    pub name: String,
    /// Its public key.
    pub key: PeerKey,
    /// Whether natpunch runs on it.
    pub managed: bool,
    /// Whether changes must not lose it.
    pub critical: bool,
    /// Whether the pair keeps a path at all times, as both sides and the mesh say.
    pub connect: Connect,
    /// Its addresses in the mesh.
    pub addresses: Vec<IpAddr>,
    /// Networks behind it.
    pub routes: Vec<IpNet>,
    /// WireGuard's allowed IPs: addresses as host networks, routes, and the default routes of an
    /// exit node; sorted.
    pub allowed_ips: Vec<IpNet>,
    /// `HOST:PORT` of the file.
    pub endpoint: Option<String>,
    /// The key that this node and the peer share beside their key pairs.
    pub preshared_key: Option<PresharedKey>,
    /// Whether it is reached by relays, as both sides say.
    pub relay: RelayPolicy,
    /// By whose relays, best first, as both sides say: names of discovery instances. `None`: any.
    pub relays: Option<Vec<String>>,
    /// Interval of persistent keepalives to it; `None` is off.
    pub persistent_keepalive: Option<Duration>,
    /// The file does not say it, and natpunch runs there: it may be longer or shorter, as the pair's
    /// NATs need it.
    pub adapts_keepalive: bool,
    /// The port that it listens on, by its file or by its key.
    pub listen_port: u16,
}

/// How a node sends all its traffic through a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitNode {
    /// The name of the peer.
    pub peer: String,
    /// The routing table that leads there.
    pub table: u32,
    /// Whether IPv4 goes there: both have such an address. Else nothing of it leaves the host's own
    /// networks.
    pub ipv4: bool,
    /// The same for IPv6.
    pub ipv6: bool,
    /// Networks that stay outside.
    pub except: Vec<IpNet>,
}

/// This node's part of a mesh, fully resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeConfig {
    /// Name of the mesh.
    pub mesh: String,
    /// The mesh's own networks.
    pub networks: Vec<IpNet>,
    /// [`MeshConfig::lans`](crate::MeshConfig::lans).
    pub lans: Vec<IpNet>,
    /// This node's name in the mesh.
    pub name: String,
    /// Interface name.
    pub interface: String,
    /// This node's private key.
    pub private_key: SecretKey,
    /// This node's public key.
    pub public_key: PeerKey,
    /// WireGuard's UDP port.
    pub listen_port: u16,
    /// Firewall mark of WireGuard's packets; 0 is none. With an exit node there is one.
    pub fwmark: u32,
    /// The exit node that it uses.
    pub exit_node: Option<ExitNode>,
    /// Whether others reach networks or the internet through it, so that it has to forward packets:
    /// of IPv4, of IPv6.
    pub forwards: [bool; 2],
    /// MTU, in bytes.
    pub mtu: u32,
    /// Which WireGuard device.
    pub backend: Backend,
    /// Interval of persistent keepalives that this node sends where its peer says nothing else;
    /// `None` is off.
    pub persistent_keepalive: Option<Duration>,
    /// This node's addresses, each with the prefix length of the mesh network around it.
    pub addresses: Vec<IpNet>,
    /// The other peers, sorted by name.
    pub peers: Vec<RemotePeer>,
    /// The UDP port at which this node serves the mesh, if it does.
    pub serve: Option<u16>,
    /// How changes are applied.
    pub apply: ApplyConfig,
    /// How much this node may probe.
    pub punch: PunchSpec,
    /// Discovery instances that this node uses: all but itself.
    pub discovery: Vec<Discovery>,
    /// STUN servers, `HOST:PORT`.
    pub stun_servers: Vec<String>,
    /// The files read: mesh files, then key files.
    pub files: Vec<PathBuf>,
    /// The key files among them.
    pub key_files: Vec<PathBuf>,
    /// Whether the peers' names are put into the hosts file.
    pub hosts: bool,
    /// [`MeshConfig::content_hash`](crate::MeshConfig::content_hash).
    pub content_hash: [u8; 32],
    /// [`MeshConfig::mesh_hash`](crate::MeshConfig::mesh_hash).
    pub mesh_hash: [u8; 32],
    /// [`MeshConfig::generation`](crate::MeshConfig::generation).
    pub generation: Option<u64>,
}
