//! A version of the mesh as this node would run it, and what of it changes are judged by.

use std::collections::BTreeMap;

use natpunch_rollout::{
    ExitFacts, Facts, Finds, Hash, NodeFacts, PeerFacts, Release as Judged, Rules,
};

use super::journal::Text;
use crate::agent::AgentError;
use crate::config::{self, Discovery, ExitNode, NodeConfig, RemotePeer};

/// A version, loaded and as text.
#[derive(Debug)]
pub(crate) struct Release {
    /// This node's part of it.
    pub(crate) node: NodeConfig,
    /// What the journal keeps of it.
    pub(crate) text: Text,
    facts: Facts<Instance>,
}

/// A discovery instance.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Instance(Discovery);

impl Finds for Instance {
    fn finds_peers(&self) -> bool {
        self.0.about.finds_peers
    }
}

impl Release {
    pub(crate) fn new(node: NodeConfig, text: Text) -> Self {
        Self {
            facts: facts(&node),
            node,
            text,
        }
    }

    /// Loads a version again of which the text is left.
    ///
    /// # Errors
    /// A key file is gone or was replaced.
    pub(crate) fn load(text: Text) -> Result<Self, AgentError> {
        let mesh = config::load_texts(text.files.clone())?;
        let node = config::resolve_node_at(&mesh, &text.local)?;
        Ok(Self::new(node, text))
    }
}

impl PartialEq for Release {
    fn eq(&self, other: &Self) -> bool {
        // The same files may be named by another path.
        self.node
            == NodeConfig {
                files: self.node.files.clone(),
                key_files: self.node.key_files.clone(),
                ..other.node.clone()
            }
    }
}

impl Judged for Release {
    type Discovery = Instance;
    fn hash(&self) -> Hash {
        self.node.content_hash
    }
    fn facts(&self) -> &Facts<Instance> {
        &self.facts
    }
}

/// What changes are judged by. Every field is named here, so that a new one can't be forgotten:
/// it is a fact, or it is left out with a reason.
pub(crate) fn facts(node: &NodeConfig) -> Facts<Instance> {
    let NodeConfig {
        mesh,
        networks,
        lans,
        interface,
        private_key,
        listen_port,
        fwmark,
        exit_node,
        mtu,
        backend,
        addresses,
        peers,
        serve,
        apply,
        discovery,
        stun_servers,
        // That of the private key.
        public_key: _,
        // A name is for people.
        name: _,
        // Forwarding is the host's; a node only says in its log what is missing.
        forwards: _,
        // What it comes to for each peer is that peer's fact.
        persistent_keepalive: _,
        // Names in the hosts file lead to no packet of ours.
        hosts: _,
        // It bounds a search. A path that is in use stays.
        punch: _,
        // Where the version came from, and how it is called.
        files: _,
        key_files: _,
        content_hash: _,
        mesh_hash: _,
        generation: _,
    } = node;
    let discovery = discovery
        .iter()
        .map(|instance| (instance.name.clone(), Instance(instance.clone())));
    Facts {
        node: NodeFacts {
            mesh: mesh.clone(),
            interface: interface.clone(),
            backend: format!("{backend:?}"),
            private_key: private_key.clone(),
            listen_port: *listen_port,
            fwmark: *fwmark,
            mtu: *mtu,
            addresses: addresses.clone(),
            exit: exit_node.as_ref().map(exit_facts),
            networks: networks.clone(),
            lans: lans.clone(),
            discovery: discovery.collect::<BTreeMap<_, _>>(),
            stun: stun_servers.clone(),
            serve: *serve,
        },
        peers: peers.iter().map(peer_facts).collect(),
        rules: Rules {
            confirm: apply.confirm,
            allow: apply.allow.clone(),
        },
    }
}

fn exit_facts(exit: &ExitNode) -> ExitFacts {
    let ExitNode {
        peer,
        table,
        ipv4,
        ipv6,
        except,
    } = exit;
    ExitFacts {
        peer: peer.clone(),
        table: *table,
        families: [*ipv4, *ipv6],
        except: except.clone(),
    }
}

fn peer_facts(peer: &RemotePeer) -> PeerFacts {
    let RemotePeer {
        name,
        key,
        managed,
        critical,
        addresses,
        routes,
        allowed_ips,
        endpoint,
        preshared_key,
        relay,
        relays,
        persistent_keepalive,
        // How long it is made meanwhile follows from what the NATs do, not from the file.
        adapts_keepalive: _,
        // A pair that rests is woken by what is asked of it: none is lost by resting.
        connect: _,
        listen_port,
    } = peer;
    PeerFacts {
        name: name.clone(),
        key: *key,
        managed: *managed,
        critical: *critical,
        addresses: addresses.clone(),
        routes: routes.clone(),
        allowed_ips: allowed_ips.clone(),
        endpoint: endpoint.clone(),
        preshared_key: preshared_key.clone(),
        relay: *relay,
        relays: relays.clone(),
        keepalive: *persistent_keepalive,
        listen_port: *listen_port,
    }
}
