//! Which peers are shown, and in which order.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;

use super::view::Peer;

/// Which peers are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Nodes that are not connected, and plain peers without a session.
    Down,
    /// Those that are connected through a relay.
    Relayed,
    /// Those that are connected without one, over the internet.
    Direct,
    /// Those in one LAN with this node.
    Lan,
    /// Those whose name is like this; `*` stands for any text, `?` for one character.
    Name(String),
}

/// No word, and not the form of a name.
#[derive(Debug, thiserror::Error)]
#[error(
    "write down, relayed, direct, lan, or the name of a peer, in which * stands for any text and ? \
     for one character"
)]
pub struct NoFilter;

impl FromStr for Filter {
    type Err = NoFilter;

    fn from_str(text: &str) -> Result<Self, NoFilter> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "-*?".contains(c);
        match text {
            "down" => Ok(Self::Down),
            "relayed" => Ok(Self::Relayed),
            "direct" => Ok(Self::Direct),
            "lan" => Ok(Self::Lan),
            name if !name.is_empty() && name.len() <= 63 && name.chars().all(is_part) => {
                Ok(Self::Name(name.to_owned()))
            }
            _ => Err(NoFilter),
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "down",
            Self::Relayed => "relayed",
            Self::Direct => "direct",
            Self::Lan => "lan",
            Self::Name(pattern) => pattern,
        })
    }
}

impl Filter {
    /// Whether a peer is meant.
    pub(in crate::cli::node) fn is_of(&self, peer: &Peer) -> bool {
        let by = |path| peer.is_connected() && peer.path == path;
        match self {
            Self::Down => !peer.is_connected() && !peer.rests(),
            Self::Relayed => by("relay"),
            Self::Direct => by("direct"),
            Self::Lan => by("lan"),
            Self::Name(pattern) => is_like(pattern.as_bytes(), peer.name.as_bytes()),
        }
    }
}

/// Whether a name is like a pattern. The time is at most the product of their lengths.
fn is_like(mut pattern: &[u8], mut name: &[u8]) -> bool {
    // Where to go on after the last `*`, which then stands for one character more.
    let mut again: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern.split_first(), name.split_first()) {
            (Some((b'*', rest)), _) => {
                (pattern, again) = (rest, Some((rest, name)));
                continue;
            }
            (Some((p, pattern_rest)), Some((n, name_rest))) if *p == b'?' || p == n => {
                (pattern, name) = (pattern_rest, name_rest);
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        match again.and_then(|(rest, from)| Some((rest, from.split_first()?.1))) {
            Some((rest, from)) => {
                (pattern, name) = (rest, from);
                again = Some((rest, from));
            }
            None => return false,
        }
    }
}

/// The order of the peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// By name.
    Name,
    /// Those first that are down, then those through a relay, then the others.
    State,
    /// The slowest first.
    Rtt,
    /// The oldest handshake first.
    Handshake,
    /// The most traffic first.
    Traffic,
}

impl Sort {
    /// How two peers follow each other.
    pub(in crate::cli::node) fn order(self, a: &Peer, b: &Peer) -> Ordering {
        let most = |a: Option<f64>, b: Option<f64>| {
            let of = |value: Option<f64>| value.unwrap_or(-1.0);
            of(b).total_cmp(&of(a))
        };
        let by = match self {
            Self::Name => Ordering::Equal,
            Self::State => rank(a).cmp(&rank(b)),
            Self::Rtt => most(a.rtt_ms, b.rtt_ms),
            Self::Handshake => most(a.handshake_age_s, b.handshake_age_s),
            Self::Traffic => traffic(b).cmp(&traffic(a)),
        };
        by.then_with(|| a.name.cmp(&b.name))
    }
}

fn traffic(peer: &Peer) -> u64 {
    peer.rx_bytes.saturating_add(peer.tx_bytes)
}

fn rank(peer: &Peer) -> u8 {
    match (peer.is_connected(), peer.managed, peer.path.as_str()) {
        _ if peer.rests() => 5,
        (false, true, _) => 0,
        (false, false, _) => 1,
        (true, _, "relay") => 2,
        (true, _, "direct") => 3,
        (true, ..) => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::node::status::sample;

    #[test]
    fn a_pattern_stands_for_the_names_that_are_like_it() {
        let like = |pattern: &str, name: &str| is_like(pattern.as_bytes(), name.as_bytes());
        for (pattern, name) in [
            ("nas", "nas"),
            ("*", "nas"),
            ("n*", "n"),
            ("*-oslo-*", "a-oslo-b-oslo-3"),
            ("host-??", "host-07"),
            ("*a*b*", "xaxxbx"),
        ] {
            assert!(like(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("nas", "nas2"),
            ("?", ""),
            ("*-oslo", "oslo"),
            ("a*b", "abc"),
        ] {
            assert!(!like(pattern, name), "{pattern} {name}");
        }
        let long = format!("{}b", "*a".repeat(31));
        assert!(!like(&long, &"a".repeat(63)));
    }

    #[test]
    fn a_filter_takes_the_peers_that_it_names() {
        let peers = sample::mesh(61).core.peers;
        let count = |word: &str| {
            let filter: Filter = word.parse().unwrap();
            peers.iter().filter(|peer| filter.is_of(peer)).count()
        };
        let words = ["direct", "relayed", "lan", "down"];
        assert_eq!(words.map(count).iter().sum::<usize>(), 60);
        assert!(words.iter().all(|word| count(word) > 0));
        assert!((1..60).contains(&count("oslo-*")), "{}", count("oslo-*"));
        assert!("two words".parse::<Filter>().is_err());
    }

    #[test]
    fn an_order_begins_with_what_an_operator_looks_for() {
        let mut peers = sample::mesh(61).core.peers;
        peers.sort_by(|a, b| Sort::State.order(a, b));
        assert!(peers.first().unwrap().is_down());
        peers.sort_by(|a, b| Sort::Rtt.order(a, b));
        assert!(peers.is_sorted_by(|a, b| a.rtt_ms >= b.rtt_ms));
        assert_eq!(peers.last().unwrap().rtt_ms, None);
        peers.sort_by(|a, b| Sort::Name.order(a, b));
        assert!(peers.is_sorted_by(|a, b| a.name <= b.name));
    }
}
