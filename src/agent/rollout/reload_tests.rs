//! A reload ends where a start with the same file would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use natpunch_core::{Command, Mesh};
use natpunch_types::{Ask, Interest, PeerKey, RelayUse, SecretKey, Time};
use proptest::prelude::*;

use crate::agent::spec::{self, Anew};
use crate::agent::testing::{mesh, node};
use crate::config::{Discovery, NodeConfig};

/// Lines that a peer may have.
const LINES: [&str; 9] = [
    "",
    "relay = \"never\"\n",
    "relay = \"only\"\n",
    "relays = [\"rv\"]\n",
    "managed = false\nendpoint = \"192.0.2.1:1\"\n",
    "endpoint = \"192.0.2.2:2\"\n",
    "routes = [\"172.20.0.0/24\"]\n",
    "persistent_keepalive = 9\n",
    "endpoint = \"192.0.2.3:3\"\nserve = true\n",
];

/// Sections and keys that a mesh may have.
const NODE: [&str; 5] = [
    "",
    "[interface]\nmtu = 1300\n",
    "[interface]\nlisten_port = 7\n",
    "[interface]\nfwmark = 7\n",
    "[stun]\nservers = [\"stun.example.org:3478\"]\n",
];
const WEB: [&str; 3] = [
    "",
    "[discovery.web]\nplugin = \"http\"\nurl = \"https://example.org/v1\"\n",
    "[discovery.web]\nplugin = \"http\"\nurl = \"https://example.org/v2\"\n",
];
const RELAY: [&str; 2] = ["", "relay = false\n"];

fn any_mesh() -> impl Strategy<Value = String> {
    let lines = prop::collection::vec(0..LINES.len(), 1..5);
    (lines, 0..NODE.len(), 0..WEB.len(), 0..RELAY.len()).prop_map(|(lines, own, web, relay)| {
        let server = SecretKey::from_bytes([77; 32]).public_key();
        let mut text = mesh(u8::try_from(lines.len()).unwrap(), "");
        for (number, line) in lines.iter().enumerate() {
            let section = format!("[peers.p{}]\n", number + 1);
            // One route can't lead to two peers.
            let line = LINES[*line].replace("172.20.0", &format!("172.20.{number}"));
            // No two can serve at one place.
            let line = line.replace("192.0.2.3", &format!("192.0.2.{}", number + 10));
            // Who does not relay can't be named as a relay.
            let line = match RELAY[relay] {
                "" => line,
                _ => line.replace("relays = [\"rv\"]\n", ""),
            };
            text = text.replacen(&section, &format!("{section}{line}"), 1);
        }
        let (own, web, relay) = (NODE[own], WEB[web], RELAY[relay]);
        format!(
            "{text}{own}{web}[discovery.rv]\nplugin = \"rendezvous\"\n\
             server = \"rv.example.org:1\"\npublic_key = \"{server}\"\n{relay}"
        )
    })
}

/// What runs: instances with what they were started with, and the core.
struct Running {
    plugins: BTreeMap<String, (Discovery, PeerKey, u16)>,
    mesh: Mesh,
}

const SEED: [u8; 32] = [1; 32];

fn started(node: &NodeConfig) -> BTreeMap<String, (Discovery, PeerKey, u16)> {
    let instance = |discovery: &Discovery| {
        let with = (discovery.clone(), node.public_key, node.listen_port);
        (discovery.name.clone(), with)
    };
    node.discovery.iter().map(instance).collect()
}

impl Running {
    fn start(node: &NodeConfig) -> Self {
        Self {
            plugins: started(node),
            mesh: Mesh::new(spec::mesh(node), SEED, Time::ZERO),
        }
    }

    /// As `Agent::follow` does.
    fn reload(&mut self, before: &NodeConfig, after: &NodeConfig) {
        let anew = Anew::between(before, after);
        self.plugins
            .retain(|name, _| anew.kept_plugins.contains(name));
        for (name, instance) in started(after) {
            self.plugins.entry(name).or_insert(instance);
        }
        if anew.core {
            self.mesh = Mesh::new(spec::mesh(after), SEED, Time::ZERO);
        } else {
            self.mesh.handle_spec(spec::mesh(after), Time::ZERO);
        }
    }

    /// What the core asks of discovery in the end, and what it says of its peers.
    fn wants(&mut self, now: Time) -> Vec<String> {
        let mut last: Arc<[Interest]> = Arc::from([]);
        let mut time = Time::ZERO;
        while time < now {
            time += Duration::from_millis(100);
            self.mesh.handle_timeout(time);
            while self.mesh.poll_transmit().is_some() {}
            while let Some(command) = self.mesh.poll_command() {
                if let Command::Ask(Ask::Peers(interest)) = command {
                    last = interest;
                }
            }
        }
        let known: BTreeSet<String> = last
            .iter()
            .map(|interest| format!("{interest:?}"))
            .collect();
        let peers = self.mesh.status(now).peers.into_iter();
        let peers = peers.map(|p| format!("{} {} {} {:?}", p.name, p.key, p.managed, p.relay));
        known.into_iter().chain(peers).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_reload_ends_where_a_start_with_the_same_file_does(
        before in any_mesh(),
        after in any_mesh(),
        key in 0_u8..4,
    ) {
        let before = node(&before);
        let mut after = node(&after);
        // Now and then this node has another key.
        if key == 0 {
            after.private_key = SecretKey::from_bytes([99; 32]);
            after.public_key = after.private_key.public_key();
        }
        let mut running = Running::start(&before);
        running.reload(&before, &after);
        let mut fresh = Running::start(&after);
        prop_assert_eq!(&running.plugins, &fresh.plugins);
        let now = Time::from_millis(2000);
        prop_assert_eq!(running.wants(now), fresh.wants(now));
    }
}

#[test]
fn a_pair_that_may_not_be_relayed_any_more_asks_for_no_relay_at_once() {
    let before = node(&mesh(1, ""));
    let after = node(&mesh(1, "relay = \"never\"\n"));
    let mut running = Running::start(&before);
    running.reload(&before, &after);
    let wants = running.wants(Time::from_millis(500)).join("\n");
    assert!(wants.contains(&format!("{:?}", RelayUse::Off)), "{wants}");
}
