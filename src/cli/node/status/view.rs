//! The agent's answer as the commands for people read it: of what the core knows only what they
//! show.

use std::fmt;
use std::net::SocketAddr;

use natpunch_core::NatStatus;
use natpunch_types::Mapping;
use serde::Deserialize;

use crate::agent::{PinnedPath, Status};
pub(in crate::cli::node) use crate::words::seconds as duration;

/// The agent's answer.
pub(in crate::cli::node) type View = Status<Core>;

/// What the core knows.
#[derive(Debug, Clone, Deserialize)]
pub(in crate::cli::node) struct Core {
    pub(super) mapping: Option<String>,
    #[serde(default)]
    pub(super) punch: Punch,
    pub(super) local: Vec<Local>,
    #[serde(default)]
    pub(super) refuted: Vec<Local>,
    pub(in crate::cli::node) peers: Vec<Peer>,
}

/// The punch budget.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Punch {
    pub(super) used: u32,
    pub(super) allowed: u32,
    pub(super) barred: Option<String>,
}

/// Where this node may be reached.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Local {
    pub(super) address: String,
    pub(super) kind: String,
}

/// A peer.
#[derive(Debug, Clone, Deserialize)]
pub(in crate::cli::node) struct Peer {
    pub(in crate::cli::node) name: String,
    pub(in crate::cli::node) managed: bool,
    pub(in crate::cli::node) path: String,
    pub(in crate::cli::node) endpoint: Option<String>,
    pub(in crate::cli::node) rtt_ms: Option<f64>,
    /// An agent of before an upgrade does not say it.
    #[serde(default)]
    pub(in crate::cli::node) loss_percent: Option<u8>,
    #[serde(default)]
    pub(in crate::cli::node) nat: Option<NatStatus>,
    pub(in crate::cli::node) handshake_age_s: Option<f64>,
    pub(in crate::cli::node) rx_bytes: u64,
    pub(in crate::cli::node) tx_bytes: u64,
    pub(in crate::cli::node) state: String,
    pub(in crate::cli::node) reason: Option<String>,
    pub(in crate::cli::node) retry_in_s: Option<f64>,
    pub(in crate::cli::node) relay_reason: Option<String>,
    pub(in crate::cli::node) strategy: Option<String>,
    #[serde(default)]
    pub(in crate::cli::node) probes_unanswered: bool,
    #[serde(default)]
    pub(super) candidates: Vec<Candidate>,
}

/// One place where a peer may be.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Candidate {
    pub(super) address: String,
    pub(super) kind: String,
    pub(super) origins: Vec<String>,
    pub(super) rtt_ms: Option<f64>,
    pub(super) proven: bool,
    pub(super) wireguard_blocked: bool,
}

impl Peer {
    /// Whether WireGuard has a live session with it, or the path in use answers.
    pub(in crate::cli::node) fn is_connected(&self) -> bool {
        self.state == "connected"
    }

    /// Whether it is on demand, and nobody has talked: the next packet connects it.
    pub(in crate::cli::node) fn rests(&self) -> bool {
        self.state == "resting"
    }

    /// Whether it is worth an operator's look: a phone with plain WireGuard may well be off.
    pub(in crate::cli::node) fn is_down(&self) -> bool {
        self.managed && !self.is_connected() && !self.rests()
    }

    /// Whether the forwarder of this host carries WireGuard's packets.
    fn is_by_tls(&self) -> bool {
        let endpoint = self.endpoint.as_ref();
        let endpoint = endpoint.and_then(|endpoint| endpoint.parse::<SocketAddr>().ok());
        endpoint.is_some_and(|endpoint| natpunch_types::is_forwarder(endpoint.ip()))
    }

    /// Its name, and that it is no node of ours if so.
    pub(in crate::cli::node) fn shown_name(&self) -> String {
        match self.managed {
            true => self.name.clone(),
            false => format!("{} (plain)", self.name),
        }
    }

    /// The NAT before it, in a word; `why` has the others.
    pub(in crate::cli::node) fn shown_nat(&self) -> Option<&'static str> {
        let has_public = |candidate: &Candidate| {
            let address: Option<SocketAddr> = candidate.address.parse().ok();
            let is_own = candidate.kind == "host";
            is_own && address.is_some_and(|at| at.is_ipv4() && natpunch_types::is_global(at.ip()))
        };
        if self.candidates.iter().any(has_public) {
            return Some("none");
        }
        match self.nat?.mapping? {
            Mapping::EndpointIndependent => Some("easy"),
            Mapping::EndpointDependent => Some("hard"),
        }
    }

    /// The relay that its path passes through, by the names of who offered it.
    pub(in crate::cli::node) fn relay(&self) -> Option<String> {
        if !self.is_connected() || self.path != "relay" {
            return None;
        }
        let mut candidates = self.candidates.iter();
        let relay = candidates.find(|candidate| Some(&candidate.address) == self.endpoint.as_ref());
        match relay.filter(|relay| !relay.origins.is_empty()) {
            Some(relay) => Some(relay.origins.join(", ")),
            None => Some("relay".to_owned()),
        }
    }

    /// The path in use, with the name of the relay if it is one and the source port if it is not
    /// WireGuard's own; what is going on where there is none.
    pub(in crate::cli::node) fn shown_path(&self, pin: Option<&PinnedPath>) -> String {
        if !self.is_connected() {
            return self.state.clone();
        }
        let is_used =
            |pin: &&PinnedPath| self.endpoint.as_deref() == Some(pin.remote.to_string().as_str());
        if let Some(pin) = pin.filter(is_used) {
            return format!("{} (from port {})", self.path, pin.source_port);
        }
        let mut candidates = self.candidates.iter();
        let relay = candidates.find(|candidate| Some(&candidate.address) == self.endpoint.as_ref());
        match relay.filter(|_| self.path == "relay") {
            Some(relay) if !relay.origins.is_empty() => {
                let by_tls = if self.is_by_tls() { ", by TLS" } else { "" };
                format!("relay ({}{by_tls})", relay.origins.join(", "))
            }
            _ => self.path.clone(),
        }
    }
}

/// How many peers are how well connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::cli::node) struct Counts {
    /// All.
    pub(in crate::cli::node) peers: usize,
    /// Those that are connected.
    pub(in crate::cli::node) connected: usize,
    /// Over the internet without a relay.
    pub(in crate::cli::node) direct: usize,
    /// Through a relay.
    pub(in crate::cli::node) relayed: usize,
    /// Within one LAN.
    pub(in crate::cli::node) lan: usize,
    /// At rest, on demand.
    pub(in crate::cli::node) resting: usize,
    /// Nodes that are not connected, and not at rest.
    pub(in crate::cli::node) down: usize,
    /// Plain WireGuard peers without a session.
    pub(in crate::cli::node) plain_away: usize,
}

impl Counts {
    /// Counts peers.
    pub(in crate::cli::node) fn of<'a>(peers: impl IntoIterator<Item = &'a Peer>) -> Self {
        let mut counts = Self::default();
        for peer in peers {
            counts.peers += 1;
            if !peer.is_connected() {
                counts.down += usize::from(peer.is_down());
                counts.resting += usize::from(peer.rests());
                counts.plain_away += usize::from(!peer.managed);
                continue;
            }
            counts.connected += 1;
            match peer.path.as_str() {
                "direct" => counts.direct += 1,
                "relay" => counts.relayed += 1,
                "lan" => counts.lan += 1,
                _ => {}
            }
        }
        counts
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.peers == 0 {
            return f.write_str("no other peer in this mesh");
        }
        write!(f, "{} of {} connected", self.connected, self.peers)?;
        let list = |parts: &[(usize, &str)]| {
            let some = parts.iter().filter(|(count, _)| *count > 0);
            let some: Vec<String> = some
                .map(|(count, what)| format!("{count} {what}"))
                .collect();
            some.join(", ")
        };
        let ways = list(&[
            (self.direct, "direct"),
            (self.relayed, "relayed"),
            (self.lan, "LAN"),
        ]);
        let away = list(&[
            (self.resting, "resting"),
            (self.down, "down"),
            (self.plain_away, "plain WireGuard without a session"),
        ]);
        if !ways.is_empty() {
            write!(f, ": {ways}")?;
        }
        match away.is_empty() {
            true => Ok(()),
            false => write!(f, "; {away}"),
        }
    }
}

/// A number of bytes for people.
pub(in crate::cli::node) fn bytes(count: u64) -> String {
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
    fn the_summary_says_how_many_are_connected_and_how() {
        let mut counts = Counts {
            peers: 61,
            connected: 57,
            direct: 51,
            relayed: 4,
            lan: 2,
            resting: 1,
            down: 3,
            plain_away: 0,
        };
        assert_eq!(
            counts.to_string(),
            "57 of 61 connected: 51 direct, 4 relayed, 2 LAN; 1 resting, 3 down"
        );
        counts = Counts {
            peers: 2,
            plain_away: 2,
            ..Counts::default()
        };
        assert_eq!(
            counts.to_string(),
            "0 of 2 connected; 2 plain WireGuard without a session"
        );
        assert_eq!(Counts::default().to_string(), "no other peer in this mesh");
    }
}
