//! What a version of a mesh changes against another, for every node and every pair: pure.
//!
//! A node's part of either version is resolved as the node itself would, without its keys; what
//! differs between the two parts is what `apply` will do there. A pair is what its two nodes see of
//! each other.

mod fields;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::mesh::model::MeshConfig;
use crate::node::model::{NodeConfig, RemotePeer};
use crate::node::resolve::without_keys;

use fields::{of_node, of_peer, of_preshared};

/// What a change does to traffic that flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Impact {
    /// Nothing.
    None,
    /// A handshake more; packets wait for it.
    Rehandshake,
    /// It takes another path than the one that is in use, if that is not allowed any more.
    OtherPath,
    /// It stops, or goes another way.
    Interruption,
    /// A running mesh can't be changed so: `natpunch down` first.
    NotWhileUp,
}

/// Whether something comes, goes or becomes another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Turn {
    /// It comes.
    Added,
    /// It goes.
    Removed,
    /// It becomes another.
    Changed,
}

impl Turn {
    /// `+`, `-` or `~`.
    pub fn sign(self) -> char {
        match self {
            Self::Added => '+',
            Self::Removed => '-',
            Self::Changed => '~',
        }
    }
}

/// One thing that changes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Step {
    /// Whether it comes or goes.
    pub turn: Turn,
    /// What, for people.
    pub text: String,
    /// The peer that it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What it does to traffic.
    pub impact: Impact,
}

/// Nodes that do the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeSteps {
    /// Their names.
    pub nodes: Vec<String>,
    /// What each of them does.
    pub steps: Vec<Step>,
}

/// Pairs to which the same happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PairSteps {
    /// Whether the tunnel comes or goes.
    pub turn: Turn,
    /// What becomes another of it, for people; empty where it comes or goes.
    pub changes: Vec<String>,
    /// What it does to traffic.
    pub impact: Impact,
    /// The pairs, the lesser name first.
    pub pairs: Vec<(String, String)>,
}

/// What one version changes against another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MeshDiff {
    /// Entries of peers that come, go or become others.
    pub peers: Vec<Step>,
    /// What each node does, the largest group first. Nodes that do nothing are in none.
    pub nodes: Vec<NodeSteps>,
    /// What happens to tunnels.
    pub pairs: Vec<PairSteps>,
    /// Tunnels that stay as they are.
    pub unchanged_pairs: usize,
}

impl MeshDiff {
    /// Whether no node has anything to do.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.nodes.is_empty()
    }
}

/// What `new` changes against `old`. What key files hold is not looked at. Nodes are told by their
/// names. It takes time and memory for each pair of nodes.
pub fn diff(old: &MeshConfig, new: &MeshConfig) -> MeshDiff {
    let names: BTreeSet<&str> = [old, new]
        .iter()
        .flat_map(|mesh| mesh.peers.keys().map(String::as_str))
        .collect();
    let mut nodes: BTreeMap<Vec<Step>, Vec<String>> = BTreeMap::new();
    let mut pairs = Pairs::default();
    for name in &names {
        let [before, after] = [old, new].map(|mesh| without_keys(mesh, name));
        pairs.add(name, before.as_ref(), after.as_ref(), [old, new]);
        if let (Some(before), Some(after)) = (&before, &after) {
            let steps = steps(before, after, [old, new]);
            if !steps.is_empty() {
                nodes.entry(steps).or_default().push((*name).to_owned());
            }
        }
    }
    let mut nodes: Vec<NodeSteps> = nodes
        .into_iter()
        .map(|(steps, nodes)| NodeSteps { nodes, steps })
        .collect();
    nodes.sort_by(|a, b| {
        b.nodes
            .len()
            .cmp(&a.nodes.len())
            .then_with(|| a.nodes.cmp(&b.nodes))
    });
    let (pairs, unchanged_pairs) = pairs.grouped();
    MeshDiff {
        peers: entries(old, new),
        nodes,
        pairs,
        unchanged_pairs,
    }
}

/// The entries of the file that come and go.
fn entries(old: &MeshConfig, new: &MeshConfig) -> Vec<Step> {
    let entry = |turn, name: &String, mesh: &MeshConfig| {
        let peer = mesh.peers.get(name)?;
        let addresses: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
        let kind = if peer.managed {
            ""
        } else {
            ", plain WireGuard"
        };
        Some(Step {
            turn,
            text: format!("{name} ({}{kind})", addresses.join(", ")),
            peer: Some(name.clone()),
            impact: match turn {
                Turn::Removed => Impact::Interruption,
                Turn::Added | Turn::Changed => Impact::None,
            },
        })
    };
    let added = new
        .peers
        .keys()
        .filter(|name| !old.peers.contains_key(*name));
    let removed = old
        .peers
        .keys()
        .filter(|name| !new.peers.contains_key(*name));
    let added = added.filter_map(|name| entry(Turn::Added, name, new));
    let removed = removed.filter_map(|name| entry(Turn::Removed, name, old));
    added.chain(removed).collect()
}

/// What a node that is in both versions does.
fn steps(before: &NodeConfig, after: &NodeConfig, meshes: [&MeshConfig; 2]) -> Vec<Step> {
    let mut steps = of_node(before, after);
    let old: BTreeMap<&str, &RemotePeer> = by_name(before);
    let new: BTreeMap<&str, &RemotePeer> = by_name(after);
    let step = |turn, peer: &str, text: String, impact| Step {
        turn,
        text,
        peer: Some(peer.to_owned()),
        impact,
    };
    for (name, peer) in &new {
        let Some(known) = old.get(name) else {
            let text = format!("peer {name}");
            steps.push(step(Turn::Added, name, text, Impact::None));
            continue;
        };
        let mut changes = of_peer(known, peer);
        changes.extend(of_preshared(meshes, (&before.name, name)));
        for (text, impact) in changes {
            steps.push(step(
                Turn::Changed,
                name,
                format!("peer {name}: {text}"),
                impact,
            ));
        }
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        let text = format!("peer {name}");
        steps.push(step(Turn::Removed, name, text, Impact::Interruption));
    }
    steps
}

fn by_name(node: &NodeConfig) -> BTreeMap<&str, &RemotePeer> {
    node.peers
        .iter()
        .map(|peer| (peer.name.as_str(), peer))
        .collect()
}

/// What is known of the tunnel of a pair.
#[derive(Default)]
struct Pair {
    was: bool,
    is: bool,
    changes: BTreeSet<String>,
    impact: Option<Impact>,
}

#[derive(Default)]
struct Pairs {
    /// Those that differ.
    changed: BTreeMap<(String, String), Pair>,
    unchanged: BTreeSet<(String, String)>,
}

impl Pairs {
    /// Takes what a node sees of the others in both versions.
    fn add(
        &mut self,
        name: &str,
        before: Option<&NodeConfig>,
        after: Option<&NodeConfig>,
        meshes: [&MeshConfig; 2],
    ) {
        let [old, new] = [before, after].map(|node| node.map(by_name).unwrap_or_default());
        let others: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        for other in others {
            let (was, is) = (old.get(other), new.get(other));
            let changes = match (was, is) {
                (Some(was), Some(is)) => {
                    let mut changes = of_peer(was, is);
                    changes.extend(of_preshared(meshes, (name, other)));
                    changes
                }
                _ => Vec::new(),
            };
            let pair = match name < other {
                true => (name.to_owned(), other.to_owned()),
                false => (other.to_owned(), name.to_owned()),
            };
            if was.is_some() && is.is_some() && changes.is_empty() {
                self.unchanged.insert(pair);
                continue;
            }
            let entry = self.changed.entry(pair).or_default();
            entry.was |= was.is_some();
            entry.is |= is.is_some();
            for (text, impact) in changes {
                let is_of_both = text.starts_with("preshared key") || text.starts_with("relay");
                entry.changes.insert(match is_of_both {
                    true => text,
                    false => format!("{other}: {text}"),
                });
                entry.impact = entry.impact.max(Some(impact));
            }
        }
    }

    /// Those to which the same happens, together; and how many stay.
    fn grouped(mut self) -> (Vec<PairSteps>, usize) {
        self.unchanged
            .retain(|pair| !self.changed.contains_key(pair));
        let mut groups: BTreeMap<_, Vec<(String, String)>> = BTreeMap::new();
        for (names, pair) in self.changed {
            let (turn, impact) = match (pair.was, pair.is) {
                (false, _) => (Turn::Added, Impact::None),
                (true, false) => (Turn::Removed, Impact::Interruption),
                (true, true) => (Turn::Changed, pair.impact.unwrap_or(Impact::None)),
            };
            let changes = match turn {
                Turn::Changed => pair.changes.into_iter().collect(),
                Turn::Added | Turn::Removed => Vec::new(),
            };
            groups
                .entry((turn, changes, impact))
                .or_default()
                .push(names);
        }
        let group = |((turn, changes, impact), pairs)| PairSteps {
            turn,
            changes,
            impact,
            pairs,
        };
        (
            groups.into_iter().map(group).collect(),
            self.unchanged.len(),
        )
    }
}

#[cfg(test)]
mod tests;
