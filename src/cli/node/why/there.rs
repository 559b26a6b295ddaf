//! The other half: how the peer sees the pair.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::agent::{PeerView, Tried};
use crate::cli::{CliError, table};
use crate::control::{Client, Request};
use crate::words::seconds;

/// Of two names the one that is not this node's.
///
/// # Errors
/// Both are other nodes: one of them has to be asked on its own host.
pub(super) fn other_than_own<'a>(
    agent: &mut Client,
    one: &'a String,
    other: &'a String,
) -> Result<&'a String, CliError> {
    let status = agent.ask(Request::Status)?;
    let own = status.get("node").and_then(Value::as_str);
    match own {
        Some(own) if own == one => Ok(other),
        Some(own) if own == other => Ok(one),
        own => Err(CliError::new(format!(
            "this node is {}, and sees nothing of the path between {one} and {other}",
            own.unwrap_or("another one")
        ))
        .help(format!(
            "run `natpunch why {one} {other}` on {one} or on {other}"
        ))),
    }
}

/// Both halves for programs.
pub(super) fn halves(here: Value, there: Result<Value, String>) -> Value {
    match there {
        Ok(there) => json!({ "here": here, "there": there }),
        Err(reason) => json!({ "here": here, "there": null, "there_error": reason }),
    }
}

/// The half of `peer`, who was asked by `node`.
pub(super) fn render(peer: &str, node: &str, view: &Result<PeerView, String>) -> String {
    let mut text = format!("\nas {peer} sees it\n");
    let view = match view {
        Ok(view) => view,
        Err(reason) => {
            let _ = writeln!(text, "  not known: {reason}");
            return text;
        }
    };
    let _ = writeln!(text, "  {}", head(node, view));
    let _ = writeln!(text, "  why: {}", view.why);
    let _ = writeln!(text, "  NAT of {peer}: {}", view.nat);
    if !view.tried.is_empty() {
        text.push('\n');
        text.push_str(&tried(&view.tried));
    }
    text
}

fn head(node: &str, view: &PeerView) -> String {
    if view.state == "resting" {
        return format!("{node}: at rest, on demand");
    }
    if view.state != "connected" {
        return format!("{node}: not connected ({})", view.state);
    }
    let at = view.endpoint.as_deref().unwrap_or("an unknown address");
    let mut parts = vec![match view.path.as_str() {
        "relay" => format!("by the relay at {at}"),
        "none" => format!("connected at {at}"),
        path => format!("{path} at {at}"),
    }];
    parts.extend(view.rtt_ms.map(|rtt| format!("{rtt:.1} ms")));
    let is_real = |since: &f64| since.is_finite() && *since >= 0.0;
    let since = view.since_s.filter(is_real);
    parts.extend(since.map(|since| format!("for {}", seconds(since))));
    format!("{node}: {}", parts.join(", "))
}

fn tried(all: &[Tried]) -> String {
    let mut table = table::new();
    table.set_header(vec!["TRIED FROM THERE", "KIND", "PROBES", "ANSWERS"]);
    for tried in all {
        table.add_row(vec![
            tried.address.clone(),
            tried.kind.clone(),
            tried.probes.to_string(),
            tried.answers.to_string(),
        ]);
    }
    table::text(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> PeerView {
        let tried = |address: &str, kind: &str, probes, answers| Tried {
            address: address.to_owned(),
            kind: kind.to_owned(),
            probes,
            answers,
        };
        PeerView {
            state: "connected".to_owned(),
            path: "relay".to_owned(),
            endpoint: Some("203.0.113.9:51901".to_owned()),
            rtt_ms: Some(3.1),
            since_s: Some(65.0),
            situation: "firewall".to_owned(),
            why: "a runs, and UDP to 203.0.113.20:24511 is not answered: let UDP port 24511 in at \
                  a's firewall or router"
                .to_owned(),
            nat: "easy: one port for all destinations, the same as inside".to_owned(),
            tried: vec![
                tried("203.0.113.20:24511", "server-reflexive", 12, 0),
                tried("203.0.113.9:51901", "relay", 20, 20),
            ],
        }
    }

    /// `BLESS=1 cargo test -p natpunch --lib why` writes the snapshot.
    #[test]
    fn the_half_of_the_peer_is_told_in_its_words_or_why_it_is_not_known() {
        let silent = Err("b did not answer: it is not connected".to_owned());
        let away = PeerView {
            state: "connecting".to_owned(),
            ..view()
        };
        let text = [
            render("b", "a", &Ok(view())),
            render("b", "a", &Ok(away)),
            render("b", "a", &silent),
        ]
        .concat();
        let file = format!("{}/src/cli/node/why/there.txt", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }
}
