//! What a version of the mesh says, as far as changes go, and how two versions differ.
//!
//! Two structs hold everything that decides how this node and its peers reach each other. That two
//! versions differ is their derived `PartialEq`. The few things that may differ without harm are
//! subtracted by name, each with its reason, so a fact that is added later counts until somebody
//! says why it need not.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use natpunch_types::{Consent, PeerKey, PresharedKey, RelayPolicy, SecretKey};
use std::net::IpAddr;

/// BLAKE2s of what the files of a version contain: its name.
pub type Hash = [u8; 32];

/// A version of the mesh as this node would run it. Equal versions say the same, whichever path
/// their files were named by.
pub trait Release: PartialEq {
    /// The settings of a discovery instance.
    type Discovery: Finds;
    /// The hash of its files.
    fn hash(&self) -> Hash;
    /// What it says.
    fn facts(&self) -> &Facts<Self::Discovery>;
}

/// What caps want to know of a discovery instance.
pub trait Finds: Clone + PartialEq {
    /// Whether it can tell where a peer is that the file names no endpoint of.
    fn finds_peers(&self) -> bool;
}

/// Everything that changes are judged by.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts<D> {
    /// This node.
    pub node: NodeFacts<D>,
    /// Its peers, each name and each key once.
    pub peers: Vec<PeerFacts>,
    /// What the file says of changes themselves.
    pub rules: Rules,
}

/// What a mesh file says of changes themselves: `[apply]`. Never watched, since it changes no path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// How long peers may take to be alive again; zero is for ever.
    pub confirm: Duration,
    /// What a change may do.
    pub allow: Vec<Consent>,
}

/// How this node reaches anybody.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeFacts<D> {
    /// Name of the mesh. It can't change while the mesh is up.
    pub mesh: String,
    /// Name of the interface. It can't change while the mesh is up.
    pub interface: String,
    /// The kind of WireGuard device. It can't change while the mesh is up.
    pub backend: String,
    /// Its private key.
    pub private_key: SecretKey,
    /// WireGuard's UDP port.
    pub listen_port: u16,
    /// Firewall mark of WireGuard's packets; 0 is none.
    pub fwmark: u32,
    /// MTU, in bytes.
    pub mtu: u32,
    /// Its addresses, each with the prefix length of the mesh network around it.
    pub addresses: Vec<IpNet>,
    /// How it sends all its traffic through a peer, if it does.
    pub exit: Option<ExitFacts>,
    /// The mesh's own networks, which are never valid as outer addresses.
    pub networks: Vec<IpNet>,
    /// Networks that nodes sit in.
    pub lans: Vec<IpNet>,
    /// Its discovery instances by name.
    pub discovery: BTreeMap<String, D>,
    /// STUN servers, `HOST:PORT`.
    pub stun: Vec<String>,
    /// The UDP port at which it serves the mesh, if it does: others may reach it by its own relay.
    pub serve: Option<u16>,
}

/// How a node sends all its traffic through a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitFacts {
    /// The name of the peer.
    pub peer: String,
    /// The routing table that leads there.
    pub table: u32,
    /// Whether IPv4 and IPv6 go there.
    pub families: [bool; 2],
    /// Networks that stay outside.
    pub except: Vec<IpNet>,
}

/// How a peer is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerFacts {
    /// Its name.
    pub name: String,
    /// Its public key.
    pub key: PeerKey,
    /// Whether natpunch runs on it.
    pub managed: bool,
    /// Whether changes must not lose it.
    pub critical: bool,
    /// Its addresses in the mesh.
    pub addresses: Vec<IpAddr>,
    /// Networks behind it that the file names, without an exit node's default routes.
    pub routes: Vec<IpNet>,
    /// WireGuard's allowed IPs: addresses, routes, and an exit node's default routes.
    pub allowed_ips: Vec<IpNet>,
    /// `HOST:PORT` of the file.
    pub endpoint: Option<String>,
    /// The key that this node and the peer share beside their key pairs.
    pub preshared_key: Option<PresharedKey>,
    /// Whether it is reached by relays.
    pub relay: RelayPolicy,
    /// By whose relays, best first; `None`: any.
    pub relays: Option<Vec<String>>,
    /// Interval of persistent keepalives to it; `None` is off.
    pub keepalive: Option<Duration>,
    /// The port that it listens on.
    pub listen_port: u16,
}

impl PeerFacts {
    /// Whether both are reached alike. These may differ without harm:
    /// - the name, which is for people;
    /// - `critical`, which says how much a loss matters and causes none;
    /// - the keepalive: what a NAT forgets for want of one it forgets after minutes, when every
    ///   deadline is over, and natpunch's own pings keep a managed peer's mapping anyway.
    pub fn is_reached_as(&self, other: &Self) -> bool {
        *self
            == Self {
                name: self.name.clone(),
                critical: self.critical,
                keepalive: self.keepalive,
                ..other.clone()
            }
    }

    /// Whether all that differs is what the WireGuard device itself does, so that the next packet
    /// shows it. What discovery, relays and path choice do shows later.
    fn differs_in_the_device_only(&self, other: &Self) -> bool {
        self.is_reached_as(&Self {
            key: self.key,
            preshared_key: self.preshared_key.clone(),
            addresses: self.addresses.clone(),
            routes: self.routes.clone(),
            allowed_ips: self.allowed_ips.clone(),
            ..other.clone()
        })
    }

    /// Whether the change takes something from the peer: a route, an address without another in
    /// its place, or that it is critical. The peer is the party that such a change is directed
    /// against, so what it answers or keeps back says nothing of the change.
    pub fn is_restricted_by(&self, after: &Self) -> bool {
        let kept = |net: &IpNet| after.allowed_ips.iter().any(|other| other.contains(net));
        let is_own = |net: &&IpNet| {
            let own = self.addresses.iter().any(|own| *own == net.addr());
            own && net.prefix_len() == net.max_prefix_len()
        };
        let loses_route = self.allowed_ips.iter().filter(|net| !is_own(net));
        let loses_route = loses_route.into_iter().any(|net| !kept(net));
        let loses_address = self.addresses.iter().any(|own| !kept(&IpNet::from(*own)));
        let gains_address = after
            .addresses
            .iter()
            .any(|new| !self.addresses.contains(new));
        // An address in the place of another is a move, which the peer has to follow.
        loses_route || (loses_address && !gains_address) || (self.critical && !after.critical)
    }
}

impl<D: Finds> NodeFacts<D> {
    /// As [`PeerFacts::differs_in_the_device_only`]: these are the device's and the kernel's.
    fn differs_in_the_device_only(&self, other: &Self) -> bool {
        *self
            == Self {
                private_key: self.private_key.clone(),
                listen_port: self.listen_port,
                fwmark: self.fwmark,
                mtu: self.mtu,
                addresses: self.addresses.clone(),
                exit: self.exit.clone(),
                ..other.clone()
            }
    }

    /// What a running mesh can't change, if it differs.
    pub(crate) fn fixed(&self, other: &Self) -> Option<&'static str> {
        let fixed = [
            ("the interface's name", self.interface != other.interface),
            ("the backend", self.backend != other.backend),
            ("the name of the mesh", self.mesh != other.mesh),
        ];
        let mut changed = fixed.into_iter().filter(|(_, changed)| *changed);
        changed.next().map(|(what, _)| what)
    }
}

impl<D> Facts<D> {
    /// The peer that is `peer` in this version: it has its name, or its key.
    pub fn successor(&self, peer: &PeerFacts) -> Option<&PeerFacts> {
        let by_name = self.peers.iter().find(|other| other.name == peer.name);
        by_name.or_else(|| self.peers.iter().find(|other| other.key == peer.key))
    }
}

/// How a change touches a peer of the version before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// It is reached as before.
    Not,
    /// It is removed, or something is taken from it: what it does afterwards does not count.
    Against,
    /// This node's own side changed, and so the way to every peer.
    Node,
    /// Its own entry changed.
    Entry,
}

/// What a change does to one peer.
#[derive(Debug, Clone)]
pub struct Effect<'a> {
    /// The peer before.
    pub before: &'a PeerFacts,
    /// The peer after; `None`: it is removed.
    pub after: Option<&'a PeerFacts>,
    /// How it is touched.
    pub touch: Touch,
    /// Whether a session of before may go on until its next handshake, so that only a handshake
    /// made after the change shows life.
    pub rekeys: bool,
    /// Whether the effect may show some seconds later only.
    pub is_late: bool,
}

/// What a change does to each peer of the version before.
pub fn effects<'a, D: Finds>(before: &'a Facts<D>, after: &'a Facts<D>) -> Vec<Effect<'a>> {
    let by_name: BTreeMap<&str, &PeerFacts> =
        after.peers.iter().map(|p| (p.name.as_str(), p)).collect();
    let by_key: BTreeMap<PeerKey, &PeerFacts> = after.peers.iter().map(|p| (p.key, p)).collect();
    let node_differs = before.node != after.node;
    let node_is_late = node_differs && !before.node.differs_in_the_device_only(&after.node);
    let own_key = before.node.private_key != after.node.private_key;
    let effect = |peer: &'a PeerFacts| {
        let by_name = by_name.get(peer.name.as_str());
        let now = by_name.or_else(|| by_key.get(&peer.key)).copied();
        let Some(now) = now.filter(|now| !peer.is_restricted_by(now)) else {
            return Effect {
                before: peer,
                after: now,
                touch: Touch::Against,
                rekeys: false,
                is_late: false,
            };
        };
        let entry = !peer.is_reached_as(now);
        let new_psk = peer.preshared_key != now.preshared_key;
        Effect {
            before: peer,
            after: Some(now),
            touch: match (entry, node_differs) {
                (true, _) => Touch::Entry,
                (false, true) => Touch::Node,
                (false, false) => Touch::Not,
            },
            rekeys: own_key || new_psk,
            is_late: node_is_late || !peer.differs_in_the_device_only(now),
        }
    };
    before.peers.iter().map(effect).collect()
}
