//! What the agent answers at the control socket: `status`, `status --mesh`, `plan --live`,
//! `confirm`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use natpunch_core::{MeshStatus, PeerStatus};
use natpunch_plugin::Health;
use natpunch_types::Time;
use natpunch_wg::DeviceProcess;
use serde::{Deserialize, Serialize};

use super::clash::Clash;
use super::drift::DriftStatus;
use super::pins::PinStatus;
use super::rollout::names;
use super::services::Service as _;
use super::services::revisions::{PeerRevision, Runs};
use super::why::causes;
use super::{Agent, ServingStatus, device, now};
use crate::config::NodeConfig;
use crate::control::{Call, Reply, Request};
use crate::plugins::host::Instance;
use crate::source::SourceStatus;

/// What `status` prints; `C` is what the core knows, or as much of it as its reader wants.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status<C = MeshStatus> {
    /// Name of the mesh.
    pub mesh: String,
    /// This node's name.
    pub node: String,
    /// Its interface.
    pub interface: String,
    /// Which WireGuard device carries the packets.
    pub backend: String,
    /// Process id of the agent.
    pub pid: u32,
    /// How the version that runs is called: its generation, if it has one, and its hash.
    pub revision: String,
    /// Hash of what the mesh says, in hex, shortened: the same on all nodes that run the same mesh.
    pub mesh_hash: String,
    /// The generation that the mesh file states.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// For how long this version has run, in seconds.
    pub runs_for_s: f64,
    /// Reloads that were applied since start.
    pub reloads: u64,
    /// Why the newest mesh file is not applied, if it isn't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reload_error: Option<String>,
    /// Why the journal can't be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal_error: Option<String>,
    /// Where the mesh comes from, if not from a path of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceStatus>,
    /// The change that is tried and not yet known to work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<ChangeStatus>,
    /// The version that was tried and undone, and is not tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldStatus>,
    /// Changes that others made to the interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftStatus>,
    /// What a person should know and natpunch can't mend, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The process of the embedded device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceStatus>,
    /// Source ports beside WireGuard's that lead to peers.
    #[serde(default)]
    pub pins: PinStatus,
    /// Where a network of the mesh is also one of a LAN that this host is in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clashes: Vec<Clash>,
    /// The server of this node, if it serves the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving: Option<ServingStatus>,
    /// Why the peers' names are not in the hosts file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts_error: Option<String>,
    /// Discovery instances.
    pub discovery: Vec<DiscoveryStatus>,
    /// What most likely keeps a peer away, by the peer's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub likely: BTreeMap<String, String>,
    /// Every peer of the mesh by name, this node too, as the mesh file describes it.
    #[serde(default)]
    pub members: BTreeMap<String, Member>,
    /// What the core knows: candidates of this node, peers and their paths.
    #[serde(flatten)]
    pub core: C,
}

/// A peer as the mesh file describes it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Its addresses in the mesh.
    pub addresses: Vec<IpAddr>,
    /// Networks behind it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<IpNet>,
    /// Whether changes must not lose it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub critical: bool,
}

/// The process of the embedded device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// What it says of itself.
    #[serde(flatten)]
    pub process: DeviceProcess,
    /// Whether it runs another program than the agent, as after an upgrade.
    pub outdated: bool,
}

/// A change that is not yet known to work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChangeStatus {
    /// Its version.
    pub revision: String,
    /// When it will be undone, in seconds.
    pub undone_in_s: f64,
    /// Whether a person has to confirm it.
    pub by_person: bool,
    /// The peers whose sign of life is awaited.
    pub waiting_for: Vec<String>,
}

/// A version that was undone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HeldStatus {
    /// The version.
    pub revision: String,
    /// Why it was undone.
    pub reason: String,
}

/// One discovery instance in `status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DiscoveryStatus {
    /// NAME of `[discovery.NAME]`.
    pub name: String,
    /// Whether it works.
    pub ok: bool,
    /// What it did last, or what is wrong.
    pub note: String,
    /// Offers that were dropped because there were too many.
    pub dropped: u64,
}

/// What `status --mesh` prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MeshRevisions {
    /// Name of the mesh.
    pub mesh: String,
    /// This node's name.
    pub node: String,
    /// What it runs.
    #[serde(flatten)]
    pub runs: Runs,
    /// The other peers, by name.
    pub peers: Vec<PeerRevision>,
}

impl Agent {
    /// Answers a call.
    pub(super) async fn on_call(&mut self, call: Call) {
        match &call.request {
            Request::Drift => return self.tell_drift(call),
            Request::Ping { peer } => {
                let peer = peer.clone();
                return self.ping(&peer, call.answer);
            }
            Request::Mesh => return self.tell_mesh(call),
            Request::WhyThere { peer } => {
                let peer = peer.clone();
                return self.ask_there(peer, call.answer);
            }
            _ => {}
        }
        let reply = self.on_request(call.request, call.connected).await;
        let _ = call.answer.send(reply);
    }

    async fn on_request(&mut self, request: Request, connected: Time) -> Reply {
        match request {
            Request::Confirm => self.confirm(connected),
            Request::Drift | Request::Mesh | Request::Ping { .. } | Request::WhyThere { .. } => {
                Reply::Error("asked elsewhere".to_owned())
            }
            Request::Status => reply(&self.status()),
            Request::Metrics => reply(&self.metrics_text()),
            Request::Why { peer } => self.why(&peer).map_or_else(Reply::Error, |why| reply(&why)),
            Request::Reload | Request::Stop => Reply::Ok(serde_json::Value::Null),
        }
    }

    /// Asks the nodes of the mesh what they run, and answers from a task.
    fn tell_mesh(&self, call: Call) {
        let asked = self.services.revisions.ask(self.alive());
        let (mesh, node) = (self.node.mesh.clone(), self.node.name.clone());
        tokio::spawn(async move {
            let reply = match asked.await {
                Ok((runs, peers)) => serde_json::to_value(MeshRevisions {
                    mesh,
                    node,
                    runs,
                    peers,
                })
                .map_or_else(|error| Reply::Error(error.to_string()), Reply::Ok),
                Err(_) => Reply::Error("too many questions at one time".to_owned()),
            };
            let _ = call.answer.send(reply);
        });
    }

    pub(super) fn status(&self) -> Status {
        let (discovery, core) = (self.discovery_status(), self.mesh.status(now()));
        Status {
            mesh: self.node.mesh.clone(),
            node: self.node.name.clone(),
            interface: self.node.interface.clone(),
            backend: self.backend.clone(),
            pid: std::process::id(),
            revision: names::revision_of(&self.node),
            mesh_hash: names::short(&self.node.mesh_hash),
            generation: self.node.generation,
            runs_for_s: now().since(self.since).as_secs_f64(),
            reloads: self.reloads,
            reload_error: self.reload_error.clone(),
            journal_error: self.rollout.journal_error().map(str::to_owned),
            source: self.source.status(),
            change: self.rollout.open().map(|open| ChangeStatus {
                revision: self.names.of(&open.version),
                undone_in_s: open.deadline.since(now()).as_millis() as f64 / 1e3,
                by_person: open.by_person,
                waiting_for: open.waiting_for,
            }),
            members: members(&self.node),
            held: self.rollout.held().map(|(version, reason)| HeldStatus {
                revision: self.names.of(&version),
                reason: reason.to_owned(),
            }),
            drift: self.drift.clone(),
            warnings: self
                .device_process
                .iter()
                .filter_map(device::outdated)
                .chain(self.clashes.iter().map(ToString::to_string))
                .collect(),
            device: self.device_process.clone().map(|process| DeviceStatus {
                outdated: device::outdated(&process).is_some(),
                process,
            }),
            pins: self.pin_status(),
            clashes: self.clashes.clone(),
            hosts_error: self.services.hosts.status(),
            serving: self.services.serving.status(),
            likely: self.likely(&discovery, &core),
            discovery,
            core,
        }
    }

    pub(super) fn discovery_status(&self) -> Vec<DiscoveryStatus> {
        let status = |plugin: &Instance| {
            let (health, dropped) = plugin.health();
            let (ok, note) = match health {
                Health::Good(note) => (true, note),
                Health::Bad(problem) => (false, problem),
            };
            DiscoveryStatus {
                name: plugin.name().as_str().to_owned(),
                ok,
                note,
                dropped,
            }
        };
        self.plugins.iter().map(status).collect()
    }

    /// What most likely keeps each peer away that is not connected.
    fn likely(&self, discovery: &[DiscoveryStatus], core: &MeshStatus) -> BTreeMap<String, String> {
        let finders = self.finders(discovery);
        let cause = |peer: &PeerStatus| {
            let text = self.with_facts(peer, core, &finders, causes::likely)?;
            Some((peer.name.clone(), text))
        };
        core.peers.iter().filter_map(cause).collect()
    }
}

pub(super) fn reply(answer: &impl Serialize) -> Reply {
    serde_json::to_value(answer).map_or_else(|error| Reply::Error(error.to_string()), Reply::Ok)
}

fn members(node: &NodeConfig) -> BTreeMap<String, Member> {
    let own = Member {
        addresses: node.addresses.iter().map(IpNet::addr).collect(),
        ..Member::default()
    };
    let others = node.peers.iter().map(|peer| {
        let member = Member {
            addresses: peer.addresses.clone(),
            routes: peer.routes.clone(),
            critical: peer.critical,
        };
        (peer.name.clone(), member)
    });
    others.chain([(node.name.clone(), own)]).collect()
}
