//! The table of a small mesh, and of one of 60 peers as docs/reference/status.md shows it.

use super::*;
use crate::cli::node::status::sample;
use crate::cli::shown;

#[test]
fn the_table_names_peers_paths_and_reasons() {
    let view: View = serde_json::from_value(serde_json::json!({
        "mesh": "home", "node": "a", "interface": "wg-home", "backend": "kernel", "revision": "00",
        "members": {"b": {"addresses": ["fd00::2", "10.0.0.2"]}},
        "pid": 1, "mesh_hash": "00", "runs_for_s": 1.0, "reloads": 0,
        "likely": {"c": "its mesh file does not have this node"},
        "discovery": [{"name": "rv", "ok": false, "note": "no answer", "dropped": 0}], 
        "mapping": "endpoint-dependent",
        "punch": {"nat": "", "pins": false, "used": 1024, "allowed": 2048, "barred": "the budget is used up"},
        "pins": {"possible": false, "error": "the program `nft` is not installed", "source_ports": 0,
                 "healed": 2, "method": "forwarder", "reason": "nft says no",
                 "peers": {"b": {"source_port": 61234, "remote": "192.0.2.1:2"}}},
        "local": [{"address": "203.0.113.7:18032", "kind": "reflexive"}],
        "peers": [
            {"name": "b", "managed": true, "path": "direct", "endpoint": "192.0.2.1:2", "rtt_ms": 1.25,
             "loss_percent": 3, "nat": {"mapping": "endpoint-dependent", "ports": "random",
             "several_addresses": false, "pins": true, "guesses": true},
             "handshake_age_s": 61.0, "rx_bytes": 2048, "tx_bytes": 1, "state": "connected",
             "probes_unanswered": true, "candidates": []},
            {"name": "r", "managed": true, "path": "relay", "endpoint": "192.0.2.9:51901", "rtt_ms": 1.25,
             "handshake_age_s": 61.0, "rx_bytes": 0, "tx_bytes": 0, "state": "connected",
             "relay_reason": "no probe was answered", "strategy": "birthday: opens ports (9 packets)",
             "candidates": [{"address": "192.0.2.9:51901", "kind": "relay", "origins": ["hub"], "rtt_ms": 1.25,
                             "proven": true, "wireguard_blocked": false}]},
            {"name": "t", "managed": true, "path": "relay", "endpoint": "127.78.80.1:40000", "rtt_ms": 1.25,
             "handshake_age_s": 61.0, "rx_bytes": 0, "tx_bytes": 0, "state": "connected",
             "candidates": [{"address": "127.78.80.1:40000", "kind": "relay", "origins": ["hub"],
                             "proven": true, "wireguard_blocked": false}]},
            {"name": "c", "managed": true, "path": "none", "rx_bytes": 0, "tx_bytes": 0,
             "state": "unreachable", "reason": "no answer from 2 candidates", "retry_in_s": 60.0, "candidates": []}
        ]
    }))
    .unwrap();
    let text = render(&view, Shown::All);
    for expected in [
        "b  ",
        "3 of 4 connected: 1 direct, 2 relayed; 1 down\n",
        "10.0.0.2",
        "direct (from port 61234)",
        "relay (hub, by TLS)",
        "192.0.2.1:2",
        "  hard  1.2 ms  3 %  ",
        "192.0.2.9:51901    -     1.2 ms  -     ",
        "1 min ago",
        "2.0 KiB",
        "b: WireGuard's session is live, but the peer's natpunch does not answer",
        "discovery rv: no answer",
        "c: no answer from 2 candidates; next try in 1 min",
        "c: most likely: its mesh file does not have this node",
        "r: relayed: no probe was answered",
        "r: under way: birthday: opens ports (9 packets)",
        "1024 of 2048 probes to guessed ports sent in the last ten minutes; no more now: the budget is used up",
        "no source port but its own: the program `nft` is not installed",
        "a forwarder sends from other source ports, at more CPU than nftables: nft says no",
        "pins were taken away 2 times (by `nft flush ruleset`?), and were put back",
        "seen by the server as 203.0.113.7:18032, where peers don't reach it",
    ] {
        assert!(
            text.contains(expected),
            "{expected:?} is missing in\n{text}"
        );
    }
    assert!(!text.contains("reachable as"), "{text}");
}

#[test]
fn what_several_peers_have_in_common_is_said_once() {
    let mut view = sample::mesh(4);
    for (peer, retry) in view.core.peers.iter_mut().zip([4.0, 30.0, 30.0]) {
        peer.state = "unreachable".to_owned();
        peer.reason = Some("no answer".to_owned());
        peer.retry_in_s = Some(retry);
        peer.relay_reason = None;
        peer.strategy = None;
    }
    let names: Vec<&str> = view
        .core
        .peers
        .iter()
        .map(|peer| peer.name.as_str())
        .collect();
    let line = format!(
        "{}: no answer; next tries in 4 s to 30 s\n",
        names.join(", ")
    );
    let text = render(&view, Shown::All);
    assert!(text.ends_with(&line), "{line}{text}");
}

#[test]
fn the_page_about_status_shows_a_mesh_of_60_peers_as_it_is_printed() {
    let text = render(&sample::mesh(61), Shown::All);
    shown::assert_in("docs/reference/status.md", "status-60", &text);
}
