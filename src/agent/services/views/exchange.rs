//! How one node sees its path to another, asked and told inside the mesh: the other half of `why`.
//!
//! A datagram of [`LENGTH`] bytes over UDP, port [`PORT`], between the nodes' mesh addresses, each
//! way. Who sent it is known by its source address, which WireGuard lets no other peer use. A node
//! is told nothing but how it is seen itself.
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | `NPVW` |
//! | 4 | 1, the form |
//! | 5 | 1 question, 2 answer |
//! | 6..8 | length of the view, little-endian; 0 in a question |
//! | 8..16 | what the asker chose; the answer has it, too |
//! | 16.. | the view, as JSON; the rest is zero, and ignored |

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use natpunch_types::{Rate, RateBudget, Time, is_unprintable};
use serde::{Deserialize, Serialize};

/// The UDP port on mesh addresses.
pub(crate) const PORT: u16 = 51_898;
/// The length of both kinds, in bytes: an answer is never longer than its question, and both pass an
/// interface of IPv6's least MTU (RFC 8200, 5).
pub(crate) const LENGTH: usize = 1_200;

const MAGIC: [u8; 4] = *b"NPVW";
const FORM: u8 = 1;
const QUESTION: u8 = 1;
const ANSWER: u8 = 2;
const HEADER: usize = 16;

/// Answers to one peer.
const ANSWERS: Rate = Rate::every(Duration::from_millis(500), 4);
/// Most addresses that a view says were tried.
pub(crate) const MOST_TRIED: usize = 6;
/// Longest text of a peer that is shown.
const LONGEST: usize = 400;

/// How a node sees its path to the one that asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerView {
    /// `connected`, or what else the state of the asker is there.
    pub state: String,
    /// The kind of path: `lan`, `direct`, `relay` or `none`.
    pub path: String,
    /// Where it sends to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Round-trip time of the path in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// For how long the path has been in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_s: Option<f64>,
    /// The situation, as a row of the table of causes.
    pub situation: String,
    /// Why the path is what it is, seen from there.
    pub why: String,
    /// The NAT before it, in plain words.
    pub nat: String,
    /// The asker's addresses that it tried, the newest first.
    #[serde(default)]
    pub tried: Vec<Tried>,
}

/// An address of the asker that was tried from there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// The address.
    pub address: String,
    /// How it was found.
    pub kind: String,
    /// Probes sent, and answers to them.
    pub probes: u32,
    /// Answers.
    pub answers: u32,
}

impl PeerView {
    /// The view without what a terminal would obey, and with nothing in it that is longer than a
    /// screen bears: it comes from another machine.
    fn cleaned(self) -> Self {
        let clean = |text: String| -> String {
            let shown = |c: char| if is_unprintable(c) { '\u{fffd}' } else { c };
            text.chars().take(LONGEST).map(shown).collect()
        };
        let tried = self.tried.into_iter().take(MOST_TRIED);
        Self {
            state: clean(self.state),
            path: clean(self.path),
            endpoint: self.endpoint.map(clean),
            situation: clean(self.situation),
            why: clean(self.why),
            nat: clean(self.nat),
            tried: tried
                .map(|tried| Tried {
                    address: clean(tried.address),
                    kind: clean(tried.kind),
                    ..tried
                })
                .collect(),
            ..self
        }
    }

    /// As it is sent: addresses are left out until it fits. `None`: it never does.
    fn encoded(&self) -> Option<Vec<u8>> {
        let mut view = self.clone();
        loop {
            let text = serde_json::to_vec(&view).ok()?;
            if text.len() <= LENGTH - HEADER {
                return Some(text);
            }
            view.tried.pop()?;
        }
    }
}

fn message(kind: u8, nonce: [u8; 8], view: &[u8]) -> [u8; LENGTH] {
    let length = u16::try_from(view.len()).unwrap_or_default();
    let parts: [&[u8]; 5] = [&MAGIC, &[FORM, kind], &length.to_le_bytes(), &nonce, view];
    let mut bytes = [0; LENGTH];
    for (to, from) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    bytes
}

/// A peer that runs natpunch.
#[derive(Debug)]
struct Entry {
    addresses: Vec<IpAddr>,
    /// What it was asked last.
    asked: Option<[u8; 8]>,
    answers: RateBudget,
}

/// What a datagram means.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    /// A peer, by its name, asks how it is seen.
    Question { peer: String, nonce: [u8; 8] },
    /// A peer says how it sees this node.
    Answer { peer: String, view: PeerView },
}

/// Who may ask and who was asked. Time is since boot.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    peers: BTreeMap<String, Entry>,
    by_address: BTreeMap<IpAddr, String>,
}

impl Exchange {
    /// The peers that run natpunch from now on, by name.
    pub(crate) fn set_peers(&mut self, peers: impl Iterator<Item = (String, Vec<IpAddr>)>) {
        let mut before = std::mem::take(&mut self.peers);
        self.by_address.clear();
        for (name, addresses) in peers {
            let own = |address: &IpAddr| (*address, name.clone());
            self.by_address.extend(addresses.iter().map(own));
            let entry = match before.remove(&name) {
                Some(entry) => Entry { addresses, ..entry },
                None => Entry {
                    addresses,
                    asked: None,
                    answers: RateBudget::new(ANSWERS),
                },
            };
            self.peers.insert(name, entry);
        }
    }

    /// The question to a peer, and where it goes; `None` if there is no such node.
    pub(crate) fn ask(
        &mut self,
        peer: &str,
        nonce: [u8; 8],
    ) -> Option<(Vec<IpAddr>, [u8; LENGTH])> {
        let entry = self.peers.get_mut(peer)?;
        entry.asked = Some(nonce);
        Some((entry.addresses.clone(), message(QUESTION, nonce, &[])))
    }

    /// The answer to a question; `None` if the view can't be told.
    pub(crate) fn answer(nonce: [u8; 8], view: &PeerView) -> Option<[u8; LENGTH]> {
        Some(message(ANSWER, nonce, &view.encoded()?))
    }

    /// Takes a datagram from an address inside the mesh. What is malformed, of a stranger, or more
    /// than a peer may ask means nothing.
    pub(crate) fn handle(&mut self, source: IpAddr, bytes: &[u8], now: Time) -> Option<Heard> {
        let peer = self.by_address.get(&source)?.clone();
        let entry = self.peers.get_mut(&peer)?;
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let ([form, kind, low, high], rest) = rest.split_first_chunk::<4>()?;
        let (nonce, rest) = rest.split_first_chunk::<8>()?;
        if *magic != MAGIC || *form != FORM {
            return None;
        }
        match *kind {
            QUESTION => entry.answers.take(now).then_some(Heard::Question {
                peer,
                nonce: *nonce,
            }),
            // An answer to something else, or the second one to the same.
            ANSWER if entry.asked != Some(*nonce) => None,
            ANSWER => {
                let length = usize::from(u16::from_le_bytes([*low, *high]));
                let view: PeerView = serde_json::from_slice(rest.get(..length)?).ok()?;
                entry.asked = None;
                let view = view.cleaned();
                Some(Heard::Answer { peer, view })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 77, 0, n])
    }

    fn exchange() -> Exchange {
        let mut exchange = Exchange::default();
        let peers = [1, 2].map(|n| (format!("p{n}"), vec![address(n)]));
        exchange.set_peers(peers.into_iter());
        exchange
    }

    fn view() -> PeerView {
        PeerView {
            state: "connected".to_owned(),
            path: "relay".to_owned(),
            endpoint: Some("203.0.113.9:51901".to_owned()),
            rtt_ms: Some(3.5),
            since_s: Some(12.0),
            situation: "both-nats-hard".to_owned(),
            why: "both NATs give every destination another port".to_owned(),
            nat: "hard: another port for every destination, at random".to_owned(),
            tried: Vec::new(),
        }
    }

    fn tried(n: usize) -> Vec<Tried> {
        let one = |n| Tried {
            address: format!("[2001:db8:1234:5678:9abc:def0:1234:{n:x}]:51820"),
            kind: "peer-reflexive".to_owned(),
            probes: 1_000_000,
            answers: 1_000_000,
        };
        (0..n).map(one).collect()
    }

    #[test]
    fn who_asks_is_told_how_it_is_seen_in_as_many_bytes() {
        let (mut asker, mut answerer) = (exchange(), exchange());
        let (to, question) = asker.ask("p1", [9; 8]).unwrap();
        assert_eq!(to, [address(1)]);
        let heard = answerer.handle(address(2), &question, Time::ZERO).unwrap();
        let Heard::Question { peer, nonce } = heard else {
            panic!("{heard:?}");
        };
        assert_eq!(peer, "p2");
        let answer = Exchange::answer(nonce, &view()).unwrap();
        assert_eq!(answer.len(), question.len());
        let heard = asker.handle(address(1), &answer, Time::ZERO);
        let (peer, view) = ("p1".to_owned(), view());
        assert_eq!(heard, Some(Heard::Answer { peer, view }));
        assert_eq!(
            asker.handle(address(1), &answer, Time::ZERO),
            None,
            "the second answer is to no question"
        );
    }

    #[test]
    fn an_answer_counts_only_from_whom_and_for_what_was_asked() {
        let mut asker = exchange();
        asker.ask("p1", [9; 8]).unwrap();
        let answer = |nonce| Exchange::answer(nonce, &view()).unwrap();
        for (source, nonce) in [(2, [9; 8]), (1, [8; 8]), (77, [9; 8])] {
            let heard = asker.handle(address(source), &answer(nonce), Time::ZERO);
            assert_eq!(heard, None, "{source}");
        }
        assert!(
            asker
                .handle(address(1), &answer([9; 8]), Time::ZERO)
                .is_some()
        );
    }

    #[test]
    fn strangers_get_no_answer_and_a_peer_only_so_many() {
        let mut answerer = exchange();
        let question = message(QUESTION, [1; 8], &[]);
        assert_eq!(answerer.handle(address(9), &question, Time::ZERO), None);
        let mut answers = |at| {
            let heard = (0..100).filter_map(|_| answerer.handle(address(1), &question, at));
            heard.count()
        };
        assert_eq!(answers(Time::ZERO), 4);
        assert_eq!(answers(Time::from_millis(1_000)), 2);
    }

    #[test]
    fn a_view_that_is_too_long_is_told_with_fewer_addresses() {
        let long = PeerView {
            why: "x".repeat(600),
            tried: tried(MOST_TRIED),
            ..view()
        };
        let mut asker = exchange();
        asker.ask("p1", [9; 8]).unwrap();
        let answer = Exchange::answer([9; 8], &long).unwrap();
        match asker.handle(address(1), &answer, Time::ZERO) {
            Some(Heard::Answer { view, .. }) => {
                assert!(!view.tried.is_empty() && view.tried.len() < MOST_TRIED);
                assert_eq!(view.why.len(), LONGEST);
            }
            other => panic!("{other:?}"),
        }
        let longest = PeerView {
            why: "x".repeat(LENGTH),
            ..view()
        };
        assert_eq!(Exchange::answer([9; 8], &longest), None);
    }

    #[test]
    fn nothing_of_a_peer_steers_the_terminal() {
        let hostile = PeerView {
            why: "\u{1b}[2J\u{202e}gnp".to_owned(),
            ..view()
        };
        let mut asker = exchange();
        asker.ask("p1", [9; 8]).unwrap();
        let answer = Exchange::answer([9; 8], &hostile).unwrap();
        let Some(Heard::Answer { view, .. }) = asker.handle(address(1), &answer, Time::ZERO) else {
            panic!("no answer");
        };
        assert_eq!(view.why, "\u{fffd}[2J\u{fffd}gnp");
    }

    #[test]
    fn what_is_malformed_means_nothing() {
        let mut asker = exchange();
        asker.ask("p1", [9; 8]).unwrap();
        let answer = Exchange::answer([9; 8], &view()).unwrap();
        for at in [0, 3, 4, 5] {
            let mut wrong = answer;
            wrong[at] ^= 0x80;
            assert_eq!(asker.handle(address(1), &wrong, Time::ZERO), None, "{at}");
        }
        for length in [0, 1, HEADER, LENGTH - 1] {
            assert_eq!(
                asker.handle(address(1), &answer[..length], Time::ZERO),
                None
            );
        }
        let mut cut = answer;
        cut[6] -= 1;
        assert_eq!(asker.handle(address(1), &cut, Time::ZERO), None);
        cut[6..8].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(asker.handle(address(1), &cut, Time::ZERO), None);
    }
}
