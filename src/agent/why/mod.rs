//! What the agent answers to `natpunch why PEER`: a peer's path, how it came to be, and what one
//! change would make it better.

pub(super) mod causes;
pub(super) mod history;

use natpunch_core::{MeshStatus, PacketStatus, PeerStatus};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::services::views::PORT as VIEWS_PORT;
use super::status::{DiscoveryStatus, reply};
use super::{Agent, now};
use crate::control::Reply;
use causes::{Cause, Facts, Finder, Kind, Named};
use history::{Past, Since, Step, StrategyRun};

/// What `why` prints; `P` is what the core knows of the peer and `K` of each packet, or as much of it
/// as their reader wants.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Why<P = PeerStatus, K = PacketStatus> {
    /// Name of the mesh.
    pub mesh: String,
    /// This node's name.
    pub node: String,
    /// Why the path is what it is, and what one change would make it better.
    pub cause: Cause,
    /// Since when the path is in use.
    #[serde(flatten)]
    pub since: Since,
    /// The NAT before this node, in plain words.
    pub own_nat: String,
    /// The NAT before the peer, in plain words.
    pub peer_nat: String,
    /// The strategies against both NATs that ran lately, the newest first.
    pub strategies: Vec<StrategyRun>,
    /// Changes of the path, the newest first.
    pub changes: Vec<Step>,
    /// Steps on the way to them, the newest first.
    pub steps: Vec<Step>,
    /// The last packets to and from the peer beside WireGuard's own, the newest first.
    #[serde(default = "Vec::new")]
    pub packets: Vec<K>,
    /// The discovery instances.
    pub discovery: Vec<DiscoveryStatus>,
    /// What the core knows of the peer.
    pub peer: P,
}

impl Agent {
    /// Explains the path of the peer with this name.
    ///
    /// # Errors
    /// There is no such peer.
    pub(super) fn why(&self, name: &str) -> Result<Why, String> {
        let core = self.mesh.status(now());
        let peer = core.peers.iter().find(|peer| peer.name == name);
        let peer = peer.ok_or_else(|| self.no_such_peer(name))?;
        let (discovery, now) = (self.discovery_status(), now());
        let finders = self.finders(&discovery);
        let past = self.history.of(&peer.key);
        let told = |of: fn(&Past, _) -> Vec<Step>| past.map_or_else(Vec::new, |past| of(past, now));
        let since = past.zip(peer.endpoint);
        let since = since.map(|(past, endpoint)| past.since(endpoint, now));
        Ok(Why {
            mesh: self.node.mesh.clone(),
            node: self.node.name.clone(),
            cause: self.with_facts(peer, &core, &finders, causes::of),
            since: since.unwrap_or_default(),
            own_nat: causes::nat::own(&core),
            peer_nat: causes::nat::of_peer(peer),
            strategies: past.map_or_else(Vec::new, |past| past.runs(now)),
            changes: told(Past::changes),
            steps: told(Past::steps),
            packets: self.mesh.packets(&peer.key, now),
            discovery,
            peer: peer.clone(),
        })
    }

    /// Asks a peer how it sees its path to this node, and answers from a task.
    pub(super) fn ask_there(&self, name: String, answer: oneshot::Sender<Reply>) {
        let known = self.node.peers.iter().find(|peer| peer.name == name);
        let refused = match known {
            None => Some(self.no_such_peer(&name)),
            Some(peer) if !peer.managed => Some(format!(
                "{name} is a plain WireGuard peer and can't be asked"
            )),
            Some(_) => None,
        };
        if let Some(reason) = refused {
            let _ = answer.send(Reply::Error(reason));
            return;
        }
        let asked = self.services.views.ask(name.clone());
        tokio::spawn(async move {
            let view = asked.await.map_err(|_| {
                format!(
                    "{name} did not answer: it is not connected, runs an older natpunch, or drops \
                     UDP port {VIEWS_PORT} inside the mesh"
                )
            });
            let _ = answer.send(view.map_or_else(Reply::Error, |view| reply(&view)));
        });
    }

    pub(super) fn no_such_peer(&self, name: &str) -> String {
        if name == self.node.name {
            return format!("{name} is this node; help: name another one");
        }
        let names = self.node.peers.iter().map(|peer| peer.name.as_str());
        let like = |a: &&str| strsim::jaro_winkler(a, name);
        let nearest = names.max_by(|a, b| like(a).total_cmp(&like(b)));
        let help = nearest.map_or(String::new(), |nearest| {
            format!("; help: did you mean {nearest:?}?")
        });
        format!("this mesh has no peer {name:?}{help}")
    }

    /// A discovery instance carries records, by which a peer at rest hears that it is wanted.
    fn carries_records(&self) -> bool {
        let mut instances = self.node.discovery.iter();
        instances.any(|instance| instance.about.abilities.records)
    }

    /// The discovery instances, as far as they tell of a cause.
    pub(super) fn finders(&self, discovery: &[DiscoveryStatus]) -> Vec<Finder> {
        let finder = |status: &DiscoveryStatus| {
            let section = self.node.discovery.iter().find(|d| d.name == status.name)?;
            let kind = match &section.about {
                // It is no server: where peers are silent, there may be none that could help.
                about if about.abilities.peer_messages => return None,
                about if about.abilities.records => Kind::Records,
                about if about.offers_endpoints => Kind::File,
                about if about.finds_peers => Kind::Seen,
                // It is about this node alone, as the port mapping of its router.
                _ => return None,
            };
            Some(Finder {
                name: status.name.clone(),
                ok: status.ok,
                note: status.note.clone(),
                kind,
            })
        };
        discovery.iter().filter_map(finder).collect()
    }

    /// Has the causes of a peer looked for in all that is known of it.
    pub(super) fn with_facts<R>(
        &self,
        peer: &PeerStatus,
        own: &MeshStatus,
        finders: &[Finder],
        look: impl FnOnce(&Facts<'_>) -> R,
    ) -> R {
        let remote = self.node.peers.iter().find(|known| known.key == peer.key);
        let flips = self.flips.cause(peer, now());
        look(&Facts {
            peer,
            own,
            named: Named {
                endpoint: remote.and_then(|remote| remote.endpoint.as_deref()),
                own_key: &self.node.public_key,
            },
            finders,
            carries_records: self.carries_records(),
            flips: flips.as_deref(),
        })
    }
}
