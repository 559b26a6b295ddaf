//! What the resolved mesh file says, as far as the core is concerned.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use natpunch_types::{
    Connect, InstanceName, PeerKey, PresharedKey, PunchSpec, RelayPolicy, SecretKey,
    derive_listen_port,
};

/// This node and its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshSpec {
    /// The WireGuard private key of this node.
    pub private_key: SecretKey,
    /// The UDP port that WireGuard listens on, and from which every probe leaves.
    pub listen_port: u16,
    /// The MTU of WireGuard's interface, in bytes: the largest packet that is to pass a path.
    pub mtu: u32,
    /// All networks of the mesh (overlay addresses and routes): never valid as an outer address,
    /// which would send the tunnel through itself.
    pub overlay: Vec<IpNet>,
    /// The peers, each key once. This node itself is dropped if it is among them.
    pub peers: Vec<PeerSpec>,
    /// How much this node may probe where it can only guess the peer's port.
    pub punch: PunchSpec,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSpec {
    /// Its public key.
    pub key: PeerKey,
    /// What people call it, for logs and status only.
    pub name: String,
    /// `false` for a plain WireGuard peer, which answers no probes.
    pub managed: bool,
    /// Whether the pair keeps a path at all times. A plain peer always does, as far as it can.
    pub connect: Connect,
    /// Shared by this pair only; it also separates the keys of probes and records.
    pub preshared_key: Option<PresharedKey>,
    /// WireGuard's own keepalive interval towards the peer.
    pub persistent_keepalive: Option<Duration>,
    /// The mesh file leaves it open: where the lifetime of the pair's mappings is known, it is as
    /// long as that allows ([`Command::SetKeepalive`](crate::Command::SetKeepalive)).
    pub adapts_keepalive: bool,
    /// The port that the peer listens on as far as the file tells ([`derive_listen_port`] unless
    /// set): where a LAN beacon finds it.
    pub listen_port: u16,
    /// Whether it may be reached through relays.
    pub relay: RelayPolicy,
    /// The `endpoint` of the mesh file, `HOST:PORT`, which discovery looks up.
    pub endpoint: Option<Arc<str>>,
    /// Whose relays may be used, best first, whatever their round trips; `None`: any, the fastest.
    pub relays: Option<Arc<[InstanceName]>>,
}

impl PeerSpec {
    /// A node of natpunch of which the mesh file says no more than its name and key.
    pub fn new(name: impl Into<String>, key: PeerKey) -> Self {
        Self {
            key,
            name: name.into(),
            managed: true,
            connect: Connect::Always,
            preshared_key: None,
            persistent_keepalive: None,
            adapts_keepalive: false,
            listen_port: derive_listen_port(&key),
            relay: RelayPolicy::Auto,
            endpoint: None,
            relays: None,
        }
    }

    /// Whether both are one peer, whose state goes on through a reload. These may differ, since
    /// nothing that is known of the peer depends on them:
    /// - the name, which is for people;
    /// - the keepalive, which is the device's, and whether it is adapted;
    /// - the port, which only says where to look next.
    pub(crate) fn is_same_peer(&self, other: &Self) -> bool {
        *self
            == Self {
                name: self.name.clone(),
                persistent_keepalive: self.persistent_keepalive,
                adapts_keepalive: self.adapts_keepalive,
                listen_port: self.listen_port,
                ..other.clone()
            }
    }
}
