//! The agent's answer as a table and the lines around it.

use std::fmt::Write as _;
use std::net::SocketAddr;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Deserialize;

use crate::agent::{PinnedPath, ServingStatus, Status};
use crate::source::{Problem, SourceStatus};
pub(in crate::cli::node) use crate::words::seconds as duration;

/// The agent's answer. Of what the core knows only what the table shows is read.
pub(super) type View = Status<Core>;

#[derive(Debug, Deserialize)]
pub(super) struct Core {
    mapping: Option<String>,
    #[serde(default)]
    punch: Punch,
    local: Vec<Local>,
    #[serde(default)]
    refuted: Vec<Local>,
    peers: Vec<Peer>,
}

#[derive(Debug, Default, Deserialize)]
struct Punch {
    used: u32,
    allowed: u32,
    barred: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Local {
    address: String,
    kind: String,
}

#[derive(Debug, Deserialize)]
struct Peer {
    name: String,
    managed: bool,
    path: String,
    endpoint: Option<String>,
    rtt_ms: Option<f64>,
    handshake_age_s: Option<f64>,
    rx_bytes: u64,
    tx_bytes: u64,
    state: String,
    reason: Option<String>,
    retry_in_s: Option<f64>,
    relay_reason: Option<String>,
    strategy: Option<String>,
    #[serde(default)]
    probes_unanswered: bool,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Deserialize)]
struct Candidate {
    address: String,
    kind: String,
    origins: Vec<String>,
    rtt_ms: Option<f64>,
    proven: bool,
    wireguard_blocked: bool,
}

pub(super) fn render(view: &View, one_peer: bool) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "mesh {} · node {} · interface {} ({}) · revision {}",
        view.mesh, view.node, view.interface, view.backend, view.revision
    );
    for local in view.core.local.iter().filter(|local| local.kind != "host") {
        let address = &local.address;
        // Another port for each destination: a peer that sends there reaches nobody.
        let only_seen =
            local.kind == "reflexive" && view.core.mapping.as_deref() == Some("endpoint-dependent");
        let _ = if only_seen {
            writeln!(
                text,
                "seen by the server as {address}, where peers don't reach it: the NAT here gives \
                 every destination another port (endpoint-dependent mapping)"
            )
        } else {
            writeln!(text, "reachable as {address} ({})", local.kind)
        };
    }
    for Local { address, .. } in &view.core.refuted {
        let _ = writeln!(
            text,
            "the router maps {address}, which is of no use: servers see this node at another \
             address, so that router is behind a NAT itself"
        );
    }
    match &view.serving {
        Some(ServingStatus {
            error: Some(error), ..
        }) => {
            let _ = writeln!(text, "does NOT serve the mesh: {error}");
        }
        Some(ServingStatus { port, sessions, .. }) => {
            let _ = writeln!(
                text,
                "serves the mesh on UDP port {port}, {sessions} registered"
            );
        }
        None => {}
    }
    for discovery in view.discovery.iter().filter(|discovery| !discovery.ok) {
        let _ = writeln!(text, "discovery {}: {}", discovery.name, discovery.note);
    }
    if let Some(error) = &view.reload_error {
        let _ = writeln!(
            text,
            "the newest mesh file is NOT applied:\n{}",
            error.trim_end()
        );
    }
    if let Some(error) = &view.journal_error {
        let _ = writeln!(
            text,
            "the journal can't be written, changes have to wait: {error}"
        );
    }
    if let Some(error) = &view.hosts_error {
        let _ = writeln!(text, "{error}");
    }
    if let Some(source) = &view.source {
        text.push_str(&source_line(source));
    }
    if let Some(change) = &view.change {
        let until = duration(change.undone_in_s);
        let _ = match change.by_person {
            true => {
                writeln!(
                    text,
                    "revision {} is undone in {until} unless you run `natpunch confirm`",
                    change.revision
                )
            }
            false => {
                let peers = change.waiting_for.join(", ");
                writeln!(
                    text,
                    "revision {} is undone in {until} without a sign of life from {peers}",
                    change.revision
                )
            }
        };
    }
    for warning in &view.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    if let Some(drift) = view
        .drift
        .as_ref()
        .filter(|drift| !drift.changes.is_empty())
    {
        let what = if drift.healed {
            "was put right"
        } else {
            "is NOT put right"
        };
        let _ = writeln!(
            text,
            "somebody changed the interface ({} times), which {what}:",
            drift.times
        );
        for change in &drift.changes {
            let _ = writeln!(text, "  {change}");
        }
    }
    text.push_str(&pin_lines(view));
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "PEER",
        "PATH",
        "ENDPOINT",
        "RTT",
        "HANDSHAKE",
        "RECEIVED",
        "SENT",
    ]);
    for peer in &view.core.peers {
        let path = match peer.state.as_str() {
            "connected" => path(peer, view.pins.peers.get(&peer.name)),
            state => state.to_owned(),
        };
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let name = if peer.managed {
            peer.name.clone()
        } else {
            format!("{} (plain)", peer.name)
        };
        table.add_row([
            name,
            path,
            or_dash(peer.endpoint.clone()),
            or_dash(peer.rtt_ms.map(|rtt| format!("{rtt:.1} ms"))),
            or_dash(
                peer.handshake_age_s
                    .map(|age| format!("{} ago", duration(age))),
            ),
            bytes(peer.rx_bytes),
            bytes(peer.tx_bytes),
        ]);
    }
    for line in table.lines() {
        // Columns are padded on both sides; the first needs none.
        let _ = writeln!(
            text,
            "{}",
            line.strip_prefix(' ').unwrap_or(&line).trim_end()
        );
    }
    for peer in &view.core.peers {
        if let Some(reason) = &peer.reason {
            let retry = peer
                .retry_in_s
                .map(|s| format!("; next try in {}", duration(s)))
                .unwrap_or_default();
            let _ = writeln!(text, "{}: {reason}{retry}", peer.name);
        }
        if let Some(cause) = view.likely.get(&peer.name) {
            let _ = writeln!(text, "{}: most likely: {cause}", peer.name);
        }
        if let Some(reason) = &peer.relay_reason {
            let _ = writeln!(text, "{}: relayed: {reason}", peer.name);
        }
        if let Some(strategy) = &peer.strategy {
            let _ = writeln!(text, "{}: under way: {strategy}", peer.name);
        }
        if peer.probes_unanswered {
            let _ = writeln!(
                text,
                "{}: WireGuard's session is live, but the peer's natpunch does not answer: is it running?",
                peer.name
            );
        }
        if one_peer {
            for candidate in &peer.candidates {
                let outcome = if candidate.wireguard_blocked {
                    "answers, but WireGuard's handshake does not pass".to_owned()
                } else if candidate.proven {
                    format!("proven, {:.1} ms", candidate.rtt_ms.unwrap_or_default())
                } else {
                    "not proven".to_owned()
                };
                let _ = writeln!(
                    text,
                    "  {} ({} from {}): {outcome}",
                    candidate.address,
                    candidate.kind,
                    candidate.origins.join(", ")
                );
            }
        }
    }
    text
}

/// The path in use, with the name of the relay if it is one, and the source port if it is not
/// WireGuard's own.
fn path(peer: &Peer, pin: Option<&PinnedPath>) -> String {
    let is_pinned =
        |pin: &&PinnedPath| peer.endpoint.as_deref() == Some(pin.remote.to_string().as_str());
    if let Some(pin) = pin.filter(is_pinned) {
        return format!("{} (from port {})", peer.path, pin.source_port);
    }
    let relay = peer
        .candidates
        .iter()
        .find(|candidate| Some(&candidate.address) == peer.endpoint.as_ref());
    match relay
        .filter(|_| peer.path == "relay")
        .map(|relay| relay.origins.join(", "))
    {
        Some(name) if !name.is_empty() && is_by_tls(peer) => format!("relay ({name}, by TLS)"),
        Some(name) if !name.is_empty() => format!("relay ({name})"),
        _ => peer.path.clone(),
    }
}

/// Whether the forwarder of this host carries WireGuard's packets.
fn is_by_tls(peer: &Peer) -> bool {
    let endpoint = peer.endpoint.as_ref();
    let endpoint = endpoint.and_then(|endpoint| endpoint.parse::<SocketAddr>().ok());
    endpoint.is_some_and(|endpoint| natpunch_types::is_forwarder(endpoint.ip()))
}

/// How much of the punch budget is used, and what is wrong with pins where somebody is worse off
/// for it.
fn pin_lines(view: &View) -> String {
    let mut text = String::new();
    let Punch {
        used,
        allowed,
        barred,
    } = &view.core.punch;
    if *used > 0 {
        let until = barred
            .as_ref()
            .map_or(String::new(), |reason| format!("; no more now: {reason}"));
        let _ = writeln!(
            text,
            "{used} of {allowed} probes to guessed ports sent in the last ten minutes{until}"
        );
    }
    let pins = &view.pins;
    let is_relayed = view.core.peers.iter().any(|peer| peer.path == "relay");
    match (&pins.error, pins.possible) {
        (Some(error), Some(false)) if is_relayed => {
            let _ = writeln!(
                text,
                "peers behind some NATs are reached by relays only, since WireGuard can use no \
                 source port but its own: {error}"
            );
        }
        (Some(error), Some(true)) => {
            let _ = writeln!(text, "the last change of pins failed: {error}");
        }
        _ => {}
    }
    if pins.healed > 0 {
        let _ = writeln!(
            text,
            "somebody took pins out of nftables {} times; they were put back",
            pins.healed
        );
    }
    text
}

fn source_line(source: &SourceStatus) -> String {
    let short = |revision: &str| revision.chars().take(12).collect::<String>();
    let mut parts = vec![format!("source {}", source.location)];
    if let Some(revision) = &source.revision {
        parts.push(format!("at {}", short(revision)));
    }
    if let Some(age) = source.age_s {
        parts.push(format!("fetched {} ago", duration(age as f64)));
    }
    if let Some(newest) = &source.newest {
        parts.push(format!("{} is not applied", short(newest)));
    }
    let mut line = parts.join(" · ");
    line.push('\n');
    if let Some(problem) = &source.problem_text {
        let kind = source.problem.map_or("problem", Problem::word);
        let last = source
            .checked_s
            .map(|s| format!("; last good answer {} ago", duration(s as f64)))
            .unwrap_or_default();
        let _ = writeln!(line, "source {kind}: {problem}{last}");
    }
    if let Some(stale) = &source.stale {
        let _ = writeln!(line, "source STALE: {stale}");
    }
    line
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = "KiB";
    for next in UNITS {
        unit = next;
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
        assert_eq!(duration(59.9), "59 s");
        assert_eq!(duration(7200.0), "2 h");
    }

    #[test]
    fn the_table_names_peers_paths_and_reasons() {
        let view: View = serde_json::from_value(serde_json::json!({
            "mesh": "home", "node": "a", "interface": "wg-home", "backend": "kernel", "revision": "00",
            "pid": 1, "mesh_hash": "00", "runs_for_s": 1.0, "reloads": 0,
            "likely": {"c": "its mesh file does not have this node"},
            "discovery": [{"name": "rv", "ok": false, "note": "no answer", "dropped": 0}], 
            "mapping": "endpoint-dependent",
            "punch": {"nat": "", "pins": false, "used": 1024, "allowed": 2048, "barred": "the budget is used up"},
            "pins": {"possible": false, "error": "the program `nft` is not installed", "source_ports": 0,
                     "healed": 2, "peers": {"b": {"source_port": 61234, "remote": "192.0.2.1:2"}}},
            "local": [{"address": "203.0.113.7:18032", "kind": "reflexive"}],
            "peers": [
                {"name": "b", "managed": true, "path": "direct", "endpoint": "192.0.2.1:2", "rtt_ms": 1.25,
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
        let text = render(&view, false);
        for expected in [
            "b  ",
            "direct (from port 61234)",
            "relay (hub, by TLS)",
            "192.0.2.1:2",
            "1.2 ms",
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
            "somebody took pins out of nftables 2 times; they were put back",
            "seen by the server as 203.0.113.7:18032, where peers don't reach it",
        ] {
            assert!(
                text.contains(expected),
                "{expected:?} is missing in\n{text}"
            );
        }
        assert!(!text.contains("reachable as"), "{text}");
    }
}
