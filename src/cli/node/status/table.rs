//! The table of peers and the reasons below it.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::lines::about_node;
use super::view::{Counts, Peer, View, bytes, duration};
use crate::agent::Member;
use crate::cli::table;

/// The columns.
pub(super) const HEADER: [&str; 10] = [
    "PEER",
    "ADDRESS",
    "PATH",
    "ENDPOINT",
    "NAT",
    "RTT",
    "LOSS",
    "HANDSHAKE",
    "RECEIVED",
    "SENT",
];

/// What is shown of the peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// All of them.
    All,
    /// Those that were asked for, of this many.
    Some(Counts),
    /// One, with every address that was tried.
    One,
}

/// The status as text. `view` holds the peers that are shown.
pub(super) fn render(view: &View, shown: Shown) -> String {
    let peers = &view.core.peers;
    let mut text = match shown {
        Shown::All => format!("{}\n", Counts::of(peers)),
        Shown::Some(all) => format!("{all} ({} shown)\n", peers.len()),
        Shown::One => String::new(),
    };
    text.push_str(&about_node(view));
    text.push_str(&rows(peers.iter().map(|peer| row(view, peer))));
    text.push_str(&reasons(view));
    if shown == Shown::One {
        peers
            .iter()
            .for_each(|peer| text.push_str(&details(view, peer)));
    }
    text
}

fn row(view: &View, peer: &Peer) -> [String; HEADER.len()] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        peer.shown_name(),
        or_dash(view.members.get(&peer.name).and_then(first_address)),
        peer.shown_path(view.pins.peers.get(&peer.name)),
        or_dash(peer.endpoint.clone()),
        or_dash(peer.shown_nat().map(str::to_owned)),
        or_dash(peer.rtt_ms.map(|rtt| format!("{rtt:.1} ms"))),
        or_dash(peer.loss_percent.map(|loss| format!("{loss} %"))),
        or_dash(peer.handshake_age_s.map(ago)),
        bytes(peer.rx_bytes),
        bytes(peer.tx_bytes),
    ]
}

pub(super) fn ago(seconds: f64) -> String {
    format!("{} ago", duration(seconds))
}

/// The one that people type: of IPv4, if there is one.
pub(super) fn first_address(member: &Member) -> Option<String> {
    let mut addresses = member.addresses.iter();
    let ipv4 = addresses.clone().find(|address| address.is_ipv4());
    ipv4.or_else(|| addresses.next()).map(IpAddr::to_string)
}

/// A table of peers; nothing where there are none.
pub(super) fn rows(rows: impl Iterator<Item = [String; HEADER.len()]>) -> String {
    let mut table = table::new();
    table.set_header(HEADER).add_rows(rows);
    if table.is_empty() {
        return String::new();
    }
    table::text(&table)
}

/// What is said of peers, the same of several once.
#[derive(Default)]
struct Reasons<'a>(Vec<Reason<'a>>);

struct Reason<'a> {
    text: String,
    peers: Vec<&'a str>,
    /// The first and the last of the next tries, in seconds.
    retries: Option<(f64, f64)>,
}

impl<'a> Reasons<'a> {
    fn add(&mut self, peer: &'a str, text: String, retry: Option<f64>) {
        let merged = match self.0.iter_mut().find(|reason| reason.text == text) {
            Some(reason) => reason,
            None => {
                let (peers, retries) = (Vec::new(), None);
                self.0.push(Reason {
                    text,
                    peers,
                    retries,
                });
                let Some(last) = self.0.last_mut() else {
                    return;
                };
                last
            }
        };
        merged.peers.push(peer);
        if let Some(retry) = retry {
            let (first, last) = merged.retries.unwrap_or((retry, retry));
            merged.retries = Some((first.min(retry), last.max(retry)));
        }
    }
}

fn reasons(view: &View) -> String {
    let mut reasons = Reasons::default();
    for peer in &view.core.peers {
        let name = peer.name.as_str();
        if let Some(reason) = &peer.reason {
            reasons.add(name, reason.clone(), peer.retry_in_s);
        }
        if let Some(cause) = view.likely.get(name) {
            reasons.add(name, format!("most likely: {cause}"), None);
        }
        if let Some(reason) = &peer.relay_reason {
            reasons.add(name, format!("relayed: {reason}"), None);
        }
        if let Some(strategy) = &peer.strategy {
            reasons.add(name, format!("under way: {strategy}"), None);
        }
        if peer.probes_unanswered {
            let text = "WireGuard's session is live, but the peer's natpunch does not answer: is \
                        it running?";
            reasons.add(name, text.to_owned(), None);
        }
    }
    let mut text = String::new();
    for Reason {
        text: what,
        peers,
        retries,
    } in reasons.0
    {
        let retry = match retries.map(|(first, last)| (duration(first), duration(last))) {
            None => String::new(),
            Some((first, last)) if first == last => format!("; next try in {first}"),
            Some((first, last)) => format!("; next tries in {first} to {last}"),
        };
        let _ = writeln!(text, "{}: {what}{retry}", peers.join(", "));
    }
    text
}

/// What the table has no room for: where a peer may be, and what is behind it.
fn details(view: &View, peer: &Peer) -> String {
    let mut text = String::new();
    if let Some(member) = view.members.get(&peer.name) {
        let list = |of: Vec<String>| of.join(", ");
        let addresses = member.addresses.iter().map(IpAddr::to_string).collect();
        let _ = writeln!(text, "  addresses in the mesh: {}", list(addresses));
        if !member.routes.is_empty() {
            let routes = member.routes.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "  networks behind it: {}", list(routes));
        }
    }
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
    text
}

#[cfg(test)]
mod tests;
