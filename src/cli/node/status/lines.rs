//! What is said of the node and of its mesh as a whole: a line each, where there is something to say.

use std::fmt::Write as _;

use super::view::{Local, Punch, View, duration};
use crate::agent::ServingStatus;
use crate::source::{Problem, SourceStatus};

/// The lines between the summary and the table.
pub(super) fn about_node(view: &View) -> String {
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
    text
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
    if let (Some(method), Some(reason)) = (pins.method, &pins.reason)
        && !pins.peers.is_empty()
    {
        let _ = writeln!(
            text,
            "{method} sends from other source ports, at more CPU than nftables: {reason}"
        );
    }
    if pins.healed > 0 {
        let _ = writeln!(
            text,
            "pins were taken away {} times (by `nft flush ruleset`?), and were put back",
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
