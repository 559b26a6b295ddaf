//! The words for each situation. `BLESS=1 cargo test -p natpunch --lib causes` writes the snapshot.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_core::{
    CandidateStatus, Filtering, LocalStatus, NatStatus, NotProbed, PeerState, PortPattern,
    ProbeStatus, PunchStatus,
};
use natpunch_types::{LocalSocket, Mapping, RelayPolicy, RelayUse, Time};

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

fn candidate(kind: CandidateKind, address: &str) -> CandidateStatus {
    CandidateStatus {
        local: LocalSocket::WireguardPort,
        address: address.parse().unwrap(),
        kind,
        origins: vec!["rv".to_owned()],
        age: Duration::ZERO,
        last_probe: Some(Duration::ZERO),
        probes: 9,
        answers: 0,
        last_answer: None,
        not_probed: None,
        rtt: None,
        answered: false,
        proven: false,
        wireguard_blocked: false,
    }
}

fn proven(kind: CandidateKind, address: &str) -> CandidateStatus {
    CandidateStatus {
        answers: 9,
        last_answer: Some(Duration::ZERO),
        answered: true,
        proven: true,
        ..candidate(kind, address)
    }
}

fn peer(state: PeerState, origins: &[&str]) -> PeerStatus {
    let of = |origin: &&str| CandidateStatus {
        origins: vec![(*origin).to_owned()],
        ..candidate(CandidateKind::Mapped, "198.51.100.7:51820")
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
        relay_policy: RelayPolicy::Auto,
        nat: None,
        relay: RelayUse::Off,
        endpoint: None,
        path_mtu: None,
        rtt: None,
        loss_percent: None,
        handshake_age: None,
        rx_bytes: 0,
        tx_bytes: 0,
        seen_as: None,
        probes_unanswered: false,
        has_twins: false,
        state,
        candidates: origins.iter().map(of).collect(),
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

fn nat(mapping: Mapping, ports: PortPattern) -> NatStatus {
    NatStatus {
        mapping: Some(mapping),
        ports,
        pins: true,
        guesses: true,
        ..NatStatus::default()
    }
}

fn easy() -> NatStatus {
    nat(Mapping::EndpointIndependent, PortPattern::Preserved)
}

fn hard() -> NatStatus {
    nat(Mapping::EndpointDependent, PortPattern::Random)
}

/// A node behind a NAT of its own.
fn own(nat: NatStatus) -> MeshStatus {
    MeshStatus {
        public_key: OWN,
        listen_port: 51_820,
        mapping: nat.mapping,
        nat,
        punch: PunchStatus::default(),
        probes: ProbeStatus::default(),
        local: vec![
            local(CandidateKind::Host, "192.168.1.2:51820"),
            local(CandidateKind::Reflexive, "203.0.113.10:51820"),
        ],
        refuted: Vec::new(),
        peers: Vec::new(),
    }
}

fn local(kind: CandidateKind, address: &str) -> LocalStatus {
    LocalStatus {
        kind,
        address: address.parse().unwrap(),
    }
}

/// A peer behind this NAT that is reached by a relay alone, and was tried for long.
fn relayed(nat: NatStatus) -> PeerStatus {
    PeerStatus {
        path: PathKind::Relay,
        relay: RelayUse::Carry,
        relayed_by: vec!["rv".to_owned()],
        relay_reason: Some("no probe was answered".to_owned()),
        nat: Some(nat),
        candidates: vec![
            candidate(CandidateKind::Host, "192.168.7.2:24511"),
            candidate(CandidateKind::Reflexive, "203.0.113.20:24511"),
            proven(CandidateKind::Relay, "203.0.113.9:51901"),
        ],
        ..peer(PeerState::Connected, &[])
    }
}

fn direct() -> PeerStatus {
    PeerStatus {
        path: PathKind::Direct,
        ..relayed(easy())
    }
}

/// A situation, told by what differs from a pair that meets at a server that works.
struct Scene {
    own: MeshStatus,
    peer: PeerStatus,
    endpoint: Option<&'static str>,
    finders: Vec<Finder>,
    flips: Option<&'static str>,
}

impl Scene {
    fn cause(&self) -> Cause {
        of(&Facts {
            peer: &self.peer,
            own: &self.own,
            named: Named {
                endpoint: self.endpoint,
                own_key: &OWN,
            },
            finders: &self.finders,
            carries_records: self
                .finders
                .iter()
                .any(|finder| finder.kind == Kind::Records),
            flips: self.flips,
        })
    }
}

fn scene(own: MeshStatus, peer: PeerStatus) -> Scene {
    Scene {
        own,
        peer,
        endpoint: None,
        finders: vec![finder("rv", Kind::Records, true)],
        flips: None,
    }
}

fn with(mut peer: PeerStatus, change: impl FnOnce(&mut PeerStatus)) -> PeerStatus {
    change(&mut peer);
    peer
}

/// Each situation with the row that it must lead to.
fn scenes() -> Vec<(&'static str, &'static str, Scene)> {
    let pair = |own_nat, peer| scene(own(own_nat), peer);
    let with_finders = |peer, finders: &[Finder], endpoint| Scene {
        finders: finders.to_vec(),
        endpoint,
        ..scene(own(easy()), peer)
    };
    let rv = |ok| finder("rv", Kind::Records, ok);
    let public = |nat| MeshStatus {
        local: vec![local(CandidateKind::Host, "203.0.113.10:51820")],
        ..own(nat)
    };
    let no_pins = |nat| NatStatus { pins: false, ..nat };
    let lets_in = |nat| NatStatus {
        filtering: Some(Filtering::AddressDependent),
        ..nat
    };
    let in_sequence = || nat(Mapping::EndpointDependent, PortPattern::Sequential);
    let no_guesses = |nat| NatStatus {
        guesses: false,
        ..nat
    };
    let away = |mut peer: PeerStatus| {
        (peer.path, peer.state) = (PathKind::None, unreachable());
        peer.candidates.retain(|c| c.kind != CandidateKind::Relay);
        peer
    };
    let all = |peer: PeerStatus, of: NotProbed| {
        with(peer, |peer| {
            for candidate in &mut peer.candidates {
                candidate.not_probed = Some(of);
            }
        })
    };
    let barred = MeshStatus {
        punch: PunchStatus {
            barred: Some("the punch budget is used up for 240 s".to_owned()),
            ..PunchStatus::default()
        },
        ..own(hard())
    };
    vec![
        ("direct, relay in reserve", "direct", pair(easy(), direct())),
        (
            "direct, no relay",
            "direct",
            pair(easy(), with(direct(), |peer| peer.candidates.truncate(2))),
        ),
        (
            "one LAN",
            "lan",
            pair(easy(), with(direct(), |peer| peer.path = PathKind::Lan)),
        ),
        (
            "direct, the peer's agent has ended",
            "natpunch-silent",
            pair(easy(), with(direct(), |peer| peer.probes_unanswered = true)),
        ),
        (
            "on demand, at rest",
            "at-rest",
            pair(easy(), peer(PeerState::Resting, &[])),
        ),
        (
            "on demand, and nothing wakes it",
            "never-woken",
            with_finders(
                peer(PeerState::Resting, &[]),
                &[finder("go", Kind::Seen, true)],
                None,
            ),
        ),
        (
            "two hosts with one key",
            "two-hosts-answer",
            pair(easy(), with(direct(), |peer| peer.has_twins = true)),
        ),
        (
            "an endpoint that goes to and fro",
            "two-hosts-in-turns",
            Scene {
                flips: Some("WireGuard heard the peer at two places in turns"),
                ..scene(own(easy()), direct())
            },
        ),
        (
            "a name without an address",
            "name-does-not-resolve",
            with_finders(
                peer(waiting(), &[]),
                &[finder("static", Kind::File, false)],
                Some("nas.example:51820"),
            ),
        ),
        (
            "peer never started, or its mesh file lacks this node",
            "nothing-left-for-us",
            with_finders(peer(waiting(), &[]), &[rv(true)], None),
        ),
        (
            "seen by a server, no answer",
            "does-not-know-us",
            with_finders(
                peer(unreachable(), &["go"]),
                &[finder("go", Kind::Seen, true)],
                None,
            ),
        ),
        (
            "plain peer with an endpoint is silent",
            "plain-silent",
            Scene {
                endpoint: Some("router.example:51820"),
                ..pair(
                    easy(),
                    with(peer(unreachable(), &["static"]), |p| p.managed = false),
                )
            },
        ),
        (
            "plain peer that has not called",
            "plain-silent",
            pair(easy(), with(peer(waiting(), &[]), |p| p.managed = false)),
        ),
        (
            "UDP blocked, or a wrong key of the server",
            "servers-silent",
            with_finders(peer(waiting(), &[]), &[rv(false)], None),
        ),
        (
            "two servers, none answers",
            "servers-silent",
            with_finders(
                peer(waiting(), &[]),
                &[rv(false), finder("web", Kind::Records, false)],
                None,
            ),
        ),
        (
            "relay = only, relayed",
            "relay-only",
            pair(
                easy(),
                with(relayed(easy()), |p| p.relay_policy = RelayPolicy::Only),
            ),
        ),
        (
            "relay = only, no relay",
            "relay-only",
            pair(
                easy(),
                with(away(relayed(easy())), |p| {
                    p.relay_policy = RelayPolicy::Only;
                }),
            ),
        ),
        (
            "a firewall knows WireGuard, or another preshared key",
            "wireguard-blocked",
            pair(
                easy(),
                with(relayed(easy()), |p| {
                    p.candidates[1].wireguard_blocked = true
                }),
            ),
        ),
        (
            "another VPN takes the way",
            "behind-other-tunnel",
            pair(easy(), all(away(relayed(easy())), NotProbed::BehindTunnel)),
        ),
        (
            "no family in common",
            "no-common-family",
            pair(
                easy(),
                all(away(relayed(easy())), NotProbed::NoAddressOfFamily),
            ),
        ),
        (
            "a strategy runs",
            "under-way",
            pair(
                hard(),
                with(relayed(easy()), |p| {
                    p.strategy = Some("birthday: opens ports (90 packets)".to_owned());
                }),
            ),
        ),
        (
            "a direct path is about to be used",
            "direct-soon",
            pair(
                easy(),
                with(relayed(easy()), |p| {
                    p.candidates[1] = proven(CandidateKind::Reflexive, "203.0.113.20:24511");
                }),
            ),
        ),
        (
            "answers come, pings do not",
            "heard-one-way",
            pair(
                easy(),
                with(relayed(easy()), |p| {
                    p.candidates[1].answered = true;
                    p.candidates[1].answers = 9;
                }),
            ),
        ),
        (
            "one router, clients kept apart",
            "same-lan",
            pair(
                easy(),
                with(relayed(easy()), |p| {
                    p.candidates[1].address = "203.0.113.10:24511".parse().unwrap();
                }),
            ),
        ),
        (
            "both NATs hard, relayed",
            "both-nats-hard",
            pair(hard(), relayed(hard())),
        ),
        (
            "both NATs hard, no relay",
            "both-nats-hard",
            pair(hard(), away(relayed(hard()))),
        ),
        (
            "both NATs hard, relay = never",
            "both-nats-hard",
            pair(
                hard(),
                with(away(relayed(hard())), |p| {
                    p.relay_policy = RelayPolicy::Never;
                }),
            ),
        ),
        (
            "both NATs hard, one lets in any port, and nothing came of the guesses",
            "firewall",
            pair(hard(), relayed(lets_in(hard()))),
        ),
        (
            "both NATs hard, the peer's lets in any port, no nft there",
            "no-source-ports",
            pair(hard(), relayed(no_pins(lets_in(hard())))),
        ),
        (
            "both NATs hard, this one lets in any port, spray = false there",
            "guesses-forbidden",
            pair(lets_in(hard()), relayed(no_guesses(hard()))),
        ),
        (
            "both NATs hard and in sequence, no nft here",
            "no-source-ports",
            pair(no_pins(in_sequence()), relayed(in_sequence())),
        ),
        (
            "hard NAT with several addresses",
            "hard-nat-several-addresses",
            pair(
                easy(),
                relayed(NatStatus {
                    several_addresses: true,
                    ..hard()
                }),
            ),
        ),
        (
            "spray = false here",
            "guesses-forbidden",
            pair(no_guesses(easy()), relayed(hard())),
        ),
        (
            "spray = false there",
            "guesses-forbidden",
            pair(hard(), relayed(no_guesses(easy()))),
        ),
        (
            "hard NAT here, no nft",
            "no-source-ports",
            pair(no_pins(hard()), relayed(easy())),
        ),
        (
            "hard NAT there, no nft",
            "no-source-ports",
            pair(easy(), relayed(no_pins(hard()))),
        ),
        (
            "budget used up",
            "guesses-barred",
            scene(barred, relayed(easy())),
        ),
        (
            "a moment after the start",
            "just-begun",
            pair(
                easy(),
                with(relayed(easy()), |p| {
                    for candidate in &mut p.candidates {
                        candidate.probes = 1;
                    }
                }),
            ),
        ),
        (
            "firewall before a peer with a public address",
            "firewall",
            pair(
                easy(),
                with(relayed(easy()), |p| {
                    p.candidates[0] = candidate(CandidateKind::Host, "203.0.113.20:24511");
                }),
            ),
        ),
        (
            "firewall before this host, which has a public address",
            "firewall",
            scene(public(easy()), relayed(easy())),
        ),
        (
            "firewall between two easy NATs",
            "firewall",
            pair(easy(), relayed(easy())),
        ),
        (
            "peer went off",
            "peer-silent",
            pair(
                easy(),
                with(away(relayed(easy())), |p| {
                    p.candidates[1].last_answer = Some(Duration::from_secs(240));
                }),
            ),
        ),
        (
            "peer's record is there, and nothing answers",
            "peer-silent",
            pair(easy(), away(relayed(easy()))),
        ),
        (
            "no way to find the peer",
            "no-address",
            with_finders(peer(waiting(), &[]), &[], None),
        ),
        (
            "a server that knows nothing of the peer",
            "no-address",
            with_finders(
                peer(waiting(), &[]),
                &[finder("go", Kind::Seen, true)],
                None,
            ),
        ),
    ]
}

#[test]
fn each_situation_is_told_by_one_sentence_that_says_what_to_change() {
    let mut text = String::new();
    for (name, situation, scene) in scenes() {
        let cause = scene.cause();
        assert_eq!(cause.situation, situation, "{name}: {}", cause.text);
        assert!(!cause.text.contains('\n'), "{}", cause.text);
        let _ = writeln!(text, "{name} [{situation}]\n  {}\n", cause.text);
    }
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/agent/why/causes/situations.txt"
    );
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(file, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(file).unwrap(), text);
}

#[test]
fn every_row_of_the_table_has_a_situation_of_its_own() {
    let mut rows: BTreeMap<&str, u32> = TABLE.iter().map(|row| (row.situation, 0)).collect();
    assert_eq!(rows.len(), TABLE.len(), "a row is there twice");
    for (_, situation, _) in scenes() {
        *rows.get_mut(situation).unwrap() += 1;
    }
    let unseen: Vec<_> = rows.iter().filter(|(_, seen)| **seen == 0).collect();
    assert_eq!(unseen, [(&"unknown", &0)], "rows that nothing leads to");
}

fn cause(peer: &PeerStatus, endpoint: Option<&str>, finders: &[Finder]) -> Option<String> {
    let own = own(easy());
    likely(&Facts {
        peer,
        own: &own,
        named: Named {
            endpoint,
            own_key: &OWN,
        },
        finders,
        carries_records: true,
        flips: None,
    })
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
