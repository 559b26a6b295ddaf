//! `natpunch status`: what the agent of this host knows of its peers.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Deserialize;

use super::agents::agent_of;
use crate::cli::CliError;
use crate::cli::args::StatusArgs;
use crate::control::{Client, Request};

/// The part of the agent's answer that the table shows.
#[derive(Debug, Deserialize)]
struct View {
    mesh: String,
    node: String,
    interface: String,
    backend: String,
    revision: String,
    reload_error: Option<String>,
    journal_error: Option<String>,
    hosts_error: Option<String>,
    source: Option<Source>,
    change: Option<Change>,
    drift: Option<Drift>,
    serving: Option<Serving>,
    discovery: Vec<Discovery>,
    local: Vec<Local>,
    peers: Vec<Peer>,
}

#[derive(Debug, Deserialize)]
struct Source {
    location: String,
    revision: Option<String>,
    age_s: Option<f64>,
    newest: Option<String>,
    problem: Option<String>,
    problem_text: Option<String>,
    checked_s: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Change {
    revision: String,
    undone_in_s: f64,
    by_person: bool,
    waiting_for: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Drift {
    changes: Vec<String>,
    healed: bool,
    times: u64,
}

#[derive(Debug, Deserialize)]
struct Serving {
    port: u16,
    sessions: usize,
    error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Discovery {
    name: String,
    ok: bool,
    note: String,
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

/// Prints the status, once or every second.
///
/// # Errors
/// No agent runs here, or it has no such peer.
pub(in crate::cli) fn run(args: &StatusArgs) -> Result<ExitCode, CliError> {
    let directory = crate::control::runtime_dir();
    let interface = agent_of(&directory, args.interface.as_deref())?;
    let mut client = Client::connect(&directory, &interface)?;
    loop {
        let mut status = client.ask(Request::Status)?;
        if let Some(name) = &args.peer {
            keep_peer(&mut status, name)?;
        }
        let text = if args.json {
            let mut text = if args.watch {
                serde_json::to_string(&status)
            } else {
                serde_json::to_string_pretty(&status)
            }
            .map_err(|error| CliError::new(error.to_string()))?;
            text.push('\n');
            text
        } else {
            let view = serde_json::from_value::<View>(status).map_err(|error| {
                CliError::new(format!("the agent speaks another version of natpunch: {error}"))
                    .help("restart the agent, tunnels stay up meanwhile; `status --json` shows its answer as it is")
            })?;
            let table = render(&view, args.peer.is_some());
            // Home and clear only on a terminal; a log file gets one table after the other.
            if args.watch && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
                format!("\x1b[H\x1b[J{table}")
            } else {
                table
            }
        };
        let mut out = anstream::stdout();
        if out
            .write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .is_err()
            || !args.watch
        {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Leaves only the peer with this name in the answer.
fn keep_peer(status: &mut serde_json::Value, name: &str) -> Result<(), CliError> {
    let Some(peers) = status
        .get_mut("peers")
        .and_then(serde_json::Value::as_array_mut)
    else {
        return Ok(());
    };
    let names: Vec<String> = peers
        .iter()
        .filter_map(|peer| peer.get("name")?.as_str().map(str::to_owned))
        .collect();
    peers.retain(|peer| peer.get("name").and_then(serde_json::Value::as_str) == Some(name));
    if !peers.is_empty() {
        return Ok(());
    }
    let error = CliError::new(format!("this mesh has no peer {name:?}"));
    let nearest = names
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    Err(match nearest {
        Some(nearest) => error.help(format!("did you mean {nearest:?}?")),
        None => error,
    })
}

fn render(view: &View, one_peer: bool) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "mesh {} · node {} · interface {} ({}) · revision {}",
        view.mesh, view.node, view.interface, view.backend, view.revision
    );
    for local in view.local.iter().filter(|local| local.kind != "host") {
        let _ = writeln!(text, "reachable as {} ({})", local.address, local.kind);
    }
    match &view.serving {
        Some(Serving {
            error: Some(error), ..
        }) => {
            let _ = writeln!(text, "does NOT serve the mesh: {error}");
        }
        Some(Serving { port, sessions, .. }) => {
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
    for peer in &view.peers {
        let path = match peer.state.as_str() {
            "connected" => path(peer),
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
    for peer in &view.peers {
        if let Some(reason) = &peer.reason {
            let retry = peer
                .retry_in_s
                .map(|s| format!("; next try in {}", duration(s)))
                .unwrap_or_default();
            let _ = writeln!(text, "{}: {reason}{retry}", peer.name);
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

/// The path in use, with the name of the relay if it is one.
fn path(peer: &Peer) -> String {
    let relay = peer
        .candidates
        .iter()
        .find(|candidate| Some(&candidate.address) == peer.endpoint.as_ref());
    match relay
        .filter(|_| peer.path == "relay")
        .map(|relay| relay.origins.join(", "))
    {
        Some(name) if !name.is_empty() => format!("relay ({name})"),
        _ => peer.path.clone(),
    }
}

fn source_line(source: &Source) -> String {
    let short = |revision: &str| revision.chars().take(12).collect::<String>();
    let mut parts = vec![format!("source {}", source.location)];
    if let Some(revision) = &source.revision {
        parts.push(format!("at {}", short(revision)));
    }
    if let Some(age) = source.age_s {
        parts.push(format!("fetched {} ago", duration(age)));
    }
    if let Some(newest) = &source.newest {
        parts.push(format!("{} is not applied", short(newest)));
    }
    let mut line = parts.join(" · ");
    line.push('\n');
    if let Some(problem) = &source.problem_text {
        let kind = source.problem.as_deref().unwrap_or("problem");
        let last = source
            .checked_s
            .map(|s| format!("; last good answer {} ago", duration(s)))
            .unwrap_or_default();
        let _ = writeln!(line, "source {kind}: {problem}{last}");
    }
    line
}

pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min", whole / 60),
        3600..172_800 => format!("{} h", whole / 3600),
        _ => format!("{} days", whole / 86_400),
    }
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
            "discovery": [{"name": "rv", "ok": false, "note": "no answer"}], "local": [],
            "peers": [
                {"name": "b", "managed": true, "path": "direct", "endpoint": "192.0.2.1:2", "rtt_ms": 1.25,
                 "handshake_age_s": 61.0, "rx_bytes": 2048, "tx_bytes": 1, "state": "connected",
                 "probes_unanswered": true, "candidates": []},
                {"name": "r", "managed": true, "path": "relay", "endpoint": "192.0.2.9:51901", "rtt_ms": 1.25,
                 "handshake_age_s": 61.0, "rx_bytes": 0, "tx_bytes": 0, "state": "connected",
                 "candidates": [{"address": "192.0.2.9:51901", "kind": "relay", "origins": ["hub"], "rtt_ms": 1.25,
                                 "proven": true, "wireguard_blocked": false}]},
                {"name": "c", "managed": true, "path": "none", "rx_bytes": 0, "tx_bytes": 0,
                 "state": "unreachable", "reason": "no answer from 2 candidates", "retry_in_s": 60.0, "candidates": []}
            ]
        }))
        .unwrap();
        let text = render(&view, false);
        for expected in [
            "b  ",
            "direct",
            "192.0.2.1:2",
            "1.2 ms",
            "1 min ago",
            "2.0 KiB",
            "b: WireGuard's session is live, but the peer's natpunch does not answer",
            "discovery rv: no answer",
            "c: no answer from 2 candidates; next try in 1 min",
        ] {
            assert!(
                text.contains(expected),
                "{expected:?} is missing in\n{text}"
            );
        }
    }
}
