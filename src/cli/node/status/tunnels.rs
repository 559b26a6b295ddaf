//! The tunnels of a node whose agent does not answer: they need none, and the device knows them.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use natpunch_types::PeerKey;
use natpunch_wg::{BackendKind, Observed};
use serde::Serialize;

use super::table;
use super::view::bytes;
use crate::agent::Member;
use crate::agent::rollout::journal::Journal;
use crate::config::{self, MeshConfig};

/// A session ends after 180 s without a new handshake (REJECT_AFTER_TIME of WireGuard).
const SESSION: f64 = 180.0;

/// What the device says, with the names of the mesh that ran last.
#[derive(Debug, Serialize)]
pub(super) struct Tunnels {
    /// Why there is no more to say.
    agent_error: String,
    interface: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mesh: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    backend: String,
    public_key: Option<PeerKey>,
    listen_port: u16,
    peers: Vec<Tunnel>,
}

#[derive(Debug, Serialize)]
struct Tunnel {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    key: PeerKey,
    addresses: Vec<IpAddr>,
    session: bool,
    endpoint: Option<SocketAddr>,
    handshake_age_s: Option<f64>,
    rx_bytes: u64,
    tx_bytes: u64,
}

/// The only interface that natpunch made here and did not take down, or the one with this name or
/// of this mesh.
pub(super) fn made(directory: &Path, named: Option<&str>) -> Option<String> {
    let mut made = natpunch_wg::managed(directory);
    if let Some(name) = named {
        made.retain(|interface| interface.name == name || interface.owner == name);
    }
    match made.as_slice() {
        [one] => Some(one.name.clone()),
        _ => None,
    }
}

impl Tunnels {
    /// Reads the device of an interface. `None`: there is none, or it is not ours to read.
    pub(super) fn read(state_dir: &Path, interface: &str, agent_error: &str) -> Option<Self> {
        let observed = natpunch_wg::observe(interface).ok()?;
        let last = Journal::new(state_dir, interface).peek();
        let mesh = last.and_then(|entry| config::load_texts(entry.good.files).ok());
        // Devices that programs run give no time of their own.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let mut tunnels = Self::of(&observed, mesh.as_ref(), now);
        interface.clone_into(&mut tunnels.interface);
        agent_error.clone_into(&mut tunnels.agent_error);
        Some(tunnels)
    }

    fn of(observed: &Observed, mesh: Option<&MeshConfig>, now: Duration) -> Self {
        let device = &observed.state.snapshot;
        let now = device.read_at.unwrap_or(now);
        let member = |key: &PeerKey| {
            let mut peers = mesh.into_iter().flat_map(|mesh| &mesh.peers);
            peers.find(|(_, peer)| peer.public_key == *key)
        };
        let tunnel = |peer: &natpunch_types::DevicePeer| {
            let known = member(&peer.key);
            let age = peer
                .last_handshake
                .map(|last| now.saturating_sub(last).as_secs_f64());
            Tunnel {
                name: known.map(|(name, _)| name.clone()),
                key: peer.key,
                addresses: known
                    .map(|(_, peer)| peer.addresses.clone())
                    .unwrap_or_default(),
                session: age.is_some_and(|age| age < SESSION),
                endpoint: peer.endpoint,
                handshake_age_s: age,
                rx_bytes: peer.rx_bytes,
                tx_bytes: peer.tx_bytes,
            }
        };
        let mut peers: Vec<Tunnel> = device.peers.iter().map(tunnel).collect();
        peers.sort_by(|a, b| (&a.name, a.key).cmp(&(&b.name, b.key)));
        Self {
            agent_error: String::new(),
            interface: String::new(),
            mesh: mesh.map(|mesh| mesh.name.clone()),
            node: device
                .public_key
                .and_then(|key| Some(member(&key)?.0.clone())),
            backend: match observed.backend {
                BackendKind::Kernel => "kernel",
                // The embedded device looks like any other from outside.
                BackendKind::Userspace | BackendKind::External => "userspace",
            }
            .to_owned(),
            public_key: device.public_key,
            listen_port: device.listen_port,
            peers,
        }
    }

    /// Leaves only the peer of this name.
    pub(super) fn keep(&mut self, name: &str) {
        self.peers.retain(|peer| peer.name.as_deref() == Some(name));
    }

    /// How many of the tunnels are up.
    pub(super) fn summary(&self) -> String {
        let up = self.peers.iter().filter(|peer| peer.session).count();
        format!("{up} of {} tunnels are up without it", self.peers.len())
    }
}

/// The tunnels as text.
pub(super) fn render(tunnels: &Tunnels) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "the agent does NOT answer; {}, says the WireGuard device",
        tunnels.summary()
    );
    let parts = [
        tunnels.mesh.as_ref().map(|mesh| format!("mesh {mesh}")),
        tunnels.node.as_ref().map(|node| format!("node {node}")),
        Some(format!(
            "interface {} ({})",
            tunnels.interface, tunnels.backend
        )),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let _ = writeln!(text, "{}", parts.join(" · "));
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    text.push_str(&table::rows(tunnels.peers.iter().map(|peer| {
        let member = Member {
            addresses: peer.addresses.clone(),
            ..Member::default()
        };
        [
            peer.name.clone().unwrap_or_else(|| peer.key.to_string()),
            or_dash(table::first_address(&member)),
            if peer.session {
                "session"
            } else {
                "no session"
            }
            .to_owned(),
            or_dash(peer.endpoint.map(|endpoint| endpoint.to_string())),
            "-".to_owned(),
            "-".to_owned(),
            "-".to_owned(),
            or_dash(peer.handshake_age_s.map(table::ago)),
            bytes(peer.rx_bytes),
            bytes(peer.tx_bytes),
        ]
    })));
    text
}

#[cfg(test)]
mod tests {
    use natpunch_types::{DevicePeer, DeviceSnapshot, SecretKey};
    use natpunch_wg::DeviceState;

    use super::*;

    #[test]
    fn tunnels_have_the_names_of_the_mesh_that_ran_last_and_say_whether_they_are_up() {
        let keys = [1, 2, 3].map(|seed| SecretKey::from_bytes([seed; 32]).public_key());
        let text = format!(
            "[mesh]\nname = 'home'\nnetworks = ['10.0.0.0/24']\n[peers.a]\npublic_key = '{}'\n\
             addresses = ['10.0.0.1']\n[peers.b]\npublic_key = '{}'\naddresses = ['10.0.0.2']\n",
            keys[0], keys[1]
        );
        let mesh = config::load_texts(vec![("mesh.toml".into(), text)]).unwrap();
        let peer = |key, handshake: Option<u64>| DevicePeer {
            last_handshake: handshake.map(Duration::from_secs),
            rx_bytes: 2048,
            ..DevicePeer::new(key)
        };
        let snapshot = DeviceSnapshot {
            listen_port: 51_820,
            public_key: Some(keys[0]),
            peers: vec![peer(keys[2], None), peer(keys[1], Some(940))],
            ..DeviceSnapshot::default()
        };
        let observed = Observed {
            state: DeviceState {
                snapshot,
                ..DeviceState::default()
            },
            addresses: Vec::new(),
            backend: BackendKind::Kernel,
            mtu: 1420,
        };
        let tunnels = Tunnels::of(&observed, Some(&mesh), Duration::from_secs(1_000));
        let text = render(&tunnels);
        for part in [
            "does NOT answer; 1 of 2 tunnels are up",
            "mesh home · node a · interface  (kernel)",
            "10.0.0.2",
            "1 min ago",
            &keys[2].to_string(),
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let json = serde_json::to_value(&tunnels).unwrap();
        assert_eq!(json["peers"][1]["name"], "b");
        assert_eq!(json["peers"][1]["session"], true);
    }
}
