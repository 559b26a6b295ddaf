//! What most likely keeps a peer away, from what this node can know. Pure: facts in, text out.
//!
//! The core says what was tried and what did not answer. Why that is so often lies in what it does
//! not see: the mesh file, the discovery instances, and where WireGuard saw the peer over time.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_core::{CandidateStatus, PeerState, PeerStatus};
use natpunch_types::{CandidateKind, PeerKey, Time};

/// Origins of candidates that are no discovery instance: the peer itself, authenticated, and the
/// device, which heard from the peer there. Who was heard knows this node's key.
const HEARD: [&str; 2] = ["peer", "wireguard"];

/// A discovery instance, as far as it tells of a cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finder {
    pub(super) name: String,
    /// Whether it works, and what it says of itself.
    pub(super) ok: bool,
    pub(super) note: String,
    pub(super) kind: Kind,
}

/// What a candidate of an instance proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Endpoints of the mesh file: nothing about the peer.
    File,
    /// Records that the peer sealed to this node's key: its mesh file has this node.
    Records,
    /// Where a server saw the peer: it runs, and may not know this node.
    Seen,
}

/// What the mesh file says of a peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named<'a> {
    pub(super) endpoint: Option<&'a str>,
    /// This node's own public key, which the peer's mesh file must have.
    pub(super) own_key: &'a PeerKey,
}

/// The most likely cause, if there is one that the peer's state does not say already.
pub(super) fn likely(peer: &PeerStatus, named: Named<'_>, finders: &[Finder]) -> Option<String> {
    let is_unreachable = match &peer.state {
        PeerState::Connected | PeerState::Punching => return None,
        PeerState::Waiting { .. } => false,
        PeerState::Unreachable { .. } => true,
    };
    let has_from = |kind: Kind| {
        let mut origins = peer.candidates.iter().flat_map(|c| c.origins.iter());
        origins.any(|origin| finders.iter().any(|f| f.kind == kind && f.name == *origin))
    };
    if let Some(text) = unresolved(named, finders).filter(|_| !has_from(Kind::File)) {
        return Some(text);
    }
    // A plain peer's own software says nothing of whom it knows; the core names that cause.
    if !peer.managed || was_heard(peer) || has_from(Kind::Records) {
        return None;
    }
    let key = named.own_key;
    let ask = format!(
        "`natpunch status` on the peer tells; its mesh file must have this node with the public key {key}"
    );
    let meeting: Vec<&str> = finders
        .iter()
        .filter(|finder| finder.kind == Kind::Records && finder.ok)
        .map(|finder| finder.name.as_str())
        .collect();
    if !meeting.is_empty() {
        return Some(format!(
            "{} works, and the peer has left nothing for this node there: its natpunch does not run, uses other \
             servers, or has a mesh file without this node; {ask}",
            meeting.join(", ")
        ));
    }
    if is_unreachable && (has_from(Kind::Seen) || has_from(Kind::File)) {
        let seen = if has_from(Kind::Seen) {
            "a server has seen the peer lately, so it runs"
        } else {
            "nothing was ever heard of the peer but the endpoint in this mesh file"
        };
        return Some(format!(
            "{seen}: if no firewall is in between, its mesh file does not have this node; {ask}"
        ));
    }
    None
}

/// Whether the peer itself was heard, which proves that it knows this node.
fn was_heard(peer: &PeerStatus) -> bool {
    let mut origins = peer.candidates.iter().flat_map(|c| c.origins.iter());
    peer.handshake_age.is_some() || origins.any(|origin| HEARD.contains(&origin.as_str()))
}

/// Whether the endpoint in the file is a name, of which no address is known.
fn unresolved(named: Named<'_>, finders: &[Finder]) -> Option<String> {
    let endpoint = named.endpoint?;
    let file = finders.iter().find(|finder| finder.kind == Kind::File)?;
    if endpoint.parse::<SocketAddr>().is_ok() {
        return None;
    }
    let why = match file.ok {
        true => String::new(),
        false => format!(" ({}: {})", file.name, file.note),
    };
    Some(format!(
        "its endpoint {endpoint} in the mesh file has no address: the name does not resolve on this host{why}"
    ))
}

/// What is wrong where two hosts answer probes with the peer's key.
pub(super) fn twins(peer: &PeerStatus) -> Option<String> {
    let found = || {
        format!(
            "two hosts answer as {} in turns: they run with its private key; give one of them a key and an entry \
             of its own",
            peer.name
        )
    };
    peer.has_twins.then(found)
}

/// In this time…
const FLIP_WINDOW: Duration = Duration::from_secs(60);
/// …so many moves between no more than two places are two hosts: one that roams goes on to new
/// places, and a path that is tried comes back once.
const FLIPS: usize = 6;

/// Where WireGuard saw each peer, lately.
#[derive(Debug, Default)]
pub(super) struct Flips(BTreeMap<PeerKey, Moves>);

#[derive(Debug)]
struct Moves {
    last: SocketAddr,
    /// When it moved, and where to; at most [`FLIPS`] of them.
    moves: VecDeque<(Time, SocketAddr)>,
}

impl Flips {
    /// Takes where the device has its peers at `now`, since boot. Peers that are gone are forgotten.
    pub(super) fn saw(&mut self, endpoints: &BTreeMap<PeerKey, SocketAddr>, now: Time) {
        self.0.retain(|key, _| endpoints.contains_key(key));
        for (key, endpoint) in endpoints {
            let peer = self.0.entry(*key).or_insert_with(|| Moves {
                last: *endpoint,
                moves: VecDeque::new(),
            });
            if peer.last == *endpoint {
                continue;
            }
            peer.last = *endpoint;
            if peer.moves.len() == FLIPS {
                peer.moves.pop_front();
            }
            peer.moves.push_back((now, *endpoint));
        }
    }

    /// Why the peer's endpoint goes to and fro, if it does. Between a relay and another place it does
    /// so by natpunch's own choice.
    pub(super) fn cause(&self, peer: &PeerStatus, now: Time) -> Option<String> {
        let moves = &self.0.get(&peer.key)?.moves;
        let oldest = moves.front().filter(|_| moves.len() == FLIPS)?;
        if now.since(oldest.0) > FLIP_WINDOW {
            return None;
        }
        let mut places: Vec<SocketAddr> = moves.iter().map(|(_, place)| *place).collect();
        places.sort_unstable();
        places.dedup();
        let [a, b] = places.as_slice() else {
            return None;
        };
        let is_relay = |candidate: &CandidateStatus| {
            candidate.kind == CandidateKind::Relay && places.contains(&candidate.address)
        };
        if peer.candidates.iter().any(is_relay) {
            return None;
        }
        Some(format!(
            "WireGuard heard the peer at {a} and {b} in turns, {FLIPS} times within a minute: two hosts run with its \
             private key, and each takes the other's packets; give one of them a key and an entry of its own"
        ))
    }
}

#[cfg(test)]
mod tests {
    use natpunch_core::PathKind;
    use natpunch_types::{LocalSocket, RelayUse};

    use super::*;

    const OWN: PeerKey = PeerKey::from_bytes([7; 32]);

    fn finder(name: &str, kind: Kind, ok: bool) -> Finder {
        Finder {
            name: name.to_owned(),
            ok,
            note: format!("{name} says so"),
            kind,
        }
    }

    fn peer(state: PeerState, origins: &[&str]) -> PeerStatus {
        let candidate = |origin: &&str| CandidateStatus {
            local: LocalSocket::WireguardPort,
            address: "198.51.100.7:51820".parse().unwrap(),
            kind: CandidateKind::Mapped,
            origins: vec![(*origin).to_owned()],
            age: Duration::ZERO,
            last_probe: None,
            rtt: None,
            proven: false,
            wireguard_blocked: false,
        };
        PeerStatus {
            key: PeerKey::from_bytes([1; 32]),
            name: "b".to_owned(),
            managed: true,
            path: PathKind::None,
            local: None,
            relayed_by: Vec::new(),
            relay_reason: None,
            strategy: None,
            relay: RelayUse::Off,
            endpoint: None,
            rtt: None,
            handshake_age: None,
            rx_bytes: 0,
            tx_bytes: 0,
            seen_as: None,
            probes_unanswered: false,
            has_twins: false,
            state,
            candidates: origins.iter().map(candidate).collect(),
        }
    }

    fn waiting() -> PeerState {
        PeerState::Waiting {
            reason: "no address".to_owned(),
        }
    }

    fn unreachable() -> PeerState {
        PeerState::Unreachable {
            reason: "no answer".to_owned(),
            retry_in: Duration::from_secs(1),
        }
    }

    fn cause(peer: &PeerStatus, endpoint: Option<&str>, finders: &[Finder]) -> Option<String> {
        let named = Named {
            endpoint,
            own_key: &OWN,
        };
        likely(peer, named, finders)
    }

    #[test]
    fn an_endpoint_whose_name_does_not_resolve_is_named() {
        let file = finder("static", Kind::File, false);
        let text = cause(
            &peer(waiting(), &[]),
            Some("nas.example:51820"),
            std::slice::from_ref(&file),
        )
        .unwrap();
        assert!(
            text.contains("nas.example:51820") && text.contains("static says so"),
            "{text}"
        );
        let resolved = peer(unreachable(), &["static"]);
        let text = cause(&resolved, Some("nas.example:51820"), &[file]).unwrap();
        assert!(!text.contains("does not resolve"), "{text}");
    }

    #[test]
    fn a_peer_that_left_no_record_for_this_node_may_not_have_it_in_its_file() {
        let finders = [finder("rv", Kind::Records, true)];
        let text = cause(&peer(waiting(), &[]), None, &finders).unwrap();
        for part in ["rv works", "without this node", &OWN.to_string()] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // It sealed a record to this node's key, so it has it.
        assert_eq!(cause(&peer(unreachable(), &["rv"]), None, &finders), None);
        // While the server is not reached, nothing follows from its silence.
        let down = [finder("rv", Kind::Records, false)];
        assert_eq!(cause(&peer(waiting(), &[]), None, &down), None);
    }

    #[test]
    fn a_peer_that_a_server_saw_and_that_answers_nothing_may_not_know_this_node() {
        let go = [finder("go", Kind::Seen, true)];
        let text = cause(&peer(unreachable(), &["go"]), None, &go).unwrap();
        assert!(
            text.contains("its mesh file does not have this node"),
            "{text}"
        );
        // Who was heard knows this node, so that is not why.
        for heard in HEARD {
            let peer = peer(unreachable(), &["go", heard]);
            assert_eq!(cause(&peer, None, &go), None, "{heard}");
        }
        assert_eq!(cause(&peer(PeerState::Punching, &["go"]), None, &go), None);
    }

    #[test]
    fn two_hosts_that_answer_with_one_key_are_said_to() {
        let one = peer(PeerState::Connected, &[]);
        assert_eq!(twins(&one), None);
        let two = PeerStatus {
            has_twins: true,
            ..one
        };
        let text = twins(&two).unwrap();
        assert!(text.contains("two hosts answer as b"), "{text}");
    }

    #[test]
    fn two_hosts_with_one_key_show_in_an_endpoint_that_goes_to_and_fro() {
        let peer = peer(PeerState::Connected, &[]);
        let place = |n: u8| SocketAddr::from(([198, 51, 100, n], 51820));
        let play = |places: &dyn Fn(u64) -> u8, interval: u64| {
            let mut flips = Flips::default();
            let last = 10 * interval;
            for n in 0..=10 {
                let at = Time::from_millis(n * interval * 1_000);
                flips.saw(&BTreeMap::from([(peer.key, place(places(n)))]), at);
            }
            flips.cause(&peer, Time::from_millis(last * 1_000))
        };
        let text = play(&|n| u8::try_from(n % 2).unwrap(), 5).unwrap();
        assert!(
            text.contains("198.51.100.0:51820 and 198.51.100.1:51820"),
            "{text}"
        );
        assert_eq!(play(&|n| u8::try_from(n).unwrap(), 5), None, "it roams");
        assert_eq!(play(&|n| u8::try_from(n % 2).unwrap(), 60), None, "rarely");
        assert_eq!(play(&|n| u8::from(n > 5), 5), None, "it moved once");
    }
}
