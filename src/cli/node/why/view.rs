//! The agent's answer as one screen.

use std::fmt::Write as _;

use natpunch_core::{NotProbed, PacketKind, PathMtuStatus};
use natpunch_types::LocalSocket;
use serde::Deserialize;

use crate::agent::{Step, StrategyRun, Why};
use crate::cli::table;
use crate::words::seconds;

/// Changes of the path that are shown without `--verbose`.
const CHANGES: usize = 6;

/// The agent's answer. Of what the core knows only what is shown is read.
pub(super) type View = Why<Peer, Packet>;

#[derive(Debug, Deserialize)]
pub(super) struct Packet {
    ago_s: f64,
    sent: bool,
    kind: PacketKind,
    local: LocalSocket,
    address: String,
    count: u32,
    answer_ms: Option<f64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Peer {
    name: String,
    state: String,
    path: String,
    local: Option<LocalSocket>,
    endpoint: Option<String>,
    path_mtu: Option<PathMtuStatus>,
    rtt_ms: Option<f64>,
    handshake_age_s: Option<f64>,
    seen_as: Option<String>,
    relay: String,
    relay_reason: Option<String>,
    reason: Option<String>,
    retry_in_s: Option<f64>,
    strategy: Option<String>,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Deserialize)]
struct Candidate {
    local: LocalSocket,
    address: String,
    kind: String,
    origins: Vec<String>,
    age_s: f64,
    last_probe_s: Option<f64>,
    probes: u32,
    answers: u32,
    last_answer_s: Option<f64>,
    not_probed: Option<NotProbed>,
    rtt_ms: Option<f64>,
    answered: bool,
    proven: bool,
    wireguard_blocked: bool,
}

impl View {
    /// Whom it is about.
    pub(super) fn peer_name(&self) -> &str {
        &self.peer.name
    }
}

pub(super) fn render(view: &View, verbose: bool) -> String {
    let peer = &view.peer;
    let mut text = String::new();
    let _ = writeln!(text, "{}", head(view));
    if let Some(replaced) = &view.since.replaced {
        let relay = if replaced.by_relay {
            "the relay at "
        } else {
            ""
        };
        let (endpoint, for_s) = (replaced.endpoint, seconds(replaced.for_s));
        let _ = writeln!(text, "before: {relay}{endpoint}, for {for_s}");
    }
    let _ = writeln!(text, "why: {}\n", view.cause.text);
    let mut facts = vec![
        (format!("NAT of {}", view.node), view.own_nat.clone()),
        (format!("NAT of {}", peer.name), view.peer_nat.clone()),
        ("relay".to_owned(), relay(peer)),
    ];
    facts.extend(size(peer).map(|size| ("packet size".to_owned(), size)));
    for discovery in view.discovery.iter().filter(|d| !d.ok) {
        facts.push((
            format!("discovery {}", discovery.name),
            discovery.note.clone(),
        ));
    }
    let width = facts.iter().map(|(label, _)| label.chars().count()).max();
    let width = width.unwrap_or_default();
    for (label, fact) in &facts {
        let _ = writeln!(text, "{label:width$}  {fact}");
    }
    text.push('\n');
    text.push_str(&candidates(peer, verbose));
    if !view.strategies.is_empty() {
        text.push_str("\nstrategies against the NATs, the newest first\n");
        for run in &view.strategies {
            let _ = writeln!(text, "  {}", strategy(run));
        }
    }
    let shown = if verbose { view.changes.len() } else { CHANGES };
    steps(&mut text, "the path", view.changes.iter().take(shown));
    if let Some(more) = view
        .changes
        .len()
        .checked_sub(shown)
        .filter(|more| *more > 0)
    {
        let _ = writeln!(text, "  and {more} more before (--verbose)");
    }
    if verbose {
        steps(&mut text, "the search for it", view.steps.iter());
        text.push_str(&packets(&view.packets));
        text.push_str("\nmore\n");
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "not known".to_owned());
        let handshake = peer
            .handshake_age_s
            .map(|age| format!("{} ago", seconds(age)));
        let _ = writeln!(text, "  last handshake: {}", or_unknown(handshake));
        let _ = writeln!(
            text,
            "  {} sees this node at: {}",
            peer.name,
            or_unknown(peer.seen_as.clone())
        );
        let _ = writeln!(text, "  situation: {}", view.cause.situation);
        if let Some(reason) = &peer.relay_reason {
            let _ = writeln!(text, "  on the relay: {reason}");
        }
        for discovery in view.discovery.iter().filter(|discovery| discovery.ok) {
            let _ = writeln!(text, "  discovery {}: {}", discovery.name, discovery.note);
        }
    }
    text
}

/// How large packets may be, if that is less than usual.
fn size(peer: &Peer) -> Option<String> {
    let mtu = peer.path_mtu.filter(|mtu| mtu.is_limited)?.mtu;
    Some(format!(
        "large packets vanish on this path: packets of more than {mtu} bytes are split or refused \
         before the tunnel"
    ))
}

/// The path now.
fn head(view: &View) -> String {
    let peer = &view.peer;
    if peer.state == "resting" {
        return format!("{}: at rest, on demand", peer.name);
    }
    if peer.state != "connected" {
        let mut head = format!("{}: not connected ({})", peer.name, peer.state);
        if let Some(reason) = &peer.reason {
            let _ = write!(head, ": {reason}");
        }
        if let Some(retry) = peer.retry_in_s.filter(|retry| *retry < 1e9) {
            let _ = write!(head, "; next try in {}", seconds(retry));
        }
        if let Some(strategy) = &peer.strategy {
            let _ = write!(head, "; under way: {strategy}");
        }
        return head;
    }
    let mut parts = vec![match (&peer.endpoint, peer.path.as_str()) {
        (Some(endpoint), "relay") => format!("by the relay at {endpoint}"),
        (Some(endpoint), "none") => format!("connected at {endpoint}"),
        (Some(endpoint), path) => format!("{path} at {endpoint}"),
        (None, path) => path.to_owned(),
    }];
    if let Some(LocalSocket::SourcePort(port)) = peer.local {
        parts.push(format!("from this host's port {port}"));
    }
    parts.extend(peer.rtt_ms.map(|rtt| format!("{rtt:.1} ms")));
    parts.extend(
        view.since
            .since_s
            .map(|since| format!("for {}", seconds(since))),
    );
    format!("{}: {}", peer.name, parts.join(", "))
}

fn relay(peer: &Peer) -> String {
    let of = |candidate: &Candidate| {
        let (by, at) = (candidate.origins.join(", "), &candidate.address);
        let rtt = candidate
            .rtt_ms
            .map_or(String::new(), |rtt| format!(", {rtt:.1} ms"));
        let works = if candidate.proven { "" } else { ", not proven" };
        format!("{by} at {at}{rtt}{works}")
    };
    let relays = peer
        .candidates
        .iter()
        .filter(|candidate| candidate.kind == "relay");
    let relays: Vec<String> = relays.map(of).collect();
    let role = match peer.relay.as_str() {
        "standby" => "in reserve",
        "carry" if peer.path == "relay" => "in use",
        "carry" => "wanted",
        _ => return "not used".to_owned(),
    };
    match relays.is_empty() {
        true => format!("{role}, and no server offers one"),
        false => format!("{role}: {}", relays.join("; ")),
    }
}

fn candidates(peer: &Peer, verbose: bool) -> String {
    if peer.candidates.is_empty() {
        return format!("no address of {} is known\n", peer.name);
    }
    let mut table = table::new();
    let mut header = vec![
        "TRIED",
        "KIND",
        "FROM",
        "PROBES",
        "ANSWERS",
        "LAST PROBE",
        "OUTCOME",
    ];
    if verbose {
        header.push("KNOWN FOR");
    }
    table.set_header(header);
    for candidate in &peer.candidates {
        let address = place(candidate.local, &candidate.address);
        let last = candidate.last_probe_s;
        let mut row = vec![
            address,
            candidate.kind.clone(),
            candidate.origins.join(", "),
            candidate.probes.to_string(),
            candidate.answers.to_string(),
            last.map_or_else(|| "-".to_owned(), |last| format!("{} ago", seconds(last))),
            outcome(peer, candidate),
        ];
        if verbose {
            row.push(seconds(candidate.age_s));
        }
        table.add_row(row);
    }
    table::text(&table)
}

/// An address, with the source port that leads there if it is not WireGuard's.
fn place(local: LocalSocket, address: &str) -> String {
    match local {
        LocalSocket::WireguardPort => address.to_owned(),
        LocalSocket::SourcePort(port) => format!("{address} (from port {port})"),
    }
}

/// The last packets, the newest first.
fn packets(packets: &[Packet]) -> String {
    if packets.is_empty() {
        return String::new();
    }
    let mut table = table::new();
    table.set_header(["PACKET", "", "KIND", "WHERE", "ANSWERED"]);
    for packet in packets {
        let (direction, answer) = match (packet.sent, packet.answer_ms) {
            (true, Some(answer)) => ("sent", format!("after {answer:.1} ms")),
            (true, None) => ("sent", "-".to_owned()),
            (false, _) => ("heard", String::new()),
        };
        let kind = match packet.count {
            0 | 1 => packet.kind.to_string(),
            count => format!("{count} times {}", packet.kind),
        };
        table.add_row([
            format!("{:.1} s ago", packet.ago_s),
            direction.to_owned(),
            kind,
            place(packet.local, &packet.address),
            answer,
        ]);
    }
    format!("\n{}", table::text(&table))
}

fn outcome(peer: &Peer, candidate: &Candidate) -> String {
    let rtt = candidate
        .rtt_ms
        .map_or(String::new(), |rtt| format!(", {rtt:.1} ms"));
    let in_use = peer.state == "connected"
        && Some(&candidate.address) == peer.endpoint.as_ref()
        && peer.local.unwrap_or_default() == candidate.local;
    match candidate.not_probed {
        Some(NotProbed::BehindTunnel) => {
            return "not tried: it is behind another tunnel of this host".to_owned();
        }
        Some(NotProbed::NoRoute) => return "not tried: no route there".to_owned(),
        Some(NotProbed::NoAddressOfFamily) => {
            return "not tried: this host has no address of its family".to_owned();
        }
        None => {}
    }
    if candidate.wireguard_blocked {
        return format!("answers, but WireGuard's handshake does not pass{rtt}");
    }
    if in_use {
        return format!("in use{rtt}");
    }
    if candidate.proven {
        return format!("proven{rtt}");
    }
    if candidate.answered {
        return format!("answers, but the peer's own probes do not arrive{rtt}");
    }
    match (candidate.last_answer_s, candidate.probes) {
        (Some(last), _) => format!("last answer {} ago", seconds(last)),
        (None, 0) => "not probed yet".to_owned(),
        (None, _) => "no answer".to_owned(),
    }
}

fn strategy(run: &StrategyRun) -> String {
    let part = match run.opens {
        true => "this side opened ports",
        false => "this side looked for the peer's ports",
    };
    let result = match (run.result.as_str(), run.sent) {
        ("failed", Some(sent)) if sent > 0 => format!("found no path ({sent} packets from here)"),
        ("failed", _) => "found no path".to_owned(),
        ("connected", _) => "a direct path came of it".to_owned(),
        _ => "is under way".to_owned(),
    };
    format!(
        "{} ago: {}, {part}: {result}",
        seconds(run.ago_s),
        run.strategy
    )
}

fn steps<'a>(text: &mut String, title: &str, steps: impl Iterator<Item = &'a Step>) {
    let mut steps = steps.peekable();
    if steps.peek().is_some() {
        let _ = writeln!(text, "\n{title}, the newest first");
    }
    for step in steps {
        let _ = writeln!(text, "  {} ago: {}", seconds(step.ago_s), step.text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(peer: serde_json::Value) -> View {
        let mut all = serde_json::json!({
            "mesh": "home", "node": "a",
            "cause": {"situation": "direct", "text": "all is well: the path is direct, and a relay is in reserve"},
            "since_s": 185.0,
            "replaced": {"endpoint": "203.0.113.9:51901", "by_relay": true, "for_s": 1.2},
            "own_nat": "easy: one port for all destinations, the same as inside",
            "peer_nat": "hard: another port for every destination, at random",
            "strategies": [
                {"strategy": "birthday", "opens": false, "ago_s": 186.0, "result": "connected"},
                {"strategy": "sequential", "opens": false, "ago_s": 190.0, "result": "failed", "sent": 64}
            ],
            "changes": [
                {"ago_s": 185.0, "text": "connected at 203.0.113.14:20893"},
                {"ago_s": 186.2, "text": "connected by the relay at 203.0.113.9:51901"}
            ],
            "steps": [{"ago_s": 185.2, "text": "answers at 203.0.113.14:20893 in 1.9 ms"}],
            "discovery": [
                {"name": "rv", "ok": true, "note": "registered", "dropped": 0},
                {"name": "web", "ok": false, "note": "no answer from web.example", "dropped": 0}
            ],
            "peer": {
                "name": "b", "managed": true, "state": "connected", "path": "direct", "local": "wireguard-port",
                "endpoint": "203.0.113.14:20893", "rtt_ms": 1.94, "handshake_age_s": 12.0,
                "seen_as": "203.0.113.10:51820", "relay": "standby",
                "candidates": [
                    {"local": "wireguard-port", "address": "192.168.7.2:51820", "kind": "host", "origins": ["rv"],
                     "age_s": 190.0, "last_probe_s": 61.0, "probes": 9, "answers": 0, "last_answer_s": null,
                     "rtt_ms": null, "answered": false, "proven": false, "wireguard_blocked": false},
                    {"local": "wireguard-port", "address": "203.0.113.9:51901", "kind": "relay", "origins": ["rv"],
                     "age_s": 190.0, "last_probe_s": 11.0, "probes": 20, "answers": 20, "last_answer_s": 11.0,
                     "rtt_ms": 3.1, "answered": true, "proven": true, "wireguard_blocked": false},
                    {"local": "wireguard-port", "address": "203.0.113.14:20893", "kind": "peer-reflexive",
                     "origins": ["peer"], "age_s": 186.0, "last_probe_s": 2.0, "probes": 40, "answers": 40,
                     "last_answer_s": 2.0, "rtt_ms": 1.94, "answered": true, "proven": true,
                     "wireguard_blocked": false},
                    {"local": "wireguard-port", "address": "10.8.0.2:51820", "kind": "host", "origins": ["rv"],
                     "age_s": 190.0, "last_probe_s": null, "probes": 0, "answers": 0, "last_answer_s": null,
                     "not_probed": "behind-tunnel", "rtt_ms": null, "answered": false, "proven": false,
                     "wireguard_blocked": false}
                ]
            }
        });
        all["packets"] = serde_json::json!([
            {"ago_s": 2.0, "sent": false, "kind": "answer", "local": "wireguard-port",
             "address": "203.0.113.14:20893", "count": 1, "answer_ms": null},
            {"ago_s": 2.002, "sent": true, "kind": "probe", "local": "wireguard-port",
             "address": "203.0.113.14:20893", "count": 1, "answer_ms": 1.94},
            {"ago_s": 185.5, "sent": true, "kind": "handshake-copy", "local": "wireguard-port",
             "address": "203.0.113.14:20893", "count": 1, "answer_ms": null},
            {"ago_s": 186.25, "sent": true, "kind": "guess", "local": {"source-port": 61234},
             "address": "203.0.113.14:20893", "count": 170, "answer_ms": null}
        ]);
        for (key, value) in peer.as_object().unwrap() {
            all["peer"][key] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    /// `BLESS=1 cargo test -p natpunch --lib why` writes the snapshots.
    fn check(name: &str, text: &str) {
        let file = format!("{}/src/cli/node/why/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&file, text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }

    #[test]
    fn one_screen_tells_the_path_the_nats_the_tries_and_the_past() {
        let direct = view(serde_json::json!({}));
        check("direct", &render(&direct, false));
        check("verbose", &render(&direct, true));
    }

    #[test]
    fn a_peer_that_is_not_connected_is_told_with_its_reason() {
        let mut away = view(serde_json::json!({
            "state": "unreachable", "path": "none", "reason": "no probe was answered at any of 2 addresses",
            "retry_in_s": 58.0, "rtt_ms": null, "relay": "carry", "endpoint": null, "local": null
        }));
        (away.since.since_s, away.since.replaced) = (None, None);
        away.cause.text = "b answered 4 min ago and answers nowhere now".to_owned();
        away.strategies.clear();
        away.peer.candidates.truncate(1);
        check("away", &render(&away, false));
    }
}
