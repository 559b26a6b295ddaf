//! Kinds of changes, an honest and a hostile member, with and without a login through it: whose
//! word counts. And the caps.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{Version, address, login, moment, net, peer, route};
use natpunch_rollout::{
    Answers, Login, Notice, Output, Phase, Recorded, Refused, Rollout, Settings, Start, refusals,
};
use natpunch_types::{Consent, PeerKey, Time};

/// How a change ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Stays,
    Undone,
    Refused(Consent),
}
use End::{Refused as R, Stays, Undone};

/// A machine that runs a version.
fn running(version: &Version) -> Rollout<Version> {
    let start = Start {
        file: Arc::new(version.clone()),
        recorded: None,
        is_ours: true,
    };
    let resumed = Rollout::resume(Settings::default(), start, || None, Time::ZERO).unwrap();
    resumed.rollout
}

/// Makes a change in a mesh where all are alive and answer; `silent` answer nothing afterwards.
fn end_of(before: &Version, after: &Version, logins: &[Login], silent: &[u8]) -> End {
    let mut rollout = running(before);
    let mut now = Time::from_millis(1000);
    let alive: Vec<u8> = (1..=9).collect();
    let begun = rollout.handle_version(Arc::new(after.clone()), moment(&alive, logins), now);
    match begun {
        Err(Refused::Caps(needs)) => return R(needs[0].consent),
        other => other.unwrap(),
    }
    let mut is_made = false;
    let mut undone = false;
    for _ in 0..10_000 {
        while let Some(output) = rollout.poll_output() {
            match output {
                Output::Ask(ask) => {
                    let lives = |ip: &std::net::IpAddr| {
                        let is_silent = silent.iter().any(|number| address(*number) == *ip);
                        // A wrong address is nobody's.
                        let exists = alive.iter().any(|number| address(*number) == *ip);
                        exists && !(is_made && is_silent)
                    };
                    let answers = Answers {
                        small: ask.small.iter().copied().filter(lives).collect(),
                        full: ask.full.iter().copied().filter(lives).collect(),
                    };
                    now += Duration::from_millis(50);
                    rollout.handle_answers(ask.id, &answers, now);
                }
                Output::Write { id, .. } => rollout.handle_written(id, Ok(()), now),
                Output::Apply { id, .. } => rollout.handle_applied(id, Ok(()), now),
                Output::Follow(version) => is_made = version.hash == after.hash,
                Output::Tell(Notice::Undone { .. }) => undone = true,
                Output::Tell(_) | Output::Reload => {}
            }
        }
        if rollout.phase() == Phase::Steady {
            let stays = rollout.good().hash == after.hash;
            assert_ne!(stays, undone);
            return if stays { Stays } else { Undone };
        }
        now = rollout.poll_timeout().unwrap().max(now);
        rollout.handle_timeout(now);
    }
    panic!("the change does not end");
}

fn mesh() -> Version {
    let mut peers: Vec<_> = (1..=4).map(peer).collect();
    route(&mut peers[0], "172.20.1.0/24");
    Version::new(1, peers)
}

/// A kind of change that is about peer 1.
type Kind = fn(&mut Version);

#[test]
fn what_a_running_mesh_cannot_change_is_refused_by_name() {
    let fixed: [(&str, Kind); 3] = [
        ("the interface's name", |v| {
            v.facts.node.interface = "wg1".into()
        }),
        ("the backend", |v| v.facts.node.backend = "kernel".into()),
        ("the name of the mesh", |v| {
            v.facts.node.mesh = "other".into()
        }),
    ];
    for (what, change) in fixed {
        let before = mesh();
        let mut rollout = running(&before);
        let after = Arc::new(before.with(2, change));
        let refused = rollout.handle_version(after, moment(&[1], &[]), Time::from_millis(1));
        let Err(Refused::Fixed(said)) = refused else {
            panic!("{what}: not refused");
        };
        assert_eq!(said, what);
        assert_eq!(rollout.good().hash, before.hash);
    }
}

#[test]
fn who_a_change_is_directed_against_has_no_word_in_it() {
    let removal = |v: &mut Version| v.facts.peers.retain(|peer| peer.name != "p1");
    let route_loss = |v: &mut Version| {
        v.peer(1).routes.clear();
        v.peer(1).allowed_ips.pop();
    };
    let rights = |v: &mut Version| v.peer(1).critical = false;
    let word = R(Consent::OperatorRemoval);
    // The kind; honest without and with a login, hostile without and with one.
    let kinds: [(&str, Kind, [End; 4]); 7] = [
        ("removal", removal, [Stays, word, Stays, word]),
        ("a route is taken", route_loss, [Stays, Stays, Stays, Stays]),
        (
            "it is no longer critical",
            rights,
            [Stays, Stays, Stays, Stays],
        ),
        // What follows is not directed against it: it has to follow, or is not reached any more.
        (
            "another key",
            |v| v.peer(1).key = PeerKey::from_bytes([99; 32]),
            [Stays, Stays, Undone, Undone],
        ),
        (
            "another relay policy",
            |v| v.peer(1).relay = natpunch_types::RelayPolicy::Never,
            [Stays, Stays, Undone, Undone],
        ),
        // Of all, one may be lost, unless somebody is logged in through it.
        (
            "the node's MTU",
            |v| v.facts.node.mtu = 1300,
            [Stays, Stays, Stays, Undone],
        ),
        (
            "the node's STUN servers",
            |v| v.facts.node.stun = vec!["stun.example.org:3478".into()],
            [Stays, Stays, Stays, Undone],
        ),
    ];
    for (name, kind, expected) in kinds {
        let mut before = mesh();
        before.peer(1).critical = name == "it is no longer critical";
        let after = before.with(2, kind);
        let found = [(false, false), (false, true), (true, false), (true, true)].map(
            |(hostile, logged_in)| {
                let logins: &[Login] = if logged_in {
                    &[login("10.77.0.1")]
                } else {
                    &[]
                };
                let silent: &[u8] = if hostile { &[1] } else { &[] };
                end_of(&before, &after, logins, silent)
            },
        );
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn an_address_is_taken_without_the_members_word_and_moved_only_with_it() {
    let mut before = mesh();
    before.peer(1).addresses.push(address(9));
    before.peer(1).allowed_ips.push(address(9).into());
    let taken = before.with(2, |v| {
        v.peer(1).addresses.pop();
        v.peer(1).allowed_ips.pop();
    });
    assert_eq!(end_of(&before, &taken, &[], &[1]), Stays);
    let moved = mesh().with(2, |v| {
        v.peer(1).addresses = vec![address(77)];
        v.peer(1).allowed_ips[0] = address(77).into();
    });
    assert_eq!(
        end_of(&mesh(), &moved, &[login("10.77.0.1")], &[]),
        Undone,
        "nobody has the new address"
    );
}

#[test]
fn the_network_that_a_login_comes_from_is_not_taken_from_its_peer() {
    let after = mesh().with(2, |v| {
        v.peer(1).routes.clear();
        v.peer(1).allowed_ips.pop();
    });
    let behind = [login("172.20.1.7")];
    assert_eq!(
        end_of(&mesh(), &after, &behind, &[]),
        R(Consent::OperatorRemoval)
    );
    let needs = refusals(Some(&mesh().facts), &after.facts, &behind, &[]);
    let text = needs[0].to_string();
    assert!(
        text.contains("p1 (`root` from 172.20.1.7)") && text.contains("`operator-removal`"),
        "{text}"
    );
    let mut allowed = after;
    allowed.facts.rules.allow = vec![Consent::OperatorRemoval];
    assert_eq!(end_of(&mesh(), &allowed, &behind, &[1]), Stays);
}

#[test]
fn a_login_is_known_by_the_peers_name_and_not_by_an_exit_nodes_route() {
    let gone = mesh().with(2, |v| v.facts.peers.retain(|peer| peer.name != "p1"));
    for (from, expected) in [
        ("p1", R(Consent::OperatorRemoval)),
        ("p1.home", R(Consent::OperatorRemoval)),
        ("::ffff:10.77.0.1", R(Consent::OperatorRemoval)),
        ("203.0.113.7", Stays),
        ("p1.example.org", Stays),
        ("", Stays),
    ] {
        let mut before = mesh();
        before.peer(1).allowed_ips.push(net("0.0.0.0/0"));
        assert_eq!(
            end_of(&before, &gone, &[login(from)], &[]),
            expected,
            "{from}"
        );
    }
}

#[test]
fn a_hostile_member_can_not_keep_a_commit_that_removes_it_from_doing_the_rest() {
    let after = mesh().with(2, |v| {
        v.facts.peers.retain(|peer| peer.name != "p1");
        v.facts.node.mtu = 1300;
        route(v.peer(2), "172.20.2.0/24");
    });
    assert_eq!(end_of(&mesh(), &after, &[], &[1]), Stays);
    assert_eq!(
        end_of(&mesh(), &after, &[], &[1, 2]),
        Undone,
        "the one that got the route is lost"
    );
}

fn word(before: Option<&Version>, after: &Version) -> Option<&'static str> {
    let before = before.map(|before| &before.facts);
    let needs = refusals(before, &after.facts, &[], &[]);
    needs.first().map(|need| need.consent.word())
}

#[test]
fn routes_that_amount_to_a_default_route_ask_for_the_word_also_at_the_first_apply() {
    for (routes, expected) in [
        (&["0.0.0.0/1", "128.0.0.0/1"][..], Some("default-route")),
        (&["0.0.0.0/2", "64.0.0.0/2"], Some("default-route")),
        (&["128.0.0.0/1"], Some("default-route")),
        (&["::/1"], Some("default-route")),
        (&["2000::/4"], Some("default-route")),
        (&["10.0.0.0/8", "172.16.0.0/12", "fd00::/8"], None),
    ] {
        let after = mesh().with(2, |v| {
            for net in routes {
                route(v.peer(2), net);
            }
        });
        assert_eq!(word(Some(&mesh()), &after), expected, "{routes:?}");
        assert_eq!(word(None, &after), expected, "{routes:?} at first");
        assert_eq!(word(Some(&after), &after), None, "it was there before");
    }
}

#[test]
fn exit_node_in_the_file_is_its_own_word_at_the_first_apply_and_not_later() {
    let after = mesh().with(2, |v| v.peer(2).allowed_ips.push(net("0.0.0.0/0")));
    assert_eq!(word(None, &after), None);
    assert_eq!(word(Some(&mesh()), &after), Some("default-route"));
}

#[test]
fn a_first_version_that_needs_a_word_is_not_begun() {
    let halves = mesh().with(1, |v| route(v.peer(1), "128.0.0.0/1"));
    let start = |allow: &[Consent], is_ours| {
        let settings = Settings {
            allow: allow.to_vec(),
            ..Settings::default()
        };
        let start = Start {
            file: Arc::new(halves.clone()),
            recorded: None,
            is_ours,
        };
        Rollout::resume(settings, start, || None, Time::ZERO).map(|_| ())
    };
    assert!(matches!(start(&[], false), Err(Refused::Caps(_))));
    assert_eq!(start(&[Consent::DefaultRoute], false), Ok(()));
    assert_eq!(start(&[], true), Ok(()), "it ran before");
}

#[test]
fn a_host_that_was_off_takes_another_version_as_any_change() {
    let after = mesh().with(2, |v| route(v.peer(1), "128.0.0.0/1"));
    let start = Start {
        file: Arc::new(after),
        recorded: Some(Recorded {
            good: [1; 32],
            change: None,
        }),
        is_ours: false,
    };
    let resumed = Rollout::resume(Settings::default(), start, || Some(mesh()), Time::ZERO);
    assert_eq!(resumed.unwrap().rollout.runs().hash, [1; 32]);
}
