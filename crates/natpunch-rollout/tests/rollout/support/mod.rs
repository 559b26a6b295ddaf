//! Meshes for the tests.

pub(crate) mod shell;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;
use natpunch_rollout::{Facts, Finds, Hash, Login, Moment, NodeFacts, PeerFacts, Release, Rules};
use natpunch_types::{PeerKey, RelayPolicy, SecretKey};

/// A discovery instance: its settings are a number.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Instance(pub u8);

impl Instance {
    /// One that can't tell where a peer is.
    pub(crate) const BLIND: Self = Self(u8::MAX);
}

impl Finds for Instance {
    fn finds_peers(&self) -> bool {
        *self != Self::BLIND
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Version {
    pub(crate) hash: Hash,
    pub(crate) facts: Facts<Instance>,
}

impl Release for Version {
    type Discovery = Instance;
    fn hash(&self) -> Hash {
        self.hash
    }
    fn facts(&self) -> &Facts<Instance> {
        &self.facts
    }
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 77, 0, number).into()
}

pub(crate) fn peer(number: u8) -> PeerFacts {
    PeerFacts {
        name: format!("p{number}"),
        key: PeerKey::from_bytes([number; 32]),
        managed: true,
        critical: false,
        addresses: vec![address(number)],
        routes: Vec::new(),
        allowed_ips: vec![address(number).into()],
        endpoint: None,
        preshared_key: None,
        relay: RelayPolicy::Auto,
        relays: None,
        keepalive: None,
        listen_port: 20_000,
    }
}

impl Version {
    /// Version `hash` of a mesh of this node and `peers`.
    pub(crate) fn new(hash: u8, peers: impl IntoIterator<Item = PeerFacts>) -> Self {
        let node = NodeFacts {
            mesh: "home".into(),
            interface: "wg-home".into(),
            backend: "auto".into(),
            private_key: SecretKey::from_bytes([200; 32]),
            listen_port: 1,
            fwmark: 0,
            mtu: 1420,
            addresses: vec![net("10.77.0.200/24")],
            exit: None,
            networks: vec![net("10.77.0.0/24")],
            lans: Vec::new(),
            discovery: BTreeMap::from([("rv".into(), Instance(0))]),
            stun: Vec::new(),
            serve: None,
        };
        Self {
            hash: [hash; 32],
            facts: Facts {
                node,
                peers: peers.into_iter().collect(),
                rules: Rules {
                    confirm: Duration::from_secs(10),
                    allow: Vec::new(),
                },
            },
        }
    }

    pub(crate) fn peer(&mut self, number: u8) -> &mut PeerFacts {
        let name = format!("p{number}");
        let mut peers = self.facts.peers.iter_mut();
        peers.find(|peer| peer.name == name).unwrap()
    }

    /// Another version, changed.
    pub(crate) fn with(&self, hash: u8, change: impl FnOnce(&mut Self)) -> Self {
        let mut changed = self.clone();
        changed.hash = [hash; 32];
        change(&mut changed);
        changed
    }
}

pub(crate) fn route(peer: &mut PeerFacts, route: &str) {
    peer.routes.push(net(route));
    peer.allowed_ips.push(net(route));
}

pub(crate) fn login(from: &str) -> Login {
    Login {
        user: "root".into(),
        from: from.into(),
    }
}

pub(crate) fn moment(alive: &[u8], logins: &[Login]) -> Moment {
    let alive = alive.iter().map(|number| format!("p{number}"));
    Moment {
        alive: alive.collect::<BTreeSet<_>>(),
        logins: logins.to_vec(),
    }
}
