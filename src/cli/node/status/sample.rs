//! A status of as many peers as a test wants, the same each time.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::view::View;

const SITES: [&str; 5] = ["berlin", "home", "lisbon", "office", "oslo"];

/// The status of a node in a mesh of `nodes` nodes, itself among them.
pub(in crate::cli::node) fn mesh(nodes: usize) -> View {
    serde_json::from_value(json(nodes)).unwrap()
}

/// The same as the agent answers it.
pub(in crate::cli::node) fn json(nodes: usize) -> Value {
    let mut members = BTreeMap::new();
    members.insert("home-00".to_owned(), json!({ "addresses": ["10.77.0.1"] }));
    let mut peers: Vec<Value> = (1..nodes)
        .map(|n| {
            let name = format!("{}-{n:02}", SITES[n % SITES.len()]);
            let mesh_address = format!("10.77.{}.{}", n / 250, n % 250 + 1);
            members.insert(name.clone(), json!({ "addresses": [mesh_address] }));
            peer(n, &name)
        })
        .collect();
    peers.sort_by_key(|peer| peer["name"].as_str().unwrap().to_owned());
    json!({
        "mesh": "home", "node": "home-00", "interface": "wg-home", "backend": "kernel",
        "revision": "12-a3d04ed4e81b", "pid": 811, "mesh_hash": "a3d04ed4e81b", "generation": 12,
        "runs_for_s": 8_040.0, "reloads": 3,
        "discovery": [{ "name": "hub", "ok": true, "note": "registered", "dropped": 0 }],
        "mapping": "endpoint-independent",
        "local": [{ "address": "203.0.113.7:51820", "kind": "reflexive" }],
        "members": members,
        "peers": peers,
    })
}

fn peer(n: usize, name: &str) -> Value {
    let mut peer = json!({
        "name": name, "key": format!("{n:0>42}A="), "managed": true, "state": "connected",
        "path": "direct", "endpoint": format!("198.51.100.{}:{}", n % 250, 20_000 + n * 7),
        "rtt_ms": 4.0 + (n * 37 % 90) as f64 / 2.0, "handshake_age_s": (n * 13 % 120) as f64,
        "loss_percent": n / 50, "nat": {
            "mapping": if n.is_multiple_of(7) { "endpoint-dependent" } else { "endpoint-independent" },
            "ports": "unknown", "several_addresses": false, "pins": true, "guesses": true,
        },
        "rx_bytes": n * n * 48_271, "tx_bytes": n * 96_489, "candidates": [],
    });
    let mut set = |fields: Value| {
        for (key, value) in fields.as_object().unwrap() {
            peer[key] = value.clone();
        }
    };
    match n % 20 {
        // One site is this node's own LAN.
        1 | 11 => set(json!({
            "path": "lan", "endpoint": format!("192.168.4.{n}:51820"), "rtt_ms": 0.4,
        })),
        7 => set(json!({
            "path": "relay", "endpoint": "203.0.113.9:51901", "rtt_ms": 48.5,
            "relay_reason": "no probe was answered: both NATs give every destination another port",
            "candidates": [{ "address": "203.0.113.9:51901", "kind": "relay", "origins": ["hub"],
                "rtt_ms": 48.5, "proven": true, "wireguard_blocked": false }],
        })),
        14 => set(json!({
            "path": "none", "state": "waiting", "endpoint": null, "rtt_ms": null,
            "loss_percent": null, "nat": null,
            "handshake_age_s": null, "rx_bytes": 0, "tx_bytes": 0,
            "reason": "it has left nothing at any server: is its natpunch running?",
        })),
        _ => {}
    }
    peer
}
